"""A model as a graph of layers with its groups, and everything that must go with one channel.

What a figure, a panel or a notebook shows of the coupling, as plain data: nodes with shapes and groups, edges along
which data flows, the labels on every operation, and the slices of every tensor that a channel takes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from cleanai.analysis import Analysis
from cleanai.coupling import Coupling, Group, LabelledTrace
from cleanai.errors import InputError
from cleanai.fields import IntArray, Labelled
from cleanai.fitting import make_plan
from cleanai.plan import Plan
from cleanai.rendering import MISSING, Table, short_indices, text_table
from cleanai.texts import check_language, count_things, say, term, terms
from cleanai.trace import Operation, Shape

__all__ = [
    "Companions",
    "DependencyGraph",
    "LabelTable",
    "Node",
    "Slice",
    "build_graph",
    "find_companions",
    "list_channels",
    "list_companions",
    "list_labels",
    "plan_removal",
]

Detail = Literal["layers", "operations"]
DETAILS: tuple[Detail, ...] = ("layers", "operations")
FROZEN = -1  # the number of no group
_INPUT = "Input"


# ------------------------------------------------------------------------------------------------------- the graph


@dataclass(frozen=True)
class Node:
    """A layer with what follows it channel by channel, or a single operation.

    Attributes:
        index: its place in `DependencyGraph.nodes`.
        name: the module's path, or that of the module it is in with the operation's kind.
        kind: what it is, "Conv2d + BatchNorm2d + ReLU" for layers that are shown as one.
        shape: that of its output.
        inputs: the nodes it reads, by index.
        groups: the groups of its output channels, as (number, share of the channels) in their order; -1 is the number
            of those that stay.
        inside: groups that end within it, such as the heads of an attention layer.
        parameters: the names of the model's tensors that it uses.
        operations: the operations of the trace that it holds, by index.
        classes: the output channels as the coupling numbers them, int64; equal numbers live and die together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> node = build_graph(analyze_model(net, torch.zeros(1, 3))).nodes[1]
        >>> node.name, node.kind, node.inputs, node.groups
        ('0', 'Linear + ReLU', (0,), ((0, 1.0),))
    """

    index: int
    name: str
    kind: str
    shape: Shape
    inputs: tuple[int, ...]
    groups: tuple[tuple[int, float], ...]
    inside: tuple[int, ...]
    parameters: tuple[str, ...] = field(repr=False)
    operations: tuple[int, ...] = field(repr=False)
    classes: IntArray = field(repr=False, compare=False)


@dataclass(frozen=True)
class DependencyGraph:
    """The nodes of a model in execution order, and the groups their channels belong to.

    `build_graph` makes one, `cleanai.graph_plot.plot_graph` draws it.

    Attributes:
        nodes: in execution order.
        groups: those of the analysis, by number.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> build_graph(analyze_model(net, torch.zeros(1, 3)))
        DependencyGraph(3 nodes, 2 edges, 1 group)
    """

    nodes: tuple[Node, ...]
    groups: tuple[Group, ...] = field(repr=False)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(from, to) along which data flows, by node index."""
        return tuple((source, node.index) for node in self.nodes for source in node.inputs)

    def node(self, name: str) -> Node:
        """The first node of a name.

        Raises:
            InputError: no node has this name; the names are listed.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from cleanai import analyze_model
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> build_graph(analyze_model(net, torch.zeros(1, 3))).node("2").shape
            (1, 2)
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise InputError(f"no node is named {name!r}; there are {', '.join(node.name for node in self.nodes)}.")

    def __repr__(self) -> str:
        counts = {"node": self.nodes, "edge": self.edges, "group": self.groups}
        return f"DependencyGraph({', '.join(count_things(len(each), name) for name, each in counts.items())})"


def build_graph(analysis: Analysis, detail: Detail = "layers") -> DependencyGraph:
    """The graph of an analysed model.

    Args:
        analysis: what `cleanai.analyze_model` or a pruner found out about a model.
        detail: with "layers" a node is a layer together with the operations behind it that keep every channel apart
            (its norm, its activation, a pooling); with "operations" every module and every operation outside of one
            has a node.

    Raises:
        InputError: another detail.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = build_graph(analyze_model(net, torch.zeros(1, 3)))
        >>> [(node.name, node.kind, node.shape) for node in graph.nodes]
        [('input', 'Input', (1, 3)), ('0', 'Linear + ReLU', (1, 8)), ('2', 'Linear', (1, 2))]
    """
    if detail not in DETAILS:
        raise InputError(f"build_graph: detail={detail!r} is not one of {', '.join(map(repr, DETAILS))}.")
    return _GraphBuilder(analysis).build(fold=detail == "layers")


@dataclass
class _Part:
    """A node while it is being put together."""

    name: str
    kinds: list[str]
    operations: list[int]
    module: str | None  # the module of which it is a call, if it is one


def _own_operations(parts: Sequence[_Part]) -> dict[int, int]:
    return {operation: place for place, part in enumerate(parts) for operation in part.operations}


def _equal(first: IntArray, second: IntArray) -> bool:
    return first.shape == second.shape and bool((first == second).all())


class _GraphBuilder:
    """Merges the operations of one trace into nodes."""

    def __init__(self, analysis: Analysis) -> None:
        self._coupling = analysis.coupling
        self._labelled: LabelledTrace = analysis.coupling.traces[0]
        self._operations = self._labelled.trace.operations
        self._model = analysis.fitting.model
        paths = self._labelled.trace.calls
        parents = {path.rpartition(".")[0] for path in paths if path}
        self._leaves = {path for path in paths if path and path not in parents}
        self._readers: dict[int, set[int]] = {}
        for op in self._operations:
            for value in op.inputs:
                if value is not None:
                    self._readers.setdefault(value.operation, set()).add(op.index)
        self._group_of = _number_groups(self._coupling)

    def build(self, fold: bool) -> DependencyGraph:
        parts = self._list_parts()
        parts = self._fold(parts) if fold else parts
        owner = _own_operations(parts)
        nodes = tuple(self._node(place, part, owner) for place, part in enumerate(parts))
        return DependencyGraph(nodes, self._coupling.groups)

    def _list_parts(self) -> list[_Part]:
        """One part for the inputs, for every run of operations in a module that calls no other, and for the rest."""
        entrance = _Part("input", [_INPUT], [], None)
        parts = [entrance]
        for op in self._operations:
            values = self._labelled.values[op.index]
            if op.state is not None or (values and all(value.is_weight for value in values)):
                continue
            if values and all(value.is_input for value in values):
                entrance.operations.append(op.index)
            elif (path := self._whole_module(op.module)) is None:
                kind = op.kind.lower()
                parts.append(_Part(f"{op.module}.{kind}".lstrip("."), [kind], [op.index], None))
            elif parts[-1].module == path:
                parts[-1].operations.append(op.index)
            else:
                parts.append(_Part(path, [type(self._model.get_submodule(path)).__name__], [op.index], path))
        return parts if entrance.operations else parts[1:]

    def _whole_module(self, path: str) -> str | None:
        """The module that is shown as one and holds another: one that calls no other, or attention as a whole."""
        above = ".".join(path.split(".")[:-1])
        if path in self._leaves:
            return above if isinstance(self._model.get_submodule(above), nn.MultiheadAttention) else path
        return path if isinstance(self._model.get_submodule(path), nn.MultiheadAttention) else None

    def _fold(self, parts: Sequence[_Part]) -> list[_Part]:
        """Joins every part that keeps the channels of another apart to it, where nothing else reads that other one."""
        owner = _own_operations(parts)
        sources = [self._sources(part, owner) for part in parts]
        classes = [self._classes(part) for part in parts]
        readers = np.bincount([place for each in sources for place in each], minlength=len(parts))
        home = list(range(len(parts)))
        for place, part in enumerate(parts):
            if len(sources[place]) != 1 or self._mixes(part):
                continue
            source = sources[place][0]
            if readers[source] == 1 and parts[source].kinds != [_INPUT] and _equal(classes[source], classes[place]):
                home[place] = home[source]
                parts[home[place]].kinds += part.kinds
                parts[home[place]].operations += part.operations
        return [part for place, part in enumerate(parts) if home[place] == place]

    def _mixes(self, part: _Part) -> bool:
        """Whether a part has weights of two dimensions or more: it is a layer of its own."""
        states = self._coupling.context.states
        return any(len(states[name].shape) > 1 for name in self._parameters(part) if name in states)

    def _sources(self, part: _Part, owner: dict[int, int]) -> tuple[int, ...]:
        own = set(part.operations)
        read = [value.operation for index in part.operations for value in self._operations[index].inputs if value]
        return tuple(dict.fromkeys(owner[index] for index in read if index in owner and index not in own))

    def _output(self, part: _Part) -> tuple[Shape, Sequence[Labelled]]:
        """The last result of a part that something else reads, or its last one."""
        own = set(part.operations)
        results = {value.operation for value in self._labelled.trace.outputs}
        read = [i for i in part.operations if i in results or self._readers.get(i, set()) - own]
        last = (read or part.operations)[-1]
        op = self._operations[last]
        return (op.shapes[0] if op.shapes else ()), self._labelled.values[last][:1]

    def _classes(self, part: _Part) -> IntArray:
        """The channels of a part's output: the dimensions of it that can shrink, else the last that is known."""
        _, values = self._output(part)
        fields = [labels.ravel() for value in values for _, labels in sorted(value.fields.items())]
        classes = [self._coupling.class_of[labels] for labels in fields]
        free = [each for each in classes if (self._group_of[each] != FROZEN).any()]
        return np.concatenate([np.zeros(0, np.int64), *(free or classes[-1:])])

    def _parameters(self, part: _Part) -> tuple[str, ...]:
        """The model's tensors that a part uses, looked for through what is made of parameters alone."""
        own, names = set(part.operations), []
        waiting = [v.operation for index in part.operations for v in self._operations[index].inputs if v is not None]
        while waiting:
            op = self._operations[waiting.pop(0)]
            values = self._labelled.values[op.index]
            if op.state is not None:
                names.append(op.state.name)
            elif op.index not in own and values and all(value.is_weight for value in values):
                waiting += [value.operation for value in op.inputs if value is not None]
        return tuple(dict.fromkeys(names))

    def _node(self, place: int, part: _Part, owner: dict[int, int]) -> Node:
        classes, parameters = self._classes(part), self._parameters(part)
        groups = _share_groups(self._group_of[classes])
        inside = tuple(sorted(self._groups_made(parameters) - dict(groups).keys()))
        return Node(
            index=place,
            name=part.name,
            kind=" + ".join(part.kinds),
            shape=self._output(part)[0],
            inputs=self._sources(part, owner),
            groups=groups,
            inside=inside,
            parameters=parameters,
            operations=tuple(part.operations),
            classes=classes,
        )

    def _groups_made(self, parameters: Sequence[str]) -> set[int]:
        """The groups of which some tensors hold the outputs."""
        context, found = self._coupling.context, set[int]()
        for name in parameters:
            fields = context.states[name].fields if name in context.states else {}
            for axis, labels in fields.items():
                if axis < 2 and (name, axis) not in context.contracted:
                    found |= set(self._group_of[self._coupling.class_of[labels.ravel()]].tolist())
        return found - {FROZEN}


