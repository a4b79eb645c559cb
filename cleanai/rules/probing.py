"""Operations whose arguments autograd does not show: what they do is read off their vector-Jacobian products.

A product with positions instead of gradients tells which element went where; one with random gradients, scaled channel
by channel, proves (up to chance) that an unknown operation works on every channel by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cleanai.fields import IntArray, Labelled, Shape
from cleanai.rules.context import Context, Inputs, freeze_all, handles, unite_elementwise
from cleanai.trace import Operation

READ_FROM_VALUES = ("CopySlices",)
"""Operations whose rule needs a trace that was run for real."""


# ------------------------------------------------------------------------------------------------- reading positions


def _position_grid(shape: Shape, axis: int) -> Tensor:
    """Every element's index along an axis."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return torch.arange(shape[axis], dtype=torch.float32).reshape(sizes).expand(shape).contiguous()


def _pulled(op: Operation, gradients: Sequence[Tensor], which: int) -> np.ndarray | None:
    """What the node sends to one of its inputs; None where that has no values."""
    found = op.pull_back(gradients)
    result = found[which] if found is not None and which < len(found) else None
    if result is None or result.device.type == "meta":
        return None
    return result.detach().double().cpu().numpy()


def _varying(array: np.ndarray) -> tuple[int, ...]:
    """The dimensions along which an array is not constant."""
    return tuple(
        dim for dim in range(array.ndim) if array.shape[dim] > 1 and not (array == array.take([0], axis=dim)).all()
    )


def _read_positions(op: Operation, which: int, shape: Shape) -> list[tuple[int, IntArray] | None] | None:
    """For each axis of the result (of a shape): (axis of the input, positions), None where the input has no such axis.

    Weights (``alpha``, the other factor) cancel out against a product with ones. None altogether where it is irregular.
    """
    ones = _pulled(op, [torch.ones(shape)], which)
    if ones is None or not ones.all():
        return None
    found: list[tuple[int, IntArray] | None] = []
    for axis in range(len(shape)):
        sums = _pulled(op, [_position_grid(shape, axis)], which)
        if sums is None:
            return None
        means = np.round(sums / ones, 4)
        dims = _varying(means)
        if len(dims) > 1:
            return None
        if not dims:
            found.append(None)
            continue
        line = np.moveaxis(means, dims[0], 0).reshape(means.shape[dims[0]], -1)[:, 0]
        if (line != np.round(line)).any():
            return None
        found.append((dims[0], line.astype(np.int64)))
    return found


# ------------------------------------------------------------------------------------------------- writing to a part


