"""A cut tried before it is made: which sizes the forward keeps in attributes, and what it cannot follow.

A model's forward may compute with sizes it stores (``self.num_heads``) or with literal numbers. Autograd does not say
which, so the cut is tried on a stand-in without data: every operation must come out in the shape that the labels
predict, with the same numbers as before. Where it does not, the attributes that hold an old size are made to follow;
where that does not help either, the channels concerned are frozen and named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from cleanai.coupling import Coupling, LabelledTrace, couple_channels, link_classes, solve_coupling
from cleanai.errors import PlanError
from cleanai.fields import IntArray, Labelled, Shape
from cleanai.layers import group_attributes
from cleanai.plan import AttributeChange, GroupCut, Plan, TensorCut
from cleanai.slicing import slice_model
from cleanai.trace import ForwardFailed, ForwardFunction, Operation, Trace, trace_model

_MOST_HYPOTHESES = 40
_MOST_ROUNDS = 400
# Saved numbers that a smaller size may change; every other one must stay as it was.
_SIZE_NUMBERS = ("size", "stride", "shape", "group", "start", "end", "split", "numel", "_C", "_N", "_HxW", "max_")


@dataclass(frozen=True)
class AttributeRule:
    """An attribute that must follow a size: its value is the number of ``labels`` still alive."""

    module: str
    attribute: str
    index: int | None
    old: int
    labels: IntArray = field(repr=False)


@dataclass(frozen=True)
class Mismatch:
    """Where a tried cut went another way than predicted."""

    module: str
    message: str
    operation: int | None = None
    trace: int = 0
    other_path: bool = False


def alive_classes(coupling: Coupling, dropped: Mapping[int, Sequence[int] | IntArray]) -> np.ndarray:
    """Which label classes are left when some units of some groups ({group index: units}) go."""
    alive = np.ones(int(coupling.class_of.max(initial=0)) + 1, bool)
    for index, units in dropped.items():
        alive[coupling.groups[index].classes[np.asarray(units, dtype=np.int64)]] = False
    return alive


def make_plan(
    coupling: Coupling,
    dropped: Mapping[int, Sequence[int] | IntArray],
    rules: Sequence[AttributeRule] = (),
    records: Mapping[int, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that removes some units of some groups ({group index: unit indices}).

    ``records`` adds fields to the record of a group (scores, asked_ratio, note).
    """
    cuts: dict[tuple[str, int], list[IntArray]] = {}
    roles: dict[tuple[str, int], tuple[int, str]] = {}
    group_cuts = []
    for group in coupling.groups:
        units = np.unique(np.asarray(dropped.get(group.index, ()), dtype=np.int64))
        extra = dict((records or {}).get(group.index, {}))
        group_cuts.append(GroupCut(group.name, group.kind, group.size, tuple(units.tolist()), group.width, **extra))
        if not len(units):
            continue
        gone = np.zeros(group.size, bool)
        gone[units] = True
        for member in group.members:
            key = (member.parameter, member.dim)
            cuts.setdefault(key, []).append(member.positions[gone[member.units]])
            roles[key] = (member.size, member.role)
    alive = alive_classes(coupling, dropped)
    attributes = []
    for rule in rules:
        new = int(alive[coupling.class_of[rule.labels]].sum())
        if new != rule.old:
            attributes.append(AttributeChange(rule.module, rule.attribute, rule.index, rule.old, new))
    # The members of a group mostly lose the same indices: they then share one tuple.
    shared: dict[bytes, tuple[int, ...]] = {}

    def indices(pieces: Sequence[IntArray]) -> tuple[int, ...]:
        positions = np.sort(np.concatenate(pieces))
        key = positions.tobytes()
        if key not in shared:
            shared[key] = tuple(positions.tolist())
        return shared[key]

    return Plan(
        cuts=tuple(
            TensorCut(name, dim, roles[name, dim][0], indices(pieces), roles[name, dim][1])
            for (name, dim), pieces in cuts.items()
        ),
        groups=tuple(group_cuts),
        attributes=tuple(attributes),
        settings=settings or {},
    )