def _number_groups(coupling: Coupling) -> IntArray:
    """The number of each class's group."""
    numbers = np.full(int(coupling.class_of.max(initial=0)) + 1, FROZEN, np.int64)
    for group in coupling.groups:
        numbers[group.classes] = group.index
    return numbers


def _share_groups(numbers: IntArray) -> tuple[tuple[int, float], ...]:
    found = dict.fromkeys(numbers.tolist())
    return tuple((number, float((numbers == number).mean())) for number in found)


# --------------------------------------------------------------------------------------------------- one channel


@dataclass(frozen=True)
class Slice:
    """Indices along one dimension of one tensor that go together.

    Attributes:
        layer: the module's path.
        parameter: the tensor's full name.
        dim: the dimension.
        role: "output", or "input" where the dimension is summed over.
        size: of the dimension before anything goes.
        indices: what goes, ascending.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> find_companions(analysis, "0", 5).slices[-1]
        Slice(layer='2', parameter='2.weight', dim=1, role='input', size=8, indices=(5,))
    """

    layer: str
    parameter: str
    dim: int
    role: str
    size: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Companions:
    """Everything that must go with a channel, tensor by tensor; or why the channel cannot go. It prints as a table.

    Attributes:
        title: what was asked for.
        group: the group that it belongs to; None for a channel that stays.
        units: the units of the group that go.
        slices: what goes from each tensor.
        reason: why it stays, where it does; all else is empty then.
        language: of the table, "en" or "tr".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> find_companions(analysis, "0", 5).units
        (5,)
        >>> find_companions(analysis, "2", 0).reason
        'the output of the model'
    """

    title: str
    group: Group | None
    units: tuple[int, ...]
    slices: tuple[Slice, ...]
    reason: str = ""
    language: str = "en"

    @property
    def layers(self) -> tuple[str, ...]:
        """The module paths that lose something, in the order of the trace.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from cleanai import analyze_model
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> analysis = analyze_model(net, torch.zeros(1, 3))
            >>> find_companions(analysis, "0", 5).layers
            ('0', '2')
        """
        return tuple(dict.fromkeys(part.layer for part in self.slices))

    @property
    def classes(self) -> IntArray:
        """The channels that go, as the coupling numbers them: int64, as in `Node.classes`."""
        return self.group.classes[list(self.units)] if self.group is not None else np.zeros(0, np.int64)

    def to_table(self) -> Table:
        """One row for each dimension of a tensor that shrinks."""
        columns = tuple(say(self.language, word) for word in ("layer", "tensor", "dimension", "role", "index"))
        rows = tuple(
            (
                part.layer or MISSING,
                part.parameter.rpartition(".")[2],
                str(part.dim),
                term(self.language, part.role),
                short_indices(part.indices, self.language),
            )
            for part in self.slices
        )
        return Table(self.title, columns, rows, "llrll", self._notes())

    def _notes(self) -> tuple[str, ...]:
        if self.group is None:
            return (say(self.language, "It stays: {reason}.", reason=terms(self.language, self.reason)),)
        blocks = len(self.group.blocks)
        if blocks < 2 or len(self.units) == self.group.size:
            return ()
        return (
            say(self.language, "The same share must go from each of the {count} parts of this group.", count=blocks),
        )

    def __repr__(self) -> str:
        return text_table(self.to_table())


