"""Which channels live or die together: label fields resolved into groups of units that can be removed.

A *unit* is the smallest thing that can be removed: a channel with everything that must go with it, a whole attention
head, a convolution group. A *group* is the set of units that touch the same dimensions of the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cleanai.errors import TraceError
from cleanai.fields import Cut, IntArray, Labelled, Relation
from cleanai.rules import Context, Site, apply_rule
from cleanai.trace import Trace

Role = Literal["output", "input"]
Mode = Literal["outer", "inner"]


@dataclass(frozen=True)
class Member:
    """A dimension of a model tensor that a group owns a part of.

    ``positions`` are the indices along ``dim`` (ascending) and ``units`` the unit of the group that each belongs to.
    ``role`` is "input" where the dimension is summed over (the columns of a weight), else "output".
    """

    parameter: str
    dim: int
    role: Role
    size: int
    positions: IntArray = field(repr=False)
    units: IntArray = field(repr=False)

    @property
    def layer(self) -> str:
        """The path of the module that owns the tensor."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Channels:
    """A layer's input or output channels as hooks see them: the unit of each position, -1 where it is none of ours."""

    module: str
    side: str
    units: IntArray = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Units that are chosen together.

    ``blocks`` is the constraint: lists of units from each of which the same share must go (heads keep equal sizes,
    pieces of a split keep their proportion); within a block the choice is free. ``width`` is the number of channels a
    unit has in the layer that gives the group its name.
    """

    index: int
    name: str
    kind: str
    size: int
    width: int
    members: tuple[Member, ...] = field(repr=False)
    blocks: tuple[IntArray, ...] = field(repr=False)
    channels: tuple[Channels, ...] = field(repr=False)
    classes: IntArray = field(repr=False)

    @property
    def bundles(self) -> int:
        """In how many equal steps the group can be emptied: the greatest common divisor of the block sizes."""
        return int(np.gcd.reduce([len(block) for block in self.blocks]))

    @property
    def layers(self) -> tuple[str, ...]:
        """The module paths the group touches, in the order of the trace."""
        return tuple(dict.fromkeys(member.layer for member in self.members))


@dataclass(frozen=True)
class Frozen:
    """Channels that are never removed, and why."""

    layers: tuple[str, ...]
    parameters: tuple[tuple[str, int], ...]
    channels: int
    reason: str


@dataclass
class LabelledTrace:
    """A trace with the labelled outputs of each of its operations, and the group counts its operations were given."""

    trace: Trace
    values: list[list[Labelled]]
    counts: dict[int, tuple[int, IntArray | None]]


@dataclass
class Coupling:
    """The groups of a traced model, what is frozen, and what predicts the shapes of a cut model.

    ``class_of`` maps every label to its class. ``modes`` says for a structure of split dimensions whether whole rows
    ("outer": heads, groups) or parts of every row ("inner") are removed. ``manual`` are freezes decided later.
    """

    traces: list[LabelledTrace]
    context: Context
    modes: dict[int, Mode] = field(default_factory=dict)
    manual: list[tuple[IntArray, str]] = field(default_factory=list)
    groups: tuple[Group, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    class_of: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    structure_of: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Coupling({len(self.groups)} groups, {sum(g.size for g in self.groups)} units, {len(self.frozen)} frozen)"

    def group(self, name: str) -> Group:
        """The group of a name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no group is named {name!r}; there are {', '.join(g.name for g in self.groups)}")

    def freeze_group(self, group: Group, reason: str) -> None:
        """Never prune a group; takes effect with the next `solve_coupling`."""
        labels = np.flatnonzero(np.isin(self.class_of, group.classes))
        self.manual.append((labels, reason))


# -------------------------------------------------------------------------------------------------------- collecting


def couple_channels(trace: Trace, *more: Trace) -> Coupling:
    """The groups of channels that live or die together in a traced model.

    ``more`` are traces of the same model that reach other parts of it (training mode); their unions are added.
    """
    context = Context()
    traces = [_label_trace(context, each) for each in (trace, *more)]
    return solve_coupling(Coupling(traces, context))


def _label_trace(context: Context, trace: Trace) -> LabelledTrace:
    context.counts = {}
    values: list[list[Labelled]] = []
    for op in trace.operations:
        if op.state is not None:
            values.append([context.label_state(op.state)])
        elif op.kind == "Input":
            values.append([Labelled(op.shapes[0])])
        else:
            inputs = [None if v is None else _value_of(values, v.operation, v.output) for v in op.inputs]
            try:
                outputs = apply_rule(context, op, inputs)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
                raise TraceError(f"the rule for {op.where} failed on shapes {op.shapes}: {error}") from error
            if all(value is not None and value.is_weight for value in inputs) and op.kind != "Embedding":
                outputs = [replace(value, is_weight=True) for value in outputs]
            values.append(outputs)
    for output in trace.outputs:
        context.labels.freeze_value(_value_of(values, output.operation, output.output), "the output of the model")
    return LabelledTrace(trace, values, context.counts)


