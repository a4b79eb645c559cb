"""Which channels live or die together: label fields resolved into groups of units that can be removed.

A *unit* is the smallest thing that can be removed: a channel with everything that must go with it, a whole attention
head, a convolution group. A *group* is the set of units that touch the same dimensions of the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cleanai.errors import CleanAIError, TraceError
from cleanai.fields import Cut, IntArray, Labelled, Relation
from cleanai.rules import Context, apply_rule
from cleanai.rules.context import Count, Site
from cleanai.trace import Trace

__all__ = ["Frozen", "Group", "Member"]

BoolArray = NDArray[np.bool_]
HashArray = NDArray[np.uint64]
Role = Literal["output", "input"]
Mode = Literal["outer", "inner"]


@dataclass(frozen=True)
class Member:
    """A dimension of a model tensor that a group owns a part of.

    Attributes:
        parameter: the tensor's name in the model, such as "conv1.weight".
        dim: which of its dimensions.
        role: "input" where the dimension is summed over (the columns of a weight), else "output".
        size: how many indices the dimension has, those of other groups and of none included.
        positions: the indices that the group owns, ascending, as an array.
        units: the unit of the group that each of these indices belongs to, an array as long as ``positions``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 5))  # 2 channels of 2×2 pixels
        >>> group = analyze_model(net, torch.zeros(1, 3, 2, 2)).groups[0]
        >>> for member in group.members:
        ...     print(member.parameter, member.dim, member.role, member.units.tolist())
        0.weight 0 output [0, 1]
        0.bias 0 output [0, 1]
        2.weight 1 input [0, 0, 0, 0, 1, 1, 1, 1]
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
    """Units that touch the same dimensions of the same tensors, and compete with each other.

    A unit is the smallest thing that can be removed: a channel with everything that must go with it, a whole attention
    head, a convolution group. `cleanai.StructuredPruner.groups` and `cleanai.analysis.Analysis.groups` give them.

    Attributes:
        index: the group's number in the model.
        name: the path of the layer that makes its channels; plans, scores and reports use it.
        kind: what its units are: "channels", "heads", "head dimensions" or "groups".
        size: how many units it has.
        width: how many channels a unit has in the layer that gives the group its name.
        members: one `cleanai.coupling.Member` per dimension of a tensor that the group owns a part of.
        blocks: the constraint: arrays of units from each of which the same share must go (heads keep equal sizes,
            pieces of a split keep their proportion). Within a block the choice is free.
        channels: where hooks find the units in what layers read and return; the engine uses it.
        classes: the engine's own numbers for the units.
        sources: for each unit, a number for the dimensions that it touches: a group may join channels of several
            layers, none of which may be emptied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16, batch_first=True)
        >>> for group in analyze_model(layer, torch.zeros(1, 4, 8)).groups:
        ...     print(group.name, group.size, group.kind, group.width, group.layers)
        self_attn.in_proj_weight 2 heads 12 ('self_attn', 'self_attn.out_proj')
        linear1 16 channels 1 ('linear1', 'linear2')
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
    sources: IntArray = field(repr=False, default_factory=lambda: np.zeros(0, np.int64))

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
    """Channels that are never removed, and why.

    `cleanai.StructuredPruner.frozen` and `cleanai.analysis.Analysis.frozen` give them.

    Attributes:
        layers: the paths of the modules that own the tensors.
        parameters: the tensors and which dimension of each: (name, dimension).
        channels: how many there are.
        reason: what holds them, as a sentence without a full stop.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analyze_model(net, torch.zeros(1, 3)).frozen[-1]
        Frozen(layers=('2',), parameters=(('2.weight', 0), ('2.bias', 0)), channels=2, reason='the output of the model')
    """

    layers: tuple[str, ...]
    parameters: tuple[tuple[str, int], ...]
    channels: int
    reason: str


@dataclass
class LabelledTrace:
    """A trace with the labelled outputs of its operations, and the numbers they were given that must follow a cut."""

    trace: Trace
    values: list[list[Labelled]]
    counts: dict[int, list[Count]]


@dataclass
class Coupling:
    """The groups of a traced model, what is frozen, and what predicts the shapes of a cut model.

    ``class_of`` maps every label to its class. ``modes`` says for a structure of split dimensions whether whole rows
    ("outer": heads, groups) or parts of every row ("inner") are removed. ``manual`` are freezes decided later, ``ties``
    sizes that must stay equal (label arrays of which each loses equally many).
    """

    traces: list[LabelledTrace]
    context: Context
    modes: dict[int, Mode] = field(default_factory=dict)
    manual: list[tuple[IntArray, str]] = field(default_factory=list)
    ties: list[list[IntArray]] = field(default_factory=list)
    groups: tuple[Group, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    class_of: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    structure_of: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Coupling({len(self.groups)} groups, {sum(g.size for g in self.groups)} units, {len(self.frozen)} frozen)"
        )

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
    for each in (trace, *more):
        if each.method == "real":
            each.release()
    context.sites += _list_results(traces[0])
    return solve_coupling(Coupling(traces, context))


def _list_results(labelled: LabelledTrace) -> list[Site]:
    """What blocks of layers return, where it has channels along one axis."""
    calls = labelled.trace.calls
    parents = {path.rpartition(".")[0] for path in calls}
    found = []
    for path, call in calls.items():
        if path in parents and call.count == 1 and call.result is not None:
            value = labelled.values[call.result.operation][call.result.output]
            axes = [axis for axis, labels in value.fields.items() if labels.size == value.shape[axis]]
            if len(axes) == len(value.fields) == 1:
                found.append(Site(path, "result", value.fields[axes[0]].ravel(), axes[0] - len(value.shape)))
    return found


def _label_trace(context: Context, trace: Trace) -> LabelledTrace:
    context.counts = {}
    values: list[list[Labelled]] = []
    for op in trace.operations:
        if op.state is not None:
            values.append([context.label_state(op.state, op.shapes[0])])
        elif op.kind == "Input":
            values.append([Labelled(op.shapes[0], is_input=True)])
        else:
            inputs = [None if v is None else _value_of(values, v.operation, v.output) for v in op.inputs]
            try:
                outputs = apply_rule(context, op, inputs)
            except CleanAIError:
                raise
            except Exception as error:  # a rule of the user's may raise anything
                reason = error.args[0] if isinstance(error, KeyError) and error.args else error  # else it is quoted
                raise TraceError(f"the rule for {op.where} failed on shapes {op.shapes}: {reason}") from error
            if all(value is not None and value.is_weight for value in inputs) and not op.kind.startswith("Embedding"):
                outputs = [replace(value, is_weight=True) for value in outputs]
            elif all(value is not None and value.is_input for value in inputs):
                outputs = [replace(value, is_input=True) for value in outputs]
            values.append(outputs)
    for output in trace.outputs:
        reason = trace.failure or "the output of the model"
        context.labels.freeze_value(_value_of(values, output.operation, output.output), reason)
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


def link_classes(context: Context, alive: BoolArray | None = None) -> IntArray:
    """What lives and dies together before anything is frozen or a way of cutting is chosen: a class for each label.

    Indices of split dimensions whose parts along every new axis go together are one as well. With ``alive`` (which
    labels are left of a cut) so is what a smaller trace cannot tell apart: of a dimension that is split into rows, of
    which only one is left, the indices are those inside the row.
    """
    labels = context.labels
    pairs = list(labels.unions)
    for relation in labels.relations if alive is not None else ():
        assert alive is not None
        kept = alive[relation.flat]
        many = [j for j, level in enumerate(relation.levels) if _count_left(level, alive) > 1]
        if len(many) <= 1:
            level = relation.levels[many[0] if many else -1]
            pairs.append((relation.flat[kept], np.broadcast_to(level, relation.flat.shape)[kept]))
    base = _components(labels.count, pairs)
    if not labels.relations:
        return base
    codes = []
    for relation in labels.relations:
        code = np.zeros(relation.flat.size, np.uint64)
        for level in relation.levels:
            code += _hash(base[np.broadcast_to(level, relation.flat.shape).ravel()])
        codes.append(code)
    everything = np.concatenate(codes)
    order = np.argsort(everything, kind="stable")
    flat = np.concatenate([relation.flat.ravel() for relation in labels.relations])[order]
    same = everything[order][1:] == everything[order][:-1]
    return _components(labels.count, [*pairs, (flat[1:][same], flat[:-1][same])])


def _count_left(level: IntArray, alive: BoolArray) -> int:
    """How many indices of an axis are left in the fullest row."""
    own = [dim for dim in range(level.ndim) if level.shape[dim] > 1]
    return int(alive[level].sum(axis=own[-1]).max()) if own else 1


def _unite_views(relations: Sequence[Relation], base: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Unions of the axes of dimensions that are one and are split alike: a product has only these factors."""
    first: dict[tuple[Any, ...], Relation] = {}
    found = []
    for relation in relations:
        sizes = tuple(size for size in relation.flat.shape if size > 1)
        other = first.setdefault((base[relation.flat].tobytes(), sizes, len(relation.levels)), relation)
        for ours, theirs in zip(relation.levels, other.levels, strict=True) if other is not relation else ():
            sides = [
                np.broadcast_to(level, seen.flat.shape).ravel() for level, seen in ((ours, relation), (theirs, other))
            ]
            found.append((sides[0], sides[1]))
    return found


