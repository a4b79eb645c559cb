"""A cut tried out without cutting: the model with what a plan drops left out of its arithmetic."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.errors import InputError
from cleanai.inputs import map_tensors
from cleanai.isolation import Snapshot, list_state, surely
from cleanai.masking import ProofArithmetic, is_whole
from cleanai.plan import Plan
from cleanai.slicing import check_plan
from cleanai.undo import cuts_by_tensor
from cleanai.verify import drop_indices, pass_by


@contextmanager
def apply_masks(model: nn.Module, plan: Plan) -> Generator[nn.Module]:
    """The masked model, while the context lasts: it computes what the sliced one would; afterwards it is as before.

    The same oracle as in the proof: what a plan drops does not exist for sums, products and statistics. Several times
    slower than the sliced model, but nothing is copied or cut, so that many plans can be tried in turn. The model is in
    evaluation mode, and its outputs have no gradients. Call the model itself, not its parts.

    Raises:
        InputError: ``model`` is no module with a forward of its own.
        PlanError: the plan does not fit the model.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 3)
        >>> pruner = StructuredPruner(net, x)
        >>> with pruner.make_plan().apply_masks(net) as masked:
        ...     preview = masked(x)
        >>> torch.allclose(preview, pruner.prune()(x))
        True
    """
    if not isinstance(model, nn.Module) or type(model).forward is nn.Module.forward:
        raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module that can be called")
    check_plan(model, plan)
    cuts, snapshot = cuts_by_tensor(plan), Snapshot(model)
    forward = model.forward
    try:
        with torch.inference_mode(False), torch.no_grad():
            for state in list_state(model):
                tensor = drop_indices(state.tensor.detach(), cuts.get(state.name, ()))
                # Differentiable parameters keep torch from switching to fused kernels that hide their arithmetic.
                tensor = nn.Parameter(tensor, not is_whole(tensor)) if state.is_parameter else tensor
                for place in state.places:
                    place.put(tensor)
        for module in model.modules():
            module.training = False
        for path in plan.dropped_blocks:
            pass_by(model.get_submodule(path))
        model.__dict__["forward"] = _masked(forward, _widest(model))
        yield model
    finally:
        surely(snapshot.restore)


def _masked(forward: Any, dtype: torch.dtype) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.enable_grad(), ProofArithmetic(dtype, masked=True, perturbed=False):
            own_args, own_kwargs = map_tensors(Tensor.clone, (args, kwargs))  # tensors of inference mode among them
            output = forward(*own_args, **own_kwargs)
        return map_tensors(Tensor.detach, output)

    return run


def _widest(model: nn.Module) -> torch.dtype:
    """The precision to compute in: that of the model, and at least float32."""
    double = any(parameter.dtype in (torch.float64, torch.complex128) for parameter in model.parameters())
    return torch.float64 if double else torch.float32
