"""Label fields: which indices of a tensor live or die together, carried through shape operations.

Every index of every parameter dimension gets an integer label. A tensor carries at most one *field* per dimension
(axis): an integer array broadcastable to the tensor's shape, of full size along its axis. Index ``j`` of the axis
exists as long as its label does. Where the field also varies along other dimensions (its *context*), the choice may
differ from row to row, but every row must keep the same number: tensors stay rectangular.

A dimension without a field cannot be pruned. Shape operations transform fields with the same shape operation that they
apply to the data, so labels *are* the index map. Operations that need two indices to live or die together record a
union.

When one dimension is split into several (heads x head dimension), each new axis gets labels of its own, tied to the
old ones by a `Relation`: an old index exists as long as all of its new labels do. Merging is the same, backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Labelled:
    """The shape of a tensor and its fields: {axis: labels}.

    ``is_weight`` if it depends on parameters alone, ``is_input`` if on the model's inputs alone.
    """

    shape: Shape
    fields: dict[int, IntArray] = field(default_factory=dict)
    is_weight: bool = False
    is_input: bool = False

    def without(self, axes: Iterable[int]) -> Labelled:
        """The same tensor with the fields of some axes dropped."""
        gone = set(axes)
        return Labelled(self.shape, {axis: labels for axis, labels in self.fields.items() if axis not in gone})


@dataclass(frozen=True)
class Relation:
    """``flat`` exists where all ``levels`` do: one dimension of size n seen as several.

    ``flat`` has shape (context…, n1, …, nk); ``levels[j]`` labels axis j and is broadcastable to ``flat``, varying only
    over the context and the axes up to its own. ``operation`` is the index of the operation that showed it.
    """

    flat: IntArray
    levels: tuple[IntArray, ...]
    operation: int


@dataclass(frozen=True)
class Cut:
    """A dimension cut at fixed places: its pieces shrink in proportion. ``rows[i]`` is the piece of ``labels[i]``."""

    labels: IntArray
    rows: IntArray
    operation: int


class Labels:
    """The unions, freezes, relations and cuts found so far; hands out fresh labels."""

    def __init__(self) -> None:
        self.count = 1
        self.operation = 0
        self.unions: list[tuple[IntArray, IntArray]] = []
        self.freezes: list[tuple[IntArray, str]] = []
        self.relations: list[Relation] = []
        self.cuts: dict[tuple[Any, ...], tuple[IntArray, set[int], int]] = {}
        self._splits: dict[tuple[Any, ...], tuple[IntArray, ...]] = {}
        self._merges: dict[tuple[Any, ...], IntArray] = {}

    def new(self, shape: Shape) -> IntArray:
        """Fresh labels."""
        size = int(np.prod(shape, dtype=np.int64))
        labels = np.arange(self.count, self.count + size, dtype=np.int64).reshape(shape)
        self.count += size
        return labels

    def unite(self, first: IntArray, second: IntArray) -> None:
        """First and second, broadcast against each other, live or die together."""
        if first is second:
            return
        if first.shape != second.shape:
            first, second = np.broadcast_arrays(first, second)
        self.unions.append((first.ravel(), second.ravel()))

    def freeze(self, labels: IntArray, reason: str) -> None:
        """These labels are never removed, and why."""
        self.freezes.append((labels.ravel(), reason))

    def freeze_value(self, value: Labelled | None, reason: str, axes: Iterable[int] | None = None) -> None:
        """Freezes all fields of a tensor, or those of some axes."""
        if value is None:
            return
        for axis in value.fields if axes is None else axes:
            if axis in value.fields:
                self.freeze(value.fields[axis], reason)

    def collapse(self, labels: IntArray, dim: int) -> IntArray:
        """Unites labels along a dimension, which then has size 1."""
        if labels.shape[dim] == 1:
            return labels
        head = labels.take([0], axis=dim)
        self.unite(labels, head)
        return head

    def collapse_context(self, labels: IntArray, axis: int, keep: Iterable[int] = ()) -> IntArray:
        """Unites labels over every dimension but the axis and those in ``keep``."""
        for dim in range(labels.ndim):
            if dim != axis and dim not in keep:
                labels = self.collapse(labels, dim)
        return labels

    def cut(self, labels: IntArray, axis: int, boundaries: Iterable[int]) -> None:
        """Notes that code cuts this dimension at some boundaries."""
        key = (labels.tobytes(), labels.shape, axis)
        known = self.cuts.setdefault(key, (np.moveaxis(labels, axis, -1), set(), self.operation))
        known[1].update(b for b in boundaries if 0 < b < labels.shape[axis])

    def list_cuts(self) -> list[Cut]:
        """Every dimension that is cut, with the piece each label is in."""
        cuts = []
        for labels, boundaries, operation in self.cuts.values():
            if boundaries:
                rows = np.searchsorted(np.array(sorted(boundaries)), np.arange(labels.shape[-1]), side="right")
                cuts.append(Cut(labels, np.broadcast_to(rows, labels.shape), operation))
        return cuts

    # ------------------------------------------------------------------ shape operations

    def split(self, flat: IntArray, context: int) -> dict[int, IntArray]:
        """Fields for a dimension seen as several.

        ``flat`` has ``context`` leading context dimensions; the rest are the new axes. Returns {axis: labels}, with
        axes counted in ``flat``. Axes along which the labels do not vary get none.
        """
        flat = _compress(flat, range(context, flat.ndim))
        axes = [axis for axis in range(context, flat.ndim) if flat.shape[axis] > 1]
        if len(axes) <= 1:
            return {axes[0]: flat} if axes else {}
        key = (flat.tobytes(), flat.shape, context)
        if key not in self._splits:
            levels = []
            for axis in axes:
                level = self.new(flat.shape[: axis + 1])
                levels.append(level.reshape(level.shape + (1,) * (flat.ndim - level.ndim)))
            self._relate(flat, tuple(levels), context)
        return dict(zip(axes, self._splits[key], strict=True))

    def merge(self, fields: dict[int, IntArray], sizes: Shape, context: int) -> IntArray | None:
        """The field of several neighbouring dimensions seen as one, as an array over (context…, axes…), or None.

        ``fields`` has labels for some of the axes, all of rank ``context + len(sizes)``.
        """
        levels = {}
        for axis, labels in sorted(fields.items()):
            for later in range(axis + 1, context + len(sizes)):
                labels = self.collapse(labels, later)
            levels[axis] = labels
        if not levels:
            return None
        if len(levels) == 1:
            return next(iter(levels.values()))
        key = (tuple((axis, labels.tobytes(), labels.shape) for axis, labels in levels.items()), context)
        if key not in self._merges:
            shape = np.broadcast_shapes(*(labels.shape for labels in levels.values()))
            flat = self.new(shape)
            self._relate(flat, tuple(levels.values()), context)
            self._merges[key] = flat
        return self._merges[key]

    def _relate(self, flat: IntArray, levels: tuple[IntArray, ...], context: int) -> None:
        self.relations.append(Relation(flat, levels, self.operation))
        self._splits[(flat.tobytes(), flat.shape, context)] = levels
        axes = [axis for axis in range(context, flat.ndim) if flat.shape[axis] > 1]
        key = tuple((axis, labels.tobytes(), labels.shape) for axis, labels in zip(axes, levels, strict=True))
        self._merges[(key, context)] = flat

    def reshape(self, value: Labelled, shape: Shape) -> Labelled:
        """The fields after a reshape: merged over the dimensions it merges, split over those it splits."""
        if not value.fields or value.shape == shape:
            return Labelled(shape, dict(value.fields) if value.shape == shape else {})
        blocks = _matching_blocks(value.shape, shape)
        fields: dict[int, IntArray] = {}
        handled: set[int] = set()
        for old, new in blocks:
            inside = {axis: value.fields[axis] for axis in old if axis in value.fields}
            handled.update(inside)
            if not inside:
                continue
            fields.update(self._reshape_block(inside, value.shape, shape, blocks, old, new))
        for axis, labels in value.fields.items():
            if axis not in handled:  # an axis of size 1: it can vanish or move freely, so it must stay
                self.freeze(labels, "a dimension of size 1")
        return Labelled(shape, fields)

    def _reshape_block(
        self,
        inside: dict[int, IntArray],
        old_shape: Shape,
        new_shape: Shape,
        blocks: Sequence[tuple[list[int], list[int]]],
        old: list[int],
        new: list[int],
    ) -> dict[int, IntArray]:
        if len(old) == len(new) == 1:
            labels = inside[old[0]]
            return {new[0]: _reshape_context(labels, old_shape, new_shape, blocks, old)}
        # Context dimensions of the other blocks first, this block's dimensions last.
        moved = {}
        others = [dim for dim in range(len(old_shape)) if dim not in old]
        for position, axis in enumerate(old):
            if axis in inside:
                moved[len(others) + position] = inside[axis].transpose(others + old)
        sizes = tuple(old_shape[dim] for dim in old)
        merged = self.merge(moved, sizes, len(others)) if len(old) > 1 else next(iter(moved.values()))
        if merged is None:
            return {}
        full = np.broadcast_to(merged, merged.shape[: len(others)] + sizes)
        target = merged.shape[: len(others)] + tuple(new_shape[dim] for dim in new)
        pieces = self.split(np.ascontiguousarray(full).reshape(target), len(others))
        fields = {}
        for axis, labels in pieces.items():
            # Back to the order of the new tensor: one old context dimension at a time is reshaped with its own block.
            fields[new[axis - len(others)]] = _place(labels, others, old_shape, new_shape, blocks, old, new)
        return fields


def permute(value: Labelled, dims: Sequence[int]) -> Labelled:
    """The fields after ``permute(dims)``."""
    order = [dim % len(value.shape) for dim in dims]
    where = {dim: position for position, dim in enumerate(order)}
    fields = {where[axis]: labels.transpose(order) for axis, labels in value.fields.items()}
    return Labelled(tuple(value.shape[dim] for dim in order), fields)


def align(value: Labelled, rank: int) -> Labelled:
    """The same tensor with leading dimensions of size 1 up to a rank, as broadcasting adds them."""
    extra = rank - len(value.shape)
    if extra <= 0:
        return value
    fields = {axis + extra: labels.reshape((1,) * extra + labels.shape) for axis, labels in value.fields.items()}
    return Labelled((1,) * extra + value.shape, fields)


def take_along(value: Labelled, dim: int, indices: Any) -> dict[int, IntArray]:
    """Every field with some indices of a dimension picked (a slice, an array, or an integer that drops it)."""
    picked = {}
    for axis, labels in value.fields.items():
        if labels.shape[dim] == 1 and axis != dim:
            picked[axis] = labels[(slice(None),) * dim + (0,)] if isinstance(indices, int) else labels
        else:
            picked[axis] = labels[(slice(None),) * dim + (indices,)]
    return {axis: labels for axis, labels in picked.items() if labels.size}


def _compress(labels: IntArray, dims: Iterable[int]) -> IntArray:
    """Size 1 along each dimension over which the labels do not vary."""
    for dim in dims:
        if labels.shape[dim] > 1:
            head = labels.take([0], axis=dim)
            if (labels == head).all():
                labels = head
    return labels


def _matching_blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new dimensions with the same number of elements, dimensions of size 1 left out."""
    left = [dim for dim, size in enumerate(old) if size != 1]
    right = [dim for dim, size in enumerate(new) if size != 1]
    blocks = []
    i = j = 0
    while i < len(left) and j < len(right):
        block = ([left[i]], [right[j]])
        a, b = old[left[i]], new[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                block[0].append(left[i])
                a *= old[left[i]]
                i += 1
            else:
                block[1].append(right[j])
                b *= new[right[j]]
                j += 1
        blocks.append(block)
    return blocks


def _reshape_context(
    labels: IntArray, old_shape: Shape, new_shape: Shape, blocks: Sequence[tuple[list[int], list[int]]], own: list[int]
) -> IntArray:
    """A field whose own axis keeps its size, in the new shape: only its context dimensions are regrouped."""
    full = list(labels.shape)
    target = [1] * len(new_shape)
    for old, new in blocks:
        if any(labels.shape[dim] > 1 for dim in old):
            for dim in old:
                full[dim] = old_shape[dim]
            for dim in new:
                target[dim] = new_shape[dim]
    moved = np.ascontiguousarray(np.broadcast_to(labels, full)).reshape(target)
    own_new = next(new for old, new in blocks if old == own)
    return _compress(moved, [dim for dim in range(len(target)) if dim not in own_new])


def _place(
    labels: IntArray,
    others: list[int],
    old_shape: Shape,
    new_shape: Shape,
    blocks: Sequence[tuple[list[int], list[int]]],
    old: list[int],
    new: list[int],
) -> IntArray:
    """Labels over (other old dimensions…, this block's new dimensions…) in the layout of the new tensor."""
    # Put this block's new dimensions where its old ones were, then regroup the other blocks around them.
    first = min(old)
    before = [dim for dim in others if dim < first]
    after = [dim for dim in others if dim > first]
    arranged = labels.transpose(
        [others.index(dim) for dim in before]
        + list(range(len(others), labels.ndim))
        + [others.index(dim) for dim in after]
    )
    middle_shape = (
        tuple(old_shape[dim] for dim in before) + tuple(new_shape[d] for d in new) + tuple(old_shape[d] for d in after)
    )
    position = {dim: index for index, dim in enumerate(before)}
    position.update({dim: len(before) + len(new) + index for index, dim in enumerate(after)})
    own = [len(before) + index for index in range(len(new))]
    full = list(arranged.shape)
    target = [1] * len(new_shape)
    for block_old, block_new in blocks:
        dims = own if block_old == old else [position[dim] for dim in block_old]
        if any(arranged.shape[dim] > 1 for dim in dims):
            if block_old != old:
                for dim in dims:
                    full[dim] = middle_shape[dim]
                for dim in block_new:
                    target[dim] = new_shape[dim]
            else:
                for dim, new_dim in zip(dims, block_new, strict=True):
                    target[new_dim] = arranged.shape[dim]
    moved = np.ascontiguousarray(np.broadcast_to(arranged, full)).reshape(target)
    return _compress(moved, [dim for dim in range(len(target)) if dim not in new])
