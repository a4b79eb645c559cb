"""A forward pass as a list of operations, read from autograd: the only file that knows ``grad_fn``."""

from __future__ import annotations

import bisect
import re
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import CheckpointFunction

from cleanai.errors import CleanAIError, TraceError
from cleanai.inputs import call_model, first_tensor, map_tensors, output_tensors
from cleanai.isolation import ShadowKind, StateTensor, list_state, shadow_model
from cleanai.layers import prepare_layers
from cleanai.registry import find_layer_rule

__all__ = ["Operation", "Trace", "Value", "trace_model"]

Shape = tuple[int, ...]
ForwardFunction = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Value:
    """One output of an operation: a tensor of the forward pass.

    Attributes:
        operation: the index of the operation in `Trace.operations`.
        output: which of its outputs, from 0.
        shape: the tensor's shape.

    Example:
        >>> trace = trace_model(nn.Linear(3, 2), torch.zeros(1, 3))
        >>> trace.outputs
        (Value(operation=5, output=0, shape=(1, 2)),)
        >>> trace.operations[trace.outputs[0].operation].kind
        'Addmm'
    """

    operation: int
    output: int
    shape: Shape


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer that is traced as a whole: the shapes of its arguments, and the names of its tensors.

    Its operation's inputs are the floating-point tensors among the arguments, then the layer's own.
    """

    module: nn.Module
    shapes: tuple[Shape, ...]
    states: tuple[str, ...]


@dataclass(frozen=True)
class ModuleCall:
    """How a module was called: ``count`` times, the last time from ``source`` to ``result``.

    ``source`` is its first floating-point tensor argument and ``result`` the tensor it returned, on its own
    (``places`` 0) or first in a tuple of so many places; None where there is no such tensor, or autograd does not know
    it. ``places`` is None where it returned something else. ``operations`` were executed during the call, leaves not
    counted.
    """

    count: int
    source: Value | None
    result: Value | None
    places: int | None
    operations: tuple[int, ...] = field(repr=False)


@dataclass
class Operation:
    """One differentiable operation of the forward pass.

    Attributes:
        index: its place in `Trace.operations`.
        kind: autograd's name without its decoration: "Convolution", "Add", "Parameter" for a leaf of the model, "Input"
            for a leaf of the inputs.
        variant: the number that autograd puts after the name, as text: "0" in ``AddBackward0``; "" where there is none.
        inputs: its differentiable arguments in the order of the signature, each a `Value`; None for a constant.
        shapes: the shapes of its outputs.
        module: the path of the innermost module that was running.
        state: the model's tensor behind a leaf, with its ``name``; None for all else.
        node: autograd's node, or what is kept of it; the methods below read it.
        layer: how a layer that is traced as a whole was called; None for all else.
        buffers: the model's tensors by ``id``, for `saved_state`.

    Example:
        >>> trace = trace_model(nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), torch.zeros(1, 3))
        >>> last = trace.operations[-1]
        >>> last.kind, last.module, last.shapes, last.saved_int("dim")
        ('Softmax', '1', ((1, 2),), 1)
        >>> [trace.operations[value.operation].where for value in last.inputs]
        ['Addmm in 0']
    """

    index: int
    kind: str
    variant: str
    inputs: tuple[Value | None, ...]
    shapes: tuple[Shape, ...]
    module: str
    state: StateTensor | None = None
    node: Any = field(default=None, repr=False)
    layer: LayerCall | None = field(default=None, repr=False)
    buffers: dict[int, StateTensor] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        """The operation and its module, as errors and reports name it."""
        kind = type(self.layer.module).__name__ if self.layer is not None else self.kind
        return f"{kind} in {self.module}" if self.module else kind

    def saved(self, name: str, default: Any = None) -> Any:
        """What autograd saved of the argument ``name``: a number, a tuple, None, or a tensor; else ``default``."""
        return getattr(self.node, f"_saved_{name}", default)

    def saved_int(self, name: str) -> int:
        """A saved integer, undoing the unsigned form in which autograd hands out negative ones."""
        return _signed(self.saved(name))

    def saved_ints(self, name: str) -> tuple[int, ...]:
        """A saved sequence of integers (see `saved_int`)."""
        return tuple(_signed(value) for value in self.saved(name) or ())

    def saved_shape(self, name: str) -> Shape | None:
        """The shape of a saved tensor, or None where there is none."""
        try:
            tensor = self.saved(name)
        except RuntimeError:  # overwritten in place since: it had the shape of the value that replaced it
            return None
        return tuple(tensor.shape) if isinstance(tensor, Tensor) else None

    def saved_state(self, name: str) -> StateTensor | None:
        """The model's tensor that was saved under this name, if it is one."""
        return self.buffers.get(id(self.saved(name)))

    def pull_back(self, gradients: Sequence[Tensor]) -> list[Tensor | None] | None:
        """The operation's vector-Jacobian product, by running its node: one gradient for each of its inputs.

        None where autograd cannot compute it: what it saved has no values (a trace on the meta device) or is gone.
        """
        try:
            own = isinstance(self.node, torch.autograd.function.BackwardCFunction)
            with torch.no_grad():
                found = self.node.apply(*gradients) if own else self.node(*gradients)
        except Exception:  # a backward of somebody's own may raise anything
            return None
        return list(found) if isinstance(found, (tuple, list)) else [found]

    def _all_saved(self) -> Iterator[tuple[str, Any]]:
        names = vars(self.node) if isinstance(self.node, SimpleNamespace) else _saved_names(type(self.node))
        for attribute in names:
            with suppress(RuntimeError):  # overwritten in place since
                yield attribute, getattr(self.node, attribute)

    def release(self) -> None:
        """Lets go of the graph and of the values it saved (weights, activations); numbers and shapes stay."""
        self.node = SimpleNamespace(**{name: _without_values(value) for name, value in self._all_saved()})
        self.buffers = {}

    def numbers(self) -> dict[str, Any]:
        """Every saved argument that is a number, a flag, or a tuple of numbers: what a changed size must not change."""
        found = {}
        for attribute, value in self._all_saved():
            if isinstance(value, Tensor):
                if value.dim() or value.device.type == "meta":
                    continue
                value = value.item()
            if value is None or isinstance(value, (int, float, bool, complex, str)):
                found[attribute] = value
            elif isinstance(value, (tuple, list)) and all(isinstance(item, (int, float)) for item in value):
                found[attribute] = tuple(value)
        return found


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.dim() == 0 else torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_without_values(item) for item in value)
    return value


