"""Sums of products: matrix products, convolutions, attention, embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cleanai.fields import IntArray, Labelled, Shape, align
from cleanai.rules.context import (
    Context,
    Inputs,
    Site,
    drop_dims,
    freeze_all,
    handles,
    insert_dim,
    keep_apart,
    keep_whole,
    known,
    mark_contracted,
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


def _matmul(context: Context, op: Operation, first: Labelled, second: Labelled, also: Sequence[int] = ()) -> Labelled:
    """(…, m, k) @ (…, k, n) -> (…, m, n); ``also`` are batch dimensions that are summed over too."""
    mark_contracted(context, second, len(second.shape) - 2)
    mark_contracted(context, first, len(first.shape) - 1)
    _note_linear_site(context, op, first, second)
    rank = len(first.shape)
    for batch in range(rank - 2):
        for value in (first, second):
            if batch in value.fields:
                context.heads.append(value.fields[batch])
    return contract(context, insert_dim(first, rank), insert_dim(second, rank - 2), [*also, rank - 1], op.where)


def _note_linear_site(context: Context, op: Operation, first: Labelled, second: Labelled) -> None:
    if op.module and len(first.shape) == 2:
        for side, value in (("input", first), ("output", second)):
            labels = value.fields.get(1)
            if labels is not None and labels.size == value.shape[1]:
                context.sites.append(Site(op.module, side, labels.ravel()))


def _factors(first: Labelled | None, second: Labelled | None, shape: Shape) -> tuple[Labelled, Labelled]:
    """Both factors of a product of a shape; a constant one has the shape that follows from the other's."""
    if first is None:
        assert second is not None
        first = Labelled((*second.shape[:-2], shape[-2], second.shape[-2]))
    if second is None:
        second = Labelled((*first.shape[:-2], first.shape[-1], shape[-1]))
    return first, second


@handles("Mm Bmm")
def _mm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    return [_matmul(context, op, *_factors(inputs[0], inputs[1], op.shapes[0]))]


@handles("Addmm Baddbmm Addbmm")
def _addmm(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``beta * input + alpha * (first @ second)``, of batches one by one (baddbmm) or summed up (addbmm)."""
    bias, first, second = inputs
    product = Labelled(op.shapes[0])
    if first is not None or second is not None:
        also = [0] if op.kind == "Addbmm" else []
        product = _matmul(context, op, *_factors(first, second, op.shapes[0]), also)
    operands = [product] if bias is None else [product, bias]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


@handles("Mv Dot Vdot Addmv")
def _vector_product(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A product with a vector: as matrices with a dimension of size 1."""
    bias = inputs[0] if op.kind == "Addmv" else None
    first, second = inputs[-2:]
    shape = op.shapes[0]
    product = Labelled(shape)
    if first is not None or second is not None:
        rows = first if first is None or shape else insert_dim(first, 0)
        column = None if second is None else insert_dim(second, 1)
        product = _matmul(context, op, *_factors(rows, column, (*(shape or (1,)), 1)))
        product = drop_dims(product, (1,) if shape else (0, 1))
    operands = [product] if bias is None else [product, bias]
    return [Labelled(shape, unite_elementwise(context, operands, shape, op.where))]


def _given(op: Operation, inputs: Inputs, *names: str) -> list[Labelled]:
    """The operands of an operation; of those that are no part of the graph, autograd kept the shape."""
    return [
        value if value is not None else Labelled(op.saved_shape(name) or ())
        for value, name in zip(inputs, names, strict=True)
    ]


@handles("Addr")
def _outer_product(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """``beta * input + alpha * outer(first, second)``."""
    bias, first, second = _given(op, inputs, "self", "vec1", "vec2")
    operands = [bias, insert_dim(first, 1), second]
    return [Labelled(op.shapes[0], unite_elementwise(context, operands, op.shapes[0], op.where))]


@handles("Trilinear")
def _trilinear(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A product of three (nn.Bilinear), each seen with some more dimensions of size 1, summed over some."""
    operands = _given(op, inputs, "i1", "i2", "i3")
    for position in range(3):
        for dim in sorted(op.saved_ints(f"expand{position + 1}")):
            operands[position] = insert_dim(operands[position], dim)
    summed = op.saved_ints("sumdim")
    for operand in operands:
        for dim in summed:
            mark_contracted(context, operand, dim)
    full = tuple(max(sizes) for sizes in zip(*(operand.shape for operand in operands), strict=True))
    fields = unite_elementwise(context, operands, full, op.where)
    return [reduce(context, Labelled(full, fields), summed, keepdim=False)]


@handles("Cdist EuclideanDist")
def _distances(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Distances between the rows of two matrices (…, p, k) and (…, r, k): sums over what is kept of each row."""
    first, second = _given(op, inputs, "x1", "x2")
    rank = max(len(first.shape), len(second.shape))
    first, second = insert_dim(align(first, rank), rank - 1), insert_dim(align(second, rank), rank - 2)
    return [contract(context, first, second, [rank], op.where)]


@handles("Dist")
def _distance(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    operands = _given(op, inputs, "self", "other")
    shape = tuple(np.broadcast_shapes(*(value.shape for value in operands)))
    unite_elementwise(context, operands, shape, op.where)
    return [Labelled(())]


@handles("Pdist")
def _own_distances(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Distances between all pairs of rows: which pair stands where depends on how many there are."""
    (value,) = known(inputs)
    keep_whole(context, value, [0], f"{op.where} works on positions along it")
    return [Labelled(op.shapes[0])]


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
        if 1 in operand.fields and rank == 4:
            context.heads.append(operand.fields[1])
    if op.saved("is_causal"):
        for operand in (query, key, value):
            labels.freeze_value(operand, f"{op.where} works on positions along it", [rank - 2])
        query, key, value = (operand.without([rank - 2]) for operand in (query, key, value))
    if op.saved("scale") is None:
        for operand in (query, key):
            labels.freeze_value(operand, f"{op.where} scales by the size of it", [rank - 1])
    key, value = (_repeat_heads(operand, query.shape) for operand in (key, value))
    # Scores (…, queries, keys), over the keys a softmax of what is kept; then (…, queries, keys, channels).
    scores = contract(context, insert_dim(query, rank - 1), insert_dim(key, rank - 2), [rank], op.where)
    mask = inputs[3] if len(inputs) > 3 else None
    shape = op.saved_shape("attn_mask") or op.saved_shape("attn_bias")
    masks = [mask] if mask is not None else [] if shape is None else [Labelled(shape)]
    scores = Labelled(scores.shape, unite_elementwise(context, [scores, *masks], scores.shape, op.where))
    weights = Labelled(scores.shape, keep_apart(context, scores, [rank - 1]))
    mixed = contract(context, insert_dim(weights, rank), insert_dim(value, rank - 2), [rank - 1], op.where)
    return [mixed, *(Labelled(other) for other in op.shapes[1:])]


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


@handles("EmbeddingBag")
def _embedding_bag(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Sums, means or maxima of rows, possibly weighted; the vocabulary stays."""
    weight, *scales = inputs
    for scale in known(scales):
        context.labels.freeze_value(scale, f"{op.where} works on positions along it")
    fields = {}
    if weight is not None:
        fields = keep_whole(context, weight, [0], f"the vocabulary of {op.where}")
    return [Labelled(op.shapes[0], fields), *(Labelled(shape) for shape in op.shapes[1:])]
