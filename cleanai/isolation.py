"""Working on a model without leaving a trace: snapshots, shadow tensors, random state."""

from __future__ import annotations

import copy
import random
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cleanai.checks import check_model
from cleanai.errors import InputError
from cleanai.inputs import output_tensors

_CONTAINERS = (dict, list, set)
_OF_MODULES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Place:
    """Where a module keeps a tensor: as a "parameter", a "buffer", a plain "attribute", or an "item" of one.

    ``key`` is the place in a list, tuple or dict that the module keeps as ``attribute``.
    """

    module: nn.Module
    attribute: str
    kind: str
    key: Any = None

    def put(self, tensor: Tensor) -> None:
        """Puts a tensor there, past `nn.Module.__setattr__` (which would move plain attributes)."""
        module = self.module
        stores: dict[str, Any] = {
            "parameter": module._parameters,
            "buffer": module._buffers,
            "attribute": module.__dict__,
        }
        if self.kind == "item":
            box = module.__dict__[self.attribute]
            if isinstance(box, tuple):
                module.__dict__[self.attribute] = (*box[: self.key], tensor, *box[self.key + 1 :])
            else:
                box[self.key] = tensor
        else:
            stores[self.kind][self.attribute] = tensor

    def get(self) -> Any:
        """What is there now; None where nothing is."""
        if self.kind == "item":
            box = self.module.__dict__.get(self.attribute, ())
            return box.get(self.key) if isinstance(box, dict) else box[self.key] if self.key < len(box) else None
        return getattr(self.module, self.attribute, None)


@dataclass(frozen=True)
class StateTensor:
    """One tensor a model owns and every place that holds it; tied weights have several.

    Only the model keeps the tensor alive: what is known of a large model must not hold on to weights it has replaced.
    """

    name: str
    reference: weakref.ref[Tensor] = field(repr=False)
    places: tuple[Place, ...] = field(repr=False)

    @property
    def tensor(self) -> Tensor:
        """The tensor itself.

        Raises:
            ReferenceError: it has been replaced in the model and is gone.
        """
        tensor = self.reference()
        if tensor is None:
            raise ReferenceError(f"{self.name} has been replaced in the model since it was listed")
        return tensor

    @property
    def kind(self) -> str:
        """How the model keeps it (see `Place`)."""
        return self.places[0].kind

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter."""
        return self.kind == "parameter"

    @property
    def is_statistic(self) -> bool:
        """Whether this is a normalisation layer's running statistic, which autograd refuses to differentiate."""
        place = self.places[0]
        return (
            place.kind == "buffer"
            and place.attribute in ("running_mean", "running_var")
            and hasattr(place.module, "momentum")
        )


def list_state(model: nn.Module) -> list[StateTensor]:
    """Every tensor of a model, tied ones once, under the first name.

    Parameters, buffers, plain attributes, and what attributes that are lists, tuples or dicts hold (caches).
    """
    check_model(model)
    found: dict[int, tuple[str, Tensor, list[Place]]] = {}
    for path, module in model.named_modules():
        for name, tensor, place in _list_places(module):
            name = f"{path}.{name}" if path else name
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise InputError(
                    f"{name} is not initialised yet (a lazy layer): run the model once on real inputs, then prune it."
                )
            found.setdefault(id(tensor), (name, tensor, []))[2].append(place)
    return [StateTensor(name, weakref.ref(tensor), tuple(places)) for name, tensor, places in found.values()]


