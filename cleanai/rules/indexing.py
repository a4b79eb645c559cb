"""Picking and writing by position: indices given as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cleanai.fields import IntArray, Labelled, Shape
from cleanai.rules.context import (
    Context,
    Inputs,
    freeze_all,
    handles,
    insert_dim,
    keep_whole,
    known,
    reduce,
    saved_tensor,
    unite_elementwise,
)
from cleanai.trace import Operation


def _reason(op: Operation) -> str:
    return f"{op.where} picks from it by position"


# ------------------------------------------------------------------------------------------------------- x[indices]


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _take(context: Context, op: Operation, value: Labelled) -> tuple[list[int], Labelled] | None:
    """The dimensions that ``value[indices]`` takes by position (these stay), and its result.

    A tensor of positions takes one dimension, a mask as many as it has. What they pick stands where the dimensions were
    if these are neighbours, else before all others. None where the indices were overwritten since.
    """
    try:
        indices = op.saved("indices")
    except RuntimeError:
        return None
    dims: list[int] = []
    dim = rank = 0
    for index in indices:
        if not isinstance(index, Tensor):
            dim += 1
            continue
        context.use_positions(index, _reason(op))
        taken = index.dim() if _is_mask(index) else 1
        dims += range(dim, dim + taken)
        dim += taken
        rank = max(rank, 1 if _is_mask(index) else index.dim())
    fields = keep_whole(context, value, dims, _reason(op))
    result = reduce(context, Labelled(value.shape, fields), dims, keepdim=False)
    neighbours = bool(dims) and dims == list(range(dims[0], dims[-1] + 1))
    for _ in range(rank):
        result = insert_dim(result, dims[0] if neighbours else 0)
    return dims, result


@handles("Index UnsafeIndex")
def _index(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    taken = _take(context, op, known(inputs)[0])
    return [Labelled(op.shapes[0], taken[1].fields)] if taken else freeze_all(context, op, inputs, _reason(op))


@handles("IndexPut IndexPutImpl UnsafeIndexPut")
def _index_put(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``x[indices] = values``."""
    shape = op.shapes[0]
    value, written = inputs
    base = value if value is not None else _follow(context, shape)
    taken = _take(context, op, base)
    if taken is None:
        return freeze_all(context, op, inputs, _reason(op))
    dims, part = taken
    if written is not None:
        full = tuple(np.broadcast_shapes(part.shape, written.shape))
        unite_elementwise(context, [part, written], full, op.where)
    return [Labelled(shape, keep_whole(context, base, dims, _reason(op)))]


def _follow(context: Context, shape: Shape) -> Labelled:
    """A constant that is written to: every dimension can have any size, as far as anyone knows."""
    fields = {
        axis: context.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
        for axis, size in enumerate(shape)
        if size > 1
    }
    return Labelled(shape, fields)


# ------------------------------------------------------------------------------------------------ along a dimension


@handles("IndexSelect")
def _index_select(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    index = saved_tensor(op, "index")
    if index is not None:
        context.use_positions(index, _reason(op))
    return [Labelled(op.shapes[0], keep_whole(context, value, [op.saved_int("dim")], _reason(op)))]


@handles("Gather")
def _gather(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``x[i][index[i][j][k]][k]`` along the middle dimension: the others go with those of the index."""
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    fields = keep_whole(context, value, [dim], _reason(op))
    return [Labelled(op.shapes[0], _match_index(context, op, value.shape, dim, fields))]


def _is_same_along(index: Tensor, axis: int, shape: Shape) -> bool:
    """Whether an index is a list for one dimension alone, or spread out over the whole of this other one."""
    return index.dim() < len(shape) or (index.shape[axis] == shape[axis] and index.stride(axis) == 0)


def _match_index(
    context: Context, op: Operation, shape: Shape, dim: int, fields: dict[int, IntArray]
) -> dict[int, IntArray]:
    """The fields of a tensor that go with the dimensions of an index: where it says the same for every position.

    Or where it was returned by an operation, for these very channels.
    """
    index = saved_tensor(op, "index")
    positions = context.use_positions(index, _reason(op)) if index is not None else None
    matched = {}
    for axis, labels in fields.items():
        same = positions.fields.get(axis) if positions is not None else None
        if index is not None and _is_same_along(index, axis, shape):
            matched[axis] = labels
        elif same is not None and same.shape[axis] == shape[axis]:
            context.labels.unite(context.labels.collapse(same, dim), labels)
            matched[axis] = labels
        else:
            context.labels.freeze(labels, _reason(op))
    return matched


@handles("IndexAdd IndexCopy IndexFill IndexReduce Scatter ScatterAdd ScatterReduce SelectScatter SliceScatter")
def _write_along(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Writing to some positions of a dimension; along the others what is written goes with what is there."""
    shape = op.shapes[0]
    dim = op.saved_int("dim") % len(shape)
    base, source = (*inputs, None)[:2]
    operands = [base if base is not None else _follow(context, shape)]
    if source is not None and op.kind != "IndexFill":
        operands.append(insert_dim(source, dim) if op.kind == "SelectScatter" else source)
    for value in operands[1:]:
        other = [a for a in range(len(shape)) if a != dim and value.shape[a] != shape[a]]
        context.labels.freeze_value(value, _reason(op), other)
    # One position of the dimension stands for all: which of them is written to is another matter.
    operands = [Labelled(value.shape, keep_whole(context, value, [dim], _reason(op))) for value in operands]
    full = tuple(1 if axis == dim else size for axis, size in enumerate(shape))
    narrow = [Labelled((*v.shape[:dim], 1, *v.shape[dim + 1 :]), v.fields) for v in operands]
    fields = unite_elementwise(context, narrow, full, op.where)
    if op.kind not in ("SelectScatter", "SliceScatter"):
        fields = _match_index(context, op, shape, dim, fields)
    return [Labelled(shape, fields)]


@handles("MaskedSelect MaskedScatter Take Put NllLoss NllLoss2D")
def _anywhere(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Positions counted across all dimensions, or classes by their numbers."""
    return freeze_all(context, op, inputs, _reason(op))
