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
    keep_whole,
    known,
    note_groups,
    reduce,
    saved_tensor,
    unite_elementwise,
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
    return [_stretch(context, align(value, len(op.shapes[0])), op.shapes[0])]


def _stretch(context: Context, value: Labelled, shape: Shape) -> Labelled:
    """Copies of the one index of a dimension of size 1: nothing yet says how many there must be."""
    fields = dict(value.fields)
    for axis, size in enumerate(shape):
        if value.shape[axis] != size:
            context.labels.freeze_value(value, "a dimension of size 1", [axis])
            fields[axis] = context.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
    return Labelled(shape, fields)


@handles("Repeat")
def _repeat(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    shape = op.shapes[0]
    value = align(value, len(shape))
    once = tuple(full if size == 1 else size for size, full in zip(value.shape, shape, strict=True))
    value = _stretch(context, value, once)
    fields = {}
    for axis, labels in value.fields.items():
        times = [shape[d] // once[d] if labels.shape[d] > 1 or d == axis else 1 for d in range(len(shape))]
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


@handles("Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes")
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
            context.labels.freeze(labels, f"{op.where} takes one of every {step} of it, which does not divide {size}")
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
    """The fields of what is at one ``index`` of a dimension, in the ``shape`` that is left without it."""
    fields = take_along(value.without([dim]), dim, index)
    return Labelled(shape, {axis - (axis > dim): labels for axis, labels in fields.items()})


@handles("Flip")
def _flip(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dims = tuple(dim % len(value.shape) for dim in op.saved_ints("dims"))
    return [Labelled(value.shape, {axis: np.flip(labels, dims) for axis, labels in value.fields.items()})]


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
        return Labelled(shape, keep_whole(context, value, [dim], f"{where} crops it"))
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


@handles("PixelShuffle PixelUnshuffle ChannelShuffle")
def _shuffle(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A reshape, a permutation and a reshape: blocks of channels to blocks of pixels and back, or groups mixed up."""
    (value,) = known(inputs)
    shape, batch = value.shape, len(value.shape) - 3
    if op.kind == "ChannelShuffle":
        groups = op.saved_int("groups")
        middle = (shape[0], groups, shape[1] // groups, *shape[2:])
        order = [0, 2, 1, *range(3, len(middle))]
    elif op.kind == "PixelShuffle":
        factor = op.saved_int("upscale_factor")
        middle = (*shape[:batch], shape[batch] // factor**2, factor, factor, *shape[batch + 1 :])
        order = [*range(batch), batch, batch + 3, batch + 1, batch + 4, batch + 2]
    else:
        factor = op.saved_int("downscale_factor")
        height, width = shape[-2:]
        middle = (*shape[:-2], height // factor, factor, width // factor, factor)
        order = [*range(batch), batch, batch + 2, batch + 4, batch + 1, batch + 3]
    split = context.labels.reshape(value, middle)
    if op.kind == "ChannelShuffle":
        note_groups(context, "groups", middle[1], {0: split.fields[1]} if 1 in split.fields else {})
    return [context.labels.reshape(permute(split, order), op.shapes[0])]


@handles("Rot90")
def _rotate(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    first, second = (dim % len(value.shape) for dim in op.saved_ints("dims"))
    turns = op.saved_int("k") % 4
    moved = {first: second, second: first} if turns % 2 else {}
    fields = {moved.get(a, a): np.rot90(labels, turns, (first, second)) for a, labels in value.fields.items()}
    return [Labelled(op.shapes[0], fields)]


# --------------------------------------------------------------------------------------------------------- diagonals


@handles("Tril Triu")
def _triangle(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    plane = range(len(value.shape) - 2, len(value.shape))
    context.labels.freeze_value(value, f"{op.where} works on positions along it", plane)
    return [value.without(plane)]


@handles("Diagonal")
def _diagonal(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The elements (i, i) of two dimensions, as the last one."""
    (value,) = known(inputs)
    rank, shape = len(value.shape), op.shapes[0]
    plane = [op.saved_int(name) % rank for name in ("dim1", "dim2")]
    ends = [context.labels.collapse_context(value.fields[d], d).ravel() for d in plane if d in value.fields]
    result = insert_dim(reduce(context, value.without(plane), plane, keepdim=False), rank - 2)
    if len(ends) == 2 and len(ends[0]) == len(ends[1]) and not op.saved_int("offset"):
        context.labels.unite(*ends)
        result.fields[rank - 2] = ends[0].reshape((1,) * (rank - 2) + (-1,))
    else:
        context.labels.freeze_value(value, f"{op.where} works on positions along it", plane)
    return [Labelled(shape, result.fields)]


@handles("DiagEmbed")
def _diagonal_matrix(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The last dimension as the diagonal of two."""
    (value,) = known(inputs)
    rank = len(op.shapes[0])
    plane = sorted(op.saved_int(name) % rank for name in ("dim1", "dim2"))
    last = len(value.shape) - 1
    result = reduce(context, value.without([last]), [last], keepdim=False)
    for dim in plane:
        result = insert_dim(result, dim)
    if last in value.fields and not op.saved_int("offset"):
        labels = context.labels.collapse_context(value.fields[last], last)
        for dim in plane:
            result.fields[dim] = labels.reshape((1,) * dim + (-1,) + (1,) * (rank - dim - 1))
    else:
        context.labels.freeze_value(value, f"{op.where} works on positions along it", [last])
    return [Labelled(op.shapes[0], result.fields)]


# ----------------------------------------------------------------------------------------------- positions in space


@handles(
    "MaxPool2D MaxPool2DWithIndices MaxPool3DWithIndices AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D "
    "AdaptiveMaxPool2D AdaptiveMaxPool3D MkldnnMaxPool2D MkldnnMaxPool3D FractionalMaxPool2D FractionalMaxPool3D "
    "UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D "
    "UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleTrilinear3D "
    "UpsampleBilinear2DAa UpsampleBicubic2DAa UpsampleLanczos2DAa ReflectionPad1D ReflectionPad2D ReflectionPad3D "
    "ReplicationPad1D ReplicationPad2D ReplicationPad3D GridSampler2D GridSampler2DCpuFallback GridSampler3D "
    "MaxUnpool2D MaxUnpool3D"
)
def _spatial(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Pooling, resampling, padding by reflection: each channel on its own, the trailing dimensions are positions."""
    value, *grids = inputs
    positions = f"{op.where} works on positions along it"
    for grid in known(grids):
        context.labels.freeze_value(grid, positions)
    value = value or Labelled(op.shapes[0])
    rank = len(value.shape)
    over = next(int(character) for character in op.kind if character.isdigit())
    fields = keep_whole(context, value, range(rank - over, rank), positions)
    if op.kind.startswith("MaxUnpool"):
        # Where each value came from: a tensor with the channels of whatever was pooled then.
        given = saved_tensor(op, "indices")
        pooled = (given is not None and context.use_positions(given, positions)) or Labelled(value.shape)
        fields = unite_elementwise(context, [Labelled(value.shape, fields), pooled], value.shape, op.where)
    context.note_positions(saved_tensor(op, "result1"), Labelled(op.shapes[0], fields))
    return [Labelled(shape, fields if index == 0 else {}) for index, shape in enumerate(op.shapes)]


@handles("AffineGridGenerator CudnnAffineGridGenerator")
def _affine_grid(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    return freeze_all(context, op, inputs, f"{op.where} works on positions along it")


@handles("FftR2C FftC2R FftC2C")
def _fourier(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    fields = keep_whole(context, value, op.saved_ints("dim"), f"{op.where} works on positions along it")
    return [Labelled(op.shapes[0], fields)]


@handles("Unfold")
def _windows(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``Tensor.unfold``: a dimension becomes the places of a window, and what stands in it comes last."""
    (value,) = known(inputs)
    fields = keep_whole(context, value, [op.saved_int("dimension")], f"{op.where} works on positions along it")
    return [Labelled(op.shapes[0], insert_dim(Labelled(value.shape, fields), len(value.shape)).fields)]


@handles("Im2Col")
def _patches(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """(…, channels, height, width) to (…, channels x what stands in a window, places)."""
    (value,) = known(inputs)
    channel = len(value.shape) - 3
    inside = int(np.prod(op.saved_ints("kernel_size")))
    whole = keep_whole(context, value, [channel + 1, channel + 2], f"{op.where} works on positions along it")
    fields = {}
    for axis, labels in whole.items():
        wide = np.repeat(labels, inside, axis=channel) if labels.shape[channel] > 1 or axis == channel else labels
        fields[axis] = wide[..., 0]
    return [Labelled(op.shapes[0], fields)]


@handles("Col2Im")
def _from_patches(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The way back, windows added up where they overlap."""
    (value,) = known(inputs)
    channel = len(value.shape) - 2
    shape, positions = op.shapes[0], f"{op.where} works on positions along it"
    channels = shape[channel]
    split = (*value.shape[:channel], channels, value.shape[channel] // channels, value.shape[-1])
    parts = context.labels.reshape(value, split)
    return [Labelled(shape, keep_whole(context, parts, [channel + 1, channel + 2], positions))]


# ---------------------------------------------------------------------------------------------------- complex numbers


@handles("ViewAsComplex")
def _as_complex(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The last dimension holds the real and the imaginary part."""
    (value,) = known(inputs)
    last = [len(value.shape) - 1]
    context.labels.freeze_value(value, f"{op.where} works on positions along it", last)
    return [reduce(context, value, last, keepdim=False)]


@handles("ViewAsReal")
def _as_real(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    return [Labelled(op.shapes[0], insert_dim(value, len(value.shape)).fields)]
