"""Which units go: scores and a budget turned into a choice that keeps every constraint.

Each group becomes a *ladder*: its units in the order in which they go, in steps that keep the group's blocks in
proportion. A choice is how far down each ladder to step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.checks import check_ratio, suggest_names
from cleanai.coupling import Coupling, Group
from cleanai.errors import InputError
from cleanai.fields import IntArray
from cleanai.importance import normalize_scores

Target = Literal["channels", "params", "macs", "latency"]
TARGETS: tuple[str, ...] = ("channels", "params", "macs", "latency")
LayerSpec = str | nn.Module | type[nn.Module]


@dataclass(frozen=True)
class Limits:
    """What no choice may break: channels left in a group, multiples to keep, and the share that may go."""

    min_channels: int = 1
    round_to: int = 1
    max_pruning_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("min_channels", "at least 1 channel must stay"), ("round_to", "it must be at least 1")):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{name} is {value!r}; it must be a whole number")
            if value < 1:
                raise InputError(f"{name} is {value}; {least}")
        ratio = self.max_pruning_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise InputError(f"max_pruning_ratio is {ratio!r}; it must lie in (0, 1]")


def check_reach(groups: Sequence[Group], limits: Limits) -> None:
    """Raises `InputError` for limits that no group is large enough for: nothing could ever go."""
    largest = max(groups, key=lambda group: group.size * group.width, default=None)
    if largest is None:
        return
    channels = largest.size * largest.width
    for name, value in (("min_channels", limits.min_channels), ("round_to", limits.round_to)):
        if value > channels:
            raise InputError(
                f"{name} is {value}, but the largest group ({largest.name}) has {channels} channels: nothing could go"
            )


@dataclass(frozen=True)
class Ladder:
    """A group's units in the order in which they go.

    ``steps[k]`` are the units of step k and ``scores[k]`` their mean score, or an earlier step's if that is higher.
    ``allowed`` are the numbers of steps that the limits allow, ascending, 0 first. ``original`` and ``earlier`` count
    units before any pruning and those already gone in earlier rounds.
    """

    group: Group
    steps: tuple[IntArray, ...]
    scores: np.ndarray
    allowed: np.ndarray
    original: int
    earlier: int

    @property
    def units_per_step(self) -> int:
        """How many units go with each step."""
        return self.group.size // len(self.steps)

    def nearest(self, units: float) -> int:
        """The allowed number of steps that removes nearest to so many units; fewer at a tie."""
        return int(self.allowed[np.argmin(np.abs(self.allowed * self.units_per_step - units))])

    def snap(self, steps: int) -> int:
        """The largest allowed number of steps that is not larger."""
        return int(self.allowed[np.searchsorted(self.allowed, steps, side="right") - 1])

    def first(self, steps: int) -> IntArray:
        """The units of the first so many steps."""
        return np.sort(np.concatenate(self.steps[:steps])) if steps else np.zeros(0, np.int64)


def build_ladder(group: Group, scores: Tensor, limits: Limits, original: int | None = None) -> Ladder:
    """A group's ladder: the lowest scores go first, ties by position, every block at the same pace.

    ``original`` is the group's size before earlier rounds of pruning; the limits count from there.
    """
    values = scores.numpy()
    bundles = group.bundles
    spared = _spared_units(group, values, limits)
    ranked = [block[np.lexsort((values[block], spared[block]))] for block in group.blocks]
    steps = np.concatenate([block.reshape(bundles, -1) for block in ranked], axis=1)
    original = group.size if original is None else original
    earlier = original - group.size
    return Ladder(
        group,
        tuple(steps),
        np.maximum.accumulate(values[steps].mean(axis=1)),
        _allowed_steps(group, bundles, limits, original, earlier, spared),
        original,
        earlier,
    )


def _spared_units(group: Group, values: np.ndarray, limits: Limits) -> np.ndarray:
    """Where a group joins channels of several layers: the best ones of each, which must not all go."""
    spared = np.zeros(group.size, bool)
    sources = int(group.sources.max(initial=0)) + 1
    if sources > 1:
        least = -(-limits.min_channels // group.width)
        for source in range(sources):
            own = np.flatnonzero(group.sources == source)
            spared[own[np.argsort(values[own], kind="stable")[-least:]]] = True
    return spared


def _allowed_steps(
    group: Group, bundles: int, limits: Limits, original: int, earlier: int, spared: np.ndarray
) -> np.ndarray:
    count = np.arange(bundles)
    removed = count * (group.size // bundles)
    channels = (group.size - removed) * group.width
    allowed = channels >= limits.min_channels
    allowed &= removed + earlier <= limits.max_pruning_ratio * original + 1e-9
    allowed &= channels % limits.round_to == 0
    for block in group.blocks:
        allowed &= count * (len(block) // bundles) <= np.count_nonzero(~spared[block])
    allowed[0] = True
    return count[allowed]


# ---------------------------------------------------------------------------------------------------------- budgets


@dataclass(frozen=True)
class Budget:
    """What is asked: a share of channels, parameters, MACs or latency, and in which order the units go.

    Attributes:
        ratio: the share of the target to remove.
        over_all: rank the units of all groups together, or of the groups that ``sets`` puts together.
        ratios: shares for single groups ({group index: share}) that come before the general one.
        cost: the value of the target for a choice ({group index: units}); ``full_cost`` is it before any pruning.
        sets: {group index: set}; the units of a set are ranked together, and every set gives its share. None with
            ``over_all``: one set of all groups; else every group is a set of its own.
        normalizer: how scores of different groups are brought to one scale (`cleanai.importance.normalize_scores`).
        savings: what each step of a ladder saves of the target; where it is given, ranks are by score per saving.
    """

    ratio: float
    target: Target
    over_all: bool
    ratios: Mapping[int, float]
    cost: Callable[[Mapping[int, IntArray]], float] | None = None
    full_cost: float = 0.0
    sets: Mapping[int, Hashable] | None = None
    normalizer: str = "mean"
    savings: Callable[[Ladder], np.ndarray] | None = None

    def set_of(self, index: int) -> Hashable:
        """The set of groups that a group is ranked in."""
        if not self.over_all:
            return index
        return None if self.sets is None else self.sets[index]


_NEAR_ENOUGH = 0.005
_LATENCY_STOPS = 1024


def choose_units(ladders: Sequence[Ladder], budget: Budget) -> dict[int, IntArray]:
    """The units to remove: {group index: ascending unit indices}.

    With the target "channels" every set of groups (see `Budget`) gives its share, lowest scores first. With any other
    target all ladders are climbed in one common order, in which all sets keep level, until what is left costs what was
    asked; where a single step would miss that by more than half a percentage point, finer steps of other ladders make
    up for it. Ties are broken by the order of groups and positions. A larger ratio never leaves more of the target, and
    where no such filling is needed it removes the same units and more.
    """
    steps = {
        ladder.group.index: ladder.nearest(budget.ratios[ladder.group.index] * ladder.original - ladder.earlier)
        for ladder in ladders
        if ladder.group.index in budget.ratios
    }
    free = [ladder for ladder in ladders if ladder.group.index not in budget.ratios]
    if budget.target == "channels":
        sets: dict[Hashable, list[Ladder]] = {}
        for ladder in free:
            sets.setdefault(budget.set_of(ladder.group.index), []).append(ladder)
        for together in sets.values():
            steps.update(_Climb(together, budget, ladders, {}).meet())
    elif free:
        steps.update(_Climb(free, budget, ladders, dict(steps)).meet())
    by_index = {ladder.group.index: ladder for ladder in ladders}
    return {index: by_index[index].first(count) for index, count in steps.items() if count}


@dataclass
class _Climb:
    """Ladders climbed in one common order until enough is removed.

    A state is how many steps of each ladder are taken, before the limits round that down (`Ladder.snap`).
    """

    free: Sequence[Ladder]
    budget: Budget
    ladders: Sequence[Ladder]
    fixed: Mapping[int, int]
    _known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_index = {ladder.group.index: ladder for ladder in self.ladders}
        counted = self.budget.target == "channels"
        self._whole = sum(la.original * la.group.width for la in self.free) if counted else self.budget.full_cost
        self._wanted = self.budget.ratio * self._whole

    def meet(self) -> dict[int, int]:
        """How far down each ladder, as near to what is wanted as the steps allow; fewer at a tie.

        Where the step that crosses the line belongs to a coarse ladder, the climb goes on without it; what is then
        still missing is looked for by taking steps of other ladders back from beyond the line. The states that are
        compared do not depend on where between them the line is, so a larger ratio never removes less.
        """
        order = everything = _common_order(self.free, self.budget)
        below = np.zeros(len(self.free), np.int64)
        above: tuple[np.ndarray, int] | None = None  # the nearest state beyond the line, and the ladder that crossed it
        while self._missing(below) > 0 and len(order):
            count = self._first_beyond(below, order)
            over = self._after(below, order, count)
            if self._missing(over) > 0:  # all there is does not suffice
                below = over
                break
            crossing = int(order[count - 1])
            below = self._after(below, order, count - 1)
            if above is None or self._missing(over) > self._missing(above[0]):
                above = over, crossing
            if self.is_near(below) or self.is_near(above[0]):
                break
            order = order[count:][order[count:] != crossing]
        if above is None:
            return self._snapped(below)
        candidates = [below, above[0]]
        if not any(map(self.is_near, candidates)):
            candidates += self._step_back(above[0], above[1], everything)
        return self._snapped(min(candidates, key=lambda state: (abs(self._missing(state)), -self._missing(state))))

    def is_near(self, state: np.ndarray) -> bool:
        """Whether a state needs no filling: no nearer one is looked for."""
        exact = self.budget.target in ("params", "macs")
        return not exact or abs(self._missing(state)) <= _NEAR_ENOUGH * self._whole

    def _step_back(self, above: np.ndarray, crossing: int, order: np.ndarray) -> list[np.ndarray]:
        """The states around the line when other ladders than the coarse one step back, in reverse order."""
        place = np.empty(len(order), np.int64)  # which step of its ladder each entry is
        for position in range(len(self.free)):
            mine = order == position
            place[mine] = np.arange(np.count_nonzero(mine))
        undone = order[(place < above[order]) & (order != crossing)][::-1]
        low, high = 0, len(undone)
        while low < high:  # the first count that falls short
            middle = (low + high) // 2
            if self._missing(self._after(above, undone, middle, -1)) > 0:
                high = middle
            else:
                low = middle + 1
        return [self._after(above, undone, count, -1) for count in (low - 1, low) if count > 0]

    def _first_beyond(self, state: np.ndarray, order: np.ndarray) -> int:
        """The smallest count of further steps after which nothing is missing, or all of them."""
        stops = np.arange(1, len(order) + 1)
        if self.budget.target == "latency" and len(order) > _LATENCY_STOPS:  # every try is measured
            stops = np.unique(np.linspace(1, len(order), _LATENCY_STOPS).astype(np.int64))
        low, high = 0, len(stops) - 1
        while low < high:
            middle = (low + high) // 2
            if self._missing(self._after(state, order, int(stops[middle]))) <= 0:
                high = middle
            else:
                low = middle + 1
        return int(stops[low])

    def _after(self, state: np.ndarray, order: np.ndarray, count: int, sign: int = 1) -> np.ndarray:
        return state + sign * np.bincount(order[:count], minlength=len(self.free))

    def _snapped(self, state: np.ndarray) -> dict[int, int]:
        return {la.group.index: la.snap(int(count)) for la, count in zip(self.free, state, strict=True)}

    def _missing(self, state: np.ndarray) -> float:
        """What is wanted less what a state removes; 0 to rounding."""
        steps = self._snapped(state)
        key = tuple(steps.values())
        if key not in self._known:
            missing = self._wanted - self._removed({**self.fixed, **steps})
            self._known[key] = 0.0 if abs(missing) <= 1e-9 * self._whole else missing
        return self._known[key]

    def _removed(self, steps: Mapping[int, int]) -> float:
        if self.budget.target == "channels":
            of = self._by_index
            return float(sum((n * of[i].units_per_step + of[i].earlier) * of[i].group.width for i, n in steps.items()))
        assert self.budget.cost is not None
        units = {index: self._by_index[index].first(n) for index, n in steps.items() if n}
        return self.budget.full_cost - self.budget.cost(units)


def _common_order(ladders: Sequence[Ladder], budget: Budget) -> np.ndarray:
    """The ladder to step down next, over and over: by rank within a set of groups, and so that all sets keep level."""
    names = [budget.set_of(ladder.group.index) for ladder in ladders]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    counts = [len(ladder.steps) for ladder in ladders]
    owner = np.repeat(np.arange(len(ladders)), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    together = np.repeat([numbers[name] for name in names], counts)
    rank = np.concatenate([rank_steps(ladder, budget) for ladder in ladders])
    size = np.repeat([ladder.units_per_step * ladder.group.width for ladder in ladders], counts)
    order = np.lexsort((place, owner, rank, together))
    level = np.empty(len(order))
    for number in numbers.values():
        own = order[together[order] == number]
        members = [ladder for ladder, name in zip(ladders, names, strict=True) if numbers[name] == number]
        gone = sum(ladder.earlier * ladder.group.width for ladder in members)
        whole = sum(ladder.original * ladder.group.width for ladder in members)
        level[own] = (gone + np.cumsum(size[own]) - size[own] / 2) / whole
    # Places in the ranking settle what is level; within one set, levels are distinct.
    return owner[order[np.lexsort((place[order], owner[order], level[order].round(12)))]]


def rank_steps(ladder: Ladder, budget: Budget) -> np.ndarray:
    """By what a ladder's steps are ranked among those of other ladders: ascending, one number per step.

    Normalised scores; or, with ``budget.savings``, the slope of the lower convex hull of the summed scores over the
    summed savings: a cheap step behind an expensive one is taken together with it, at their common price.
    """
    if not budget.over_all:  # alone in its set: only the order counts
        return np.arange(len(ladder.steps), dtype=np.float64)
    scores = normalize_scores(torch.from_numpy(ladder.scores.copy()), budget.normalizer).numpy()
    if budget.savings is None:
        return np.maximum.accumulate(scores)
    if scores.min() < 0:
        raise InputError(
            f"cost_aware divides scores by what they save, but some of the group {ladder.group.name} are negative "
            f"(normalizer {budget.normalizer!r}): use one that keeps scores above 0, such as 'mean' or 'none'"
        )
    losses = scores * ladder.units_per_step
    return _hull_slopes(np.cumsum(budget.savings(ladder)), np.cumsum(losses), ladder.allowed)


def _hull_slopes(savings: np.ndarray, losses: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The slope, per step, of the lower convex hull of (saving, loss) through the allowed numbers of steps."""
    x, y = (np.concatenate([[0.0], values])[allowed] for values in (savings, losses))
    hull: list[int] = []
    for point in range(len(allowed)):
        while len(hull) > 1 and _slope(x, y, hull[-2], hull[-1]) >= _slope(x, y, hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes = np.full(len(savings), np.inf)  # beyond what is allowed
    for first, last in pairwise(hull):
        slopes[allowed[first] : allowed[last]] = _slope(x, y, first, last)
    return slopes


def _slope(x: np.ndarray, y: np.ndarray, first: int, last: int) -> float:
    rise, run = float(y[last] - y[first]), float(x[last] - x[first])
    return rise / run if run > 0 else np.inf


def describe_structure(model: nn.Module, group: Group) -> Hashable:
    """What a group's structure is whatever its sizes: its kind, and layer type, tensor, dimension and role of members.

    Groups with the same description are isomorphic (Fang et al., "Isomorphic Pruning for Vision Models", 2024): their
    scores can be ranked together.
    """
    members = sorted(
        (type(model.get_submodule(member.layer)).__name__, member.parameter.rpartition(".")[2], member.dim, member.role)
        for member in group.members
    )
    return group.kind, tuple(members)


# ------------------------------------------------------------------------------------------------------ naming layers


def find_layers(model: nn.Module, spec: LayerSpec, argument: str) -> list[str]:
    """The paths of the modules that a module, a path, or a type stands for."""
    paths = dict(model.named_modules())
    if isinstance(spec, nn.Module):
        found = [path for path, module in model.named_modules(remove_duplicate=False) if module is spec]
        if not found:
            raise InputError(f"{argument}: the {type(spec).__name__} given there is not part of the model")
        return found
    if isinstance(spec, type):
        found = [path for path, module in paths.items() if isinstance(module, spec)]
        if not found:
            raise InputError(f"{argument}: the model has no layer of the type {spec.__name__}")
        return found
    if isinstance(spec, str):
        if spec not in paths or spec == "":
            hint = suggest_names(spec, paths, alike=0.4)
            raise InputError(
                f"{argument}: the model has no layer named {spec!r}{hint} (names are those of model.named_modules())"
            )
        return [spec]
    raise InputError(f"{argument}: {spec!r} is no module, name or module type")


def is_within(layer: str, path: str) -> bool:
    """Whether a layer is a module or one of its parts."""
    return not path or layer == path or layer.startswith(path + ".")


def made_in(group: Group, path: str) -> bool:
    """Whether a module makes the group's channels."""
    return any(m.role == "output" and is_within(m.layer, path) for m in group.members)


_EXACT = 1_000_000


def _closeness(group: Group, path: str) -> int:
    """How few containers lie between a module and the nearest of its layers that make the group's channels."""
    nearest = min(m.layer.count(".") for m in group.members if m.role == "output" and is_within(m.layer, path))
    return _EXACT - 1 - (nearest - path.count(".") if path else nearest + 1)


def _names_group(model: nn.Module, coupling: Coupling, spec: LayerSpec) -> bool:
    """Whether a name is a group's that is no module's: ``attend.in_proj_weight``, or one of several of a layer."""
    names = {group.name for group in coupling.groups}
    return isinstance(spec, str) and spec in names and spec not in dict(model.named_modules())


def find_made(model: nn.Module, coupling: Coupling, spec: LayerSpec, argument: str) -> list[str]:
    """The paths of what a spec names: modules that make channels, or the tensor that a group is named by."""
    if isinstance(spec, str) and _names_group(model, coupling, spec):
        return [spec.partition("#")[0]]
    return find_layers(model, spec, argument)


def resolve_ratios(
    model: nn.Module, coupling: Coupling, layer_ratios: Mapping[LayerSpec, float], strict: bool = True
) -> dict[int, float]:
    """Layer ratios as {group index: ratio}; a layer named closer to a group counts before a container or a type.

    The name of a group counts before all others. Unless ``strict``, what makes no channels of a group is passed over.
    """
    chosen: dict[int, tuple[int, float, str]] = {}
    for spec, value in layer_ratios.items():
        label = spec if isinstance(spec, str) else spec.__name__ if isinstance(spec, type) else type(spec).__name__
        ratio = check_ratio(value, f"layer_pruning_ratios[{label!r}]")
        exact = _names_group(model, coupling, spec)
        if not exact and not strict and isinstance(spec, str) and spec not in dict(model.named_modules()):
            continue  # a group that is no more
        paths = find_made(model, coupling, spec, "layer_pruning_ratios")
        hit = False
        for path in paths:
            for group in coupling.groups:
                if group.name != spec if exact else not made_in(group, path):
                    continue
                hit = True
                rank = _EXACT if exact else 0 if isinstance(spec, type) else _closeness(group, path)
                before = chosen.get(group.index)
                if before is not None and before[0] == rank and before[1] != ratio:
                    raise InputError(
                        f"layer_pruning_ratios: {before[2]} and {path} are pruned together (group {group.name}) but "
                        f"have the ratios {before[1]:g} and {ratio:g}; give them the same one, or name only one"
                    )
                if before is None or rank >= before[0]:
                    chosen[group.index] = (rank, ratio, path)
        if not hit and ratio > 0 and strict:
            raise InputError(_cannot_prune(coupling, paths, label))
    return {index: ratio for index, (_, ratio, _) in chosen.items()}


def _cannot_prune(coupling: Coupling, paths: Sequence[str], label: str) -> str:
    inputs = coupling.context.contracted
    reasons = [
        frozen.reason
        for frozen in coupling.frozen
        for name, dim in frozen.parameters
        if (name, dim) not in inputs and any(is_within(name.rpartition(".")[0], path) for path in paths)
    ]
    why = f": {reasons[0]}" if reasons else ": it has no output channels that could be removed"
    return f"layer_pruning_ratios: the layer {label!r} cannot be pruned{why}"