def _value_of(values: list[list[Labelled]], operation: int, output: int) -> Labelled:
    outputs = values[operation]
    return outputs[output] if output < len(outputs) else Labelled(())


# ----------------------------------------------------------------------------------------------------------- solving


def _components(count: int, pairs: Sequence[tuple[IntArray, IntArray]]) -> IntArray:
    if not pairs:
        return np.arange(count)
    rows = np.concatenate([first for first, _ in pairs])
    columns = np.concatenate([second for _, second in pairs])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


class _Axes:
    """The axes of all relations, and which of them are one because they share a label class."""

    def __init__(self, relations: Sequence[Relation], component: IntArray, frozen_classes: IntArray) -> None:
        levels = [(r, j) for r, relation in enumerate(relations) for j in range(len(relation.levels))]
        self._index = {key: number for number, key in enumerate(levels)}
        classes = [component[relations[r].levels[j].ravel()] for r, j in levels]
        flats = [component[relation.flat.ravel()] for relation in relations]
        self.frozen = [bool(np.isin(c, frozen_classes).all()) for c in classes]
        self.group = self._join(classes)
        owners = [self._index[(r, 0)] for r in range(len(relations))]
        links = [
            (np.array([self._index[(r, 0)]] * (len(relation.levels) - 1)), np.array([self._index[(r, j)] for j in range(1, len(relation.levels))]))
            for r, relation in enumerate(relations)
        ]
        self.structure = self._join([*classes, *flats], links, owners)

    def _join(
        self, classes: Sequence[IntArray], links: Sequence[tuple[IntArray, IntArray]] = (), owners: Sequence[int] = ()
    ) -> IntArray:
        """Components of the axes, joined through shared classes; extra class lists belong to the axes in ``owners``."""
        axes = len(self._index)
        numbers = [*range(axes), *owners]
        members = np.concatenate([np.full(len(c), n) for n, c in zip(numbers, classes, strict=True)])
        names, compact = np.unique(np.concatenate(list(classes)), return_inverse=True)
        pairs = [(members, compact + axes), *links]
        return _components(axes + len(names), pairs)[:axes]

    def number(self, relation: int, level: int) -> int:
        return self._index[(relation, level)]


def _active_levels(relations: Sequence[Relation], axes: _Axes, modes: Mapping[int, Mode]) -> list[int | None]:
    """Which axis of each relation can be removed from; None where none can."""
    chosen: list[int | None] = []
    active: dict[int, set[int]] = {}
    for r, relation in enumerate(relations):
        structure = int(axes.structure[axes.number(r, 0)])
        taken = active.setdefault(structure, set())
        free = [j for j in range(len(relation.levels)) if not axes.frozen[axes.number(r, j)]]
        groups = [int(axes.group[axes.number(r, j)]) for j in free]
        already = [j for j, group in zip(free, groups, strict=True) if group in taken]
        if len(already) == 1:
            chosen.append(already[0])
        elif already or not free:
            chosen.append(None)
        else:
            level = free[0] if modes.get(structure, "outer") == "outer" else free[-1]
            taken.add(int(axes.group[axes.number(r, level)]))
            chosen.append(level)
    return chosen


_OTHER_AXIS = "cut along another axis: whole heads or groups, or the same share of each"


@dataclass
class _Constraint:
    """Positions by row: every row must keep the same share. ``classes[i]`` stands in row ``rows[i]``."""

    classes: IntArray
    rows: IntArray


