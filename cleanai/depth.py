"""Residual blocks: modules that can be dropped whole, because a shortcut carries their input past all their layers.

A block is found in the trace, not by its class: a module that is called once, whose output is a sum of its own input
(carried along element by element) and what its layers make of that input, in the same shape and with the same channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cleanai.coupling import Coupling, Group, Member
from cleanai.fields import IntArray, Labelled
from cleanai.inputs import first_tensor
from cleanai.isolation import list_state
from cleanai.plan import GroupCut
from cleanai.select import is_within
from cleanai.trace import ModuleCall, Operation, Trace, Value

# Operations through which each element of a tensor goes its own way (a norm weighs it, a view moves none of them).
_CARRIERS = (
    "Add Sub Rsub Mul Div Addcmul Lerp Maximum Minimum Where MaskedFill Neg Abs Clamp ClampMin ClampMax Relu Sigmoid "
    "Tanh Gelu Silu Mish Hardswish Hardsigmoid Hardtanh Elu LeakyRelu Softplus Threshold PreluKernel RreluWithNoise "
    "NativeDropout Dropout Clone Alias ToCopy Copies Contiguous Positive NanToNum NativeBatchNorm CudnnBatchNorm "
    "MiopenBatchNorm NativeLayerNorm FusedRmsNorm NativeGroupNorm View UnsafeView ReshapeAlias Reshape Permute "
    "Transpose T Mt Squeeze Unsqueeze"
)
_SUMS = ("Add", "Addcmul")

_Key = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A module that can be replaced by its input.

    ``kind`` is its class, ``places`` the form of its output (see `cleanai.plan.BlockCut`), ``dim`` the dimension of its
    channels where there is one.
    """

    path: str
    kind: str
    places: int
    parameters: int
    dim: int | None
    sums: frozenset[int] = field(repr=False)


class SkippedBlock(nn.Module):
    """What is left of a dropped block: it returns the first tensor it is given, in the form the block returned it.

    It has no parameters and no submodules. Plain attributes of the block and of its parts (numbers, flags, names) can
    still be read, because models look at them from outside (``layers[0].self_attn.batch_first``).

    Example:
        >>> skipped = SkippedBlock(nn.Linear(3, 3), places=2)
        >>> skipped(torch.ones(1, 3))
        (tensor([[1., 1., 1.]]), None)
        >>> skipped.in_features, list(skipped.state_dict())
        (3, [])
    """

    def __init__(self, block: nn.Module, places: int = 0) -> None:
        super().__init__()
        self.__dict__.update(_plain_attributes(block))
        self._kind, self._places = type(block).__name__, places

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first floating-point tensor among the arguments."""
        first = first_tensor(args, kwargs)
        return (first, *[None] * (self._places - 1)) if self._places else first

    def extra_repr(self) -> str:
        """The class of the block that was here."""
        return self._kind


_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module says of itself without tensors or code, and the same of its parts as namespaces."""
    found: dict[str, Any] = {
        name: SimpleNamespace(**_plain_attributes(part)) for name, part in module._modules.items() if part is not None
    }
    for name, value in vars(module).items():
        items = value if type(value) in (tuple, list) else (value,)
        if not name.startswith("_") and all(isinstance(item, _PLAIN) for item in items):
            found[name] = value
    return found


