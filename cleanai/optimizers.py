"""Optimizer state that follows a cut, so that training goes on with its momentum.

A cut makes new parameters. Which one came from which is noted, weakly, whenever a model is cut.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from cleanai.checks import check_model
from cleanai.errors import InputError
from cleanai.plan import Plan, TensorCut


@dataclass(frozen=True)
class _Heir:
    """What became of a parameter in one cut: its name and its successor (None where it went with its block)."""

    plan: Plan
    name: str
    successor: weakref.ref[Tensor] | None

    @property
    def is_gone(self) -> bool:
        return self.successor is not None and self.successor() is None


_heirs: WeakIdKeyDictionary = WeakIdKeyDictionary()
_lock = threading.Lock()
_MOST_HEIRS = 16  # a parameter that no cut changes is its own heir, cut after cut
Family = Mapping[str, "weakref.ref[Tensor]"]


def list_parameters(model: nn.Module) -> Family:
    """The parameters of a model by name, held weakly."""
    return {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}


def note_heirs(before: Family, model: nn.Module, plan: Plan) -> None:
    """Notes what became of parameters in a cut that led to ``model``."""
    after = dict(model.named_parameters())
    with _lock:
        for name, reference in before.items():
            old = reference()
            if old is None:
                continue
            successor: weakref.ref[Tensor] | None = weakref.ref(after[name]) if name in after else None
            # Of cuts whose models are gone, nothing is kept.
            known = [heir for heir in _heirs.get(old, ()) if not heir.is_gone]
            _heirs[old] = (*known, _Heir(plan, name, successor))[-_MOST_HEIRS:]


def migrate_optimizer(
    optimizer: torch.optim.Optimizer, plan: Plan, model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Makes an optimizer go on with the pruned model, in place: its parameters and its state follow the cut.

    State tensors of a parameter's own shape (SGD's momentum, the moments of Adam and AdamW, an average of the weights)
    lose the same indices as the parameter; numbers such as the step count stay. Parameters of dropped blocks leave it.
    Groups keep their settings, and a learning-rate scheduler goes on working.

    Args:
        optimizer: made for the parameters of the model before the cut.
        plan: of that cut: ``pruner.plan``, or in a callback ``step.cut``.
        model: the pruned model; needed only if the same plan was carried out on several copies.

    Returns:
        The same optimizer.

    Raises:
        InputError: an argument is of another class, a parameter was not part of the model that the plan has cut, or its
            state has another shape (Adafactor's factored moments). Nothing has been changed.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> net(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> pruner = StructuredPruner(net, torch.ones(1, 3))
        >>> pruned = pruner.prune()
        >>> optimizer = migrate_optimizer(optimizer, pruner.plan)
        >>> optimizer.state[pruned[0].weight]["momentum_buffer"].shape
        torch.Size([4, 3])
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    if not isinstance(plan, Plan):
        raise InputError(f"plan is a {type(plan).__name__}; give the Plan of the cut, such as pruner.plan")
    if model is not None:
        check_model(model)
    allowed = None if model is None else {id(parameter) for parameter in model.parameters()}
    cuts: dict[str, list[TensorCut]] = {}
    for cut in plan.cuts:
        cuts.setdefault(cut.parameter, []).append(cut)
    groups: list[list[Tensor]] = []
    state: dict[Tensor, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        new: list[Tensor] = []
        for place, old in enumerate(group["params"]):
            heir = _find_heir(old, plan, allowed, f"parameter {place} of group {number}")
            successor = None if heir.successor is None else heir.successor()
            if successor is None:
                continue
            new.append(successor)
            if old in optimizer.state:
                state[successor] = _cut_state(optimizer.state[old], old, cuts.get(heir.name, ()), heir.name)
        groups.append(new)
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = new
    optimizer.state.clear()
    optimizer.state.update(state)
    return optimizer


def _find_heir(old: Tensor, plan: Plan, allowed: set[int] | None, what: str) -> _Heir:
    for heir in reversed(_heirs.get(old, ())):
        successor = None if heir.successor is None else heir.successor()
        alive = heir.successor is None or (successor is not None and (allowed is None or id(successor) in allowed))
        if heir.plan == plan and alive:
            return heir
    raise InputError(
        f"migrate_optimizer: {what}, of shape {tuple(old.shape)}, was not in the model when this plan was carried out, "
        "or the pruned model is gone. Give the plan of the cut that was made to the very model that the optimizer was "
        "made for (step.cut in a callback), and keep the pruned model"
    )


def _cut_state(values: Any, old: Tensor, cuts: Iterable[TensorCut], name: str) -> Any:
    return {key: _cut_value(value, old, cuts, f"{key} of {name}") for key, value in values.items()}


def _cut_value(value: Any, old: Tensor, cuts: Iterable[TensorCut], what: str) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape != old.shape:
        if not any(cut.dropped for cut in cuts):
            return value
        raise InputError(
            f"migrate_optimizer: {what} has shape {tuple(value.shape)}, the parameter {tuple(old.shape)}: state that "
            "is not laid out as its parameter cannot follow a cut; make a new optimizer"
        )
    with torch.no_grad():
        for cut in cuts:
            value = value.index_select(cut.dim, torch.tensor(cut.kept, device=value.device))
    return value
