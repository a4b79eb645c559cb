"""Which units go: scores and a budget turned into a choice that keeps every constraint.

Each group becomes a *ladder*: its units in the order in which they go, in steps that keep the group's blocks in
proportion. A choice is how far down each ladder to step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from cleanai.coupling import Coupling, Group
from cleanai.errors import InputError
from cleanai.fields import IntArray

Target = Literal["channels", "params", "macs"]
TARGETS: tuple[str, ...] = ("channels", "params", "macs")
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
    steps = []
    for index in range(bundles):
        parts = [block[index * len(block) // bundles : (index + 1) * len(block) // bundles] for block in ranked]
        steps.append(np.concatenate(parts))
    original = group.size if original is None else original
    earlier = original - group.size
    return Ladder(
        group,
        tuple(steps),
        np.maximum.accumulate([values[step].mean() for step in steps]),
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
    """What is asked: a share of channels, parameters or MACs, by group or over all groups together.

    ``ratios`` are shares for single groups ({group index: share}) that come before the general one. ``cost`` gives the
    value of the target for a choice ({group index: units}), and ``full_cost`` its value before any pruning.
    """

    ratio: float
    target: Target
    over_all: bool
    ratios: Mapping[int, float]
    cost: Callable[[Mapping[int, IntArray]], float] | None = None
    full_cost: float = 0.0


def choose_units(ladders: Sequence[Ladder], budget: Budget) -> dict[int, IntArray]:
    """The units to remove: {group index: ascending unit indices}.

    With the target "channels" every group gives its share, or, ``over_all``, the lowest scores of all groups go first
    until the share is reached. With "params" or "macs" the ladders are climbed in the same order (by score, or evenly)
    until what is left costs what was asked, as near as the steps allow. Ties are broken by the order of groups and
    positions; a larger ratio never removes less.
    """
    steps = {
        ladder.group.index: ladder.nearest(budget.ratios[ladder.group.index] * ladder.original - ladder.earlier)
        for ladder in ladders
        if ladder.group.index in budget.ratios
    }
    free = [ladder for ladder in ladders if ladder.group.index not in budget.ratios]
    if budget.target == "channels" and not budget.over_all:
        for ladder in free:
            steps[ladder.group.index] = ladder.nearest(budget.ratio * ladder.original - ladder.earlier)
    elif free:
        steps.update(_search(free, budget, ladders, steps))
    by_index = {ladder.group.index: ladder for ladder in ladders}
    return {index: by_index[index].first(count) for index, count in steps.items() if count}


def _search(
    free: Sequence[Ladder], budget: Budget, ladders: Sequence[Ladder], fixed: Mapping[int, int]
) -> dict[int, int]:
    """How far down each ladder, when all ladders are climbed in one common order."""
    order = _common_order(free, budget.over_all)
    by_index = {ladder.group.index: ladder for ladder in ladders}

    def steps_at(count: int) -> dict[int, int]:
        taken = np.bincount(order[:count], minlength=len(free))
        return {ladder.group.index: ladder.snap(int(n)) for ladder, n in zip(free, taken, strict=True)}

    def removed_at(count: int) -> float:
        chosen = {**fixed, **steps_at(count)}
        if budget.target == "channels":
            return float(sum((chosen[la.group.index] * la.units_per_step + la.earlier) * la.group.width for la in free))
        assert budget.cost is not None
        units = {index: by_index[index].first(n) for index, n in chosen.items() if n}
        return budget.full_cost - budget.cost(units)

    whole = budget.full_cost if budget.target != "channels" else sum(la.original * la.group.width for la in free)
    wanted = budget.ratio * whole
    low, high = 0, len(order)
    while low < high:  # the first count that removes enough
        middle = (low + high) // 2
        if removed_at(middle) >= wanted - 1e-9 * whole:
            high = middle
        else:
            low = middle + 1
    if low and abs(removed_at(low - 1) - wanted) <= abs(removed_at(low) - wanted):
        # The step that crosses the line overshoots by more than stopping short of it.
        low -= 1
    return steps_at(low)


def _common_order(ladders: Sequence[Ladder], over_all: bool) -> np.ndarray:
    """The ladder to step down next, over and over: by normalised score, or so that all ladders keep level."""
    keys, owners, places = [], [], []
    for position, ladder in enumerate(ladders):
        count = len(ladder.steps)
        if over_all:
            # Shares of the group's mean score, so that large weights in one layer do not empty another.
            mean = float(np.abs(ladder.scores).mean())
            keys.append(ladder.scores / mean if mean > 0 else ladder.scores)
        else:
            keys.append((np.arange(count) + 0.5) / count)
        owners.append(np.full(count, position))
        places.append(np.arange(count))
    owner = np.concatenate(owners)
    return owner[np.lexsort((np.concatenate(places), owner, np.concatenate(keys)))]


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
            close = difflib.get_close_matches(spec, list(paths), 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
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


def check_ratio(value: Any, name: str) -> float:
    """A ratio as a float, or a clear error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{name} is {value!r}; it must lie in [0, 1): 0.3 removes 30 %")
    return float(value)


def resolve_ratios(model: nn.Module, coupling: Coupling, layer_ratios: Mapping[LayerSpec, float]) -> dict[int, float]:
    """Layer ratios as {group index: ratio}; a layer named closer to a group counts before a container or a type."""
    chosen: dict[int, tuple[int, float, str]] = {}
    for spec, value in layer_ratios.items():
        label = spec if isinstance(spec, str) else spec.__name__ if isinstance(spec, type) else type(spec).__name__
        ratio = check_ratio(value, f"layer_pruning_ratios[{label!r}]")
        paths = find_layers(model, spec, "layer_pruning_ratios")
        hit = False
        for path in paths:
            rank = 0 if isinstance(spec, type) else 1 + path.count(".")
            for group in coupling.groups:
                if not made_in(group, path):
                    continue
                hit = True
                before = chosen.get(group.index)
                if before is not None and before[0] == rank and before[1] != ratio:
                    raise InputError(
                        f"layer_pruning_ratios: {before[2]} and {path} are pruned together (group {group.name}) but "
                        f"have the ratios {before[1]:g} and {ratio:g}; give them the same one, or name only one"
                    )
                if before is None or rank >= before[0]:
                    chosen[group.index] = (rank, ratio, path)
        if not hit and ratio > 0:
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