_SAVED_NAMES: dict[type, tuple[str, ...]] = {}
_NAME = re.compile(r"^(?:torch::autograd::)?(.*?)(?:Backward)?(\d*)$")


def _saved_names(kind: type) -> tuple[str, ...]:
    if kind not in _SAVED_NAMES:
        _SAVED_NAMES[kind] = tuple(name for name in dir(kind) if name.startswith("_saved_"))
    return _SAVED_NAMES[kind]


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@dataclass
class Trace:
    """The operations of a forward pass in execution order, with the values the model returned.

    `cleanai.trace_model` makes it.

    Attributes:
        operations: one `Operation` for each, inputs before what uses them.
        outputs: the values that the model returned, as far as autograd knows them. With a ``failure``, what had flowed
            into the modules that were running.
        unused: the model's parameters that no operation uses, each with its ``name``.
        method: how it was obtained: "meta" (no memory, no arithmetic) or "real" (the forward needed values).
        training: whether the training-mode branches were run.
        failure: why the forward broke off; "" where it did not.
        inputs: the inputs of this trace, where they are others than the example's.
        detached: the shapes of outputs that do not depend on anything through autograd.
        track_buffers: whether buffers were followed like parameters.
        change: what was done to the stand-in before this trace; None for nothing.
        calls: how the modules were called, by path.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.used, self.forgotten = nn.Linear(3, 2), nn.Linear(3, 2)
        ...     def forward(self, x):
        ...         return self.used(x).relu()
        >>> trace = trace_model(Net(), torch.zeros(1, 3))
        >>> [operation.kind for operation in trace.operations]
        ['Input', 'Clone', 'Parameter', 'T', 'Parameter', 'Addmm', 'Relu']
        >>> [state.name for state in trace.unused]
        ['forgotten.weight', 'forgotten.bias']
    """

    operations: list[Operation]
    outputs: tuple[Value, ...]
    unused: tuple[StateTensor, ...]
    method: str
    training: bool = False
    failure: str = ""
    inputs: Any = field(default=None, repr=False)
    detached: tuple[Shape, ...] = ()
    track_buffers: bool = True
    change: Callable[[nn.Module], object] | None = field(default=None, repr=False)
    calls: dict[str, ModuleCall] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.operations)

    def release(self) -> None:
        """Lets go of what the operations hold of the forward pass (see `Operation.release`)."""
        for operation in self.operations:
            operation.release()

    def __repr__(self) -> str:
        return f"Trace({len(self.operations)} operations, {len(self.unused)} unused parameters, by {self.method})"


