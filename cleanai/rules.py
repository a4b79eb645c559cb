"""What each operation connects: one small function per kind of operation, in one table.

A rule takes the operation and its labelled inputs and returns its labelled outputs, recording unions and freezes on the
way. Operations without a rule freeze what they touch (see `apply_rule`): a guess is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cleanai.fields import IntArray, Labelled, Labels, Shape, align, permute, take_along
from cleanai.isolation import StateTensor
from cleanai.trace import Operation

Inputs = Sequence[Labelled | None]
Rule = Callable[["Context", Operation, Inputs], list[Labelled]]


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


def _known(inputs: Inputs) -> list[Labelled]:
    return [value for value in inputs if value is not None]


# ---------------------------------------------------------------------------------------------------- element-wise


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


def _elementwise(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    return [Labelled(shape, unite_elementwise(context, [*_known(inputs), *_constants(op, inputs)], shape, op.where))]


def _constants(op: Operation, inputs: Inputs) -> list[Labelled]:
    """Operands that are no part of the graph but whose shape autograd kept: tensors made in forward, masks."""
    found = []
    names = {0: "self", 1: "other"}
    for position, value in enumerate(inputs):
        # mul and div save *the other* operand for each operand's gradient.
        shape = op.saved_shape(names[position]) if value is None and position in names else None
        if shape is not None and len(shape) <= len(op.shapes[0]):
            found.append(Labelled(shape))
    for name in ("mask", "condition"):
        shape = op.saved_shape(name)
        if shape is not None:
            found.append(Labelled(shape))
    return found


def _pass_through(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value = inputs[0]
    return [Labelled(shape, dict(value.fields) if value and value.shape == shape else {}) for shape in op.shapes]


# ------------------------------------------------------------------------------------------------------- reductions


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
    return Labelled(shape, fields) if keepdim else _drop_dims(Labelled(shape, fields), gone)


def _drop_dims(value: Labelled, gone: Iterable[int]) -> Labelled:
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


def _reduction(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    rank = len(value.shape)
    dims: tuple[int, ...]
    if op.saved("dim") is None:
        dims = tuple(range(rank))
    elif isinstance(op.saved("dim"), int):
        dims = (op.saved_int("dim"),)
    else:
        dims = op.saved_ints("dim") or tuple(range(rank))
    keepdim = len(op.shapes[0]) == rank
    return [reduce(context, value, dims, keepdim) for _ in op.shapes]


def _softmax(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} normalises over it", [dim])
    fields = {a: context.labels.collapse(labels, dim) for a, labels in value.fields.items() if a != dim}
    return [Labelled(value.shape, fields)]


# ----------------------------------------------------------------------------------------------------- contractions


def contract(context: Context, first: Labelled, second: Labelled, dims: Iterable[int], where: str) -> Labelled:
    """Two tensors of the same rank, broadcast against each other and summed over some dimensions."""
    shape = tuple(max(a, b) for a, b in zip(first.shape, second.shape, strict=True))
    fields = unite_elementwise(context, [first, second], shape, where)
    return reduce(context, Labelled(shape, fields), dims, keepdim=False)


def _insert_dim(value: Labelled, dim: int) -> Labelled:
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    fields = {
        axis + (axis >= dim): labels.reshape((*labels.shape[:dim], 1, *labels.shape[dim:]))
        for axis, labels in value.fields.items()
    }
    return Labelled(shape, fields)


def _matmul(context: Context, op: Operation, first: Labelled, second: Labelled) -> Labelled:
    """(…, m, k) @ (…, k, n) -> (…, m, n)."""
    _mark_contracted(context, second, len(second.shape) - 2)
    _mark_contracted(context, first, len(first.shape) - 1)
    _note_linear_site(context, op, first, second)
    rank = len(first.shape)
    for batch in range(rank - 2):
        for value in (first, second):
            if batch in value.fields:
                context.heads.append(value.fields[batch])
    return contract(context, _insert_dim(first, rank), _insert_dim(second, rank - 2), [rank - 1], op.where)


def _mark_contracted(context: Context, value: Labelled, dim: int) -> None:
    """Remembers that a model tensor's dimension is an input: it is summed over."""
    labels = value.fields.get(dim) if value.is_weight else None
    owner = context.owners.get(int(labels.min())) if labels is not None else None
    if labels is not None and owner is not None and owner[2] == labels.size:
        context.contracted.add(owner[:2])


