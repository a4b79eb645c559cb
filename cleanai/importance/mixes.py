"""Criteria made of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cleanai.checks import check_iterable
from cleanai.errors import InputError
from cleanai.importance.activations import ActivationImportance
from cleanai.importance.group import (
    Criterion,
    Importance,
    MemberCriterion,
    ScoredGroup,
    check_normalizer,
    normalize_scores,
    thresholds_of,
)
from cleanai.importance.names import find_importance
from cleanai.importance.weights import MagnitudeImportance


def _mix(terms: Sequence[tuple[Importance, float]], group: ScoredGroup, scale: str) -> Tensor | None:
    """Weighted scores, each term's normalised first; None where one of those that count cannot judge the group."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for importance, weight in terms:
        scores = importance(group)
        if scores is None:
            return None
        total = total + weight * normalize_scores(torch.as_tensor(scores).detach().cpu(), scale)
    return total


@dataclass(frozen=True, repr=False)
class WeightActivationImportance(MemberCriterion):
    """Weight magnitude and activation, mixed: ``s = α · ‖W‖ / mean‖W‖ + β · A / mean A`` within each group.

    Dividing both terms by their mean over the group brings them to one scale. ‖W‖ is `MagnitudeImportance` with ``p``,
    A is `ActivationImportance`; activations need not be collected where β is 0.

    Args:
        weight_ratio: α, in [0, 1].
        activation_ratio: β, in [0, 1]; the two sum to 1.
        p: 1 or 2, as in `MagnitudeImportance`.
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Raises:
        InputError: a ratio outside [0, 1], ratios that do not sum to 1, or another ``p``.

    Example:
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-2.0], [3.0]])), net[2].weight.fill_(1.0)
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), WeightActivationImportance(0.5, 0.5, p=1))
        >>> _ = pruner.collect_activations([torch.tensor([[1.0], [-1.0]])], progress=False)
        >>> weights, activations = torch.tensor([1.0, 1.5, 2.0]), torch.tensor([0.5, 1.0, 1.5])
        >>> expected = 0.5 * weights / weights.mean() + 0.5 * activations / activations.mean()
        >>> torch.allclose(pruner.score_groups()["0"], expected.double())
        True
    """

    weight_ratio: float = 0.5
    activation_ratio: float = 0.5
    p: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_ratio", "activation_ratio"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}; it must lie between 0 and 1")
        if abs(self.weight_ratio + self.activation_ratio - 1) > 1e-9:
            raise InputError(
                f"weight_ratio + activation_ratio is {self.weight_ratio + self.activation_ratio:g}; they must sum to "
                f"1, e.g. weight_ratio={self.weight_ratio:g}, activation_ratio={1 - self.weight_ratio:g}"
            )
        MagnitudeImportance(self.p)

    @property
    def needs_activations(self) -> bool:
        """Whether the activation term counts at all."""
        return self.activation_ratio > 0

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where one of the terms that count cannot be had."""
        terms: list[tuple[Importance, float]] = [
            (MagnitudeImportance(self.p, reduction=self.reduction), self.weight_ratio),
            (ActivationImportance(reduction=self.reduction), self.activation_ratio),
        ]
        return _mix([(term, ratio) for term, ratio in terms if ratio > 0], group, "mean")


@dataclass(frozen=True, repr=False)
class MixedImportance(Criterion):
    """A weighted mix of any criteria: ``s = Σ_t weight_t · normalised(s_t)`` within each group.

    It needs what its terms need. A group that one of them cannot judge is left whole.

    Args:
        terms: {name: weight}, or pairs of a criterion (or its name) and a weight. Weights are positive.
        scale: how each term is brought to one scale with the others before they are added (see
            `cleanai.importance.normalize_scores`).
        normalizer: see `cleanai.importance.Criterion`.

    Raises:
        InputError: no terms, an unknown name, a term that is no pair, or a weight that is not positive.

    Example:
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> mixed = MixedImportance({"l1": 0.5, "activation": 0.5})
        >>> mixed.needs_activations
        True
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 3), mixed)
        >>> _ = pruner.collect_activations([torch.randn(16, 3)], progress=False)
        >>> same = pruner.vary(importance=WeightActivationImportance(0.5, 0.5, p=1))
        >>> torch.allclose(pruner.score_groups()["0"], same.score_groups()["0"])
        True
    """

    terms: Mapping[str, float] | Sequence[tuple[Importance | str, float]]
    scale: str = "mean"
    _found: tuple[tuple[Importance, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalizer(self.scale)
        check_iterable(self.terms, "terms", "{name: weight}, e.g. {'coverage': 0.5, 'magnitude': 0.5}")
        pairs = tuple(self.terms.items()) if isinstance(self.terms, Mapping) else tuple(self.terms)
        if not pairs:
            raise InputError("MixedImportance: there are no terms; give e.g. {'coverage': 0.5, 'magnitude': 0.5}")
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"MixedImportance: {pair!r} is no pair of a criterion and its weight")
            weight = pair[1]
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise InputError(f"MixedImportance: the weight of {pair[0]!r} is {weight!r}; it must be positive")
        object.__setattr__(self, "terms", tuple((criterion, float(weight)) for criterion, weight in pairs))
        object.__setattr__(self, "_found", tuple((find_importance(name), float(weight)) for name, weight in pairs))

    def _any(self, attribute: str) -> bool:
        return any(getattr(importance, attribute, False) for importance, _ in self._found)

    @property
    def needs_activations(self) -> bool:
        """Whether a term needs activations."""
        return self._any("needs_activations")

    @property
    def needs_moments(self) -> bool:
        """Whether a term needs second moments."""
        return self._any("needs_moments")

    @property
    def needs_gradients(self) -> bool:
        """Whether a term needs gradients."""
        return self._any("needs_gradients")

    @property
    def needs_curvature(self) -> bool:
        """Whether a term needs curvature."""
        return self._any("needs_curvature")

    @property
    def recollect(self) -> bool:
        """Whether a term wants what it looks at collected afresh before every step."""
        return self._any("recollect")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """All thresholds of its terms."""
        return tuple(dict.fromkeys(value for importance, _ in self._found for value in thresholds_of(importance)))

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where one of the terms cannot judge it."""
        return _mix(self._found, group, self.scale)
