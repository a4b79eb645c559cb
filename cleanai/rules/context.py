"""What the rules share: the labels of a trace, and the few things that most rules do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cleanai.fields import IntArray, Labelled, Labels, Shape, align
from cleanai.isolation import StateTensor
from cleanai.trace import Operation

Inputs = Sequence[Labelled | None]
"""The labelled inputs of an operation, in the order of its signature; None for a constant."""
Rule = Callable[["Context", Operation, Inputs], list[Labelled]]
"""A rule: from the context, the operation and its labelled inputs to its labelled outputs."""

RULES: dict[str, Rule] = {}
"""The rule of each kind of operation, by autograd's name for it ("Relu"); rules of one's own come in by `handles`."""


def handles(kinds: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of some kinds of operations (their names, separated by blanks): a decorator.

    The names are autograd's, without what decorates them ("Relu" for ``ReluBackward0``).

    Raises:
        ValueError: one of them has a rule already.

    Example:
        >>> from cleanai.rules import RULES
        >>> @handles("MyRelu MySigmoid")
        ... def element_by_element(context, op, inputs):
        ...     return [inputs[0]]
        >>> RULES["MyRelu"] is RULES.pop("MySigmoid") is RULES.pop("MyRelu")
        True
    """

    def register(rule: Rule) -> Rule:
        for kind in kinds.split():
            if kind in RULES:
                raise ValueError(f"two rules for the operation {kind}")
            RULES[kind] = rule
        return rule

    return register


@dataclass
class Site:
    """Channels as calibration sees them: the labels along the channel dimension of what a module is given or returns.

    ``side`` is "input" or "output" of a layer, or "result" of a block of layers, whose channels are along ``axis``,
    counted from the end.
    """

    module: str
    side: str
    labels: IntArray
    axis: int = 0


@dataclass(frozen=True)
class Count:
    """A number that an operation was called with and that must be the number of some labels still alive.

    ``argument`` is autograd's name for it, ``index`` its place in a tuple; without labels the number must not change.
    """

    argument: str
    index: int | None
    value: int
    labels: IntArray | None


@dataclass(frozen=True)
class Positions:
    """A tensor of positions: how it lies in its storage, its fields, and what it counts along."""

    layout: tuple[Any, ...]
    value: Labelled
    along: tuple[IntArray, ...]


@dataclass
class Context:
    """What the rules share: the labels, the labelled tensors of the model, and what they note on the way.

    Attributes:
        labels: hands out labels, and records which live or die together (``unite``) and which stay (``freeze``).
        states: {tensor's name: its shape and labels}.
        owners: {first label of a dimension: (tensor's name, dimension, size)}.
        contracted: the (tensor, dimension) pairs that are summed over.
        heads: labels of attention heads.
        sites: what layers are given and return, as calibration sees it.
        counts: by operation, the numbers it was called with that must follow a cut.
        partner: what the current operation's unlabelled operands are, in words.
        unwritten: the labels of new tensors that the forward fills part by part.
        unproven: labels of which the graph may not tell all, with the operation.
        positions: tensors of positions that operations returned (of a maximum, of a pooled value), by their storage: in
            no graph, but others may be given them.

    Example:
        >>> context = Context()
        >>> value = Labelled((2, 3), {1: context.labels.new((1, 3))})  # a tensor with three channels
        >>> context.labels.freeze_value(value, "Cumsum adds up along it", [1])
        >>> [reason for _, reason in context.labels.freezes]
        ['Cumsum adds up along it']
    """

    labels: Labels = field(default_factory=Labels)
    states: dict[str, Labelled] = field(default_factory=dict)
    owners: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    contracted: set[tuple[str, int]] = field(default_factory=set)
    heads: list[IntArray] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    counts: dict[int, list[Count]] = field(default_factory=dict)
    partner: str = ""
    unwritten: set[int] = field(default_factory=set)
    unproven: list[tuple[IntArray, str]] = field(default_factory=list)
    positions: dict[int, Positions] = field(default_factory=dict)

    def label_state(self, state: StateTensor, shape: Shape) -> Labelled:
        """A model tensor ``state``, in the ``shape`` it has in the trace, with labels of its own for every dimension.

        They are made at the first call; later ones give the same.
        """
        if state.name not in self.states:
            fields = {}
            for axis, size in enumerate(shape):
                if size:
                    self.owners[self.labels.count] = (state.name, axis, size)
                    fields[axis] = self.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
            self.states[state.name] = Labelled(shape, fields, is_weight=True)
        return self.states[state.name]

    def note_positions(self, tensor: Tensor | None, value: Labelled, along: Iterable[IntArray] = ()) -> None:
        """Notes that a ``tensor`` of positions has the fields of ``value`` and counts ``along`` some labels."""
        if tensor is not None:
            self.positions[_storage(tensor)] = Positions(_layout(tensor), value, tuple(along))

    def use_positions(self, tensor: Tensor, reason: str) -> Labelled | None:
        """The fields of a ``tensor`` of positions given to an operation; what it counts stays, for a ``reason``."""
        found = self.positions.get(_storage(tensor))
        if found is None:
            return None
        for labels in found.along:
            self.labels.freeze(labels, reason)
        return self.labels.reshape(found.value, tuple(tensor.shape)) if found.layout == _layout(tensor) else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's elements lie, however many dimensions of size 1 it has."""
    places = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.storage_offset(), *(place for place in places if place[0] != 1)