# ------------------------------------------------------------------------------------------------------- predicting


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


def _compare_traces(coupling: Coupling, labelled: LabelledTrace, trace: Trace, alive: np.ndarray) -> Mismatch | None:
    """The first operation of a cut model that is not what the labels predict."""
    mismatch = _compare_in_step(coupling, labelled, trace, alive)
    if mismatch is None or not mismatch.other_path:
        return mismatch
    # A size of 1 may spare a copy, and a copy spared may choose another kernel: compare what it all amounts to.
    problem = _compare_coupling(coupling, labelled, trace, alive)
    return None if problem is None else Mismatch(mismatch.module, f"{mismatch.message}; {problem}", mismatch.operation)


def _compare_in_step(
    coupling: Coupling, labelled: LabelledTrace, trace: Trace, alive: np.ndarray, complete: bool = True
) -> Mismatch | None:
    """Operation by operation, where both models take the same path; ``complete`` unless the trace broke off."""
    expected = labelled.trace.operations
    for op, new in zip(expected, trace.operations, strict=False):
        if op.kind != new.kind or len(op.inputs) != len(new.inputs):
            message = f"{op.where}: the forward took another path ({new.kind})"
            return Mismatch(op.module, message, op.index, other_path=True)
        problem = _compare_operation(coupling, labelled, op, new, alive)
        if problem:
            return Mismatch(op.module, f"{op.where}: {problem}", op.index)
    if complete and len(expected) != len(trace.operations):
        message = f"the forward took another path ({len(trace.operations)} operations, not {len(expected)})"
        return Mismatch("", message, other_path=True)
    return None


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
    if len(labelled.trace.outputs) != len(trace.outputs) or _list_numbers(labelled.trace) != _list_numbers(trace):
        return "it computes with other numbers"
    after = couple_channels(trace)
    before = link_classes(coupling.context)
    later = link_classes(after.context)
    pairs = []
    for name, value in after.context.states.items():
        original = coupling.context.states.get(name)
        if original is None:
            return f"it uses {name}, which it did not before"
        for axis, labels in value.fields.items():
            old = original.fields[axis].ravel()
            old = old[alive[coupling.class_of[old]]]
            if len(old) != labels.size:
                return f"{name} has {labels.size} indices in dimension {axis}, {len(old)} were expected"
            pairs.append(np.stack([before[old], later[labels.ravel()]]))
    linked = np.unique(np.concatenate(pairs, axis=1), axis=1) if pairs else np.zeros((2, 0), np.int64)
    one_to_one = len(np.unique(linked[0])) == len(np.unique(linked[1])) == linked.shape[1]
    return None if one_to_one else "it connects other channels than before"


def _list_numbers(trace: Trace) -> list[str]:
    found = []
    for op in trace.operations:
        if op.kind.startswith(_ARITHMETIC):
            numbers = {k: v for k, v in op.numbers().items() if not any(part in k for part in _SIZE_NUMBERS)}
            found.append(f"{op.kind} {sorted(numbers.items(), key=str)}")
    return sorted(found)


def _compare_operation(
    coupling: Coupling, labelled: LabelledTrace, op: Operation, new: Operation, alive: np.ndarray
) -> str | None:
    values = labelled.values[op.index]
    if op.state is not None or op.kind == "Input":
        return None
    for value, shape in zip(values, new.shapes, strict=False):
        predicted = predict_shape(coupling, value, alive)
        if predicted != shape and (value.fields or value.shape != shape):
            return f"its result has the shape {shape}, {predicted} was expected"
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


# ------------------------------------------------------------------------------------------------------------ trying


