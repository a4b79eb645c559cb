"""What a scorer is given and gives back: a group with all that is known of it, one score per unit, higher = keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cleanai.calibration import ActivationStatistics, ChannelStatistics
from cleanai.checks import check_choice, suggest_names
from cleanai.coupling import Group, Member
from cleanai.errors import InputError
from cleanai.gradients import GradientStatistics
from cleanai.matrices import LayerMoments


@dataclass(frozen=True)
class ScoredGroup:
    """A group with what a scorer may look at: the model's tensors, its modules, and what was collected from data.

    A unit is what can be removed alone: a channel, a head, a convolution group. Everything that is given per unit has
    the shape [size].

    Attributes:
        group: the `cleanai.coupling.Group`; ``name``, ``kind``, ``size`` and ``members`` are its own.
        tensors: the model's tensors, by name.
        modules: the model's modules, by path.
        statistics: an `cleanai.ActivationStatistics`; None before a calibration pass.
        gradients: a `cleanai.GradientStatistics`; None before gradients were collected.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (group,) = StructuredPruner(net, torch.zeros(1, 3)).describe_groups()
        >>> group.name, group.kind, group.size
        ('0', 'channels', 8)
        >>> [(member.parameter, member.dim, member.role) for member in group.members]
        [('0.weight', 0, 'output'), ('0.bias', 0, 'output'), ('2.weight', 1, 'input')]
        >>> member, weight = group.weights()[0]
        >>> torch.allclose(group.powers(member, weight, 1), weight.abs().sum(1).double())
        True
    """

    group: Group
    tensors: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    statistics: ActivationStatistics | None = None
    gradients: GradientStatistics | None = None

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
        """The dimensions of the model's tensors that the group's units own a part of.

        Each has the tensor's name (``parameter``), the dimension (``dim``), its ``role`` ("input" where it is summed
        over, else "output"), the ``positions`` along it that belong to the group, and the ``units`` that own them.
        """
        return self.group.members

    # ------------------------------------------------------------------------------------------------------ weights

    def weights(self) -> list[tuple[Member, Tensor]]:
        """The members that are weights of at least two dimensions, and those tensors.

        Raises:
            InputError: a tensor is on the meta device, so it has no values.
        """
        return [(member, tensor) for member, tensor in self._parameters() if tensor.dim() >= 2]

    def judged_weights(self) -> list[tuple[Member, Tensor]]:
        """The weights; in a group that has only vectors (a bare scale or bias), those: they are all there is.

        Raises:
            InputError: a tensor is on the meta device, so it has no values.
        """
        return self.weights() or self._parameters()

    def _parameters(self) -> list[tuple[Member, Tensor]]:
        held = [(member, self.tensors[member.parameter]) for member in self.members]
        empty = next((member.parameter for member, tensor in held if tensor.is_meta), None)
        if empty is not None:
            raise InputError(f"{empty} is on the meta device, so it has no values to score: give the model its weights")
        return [(m, t.detach()) for m, t in held if isinstance(t, nn.Parameter) and t.is_floating_point()]

    def sum_positions(self, member: Member, values: Tensor) -> Tensor:
        """Values per index of a member's dimension, summed for each unit: float64, shape [size].

        Args:
            member: one of `members`.
            values: one number for each index of the dimension: shape [size of the dimension].
        """
        total = torch.zeros(self.size, dtype=torch.float64)
        positions = torch.from_numpy(member.positions)
        return total.index_add_(0, torch.from_numpy(member.units), values.detach().double().cpu()[positions])

    def powers(self, member: Member, tensor: Tensor, p: float) -> Tensor:
        """``Σ|w|^p`` over everything a ``member`` of the ``tensor`` holds for each unit: float64, shape [size]."""
        per_index = tensor.movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1).abs().double().pow(p).sum(1)
        return self.sum_positions(member, per_index)

    def slices(self, member: Member, tensor: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a member holds for each unit, as rows: [(units, rows of those units)] by the number of indices.

        Args:
            member: one of `members`.
            tensor: the tensor that it is a part of.

        Returns:
            For units that own equally many indices: their numbers, shape [n], and what they own, float64, shape
            [n, elements].
        """
        units, positions = torch.from_numpy(member.units), torch.from_numpy(member.positions)
        order = torch.argsort(units, stable=True)
        counts = torch.bincount(units, minlength=self.size)
        rows = tensor.movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1)
        found = []
        for count in counts[counts > 0].unique().tolist():
            own = torch.nonzero(counts == count).flatten()
            places = positions[order[counts[units[order]] == count]]
            found.append((own, rows[places.to(rows.device)].double().reshape(len(own), -1)))
        return found

    # -------------------------------------------------------------------------------------------------- activations

    def sum_channels(self, layer: str, side: str, values: Tensor) -> Tensor | None:
        """Values per input or output channel of a layer, summed for each unit; None if the group has none there.

        Args:
            layer: the path of the layer.
            side: "input" or "output".
            values: one number for each channel: shape [channels].

        Returns:
            float64, shape [size].
        """
        units = self._units_at(layer, side, len(values))
        if units is None:
            return None
        own = units >= 0
        return torch.zeros(self.size, dtype=torch.float64).index_add_(0, units[own], values.double().cpu()[own])

    def mean_channels(self, layer: str, side: str, values: Tensor) -> Tensor | None:
        """Values per input or output channel of a layer, averaged over each unit's own; 0 for a unit without any.

        ``layer``, ``side``, ``values`` and the result are as in `sum_channels`.
        """
        total = self.sum_channels(layer, side, values)
        count = self.sum_channels(layer, side, torch.ones(len(values)))
        return None if total is None or count is None else total / count.clamp(min=1)

    def _units_at(self, layer: str, side: str, length: int) -> Tensor | None:
        for channels in self.group.channels:
            if (channels.module, channels.side) == (layer, side) and len(channels.units) == length:
                return torch.from_numpy(channels.units)
        return None

    def activations(self, side: str = "input") -> list[tuple[str, ChannelStatistics]]:
        """The layers that read (or, ``side`` "output", write) the group's channels, with their statistics.

        Raises:
            InputError: no activations were collected, or those of a layer with another number of channels.

        Example:
            >>> from cleanai import StructuredPruner
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.zeros(1, 3))
            >>> _ = pruner.collect_activations([torch.randn(16, 3)], progress=False)
            >>> (group,) = pruner.describe_groups()
            >>> [(layer, seen.mean_absolute.shape) for layer, seen in group.activations("input")]
            [('2', torch.Size([8]))]
        """
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

    def where_read(self, score: Callable[[str, str, ChannelStatistics], Tensor | None]) -> list[Tensor]:
        """``score(layer, side, statistics)`` for the layers that read the group, else for those that write it."""
        for side in ("input", "output"):
            found = [score(layer, side, statistics) for layer, statistics in self.activations(side)]
            parts = [part for part in found if part is not None]
            if parts:
                return parts
        return []

    def moments(self) -> list[tuple[str, LayerMoments]]:
        """The layers that read the group's channels and the blocks that return them, with the second moments of those.

        Raises:
            InputError: no moments were collected.
        """
        if self.statistics is None or not self.statistics.moments:
            raise InputError(
                f"scoring the group {self.name} needs second moments: call collect_activations(loader) of a pruner "
                "with this importance before prune()"
            )
        readers = dict.fromkeys(channels.module for channels in self.group.channels if channels.side != "output")
        return [(layer, self.statistics.moments[layer]) for layer in readers if layer in self.statistics.moments]

    def units_read(self, layer: str) -> Tensor | None:
        """The unit of each input channel of a ``layer`` (or channel that a block returns), -1 where it has none."""
        found = [c.units for c in self.group.channels if c.module == layer and c.side in ("input", "result")]
        return torch.from_numpy(found[0]) if found else None

    # ---------------------------------------------------------------------------------------------------- gradients

    def from_gradients(self, member: Member, table: str) -> Tensor | None:
        """What the gradients say of a member, averaged over batches and summed for each unit: float64, shape [size].

        None where the pass saw nothing of it.

        Args:
            member: one of `members`.
            table: "squares", "absolutes" or "curvatures" (see `cleanai.GradientStatistics`).

        Raises:
            InputError: no gradients were collected, none of this kind, or those of other sizes.
        """
        if self.gradients is None:
            raise InputError(
                f"scoring the group {self.name} needs gradients: call collect_gradients(loader) before prune()"
            )
        values = getattr(self.gradients, table)
        if table == "curvatures" and not values:
            raise InputError(
                f"scoring the group {self.name} needs curvature: call collect_gradients(loader, curvature=True)"
            )
        found = values.get((member.parameter, member.dim))
        if found is None:
            return None
        if len(found) != member.size:
            raise InputError(
                f"the gradients of {member.parameter} are for {len(found)} indices along dimension {member.dim}; it "
                f"has {member.size} now: call collect_gradients again"
            )
        return self.sum_positions(member, found / self.gradients.batches)


