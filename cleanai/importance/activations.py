"""Criteria that look at what flows through the units: one calibration pass feeds them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cleanai.calibration import ChannelStatistics
from cleanai.checks import check_choice
from cleanai.errors import InputError
from cleanai.importance.group import MemberCriterion, ScoredGroup, reduce_parts
from cleanai.layers import input_weight_norms

CoverageMetric = Literal["normalized_mean", "frequency", "mean_absolute", "combined"]


@dataclass(frozen=True, repr=False)
class WandaImportance(MemberCriterion):
    """Weight times activation (WANDA): what a unit contributes to the layers that read it.

    ``s_u = mean over readers of Σ_{channels c of u} ‖X_c‖₂ · Σ_o |W_oc|`` with ‖X_c‖₂ the root mean square of the
    channel in the calibration data: the structured form of Sun et al., "A Simple and Effective Pruning Approach for
    Large Language Models", 2024, eq. 1, summed over a channel's weights.

    Example:
        >>> WandaImportance()
        WandaImportance()
    """

    needs_activations = True

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no layer with statistics reads it."""
        parts = []
        for layer, statistics in group.activations("input"):
            norms = input_weight_norms(group.modules[layer])
            if norms is not None and len(norms) == len(statistics.total):
                score = group.sum_channels(layer, "input", norms.cpu() * statistics.root_mean_square)
                parts.extend([] if score is None else [score])
        return reduce_parts(parts, self.reduction)


@dataclass(frozen=True, repr=False)
class ActivationImportance(MemberCriterion):
    """Mean absolute activation of a unit's channels where they are read (else where they are written).

    ``s_u = mean over layers of Σ_{channels c of u} E[|x_c|]``.
    """

    needs_activations = True

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no layer with statistics sees it."""
        parts = group.where_read(lambda layer, side, seen: group.sum_channels(layer, side, seen.mean_absolute))
        return reduce_parts(parts, self.reduction)


def _normalized_mean(statistics: ChannelStatistics, threshold: float) -> Tensor:
    largest = statistics.mean_absolute.max()
    return statistics.mean_absolute / largest if largest > 0 else statistics.mean_absolute


def _combined(statistics: ChannelStatistics, threshold: float) -> Tensor:
    return (_normalized_mean(statistics, threshold) * statistics.frequency(threshold)).sqrt()


COVERAGE: dict[str, Callable[[ChannelStatistics, float], Tensor]] = {
    "normalized_mean": _normalized_mean,
    "frequency": lambda statistics, threshold: statistics.frequency(threshold),
    "mean_absolute": lambda statistics, threshold: statistics.mean_absolute,
    "combined": _combined,
}
"""The coverage of each channel of a layer, by metric: high = active, 0 = never."""


def check_coverage(metric: str, threshold: float) -> None:
    """A clear error for a metric or a threshold that cannot be used."""
    check_choice(metric, COVERAGE, "metric")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
        raise InputError(
            f"threshold is {threshold!r}; it must be a number of at least 0, so that a channel that is always 0 is "
            "never active"
        )


@dataclass(frozen=True, repr=False)
class NeuronCoverageImportance(MemberCriterion):
    """Neuron coverage: how much of the calibration data makes a unit's channels active. High coverage is kept.

    A channel's coverage is taken from the values that the next layers read, after the nonlinearity between (where no
    layer with weights reads it, from those that its own layer writes):

    - ``"mean_absolute"``: E|x|, over samples and positions;
    - ``"normalized_mean"``: E|x| in shares of the layer's most active channel, in [0, 1];
    - ``"frequency"``: the share of values with x > ``threshold``, in [0, 1];
    - ``"combined"``: sqrt(normalized_mean · frequency), in [0, 1].

    ``s_u`` is the mean over the unit's channels, and over the layers that read it. A channel that is always 0 has 0 in
    every metric. Frequency is the continuous form of the neuron coverage of Pei et al., "DeepXplore", 2017, section
    4.1, which asks whether a neuron is ever above the threshold.

    Args:
        metric: one of the four.
        threshold: above which a value counts as active; at least 0.

    Example:
        >>> NeuronCoverageImportance(metric="frequency", threshold=0.25)
        NeuronCoverageImportance(metric='frequency', threshold=0.25)
    """

    metric: CoverageMetric = "normalized_mean"
    threshold: float = 0.0

    needs_activations = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_coverage(self.metric, self.threshold)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """What the calibration pass must count."""
        return (float(self.threshold),)

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no layer with statistics sees it."""
        measure = COVERAGE[self.metric]
        parts = group.where_read(
            lambda layer, side, seen: group.mean_channels(layer, side, measure(seen, float(self.threshold)))
        )
        return reduce_parts(parts, self.reduction)


@dataclass(frozen=True, repr=False)
class AdaptiveNeuronCoverageImportance(NeuronCoverageImportance):
    """Neuron coverage of the network as pruned so far: the pruner collects it afresh before each iterative step.

    Pruning changes what the layers behind a cut see, and so the coverage of what is left there; with one step it is
    `NeuronCoverageImportance`.

    Example:
        >>> AdaptiveNeuronCoverageImportance(metric="combined").recollect
        True
    """

    recollect = True