@dataclass
class Fitting:
    """The model, how to call it, its coupling, and the attribute rules found so far."""

    model: nn.Module
    example_inputs: Any
    coupling: Coupling
    forward_fn: ForwardFunction | None = None
    output_transform: Callable[[Any], Any] | None = None
    rules: tuple[AttributeRule, ...] = ()
    _choice: dict[str, int] = field(default_factory=dict)
    _paths: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._paths = dict(self.model.named_modules())

    def try_cut(self, dropped: Mapping[int, Sequence[int] | IntArray]) -> Mismatch | None:
        """What goes wrong when some units of some groups are removed from a stand-in; None if nothing does."""
        alive = alive_classes(self.coupling, dropped)
        plan = make_plan(self.coupling, dropped, self.rules)
        for number, labelled in enumerate(self.coupling.traces):
            if labelled.trace.failure:
                continue
            try:
                trace = trace_model(
                    self.model,
                    self.example_inputs,
                    forward_fn=self.forward_fn,
                    output_transform=self.output_transform,
                    training=labelled.trace.training,
                    change=lambda stand_in: slice_model(stand_in, plan),
                    method=labelled.trace.method,
                )
            except ForwardFailed as error:
                # What went wrong first may be further up than where the forward noticed.
                earlier = _compare_in_step(self.coupling, labelled, error.trace, alive, complete=False)
                if earlier is not None and not earlier.other_path:
                    return Mismatch(earlier.module, f"{earlier.message}; then {error}", earlier.operation, number)
                return Mismatch(error.module, str(error), None, number)
            mismatch = _compare_traces(self.coupling, labelled, trace, alive)
            if mismatch is not None:
                return Mismatch(mismatch.module, mismatch.message, mismatch.operation, number)
        return None

    def fit(self, choose: Callable[[Coupling], Mapping[int, Sequence[int] | IntArray]]) -> None:
        """Finds the attributes that must follow and freezes what cannot, until the chosen cut goes as predicted.

        ``choose`` picks units of the current coupling; it is asked again whenever the groups have changed.
        """
        for _ in range(_MOST_ROUNDS):
            dropped = choose(self.coupling)
            self.rules = self._known_rules(dropped)
            mismatch = self.try_cut(dropped)
            if mismatch is None:
                return
            self._respond(mismatch, dropped)
        raise PlanError(f"no cut of this model could be followed: {mismatch.message if mismatch else ''}")

    # -------------------------------------------------------------------------------------------------- hypotheses

    def _known_rules(self, dropped: Mapping[int, Sequence[int] | IntArray]) -> tuple[AttributeRule, ...]:
        """Rules of torch's own layers, rules already found, and the current hypothesis of each kind of module."""
        sizes = self._sizes_by_module()
        rules: dict[tuple[str, str, int | None], AttributeRule] = {}
        for path, module in self._paths.items():
            if path not in sizes:
                continue
            kind = _kind_name(module)
            wanted: tuple[tuple[str, int | None, int], ...] = tuple(
                (name, None, 0) for name in group_attributes(module)
            )
            if kind in self._choice:
                hypotheses = self._hypotheses(kind, sizes)
                wanted = (*wanted, *hypotheses[self._choice[kind]])
            options = _candidates(module, sizes[path])
            for attribute, index, option in wanted:
                found = options.get((attribute, index))
                if found:
                    old, labels = found[min(option, len(found) - 1)]
                    rules[path, attribute, index] = AttributeRule(path, attribute, index, old, labels)
        return tuple(rules.values())

    def _sizes_by_module(self) -> dict[str, list[tuple[int, IntArray]]]:
        """The labelled sizes that occur in each module's own operations, in order: [(size, labels along the axis)]."""
        sizes: dict[str, dict[bytes, tuple[int, IntArray]]] = {}
        removable = np.zeros(int(self.coupling.class_of.max(initial=0)) + 1, bool)
        for group in self.coupling.groups:
            removable[group.classes] = True
        for labelled in self.coupling.traces:
            for op in labelled.trace.operations:
                if op.state is not None or op.module not in self._paths:
                    continue
                entry = sizes.setdefault(op.module, {})
                for count in labelled.counts.get(op.index, []):
                    if count.labels is not None:
                        classes = self.coupling.class_of[count.labels]
                        if removable[classes].any():
                            entry.setdefault(classes.tobytes(), (count.value, count.labels))
                for value in labelled.values[op.index]:
                    for axis, labels in value.fields.items():
                        row = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]
                        classes = self.coupling.class_of[row]
                        if removable[classes].any():
                            entry.setdefault(classes.tobytes(), (len(row), row))
        return {module: list(entry.values()) for module, entry in sizes.items() if entry}

    def _hypotheses(
        self, kind: str, sizes: Mapping[str, list[tuple[int, IntArray]]]
    ) -> list[tuple[tuple[str, int | None, int], ...]]:
        """Sets of attributes of one kind of module that may follow, the likeliest first.

        An entry is (attribute, index in a tuple or None, which of the sizes with that value it follows).
        """
        options: dict[tuple[str, int | None], int] = {}
        for path, module in self._paths.items():
            if _kind_name(module) == kind and path in sizes:
                for key, found in _candidates(module, sizes[path]).items():
                    options[key] = max(options.get(key, 0), len(found))
        keys = sorted(options, key=lambda key: (_plausibility(key[0]), key[0], key[1] or 0))
        every = [tuple((*key, 0) for key in keys)]
        singles = [((*key, option),) for key in keys for option in range(options[key])]
        pairs = itertools.combinations(singles, 2)
        more = itertools.combinations(singles, 3)
        ordered: Iterator[tuple[tuple[str, int | None, int], ...]] = itertools.chain(
            [()],
            every,
            singles,
            (
                tuple(entry for single in combination for entry in single)
                for combination in itertools.chain(pairs, more)
            ),
        )
        unique = dict.fromkeys(ordered)
        return list(itertools.islice(unique, _MOST_HYPOTHESES))

    # ---------------------------------------------------------------------------------------------------- responses

    def _respond(self, mismatch: Mismatch, dropped: Mapping[int, Sequence[int] | IntArray]) -> None:
        sizes = self._sizes_by_module()
        for path in _ancestors(mismatch.module):
            module = self._paths.get(path)
            if module is None or path not in sizes:
                continue
            kind = _kind_name(module)
            choice = self._choice.get(kind, 0) + 1
            if choice < len(self._hypotheses(kind, sizes)):
                self._choice[kind] = choice
                return
            self._choice.pop(kind, None)
            if self._remove_inside(kind) or self._freeze_in(kind, mismatch, dropped):
                return
        if not self._freeze_at(mismatch, dropped):
            raise PlanError(f"a cut of this model cannot be followed: {mismatch.message}")

    def _remove_inside(self, kind: str) -> bool:
        """Removes parts of every row instead of whole rows (head dimensions instead of heads) in a kind of module."""
        labels = self.coupling.context.labels
        changed = False
        for number, relation in enumerate(labels.relations):
            if kind not in self._kinds_at(relation.operation):
                continue
            structure = self.coupling.structure_of.get(number)
            if structure is not None and self.coupling.modes.get(structure) != "inner":
                self.coupling.modes[structure] = "inner"
                changed = True
        if changed:
            solve_coupling(self.coupling)
        return changed

    def _kinds_at(self, operation: int) -> set[str]:
        found = set()
        for labelled in self.coupling.traces:
            if operation < len(labelled.trace.operations):
                module = self._paths.get(labelled.trace.operations[operation].module)
                if module is not None:
                    found.add(_kind_name(module))
        return found

    def _freeze_in(self, kind: str, mismatch: Mismatch, dropped: Mapping[int, Sequence[int] | IntArray]) -> bool:
        """Freezes what changes size in a kind of module: first what it splits or cuts, then everything."""
        labels = self.coupling.context.labels
        relations = [r.flat for r in labels.relations if kind in self._kinds_at(r.operation)]
        cuts = [c.labels for c in labels.list_cuts() if kind in self._kinds_at(c.operation)]
        if self._freeze_labels([*relations, *cuts], dropped, mismatch.message):
            return True
        values = [
            field_labels
            for labelled in self.coupling.traces
            for op in labelled.trace.operations
            if op.module in self._paths and op.state is None and _kind_name(self._paths[op.module]) == kind
            for value in labelled.values[op.index]
            for field_labels in value.fields.values()
        ]
        return self._freeze_labels(values, dropped, mismatch.message)

    def _freeze_at(self, mismatch: Mismatch, dropped: Mapping[int, Sequence[int] | IntArray]) -> bool:
        if mismatch.operation is None:
            return self._freeze_culprits([group.index for group in self.coupling.groups], dropped, mismatch.message)
        labelled = self.coupling.traces[mismatch.trace]
        op = labelled.trace.operations[mismatch.operation]
        values = list(labelled.values[op.index])
        values += [labelled.values[v.operation][v.output] for v in op.inputs if v is not None]
        return self._freeze_labels([f for v in values for f in v.fields.values()], dropped, mismatch.message)

    def _freeze_labels(
        self, labels: Sequence[IntArray], dropped: Mapping[int, Sequence[int] | IntArray], message: str
    ) -> bool:
        if not labels:
            return False
        classes = np.unique(self.coupling.class_of[np.concatenate([array.ravel() for array in labels])])
        touched = np.zeros(int(self.coupling.class_of.max()) + 1, bool)
        touched[classes] = True
        return self._freeze_culprits(
            [g.index for g in self.coupling.groups if touched[g.classes].any()], dropped, message
        )

    def _freeze_culprits(
        self, indices: Sequence[int], dropped: Mapping[int, Sequence[int] | IntArray], message: str
    ) -> bool:
        """Freezes those of some groups whose cut fails on its own; all of them where only their combination fails."""
        suspects = [index for index in indices if len(dropped.get(index, ()))]
        guilty = {index: self.try_cut({index: dropped[index]}) for index in suspects} if len(suspects) > 1 else {}
        alone = {index: mismatch.message for index, mismatch in guilty.items() if mismatch is not None}
        return self._freeze_groups(alone or dict.fromkeys(suspects, message))

    def _freeze_groups(self, messages: Mapping[int, str]) -> bool:
        for index, message in messages.items():
            self.coupling.freeze_group(
                self.coupling.groups[index], f"the forward does not follow a cut of it: {message}"
            )
        if messages:
            solve_coupling(self.coupling)
        return bool(messages)


