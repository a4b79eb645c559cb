"""What the rules share: the labels of a trace, and the few things that most rules do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cleanai.fields import IntArray, Labelled, Labels, Shape, align
from cleanai.isolation import StateTensor
from cleanai.trace import Operation

Inputs = Sequence[Labelled | None]
Rule = Callable[["Context", Operation, Inputs], list[Labelled]]

RULES: dict[str, Rule] = {}
"""The rule of each kind of operation, by autograd's name for it."""


def handles(kinds: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of some kinds of operations (their names, separated by blanks)."""

    def register(rule: Rule) -> Rule:
        for kind in kinds.split():
            if kind in RULES:
                raise ValueError(f"two rules for the operation {kind}")
            RULES[kind] = rule
        return rule

    return register


@dataclass
class Site:
    """A layer's channels as calibration sees them: the labels of its input or output along its channel dimension."""

    module: str
    side: str
    labels: IntArray


@dataclass(frozen=True)
class Count:
    """A number that an operation was called with and that must be the number of some labels still alive.

    ``argument`` is autograd's name for it, ``index`` its place in a tuple; without labels the number must not change.
    """

    argument: str
    index: int | None
    value: int
    labels: IntArray | None


@dataclass
class Context:
    """What the rules share: the labels, the labelled tensors of the model, and what they note on the way.

    ``counts`` holds, by operation, the numbers it was called with that must follow a cut. ``contracted`` are the
    (tensor, dimension) pairs that are summed over. ``partner`` is what the current operation's unlabelled operands are,
    in words.
    """

    labels: Labels = field(default_factory=Labels)
    states: dict[str, Labelled] = field(default_factory=dict)
    owners: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    contracted: set[tuple[str, int]] = field(default_factory=set)
    heads: list[IntArray] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    counts: dict[int, list[Count]] = field(default_factory=dict)
    partner: str = ""

    def label_state(self, state: StateTensor, shape: Shape) -> Labelled:
        """A model tensor, in the shape it has in the trace, with fresh labels on every dimension; always the same."""
        if state.name not in self.states:
            fields = {}
            for axis, size in enumerate(shape):
                if size:
                    self.owners[self.labels.count] = (state.name, axis, size)
                    fields[axis] = self.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
            self.states[state.name] = Labelled(shape, fields, is_weight=True)
        return self.states[state.name]


def known(inputs: Inputs) -> list[Labelled]:
    return [value for value in inputs if value is not None]


def freeze_all(context: Context, op: Operation, inputs: Inputs, reason: str) -> list[Labelled]:
    for value in known(inputs):
        context.labels.freeze_value(value, reason)
    return [Labelled(shape) for shape in op.shapes]


def reduce(context: Context, value: Labelled, dims: Iterable[int], keepdim: bool) -> Labelled:
    """The fields after a reduction. A labelled dimension that is reduced is computed over what is kept."""
    gone = {dim % len(value.shape) for dim in dims}
    fields = {}
    for axis, labels in value.fields.items():
        if axis in gone:
            continue
        for dim in gone:
            labels = context.labels.collapse(labels, dim)
        fields[axis] = labels
    shape = tuple(1 if dim in gone else size for dim, size in enumerate(value.shape))
    return Labelled(shape, fields) if keepdim else drop_dims(Labelled(shape, fields), gone)


def drop_dims(value: Labelled, gone: Iterable[int]) -> Labelled:
    """The same tensor without some dimensions, over which no field varies."""
    dropped = set(gone)
    kept = [dim for dim in range(len(value.shape)) if dim not in dropped]
    position = {dim: index for index, dim in enumerate(kept)}
    fields = {
        position[axis]: labels.reshape([labels.shape[dim] for dim in kept])
        for axis, labels in value.fields.items()
        if axis in position
    }
    return Labelled(tuple(value.shape[dim] for dim in kept), fields)


def insert_dim(value: Labelled, dim: int) -> Labelled:
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    fields = {
        axis + (axis >= dim): labels.reshape((*labels.shape[:dim], 1, *labels.shape[dim:]))
        for axis, labels in value.fields.items()
    }
    return Labelled(shape, fields)


def unite_elementwise(
    context: Context, operands: Sequence[Labelled], shape: Shape, where: str, *, skip: Iterable[int] = ()
) -> dict[int, IntArray]:
    """Fields of what broadcasts together: along each dimension the operands' fields are one.

    An operand of size 1 along a dimension constrains nothing there; one of full size without a field freezes the rest.
    """
    rank = len(shape)
    aligned = [align(value, rank) for value in operands]
    skipped = set(skip)
    fields: dict[int, IntArray] = {}
    for axis, size in enumerate(shape):
        full = [value for value in aligned if value.shape[axis] == size]
        labelled = [value.fields[axis] for value in full if axis in value.fields]
        if not labelled or axis in skipped:
            continue
        widest = max(labelled, key=lambda labels: labels.size)
        for labels in labelled:
            context.labels.unite(labels, widest)
        if len(labelled) < len(full):
            context.labels.freeze(widest, f"{where} combines it with {context.partner}")
            continue
        fields[axis] = widest
    return fields


def split_groups(labels: Labels, flat: IntArray, groups: int) -> dict[int, IntArray]:
    return labels.split(flat.reshape(groups, -1), 0)


def note_groups(context: Context, argument: str, groups: int, parts: dict[int, IntArray]) -> None:
    """The number of groups of an operation follows the rows that its channels are split into."""
    rows = parts.get(0)
    labels = rows.ravel() if rows is not None and rows.size == groups else None
    context.counts.setdefault(context.labels.operation, []).append(Count(argument, None, groups, labels))