class _Axes:
    """The axes of all relations, and which of them are one because they share a label class."""

    def __init__(self, relations: Sequence[Relation], component: IntArray, frozen: BoolArray) -> None:
        levels = [(r, j) for r, relation in enumerate(relations) for j in range(len(relation.levels))]
        self._index = {key: number for number, key in enumerate(levels)}
        classes = [component[relations[r].levels[j].ravel()] for r, j in levels]
        flats = [component[relation.flat.ravel()] for relation in relations]
        self.frozen = [bool(frozen[c].all()) for c in classes]
        self.flat_frozen = [bool(frozen[c].all()) for c in flats]
        self.group = self._join(classes)
        owners = [self._index[(r, 0)] for r in range(len(relations))]
        links = [
            (np.full(len(relation.levels) - 1, start), start + np.arange(1, len(relation.levels)))
            for start, relation in zip(owners, relations, strict=True)
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
        if axes.flat_frozen[r]:
            chosen.append(None)
            continue
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
        rows = np.repeat(np.arange(moved.size // moved.shape[-1]), moved.shape[-1])
        if rows[-1] > 0:
            constraints.append(_Constraint(class_of[moved.ravel()], rows))
    for cut in cuts:
        context = int(np.prod(cut.labels.shape[:-1]))
        offset = np.arange(context).reshape(*cut.labels.shape[:-1], 1) * (int(cut.rows.max()) + 1)
        constraints.append(_Constraint(class_of[cut.labels.ravel()], (cut.rows + offset).ravel()))
    return constraints


def _distinct(values: IntArray) -> IntArray:
    """The distinct values, ascending (by sorting: numpy's hashing is many times slower on these)."""
    ordered = np.sort(values, kind="stable")
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _mask_of(count: int, class_of: IntArray, arrays: Iterable[IntArray]) -> BoolArray:
    """Which classes occur in some label arrays."""
    mask = np.zeros(count, bool)
    for array in arrays:
        mask[class_of[array.ravel()]] = True
    return mask


@dataclass
class _Rows:
    """A constraint counted: ``counts[i]`` positions of class ``classes[i]`` are in row ``rows[i]``."""

    classes: IntArray
    rows: IntArray
    counts: IntArray
    uneven: IntArray


def _count_rows(constraint: _Constraint) -> _Rows:
    """The counts of a constraint, and its uneven classes: removing one changes one row's share against another's."""
    rows = int(constraint.rows.max()) + 1
    keys = np.sort(constraint.classes * rows + constraint.rows)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(starts, len(keys)))
    classes, row = keys[starts] // rows, keys[starts] % rows
    sizes = np.bincount(constraint.rows, minlength=rows)
    first = np.flatnonzero(np.concatenate([[True], classes[1:] != classes[:-1]]))
    share = counts / sizes[row]
    spread = np.maximum.reduceat(share, first) - np.minimum.reduceat(share, first)
    touched = np.diff(np.append(first, len(classes)))
    even = (touched == np.count_nonzero(sizes)) & (spread < 1e-12)
    return _Rows(classes, row, counts, classes[first][~even])


def solve_coupling(coupling: Coupling) -> Coupling:
    """Resolves labels into classes, groups and constraints; again after `Coupling.freeze_group` or a new mode."""
    context = coupling.context
    labels = context.labels
    freezes = [*labels.freezes, *coupling.manual]
    pairs = list(labels.unions)
    active: list[int | None] = []
    if labels.relations:
        base = _components(labels.count, pairs)
        alike = _unite_views(labels.relations, base)
        if alike:
            pairs += alike
            base = _components(labels.count, pairs)
        freezes = _carry_freezes(labels.relations, base, freezes)
        axes = _Axes(labels.relations, base, _mask_of(labels.count, base, [f for f, _ in freezes]))
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
    count = int(class_of.max()) + 1
    reasons, reason_of = _freeze_reasons(count, class_of, freezes)
    constraints = [
        (constraint, _count_rows(constraint))
        for constraint in _row_constraints(
            labels.relations, active, [*labels.list_cuts(), *map(_as_cut, coupling.ties)], class_of
        )
    ]
    _freeze_unbalanced(constraints, reasons, reason_of)
    coupling.class_of = class_of
    kinds = _Kinds(
        _mask_of(count, class_of, context.heads),
        _mask_of(count, class_of, _row_levels(labels.relations, active)),
    )
    rows = [counted for _, counted in constraints]
    coupling.groups = _Grouping(context, class_of, reason_of < 0, rows).build(kinds)
    coupling.frozen = _list_frozen(context, class_of, reasons, reason_of)
    return coupling


def _as_cut(tie: Sequence[IntArray]) -> Cut:
    """Sizes that must stay equal, as the pieces of one dimension."""
    rows = np.repeat(np.arange(len(tie)), [labels.size for labels in tie])
    return Cut(np.concatenate([labels.ravel() for labels in tie]), rows, 0)


def _row_levels(relations: Sequence[Relation], active: Sequence[int | None]) -> list[IntArray]:
    """The labels of the active axes that are whole rows: not the innermost of their relation."""
    chosen = [(r, j) for r, j in zip(relations, active, strict=True) if j is not None]
    return [r.levels[j] for r, j in chosen if j + 1 < len(r.levels)]


def _freeze_reasons(
    count: int, class_of: IntArray, freezes: Sequence[tuple[IntArray, str]]
) -> tuple[list[str], IntArray]:
    """The distinct reasons, and for each class the number of the first one given for it, -1 for none."""
    numbers = {reason: number for number, reason in enumerate(dict.fromkeys(reason for _, reason in freezes))}
    reason_of = np.full(count, -1, np.int64)
    for labels, reason in reversed(freezes):
        reason_of[class_of[labels]] = numbers[reason]
    return list(numbers), reason_of


def _carry_freezes(
    relations: Sequence[Relation], base: IntArray, freezes: Sequence[tuple[IntArray, str]]
) -> list[tuple[IntArray, str]]:
    """Freezes carried through relations: an index that stays needs all its parts; one whose parts all stay, stays."""
    reasons, reason_of = _freeze_reasons(int(base.max()) + 1, base, freezes)
    changed = True
    while changed:
        changed = False
        for relation in relations:
            flat = base[relation.flat]
            levels = [base[np.broadcast_to(level, relation.flat.shape)] for level in relation.levels]
            for level in levels:
                hit = (reason_of[flat] >= 0) & (reason_of[level] < 0)
                if hit.any():
                    reason_of[level[hit]] = reason_of[flat[hit]]
                    changed = True
            hit = (reason_of[flat] < 0) & np.all([reason_of[level] >= 0 for level in levels], axis=0)
            if hit.any():
                reason_of[flat[hit]] = reason_of[levels[0][hit]]
                changed = True
    numbers = reason_of[base]
    return [(np.flatnonzero(numbers == number), reason) for number, reason in enumerate(reasons)]


def _freeze_unbalanced(
    constraints: Sequence[tuple[_Constraint, _Rows]], reasons: list[str], reason_of: IntArray
) -> None:
    """Where frozen channels leave rows uneven, the rest of those rows must stay as well."""
    reasons.append("the other parts it must stay equal to cannot shrink")
    changed = True
    while changed:
        changed = False
        for constraint, counted in constraints:
            frozen = reason_of[constraint.classes] >= 0
            if not frozen.any() or frozen.all():
                continue
            sizes = np.bincount(constraint.rows)
            share = np.bincount(constraint.rows, weights=frozen, minlength=len(sizes))[sizes > 0] / sizes[sizes > 0]
            loose = counted.uneven[reason_of[counted.uneven] < 0]
            if share.max() - share.min() >= 1e-12 and len(loose):
                reason_of[loose] = len(reasons) - 1
                changed = True


# ---------------------------------------------------------------------------------------------------------- grouping


def _hash(numbers: NDArray[Any]) -> HashArray:
    """Well-mixed 64-bit hashes (splitmix64), to compare sets by the sum of their members' hashes."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class _Kinds:
    """Classes that are attention heads, and classes that are whole rows of a split dimension."""

    heads: BoolArray
    rows: BoolArray

    def name(self, cls: int) -> str:
        return "heads" if self.heads[cls] else "groups" if self.rows[cls] else "channels"


class _Grouping:
    """Classes sorted into groups: those that touch the same dimensions, and those tied by a constraint."""

    def __init__(self, context: Context, class_of: IntArray, free: BoolArray, constraints: Sequence[_Rows]) -> None:
        self._context = context
        self._dims = [(name, axis, value) for name, value in context.states.items() for axis in value.fields]
        self._classes = [class_of[value.fields[axis].ravel()] for _, axis, value in self._dims]
        self._site_classes = [class_of[site.labels] for site in context.sites]
        count = len(free)
        flat = np.concatenate(self._classes) if self._dims else np.zeros(0, np.int64)
        sizes = np.array([len(c) for c in self._classes], dtype=np.int64)
        owner = np.repeat(np.arange(len(self._dims)), sizes)
        keys = _distinct(flat * max(len(self._dims), 1) + owner)
        self._pairs = (keys // max(len(self._dims), 1), keys % max(len(self._dims), 1))
        # Two classes belong to one group when they touch the same dimensions: compare the hashes of those sets.
        signature = np.zeros(count, np.uint64)
        np.add.at(signature, self._pairs[0], _hash(self._pairs[1] + 1))
        # A class is placed where it is first seen, a group where its first class is.
        seen_at = np.full(count, len(flat))
        seen_at[flat[::-1]] = np.arange(len(flat))[::-1]
        # A class that only dimensions of size 1 hold can never go.
        present = _distinct(flat[np.repeat(sizes > 1, sizes)])
        present = present[free[present]]
        self._present = present[np.argsort(seen_at[present], kind="stable")]
        self._signature = signature
        self._atom, self._group_of = self._tie(signature, constraints, count)
        self._unit_of = self._number_units(count)

    def _tie(self, signature: HashArray, constraints: Sequence[_Rows], count: int) -> tuple[HashArray, IntArray]:
        """For each class its block (those of one block are free to choose among) and its group, -1 for none."""
        present = self._present
        member = np.full(count, -1, np.int64)
        names, compact = np.unique(signature[present], return_inverse=True)
        member[present] = compact
        atom = np.zeros(count, np.uint64)
        pairs = []
        for number, counted in enumerate(constraints):
            uneven = counted.uneven[member[counted.uneven] >= 0]
            if not len(uneven):
                continue
            inside = np.zeros(count, bool)
            inside[uneven] = True
            inside = inside[counted.classes]
            salt = _hash(counted.rows[inside] * 31 + counted.counts[inside] * 1000003 + (number + 1) * 10**9)
            np.add.at(atom, counted.classes[inside], salt)
            linked = _distinct(member[uneven])
            pairs.append((linked, np.full(len(linked), linked[0])))
        joined = _components(len(names), pairs)
        # Groups are numbered in the order in which they are first seen.
        group_of = np.full(count, -1, np.int64)
        order = joined[compact]
        ranks = np.full(int(joined.max(initial=-1)) + 1, len(present))
        np.minimum.at(ranks, order, np.arange(len(present)))
        rank = np.empty_like(ranks)
        rank[np.argsort(ranks, kind="stable")] = np.arange(len(ranks))
        group_of[present] = rank[order] if len(present) else order
        return atom, group_of

    def _number_units(self, count: int) -> IntArray:
        """Each class's number in its group, in the order in which they are first seen."""
        groups = self._group_of[self._present]
        order = np.argsort(groups, kind="stable")
        starts = np.searchsorted(groups[order], groups[order], "left")
        unit_of = np.full(count, -1, np.int64)
        unit_of[self._present[order]] = np.arange(len(order)) - starts
        return unit_of

    def build(self, kinds: _Kinds) -> tuple[Group, ...]:
        groups_of_pairs = self._group_of[self._pairs[0]]
        inside = groups_of_pairs >= 0
        touched = _distinct(groups_of_pairs[inside] * max(len(self._dims), 1) + self._pairs[1][inside])
        total = int(self._group_of.max(initial=-1)) + 1
        members: list[list[Member]] = [[] for _ in range(total)]
        for key in touched.tolist():
            number, index = divmod(key, len(self._dims))
            members[number].append(self._member(number, index))
        channels = self._channels(total)
        own = self._present[np.argsort(self._group_of[self._present], kind="stable")]
        sizes = np.bincount(self._group_of[self._present], minlength=total)
        groups: list[Group] = []
        names: set[str] = set()
        for number, classes in enumerate(np.split(own, np.cumsum(sizes)[:-1]) if total else ()):
            named = _naming_member(members[number])
            names.add(name := _free_name(named, names))
            groups.append(
                Group(
                    index=number,
                    name=name,
                    kind=kinds.name(int(classes[0])),
                    size=len(classes),
                    width=max(1, len(named.positions) // len(classes)),
                    members=tuple(members[number]),
                    blocks=self._blocks(classes),
                    sources=np.unique(self._signature[classes], return_inverse=True)[1],
                    channels=tuple(channels[number].values()),
                    classes=classes,
                )
            )
        return tuple(groups)

    def _member(self, number: int, index: int) -> Member:
        name, axis, value = self._dims[index]
        classes = self._classes[index]
        positions = np.flatnonzero(self._group_of[classes] == number)
        role: Role = "input" if (name, axis) in self._context.contracted else "output"
        return Member(name, axis, role, value.shape[axis], positions, self._unit_of[classes[positions]])

    def _channels(self, total: int) -> list[dict[tuple[str, str], Channels]]:
        found: list[dict[tuple[str, str], Channels]] = [{} for _ in range(total)]
        for site, classes in zip(self._context.sites, self._site_classes, strict=True):
            groups = self._group_of[classes]
            for number in _distinct(groups[groups >= 0]).tolist():
                units = np.where(groups == number, self._unit_of[classes], -1)
                found[number].setdefault((site.module, site.side), Channels(site.module, site.side, units))
        return found

    def _blocks(self, classes: IntArray) -> tuple[IntArray, ...]:
        atoms = self._atom[classes]
        if (atoms == atoms[0]).all():
            return (np.arange(len(classes)),)
        order = np.argsort(atoms, kind="stable")
        bounds = np.flatnonzero(atoms[order][1:] != atoms[order][:-1]) + 1
        return tuple(sorted((np.sort(block) for block in np.split(order, bounds)), key=lambda block: int(block[0])))


def _naming_member(members: Sequence[Member]) -> Member:
    """The weight that makes the channels: the first matrix or kernel with them as its output, else the first of all."""
    outputs = [m for m in members if m.role == "output"]
    weights = [m for m in outputs if not m.parameter.endswith("bias")]
    return (weights or outputs or list(members))[0]


def _free_name(member: Member, taken: set[str]) -> str:
    module, _, attribute = member.parameter.rpartition(".")
    name = module if attribute == "weight" and module else member.parameter
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free


def _list_frozen(
    context: Context, class_of: IntArray, reasons: Sequence[str], reason_of: IntArray
) -> tuple[Frozen, ...]:
    """What cannot be pruned, by reason; kernel sizes and other dimensions that are no channels are left out."""
    found: dict[int, dict[tuple[str, int], int]] = {}
    for name, value in context.states.items():
        for axis, labels in value.fields.items():
            if (len(value.shape) > 1 and axis > 1) or value.shape[axis] == 1:
                continue
            numbers = reason_of[class_of[labels.ravel()]]
            counts = np.bincount(numbers[numbers >= 0])
            for number in np.flatnonzero(counts).tolist():
                found.setdefault(number, {})[name, axis] = int(counts[number])
    quiet = ("a dimension of size 1", "the kernel of ")
    return tuple(
        Frozen(
            tuple(dict.fromkeys(name.rpartition(".")[0] or name for name, _ in found[number])),
            tuple(found[number]),
            max(found[number].values()),
            reasons[number],
        )
        for number in sorted(found)
        if not reasons[number].startswith(quiet)
    )