def _kind_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _ancestors(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


_LIKELY = ("head", "group", "dim", "size", "channel", "feature", "width", "embed", "planes", "hidden", "num_", "n_")


def _plausibility(attribute: str) -> int:
    return 0 if any(part in attribute.lower() for part in _LIKELY) else 1


def _candidates(
    module: nn.Module, sizes: Sequence[tuple[int, IntArray]]
) -> dict[tuple[str, int | None], list[tuple[int, IntArray]]]:
    """Attributes of a module that hold one of the sizes: {(attribute, index): [(size, labels), …]}."""
    found: dict[tuple[str, int | None], list[tuple[int, IntArray]]] = {}
    for attribute, value in vars(module).items():
        if attribute.startswith("_") and attribute.startswith(("_parameters", "_buffers", "_modules")):
            continue
        entries: list[tuple[int | None, Any]] = [(None, value)]
        if type(value) in (tuple, list) and 0 < len(value) <= 8:
            entries = list(enumerate(value))
        for index, item in entries:
            if type(item) is int and item > 1:
                matches = [(size, labels) for size, labels in sizes if size == item]
                if matches:
                    found[attribute, index] = matches
    return found


def probe_choice(coupling: Coupling) -> dict[int, IntArray]:
    """A small cut in every group, of a different size in neighbouring groups, to see whether the forward follows."""
    dropped = {}
    for group in coupling.groups:
        bundles = group.bundles
        if bundles < 2:
            continue
        amount = min(1 + group.index % 3, bundles - 1)
        picks = []
        for block in group.blocks:
            step = len(block) // bundles
            start = (len(block) // 3) % (len(block) - amount * step + 1)
            picks.append(block[start : start + amount * step])
        dropped[group.index] = np.sort(np.concatenate(picks))
    return dropped
