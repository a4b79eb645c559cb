"""What a cut model must compute, by the labels: the shape and the numbers of every operation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cleanai.coupling import Coupling, LabelledTrace, couple_channels, link_classes
from cleanai.errors import PlanError
from cleanai.fields import IntArray, Labelled, Shape
from cleanai.trace import Operation, Trace

# Saved numbers that a smaller size may change; every other one must stay as it was.
_SIZE_NUMBERS = (
    "size",
    "stride",
    "shape",
    "group",
    "start",
    "end",
    "split",
    "numel",
    "_C",
    "_N",
    "_HxW",
    "max_",
    "offset",
)


@dataclass(frozen=True)
class Mismatch:
    """Where a tried cut went another way than predicted, and how many operations had gone well before that."""

    module: str
    message: str
    progress: int
    trace: int = 0
    other_path: bool = False


def alive_classes(coupling: Coupling, dropped: Mapping[int, Sequence[int] | IntArray]) -> np.ndarray:
    """Which label classes are left when some units of some groups ({group index: units}) go."""
    alive = np.ones(int(coupling.class_of.max(initial=0)) + 1, bool)
    for index, units in dropped.items():
        alive[coupling.groups[index].classes[np.asarray(units, dtype=np.int64)]] = False
    return alive


def predict_shape(coupling: Coupling, value: Labelled, alive: np.ndarray) -> Shape:
    """The shape of a labelled tensor after a cut; a cut that leaves it ragged is an error."""
    shape = list(value.shape)
    for axis, labels in value.fields.items():
        counts = alive[coupling.class_of[labels]].sum(axis=axis)
        if counts.size > 1 and counts.min() != counts.max():
            raise PlanError(
                f"the cut keeps between {counts.min()} and {counts.max()} channels of rows that must be equal"
            )
        shape[axis] = int(counts.flat[0])
    return tuple(shape)


def compare_traces(coupling: Coupling, labelled: LabelledTrace, trace: Trace, alive: np.ndarray) -> Mismatch | None:
    """The first operation of a cut model that is not what the labels predict."""
    mismatch = compare_in_step(coupling, labelled, trace, alive)
    if mismatch is None and trace.detached != labelled.trace.detached and not _sized_by_data(labelled.trace):
        changed = next(
            pair for pair in zip(trace.detached, labelled.trace.detached, strict=False) if pair[0] != pair[1]
        )
        message = f"an output that no gradient reaches has the shape {changed[0]}, {changed[1]} was expected"
        return Mismatch("", message, len(trace))
    if mismatch is None or not mismatch.other_path:
        return mismatch
    # A size of 1 may spare a copy, and a copy spared may choose another kernel: compare what it all amounts to.
    problem = _compare_coupling(coupling, labelled, trace, alive)
    return None if problem is None else replace(mismatch, message=f"{mismatch.message}; {problem}")


def compare_in_step(
    coupling: Coupling, labelled: LabelledTrace, trace: Trace, alive: np.ndarray, complete: bool = True
) -> Mismatch | None:
    """Operation by operation, where both models take the same path; ``complete`` unless the trace broke off."""
    expected = labelled.trace.operations
    loose = _sized_by_data(labelled.trace)
    used = {(value.operation, value.output) for op in expected for value in op.inputs if value is not None}
    used |= {(value.operation, value.output) for value in labelled.trace.outputs}
    for op, new in zip(expected, trace.operations, strict=False):
        if op.kind != new.kind or len(op.inputs) != len(new.inputs) or _owner(op) != _owner(new):
            message = f"{op.where}: the forward took another path ({new.where})"
            return Mismatch(op.module, message, op.index, other_path=True)
        problem = _compare_results(coupling, labelled, op, new, alive, used, op.index in loose)
        problem = problem or _compare_arguments(coupling, labelled, op, new, alive, by_data=bool(loose))
        if problem:
            return Mismatch(op.module, f"{op.where}: {problem}", op.index)
    if complete and len(expected) != len(trace.operations):
        message = f"the forward took another path ({len(trace.operations)} operations, not {len(expected)})"
        return Mismatch("", message, len(trace), other_path=True)
    return None


def _owner(op: Operation) -> str:
    """Whose operation it is: the module that ran it, or the tensor of a leaf."""
    return op.state.name if op.state is not None else op.module


# Operations whose saved numbers say what is computed, whichever kernels compute it.
_ARITHMETIC = (
    "Mul",
    "Div",
    "Pow",
    "Softmax",
    "ScaledDot",
    "NativeLayerNorm",
    "NativeBatchNorm",
    "NativeGroupNorm",
    "Clamp",
)


def _compare_coupling(coupling: Coupling, labelled: LabelledTrace, trace: Trace, alive: np.ndarray) -> str | None:
    """Whether the cut model couples what is left exactly as the original did, with the same numbers and outputs."""
    for value, new in zip(labelled.trace.outputs, trace.outputs, strict=False):
        predicted = predict_shape(coupling, labelled.values[value.operation][value.output], alive)
        if predicted != new.shape:
            return f"an output has the shape {new.shape}, {predicted} was expected"
    before, after = _list_numbers(labelled.trace), _list_numbers(trace)
    by_data = bool(_sized_by_data(labelled.trace))
    if by_data:  # how often it computes with them is up to the data
        before, after = sorted(set(before)), sorted(set(after))
    if len(labelled.trace.outputs) != len(trace.outputs) or before != after:
        return "it computes with other numbers"
    smaller = couple_channels(trace)
    original_class = link_classes(coupling.context, alive[coupling.class_of])
    later = link_classes(smaller.context)
    pairs = []
    for name, value in smaller.context.states.items():
        original = coupling.context.states.get(name)
        if original is None and by_data:
            continue
        if original is None:
            return f"it uses {name}, which it did not before"
        for axis, labels in value.fields.items():
            old = original.fields[axis].ravel()
            old = old[alive[coupling.class_of[old]]]
            if len(old) != labels.size:
                return f"{name} has {labels.size} indices in dimension {axis}, {len(old)} were expected"
            pairs.append(np.stack([original_class[old], later[labels.ravel()]]))
    linked = np.unique(np.concatenate(pairs, axis=1), axis=1) if pairs else np.zeros((2, 0), np.int64)
    same = len(np.unique(linked[1])) == linked.shape[1]  # nothing is connected now that was not before
    if not by_data:  # and nothing that was is not now, but for what is a size of 1 now and carries no labels
        lone = original_class[np.isin(coupling.class_of, _last_units(coupling, alive))]
        firm = linked[0][~np.isin(linked[0], lone)]
        same = same and len(np.unique(firm)) == len(firm)
    return None if same else "it connects other channels than before"


def _last_units(coupling: Coupling, alive: np.ndarray) -> IntArray:
    """The classes that are all that is left of their block."""
    found = [np.zeros(0, np.int64)]
    for group in coupling.groups:
        for block in group.blocks:
            left = group.classes[block][alive[group.classes[block]]]
            if len(left) == 1:
                found.append(left)
    return np.concatenate(found)


def _list_numbers(trace: Trace) -> list[str]:
    found = []
    for op in trace.operations:
        if op.kind.startswith(_ARITHMETIC):
            numbers = {k: v for k, v in op.numbers().items() if not any(part in k for part in _SIZE_NUMBERS)}
            found.append(f"{op.kind} {sorted(numbers.items(), key=str)}")
    return sorted(found)


def _sized_by_data(trace: Trace) -> set[int]:
    """The operations whose results may have other sizes with other values: a router sends them elsewhere."""
    found: set[int] = set()
    for op in trace.operations if trace.method == "real" else ():
        if op.kind in ("Index", "MaskedSelect") or any(v is not None and v.operation in found for v in op.inputs):
            found.add(op.index)
    return found


def _compare_results(
    coupling: Coupling,
    labelled: LabelledTrace,
    op: Operation,
    new: Operation,
    alive: np.ndarray,
    used: Collection[tuple[int, int]],
    loose: bool,
) -> str | None:
    """Whether the results have the predicted shapes, but for one that nothing uses; ``loose``: values decide sizes."""
    if op.state is not None or op.kind == "Input":
        return None
    for output, (value, shape) in enumerate(zip(labelled.values[op.index], new.shapes, strict=False)):
        if len(new.shapes) > 1 and (op.index, output) not in used:
            continue
        predicted = predict_shape(coupling, value, alive)
        if loose and len(shape) == len(predicted):
            pairs = enumerate(zip(predicted, shape, strict=True))
            predicted = tuple(ours if axis in value.fields else found for axis, (ours, found) in pairs)
        if predicted != shape and (value.fields or value.shape != shape):
            return f"its result has the shape {shape}, {predicted} was expected"
    return None


def _compare_arguments(
    coupling: Coupling, labelled: LabelledTrace, op: Operation, new: Operation, alive: np.ndarray, *, by_data: bool
) -> str | None:
    """Whether it was called with the same numbers, or those that follow; ``by_data``: it may pick another row."""
    if op.state is not None or op.kind == "Input":
        return None
    if op.kind == "Select" and by_data:
        return None
    if op.kind == "Slice":
        return _compare_slice(coupling, labelled, op, new, alive)
    counts = labelled.counts.get(op.index, [])
    for count in counts:
        wanted = count.value if count.labels is None else int(alive[coupling.class_of[count.labels]].sum())
        saved = new.saved(count.argument)
        number = saved if count.index is None else new.saved_ints(count.argument)[count.index]
        if number != wanted:
            return f"its argument {count.argument} is {number}, {wanted} was expected"
    return _compare_numbers(op, new, {f"_saved_{count.argument}" for count in counts})


def _compare_numbers(op: Operation, new: Operation, followed: Collection[str]) -> str | None:
    before, after = op.numbers(), new.numbers()
    for name, value in before.items():
        if name in followed or any(part in name for part in _SIZE_NUMBERS):
            continue
        if after.get(name) != value:
            return f"its argument {name.removeprefix('_saved_')} changed from {value} to {after.get(name)}"
    return None


def _compare_slice(
    coupling: Coupling, labelled: LabelledTrace, op: Operation, new: Operation, alive: np.ndarray
) -> str | None:
    source = op.inputs[0]
    if source is None:
        return None
    value = labelled.values[source.operation][source.output]
    dim = op.saved_int("dim") % len(value.shape)
    if dim not in value.fields or op.saved_int("step") != 1:
        return None
    counts = np.moveaxis(alive[coupling.class_of[value.fields[dim]]], dim, -1)
    row = counts.reshape(-1, counts.shape[-1])[0]
    size = len(row)
    start = op.saved_int("start") if op.saved("start") is not None else 0
    new_start = new.saved_int("start") if new.saved("start") is not None else 0
    start, new_start = start + (size if start < 0 else 0), new_start + (int(row.sum()) if new_start < 0 else 0)
    if new_start != int(row[:start].sum()):
        return f"it starts at {new_start}, {int(row[:start].sum())} was expected"
    return None