class Importance(Protocol):
    """Anything that scores groups: a callable on a `ScoredGroup` returning one score per unit, higher = keep.

    What else it has, it may say in attributes: ``needs_activations``, ``needs_gradients``, ``needs_curvature``,
    ``needs_moments`` (what must be collected first), ``thresholds`` (see `cleanai.collect_statistics`), ``recollect``
    (afresh before every step), ``normalizer`` (how its scores become comparable between groups, see
    `cleanai.importance.normalize_scores`) and ``cost_aware`` (whether they are best ranked per saving).

    Example:
        >>> from cleanai import StructuredPruner
        >>> def largest_weight(group):
        ...     parts = [
        ...         group.sum_positions(member, weight.movedim(member.dim, 0).flatten(1).abs().amax(1))
        ...         for member, weight in group.weights()
        ...     ]
        ...     return torch.stack(parts).amax(0)
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-2.0], [3.0]])), net[2].weight.fill_(2.5)
        >>> StructuredPruner(net, torch.zeros(1, 1), largest_weight).score_groups()["0"].tolist()
        [2.5, 2.5, 3.0]
    """

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """One score per unit, or None where this criterion cannot judge the group."""
        ...


# --------------------------------------------------------------------------------------------- over a group's members

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda parts: parts.mean(0),
    "sum": lambda parts: parts.sum(0),
    "max": lambda parts: parts.amax(0),
    "product": lambda parts: parts.prod(0),
    "first": lambda parts: parts[0],
}
"""Ways to make one score of those of a group's members (or of the layers that read it): {name: function}.

Each takes a tensor of shape [parts, size] and gives one of shape [size].
"""


