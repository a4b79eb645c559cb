"""Sums of products: matrix products, convolutions, attention, embeddings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cleanai.fields import IntArray, Labelled, Shape
from cleanai.rules.context import (
    Context,
    Inputs,
    Site,
    drop_dims,
    freeze_all,
    handles,
    insert_dim,
    known,
    note_groups,
    reduce,
    split_groups,
    unite_elementwise,
)
from cleanai.trace import Operation


def contract(context: Context, first: Labelled, second: Labelled, dims: Iterable[int], where: str) -> Labelled:
    """Two tensors of the same rank, broadcast against each other and summed over some dimensions."""
    shape = tuple(max(a, b) for a, b in zip(first.shape, second.shape, strict=True))
    fields = unite_elementwise(context, [first, second], shape, where)
    return reduce(context, Labelled(shape, fields), dims, keepdim=False)


def _matmul(context: Context, op: Operation, first: Labelled, second: Labelled) -> Labelled:
    """(…, m, k) @ (…, k, n) -> (…, m, n)."""
    mark_contracted(context, second, len(second.shape) - 2)
    mark_contracted(context, first, len(first.shape) - 1)
    _note_linear_site(context, op, first, second)
    rank = len(first.shape)
    for batch in range(rank - 2):
        for value in (first, second):
            if batch in value.fields:
                context.heads.append(value.fields[batch])
    return contract(context, insert_dim(first, rank), insert_dim(second, rank - 2), [rank - 1], op.where)


def mark_contracted(context: Context, value: Labelled, dim: int) -> None:
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


@handles("Mm Bmm")
def _mm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    first, second = inputs
    if first is None or second is None:
        return freeze_operand(context, op, inputs)
    return [_matmul(context, op, first, second)]


@handles("Addmm Baddbmm")
def _addmm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``beta * input + alpha * (first @ second)``, also batched (baddbmm)."""
    bias, first, second = inputs
    if first is None or second is None:
        return freeze_operand(context, op, inputs)
    product = _matmul(context, op, first, second)
    operands = [product] if bias is None else [product, bias]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


@handles("Mv Dot")
def _vector_product(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """mv and dot: as matrices with a dimension of size 1."""
    first, second = inputs
    if first is None or second is None:
        return freeze_operand(context, op, inputs)
    vector = len(first.shape) == 1
    left = insert_dim(first, 0) if vector else first
    product = _matmul(context, op, left, insert_dim(second, 1))
    return [drop_dims(product, (0, 1) if vector else (1,))]


def freeze_operand(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    for value in known(inputs):
        context.labels.freeze_value(value, f"{op.where} multiplies it with a constant")
    return [Labelled(shape) for shape in op.shapes]


@handles("Convolution ConvolutionOverrideable MkldnnConvolution CudnnConvolution")
def _convolution(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value, weight, bias = inputs
    if weight is None:
        return freeze_all(context, op, inputs, f"{op.where} has a weight that is not part of the graph")
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
    mark_contracted(context, weight, 0 if transposed else 1)
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
        parts = split_groups(labels, wide, groups)
        note_groups(context, "groups", groups, parts)
        fields = {axis: field for axis, field in parts.items() if axis == 0}
        if narrow.size > 1:
            fields[1] = narrow.reshape(1, -1)
        else:
            labels.freeze(narrow, "a dimension of size 1")
        merged = labels.merge(fields, (groups, narrow.size), 0)
        assert merged is not None
        return np.broadcast_to(merged, (groups, narrow.size)).ravel()
    inside = split_groups(labels, source, groups)
    note_groups(context, "groups", groups, inside)
    outside = split_groups(labels, wide, groups)
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


@handles(
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention "
    "ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention "
    "ScaledDotProductFusedAttentionOverrideable"
)
def _attention(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """softmax(query keyᵀ · scale) value, with shapes (…, heads, tokens, channels); fewer key heads are repeated."""
    query, key, value = inputs[:3]
    if query is None or key is None or value is None:
        return freeze_all(context, op, inputs, f"{op.where} has a constant operand")
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


@handles("Embedding")
def _embedding(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (weight,) = known(inputs)
    context.labels.freeze_value(weight, f"the vocabulary of {op.where}", [0])
    rank = len(op.shapes[0])
    fields = {}
    if 1 in weight.fields:
        fields[rank - 1] = weight.fields[1].reshape((1,) * (rank - 1) + (-1,))
    return [Labelled(op.shapes[0], fields)]
