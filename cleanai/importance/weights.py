"""Criteria that look at the weights alone, and the random baseline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.ops import FrozenBatchNorm2d

from cleanai.checks import check_count
from cleanai.errors import InputError
from cleanai.importance.group import Criterion, MemberCriterion, ScoredGroup, reduce_parts, share_of_larger


@dataclass(frozen=True, repr=False)
class MagnitudeImportance(MemberCriterion):
    """Weight magnitude: the Lp norm of a unit's slice of every weight, averaged over the weights it is part of.

    ``s_u = mean over members m of (Σ_{w in slice u of m} |w|^p)^(1/p)``. Weights are all parameters of two or more
    dimensions: the filters that write the unit and the columns that read it. L1 follows Li et al., "Pruning Filters for
    Efficient ConvNets", 2017.

    Args:
        p: 1 for the sum of absolute weights, 2 for the Euclidean norm.
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Raises:
        InputError: another ``p``.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-2.0], [3.0]])), net[2].weight.fill_(1.0)
        >>> StructuredPruner(net, torch.zeros(1, 1), MagnitudeImportance(p=1)).score_groups()["0"].tolist()
        [1.0, 1.5, 2.0]
    """

    p: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.p, bool) or self.p not in (1, 2):
            raise InputError(
                f"MagnitudeImportance: p is {self.p!r}; use 1 (sum of absolute weights) or 2 (Euclidean norm)"
            )

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]."""
        parts = [group.powers(member, tensor, self.p).pow(1 / self.p) for member, tensor in group.judged_weights()]
        return reduce_parts(parts, self.reduction)


_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, FrozenBatchNorm2d)


@dataclass(frozen=True, repr=False)
class BNScaleImportance(MemberCriterion):
    """The scale of a unit in the normalisation layers that it passes, in absolute value.

    ``s_u = mean over norms of Σ_{channels c of u} |γ_c|``: Liu et al., "Learning Efficient Convolutional Networks
    through Network Slimming", 2017. Seen are torch's batch, group, instance, layer and RMS norms that have a scale for
    each channel, and torchvision's frozen batch norm. A group without any is left whole.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
        >>> StructuredPruner(net, torch.zeros(1, 1), BNScaleImportance()).score_groups()["0"].tolist()
        [0.5, 2.0, 0.0]
    """

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where it passes no norm with scales."""
        scales = [
            (member, group.tensors[member.parameter])
            for member in group.members
            if member.parameter.rpartition(".")[2] == "weight" and isinstance(group.modules.get(member.layer), _NORMS)
        ]
        parts = [group.powers(member, scale.detach(), 1) for member, scale in scales if scale.dim() == 1]
        return reduce_parts(parts, self.reduction)


@dataclass(frozen=True, repr=False)
class FPGMImportance(MemberCriterion):
    """How far a unit's filter is from all others: what lies near the geometric median can be replaced by the rest.

    ``s_u = mean over members of Σ_{units v} ‖W_u - W_v‖₂`` with W_u the unit's slice of the weight: He et al., "Filter
    Pruning via Geometric Median for Deep Neural Networks Acceleration", 2019, eq. 6. A slice of zeros does nothing,
    however far it is from the others: it counts as 0.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [1.0], [5.0]]))
        >>> criterion = FPGMImportance(reduction="first")  # of the first layer's filters alone
        >>> StructuredPruner(net, torch.zeros(1, 1), criterion).score_groups()["0"].tolist()
        [4.0, 4.0, 8.0]
    """

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]."""
        parts = []
        for member, tensor in group.judged_weights():
            score = torch.zeros(group.size, dtype=torch.float64)
            for units, rows in group.slices(member, tensor):
                score[units] = (_sum_distances(rows) * (rows != 0).any(1)).cpu()
            parts.append(score)
        return reduce_parts(parts, self.reduction)


def _sum_distances(rows: Tensor) -> Tensor:
    """The sum of the Euclidean distances of each row to all others."""
    centred = rows - rows.mean(0)  # distances stay, and lose fewer digits where they come from products
    return torch.cat([torch.cdist(some, centred).sum(1) for some in centred.split(512)])


@dataclass(frozen=True, repr=False)
class LAMPImportance(MemberCriterion):
    """A unit's squared norm in shares of all that is not smaller: weights of different layers become comparable.

    ``s_u = mean over members of ‖W_u‖² / Σ_{v: ‖W_v‖ ≥ ‖W_u‖} ‖W_v‖²``: Lee et al., "Layer-adaptive Sparsity for the
    Magnitude-based Pruning", 2021, eq. 2, with the slices of units in place of single weights. In [0, 1]: 0 for a slice
    of zeros, 1 for the largest unit of a weight. The scores are compared between groups as they are.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`; the normaliser is "none" here.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        >>> criterion = LAMPImportance(reduction="first")  # of the first layer's weight alone
        >>> scores = StructuredPruner(net, torch.zeros(1, 1), criterion).score_groups()["0"]
        >>> torch.allclose(scores, torch.tensor([1 / (1 + 4 + 9), 4 / (4 + 9), 9 / 9]).double())
        True
    """

    normalizer: str = field(default="none", kw_only=True)

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]."""
        parts = [share_of_larger(group.powers(member, tensor, 2)) for member, tensor in group.judged_weights()]
        return reduce_parts(parts, self.reduction)


@dataclass(frozen=True, repr=False)
class RandomImportance(Criterion):
    """Random scores: the baseline every criterion has to beat. The same seed and group name give the same scores.

    Uniform in [0, 1), whatever the weights are; torch's own random state plays no part.

    Args:
        seed: any whole number.
        normalizer: see `cleanai.importance.Criterion`.

    Raises:
        InputError: ``seed`` is no whole number.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> pruners = [StructuredPruner(net, torch.zeros(1, 1), RandomImportance(seed)) for seed in (0, 0, 1)]
        >>> first, second, other = (pruner.score_groups()["0"] for pruner in pruners)
        >>> torch.equal(first, second), torch.equal(first, other)
        (True, False)
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.seed, "seed", least=None)

    def __call__(self, group: ScoredGroup) -> Tensor:
        """The scores of a group: shape [size]."""
        # Every letter counts: layer1.0.conv1 and layer2.0.conv1 must not draw alike.
        drawn = hashlib.blake2b(f"{self.seed}:{group.name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn, "big"))
        return torch.rand(group.size, generator=generator, dtype=torch.float64)
