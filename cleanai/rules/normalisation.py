"""Layers that normalise by statistics."""

from __future__ import annotations

from cleanai.fields import Labelled
from cleanai.rules.context import (
    Context,
    Inputs,
    handles,
    known,
    note_groups,
    split_groups,
    unite_elementwise,
)
from cleanai.trace import Operation


def along_axis(value: Labelled, axis: int, rank: int) -> Labelled:
    """A 1-d tensor placed along one axis of a tensor of a given rank."""
    shape = (1,) * axis + value.shape + (1,) * (rank - axis - 1)
    return Labelled(shape, {axis: value.fields[0].reshape(shape)} if 0 in value.fields else {})


@handles("NativeBatchNorm CudnnBatchNorm MiopenBatchNorm")
def _batch_norm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, *affine = inputs
    channels = op.shapes[0][1:2]
    states = [op.saved_state(name) for name in ("running_mean", "running_var")]
    vectors = [*known(affine), *(context.label_state(state, channels) for state in states if state is not None)]
    rank = len(op.shapes[0])
    operands = [value or Labelled(op.shapes[0]), *(along_axis(v, 1, rank) for v in vectors)]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


@handles("NativeLayerNorm FusedRmsNorm")
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
    operands = [Labelled(value.shape, fields), *known(affine)]
    return [Labelled(value.shape, unite_elementwise(context, operands, value.shape, op.where))]


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