def _row_constraints(
    relations: Sequence[Relation], active: Sequence[int | None], cuts: Sequence[Cut], class_of: IntArray
) -> list[_Constraint]:
    constraints = []
    for relation, level in zip(relations, active, strict=True):
        if level is None:
            continue
        labels = relation.levels[level]
        own = max(dim for dim in range(labels.ndim) if labels.shape[dim] > 1)
        moved = np.moveaxis(labels, own, -1)
        rows = np.broadcast_to(np.arange(moved.size // moved.shape[-1])[:, None], (moved.size // moved.shape[-1], moved.shape[-1]))
        if rows[-1, 0] > 0:
            constraints.append(_Constraint(class_of[moved.ravel()], rows.ravel()))
    for cut in cuts:
        context = int(np.prod(cut.labels.shape[:-1]))
        offset = np.arange(context).reshape(*cut.labels.shape[:-1], 1) * (int(cut.rows.max()) + 1)
        constraints.append(_Constraint(class_of[cut.labels.ravel()], (cut.rows + offset).ravel()))
    return constraints


def _row_counts(constraint: _Constraint) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """(class, row, how many positions) for every class in the constraint, and the size of each row."""
    rows = int(constraint.rows.max()) + 1
    keys, counts = np.unique(constraint.classes * rows + constraint.rows, return_counts=True)
    return keys // rows, keys % rows, counts, np.bincount(constraint.rows, minlength=rows)


def _unbalanced(constraint: _Constraint) -> IntArray:
    """Classes whose removal would change one row's share against another's."""
    classes, rows, counts, sizes = _row_counts(constraint)
    used = sizes > 0
    names, inverse = np.unique(classes, return_inverse=True)
    share = counts / sizes[rows]
    rows_touched = np.bincount(inverse)
    low = np.full(len(names), np.inf)
    high = np.zeros(len(names))
    np.minimum.at(low, inverse, share)
    np.maximum.at(high, inverse, share)
    even = (rows_touched == used.sum()) & (high - low < 1e-12)
    return names[~even]


def solve_coupling(coupling: Coupling) -> Coupling:
    """Resolves labels into classes, units, groups and constraints; call again after `Coupling.freeze_group` or a mode change."""
    context = coupling.context
    labels = context.labels
    freezes = [*labels.freezes, *coupling.manual]
    base = _components(labels.count, labels.unions)
    frozen_base = np.unique(base[np.concatenate([f for f, _ in freezes])]) if freezes else np.zeros(0, np.int64)
    pairs = list(labels.unions)
    active: list[int | None] = []
    if labels.relations:
        axes = _Axes(labels.relations, base, frozen_base)
        active = _active_levels(labels.relations, axes, coupling.modes)
        coupling.structure_of = {r: int(axes.structure[axes.number(r, 0)]) for r in range(len(labels.relations))}
        for relation, level in zip(labels.relations, active, strict=True):
            if level is None:
                freezes.append((relation.flat.ravel(), "none of the dimensions it is split into can shrink"))
            else:
                full = np.broadcast_to(relation.levels[level], relation.flat.shape)
                pairs.append((relation.flat.ravel(), full.ravel()))
                # What is removed along one axis is whole along the others.
                freezes.extend((other.ravel(), _OTHER_AXIS) for j, other in enumerate(relation.levels) if j != level)
    class_of = _components(labels.count, pairs)
    reasons = _freeze_reasons(class_of, freezes)
    constraints = _row_constraints(labels.relations, active, labels.list_cuts(), class_of)
    _freeze_unbalanced(constraints, reasons)
    coupling.class_of = class_of
    coupling.groups = _build_groups(context, class_of, reasons, constraints, labels.relations, active)
    coupling.frozen = _list_frozen(context, class_of, reasons)
    return coupling


def _freeze_reasons(class_of: IntArray, freezes: Iterable[tuple[IntArray, str]]) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for labels, reason in freezes:
        for name in np.unique(class_of[labels]).tolist():
            reasons.setdefault(name, reason)
    return reasons


def _freeze_unbalanced(constraints: Sequence[_Constraint], reasons: dict[int, str]) -> None:
    """Where frozen channels leave rows uneven, the rest of those rows must stay as well."""
    changed = True
    while changed:
        changed = False
        for constraint in constraints:
            frozen = np.isin(constraint.classes, np.fromiter(reasons, np.int64, len(reasons)))
            if not frozen.any() or frozen.all():
                continue
            sizes = np.bincount(constraint.rows)
            share = np.bincount(constraint.rows, weights=frozen, minlength=len(sizes))[sizes > 0] / sizes[sizes > 0]
            if share.max() - share.min() < 1e-12:
                continue
            for name in _unbalanced(constraint).tolist():
                if name not in reasons:
                    reasons[name] = "the other parts it must stay equal to cannot shrink"
                    changed = True


# ---------------------------------------------------------------------------------------------------------- grouping


def _hash(numbers: IntArray) -> NDArrayU:
    """Well-mixed 64-bit hashes (splitmix64), to compare sets by the sum of their members' hashes."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


NDArrayU = np.ndarray


def _build_groups(
    context: Context,
    class_of: IntArray,
    reasons: Mapping[int, str],
    constraints: Sequence[_Constraint],
    relations: Sequence[Relation],
    active: Sequence[int | None],
) -> tuple[Group, ...]:
    dims = [(name, axis, value) for name, value in context.states.items() for axis in value.fields]
    if not dims:
        return ()
    classes = [class_of[value.fields[axis].ravel()] for _, axis, value in dims]
    sizes = np.array([len(c) for c in classes])
    owner = np.repeat(np.arange(len(dims)), sizes)
    flat = np.concatenate(classes)
    count = int(class_of.max()) + 1
    free = np.ones(count, bool)
    free[np.fromiter(reasons, np.int64, len(reasons))] = False
    # Two classes belong to one group when they touch the same dimensions: compare the hashes of those sets.
    keys = np.unique(flat * len(dims) + owner)
    signature = np.zeros(count, np.uint64)
    np.add.at(signature, keys // len(dims), _hash(keys % len(dims) + 1))
    present = np.unique(flat)
    present = present[free[present]]
    if not len(present):
        return ()
    tied, atom = _tie(constraints, present, signature, count)
    _, first = np.unique(tied[present], return_index=True)
    order_of = {int(tied[present[i]]): None for i in sorted(first)}
    # Groups in the order in which their first dimension was traced.
    seen_at = np.full(count, len(flat))
    np.minimum.at(seen_at, flat, np.arange(len(flat)))
    starts: dict[int, int] = dict.fromkeys(order_of, len(flat))
    for name, start in zip(tied[present].tolist(), seen_at[present].tolist(), strict=True):
        starts[name] = min(starts[name], start)
    by_class = np.argsort(flat, kind="stable")
    groups: list[Group] = []
    sorted_tied = np.argsort(tied[present], kind="stable")
    bounds = np.flatnonzero(np.diff(tied[present][sorted_tied])) + 1
    members_of = {int(tied[c[0]]): c for c in np.split(present[sorted_tied], bounds)}
    head_classes = _classes_of(class_of, context.heads)
    split_classes = _classes_of(class_of, [r.levels[j] for r, j in zip(relations, active, strict=True) if j is not None and j + 1 < len(r.levels)])
    inner_classes = _classes_of(class_of, [r.levels[j] for r, j in zip(relations, active, strict=True) if j is not None and j + 1 == len(r.levels)])
    sites = _SiteIndex(context.sites, class_of, count)
    sorted_flat = flat[by_class]
    for name in sorted(starts, key=lambda key: starts[key]):
        own = members_of[name]
        own = own[np.argsort(seen_at[own], kind="stable")]
        unit_of = np.full(count, -1, np.int64)
        unit_of[own] = np.arange(len(own))
        lows = np.searchsorted(sorted_flat, own, "left")
        highs = np.searchsorted(sorted_flat, own, "right")
        touched = np.unique(np.concatenate([owner[by_class[a:b]] for a, b in zip(lows, highs, strict=True)]))
        members = _build_members(context, dims, classes, touched, unit_of)
        kind = _kind_of(own, head_classes, split_classes, inner_classes)
        blocks = _blocks_of(own, atom, kind)
        named = _naming_member(members)
        groups.append(
            Group(
                index=len(groups),
                name=_group_name(named, groups),
                kind=kind,
                size=len(own),
                width=max(1, len(named.positions) // len(own)),
                members=members,
                blocks=blocks,
                channels=sites.channels_of(own, unit_of),
                classes=own,
            )
        )
    return tuple(groups)


def _tie(
    constraints: Sequence[_Constraint], present: IntArray, signature: NDArrayU, count: int
) -> tuple[IntArray, NDArrayU]:
    """Which group each class is in, and which block: classes under a common constraint are chosen together."""
    names, compact = np.unique(signature[present], return_inverse=True)
    member = np.zeros(count, np.int64)
    member[present] = compact
    is_free = np.zeros(count, bool)
    is_free[present] = True
    atom = signature.copy()
    pairs = []
    for number, constraint in enumerate(constraints):
        uneven = _unbalanced(constraint)
        uneven = uneven[is_free[uneven]]
        if not len(uneven):
            continue
        classes, rows, counts, _ = _row_counts(constraint)
        inside = np.isin(classes, uneven)
        code = _hash(_hash(rows[inside] + 1).astype(np.int64) * 31 + counts[inside] + 1000003 * (number + 1))
        np.add.at(atom, classes[inside], code)
        linked = np.unique(member[uneven])
        pairs.append((linked, np.full(len(linked), linked[0])))
    joined = _components(len(names), pairs)
    tied = np.full(count, -1, np.int64)
    tied[present] = joined[compact]
    return tied, atom


def _classes_of(class_of: IntArray, arrays: Iterable[IntArray]) -> IntArray:
    flat = [array.ravel() for array in arrays]
    return np.unique(class_of[np.concatenate(flat)]) if flat else np.zeros(0, np.int64)


def _kind_of(own: IntArray, heads: IntArray, split: IntArray, inner: IntArray) -> str:
    if np.isin(own[0], heads):
        return "heads"
    if np.isin(own[0], split):
        return "groups"
    return "channels"


def _blocks_of(own: IntArray, atom: NDArrayU, kind: str) -> tuple[IntArray, ...]:
    _, compact = np.unique(atom[own], return_inverse=True)
    first = np.full(compact.max() + 1, len(own))
    np.minimum.at(first, compact, np.arange(len(own)))
    return tuple(np.flatnonzero(compact == block) for block in np.argsort(first))


def _build_members(
    context: Context,
    dims: Sequence[tuple[str, int, Labelled]],
    classes: Sequence[IntArray],
    touched: IntArray,
    unit_of: IntArray,
) -> tuple[Member, ...]:
    members = []
    for index in touched.tolist():
        name, axis, value = dims[index]
        units = unit_of[classes[index]]
        positions = np.flatnonzero(units >= 0)
        role: Role = "input" if (name, axis) in context.contracted else "output"
        members.append(Member(name, axis, role, value.shape[axis], positions, units[positions]))
    return tuple(members)


def _naming_member(members: Sequence[Member]) -> Member:
    """The weight that makes the channels: the first matrix or kernel with them as its output, else the first of all."""
    outputs = [m for m in members if m.role == "output" and m.parameter.rpartition(".")[2] not in ("bias", "in_proj_bias")]
    return (outputs or [m for m in members if m.role == "output"] or list(members))[0]


def _group_name(member: Member, groups: Sequence[Group]) -> str:
    module, _, attribute = member.parameter.rpartition(".")
    name = module if attribute == "weight" and module else member.parameter
    taken = {group.name for group in groups}
    if name in taken:
        number = 2
        while f"{name}#{number}" in taken:
            number += 1
        name = f"{name}#{number}"
    return name


class _SiteIndex:
    """Finds the calibration sites that see any of a group's classes, without a pass over all of them per group."""

    def __init__(self, sites: Sequence[Site], class_of: IntArray, count: int) -> None:
        self._sites = sites
        self._classes = [class_of[site.labels] for site in sites]
        if sites:
            flat = np.concatenate(self._classes)
            owner = np.repeat(np.arange(len(sites)), [len(c) for c in self._classes])
            keys = np.unique(flat * len(sites) + owner)
            self._class, self._site = keys // len(sites), keys % len(sites)
        else:
            self._class = self._site = np.zeros(0, np.int64)

    def channels_of(self, own: IntArray, unit_of: IntArray) -> tuple[Channels, ...]:
        lows = np.searchsorted(self._class, own, "left")
        highs = np.searchsorted(self._class, own, "right")
        found = [self._site[a:b] for a, b in zip(lows, highs, strict=True)]
        channels: dict[tuple[str, str], Channels] = {}
        for index in np.unique(np.concatenate(found)).tolist() if found else ():
            site = self._sites[index]
            units = unit_of[self._classes[index]]
            channels.setdefault((site.module, site.side), Channels(site.module, site.side, units))
        return tuple(channels.values())


def _list_frozen(context: Context, class_of: IntArray, reasons: Mapping[int, str]) -> tuple[Frozen, ...]:
    """What cannot be pruned, by reason; kernel sizes and other dimensions that are no channels are left out."""
    found: dict[str, dict[tuple[str, int], int]] = {}
    for name, value in context.states.items():
        for axis, labels in value.fields.items():
            if (len(value.shape) > 1 and axis > 1) or value.shape[axis] == 1:
                continue
            classes = class_of[labels.ravel()]
            names, counts = np.unique(classes, return_counts=True)
            for cls, number in zip(names.tolist(), counts.tolist(), strict=True):
                if cls in reasons:
                    entry = found.setdefault(reasons[cls], {})
                    entry[(name, axis)] = entry.get((name, axis), 0) + number
    quiet = ("a dimension of size 1", "the kernel of ")
    return tuple(
        Frozen(
            tuple(dict.fromkeys(name.rpartition(".")[0] or name for name, _ in entry)),
            tuple(entry),
            max(entry.values()),
            reason,
        )
        for reason, entry in found.items()
        if not reason.startswith(quiet)
    )