class ResidualBlocks:
    """The residual blocks of a traced model, and why any other module is none."""

    def __init__(self, model: nn.Module, coupling: Coupling, ignored: Sequence[str] = ()) -> None:
        self._coupling = coupling
        self._ignored = ignored
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        for path, module in self._modules.items():
            self._names.setdefault(id(module), []).append(path)
        self._parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
        cut = {*self._parameters, *(member.parameter for group in coupling.groups for member in group.members)}
        self._owners = {
            state.name: {path for place in state.places for path in self._names[id(place.module)]}
            for state in list_state(model)
            if state.name in cut
        }
        self._readers = [_list_readers(labelled.trace) for labelled in coupling.traces]
        self._known: dict[str, Block | str] = {}

    def examine(self, path: str) -> Block | str:
        """The block that a module is, or why it is none."""
        if path not in self._known:
            self._known[path] = self._examine(path)
        return self._known[path]

    @cached_property
    def listed(self) -> tuple[Block, ...]:
        """The blocks that are candidates, in the order of the model.

        Where blocks contain blocks, the outermost that adds something itself counts (a transformer layer, not its
        attention), unless its shortcut only spans a row of others.
        """
        likely = {
            path
            for labelled in self._coupling.traces
            for path, call in labelled.trace.calls.items()
            if call.source is not None and call.result is not None and call.source.shape == call.result.shape
        }
        found = [self.examine(path) for path in self._modules if path in likely]
        return tuple(_outermost([block for block in found if isinstance(block, Block)]))

    def _examine(self, path: str) -> Block | str:
        obstacle = self._find_obstacle(path)
        if obstacle:
            return obstacle
        first: Block | None = None
        for number, labelled in enumerate(self._coupling.traces):
            call = labelled.trace.calls.get(path)
            block = self._judge(path, call, number) if call is not None else None
            if isinstance(block, str):
                return block
            if first is not None and block is not None and block.places != first.places:
                return "it returns its result in more than one form"
            first = first or block
        return first or "the example inputs do not reach it"

    def _judge(self, path: str, call: ModuleCall, number: int) -> Block | str:
        """The block that a module was in one of the traces, or why it was none."""
        if call.count > 1:
            return f"it is called {call.count} times"
        if call.places is None:
            return "it returns something else than one tensor"
        if call.source is None or call.result is None:
            return "no tensor that depends on the model's inputs or parameters goes through it"
        if call.source.shape != call.result.shape:
            return f"its input has the shape {call.source.shape} and its output {call.result.shape}"
        labelled = self._coupling.traces[number]
        sums = _sums_on_shortcut(labelled.trace, call, call.source, call.result)
        if not sums:
            return "no shortcut leads around its layers: its output is not a sum of its input and what they make of it"
        obstacle = self._find_links(path, call, number)
        if obstacle:
            return obstacle
        before, after = (dict(enumerate(labelled.values[v.operation])) for v in (call.source, call.result))
        dims = self._channel_dims(
            before.get(call.source.output, Labelled(())), after.get(call.result.output, Labelled(()))
        )
        if dims is None:
            return "its output has its channels in another order than its input"
        count = sum(size for name, size in self._parameters.items() if is_within(name, path))
        kind, dim = type(self._modules[path]).__name__, dims[0] if len(dims) == 1 else None
        return Block(path, kind, call.places, count, dim, frozenset(sums))

    def _find_obstacle(self, path: str) -> str:
        """What speaks against a module before its arithmetic is looked at."""
        if not path:
            return "it is the whole model"
        if path not in self._modules:
            return "there is no such module"
        if not any(is_within(name, path) for name in self._parameters):
            return "it has no parameters"
        names = self._names[id(self._modules[path])]
        if len(names) > 1:
            return f"it is registered under two names, {names[0]} and {names[1]}"
        touched = next((layer for layer in self._ignored if is_within(layer, path) or is_within(path, layer)), None)
        if touched is not None:
            return f"it reaches the ignored layer {touched}"
        for name, owners in self._owners.items():
            inside = [owner for owner in owners if is_within(owner, path)]
            if inside and len(inside) < len(owners):
                return f"it shares {name} with {min(owners.difference(inside))}"
        return ""

    def _find_links(self, path: str, call: ModuleCall, number: int) -> str:
        """Another module that a call runs, or a reader of what is computed inside it."""
        assert call.result is not None
        trace = self._coupling.traces[number].trace
        operations = trace.operations
        inside = set(call.operations)
        for index in call.operations:
            running = operations[index].module
            if not any(is_within(name, path) for name in self._names[id(self._modules[running])]):
                return f"it runs {running}, which is not part of it"
            for reader, value in self._readers[number].get(index, ()):
                if reader not in inside and _key(value) != _key(call.result):
                    return f"{operations[reader].where} reads what is computed inside it"
        if any(v.operation in inside and _key(v) != _key(call.result) for v in trace.outputs):
            return "the model returns what is computed inside it"
        return ""

    def _channel_dims(self, first: Labelled, second: Labelled) -> list[int] | None:
        """The dimensions that carry channels, those that can be pruned if any can; None if the channels differ."""
        class_of = self._coupling.class_of
        removable = np.zeros(int(class_of.max(initial=0)) + 1, bool)
        for group in self._coupling.groups:
            removable[group.classes] = True
        shared = sorted(set(first.fields) & set(second.fields))
        if first.fields and second.fields and not shared:
            return None
        for axis in shared:
            before, after = np.broadcast_arrays(class_of[first.fields[axis]], class_of[second.fields[axis]])
            if not np.array_equal(before, after):
                return None
        return [axis for axis in shared if removable[class_of[first.fields[axis]]].any()] or shared


