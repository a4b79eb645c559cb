"""A network as a row of blocks that can be run on their own: what is looked at, and repaired, as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cleanai.inputs import map_tensors, output_tensors
from cleanai.matrices import LayerMatrix
from cleanai.trace import Trace

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and keyword arguments of a call."""
Vector = dict[str, Tensor]
"""One tensor for each of some parameters, by name."""


def run_block(block: nn.Module, call: Call, parameters: Vector | None = None) -> Tensor:
    """The first tensor that a block returns; its arguments are copied, since a block may write to them."""
    args, kwargs = map_tensors(torch.clone, call[0]), map_tensors(torch.clone, call[1])
    output = block(*args, **kwargs) if parameters is None else functional_call(block, parameters, args, kwargs)
    return output_tensors(output)[0]


def find_norms(trace: Trace, model: nn.Module) -> dict[str, str]:
    """The BatchNorm that alone reads each layer's output: {path of the layer: path of the norm}."""
    modules = dict(model.named_modules())
    readers: dict[Any, list[Any]] = {}
    for operation in trace.operations:
        for value in operation.inputs:
            if value is not None:
                readers.setdefault(value, []).append(operation)
    found = {}
    for path, call in trace.calls.items():
        own = readers.get(call.result, []) if call.result is not None and call.count == 1 else []
        norm = modules.get(own[0].module) if len(own) == 1 else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and "BatchNorm" in own[0].kind:
            found[path] = own[0].module
    return found


def list_stages(model: nn.Module, trace: Trace, most: int = 8) -> list[str]:
    """The modules that are repaired as one, in the order of their calls.

    A block is the largest module with at most ``most`` layers that is called once; a plain container is no block, its
    parts are. A layer outside of any block stands for itself.
    """
    found: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        layers = sum(LayerMatrix.fits(part) for part in module.modules())
        call = trace.calls.get(path)
        whole = call is not None and call.count == 1 and call.result is not None and path != ""
        plain = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if whole and layers and not plain and layers <= most:
            found.append(path)
        elif layers:
            for name, part in module.named_children():
                visit(f"{path}.{name}" if path else name, part)

    if LayerMatrix.fits(model):
        return [""]
    visit("", model)
    order = {path: min(trace.calls[path].operations, default=0) for path in found}
    return sorted(found, key=order.__getitem__)