def _list_places(module: nn.Module) -> Iterator[tuple[str, Tensor, Place]]:
    stores = (("parameter", module._parameters), ("buffer", module._buffers), ("attribute", module.__dict__))
    for kind, store in stores:
        for attribute, value in store.items():
            if isinstance(value, Tensor):
                yield attribute, value, Place(module, attribute, kind)
    for attribute, value in module.__dict__.items():
        if attribute in _OF_MODULES or type(value) not in (list, tuple, dict):
            continue
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, Tensor):
                yield f"{attribute}[{key}]", item, Place(module, attribute, "item", key)


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """The order of a tensor's memory: channels last where it is so, else contiguous."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if layout is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
        return layout
    return torch.contiguous_format


def drop_caches(model: nn.Module) -> None:
    """Removes the tensors that modules keep in dicts by device or by size; where they are missing they are made anew.

    What was cached before weights change (attention biases gathered once, rotary tables) would not follow.
    """
    for module in model.modules():
        for attribute, box in module.__dict__.items():
            if attribute not in _OF_MODULES and type(box) is dict:
                for key in [key for key, value in box.items() if _is_cache_key(key) and output_tensors(value)]:
                    del box[key]


def _is_cache_key(key: Any) -> bool:
    if isinstance(key, str):
        try:
            torch.device(key)
        except RuntimeError:
            return False
        return True
    return isinstance(key, (torch.device, torch.dtype, int, tuple))


class Snapshot:
    """What a model's modules hold: classes, attributes, and the contents of their dicts, lists and sets."""

    def __init__(self, model: nn.Module) -> None:
        check_model(model)
        self._modules = {}
        for module in model.modules():
            held = dict(module.__dict__)
            contents = [(box, box.copy()) for box in held.values() if isinstance(box, _CONTAINERS)]
            self._modules[id(module)] = (module, type(module), held, contents)
        self._parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self._released: list[tuple[StateTensor, Callable[[], Tensor]]] = []

    def release(self, state: StateTensor, rebuild: Callable[[], Tensor]) -> None:
        """Lets go of a tensor, so that its memory is free once it is replaced.

        `restore` puts the same object back where somebody else still holds it, and otherwise what ``rebuild`` gives.
        """
        tensor = state.tensor
        self._parameters = [entry for entry in self._parameters if entry[0] is not tensor]
        for place in state.places:
            _, _, held, contents = self._modules[id(place.module)]
            if place.kind == "attribute":
                held[place.attribute] = None
            for _, content in contents:
                for key, value in content.items() if isinstance(content, dict) else enumerate(content):
                    if value is tensor:
                        content[key] = None  # keeps its place in the order
        self._released.append((state, rebuild))

    def restore(self) -> None:
        """Puts everything back."""
        for module, kind, held, contents in self._modules.values():
            if type(module) is not kind:
                module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(held)
            for box, content in contents:
                box.clear()
                box.extend(content) if isinstance(box, list) else box.update(content)
        for state, rebuild in self._released:
            tensor = state.reference()
            tensor = rebuild() if tensor is None else tensor
            for place in state.places:
                place.put(tensor)
        for parameter, requires_grad, grad in self._parameters:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


def surely(undo: Callable[[], object]) -> None:
    """Undoes something, and does it again if that is interrupted (a Ctrl-C); the interruption then goes on."""
    try:
        undo()
    except BaseException:
        undo()
        raise


process_state = threading.RLock()
"""Held while something changes for a moment that all threads share: random generators, warning filters, kernel choices.

Two threads that work on two models take turns for as long as each holds it, so that they get what they would get one
after the other. It is not held while the caller's own callbacks run between two steps.
"""


@contextmanager
def preserve_random_state() -> Generator[None]:
    """Puts the random number generators of torch (CPU and initialised GPUs), numpy and Python back as they were.

    Other threads of CleanAI wait meanwhile (see `process_state`): they would draw from the same generators.
    """
    with process_state:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        python, legacy_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a forward may draw from it)
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)  # noqa: NPY002


