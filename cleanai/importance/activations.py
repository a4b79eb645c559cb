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
"""How the coverage of a channel is measured: see `NeuronCoverageImportance`."""


@dataclass(frozen=True, repr=False)
class WandaImportance(MemberCriterion):
    """Weight times activation (WANDA): what a unit contributes to the layers that read it.

    ``s_u = mean over readers of Σ_{channels c of u} ‖X_c‖₂ · Σ_o |W_oc|`` with ‖X_c‖₂ the root mean square of the
    channel in the calibration data: the structured form of Sun et al., "A Simple and Effective Pruning Approach for
    Large Language Models", 2024, eq. 1, summed over a channel's weights. A group that no layer with weights reads is
    left whole.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-2.0], [3.0]])), net[2].weight.fill_(2.0)
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), WandaImportance())
        >>> _ = pruner.collect_activations([torch.ones(4, 1)], progress=False)  # the last layer reads 1, 0, 3
        >>> pruner.score_groups()["0"].tolist()
        [2.0, 0.0, 6.0]
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

    ``s_u = mean over layers of Σ_{channels c of u} E[|x_c|]``, over samples and positions of the calibration data.

    Args:
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-2.0], [3.0]]))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), ActivationImportance())
        >>> _ = pruner.collect_activations([torch.tensor([[1.0], [-1.0]])], progress=False)  # read: 1, 0, 3 and 0, 2, 0
        >>> pruner.score_groups()["0"].tolist()
        [0.5, 1.0, 1.5]
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
"""The coverage of each channel of a layer, by metric: {name: function of its statistics and the threshold}.

What it gives is float64 of the shape [channels]; high = active, 0 = never.
"""


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

    - ``"mean_absolute"``: ``E|x|``, over samples and positions;
    - ``"normalized_mean"``: ``E|x|`` in shares of the layer's most active channel, in [0, 1];
    - ``"frequency"``: the share of values with x > ``threshold``, in [0, 1];
    - ``"combined"``: sqrt(normalized_mean · frequency), in [0, 1].

    ``s_u`` is the mean over the unit's channels, and over the layers that read it. A channel that is always 0 has 0 in
    every metric. Frequency is the continuous form of the neuron coverage of Pei et al., "DeepXplore", 2017, section
    4.1, which asks whether a neuron is ever above the threshold.

    Args:
        metric: one of the four.
        threshold: above which a value counts as active; at least 0.
        reduction, normalizer: see `cleanai.importance.MemberCriterion`.

    Raises:
        InputError: another metric, or a threshold below 0.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 1), NeuronCoverageImportance(metric="frequency"))
        >>> _ = pruner.collect_activations([torch.tensor([[1.0], [2.0], [-1.0], [0.0]])], progress=False)
        >>> pruner.score_groups()["0"].tolist()
        [0.5, 0.25, 0.0]
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
    `NeuronCoverageImportance`. The loader must be one that can be gone through several times.

    Args:
        metric, threshold, reduction, normalizer: as in `NeuronCoverageImportance`.

    Raises:
        InputError: as in `NeuronCoverageImportance`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 3), AdaptiveNeuronCoverageImportance(), iterative_steps=2)
        >>> _ = pruner.collect_activations([torch.randn(16, 3)], progress=False)
        >>> pruner.prune()[0].out_features
        4
    """

    recollect = True
