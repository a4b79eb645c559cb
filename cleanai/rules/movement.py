"""Moving data about: the labels move the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cleanai.fields import IntArray, Labelled, Shape, align, permute, take_along
from cleanai.rules.context import (
    Context,
    Count,
    Inputs,
    drop_dims,
    freeze_all,
    handles,
    insert_dim,
    known,
)
from cleanai.trace import Operation


@handles("BackwardHookFunction")
def _backward_hook(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """What torch puts around a module with a full backward hook: every output is the input of the same place."""
    return [value if value is not None else Labelled(shape) for value, shape in zip(inputs, op.shapes, strict=True)]


@handles("View UnsafeView ReshapeAlias ReshapeCopy")
def _reshape(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    return [context.labels.reshape(value, op.shapes[0])]


@handles("Transpose T")
def _transpose(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dims = list(range(len(value.shape)))
    if op.kind == "T":
        dims.reverse()
    else:
        a, b = op.saved_int("dim0"), op.saved_int("dim1")
        dims[a], dims[b] = dims[b], dims[a]
    return [permute(value, dims)]


@handles("Permute")
def _permute(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    return [permute(value, op.saved_ints("dims"))]


@handles("Unsqueeze")
def _unsqueeze(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    return [insert_dim(value, op.saved_int("dim") % len(op.shapes[0]))]


@handles("Squeeze")
def _squeeze(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    rank = len(value.shape)
    dim = op.saved("dim")
    dims = range(rank) if dim is None else [op.saved_int("dim")] if isinstance(dim, int) else op.saved_ints("dim")
    gone = {d % rank for d in dims if value.shape[d % rank] == 1}
    context.labels.freeze_value(value, "a dimension of size 1", gone)
    return [drop_dims(value, gone)]


@handles("Expand")
def _expand(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    shape = op.shapes[0]
    aligned = align(value, len(shape))
    fields = dict(aligned.fields)
    for axis, size in enumerate(shape):
        if aligned.shape[axis] != size:
            # Copies of one index: nothing yet says how many there must be.
            context.labels.freeze_value(aligned, "a dimension of size 1", [axis])
            fields[axis] = context.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
    return [Labelled(shape, fields)]


@handles("Repeat")
def _repeat(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
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


@handles("Cat")
def _cat(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    values = [v for v in inputs if v is None or v.shape != (0,)]
    return [concatenate(context, values, op.saved_int("dim") % len(shape), shape, op.where)]


@handles("Stack")
def _stack(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    dim = op.saved_int("dim") % len(shape)
    values = [None if v is None else insert_dim(v, dim) for v in inputs]
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


@handles("Split SplitWithSizes")
def _split(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    return _pieces(context, op, value, dim, [shape[dim] for shape in op.shapes])


@handles("Slice")
def _slice(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
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


@handles("Select")
def _select(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    return [picked(value, dim, op.saved_int("index") % value.shape[dim], op.shapes[0])]


@handles("Unbind")
def _unbind(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    return [picked(value, dim, index, shape) for index, shape in enumerate(op.shapes)]


def picked(value: Labelled, dim: int, index: int, shape: Shape) -> Labelled:
    fields = take_along(value.without([dim]), dim, index)
    return Labelled(shape, {axis - (axis > dim): labels for axis, labels in fields.items()})


@handles("Flip")
def _flip(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dims = tuple(dim % len(value.shape) for dim in op.saved_ints("dims"))
    return [Labelled(value.shape, {axis: np.flip(labels, dims) for axis, labels in value.fields.items()})]


@handles("AsStrided")
def _as_strided(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Only the form that global pooling uses to mark its (n, c, 1, 1) result as channels-last: nothing moves."""
    (value,) = known(inputs)
    sizes, strides = op.saved_ints("size"), op.saved_ints("stride")
    pooled = len(sizes) > 2 and set(sizes[2:]) == {1} and strides[:2] == (sizes[1], 1)
    if pooled and sizes == value.shape and op.saved("storage_offset") in (0, None):
        return [value]
    return freeze_all(context, op, inputs, f"{op.where} reads memory directly")


@handles("Roll")
def _roll(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    shifts, dims = op.saved_ints("shifts"), op.saved_ints("dims")
    if not dims:
        return freeze_all(context, op, inputs, f"{op.where} rolls over all dimensions at once")
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


@handles("ConstantPadNd")
def _pad(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Constant padding: what is added is new and stays."""
    (value,) = known(inputs)
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


@handles(
    "MaxPool2DWithIndices MaxPool3DWithIndices AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D "
    "AdaptiveMaxPool2D AdaptiveMaxPool3D MkldnnMaxPool2D FractionalMaxPool2D UpsampleNearest1D "
    "UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D "
    "UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D "
    "UpsampleBilinear2DAa UpsampleBicubic2DAa ReflectionPad1D ReflectionPad2D ReflectionPad3D "
    "ReplicationPad1D ReplicationPad2D ReplicationPad3D"
)
def _spatial(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Pooling, resampling, padding by reflection: each channel on its own, the trailing dimensions are positions."""
    (value,) = known(inputs)[:1]
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