def _note_linear_site(context: Context, op: Operation, first: Labelled, second: Labelled) -> None:
    if op.module and len(first.shape) == 2:
        for side, value in (("input", first), ("output", second)):
            labels = value.fields.get(1)
            if labels is not None and labels.size == value.shape[1]:
                context.sites.append(Site(op.module, side, labels.ravel()))


def _mm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    first, second = inputs
    if first is None or second is None:
        return _constant_operand(context, op, inputs)
    return [_matmul(context, op, first, second)]


def _addmm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``beta * input + alpha * (first @ second)``, also batched (baddbmm)."""
    bias, first, second = inputs
    if first is None or second is None:
        return _constant_operand(context, op, inputs)
    product = _matmul(context, op, first, second)
    operands = [product] if bias is None else [product, bias]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


def _vector_product(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """mv and dot: as matrices with a dimension of size 1."""
    first, second = inputs
    if first is None or second is None:
        return _constant_operand(context, op, inputs)
    vector = len(first.shape) == 1
    left = _insert_dim(first, 0) if vector else first
    product = _matmul(context, op, left, _insert_dim(second, 1))
    return [_drop_dims(product, (0, 1) if vector else (1,))]


def _constant_operand(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    for value in _known(inputs):
        context.labels.freeze_value(value, f"{op.where} multiplies it with a constant")
    return [Labelled(shape) for shape in op.shapes]


def _convolution(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, weight, bias = inputs
    if weight is None:
        return _freeze_all(context, op, inputs, f"{op.where} has a weight that is not part of the graph")
    value = value or Labelled((1, *((1,) * (len(weight.shape) - 1))))
    labels, groups, transposed = context.labels, op.saved("groups"), bool(op.saved("transposed"))
    labels.freeze_value(value, f"{op.where} slides over it", range(2, len(value.shape)))
    labels.freeze_value(weight, f"the kernel of {op.where}", range(2, len(weight.shape)))
    rank = len(value.shape)
    source = value.fields.get(1)
    if source is not None:
        source = labels.collapse_context(source, 1).ravel()
    first, second = (weight.fields[dim].ravel() if dim in weight.fields else None for dim in (0, 1))
    # `wide` spans all channels of its side, `narrow` only those of one group.
    in_labels, out_labels = (first, second) if transposed else (second, first)
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    if source is None and in_labels is not None:
        labels.freeze(in_labels, f"{op.where} reads {context.partner}")
        if groups > 1 and out_labels is not None:
            labels.freeze(out_labels, f"{op.where} reads {context.partner}, group by group")
    if in_labels is None and source is not None:
        labels.freeze(source, f"{op.where} multiplies it with {context.partner}")
    _mark_contracted(context, weight, 0 if transposed else 1)
    if source is not None and in_labels is not None:
        context.sites.append(Site(op.module, "input", source))
    output: IntArray | None = out_labels
    if groups == 1:
        if source is not None and in_labels is not None:
            labels.unite(source, in_labels)
    elif source is not None and in_labels is not None and out_labels is not None:
        output = _grouped(context, source, in_labels, out_labels, groups, channels // groups, transposed)
    elif transposed and groups > 1:
        output = None
    fields = {}
    if output is not None:
        context.sites.append(Site(op.module, "output", output))
        fields[1] = output.reshape((1, -1) + (1,) * (rank - 2))
        if bias is not None and 0 in bias.fields:
            labels.unite(bias.fields[0], output)
    elif bias is not None:
        labels.freeze_value(bias, f"the bias of {op.where}")
    if 0 in value.fields:
        fields[0] = labels.collapse_context(value.fields[0], 0)
    return [Labelled(op.shapes[0], fields)]


def _grouped(
    context: Context,
    source: IntArray,
    in_labels: IntArray,
    out_labels: IntArray,
    groups: int,
    per: int,
    transposed: bool,
) -> IntArray:
    """Grouped convolution: whole groups together, and the same channels of every group on the side that is shared."""
    labels = context.labels
    wide, narrow = (in_labels, out_labels) if transposed else (out_labels, in_labels)
    if transposed:
        labels.unite(source, wide)
        parts = _split_groups(labels, wide, groups)
        _note_groups(context, "groups", groups, parts)
        fields = {axis: field for axis, field in parts.items() if axis == 0}
        if narrow.size > 1:
            fields[1] = narrow.reshape(1, -1)
        else:
            labels.freeze(narrow, "a dimension of size 1")
        merged = labels.merge(fields, (groups, narrow.size), 0)
        assert merged is not None
        return np.broadcast_to(merged, (groups, narrow.size)).ravel()
    inside = _split_groups(labels, source, groups)
    _note_groups(context, "groups", groups, inside)
    outside = _split_groups(labels, wide, groups)
    if 0 in inside and 0 in outside:
        labels.unite(inside[0], outside[0])
    else:
        for field in (inside.get(0), outside.get(0)):
            if field is not None:
                labels.freeze(field, "groups of a convolution over repeated channels")
    if per > 1 and 1 in inside:
        labels.unite(inside[1], narrow.reshape(1, -1))
    else:
        labels.freeze(narrow, "a dimension of size 1")
    return wide


def _split_groups(labels: Labels, flat: IntArray, groups: int) -> dict[int, IntArray]:
    return labels.split(flat.reshape(groups, -1), 0)


def _note_groups(context: Context, argument: str, groups: int, parts: dict[int, IntArray]) -> None:
    """The number of groups of an operation follows the rows that its channels are split into."""
    rows = parts.get(0)
    labels = rows.ravel() if rows is not None and rows.size == groups else None
    context.counts.setdefault(context.labels.operation, []).append(Count(argument, None, groups, labels))


def _attention(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """softmax(query keyᵀ · scale) value, with shapes (…, heads, tokens, channels); fewer key heads are repeated."""
    query, key, value = inputs[:3]
    if query is None or key is None or value is None:
        return _freeze_all(context, op, inputs, f"{op.where} has a constant operand")
    labels, rank = context.labels, len(query.shape)
    for operand in (query, key, value):
        labels.freeze_value(operand, f"{op.where} attends over it", [rank - 2])
        if 1 in operand.fields and rank == 4:
            context.heads.append(operand.fields[1])
    if op.saved("scale") is None:
        for operand in (query, key):
            labels.freeze_value(operand, f"{op.where} scales by the size of it", [rank - 1])
    query, key, value = (
        reduce(context, _repeat_heads(operand, query.shape), [rank - 2], keepdim=True)
        for operand in (query, key, value)
    )
    scores = contract(context, query, key, [rank - 1], op.where)
    mask = op.saved_shape("attn_mask") or op.saved_shape("attn_bias")
    operands = [Labelled((*scores.shape, 1), {a: f[..., None] for a, f in scores.fields.items()}), value]
    if mask is not None:
        operands.append(Labelled((*((1,) * (rank - len(mask))), *mask[:-2], 1, 1)))
    shape = op.shapes[0]
    fields = unite_elementwise(context, operands, (*shape[:-2], 1, shape[-1]), op.where)
    return [Labelled(shape, fields), *(Labelled(other) for other in op.shapes[1:])]


def _repeat_heads(value: Labelled, shape: Shape) -> Labelled:
    if len(shape) != 4 or value.shape[1] == shape[1]:
        return value
    times = shape[1] // value.shape[1]
    fields = {
        a: np.repeat(labels, times, axis=1) if labels.shape[1] > 1 else labels for a, labels in value.fields.items()
    }
    return Labelled((value.shape[0], shape[1], *value.shape[2:]), fields)


def _embedding(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (weight,) = _known(inputs)
    context.labels.freeze_value(weight, f"the vocabulary of {op.where}", [0])
    rank = len(op.shapes[0])
    fields = {}
    if 1 in weight.fields:
        fields[rank - 1] = weight.fields[1].reshape((1,) * (rank - 1) + (-1,))
    return [Labelled(op.shapes[0], fields)]


# ---------------------------------------------------------------------------------------------------- normalisation


def _vector(value: Labelled, axis: int, rank: int) -> Labelled:
    """A 1-d tensor placed along one axis of a tensor of a given rank."""
    shape = (1,) * axis + value.shape + (1,) * (rank - axis - 1)
    return Labelled(shape, {axis: value.fields[0].reshape(shape)} if 0 in value.fields else {})


def _batch_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, *affine = inputs
    channels = op.shapes[0][1:2]
    states = [op.saved_state(name) for name in ("running_mean", "running_var")]
    vectors = [*_known(affine), *(context.label_state(state, channels) for state in states if state is not None)]
    rank = len(op.shapes[0])
    operands = [value or Labelled(op.shapes[0]), *(_vector(v, 1, rank) for v in vectors)]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


def _layer_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Statistics over the trailing dimensions: computed over what is kept of them."""
    value, *affine = inputs
    value = value or Labelled(op.shapes[0])
    rank, over = len(value.shape), len(op.saved("normalized_shape"))
    normalised = range(rank - over, rank)
    fields = {}
    for axis, labels in value.fields.items():
        if axis not in normalised:
            for dim in normalised:
                labels = context.labels.collapse(labels, dim)
        fields[axis] = labels
    operands = [Labelled(value.shape, fields), *_known(affine)]
    return [Labelled(value.shape, unite_elementwise(context, operands, value.shape, op.where))]