def reduce_parts(parts: Sequence[Tensor], reduction: str) -> Tensor | None:
    """One score per unit from those of the members; None where there are none."""
    return REDUCTIONS[reduction](torch.stack([part.double().cpu() for part in parts])) if parts else None


# ------------------------------------------------------------------------------------------------------ across groups


_NOTHING = 1e-12  # of scores of which the largest has a size of 1


def _over(size: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Scores in shares of a size of theirs; where that is next to nothing, of their mean."""

    def normalize(scores: Tensor) -> Tensor:
        divisor = size(scores.abs())
        return scores / (divisor if divisor > _NOTHING else scores.abs().mean())

    return normalize


def _standardise(scores: Tensor) -> Tensor:
    centred = scores - scores.mean()
    spread = centred.square().mean().sqrt()
    return centred / spread if spread > _NOTHING else torch.zeros_like(scores)


_MAD_TO_DEVIATION = 1.4826  # of a normal distribution: 1 / Φ⁻¹(3/4)


def _standardise_robustly(scores: Tensor) -> Tensor:
    centred = scores - scores.quantile(0.5)
    spread = centred.abs().quantile(0.5) * _MAD_TO_DEVIATION
    return centred / spread if spread > _NOTHING else _standardise(scores)


def share_of_larger(scores: Tensor) -> Tensor:
    """Each score over the sum of those that are not smaller: (0, 1], and 0 for a score of 0.

    The step that makes LAMP's scores comparable between layers (Lee et al., 2021, eq. 2). Ties have the same share;
    scores below 0 are moved up so that the lowest is 0.
    """
    positive = scores - scores.min().clamp(max=0)
    ordered, order = positive.sort(descending=True)
    sums = ordered.cumsum(0)
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1  # the last of those that are equal
    shares = torch.empty_like(positive)
    shares[order] = torch.where(ordered > 0, ordered / sums[last], 0.0)
    return shares


NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "mean": _over(lambda sizes: sizes.mean()),
    "max": _over(lambda sizes: sizes.amax()),
    "sum": _over(lambda sizes: sizes.sum()),
    "standardise": _standardise,
    "gaussian": _standardise_robustly,
    "lamp": share_of_larger,
    "sentinel": _over(lambda sizes: sizes.quantile(0.5)),
}
"""How the scores of a group become comparable with those of others: {name: function}; see `normalize_scores`."""
_SENTINEL = "sentinel:"


def _find_normalizer(how: str) -> Callable[[Tensor], Tensor] | None:
    if isinstance(how, str) and how.startswith(_SENTINEL):
        try:
            quantile = float(how[len(_SENTINEL) :])
        except ValueError:
            return None
        return _over(lambda sizes: sizes.quantile(quantile)) if 0 < quantile <= 1 else None
    return NORMALIZERS.get(how) if isinstance(how, str) else None


def check_normalizer(how: Any) -> None:
    """A clear error for what is no normaliser."""
    if _find_normalizer(how) is None:
        raise InputError(
            f"normalizer is {how!r}; use {', '.join(map(repr, NORMALIZERS))} or 'sentinel:q' with a quantile q in "
            f"(0, 1]{suggest_names(how, NORMALIZERS)}"
        )


def normalize_scores(scores: Tensor, how: str) -> Tensor:
    """A group's scores on a scale on which they can be compared with those of other groups; the order stays.

    - ``"none"``: as they are.
    - ``"mean"``, ``"max"``, ``"sum"``: in shares of the mean, the maximum or the sum of the absolute scores.
    - ``"standardise"``: (s - mean) / standard deviation.
    - ``"gaussian"``: the same for the normal distribution that fits the middle of the scores, so that a few large ones
      do not matter: (s - median) / (1.4826 · median of the absolute distances from it).
    - ``"lamp"``: over the sum of all scores that are not smaller (as in `LAMPImportance`).
    - ``"sentinel"``: in shares of the median of the absolute scores; ``"sentinel:0.9"`` of another quantile.

    Scores that do not differ from each other become 0 or 1, or whatever ratio of them the name says, never NaN.

    Args:
        scores: one for each unit: shape [size].
        how: one of these names.

    Returns:
        float64, shape [size].

    Raises:
        InputError: there is no such normaliser.

    Example:
        >>> normalize_scores(torch.tensor([1.0, 2.0, 3.0]), "mean").tolist()
        [0.5, 1.0, 1.5]
    """
    check_normalizer(how)
    normalize = _find_normalizer(how)
    assert normalize is not None
    scores = scores.double()
    if how == "none" or not scores.numel():
        return scores
    largest = scores.abs().max()
    # To a size at which no sum overflows and no square vanishes.
    return normalize(scores / largest) if largest > 0 else torch.zeros_like(scores)


# --------------------------------------------------------------------------------------------------------- criteria


@dataclass(frozen=True, repr=False)
class Criterion:
    """What every criterion has: a base for scorers of one's own that take part in rankings across groups.

    Args:
        normalizer: how the scores of different groups are made comparable where all groups are ranked together (see
            `normalize_scores`); the scores themselves are not changed by it.

    Raises:
        InputError: there is no such normaliser.

    Example:
        >>> @dataclass(frozen=True, repr=False)
        ... class KeepTheFirst(Criterion):
        ...     def __call__(self, group):
        ...         return torch.arange(group.size, 0, -1)
        >>> KeepTheFirst(normalizer="max")
        KeepTheFirst(normalizer='max')
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> StructuredPruner(net, torch.zeros(1, 3), KeepTheFirst()).make_plan().kept("0.weight", 0)
        (0, 1)
    """

    normalizer: str = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        check_normalizer(self.normalizer)

    def __repr__(self) -> str:
        """The arguments that are the criterion's own, then those common to all where they are not the usual ones."""
        fields = [each for each in dataclasses.fields(self) if each.repr]
        own = [each for each in fields if not each.kw_only]
        common = [each for each in fields if each.kw_only and getattr(self, each.name) != each.default]
        shown = [f"{each.name}={getattr(self, each.name)!r}" for each in (*own, *common)]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class MemberCriterion(Criterion):
    """A criterion that scores the members of a group (or the layers that read it) one by one.

    Args:
        reduction: how those become one score: "mean", "sum", "max", "product", or "first" for that of the first
            member in the order of the model.
        normalizer: how the scores of different groups are made comparable (see `Criterion`).

    Raises:
        InputError: there is no such reduction or normaliser.

    Example:
        >>> from cleanai import MagnitudeImportance, StructuredPruner
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0]])), net[2].weight.fill_(2.5)
        >>> criterion = MagnitudeImportance(p=1, reduction="max")  # a MemberCriterion: the larger of the two weights
        >>> StructuredPruner(net, torch.zeros(1, 1), criterion).score_groups()["0"].tolist()
        [2.5, 2.5, 3.0]
    """

    reduction: str = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.reduction, REDUCTIONS, "reduction")


def thresholds_of(importance: Any) -> tuple[float, ...]:
    """The thresholds above which a criterion wants values counted; 0 if it does not say."""
    return tuple(getattr(importance, "thresholds", ())) or (0.0,)


def name_scorer(importance: Any) -> str:
    """What a scorer is called in messages: a function by its name, which is the same in every process."""
    return getattr(importance, "__name__", None) or repr(importance)


def score_group(importance: Importance, group: ScoredGroup) -> Tensor | None:
    """A group's scores, checked: one finite number per unit, or None."""
    scores: Any = importance(group)
    if scores is None:
        return None
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{name_scorer(importance)} returned a {type(scores).__name__} for the group {group.name}: return one "
                "number for each unit, or None"
            ) from error
    scores = scores.detach().double().cpu()
    if tuple(scores.shape) != (group.size,):
        raise InputError(
            f"{name_scorer(importance)} returned scores of shape {tuple(scores.shape)} for the group {group.name}, "
            "which has "
            f"{group.size} {group.kind}: return one score for each"
        )
    if not bool(scores.isfinite().all()):
        raise InputError(f"{name_scorer(importance)} returned NaN or infinite scores for the group {group.name}")
    return scores