def seed_random_state(seed: int) -> None:
    """Seeds the generators that `preserve_random_state` puts back."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@contextmanager
def preserve_model(model: nn.Module) -> Generator[None]:
    """Puts a model back as it was at the end, whatever happened inside.

    Covers module classes, attributes (caches included), parameters and buffers as objects, hooks, training mode,
    ``requires_grad``, ``.grad`` and torch's random state. The *values* of tensors are protected by `shadow_model`.
    """
    snapshot = Snapshot(model)
    # The caller may be in inference mode.
    with preserve_random_state(), torch.inference_mode(False), _outside_transaction(model):
        try:
            yield
        finally:
            surely(snapshot.restore)


_transactions: dict[int, Snapshot] = {}


@contextmanager
def _outside_transaction(model: nn.Module) -> Generator[None]:
    """A cut of the stand-in that a model is for a while has nothing to do with the open transaction of the model."""
    outer = _transactions.pop(id(model), None)
    try:
        yield
    finally:
        if outer is not None:
            _transactions[id(model)] = outer


@contextmanager
def transaction(model: nn.Module) -> Generator[Snapshot]:
    """Keeps the changes made to a model inside, or takes all of them back when anything is raised.

    A transaction inside another one on the same model is part of it, except inside `preserve_model`.
    """
    if id(model) in _transactions:
        yield _transactions[id(model)]
        return
    snapshot = Snapshot(model)
    try:
        _transactions[id(model)] = snapshot
        yield snapshot
    except BaseException:
        surely(snapshot.restore)
        raise
    finally:
        del _transactions[id(model)]


def take_back(model: nn.Module) -> None:
    """Undoes what has been changed in the open transaction of a model, which stays open; without one, nothing."""
    if id(model) in _transactions:
        surely(_transactions[id(model)].restore)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Switches every module to evaluation mode and each one back to its own mode."""
    check_model(model)
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


ShadowKind = Literal["meta", "real"]


def shadow_tensor(state: StateTensor, kind: ShadowKind, track_buffers: bool = True) -> Tensor:
    """A stand-in for a model's tensor that can be traced: same shape, differentiable, the original out of reach.

    "meta" has no data; "real" shares the data of parameters and copies everything else, which a forward may write to.
    Without ``track_buffers`` only parameters are differentiable: a forward may then write to buffers in place.
    """
    source = state.tensor.detach()
    is_parameter = state.is_parameter
    real = source if is_parameter or kind == "meta" else source.clone()
    shadow = torch.empty_like(source, device="meta") if kind == "meta" else real
    differentiable = (shadow.is_floating_point() or shadow.is_complex()) and not state.is_statistic
    if is_parameter:
        return nn.Parameter(shadow, requires_grad=differentiable)
    return shadow.requires_grad_(differentiable and track_buffers)


@contextmanager
def shadow_model(
    model: nn.Module,
    kind: ShadowKind,
    *,
    track_buffers: bool = True,
    prepare: Callable[[nn.Module], Any] | None = None,
) -> Generator[dict[int, StateTensor]]:
    """Swaps a model's tensors for shadows while the context lasts; yields {id(shadow): the state it stands for}.

    ``prepare`` may then change the model in any way: everything is undone at the end.
    """
    with preserve_model(model):
        owners: dict[int, StateTensor] = {}
        keep = []
        for state in list_state(model):
            shadow = shadow_tensor(state, kind, track_buffers)
            keep.append(shadow)
            owners[id(shadow)] = state
            for place in state.places:
                place.put(shadow)
        drop_caches(model)
        if prepare is not None:
            prepare(model)
        yield owners


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        InputError: it holds something that cannot be copied.
    """
    try:
        with torch.inference_mode(False):  # what is copied inside it could never be trained or repaired
            return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); prune it with inplace=True instead"
        ) from error


def share_tensors(model: nn.Module) -> nn.Module:
    """A copy of a model's modules that shares its parameters and buffers.

    Raises:
        InputError: it holds something that cannot be copied.
    """
    known: dict[int, Any] = {id(state.tensor): state.tensor for state in list_state(model)}
    try:
        return copy.deepcopy(model, known)
    except Exception as error:
        raise InputError(f"the model cannot be copied ({type(error).__name__}: {error})") from error