def list_channels(analysis: Analysis) -> dict[str, int]:
    """The number of output channels of every layer that has any, in the order of the trace: {module path: channels}.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> list_channels(analyze_model(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), torch.zeros(1, 3)))
        {'0': 8, '1': 2}
    """
    return {layer: len(classes) for layer, (_, _, classes) in _list_outputs(analysis.coupling).items()}


def find_companions(analysis: Analysis, layer: str, channel: int, language: str = "en") -> Companions:
    """Everything that must go when one output channel of a layer goes.

    Args:
        analysis: what `cleanai.analyze_model` or a pruner found out about a model.
        layer: the module's path; `list_channels` lists them.
        channel: from 0.
        language: of the title and the table, "en" or "tr".

    Raises:
        InputError: a layer without channels, a channel it does not have, or an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> find_companions(analyze_model(net, torch.zeros(1, 3)), "0", 5)
        Channel 5 of 0, group 1 (0)
          layer  tensor  dimension  role    index
          ---------------------------------------
          0      weight          0  output  5
          0      bias            0  output  5
          2      weight          1  input   5
    """
    check_language(language)
    outputs = _list_outputs(analysis.coupling)
    if layer not in outputs:
        raise InputError(f"find_companions: no layer {layer!r} has channels; there are {', '.join(outputs)}.")
    parameter, dim, classes = outputs[layer]
    if not 0 <= channel < len(classes):
        raise InputError(f"find_companions: {layer} has channels 0 to {len(classes) - 1}, not {channel}.")
    title = say(language, "Channel {channel} of {layer}", channel=channel, layer=layer)
    group = next((group for group in analysis.groups if classes[channel] in group.classes), None)
    if group is None:
        reasons = [frozen.reason for frozen in analysis.frozen if (parameter, dim) in frozen.parameters]
        return Companions(title, None, (), (), "; ".join(reasons), language)
    unit = int(np.flatnonzero(group.classes == classes[channel])[0])
    title += ", " + _name_group(group, language)
    return Companions(title, group, (unit,), _slice_members(group, [unit]), language=language)