@handles("CopySlices")
def _copy_slices(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A write to a part of a tensor (``x[:, :k] = y``, ``x[:, :k] += y``, ``x[0].mul_(2)``): the whole afterwards."""
    base, *sources = inputs
    shape = op.shapes[0]
    if len(op.inputs) > 1 and len(sources) == 1 and op.inputs[1] is not None:
        written = _written(context, op, base, sources[0], shape)
        if written is not None:
            return [Labelled(shape, written)]
    elif all(value is None for value in op.inputs[1:]) and base is not None:
        # Nothing else of the graph flows in: a constant is written, or every element is changed by itself. Where an
        # axis is written in part, which of its indices are goes by their place.
        ones = _pulled(op, [torch.ones(shape)], 0)
        in_part = _varying(ones) if ones is not None else range(len(shape))
        linked = {pair for pair in _prove_axes(op, 0, shape, shape) or () if pair[0] not in in_part}
        for axis, labels in base.fields.items():
            if (axis, axis) not in linked:
                context.labels.freeze(labels, f"{op.where} writes to a part of it")
        return [Labelled(shape, {axis: f for axis, f in base.fields.items() if (axis, axis) in linked})]
    return freeze_all(context, op, inputs, f"{op.where} writes to a part of it")


def _written(
    context: Context, op: Operation, base: Labelled | None, source: Labelled | None, shape: Shape
) -> dict[int, IntArray] | None:
    """The fields of the whole; what stood there before lives and dies with what is written over it."""
    places = _read_positions(op, 1, shape)
    if places is None:
        return None
    labels = context.labels
    written: dict[int, IntArray] = {}
    if source is not None:
        written = {axis: labels.collapse_context(f, axis).ravel() for axis, f in source.fields.items()}
    matched = {place[0] for place in places if place is not None}
    for axis in written.keys() - matched:
        labels.freeze(written[axis], f"{op.where} writes it to a single place")
    fields: dict[int, IntArray] = {}
    for axis, place in enumerate(places):
        old = base.fields.get(axis) if base is not None else None
        old = labels.collapse_context(old, axis).ravel() if old is not None else None
        new = written.get(place[0]) if place is not None else None
        if old is None and new is None:
            continue
        if place is not None:
            old = _write_over(context, op, old, new, place[1], shape[axis], constant=base is None)
        assert old is not None  # without a place there is nothing new
        fields[axis] = _spread(old, axis, len(shape))
    return fields


def _write_over(
    context: Context,
    op: Operation,
    old: IntArray | None,
    new: IntArray | None,
    positions: IntArray,
    size: int,
    *,
    constant: bool,
) -> IntArray:
    """One axis of a tensor after some of its positions were written to."""
    labels = context.labels
    if old is None or new is None:
        fixed = old if old is not None else new
        assert fixed is not None
        if old is not None or not constant:
            labels.freeze(fixed, f"{op.where} combines it with {context.partner}")
            return old if old is not None else labels.new((size,))
        # A new tensor that is being filled: as large as what is written to it makes it.
        old = labels.new((size,))
        context.unwritten.update(old.tolist())
    assert new is not None
    first, last = int(positions[0]), int(positions[-1]) + 1
    if not np.array_equal(positions, np.arange(first, last)):
        for each in (old, new):
            labels.freeze(each, f"{op.where} picks from it by position")
        return old
    labels.unite(old[first:last], new)
    if not context.unwritten.issuperset(old[first:last].tolist()):
        labels.cut(old, 0, (first, last))
    return old


def _spread(labels: IntArray, axis: int, rank: int) -> IntArray:
    """Flat labels as the field of one axis of a tensor of some rank."""
    return labels.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


@handles("CopyBackwards")
def _copy(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A tensor that is overwritten whole; a new one is as large as what is written to it."""
    known_inputs = [value for value in inputs if value is not None]
    return [Labelled(op.shapes[0], unite_elementwise(context, known_inputs, op.shapes[0], op.where))]


@handles("AsStrided")
def _as_strided(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A view described by strides, as autograd writes it where a tensor of which it is a part was written to."""
    value = inputs[0]
    assert value is not None
    shape, size = op.shapes[0], int(np.prod(op.shapes[0]))
    back = _pulled(op, [torch.arange(1, size + 1, dtype=torch.float64).reshape(shape)], 0)
    if back is None or back.shape != value.shape or np.count_nonzero(back) != size:
        return freeze_all(context, op, inputs, f"{op.where} reads memory directly")
    source = np.empty(size, np.int64)
    filled = np.flatnonzero(back)
    source[back.ravel()[filled].astype(np.int64) - 1] = filled
    # flat: for many indices in a shape that ends in ones, unravel_index of NumPy 2.4 gives wrong ones
    where = [places.reshape(shape) for places in np.unravel_index(source, value.shape)]
    fields: dict[int, IntArray] = {}
    for axis, labels in value.fields.items():
        labels = context.labels.collapse_context(labels, axis).ravel()
        dims = _varying(where[axis])
        if len(dims) != 1:
            context.labels.freeze(labels, f"{op.where} picks from it by position")
            continue
        line = np.moveaxis(where[axis], dims[0], 0).reshape(shape[dims[0]], -1)[:, 0]
        if not np.array_equal(line, np.arange(line[0], line[-1] + 1)):
            context.labels.freeze(labels, f"{op.where} picks from it by position")
            continue
        if len(line) < value.shape[axis]:
            context.labels.cut(labels, 0, (int(line[0]), int(line[-1]) + 1))
        fields[dims[0]] = _spread(labels[line], dims[0], len(shape))
    return [Labelled(shape, fields)]


# ------------------------------------------------------------------------------------------------- proving channels


def _prove_axes(
    op: Operation, which: int, shape: Shape, input_shape: Shape, output: int = 0
) -> set[tuple[int, int]] | None:
    """The pairs (axis of an output, axis of an input) along which the operation works on every index by itself.

    None where the output does not depend on that input.
    Its vector-Jacobian product must commute with a random scaling of the indices: a linear map that does is diagonal
    along that axis.
    """
    generator = torch.Generator().manual_seed(op.index)
    device = getattr(op.saved("self"), "device", None) or "cpu"
    gradients = [torch.randn(s, generator=generator) for s in op.shapes]
    zeros = [g if index == output else torch.zeros_like(g) for index, g in enumerate(gradients)]
    plain = _pulled(op, [g.to(device) for g in zeros], which)
    if plain is None or plain.shape != input_shape:
        return set()
    if not plain.any():
        return None
    pairs = set()
    for axis, size in enumerate(shape):
        candidates = [dim for dim, other in enumerate(input_shape) if other == size > 1]
        if not candidates:
            continue
        scale = torch.rand(size, generator=generator) + 0.5
        scaled = list(zeros)
        scaled[output] = scaled[output] * _along(scale, axis, len(shape))
        product = _pulled(op, [g.to(device) for g in scaled], which)
        for dim in candidates:
            expected = plain * _along(scale, dim, len(input_shape)).double().numpy()
            if product is not None and np.allclose(product, expected, rtol=1e-4, atol=1e-5 * np.abs(plain).max()):
                pairs.add((axis, dim))
    return pairs


def _along(vector: Tensor, axis: int, rank: int) -> Tensor:
    return vector.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


def probe_channels(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """An operation without a rule: the axes along which it seems to work index by index; the rest is frozen.

    A gradient may be other than the operation's own (a straight-through estimator), so what it shows is noted as
    ``unproven``: analysis then proves a cut of it before it offers one.
    """
    labels = context.labels
    outputs = [Labelled(shape) for shape in op.shapes]
    fields_of = [value.fields if value is not None else {} for value in inputs]
    mixed: set[tuple[int, int]] = set()
    reached: set[int] = set()
    for output, shape in enumerate(op.shapes):
        linked: dict[int, list[tuple[int, int]]] = {}
        for which, source in enumerate(op.inputs):
            if source is None or inputs[which] is None:
                continue
            pairs = _prove_axes(op, which, shape, source.shape, output)
            if pairs is None:
                continue
            reached.add(which)
            mixed.update((which, axis) for axis in fields_of[which] if axis not in {dim for _, dim in pairs})
            for axis, dim in pairs:
                linked.setdefault(axis, []).append((which, dim))
        for axis, ends in linked.items():
            flat = [
                labels.collapse_context(fields_of[which][dim], dim).ravel()
                for which, dim in ends
                if dim in fields_of[which]
            ]
            for other in flat[1:]:
                labels.unite(other, flat[0])
            if flat and len(flat) < len(ends):
                labels.freeze(flat[0], f"{op.where} combines it with {context.partner}")
            elif flat:
                context.unproven.append((flat[0], op.where))
                outputs[output].fields[axis] = _spread(flat[0], axis, len(shape))
    mixed.update((which, axis) for which, fields in enumerate(fields_of) if which not in reached for axis in fields)
    for which, axis in mixed:
        labels.freeze_value(inputs[which], f"no rule for the operation {op.where}", [axis])
    return outputs
