"""Working on a model without leaving a trace: snapshots, shadow tensors, random state."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cleanai.errors import InputError

_CONTAINERS = (dict, list, set)


@dataclass(frozen=True)
class StateTensor:
    """One tensor a model owns and every place that holds it.

    ``places`` lists (module, attribute, kind); tied weights have several. ``kind`` is "parameter", "buffer", or
    "attribute" for a tensor kept as a plain attribute of a module.
    """

    name: str
    tensor: Tensor
    places: tuple[tuple[nn.Module, str, str], ...] = field(repr=False)

    @property
    def is_statistic(self) -> bool:
        """Whether this is a normalisation layer's running statistic, which autograd refuses to differentiate."""
        module, attribute, kind = self.places[0]
        return kind == "buffer" and attribute in ("running_mean", "running_var") and hasattr(module, "momentum")


def list_state(model: nn.Module) -> list[StateTensor]:
    """Every tensor of a model (parameters, buffers, plain attributes), tied ones once, under the first name."""
    found: dict[int, tuple[str, Tensor, list[tuple[nn.Module, str, str]]]] = {}
    for path, module in model.named_modules():
        stores = (("parameter", module._parameters), ("buffer", module._buffers), ("attribute", module.__dict__))
        for kind, store in stores:
            for attribute, tensor in store.items():
                if not isinstance(tensor, Tensor):
                    continue
                if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                    raise InputError(
                        f"{path or 'the model'}.{attribute} is not initialised yet (a lazy layer): "
                        "run the model once on real inputs, then prune it."
                    )
                name = f"{path}.{attribute}" if path else attribute
                found.setdefault(id(tensor), (name, tensor, []))[2].append((module, attribute, kind))
    return [StateTensor(name, tensor, tuple(places)) for name, tensor, places in found.values()]


def store_tensor(module: nn.Module, attribute: str, kind: str, tensor: Tensor) -> None:
    """Puts a tensor where a module keeps it, past `nn.Module.__setattr__` (which would move plain attributes)."""
    stores: dict[str, Any] = {
        "parameter": module._parameters,
        "buffer": module._buffers,
        "attribute": module.__dict__,
    }
    stores[kind][attribute] = tensor


class _Snapshot:
    """What a model's modules hold: classes, attributes, and the contents of their dicts, lists and sets."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = []
        for module in model.modules():
            held = dict(module.__dict__)
            contents = [(box, box.copy()) for box in held.values() if isinstance(box, _CONTAINERS)]
            self.modules.append((module, type(module), held, contents))
        self.parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]

    def restore(self) -> None:
        for module, kind, held, contents in self.modules:
            if type(module) is not kind:
                module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(held)
            for box, content in contents:
                box.clear()
                box.extend(content) if isinstance(box, list) else box.update(content)
        for parameter, requires_grad, grad in self.parameters:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


@contextmanager
def preserve_random_state() -> Generator[None]:
    """Puts the random number generators of torch (CPU and initialised GPUs), numpy and Python back as they were."""
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
    snapshot = _Snapshot(model)
    with preserve_random_state(), torch.inference_mode(False):  # the caller may be in inference mode
        try:
            yield
        finally:
            snapshot.restore()


@contextmanager
def transaction(model: nn.Module) -> Generator[None]:
    """Keeps the changes made to a model inside, or takes all of them back when anything is raised."""
    snapshot = _Snapshot(model)
    try:
        yield
    except BaseException:
        snapshot.restore()
        raise


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Switches every module to evaluation mode and each one back to its own mode."""
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
    is_parameter = state.places[0][2] == "parameter"
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
            for module, attribute, place in state.places:
                store_tensor(module, attribute, place, shadow)
        if prepare is not None:
            prepare(model)
        yield owners