def list_companions(analysis: Analysis, group: str, language: str = "en") -> Companions:
    """Everything that a whole group touches.

    Args:
        analysis: what `cleanai.analyze_model` or a pruner found out about a model.
        group: the group's name.
        language: of the title and the table, "en" or "tr".

    Raises:
        InputError: a name that no group has, or an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> list_companions(analysis, "0")
        group 1 (0)
          layer  tensor  dimension  role    index
          ---------------------------------------
          0      weight          0  output  0–7
          0      bias            0  output  0–7
          2      weight          1  input   0–7
    """
    check_language(language)
    for each in analysis.groups:
        if each.name == group:
            units = tuple(range(each.size))
            return Companions(_name_group(each, language), each, units, _slice_members(each, units), language=language)
    names = ", ".join(each.name for each in analysis.groups) or "none"
    raise InputError(f"list_companions: no group is named {group!r}; there are {names}.")


def plan_removal(analysis: Analysis, companions: Companions) -> Plan:
    """The plan that removes a channel with all its companions, for `cleanai.slice_model`.

    Args:
        analysis: the one that the companions were found in.
        companions: of `find_companions`.

    Raises:
        InputError: the channel must stay.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> from cleanai import slice_model
        >>> slice_model(net, plan_removal(analysis, find_companions(analysis, "0", 5)))[0].out_features
        7
    """
    if companions.group is None:
        raise InputError(f"plan_removal: {companions.title} cannot go: {companions.reason}.")
    return make_plan(analysis.coupling, {companions.group.index: companions.units}, analysis.rules)


def _name_group(group: Group, language: str) -> str:
    return say(language, "group {number} ({name})", number=group.index + 1, name=group.name)