def saved_tensor(op: Operation, name: str) -> Tensor | None:
    """A tensor that autograd saved; None where there is none, or it was overwritten since."""
    try:
        tensor = op.saved(name)
    except RuntimeError:
        return None
    return tensor if isinstance(tensor, Tensor) else None


def known(inputs: Inputs) -> list[Labelled]:
    """The inputs that are labelled: constants left out."""
    return [value for value in inputs if value is not None]


def freeze_all(context: Context, op: Operation, inputs: Inputs, reason: str) -> list[Labelled]:
    """Freezes every input, for a ``reason``; the outputs of the operation have no fields."""
    for value in known(inputs):
        context.labels.freeze_value(value, reason)
    return [Labelled(shape) for shape in op.shapes]


def keep_apart(context: Context, value: Labelled, dims: Iterable[int]) -> dict[int, IntArray]:
    """The fields of a tensor after an operation that mixes what stands along some dimensions, whatever is kept there.

    Along the others an index is then one, wherever along these dimensions it stands.
    """
    mixed = {dim % len(value.shape) for dim in dims}
    fields = {}
    for axis, labels in value.fields.items():
        for dim in mixed if axis not in mixed else ():
            labels = context.labels.collapse(labels, dim)
        fields[axis] = labels
    return fields


def keep_whole(context: Context, value: Labelled, dims: Iterable[int], reason: str) -> dict[int, IntArray]:
    """The fields left by an operation that goes by the positions along some dimensions: these stay as they are."""
    whole = {dim % len(value.shape) for dim in dims}
    context.labels.freeze_value(value, reason, whole)
    return {axis: labels for axis, labels in keep_apart(context, value, whole).items() if axis not in whole}


def reduce(context: Context, value: Labelled, dims: Iterable[int], keepdim: bool) -> Labelled:
    """The fields after a reduction. A labelled dimension that is reduced is computed over what is kept."""
    gone = {dim % len(value.shape) for dim in dims}
    fields = {axis: labels for axis, labels in keep_apart(context, value, gone).items() if axis not in gone}
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
    """The same tensor with a dimension of size 1 before ``dim``."""
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
    """The fields of channels that are cut into ``groups`` equal rows: axis 0 for the rows, 1 for what is in them."""
    return labels.split(flat.reshape(groups, -1), 0)


def note_groups(context: Context, argument: str, groups: int, parts: dict[int, IntArray]) -> None:
    """The number of groups of an operation follows the rows that its channels are split into."""
    rows = parts.get(0)
    labels = rows.ravel() if rows is not None and rows.size == groups else None
    context.counts.setdefault(context.labels.operation, []).append(Count(argument, None, groups, labels))


def mark_contracted(context: Context, value: Labelled, dim: int) -> None:
    """Remembers that a model tensor's dimension is an input: it is summed over."""
    labels = value.fields.get(dim) if value.is_weight else None
    owner = context.owners.get(int(labels.min())) if labels is not None else None
    if labels is not None and owner is not None and owner[2] == labels.size:
        context.contracted.add(owner[:2])