def _key(value: Value) -> _Key:
    return value.operation, value.output


def _list_readers(trace: Trace) -> dict[int, list[tuple[int, Value]]]:
    """For each operation those that read one of its outputs, and which."""
    readers: dict[int, list[tuple[int, Value]]] = {}
    for op in trace.operations:
        for value in op.inputs:
            if value is not None:
                readers.setdefault(value.operation, []).append((op.index, value))
    return readers


def _sums_on_shortcut(trace: Trace, call: ModuleCall, source: Value, result: Value) -> set[int]:
    """The sums that join the carried input of a call with what its layers make of it, on the way to its result."""
    carried: dict[_Key, set[int]] = {_key(source): set()}
    worked: set[_Key] = set()
    for index in call.operations:
        op = trace.operations[index]
        inputs = [value for value in op.inputs if value is not None]
        outputs = [(index, number) for number in range(len(op.shapes))]
        along = [value for value in inputs if _key(value) in carried and _carries(op, value)]
        if along:
            joined = set().union(*(carried[_key(value)] for value in along))
            made = [value for value in inputs if _key(value) in worked]
            if op.kind in _SUMS and any(one is not other for one in along for other in made):
                joined.add(index)
            carried[outputs[0]] = joined
        if any(_key(value) in worked or (_key(value) in carried and not along) for value in inputs):
            worked.update(outputs)
    return carried.get(_key(result), set())


def _carries(op: Operation, value: Value) -> bool:
    return op.kind in _CARRIERS.split() and bool(op.shapes) and prod(op.shapes[0]) == prod(value.shape)


def _outermost(blocks: Sequence[Block]) -> list[Block]:
    found: list[Block] = []
    for block in blocks:
        if any(is_within(block.path, other.path) for other in blocks if other is not block):
            continue
        inner = [other for other in blocks if other is not block and is_within(other.path, block.path)]
        direct = [b for b in inner if not any(b is not other and is_within(b.path, other.path) for other in inner)]
        own = block.sums.difference(*(b.sums for b in direct))
        apart = [b for b in direct if not b.sums & block.sums]
        found.extend([block] if own and len(apart) < 2 else _outermost(inner))
    return found


# ------------------------------------------------------------------------------------------------------------ choosing


def score_blocks(
    blocks: Sequence[Block],
    groups: Sequence[Group],
    scores: Mapping[int, Tensor | None],
    tensors: Mapping[str, Tensor],
    judge: Callable[[Group], Tensor | None],
) -> dict[str, float | None]:
    """A score for each block from those of the channels that live inside it alone, higher = keep; None without any.

    The mean score of a group of channels counts in shares of what the same groups have in the other blocks, so that
    each group weighs the same: ``mean over groups g of mean(s_g) / mean over blocks of mean(s_g)``. A block without
    channels of its own is judged as a group of one unit, in shares of what blocks of its size have.
    """
    means: dict[str, dict[tuple[str, str], float]] = {block.path: {} for block in blocks}
    for block in blocks:
        for group in groups:
            values = scores.get(group.index)
            if values is not None and all(is_within(layer, block.path) for layer in group.layers):
                means[block.path][block.kind, group.name[len(block.path) :]] = float(values.mean())
        if not means[block.path]:
            values = judge(_as_group(block, tensors))
            if values is not None:
                means[block.path][block.kind, str(block.parameters)] = float(values.mean())
    usual: dict[tuple[str, str], list[float]] = {}
    for own in means.values():
        for key, value in own.items():
            usual.setdefault(key, []).append(abs(value))
    return {
        path: float(np.mean([value / (float(np.mean(usual[key])) or 1.0) for key, value in own.items()]))
        if own
        else None
        for path, own in means.items()
    }


def _as_group(block: Block, tensors: Mapping[str, Tensor]) -> Group:
    """A block as a group of one unit that holds all of its parameters."""
    own = {
        name: tensor.shape[0]
        for name, tensor in tensors.items()
        if is_within(name, block.path) and isinstance(tensor, nn.Parameter) and tensor.dim()
    }
    members = (Member(name, 0, "output", n, np.arange(n), np.zeros(n, np.int64)) for name, n in own.items())
    only = np.zeros(1, np.int64)
    return Group(-1, block.path, "blocks", 1, 1, tuple(members), (only,), (), only)


