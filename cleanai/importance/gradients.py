"""Criteria that ask the loss: what it changes, to first and to second order, when a unit goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cleanai.errors import InputError
from cleanai.importance.group import MemberCriterion, ScoredGroup, reduce_parts

_TABLES = {"squared": "squares", "absolute": "absolutes"}


@dataclass(frozen=True, repr=False)
class TaylorImportance(MemberCriterion):
    """First-order Taylor: how much the loss changes, to first order, when a unit's weights become 0.

    ``s_u = mean over members of Σ_{indices i of u} E_batches[(Σ_{w in slice i} g·w)²]`` with g the gradient of the
    batch's loss: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, eq. 8 and 9. With
    ``change="absolute"``, ``E[|Σ g·w|]`` in place of the square (Molchanov et al., "Pruning Convolutional Neural
    Networks for Resource Efficient Inference", 2017, eq. 8). A unit that owns several indices of a weight (a head, a
    channel behind a flatten) has the sum of theirs.

    Args:
        change: "squared" or "absolute".
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Raises:
        InputError: another ``change``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [3.0]])), net[1].weight.fill_(1.0)
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), TaylorImportance())
        >>> _ = pruner.collect_gradients([torch.ones(1, 1)], lambda model, x: model(x).sum(), progress=False)
        >>> pruner.score_groups()["0"].tolist()  # the output is 1 + 3
        [1.0, 9.0]
    """

    change: Literal["squared", "absolute"] = "squared"

    needs_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.change, str) or self.change not in _TABLES:
            raise InputError(f"change is {self.change!r}; use {' or '.join(map(repr, _TABLES))}")

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no gradient reaches it."""
        parts = [group.from_gradients(member, _TABLES[self.change]) for member, _ in group.judged_weights()]
        return reduce_parts([part for part in parts if part is not None], self.reduction)


@dataclass(frozen=True, repr=False)
class HessianImportance(MemberCriterion):
    """Second-order, after Optimal Brain Damage: how much the loss curves along a unit's weights.

    At a minimum the loss changes by ``½ w_uᵀ H w_u`` when the unit's weights w_u become 0 (LeCun et al., "Optimal Brain
    Damage", 1990, eq. 2 and 5, there with the diagonal of H and single weights; here with the whole block of the unit's
    index). ``s_u = mean over members of Σ_{indices i of u} |½ E[w_iᵀ H w_i]|``, estimated by Hessian-vector products
    with random signs, whose noise falls with the root of the number of ``probes`` and batches (see
    `cleanai.collect_gradients`). Away from a minimum a curvature may be
    negative; its size counts.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [3.0]])), net[1].weight.copy_(torch.eye(2))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), HessianImportance())
        >>> def half_square(model, x):  # (1² + 3²) / 2
        ...     return model(x).square().sum() / 2
        >>> _ = pruner.collect_gradients([torch.ones(1, 1)], half_square, probes=100, progress=False)
        >>> torch.allclose(pruner.score_groups()["0"], torch.tensor([0.5, 4.5]).double(), rtol=0.1)
        True
    """

    needs_gradients = True
    needs_curvature = True

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no gradient reaches it."""
        parts = [group.from_gradients(member, "curvatures") for member, _ in group.judged_weights()]
        return reduce_parts([part.abs() / 2 for part in parts if part is not None], self.reduction)
