"""Importance scores: one number per unit of a group, higher = keep.

A scorer is any callable that takes a `ScoredGroup` and returns a tensor with one score per unit, or None where it
cannot judge the group (which is then left alone and named). ``needs_activations = True`` on it asks for a calibration
pass first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cleanai.calibration import ActivationStatistics, ChannelStatistics
from cleanai.coupling import Group, Member
from cleanai.errors import InputError
from cleanai.layers import input_weight_norms


@dataclass(frozen=True)
class ScoredGroup:
    """A group with what a scorer may look at: the model's tensors, its modules, and the activation statistics.

    Attributes:
        name, kind, size: see `cleanai.coupling.Group`; a score has shape [size].
        members: the dimensions of the model's tensors that the group's units own a part of.
        tensors: the tensor of each member, by parameter name.
        statistics: None before a calibration pass.
    """

    group: Group
    tensors: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    statistics: ActivationStatistics | None = None

    @property
    def name(self) -> str:
        """The group's name: the path of the layer that makes its channels."""
        return self.group.name

    @property
    def kind(self) -> str:
        """What its units are: "channels", "heads" or "groups"."""
        return self.group.kind

    @property
    def size(self) -> int:
        """The number of units."""
        return self.group.size

    @property
    def members(self) -> tuple[Member, ...]:
        """The dimensions the group owns a part of."""
        return self.group.members

    def weights(self) -> list[tuple[Member, Tensor]]:
        """The members that are weights of at least two dimensions, and those tensors."""
        found = [(member, self.tensors[member.parameter].detach()) for member in self.members]
        return [
            (m, t)
            for m, t in found
            if t.dim() >= 2 and t.is_floating_point() and isinstance(self._held(m), nn.Parameter)
        ]

    def _held(self, member: Member) -> Tensor:
        return self.tensors[member.parameter]

    def sum_positions(self, member: Member, values: Tensor) -> Tensor:
        """Values per index of a member's dimension, summed for each unit: shape [size]."""
        total = torch.zeros(self.size, dtype=torch.float64)
        positions = torch.from_numpy(member.positions)
        return total.index_add_(0, torch.from_numpy(member.units), values.detach().double().cpu()[positions])

    def powers(self, member: Member, tensor: Tensor, p: float) -> Tensor:
        """Σ|w|^p over everything a member holds for each unit: shape [size]."""
        per_index = tensor.movedim(member.dim, 0).flatten(1).abs().double().pow(p).sum(1)
        return self.sum_positions(member, per_index)

    def sum_channels(self, layer: str, side: str, values: Tensor) -> Tensor | None:
        """Values per input or output channel of a layer, summed for each unit; None if the group has none there."""
        for channels in self.group.channels:
            if (channels.module, channels.side) == (layer, side) and len(channels.units) == len(values):
                units = torch.from_numpy(channels.units)
                own = units >= 0
                total = torch.zeros(self.size, dtype=torch.float64)
                return total.index_add_(0, units[own], values.double().cpu()[own])
        return None

    def activations(self, side: str = "input") -> list[tuple[str, ChannelStatistics]]:
        """The layers that read (or, side "output", write) the group's channels, with their statistics."""
        if self.statistics is None:
            raise InputError(
                f"scoring the group {self.name} needs activations: call collect_activations(loader) before prune()"
            )
        found = []
        for channels in self.group.channels:
            statistics = self.statistics.get(channels.module, channels.side) if channels.side == side else None
            if statistics is None:
                continue
            if len(statistics.total) != len(channels.units):
                raise InputError(
                    f"the activation statistics of {channels.module} are for {len(statistics.total)} channels; its "
                    f"{side} has {len(channels.units)} now: call collect_activations again"
                )
            found.append((channels.module, statistics))
        return found


class Importance(Protocol):
    """Anything that scores groups: a callable on a `ScoredGroup` returning one score per unit, higher = keep."""

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """One score per unit, or None where this criterion cannot judge the group."""
        ...


def _mean_of(parts: list[Tensor]) -> Tensor | None:
    return torch.stack(parts).mean(0) if parts else None


def _scaled_to_mean(scores: Tensor) -> Tensor:
    """Scores divided by their mean, so that an average unit has 1."""
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.zeros_like(scores)


