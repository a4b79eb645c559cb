"""Picking by position: indices given as tensors."""

from __future__ import annotations

from torch import Tensor

from cleanai.fields import Labelled
from cleanai.rules.context import (
    Context,
    Inputs,
    freeze_all,
    handles,
    known,
)
from cleanai.trace import Operation


@handles("Index")
def _index(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``x[indices]`` with tensors in the leading places, or in one run of neighbouring dimensions."""
    (value,) = known(inputs)
    indices = op.saved("indices") or ()
    dims = [dim for dim, index in enumerate(indices) if isinstance(index, Tensor)]
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return freeze_all(context, op, inputs, f"{op.where} picks from it by position")
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


@handles("IndexSelect")
def _index_select(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} picks from it by position", [dim])
    fields = {a: context.labels.collapse(f, dim) for a, f in value.fields.items() if a != dim}
    return [Labelled(op.shapes[0], fields)]