Edge = tuple[Any, int, Shape]
"""A tensor as autograd knows it: the node that made it, which of the node's outputs it is, and its shape."""


def _edge_of(tensor: Tensor | None) -> Edge | None:
    if tensor is None or tensor.grad_fn is None:
        return None
    return tensor.grad_fn, tensor.output_nr, tuple(tensor.shape)


def _count_places(output: Any) -> int | None:
    """0 for a floating-point tensor, n for a tuple of n that begins with one; None for any other output.

    What follows in a tuple must be None or a tensor whose readers autograd knows.
    """
    places = len(output) if type(output) is tuple else 0
    first, *others = output if places else (output,)
    known = all(other is None or (isinstance(other, Tensor) and other.grad_fn is not None) for other in others)
    return places if known and isinstance(first, Tensor) and first.is_floating_point() else None


@dataclass
class _Call:
    """One call of a module as it is recorded; ``start`` and ``end`` are autograd's sequence numbers."""

    start: int
    source: Edge | None
    end: int | None = None
    result: Edge | None = None
    places: int | None = None


class _ModuleClock:
    """Forward hooks that note which module was running at which point of autograd's sequence."""

    def __init__(self, model: nn.Module) -> None:
        self._tick = torch.zeros((), requires_grad=True)
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self.entered: list[Tensor] = []
        self.results: list[Any] = []
        self.calls: dict[str, list[_Call]] = {}
        self._marks: list[tuple[int, str]] = [(self._now(), "")]
        for module in model.modules():
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave, with_kwargs=True)

    def _now(self) -> int:
        with torch.enable_grad():
            node: Any = self._tick.view_as(self._tick).grad_fn
            return node._sequence_nr()

    def _enter(self, module: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> None:
        self._stack.append(self._names.get(id(module), ""))
        self.entered = [tensor for tensor in output_tensors(inputs) if tensor.grad_fn is not None]
        self._marks.append((self._now(), self._stack[-1]))
        source = first_tensor(inputs, kwargs)
        self.calls.setdefault(self._stack[-1], []).append(_Call(self._marks[-1][0], _edge_of(source)))

    def _leave(self, module: nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = self._names.get(id(module), "")
        while self._stack and self._stack.pop() != name:
            pass  # modules whose own forward raised something that was caught further out
        self._marks.append((self._now(), self._stack[-1] if self._stack else ""))
        self.results.extend(tensor.grad_fn for tensor in output_tensors(output) if tensor.grad_fn is not None)
        call = next(call for call in reversed(self.calls[name]) if call.end is None)
        call.end, call.places = self._marks[-1][0], _count_places(output)
        call.result = None if call.places is None else _edge_of(output if call.places == 0 else output[0])

    @property
    def running(self) -> str:
        """The module that was running when the forward stopped."""
        return self._stack[-1] if self._stack else ""

    def modules_of(self, numbers: Sequence[int]) -> list[str]:
        """The module running at each of the given sequence numbers."""
        starts = [start for start, _ in self._marks]
        return [self._marks[max(bisect.bisect_right(starts, number) - 1, 0)][1] for number in numbers]


class WholeLayer(torch.autograd.Function):
    """A layer as one node of the graph; its inside is not recorded."""

    @staticmethod
    def forward(ctx: Any, call: LayerCall, run: Callable[[], list[Tensor]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """The layer's floating-point results; ``tensors`` are what the graph shall know that they depend on."""
        ctx.call = call
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in run())


_WHOLE_LAYER = WholeLayer.__name__


def _trace_as_one(module: nn.Module) -> None:
    """Makes a module of a stand-in appear as one operation, with its arguments and its own tensors as inputs."""
    inside = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = [tensor for tensor in output_tensors((args, kwargs)) if tensor.is_floating_point()]
        own = [(state.name, state.tensor) for state in list_state(module) if state.tensor.is_floating_point()]
        call = LayerCall(module, tuple(tuple(t.shape) for t in arguments), tuple(name for name, _ in own))
        result: Any = None

        def run() -> list[Tensor]:
            nonlocal result
            result = inside(*args, **kwargs)
            return [tensor for tensor in output_tensors(result) if tensor.is_floating_point()]

        traced = iter(WholeLayer.apply(call, run, *arguments, *(tensor for _, tensor in own)))
        return map_tensors(lambda tensor: next(traced) if tensor.is_floating_point() else tensor, result)

    module.__dict__["forward"] = forward


def _ordered_nodes(roots: Sequence[Any]) -> list[Any]:
    """Every node under the roots, inputs before the nodes that use them (depth first, no recursion)."""
    order: list[Any] = []
    done: set[Any] = set()
    stack: list[tuple[Any, Iterator[Any]]] = []
    for root in roots:
        if root in done:
            continue
        done.add(root)
        stack.append((root, iter(root.next_functions)))
        while stack:
            node, edges = stack[-1]
            for child, _ in edges:
                if child is not None and child not in done:
                    done.add(child)
                    stack.append((child, iter(child.next_functions)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def leaves_of(tensors: Sequence[Tensor]) -> set[int]:
    """The ids of the leaf tensors (parameters) that some tensors depend on through autograd."""
    nodes = _ordered_nodes([tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None])
    return {id(leaf) for node in nodes if (leaf := getattr(node, "variable", None)) is not None}


def _in_execution_order(nodes: list[Any]) -> list[Any]:
    """The nodes as they were executed, each leaf just before its first use.

    Where in-place writes to views have rewritten the graph, creation order is not an order of dependence: then the
    depth-first order stays.
    """
    number = {node: node._sequence_nr() for node in nodes if node.next_functions}
    for node in nodes:
        for child, _ in node.next_functions:
            if child is not None and not child.next_functions:
                number[child] = min(number.get(child, number[node]), number[node] - 0.5)
    ordered = sorted(nodes, key=lambda node: number.get(node, -1))
    position = {node: index for index, node in enumerate(ordered)}
    for node in ordered:
        if any(child is not None and position[child] > position[node] for child, _ in node.next_functions):
            return nodes
    return ordered


def _node_shapes(node: Any) -> tuple[Shape, ...]:
    try:
        return tuple(tuple(int(size) for size in item.shape) for item in node._input_metadata)
    except (AttributeError, RuntimeError):  # a node of a kind that keeps none
        return ()


def _build_operations(
    nodes: Sequence[Any], owners: dict[int, StateTensor], clock: _ModuleClock
) -> tuple[list[Operation], dict[Any, int]]:
    names = [_NAME.match(node.name()) for node in nodes]
    numbers = [node._sequence_nr() if node.next_functions else -1 for node in nodes]
    modules = clock.modules_of(numbers)
    index_of = {node: index for index, node in enumerate(nodes)}
    operations: list[Operation] = []
    for index, (node, name) in enumerate(zip(nodes, names, strict=True)):
        kind, variant = (name.group(1), name.group(2)) if name else (node.name(), "")
        state = None
        module = modules[index]
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            state = owners.get(id(variable))
            kind, shapes = ("Parameter" if state else "Input"), (tuple(variable.shape),)
            module = state.name.rpartition(".")[0] if state else ""
        else:
            shapes = _node_shapes(node)
        inputs = []
        for child, output in node.next_functions:
            if child is None:
                inputs.append(None)
                continue
            source = operations[index_of[child]]
            shape = source.shapes[output] if output < len(source.shapes) else ()
            inputs.append(Value(source.index, output, shape))
        layer = node.call if kind == _WHOLE_LAYER else None
        operations.append(Operation(index, kind, variant, tuple(inputs), shapes, module, state, node, layer, owners))
    return operations, index_of


def _list_calls(clock: _ModuleClock, index_of: dict[Any, int]) -> dict[str, ModuleCall]:
    """The calls of every module in terms of operations."""
    numbered = sorted((node._sequence_nr(), index) for node, index in index_of.items() if node.next_functions)

    def value_of(edge: Edge | None) -> Value | None:
        return None if edge is None or edge[0] not in index_of else Value(index_of[edge[0]], *edge[1:])

    found = {}
    for path, calls in clock.calls.items():
        last = calls[-1]
        first, end = (bisect.bisect(numbered, (number or 0, 0)) for number in (last.start, last.end))
        operations = tuple(sorted(index for _, index in numbered[first:end]))
        found[path] = ModuleCall(len(calls), value_of(last.source), value_of(last.result), last.places, operations)
    return found


def shadow_inputs(example_inputs: Any, kind: ShadowKind) -> Any:
    """Example inputs that can be traced: floating-point tensors become the result of a differentiable copy.

    A copy rather than a leaf, so that a model may write to its inputs in place.
    """

    def shadow(tensor: Tensor) -> Tensor:
        moved = torch.empty_like(tensor, device="meta") if kind == "meta" else tensor.detach()
        if moved.is_floating_point() or moved.is_complex():
            return moved.detach().requires_grad_().clone()
        return moved.clone()

    return map_tensors(shadow, example_inputs)


def set_training_of_containers(model: nn.Module) -> None:
    """Training mode for modules that only decide what runs; normalisation and dropout stay as in evaluation."""
    for module in model.modules():
        if not isinstance(module, (_NormBase, _DropoutNd)):
            module.training = True


@contextmanager
def _recording(model: nn.Module, training: bool) -> Generator[_ModuleClock]:
    for module in model.modules():
        module.training = False
    if training:
        set_training_of_containers(model)
    with torch.enable_grad(), _open_checkpoints():
        yield _ModuleClock(model)


_recording_thread = threading.local()


def _apply_checkpoint(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    """Reentrant checkpointing hides what it runs from autograd; a trace runs it in the open."""
    if getattr(_recording_thread, "active", False):
        return function(*args)
    return super(CheckpointFunction, CheckpointFunction).apply(function, preserve, *args)


@contextmanager
def _open_checkpoints() -> Generator[None]:
    """While some trace is being recorded, `CheckpointFunction` runs plainly in that thread, as always in the others."""
    global _open_traces
    with _checkpoint_lock:
        _open_traces += 1
        CheckpointFunction.apply = staticmethod(_apply_checkpoint)
    _recording_thread.active = True
    try:
        yield
    finally:
        _recording_thread.active = False
        with _checkpoint_lock:
            _open_traces -= 1
            if not _open_traces:
                del CheckpointFunction.apply


_checkpoint_lock = threading.Lock()
_open_traces = 0


def _no_path(outputs: int, states: Iterable[StateTensor]) -> TraceError:
    if not any(state.is_parameter for state in states):
        return TraceError("the model has no parameters: there is nothing to prune")
    return TraceError(
        f"no output of the model depends on its parameters through autograd ({outputs} output tensors were looked at): "
        "check that forward does not run under no_grad or detach its result, or pick the differentiable part with "
        "output_transform."
    )


class ForwardFailed(TraceError):
    """The model's forward raised; ``module`` is where, ``trace`` what the modules did that had finished."""

    def __init__(self, message: str, module: str, trace: Trace) -> None:
        super().__init__(message)
        self.module = module
        self.trace = trace


def _trace_once(
    model: nn.Module,
    example_inputs: Any,
    forward_fn: ForwardFunction | None,
    output_transform: Callable[[Any], Any] | None,
    *,
    kind: ShadowKind,
    track_buffers: bool,
    training: bool,
    change: Callable[[nn.Module], object] | None,
) -> Trace:
    def prepare(shadowed: nn.Module) -> None:
        prepare_layers(shadowed)
        for module in shadowed.modules():
            if find_layer_rule(module) is not None:
                _trace_as_one(module)
        if change is not None:
            change(shadowed)

    with shadow_model(model, kind, track_buffers=track_buffers, prepare=prepare) as originals:
        # A change may have replaced shadows by smaller ones: they stand for the same tensors of the model.
        owners = StandIns(originals.values())
        with _recording(model, training) as clock:
            try:
                with warnings.catch_warnings():  # the stand-in's warnings are not about the user's model
                    warnings.simplefilter("ignore")
                    output = call_model(model, shadow_inputs(example_inputs, kind), forward_fn)
                    output = output_transform(output) if output_transform else output
            except CleanAIError:
                raise
            except Exception as error:
                place = f" in {clock.running}" if clock.running else ""
                message = f"the forward raised {type(error).__name__}{place}: {error}"
                raise ForwardFailed(
                    message, clock.running, _finished(clock, owners, originals, kind, message)
                ) from error
            tensors = output_tensors(output)
            found = [tensor for tensor in tensors if tensor.grad_fn is not None]
            if not found:
                raise _no_path(len(tensors), originals.values())
            # What modules computed that leads to no output (a pooler nobody asked for) must still run after a cut.
            roots = [*(tensor.grad_fn for tensor in found), *clock.results]
            nodes = _in_execution_order(_ordered_nodes(roots))
            operations, index_of = _build_operations(nodes, owners, clock)
            outputs = tuple(Value(index_of[tensor.grad_fn], tensor.output_nr, tuple(tensor.shape)) for tensor in found)
        if not any(operation.state for operation in operations):
            raise _no_path(len(tensors), originals.values())
        calls = _list_calls(clock, index_of)
        detached = tuple(tuple(tensor.shape) for tensor in tensors if tensor.grad_fn is None)
        unused = _list_unused(operations, originals)
        return Trace(
            operations,
            outputs,
            unused,
            kind,
            training,
            calls=calls,
            detached=detached,
            track_buffers=track_buffers,
        )


def _list_unused(operations: Sequence[Operation], originals: dict[int, StateTensor]) -> tuple[StateTensor, ...]:
    reached = {id(operation.state) for operation in operations if operation.state}
    return tuple(
        state
        for state in originals.values()
        if id(state) not in reached and state.is_parameter and state.tensor.is_floating_point()
    )


def _finished(
    clock: _ModuleClock, owners: dict[int, StateTensor], originals: dict[int, StateTensor], kind: str, failure: str
) -> Trace:
    """What had been computed when a forward broke off; the last module's inputs are its outputs."""
    roots = [*clock.results, *(tensor.grad_fn for tensor in clock.entered)]
    operations, index_of = _build_operations(_in_execution_order(_ordered_nodes(roots)), owners, clock)
    outputs = tuple(Value(index_of[t.grad_fn], t.output_nr, tuple(t.shape)) for t in clock.entered)
    return Trace(
        operations,
        outputs,
        _list_unused(operations, originals),
        kind,
        True,
        f"the training forward breaks off there: {failure}",
    )


class StandIns(dict[int, StateTensor]):
    """The model's tensors by the id of what stands for them; keeps those alive, so that no id is given out again."""

    def __init__(self, states: Iterable[StateTensor]) -> None:
        super().__init__()
        self._tensors = []
        for state in states:
            stand_in = state.places[0].get()
            self._tensors.append(stand_in)
            self[id(stand_in)] = state


def trace_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    training: bool = False,
    change: Callable[[nn.Module], object] | None = None,
    method: str | None = None,
    track_buffers: bool | None = None,
) -> Trace:
    """The operations of one forward pass with their shapes, parameters and modules.

    The pass runs without data on the meta device; a model that needs values is run for real, on tensors that stand in
    for its own. Either way the model is left exactly as it was: mode, hooks, gradients, buffers, caches, random state.

    Args:
        model: any module whose forward autograd can record.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        forward_fn: ``forward_fn(model, example_inputs)`` in place of ``model(example_inputs)``.
        output_transform: picks the differentiable part of the output.
        training: trace the training-mode branches (auxiliary heads); normalisation and dropout stay in evaluation.
        change: applied to the stand-in before the pass; the engine uses it to try a cut before making it.
        method: "meta" or "real" to allow only that one.
        track_buffers: whether buffers are followed like parameters, which a forward that writes to them in place
            forbids; both are tried if left out.

    Returns:
        A record with ``operations`` (each with its ``kind``, ``shapes``, ``inputs``, ``module`` and, where it is a
        tensor of the model, ``state``), ``outputs``, ``unused`` parameters, and the ``method`` by which it was
        obtained.

    Raises:
        TraceError: the forward raised, no output depends on the parameters, or the method is unknown.

    Example:
        >>> import torch
        >>> trace = trace_model(torch.nn.Linear(3, 2), torch.randn(1, 3))
        >>> trace
        Trace(6 operations, 0 unused parameters, by meta)
        >>> [(op.kind, op.state.name) for op in trace.operations if op.state is not None]
        [('Parameter', 'weight'), ('Parameter', 'bias')]
        >>> trace.operations[-1].kind, trace.operations[-1].shapes
        ('Addmm', ((1, 2),))
    """
    attempts: list[tuple[ShadowKind, bool]] = [("meta", True), ("meta", False), ("real", True), ("real", False)]
    attempts = [(kind, track) for kind, track in attempts if method in (None, kind) and track_buffers in (None, track)]
    failure: TraceError | None = None
    for kind, track in attempts:
        try:
            return _trace_once(
                model,
                example_inputs,
                forward_fn,
                output_transform,
                kind=kind,
                track_buffers=track,
                training=training,
                change=change,
            )
        except ForwardFailed as error:
            failure = error
    raise failure if failure is not None else TraceError(f"unknown tracing method {method!r}: use 'meta' or 'real'")