@dataclass(frozen=True)
class MagnitudeImportance:
    """Weight magnitude: the Lp norm of a unit's slice of every weight, averaged over the weights it is part of.

    ``s_u = mean over members m of (Σ_{w in slice u of m} |w|^p)^(1/p)``. Weights are all parameters of two or more
    dimensions: the filters that write the unit and the columns that read it. L1 follows Li et al., "Pruning Filters for
    Efficient ConvNets", 2017.

    Example:
        >>> MagnitudeImportance(p=1)
        MagnitudeImportance(p=1)
    """

    p: float = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise InputError(
                f"MagnitudeImportance: p is {self.p!r}; use 1 (sum of absolute weights) or 2 (Euclidean norm)"
            )

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]."""
        parts = [group.powers(member, tensor, self.p).pow(1 / self.p) for member, tensor in group.weights()]
        if not parts:  # only vectors (a bare scale or bias): they are all there is to judge by
            vectors = [m for m in group.members if isinstance(group.tensors[m.parameter], nn.Parameter)]
            parts = [group.powers(m, group.tensors[m.parameter].detach(), self.p).pow(1 / self.p) for m in vectors]
        return _mean_of(parts)


@dataclass(frozen=True)
class WandaImportance:
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
        return _mean_of(parts)


@dataclass(frozen=True)
class ActivationImportance:
    """Mean absolute activation of a unit's channels where they are read (else where they are written).

    ``s_u = mean over layers of Σ_{channels c of u} E[|x_c|]``.
    """

    needs_activations = True

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no layer with statistics sees it."""
        for side in ("input", "output"):
            parts = [
                group.sum_channels(layer, side, statistics.mean_absolute)
                for layer, statistics in group.activations(side)
            ]
            found = [part for part in parts if part is not None]
            if found:
                return _mean_of(found)
        return None


@dataclass(frozen=True)
class WeightActivationImportance:
    """Weight magnitude and activation, mixed: ``s = α · ‖W‖ / mean‖W‖ + β · A / mean A`` within each group.

    Dividing both terms by their mean over the group brings them to one scale; ``weight_ratio`` (α) and
    ``activation_ratio`` (β) sum to 1. ‖W‖ is `MagnitudeImportance` with ``p``, A is `ActivationImportance`.

    Raises:
        InputError: a ratio outside [0, 1], or ratios that do not sum to 1.

    Example:
        >>> WeightActivationImportance(weight_ratio=0.25, activation_ratio=0.75).weight_ratio
        0.25
    """

    weight_ratio: float = 0.5
    activation_ratio: float = 0.5
    p: float = 2

    def __post_init__(self) -> None:
        for name in ("weight_ratio", "activation_ratio"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
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
        terms: list[tuple[float, Callable[[ScoredGroup], Tensor | None]]] = [
            (self.weight_ratio, MagnitudeImportance(self.p)),
            (self.activation_ratio, ActivationImportance()),
        ]
        total = torch.zeros(group.size, dtype=torch.float64)
        for ratio, term in terms:
            if ratio > 0:
                scores = term(group)
                if scores is None:
                    return None
                total = total + ratio * _scaled_to_mean(scores)
        return total


@dataclass(frozen=True)
class RandomImportance:
    """Random scores: the baseline every criterion has to beat. The same seed and group name give the same scores."""

    seed: int = 0

    def __call__(self, group: ScoredGroup) -> Tensor:
        """The scores of a group: shape [size]."""
        mixed = int.from_bytes(f"{self.seed}:{group.name}".encode()[-64:], "big") % (2**62)
        return torch.rand(group.size, generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)


CRITERIA: dict[str, Callable[[], Importance]] = {
    "l1": lambda: MagnitudeImportance(1),
    "l2": lambda: MagnitudeImportance(2),
    "magnitude": MagnitudeImportance,
    "activation": ActivationImportance,
    "wanda": WandaImportance,
    "weight_activation": WeightActivationImportance,
    "random": RandomImportance,
}


def find_importance(importance: Importance | str) -> Importance:
    """The scorer itself, or the one of a name ("magnitude", "wanda", …)."""
    if isinstance(importance, str):
        if importance not in CRITERIA:
            raise InputError(f"no importance is named {importance!r}; the names are {', '.join(CRITERIA)}")
        return CRITERIA[importance]()
    if isinstance(importance, type):
        raise InputError(f"importance is the class {importance.__name__}; give an instance: {importance.__name__}()")
    if not callable(importance):
        raise InputError(
            f"importance is {importance!r}; give a name ({', '.join(CRITERIA)}) or a callable on a group that returns "
            "one score per unit"
        )
    return importance


def score_group(importance: Importance, group: ScoredGroup) -> Tensor | None:
    """A group's scores, checked: one finite number per unit, or None."""
    scores: Any = importance(group)
    if scores is None:
        return None
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{importance!r} returned {type(scores).__name__} for the group {group.name}") from error
    scores = scores.detach().double().cpu()
    if tuple(scores.shape) != (group.size,):
        raise InputError(
            f"{importance!r} returned scores of shape {tuple(scores.shape)} for the group {group.name}, which has "
            f"{group.size} {group.kind}: return one score for each"
        )
    if not bool(scores.isfinite().all()):
        raise InputError(f"{importance!r} returned NaN or infinite scores for the group {group.name}")
    return scores