def _slice_members(group: Group, units: Sequence[int]) -> tuple[Slice, ...]:
    found = []
    for member in group.members:
        indices = tuple(member.positions[np.isin(member.units, units)].tolist())
        if indices:
            found.append(Slice(member.layer, member.parameter, member.dim, member.role, member.size, indices))
    return tuple(found)


def _list_outputs(coupling: Coupling) -> dict[str, tuple[str, int, IntArray]]:
    """For each layer the dimension of a tensor that counts its output channels, and the class of each of them."""
    context = coupling.context
    grouped = {(m.parameter, m.dim) for group in coupling.groups for m in group.members if m.role == "output"}
    found: dict[str, list[tuple[bool, bool, str, int]]] = {}
    for name, value in context.states.items():
        for axis in value.fields:
            if value.shape[axis] > 1 and (name, axis) not in context.contracted and axis < 2:
                order = (name.endswith("bias"), (name, axis) not in grouped)
                found.setdefault(name.rpartition(".")[0], []).append((*order, name, axis))
    outputs = {}
    for layer, candidates in found.items():
        *_, name, axis = min(candidates, key=lambda each: each[:2])
        outputs[layer] = (name, axis, coupling.class_of[context.states[name].fields[axis].ravel()])
    return outputs


# ------------------------------------------------------------------------------------------------------- the labels


@dataclass(frozen=True)
class LabelTable:
    """The labels on every operation of a trace; it prints as a table.

    Attributes:
        table: one row per operation that has labels.
        labels: the same as {(operation, dimension): one label per index}.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> list(list_labels(analysis).labels.values())[:2]
        [(1, 2, 3, 4, 5, 6, 7, 8), (0, 0, 0)]
    """

    table: Table
    labels: dict[tuple[int, int], tuple[int, ...]] = field(repr=False)

    def __repr__(self) -> str:
        return text_table(self.table)


def list_labels(analysis: Analysis, united: bool = True, language: str = "en") -> LabelTable:
    """The channel labels of every operation: where they come from, how they travel, and what becomes one.

    Every channel of every tensor of the model starts with a label of its own, and operations carry labels along. In
    the end channels that live and die together have the same label. Labels are counted from 1 in the order of the
    trace; 0 is what stays.

    Args:
        analysis: what `cleanai.analyze_model` or a pruner found out about a model.
        united: False shows the labels as they start out, before anything is united.
        language: of the table, "en" or "tr".

    Raises:
        InputError: an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> table = list_labels(analyze_model(net, torch.zeros(1, 3))).table
        >>> [row[1:] for row in table.rows if row[1].endswith("weight")]
        [('0.weight', '4 × 3', '0: 1 2 3 4   1: 0 0 0'), ('1.weight', '2 × 4', '0: 0 0   1: 1 2 3 4')]
    """
    check_language(language)
    coupling = analysis.coupling
    labelled = coupling.traces[0]
    identity = coupling.class_of if united else np.arange(len(coupling.class_of))
    stays = (_number_groups(coupling)[coupling.class_of] == FROZEN) if united else identity == 0
    numbers: dict[int, int] = {}
    rows, found = [], {}
    for op in labelled.trace.operations:
        texts = []
        for axis, labels in _channel_fields(op, labelled.values[op.index]):
            names = [0 if stays[label] else int(identity[label]) for label in labels.ravel().tolist()]
            found[op.index, axis] = tuple(numbers.setdefault(name, len(numbers) + 1) if name else 0 for name in names)
            texts.append(f"{axis}: " + " ".join(map(str, found[op.index, axis])))
        if texts:
            name = op.state.name if op.state is not None else op.where
            rows.append((str(op.index), name, " × ".join(map(str, op.shapes[0])), "   ".join(texts)))
    columns = tuple(say(language, phrase) for phrase in ("operation", "name", "shape", "dimension: labels"))
    phrase = "Labels: what has the same number lives and dies together; 0 stays"
    title = say(language, phrase if united else "Labels as they start out and travel")
    return LabelTable(Table(title, columns, tuple(rows), "rlll"), found)


def _channel_fields(op: Operation, values: Sequence[Labelled]) -> list[tuple[int, IntArray]]:
    """The fields that count channels, of a tensor of the model or of what is computed from the inputs."""
    value = values[0] if values else Labelled(())
    if op.state is None and value.is_weight:
        return []
    channels = range(2) if op.state is not None else range(len(value.shape))  # what follows in a weight is its kernel
    return [
        (axis, labels) for axis, labels in sorted(value.fields.items()) if axis in channels and value.shape[axis] > 1
    ]
