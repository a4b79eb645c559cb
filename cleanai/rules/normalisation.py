"""Layers that normalise by statistics."""

from __future__ import annotations

import numpy as np

from cleanai.fields import IntArray, Labelled
from cleanai.rules.context import (
    Context,
    Inputs,
    handles,
    keep_apart,
    known,
    note_groups,
    saved_tensor,
    split_groups,
    unite_elementwise,
)
from cleanai.trace import Operation


def along_axis(value: Labelled, axis: int, rank: int) -> Labelled:
    """A 1-d tensor placed along one axis of a tensor of a given rank."""
    shape = (1,) * axis + value.shape + (1,) * (rank - axis - 1)
    return Labelled(shape, {axis: value.fields[0].reshape(shape)} if 0 in value.fields else {})


@handles(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeBatchNormLegit NativeBatchNormLegitNoTraining "
    "BatchNormWithUpdate BatchNormNoUpdate"
)
def _batch_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, *affine = inputs
    shape = op.shapes[0]
    value = value or Labelled(shape)
    vectors = [*known(affine[:2])]
    for name in ("running_mean", "running_var"):
        statistic = _running_statistic(context, op, name, value.fields.get(1))
        vectors += [] if statistic is None else [statistic]
    rank = len(shape)
    operands = [value, *(along_axis(v, 1, rank) for v in vectors)]
    return [Labelled(shape, unite_elementwise(context, operands, shape, op.where))]


def _running_statistic(context: Context, op: Operation, name: str, channels: IntArray | None) -> Labelled | None:
    """A statistic that was used: the model's own tensor, or (instance norm) that of its module for every sample."""
    saved = saved_tensor(op, name)
    if saved is None:
        return None
    shape = tuple(saved.shape)
    state = op.buffers.get(id(saved))
    if state is not None and state.tensor.dim() == 1:  # ids are used again: not a counter that is gone
        return context.label_state(state, shape)
    own = next((s for s in op.buffers.values() if s.name == f"{op.module}.{name}".lstrip(".")), None)
    width = 0 if channels is None else len(np.unique(channels))
    if own is None or not width or shape[0] % width:
        return Labelled(shape)
    return Labelled(shape, {0: np.tile(context.label_state(own, (width,)).fields[0], shape[0] // width)})


@handles("NativeLayerNorm FusedRmsNorm")
def _layer_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Statistics over the trailing dimensions: computed over what is kept of them."""
    value, *affine = inputs
    value = value or Labelled(op.shapes[0])
    rank, over = len(value.shape), len(op.saved("normalized_shape"))
    fields = keep_apart(context, value, range(rank - over, rank))
    operands = [Labelled(value.shape, fields), *known(affine)]
    return [Labelled(value.shape, unite_elementwise(context, operands, value.shape, op.where))]


@handles("WeightNormInterface")
def _weight_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``g * v / |v|``: a norm for each index of one dimension, over what is kept of the others."""
    value, scale = (value or Labelled(op.shapes[position]) for position, value in enumerate(inputs))
    dim = op.saved_int("dim") % len(value.shape)
    others = [axis for axis in range(len(value.shape)) if axis != dim]
    operands = [Labelled(value.shape, keep_apart(context, value, others)), scale]
    fields = unite_elementwise(context, operands, value.shape, op.where)
    return [Labelled(value.shape, fields), *(Labelled(shape) for shape in op.shapes[1:])]


@handles("NativeGroupNorm")
def _group_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, *affine = inputs
    value = value or Labelled(op.shapes[0])
    rank = len(value.shape)
    context.labels.freeze_value(value, f"{op.where} computes statistics over it", range(2, rank))
    value = value.without(range(2, rank))
    operands = [value, *(along_axis(v, 1, rank) for v in known(affine))]
    fields = unite_elementwise(context, operands, value.shape, op.where)
    if 1 in fields:
        fields[1] = context.labels.collapse_context(fields[1], 1)
        groups = op.saved("group")
        if groups > 1:
            parts = split_groups(context.labels, fields[1].ravel(), groups)
            note_groups(context, "group", groups, parts)
    return [Labelled(value.shape, fields)]