def choose_blocks(scores: Mapping[str, float | None], ratio: float, named: Collection[str] = ()) -> set[str]:
    """The blocks to drop: those that are named, then the lowest scores until the share is reached.

    The share counts every block in ``scores`` and is rounded to the nearest block; at least one is left, unless all
    are named. Blocks without a score are left. Ties are broken by position.
    """
    chosen = {path for path in scores if path in named}
    wanted = min(int(ratio * len(scores) + 0.5), len(scores) - 1)
    for path in sorted((p for p, score in scores.items() if score is not None), key=lambda p: scores[p] or 0.0):
        if len(chosen) >= wanted:
            break
        chosen.add(path)
    return chosen | set(named)


# ----------------------------------------------------------------------------------------------------------- recording


def renumber_groups(
    cuts: Sequence[GroupCut],
    left: Sequence[Group],
    whole: Sequence[Group],
    dropped: Sequence[str],
    scores: Mapping[int, Tensor | None],
) -> tuple[GroupCut, ...]:
    """The records of a model without some blocks as records of the whole model, so that plans count in one numbering.

    ``cuts`` speak of the groups that are ``left``. In a group of the ``whole`` model the units go that lie in the
    dropped blocks alone, and those that ``cuts`` remove; ``scores`` ({group index: scores}) are those before. What
    could not be pruned before keeps its own record.
    """
    places = _Places(whole)
    found = []
    for group in whole:
        stays = np.zeros(group.size, bool)
        for member in group.members:
            if not any(is_within(member.parameter, path) for path in dropped):
                stays[member.units] = True
        values = scores.get(group.index)
        found.append(_Record(group, ~stays, None if values is None else values.numpy().copy()))
    others = []
    known = {(group.name, group.kind): group for group in left}
    for cut in cuts:
        group = known.get((cut.name, cut.kind))
        owners, units = places.find(group) if group is not None and group.size == cut.size else (np.zeros(0), None)
        if units is None or (owners < 0).all():
            others.append(cut)
            continue
        gone = np.isin(np.arange(cut.size), cut.dropped)
        for number in np.unique(owners[owners >= 0]).tolist():
            found[number].add(cut, units[owners == number], gone[owners == number], owners == number)
    return (*(record.cut() for record in found), *others)


class _Places:
    """Which group and which of its units each index of each tensor's dimension belongs to."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._found: dict[tuple[str, int], tuple[IntArray, IntArray]] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                empty = np.full(member.size, -1), np.zeros(member.size, np.int64)
                owners, units = self._found.setdefault((member.parameter, member.dim), empty)
                owners[member.positions] = number
                units[member.positions] = member.units

    def find(self, group: Group) -> tuple[IntArray, IntArray]:
        """For each unit of another group the group here (-1 for none) and the unit there."""
        owners, units = np.full(group.size, -1), np.zeros(group.size, np.int64)
        for member in group.members:
            known = self._found.get((member.parameter, member.dim))
            if known is not None:
                here = known[0][member.positions] >= 0
                owners[member.units[here]] = known[0][member.positions][here]
                units[member.units[here]] = known[1][member.positions][here]
        return owners, units


@dataclass
class _Record:
    """What goes from a group of the whole model: with the blocks, and as a channel."""

    group: Group
    with_blocks: NDArray[np.bool_]
    scores: NDArray[np.float64] | None
    chosen: set[int] = field(default_factory=set)
    asked: float | None = None
    note: str = ""

    def add(self, cut: GroupCut, units: IntArray, gone: NDArray[np.bool_], own: NDArray[np.bool_]) -> None:
        """Adds what a cut of the smaller model removes from this group, and its scores."""
        self.chosen.update(units[gone].tolist())
        self.asked, self.note = cut.asked_ratio, cut.note
        if cut.scores is None:
            self.scores = None
        elif self.scores is not None:
            self.scores[units] = np.array(cut.scores)[own]

    def cut(self) -> GroupCut:
        """The record."""
        group, count = self.group, int(self.with_blocks.sum())
        note = f"{count} of them went with a dropped block" if 0 < count < group.size else ""
        return GroupCut(
            group.name,
            group.kind,
            group.size,
            tuple(sorted(self.chosen | set(np.flatnonzero(self.with_blocks).tolist()))),
            group.width,
            self.asked,
            None if self.scores is None else tuple(self.scores.tolist()),
            self.note or note,
        )
