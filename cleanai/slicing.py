"""A plan carried out: every tensor rewritten smaller, every size that a module keeps brought up to date."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.errors import PlanError
from cleanai.isolation import StateTensor, list_state, store_tensor, transaction
from cleanai.layers import make_sliceable, update_sizes
from cleanai.plan import AttributeChange, Plan, TensorCut


def slice_model(model: nn.Module, plan: Plan) -> nn.Module:
    """The same model object with the plan's indices gone from parameters, gradients, buffers and metadata.

    Everything is checked before anything is touched, and an error on the way takes all changes back. Tied tensors stay
    tied, each tensor stays on its device and keeps its dtype, ``requires_grad`` and memory format. Parameters become
    new objects: make the optimizer afterwards.

    Raises:
        PlanError: a tensor of the plan is missing or has another size, or an attribute has another value.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> tuple(slice_model(layer, Plan(cuts=(TensorCut("weight", 0, 4, (1,)), TensorCut("bias", 0, 4, (1,))))).weight.shape)
        (3, 3)
    """
    states = {state.name: state for state in list_state(model)}
    check_plan(model, plan, states)
    by_tensor: dict[str, list[TensorCut]] = {}
    for cut in plan.cuts:
        if cut.dropped:
            by_tensor.setdefault(cut.parameter, []).append(cut)
    with transaction(model), torch.no_grad():
        modules: dict[int, nn.Module] = {}
        for name, cuts in by_tensor.items():
            state = states[name]
            _replace_tensor(state, cuts)
            modules.update({id(module): module for module, _, _ in state.places})
        for module in modules.values():
            make_sliceable(module)
        paths = dict(model.named_modules())
        for change in plan.attributes:
            _change_attribute(paths[change.module], change)
        changed = [paths[change.module] for change in plan.attributes]
        for module in _with_owners(paths, [*modules.values(), *changed]):
            make_sliceable(module)
            update_sizes(module)
    return model


def _with_owners(paths: dict[str, nn.Module], modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules and, for parts of an attention layer, the layer itself."""
    wanted = {id(module) for module in modules}
    owners = [
        m for m in paths.values() if isinstance(m, nn.MultiheadAttention) and any(id(c) in wanted for c in m.modules())
    ]
    return [m for m in paths.values() if id(m) in wanted or any(m is owner for owner in owners)]


def check_plan(model: nn.Module, plan: Plan, states: dict[str, StateTensor] | None = None) -> None:
    """Raises `PlanError` where a plan does not fit a model; changes nothing."""
    states = states if states is not None else {state.name: state for state in list_state(model)}
    for cut in plan.cuts:
        state = states.get(cut.parameter)
        if state is None:
            raise PlanError(f"the plan cuts {cut.parameter}, which the model does not have: is it another architecture?")
        shape = tuple(state.tensor.shape)
        if cut.dim >= len(shape) or shape[cut.dim] != cut.size:
            raise PlanError(
                f"the plan expects {cut.size} indices in dimension {cut.dim} of {cut.parameter}, whose shape is {shape}: "
                "was the model pruned since, or is it another size?"
            )
    paths = dict(model.named_modules())
    for change in plan.attributes:
        module = paths.get(change.module)
        if module is None:
            raise PlanError(f"the plan changes {change.module}.{change.attribute}, but there is no such module")
        value = _read_attribute(module, change)
        if value != change.old:
            raise PlanError(f"{change.module}.{change.attribute} is {value!r}, the plan expects {change.old}")


def _read_attribute(module: nn.Module, change: AttributeChange) -> Any:
    value = getattr(module, change.attribute, None)
    if change.index is None:
        return value
    return value[change.index] if isinstance(value, (tuple, list)) and len(value) > change.index else None


def _change_attribute(module: nn.Module, change: AttributeChange) -> None:
    if change.index is None:
        setattr(module, change.attribute, change.new)
        return
    values = list(getattr(module, change.attribute))
    values[change.index] = change.new
    kind = type(getattr(module, change.attribute))
    setattr(module, change.attribute, kind(values))


def _replace_tensor(state: StateTensor, cuts: list[TensorCut]) -> None:
    old = state.tensor
    new: Tensor = _cut(old.detach(), cuts)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = _cut(old.grad, cuts)
    elif old.requires_grad:
        new.requires_grad_()
    for module, attribute, kind in state.places:
        store_tensor(module, attribute, kind, new)


def _cut(tensor: Tensor, cuts: list[TensorCut]) -> Tensor:
    """A new tensor without the dropped indices, in the memory format of the old one."""
    # The cut that removes most first, so that the later ones copy less; rows before columns at a tie.
    for cut in sorted(cuts, key=lambda cut: (cut.kept_size / cut.size, cut.dim)):
        kept = torch.ones(cut.size, dtype=torch.bool)
        kept[list(cut.dropped)] = False
        index = kept.nonzero().squeeze(1).to(tensor.device)
        tensor = tensor.index_select(cut.dim, index)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()