def _group_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, *affine = inputs
    value = value or Labelled(op.shapes[0])
    rank = len(value.shape)
    context.labels.freeze_value(value, f"{op.where} computes statistics over it", range(2, rank))
    value = value.without(range(2, rank))
    operands = [value, *(_vector(v, 1, rank) for v in _known(affine))]
    fields = unite_elementwise(context, operands, value.shape, op.where)
    if 1 in fields:
        fields[1] = context.labels.collapse_context(fields[1], 1)
        groups = op.saved("group")
        if groups > 1:
            parts = _split_groups(context.labels, fields[1].ravel(), groups)
            _note_groups(context, "group", groups, parts)
    return [Labelled(value.shape, fields)]


# ------------------------------------------------------------------------------------------------- moving data about


def _backward_hook(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """What torch puts around a module with a full backward hook: every output is the input of the same place."""
    return [value if value is not None else Labelled(shape) for value, shape in zip(inputs, op.shapes, strict=True)]


def _reshape(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    return [context.labels.reshape(value, op.shapes[0])]


def _transpose(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dims = list(range(len(value.shape)))
    if op.kind == "T":
        dims.reverse()
    else:
        a, b = op.saved_int("dim0"), op.saved_int("dim1")
        dims[a], dims[b] = dims[b], dims[a]
    return [permute(value, dims)]


def _permute(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    return [permute(value, op.saved_ints("dims"))]


def _unsqueeze(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    return [_insert_dim(value, op.saved_int("dim") % len(op.shapes[0]))]


def _squeeze(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    rank = len(value.shape)
    dim = op.saved("dim")
    dims = range(rank) if dim is None else [op.saved_int("dim")] if isinstance(dim, int) else op.saved_ints("dim")
    gone = {d % rank for d in dims if value.shape[d % rank] == 1}
    context.labels.freeze_value(value, "a dimension of size 1", gone)
    return [_drop_dims(value, gone)]


def _expand(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    shape = op.shapes[0]
    aligned = align(value, len(shape))
    fields = dict(aligned.fields)
    for axis, size in enumerate(shape):
        if aligned.shape[axis] != size:
            # Copies of one index: nothing yet says how many there must be.
            context.labels.freeze_value(aligned, "a dimension of size 1", [axis])
            fields[axis] = context.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
    return [Labelled(shape, fields)]


def _repeat(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    shape = op.shapes[0]
    aligned = align(value, len(shape))
    fields = {}
    for axis, labels in aligned.fields.items():
        times = [shape[d] // aligned.shape[d] if labels.shape[d] > 1 or d == axis else 1 for d in range(len(shape))]
        fields[axis] = np.tile(labels, times)
    return [Labelled(shape, fields)]


def concatenate(context: Context, values: Sequence[Labelled | None], dim: int, shape: Shape, where: str) -> Labelled:
    """Tensors one after the other along a dimension; along the others they are one.

    A constant (None) may be any of them where its size follows from the others'.
    """
    known = [value for value in values if value is not None]
    missing = len(values) - len(known)
    rest = shape[dim] - sum(value.shape[dim] for value in known)
    fields: dict[int, IntArray] = {}
    along = [value.fields.get(dim) for value in known]
    if any(labels is not None for labels in along):
        if missing > 1 and rest:
            for value in known:
                context.labels.freeze_value(value, f"{where} joins it with constants", [dim])
        else:
            fields[dim] = _join(context, values, dim, rest, where)
    for axis in range(len(shape)):
        if axis == dim:
            continue
        labelled = [value.fields[axis] for value in known if axis in value.fields]
        if not labelled:
            continue
        flat = [context.labels.collapse(labels, dim) for labels in labelled]
        for labels in flat[1:]:
            context.labels.unite(labels, flat[0])
        if len(labelled) < len(known):
            context.labels.freeze(flat[0], f"{where} combines it with {context.partner}")
        else:
            fields[axis] = max(flat, key=lambda labels: labels.size)
    return Labelled(shape, fields)


def _join(context: Context, values: Sequence[Labelled | None], dim: int, rest: int, where: str) -> IntArray:
    pieces = []
    for value in values:
        labels = value.fields.get(dim) if value is not None else None
        if labels is None:
            size = value.shape[dim] if value is not None else rest
            rank = next(len(v.shape) for v in values if v is not None)
            labels = context.labels.new((size,)).reshape((1,) * dim + (size,) + (1,) * (rank - dim - 1))
            context.labels.freeze(labels, f"{where} joins it with {context.partner}")
        pieces.append(labels)
    full = np.broadcast_shapes(*(tuple(s if d != dim else 1 for d, s in enumerate(p.shape)) for p in pieces))
    stretched = [np.broadcast_to(p, (*full[:dim], p.shape[dim], *full[dim + 1 :])) for p in pieces]
    return np.concatenate(stretched, axis=dim)


def _cat(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    values = [v for v in inputs if v is None or v.shape != (0,)]
    return [concatenate(context, values, op.saved_int("dim") % len(shape), shape, op.where)]


def _stack(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    dim = op.saved_int("dim") % len(shape)
    values = [None if v is None else _insert_dim(v, dim) for v in inputs]
    return [concatenate(context, values, dim, shape, op.where)]


def _pieces(context: Context, op: Operation, value: Labelled, dim: int, sizes: Sequence[int]) -> list[Labelled]:
    ends = np.cumsum(sizes).tolist()
    if dim in value.fields:
        context.labels.cut(value.fields[dim], dim, ends)
    outputs = []
    for size, end in zip(sizes, ends, strict=True):
        fields = take_along(value, dim, slice(end - size, end))
        outputs.append(Labelled((*value.shape[:dim], size, *value.shape[dim + 1 :]), fields))
    return outputs


def _split(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    return _pieces(context, op, value, dim, [shape[dim] for shape in op.shapes])


def _slice(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    size = value.shape[dim]
    start, end, step = slice(_clip(op, "start"), _clip(op, "end"), op.saved_int("step")).indices(size)
    if dim in value.fields and (start, end, step) != (0, size, 1):
        labels = value.fields[dim]
        if step == 1:
            context.labels.cut(labels, dim, (start, end))
        elif size % step == 0 and end > size - step:
            _unite_steps(context, labels, dim, step)
        else:
            context.labels.freeze(labels, f"{op.where} takes every {step}th of it, which does not divide {size}")
    fields = take_along(value, dim, slice(start, end, step))
    return [Labelled(op.shapes[0], fields)]


def _clip(op: Operation, name: str) -> int | None:
    return None if op.saved(name) is None else op.saved_int(name)


def _unite_steps(context: Context, labels: IntArray, dim: int, step: int) -> None:
    """Neighbours that a strided slice tells apart go together, so that the stride finds the same ones again."""
    moved = np.moveaxis(labels, dim, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, step)
    context.labels.unite(blocks, blocks[..., :1])


def _select(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    return [_picked(value, dim, op.saved_int("index") % value.shape[dim], op.shapes[0])]


def _unbind(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    return [_picked(value, dim, index, shape) for index, shape in enumerate(op.shapes)]


def _picked(value: Labelled, dim: int, index: int, shape: Shape) -> Labelled:
    fields = take_along(value.without([dim]), dim, index)
    return Labelled(shape, {axis - (axis > dim): labels for axis, labels in fields.items()})


def _flip(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dims = tuple(dim % len(value.shape) for dim in op.saved_ints("dims"))
    return [Labelled(value.shape, {axis: np.flip(labels, dims) for axis, labels in value.fields.items()})]


def _as_strided(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Only the form that global pooling uses to mark its (n, c, 1, 1) result as channels-last: nothing moves."""
    (value,) = _known(inputs)
    sizes, strides = op.saved_ints("size"), op.saved_ints("stride")
    pooled = len(sizes) > 2 and set(sizes[2:]) == {1} and strides[:2] == (sizes[1], 1)
    if pooled and sizes == value.shape and op.saved("storage_offset") in (0, None):
        return [value]
    return _freeze_all(context, op, inputs, f"{op.where} reads memory directly")


def _roll(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    shifts, dims = op.saved_ints("shifts"), op.saved_ints("dims")
    if not dims:
        return _freeze_all(context, op, inputs, f"{op.where} rolls over all dimensions at once")
    fields = dict(value.fields)
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= len(value.shape)
        if dim in fields and shift:
            # The shift is a number in the code: what wraps around must stay whole.
            size = value.shape[dim]
            wrapped = slice(None) if abs(shift) >= size else slice(-shift, None) if shift > 0 else slice(None, -shift)
            context.labels.freeze(take_along(Labelled(value.shape, fields), dim, wrapped)[dim], f"{op.where} wraps it")
        fields = {axis: np.roll(f, shift, dim) if f.shape[dim] > 1 else f for axis, f in fields.items()}
    return [Labelled(value.shape, fields)]


def _pad(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Constant padding: what is added is new and stays."""
    (value,) = _known(inputs)
    pads = op.saved_ints("pad")
    current = value
    for step in range(len(pads) // 2):
        dim = len(value.shape) - 1 - step
        before, after = pads[2 * step], pads[2 * step + 1]
        if before or after:
            current = _pad_dim(context, current, dim, (before, after), 2 * step, op.where)
    return [Labelled(op.shapes[0], current.fields)]


def _pad_dim(
    context: Context, value: Labelled, dim: int, amounts: tuple[int, int], position: int, where: str
) -> Labelled:
    before, after = amounts
    size = value.shape[dim]
    shape = (*value.shape[:dim], size + before + after, *value.shape[dim + 1 :])
    if before < 0 or after < 0:
        context.labels.freeze_value(value, f"{where} crops it", [dim])
        inside = value.without([dim])
        fields = {a: context.labels.collapse(labels, dim) for a, labels in inside.fields.items()}
        return Labelled(shape, fields)
    fields = {axis: context.labels.collapse(labels, dim) for axis, labels in value.fields.items() if axis != dim}
    if dim in value.fields:
        labels = value.fields[dim]
        pieces = [labels]
        for amount, index in ((before, position), (after, position + 1)):
            if amount:
                # The zeros are channels like any other: as many as the argument says, which must follow them.
                one = tuple(amount if d == dim else 1 for d in range(labels.ndim))
                pad = context.labels.new(one)
                context.counts.setdefault(context.labels.operation, []).append(Count("pad", index, amount, pad.ravel()))
                stretched = np.broadcast_to(pad, tuple(amount if d == dim else s for d, s in enumerate(labels.shape)))
                pieces.insert(0 if index == position else len(pieces), stretched)
        fields[dim] = np.concatenate(pieces, axis=dim)
    return Labelled(shape, fields)


def _spatial(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Pooling, resampling, padding by reflection: each channel on its own, the trailing dimensions are positions."""
    (value,) = _known(inputs)[:1]
    digits = [character for character in op.kind if character.isdigit()]
    leading = len(value.shape) - (int(digits[0]) if digits else len(value.shape) - 2)
    context.labels.freeze_value(value, f"{op.where} works on positions along it", range(leading, len(value.shape)))
    fields = {}
    for axis in range(leading):
        if axis in value.fields:
            labels = value.fields[axis]
            for dim in range(leading, len(value.shape)):
                labels = context.labels.collapse(labels, dim)
            fields[axis] = labels
    return [Labelled(shape, fields if index == 0 else {}) for index, shape in enumerate(op.shapes)]


def _index(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``x[indices]`` with tensors in the leading places, or in one run of neighbouring dimensions."""
    (value,) = _known(inputs)
    indices = op.saved("indices") or ()
    dims = [dim for dim, index in enumerate(indices) if isinstance(index, Tensor)]
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return _freeze_all(context, op, inputs, f"{op.where} picks from it by position")
    context.labels.freeze_value(value, f"{op.where} picks from it by position", dims)
    kept = value.without(dims)
    shape = op.shapes[0]
    added = len(shape) - (len(value.shape) - len(dims))
    fields = {}
    for axis, labels in kept.fields.items():
        for dim in dims:
            labels = context.labels.collapse(labels, dim)
        sizes = (*labels.shape[: dims[0]], *((1,) * added), *labels.shape[dims[-1] + 1 :])
        fields[axis if axis < dims[0] else axis - len(dims) + added] = labels.reshape(sizes)
    return [Labelled(shape, fields)]


def _index_select(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = _known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    fields = {a: context.labels.collapse(f, dim) for a, f in value.fields.items() if a != dim}
    return [Labelled(op.shapes[0], fields)]


# --------------------------------------------------------------------------------------------------- the rest


def _freeze_all(context: Context, op: Operation, inputs: Inputs, reason: str) -> list[Labelled]:
    for value in _known(inputs):
        context.labels.freeze_value(value, reason)
    return [Labelled(shape) for shape in op.shapes]


def apply_rule(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The labelled outputs of one operation; one without a rule freezes what it touches, and is named."""
    context.labels.operation = op.index
    inputs_only = any(value.is_input for value in _known(inputs))
    context.partner = "the input of the model" if inputs_only else "something that cannot be pruned"
    rule = RULES.get(op.kind)
    if rule is None:
        return _freeze_all(context, op, inputs, f"no rule for the operation {op.where}")
    if not _known(inputs):
        return [Labelled(shape) for shape in op.shapes]
    return rule(context, op, inputs)


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for rule, kinds in rows:
        for kind in kinds.split():
            if kind in table:
                raise ValueError(f"two rules for the operation {kind}")
            table[kind] = rule
    return table


RULES: dict[str, Rule] = _table(
    (
        _pass_through,
        "Relu Sigmoid Tanh Gelu Silu Mish Hardswish Hardsigmoid Hardtanh Elu LeakyRelu Softplus "
        "Threshold LogSigmoid Hardshrink Softshrink Exp Exp2 Expm1 Log Log2 Log10 Log1P Sqrt Rsqrt Abs Neg Reciprocal "
        "Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Erf Erfc Erfinv Sign Sgn Floor Ceil Round Trunc "
        "Frac Clamp ClampMin ClampMax Clone Alias ToCopy Copies Contiguous NativeDropout Dropout RreluWithNoise "
        "Square Logit NanToNum Positive",
    ),
    (
        _elementwise,
        "Add Sub Rsub Mul Div Maximum Minimum Fmax Fmin Where MaskedFill Pow Addcmul Addcdiv Lerp Atan2 PreluKernel "
        "Fmod Remainder Hypot Copysign Xlogy LogAddExp",
    ),
    (_reduction, "Mean Sum Var Std VarMean StdMean Norm LinalgVectorNorm Amax Amin Logsumexp Max Min Nansum"),
    (_softmax, "Softmax LogSoftmax SafeSoftmax"),
    (_mm, "Mm Bmm"),
    (_addmm, "Addmm Baddbmm"),
    (_vector_product, "Mv Dot"),
    (_convolution, "Convolution ConvolutionOverrideable MkldnnConvolution CudnnConvolution"),
    (
        _attention,
        "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention ScaledDotProductEfficientAttention "
        "ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable",
    ),
    (_embedding, "Embedding"),
    (_batch_norm, "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm"),
    (_layer_norm, "NativeLayerNorm FusedRmsNorm"),
    (_group_norm, "NativeGroupNorm"),
    (_backward_hook, "BackwardHookFunction"),
    (_reshape, "View UnsafeView ReshapeAlias ReshapeCopy"),
    (_transpose, "Transpose T"),
    (_permute, "Permute"),
    (_unsqueeze, "Unsqueeze"),
    (_squeeze, "Squeeze"),
    (_expand, "Expand"),
    (_repeat, "Repeat"),
    (_cat, "Cat"),
    (_stack, "Stack"),
    (_split, "Split SplitWithSizes"),
    (_slice, "Slice"),
    (_select, "Select"),
    (_unbind, "Unbind"),
    (_flip, "Flip"),
    (_roll, "Roll"),
    (_as_strided, "AsStrided"),
    (_pad, "ConstantPadNd"),
    (
        _spatial,
        "MaxPool2DWithIndices MaxPool3DWithIndices AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D "
        "AdaptiveMaxPool2D AdaptiveMaxPool3D MkldnnMaxPool2D FractionalMaxPool2D UpsampleNearest1D UpsampleNearest2D "
        "UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D UpsampleLinear1D "
        "UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D UpsampleBilinear2DAa UpsampleBicubic2DAa "
        "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D",
    ),
    (_index, "Index"),
    (_index_select, "IndexSelect"),
)
