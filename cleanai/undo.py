"""Cuts taken back: what a slicing removes is kept where that is asked for, and put back entry by entry."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.depth import SkippedBlock
from cleanai.errors import InputError, PlanError
from cleanai.history import History, HistoryEntry, Removed, own_history, set_own_history
from cleanai.isolation import StateTensor, drop_caches, list_state, memory_format_of, transaction
from cleanai.plan import Plan, TensorCut

_STORES = ("_parameters", "_buffers", "_modules", "_cleanai_history")
_MISSING = object()


def rollback(model: nn.Module, to: int = 0) -> nn.Module:
    """Takes back every prune of a model but the first ``to``, in place, and returns it.

    What was removed must have been kept (``StructuredPruner(…, keep_removed=True)``, or a file saved with
    ``include_removed=True``). What stayed keeps the values that it has now, fine-tuned ones for example; what comes
    back has the values that it had when it went. Parameters that were cut are new objects without gradients: make the
    optimizer afterwards.

    Args:
        model: a model that was pruned.
        to: how many of its prunes stay, counted from the oldest; 0 gives the original structure.

    Raises:
        InputError: ``to`` is not among the prunes, or what one of them removed was not kept. Nothing has been changed.
        PlanError: the model is not as its last prune left it. Nothing has been changed.

    Example:
        >>> from cleanai.slicing import slice_model
        >>> layer = nn.Linear(3, 4)
        >>> before = layer.weight.detach().clone()
        >>> plan = Plan(cuts=(TensorCut("weight", 0, 4, (1,)), TensorCut("bias", 0, 4, (1,))))
        >>> rollback(slice_model(layer, plan, keep_removed=True))
        Linear(in_features=3, out_features=4, bias=True)
        >>> bool((layer.weight == before).all())
        True
    """
    history = own_history(model)
    if type(to) is not int or not 0 <= to <= len(history):
        raise InputError(
            f"to={to!r}: the model has {len(history)} prunes; give how many of them stay, 0…{len(history)}"
        )
    undone = history.entries[to:]
    lost = [str(number) for number, entry in enumerate(undone, to + 1) if entry.removed is None]
    if lost:
        raise InputError(
            f"prune {', '.join(lost)} cannot be taken back: what it removed was not kept. Prune with "
            "keep_removed=True, or build the original model anew"
        )
    with transaction(model), torch.inference_mode(False), torch.no_grad():
        for entry in reversed(undone):
            _undo_entry(model, entry)
        drop_caches(model)
        set_own_history(model, History(history.entries[:to]))
    return model


class Keeper:
    """Notes what a cut is about to remove from a model; `finish` gives it once the cut is done."""

    def __init__(self, model: nn.Module, plan: Plan, states: Mapping[str, StateTensor]) -> None:
        self._model = model
        self._tensors = {}
        for name, cuts in cuts_by_tensor(plan).items():
            self._tensors[name] = _take_removed(states[name].tensor.detach(), cuts)
        self._blocks = {path: model.get_submodule(path) for path in plan.dropped_blocks}
        self._before = {path: (type(module), _plain(module)) for path, module in model.named_modules()}

    def finish(self) -> Removed:
        """What the cut has removed and changed."""
        changed = {}
        for path, module in self._model.named_modules():
            kind, old = self._before[path]
            new = _plain(module)
            if isinstance(module, SkippedBlock) and kind is not SkippedBlock:
                continue  # the block itself is kept
            values = {name: old.get(name, _MISSING) for name in {**old, **new} if _differs(old, new, name)}
            if values or kind is not type(module):
                changed[path] = (kind, values)
        return Removed(self._tensors, self._blocks, changed)


def cuts_by_tensor(plan: Plan) -> dict[str, list[TensorCut]]:
    """The cuts of a plan that remove something, by the tensor that they cut."""
    found: dict[str, list[TensorCut]] = {}
    for cut in plan.cuts:
        if cut.dropped:
            found.setdefault(cut.parameter, []).append(cut)
    return found


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's attributes besides tensors and parts, by value where they are containers."""
    held = {
        name: value for name, value in module.__dict__.items() if name not in _STORES and not isinstance(value, Tensor)
    }
    return {name: value.copy() if type(value) in (list, dict, set) else value for name, value in held.items()}


