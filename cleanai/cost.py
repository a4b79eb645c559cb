"""What a cut saves, predicted from the trace without building the smaller model: parameters, multiply-accumulates."""

from __future__ import annotations

from math import prod

import numpy as np

from cleanai.coupling import Coupling, LabelledTrace
from cleanai.fields import IntArray, Labelled, Shape
from cleanai.isolation import StateTensor
from cleanai.select import is_within
from cleanai.trace import Operation

_MATMULS = {
    "Mm": ((0, "self"), (1, "mat2")),
    "Bmm": ((0, "self"), (1, "mat2")),
    "Addmm": ((1, "mat1"), (2, "mat2")),
    "Baddbmm": ((1, "batch1"), (2, "batch2")),
}
"""The factors of a matrix product: their places among the operands, and autograd's names for them."""


class CostModel:
    """Parameters, MACs and channels of a traced model as functions of what is left of it.

    MACs follow torch's own counter: convolutions, matrix products and attention, for the batch of the example inputs.
    Layers that the trace takes as one operation (LSTM, GRU, RNN) multiply each position by each of their matrices.
    """

    def __init__(self, coupling: Coupling, parameters: list[StateTensor]) -> None:
        self._coupling = coupling
        states = coupling.context.states
        self._labelled = [states[p.name] for p in parameters if p.name in states]
        self._fixed = sum(p.tensor.numel() for p in parameters if p.name not in states)
        self._products = _list_products(coupling.traces[0])

    def _size(self, value: Labelled, alive: np.ndarray) -> Shape:
        shape = list(value.shape)
        for axis, labels in value.fields.items():
            own: IntArray = labels[(0,) * axis + (slice(None),) + (0,) * (labels.ndim - axis - 1)]
            shape[axis] = int(alive[self._coupling.class_of[own]].sum())
        return tuple(shape)

    def count_parameters(self, alive: np.ndarray) -> int:
        """Parameters left, given which label classes are (`cleanai.prediction.alive_classes`)."""
        return self._fixed + sum(prod(self._size(value, alive)) for value in self._labelled)

    def count_macs(self, alive: np.ndarray, module: str = "") -> int:
        """Multiply-accumulates left in a module and its parts."""
        total = 0
        for path, kind, first, second, output in self._products:
            if not is_within(path, module):
                continue
            a, b = self._size(first, alive), self._size(second, alive)
            if kind == "matmul":
                total += prod(a) * b[-1]
            elif kind == "convolution":
                total += prod(self._size(output, alive)) * prod(b[1:])
            elif kind == "transposed":
                total += prod(a) * prod(b[1:])
            elif kind == "whole layer":  # every position by every entry of the matrix
                total += prod(a[:-1]) * prod(b)
            else:  # attention: scores and mixture
                total += prod(self._size(output, alive)) * b[-2] + prod(a) * b[-2]
        return total


def _list_products(labelled: LabelledTrace) -> list[tuple[str, str, Labelled, Labelled, Labelled]]:
    products = []
    for op in labelled.trace.operations:
        operands = [None if v is None else labelled.values[v.operation][v.output] for v in op.inputs]
        products += [(op.module, *found, labelled.values[op.index][0]) for found in _products(op, operands)]
    return products


def _products(op: Operation, operands: list[Labelled | None]) -> list[tuple[str, Labelled, Labelled]]:
    if op.layer is None:
        found = _product(op, operands)
        return [] if found is None else [found]
    arguments, own = operands[: len(op.layer.shapes)], operands[len(op.layer.shapes) :]
    source = arguments[0] if arguments else None
    source = Labelled(op.layer.shapes[0]) if source is None and op.layer.shapes else source
    matrices = [value for value in own if value is not None and len(value.shape) == 2]
    return [] if source is None else [("whole layer", source, matrix) for matrix in matrices]


def _product(op: Operation, operands: list[Labelled | None]) -> tuple[str, Labelled, Labelled] | None:
    if op.kind in _MATMULS:
        # What no gradient reaches (a one-hot code) has no labels, and the shape that was saved for the backward pass.
        first, second = (operands[place] or _unlabelled(op, name) for place, name in _MATMULS[op.kind])
        return ("matmul", first, second) if first is not None and second is not None else None
    if op.kind == "Convolution" and operands[1] is not None:
        source = operands[0] or Labelled(op.saved_shape("input") or ())
        return ("transposed" if op.saved("transposed") else "convolution", source, operands[1])
    if op.kind.startswith("ScaledDotProduct") and operands[0] is not None and operands[1] is not None:
        return ("attention", operands[0], operands[1])
    return None


def _unlabelled(op: Operation, name: str) -> Labelled | None:
    shape = op.saved_shape(name)
    return None if shape is None else Labelled(shape)