def _differs(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    if name not in old or name not in new:
        return True
    before, after = old[name], new[name]
    if type(before) is not type(after):
        return True
    if isinstance(before, (list, tuple, dict)):
        keys = before.keys() == after.keys() if isinstance(before, dict) else len(before) == len(after)
        return not keys or not all(
            map(_is_same, *(box.values() if isinstance(box, dict) else box for box in (before, after)))
        )
    return not _is_same(before, after)


def _is_same(before: Any, after: Any) -> bool:
    """Whether an attribute is as it was. Tensors in containers are state, and are looked after as such."""
    if before is after or (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return True
    return isinstance(before, (bool, int, float, str, set)) and type(before) is type(after) and before == after


def _take_removed(tensor: Tensor, cuts: Sequence[TensorCut]) -> Tensor:
    """What cuts take out of a tensor, in the order of its elements: shape [removed elements]."""
    shape = tuple(tensor.shape)
    if tensor.device.type == "meta":  # has no values to pick from
        kept = {cut.dim: cut.kept_size for cut in cuts}
        return tensor.new_empty(tensor.numel() - prod(kept.get(dim, size) for dim, size in enumerate(shape)))
    return tensor[~_kept_mask(shape, cuts, tensor.device)]


def _kept_mask(shape: Sequence[int], cuts: Iterable[TensorCut], device: torch.device) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    for cut in cuts:
        mask.index_fill_(cut.dim, torch.tensor(cut.dropped, device=device), False)
    return mask


def _undo_entry(model: nn.Module, entry: HistoryEntry) -> None:
    assert entry.removed is not None
    for plan, removed in zip(reversed(entry.steps), reversed(entry.removed), strict=True):
        _undo_cut(model, plan, removed)


def _undo_cut(model: nn.Module, plan: Plan, removed: Removed) -> None:
    states = {state.name: state for state in list_state(model)}
    whole = {name: _reunite(states, name, cuts, removed.tensors[name]) for name, cuts in cuts_by_tensor(plan).items()}
    for name, tensor in whole.items():
        for place in states[name].places:
            place.put(tensor)
    like = next(model.parameters(), None)
    for path, block in removed.blocks.items():
        above, _, name = path.rpartition(".")
        skipped = model.get_submodule(path)
        if not isinstance(skipped, SkippedBlock):
            raise PlanError(f"{path} is there, but the history says that it was dropped: was the model changed since?")
        back = copy.deepcopy(block)  # the kept one may go back into several copies of the model
        if like is not None:
            back.to(like.device, like.dtype)
        model.get_submodule(above)._modules[name] = back.train(skipped.training)
    paths = dict(model.named_modules())
    for path, (kind, values) in removed.modules.items():
        module = paths[path]
        if type(module) is not kind:
            module.__class__ = kind
        for name, value in values.items():
            if value is _MISSING:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value.copy() if type(value) in (list, dict, set) else value


def _reunite(states: Mapping[str, StateTensor], name: str, cuts: Sequence[TensorCut], gone: Tensor) -> Tensor:
    """A tensor with what stayed of it and what comes back."""
    if name not in states:
        raise PlanError(f"the history has cut {name}, which the model does not have: was it changed since?")
    now = states[name].tensor
    shape = list(now.shape)
    for cut in cuts:
        if cut.dim >= len(shape) or shape[cut.dim] != cut.kept_size:
            raise PlanError(
                f"{name} has shape {tuple(now.shape)}, but its last cut left {cut.kept_size} indices in dimension "
                f"{cut.dim}: was the model changed since?"
            )
        shape[cut.dim] = cut.size
    mask = _kept_mask(shape, cuts, now.device)
    whole = torch.empty(shape, dtype=now.dtype, device=now.device)
    whole[mask] = now.detach().reshape(-1)
    whole[~mask] = gone.to(now)
    whole = whole.contiguous(memory_format=memory_format_of(now))
    return nn.Parameter(whole, now.requires_grad) if isinstance(now, nn.Parameter) else whole
