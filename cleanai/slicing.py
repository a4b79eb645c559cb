"""A plan carried out: every tensor rewritten smaller, every size that a module keeps brought up to date."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.checks import check_type
from cleanai.depth import SkippedBlock
from cleanai.errors import PlanError
from cleanai.fields import IntArray
from cleanai.history import hash_architecture, record_cut
from cleanai.isolation import (
    Snapshot,
    StateTensor,
    drop_caches,
    evaluation_mode,
    list_state,
    memory_format_of,
    transaction,
)
from cleanai.layers import make_sliceable, refuse_nested_tensors, update_sizes
from cleanai.optimizers import list_parameters, note_heirs
from cleanai.plan import AttributeChange, Plan, TensorCut
from cleanai.registry import find_layer_rule
from cleanai.undo import Keeper, cuts_by_tensor


def slice_model(model: nn.Module, plan: Plan, *, keep_removed: bool = False) -> nn.Module:
    """The same model object with the plan's indices gone from parameters, gradients, buffers and metadata.

    Blocks that the plan drops are replaced by a `cleanai.depth.SkippedBlock` under the same name.
    Everything is checked before anything is touched, and an error on the way takes all changes back. Tied tensors stay
    tied, each tensor stays on its device and keeps its dtype, ``requires_grad`` and memory format. Parameters become
    new objects: make the optimizer afterwards. Peak memory is that of the model and its largest tensor; below 128 MB it
    may be twice the model. A tensor that is mapped from a file is sliced into a mapped temporary file. The cut becomes
    an entry of the model's history (`cleanai.history_of`). There is no proof here: see `cleanai.verify_pruning`.

    Args:
        model: changed in place.
        plan: from `StructuredPruner.make_plan`, or of one's own.
        keep_removed: keep what goes in the history as well, so that `cleanai.rollback` can put it back.

    Raises:
        InputError: ``plan`` is no plan.
        PlanError: a tensor or block of the plan is missing, or a tensor has another size or an attribute another value.

    Example:
        >>> plan = Plan(cuts=(TensorCut("weight", 0, 4, (1,)), TensorCut("bias", 0, 4, (1,))))
        >>> slice_model(nn.Linear(3, 4), plan)
        Linear(in_features=3, out_features=3, bias=True)
    """
    states = {state.name: state for state in list_state(model)}
    check_plan(model, plan, states)
    by_tensor = cuts_by_tensor(plan)
    architecture, parameters = hash_architecture(model), list_parameters(model)
    with transaction(model) as undo, torch.inference_mode(False), torch.no_grad():
        keeper = Keeper(model, plan, states) if keep_removed else None
        modules: dict[int, nn.Module] = {}
        cut_tensors = [(states[name], cuts) for name, cuts in by_tensor.items()]
        kept = _KeptIndices(cut for _, cuts in cut_tensors for cut in cuts)
        large = sum(state.tensor.nbytes for state, _ in cut_tensors) > _SMALL_MODEL_BYTES
        for state, cuts in cut_tensors:
            if large:
                _cut_in_place(state, cuts, kept, undo)
            else:  # the old tensors stay until all is done: twice as fast as taking care of what is removed
                new = _successor(state.tensor, cuts, kept)
                for place in state.places:
                    place.put(new)
            modules.update({id(place.module): place.module for place in state.places})
        for block in plan.blocks:
            if block.dropped:
                above, _, name = block.module.rpartition(".")
                parts = model.get_submodule(above)._modules
                parts[name] = SkippedBlock(model.get_submodule(block.module), block.places)
        paths = dict(model.named_modules())
        for change in plan.attributes:
            _change_attribute(paths[change.module], change)
        modules.update({id(paths[change.module]): paths[change.module] for change in plan.attributes})
        with evaluation_mode(model):  # in training mode, reading a spectrally normalised weight moves its vectors
            for module in [*modules.values(), *_attention_around(paths, modules)]:
                make_sliceable(module)
                update_sizes(module)
        for module in paths.values():
            rule = find_layer_rule(module)
            if rule is not None and rule.shrink is not None and any(id(part) in modules for part in module.modules()):
                rule.shrink(module)
        for module in paths.values():
            refuse_nested_tensors(module)
        if modules:
            drop_caches(model)
        record_cut(model, plan, architecture, keeper.finish() if keeper is not None else None)
    note_heirs(parameters, model, plan)
    return model


def _attention_around(paths: dict[str, nn.Module], changed: dict[int, nn.Module]) -> list[nn.Module]:
    """The attention layers of which only a part (the output projection) has changed."""
    layers = [module for module in paths.values() if isinstance(module, nn.MultiheadAttention)]
    return [m for m in layers if id(m) not in changed and any(id(part) in changed for part in m.modules())]


def check_plan(model: nn.Module, plan: Plan, states: dict[str, StateTensor] | None = None) -> None:
    """Raises `PlanError` where a plan does not fit a model; changes nothing."""
    check_type(plan, Plan, "plan", "a Plan, such as pruner.make_plan()")
    states = states if states is not None else {state.name: state for state in list_state(model)}
    for cut in plan.cuts:
        state = states.get(cut.parameter)
        if state is None:
            raise PlanError(
                f"the plan cuts {cut.parameter}, which the model does not have: is it another architecture?"
            )
        shape = tuple(state.tensor.shape)
        if cut.dim >= len(shape) or shape[cut.dim] != cut.size:
            raise PlanError(
                f"the plan expects {cut.size} indices in dimension {cut.dim} of {cut.parameter}, which has shape "
                f"{shape}: was the model pruned since, or is it another size?"
            )
    paths = dict(model.named_modules())
    for path in plan.dropped_blocks:
        if path not in paths or isinstance(paths[path], SkippedBlock):
            state = "dropped already" if path in paths else "is it another architecture?"
            raise PlanError(f"the plan drops the block {path}, which the model does not have: {state}")
    for change in plan.attributes:
        module = paths.get(change.module)
        if module is None:
            raise PlanError(f"the plan changes {change.module}.{change.attribute}, but there is no such module")
        value = _read_attribute(module, change)
        if type(value) is not int or value != change.old:
            raise PlanError(f"{change.module}.{change.attribute} is {value!r}, the plan expects {change.old}")


def _read_attribute(module: nn.Module, change: AttributeChange) -> Any:
    value = inspect.getattr_static(module, change.attribute, None)  # a plan may come from a file: run no property
    if change.index is None:
        return value
    inside = type(value) in _SEQUENCES and 0 <= change.index < len(value)
    return value[change.index] if inside else None


_SEQUENCES = (tuple, list, torch.Size)


def _change_attribute(module: nn.Module, change: AttributeChange) -> None:
    if change.index is None:
        setattr(module, change.attribute, change.new)
        return
    values = list(getattr(module, change.attribute))
    values[change.index] = change.new
    kind = type(getattr(module, change.attribute))
    setattr(module, change.attribute, kind(values))


_SMALL_MODEL_BYTES = 128 << 20


class _Parts:
    """A tensor that is being taken apart: what is kept of it, and what each cut has removed."""

    def __init__(self, whole: Tensor, kept: _KeptIndices) -> None:
        self.tensor = whole
        self._layout = memory_format_of(whole)
        self._removed: list[tuple[TensorCut, Tensor]] = []
        self._kept = kept

    def remove(self, cut: TensorCut) -> None:
        """Takes the dropped indices of one dimension out."""
        gone = torch.tensor(cut.dropped, device=self.tensor.device)
        self._removed.append((cut, _like(self.tensor, self.tensor.index_select(cut.dim, gone))))
        index = torch.from_numpy(self._kept.of(cut)).to(self.tensor.device)
        left = self.tensor.index_select(cut.dim, index).contiguous(memory_format=self._layout)
        self.tensor = _like(self.tensor, left)

    def reunite(self) -> Tensor:
        """The tensor as it was."""
        tensor = self.tensor
        for cut, gone in reversed(self._removed):
            shape = list(tensor.shape)
            shape[cut.dim] = cut.size
            whole = tensor.new_empty(shape)
            whole.index_copy_(cut.dim, torch.from_numpy(self._kept.of(cut)).to(tensor.device), tensor)
            whole.index_copy_(cut.dim, torch.tensor(cut.dropped, device=tensor.device), gone)
            tensor = whole
        return _like(self.tensor, tensor.contiguous(memory_format=self._layout))


def _cut_in_place(state: StateTensor, cuts: list[TensorCut], kept: _KeptIndices, undo: Snapshot) -> None:
    """Replaces a tensor by its successor one cut at a time, keeping what undoing it takes: the removed slices."""
    old = state.tensor
    is_parameter, requires_grad = isinstance(old, nn.Parameter), old.requires_grad
    parts = _Parts(old.detach(), kept)
    grads = _Parts(old.grad.detach(), kept) if old.grad is not None else None

    def make(tensor: Tensor, grad: Tensor | None) -> Tensor:
        new = nn.Parameter(tensor, requires_grad) if is_parameter else tensor.detach().requires_grad_(requires_grad)
        new.grad = grad
        return new

    undo.release(state, lambda: make(parts.reunite(), grads.reunite() if grads is not None else None))
    del old
    for place in state.places:
        place.put(make(torch.empty(0), None))  # nobody but us holds the old one now
    for cut in sorted(cuts, key=lambda cut: (cut.kept_size / cut.size, cut.dim)):
        parts.remove(cut)
        if grads is not None:
            grads.remove(cut)
    successor = make(parts.tensor, grads.tensor if grads is not None else None)
    for place in state.places:
        place.put(successor)


def _like(original: Tensor, tensor: Tensor) -> Tensor:
    """The same values where the original's are: memory, a device, or a mapped file (then a temporary one)."""
    if not getattr(original.untyped_storage(), "filename", None) or not tensor.numel():
        return tensor
    with tempfile.NamedTemporaryFile(prefix="cleanai-") as file:  # the mapping lives on without the name
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape).copy_(tensor)


def _successor(old: Tensor, cuts: list[TensorCut], kept: _KeptIndices) -> Tensor:
    new = _like(old, _cut(old.detach(), cuts, kept))
    if not isinstance(old, nn.Parameter):
        return new.requires_grad_(old.requires_grad)
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    if old.grad is not None:
        parameter.grad = _cut(old.grad.detach(), cuts, kept)
    return parameter


class _KeptIndices:
    """The indices each cut keeps, computed once for all members of a group (they share the tuple of dropped ones)."""

    def __init__(self, cuts: Iterable[TensorCut]) -> None:
        self._known: dict[tuple[int, int], IntArray] = {}
        for cut in cuts:
            key = (id(cut.dropped), cut.size)
            if key not in self._known:
                self._known[key] = np.delete(np.arange(cut.size), np.array(cut.dropped, dtype=np.int64))

    def of(self, cut: TensorCut) -> IntArray:
        return self._known[id(cut.dropped), cut.size]


_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _cut(tensor: Tensor, cuts: list[TensorCut], kept: _KeptIndices) -> Tensor:
    """A new tensor without the dropped indices, in the memory format of the old one."""
    # The cut that removes most first, so that the later ones copy less; rows before columns at a tie.
    ordered = sorted(cuts, key=lambda cut: (cut.kept_size / cut.size, cut.dim))
    if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.element_size() in _SAME_SIZE:
        # numpy gathers columns about twice as fast as torch; the element type does not matter to it.
        values = tensor.view(_SAME_SIZE[tensor.element_size()]).numpy()
        return torch.from_numpy(_gather(values, [(cut.dim, kept.of(cut)) for cut in ordered])).view(tensor.dtype)
    layout = memory_format_of(tensor)
    for cut in ordered:
        tensor = tensor.index_select(cut.dim, torch.from_numpy(kept.of(cut)).to(tensor.device))
    return tensor.contiguous(memory_format=layout)


_SCRATCH_ELEMENTS = 1 << 17


def _gather(values: np.ndarray, picks: list[tuple[int, IntArray]]) -> np.ndarray:
    """``values`` at some indices of some dimensions, copied once.

    "wrap" is numpy's fastest way for indices that are known to be in range.
    """
    by_dim = dict(picks)
    if set(by_dim) == {0, 1}:
        # Rows and columns at once, a few rows at a time, so that no half-cut tensor goes through main memory.
        rows, columns = by_dim[0], by_dim[1]
        result = np.empty((len(rows), len(columns), *values.shape[2:]), values.dtype)
        step = max(1, _SCRATCH_ELEMENTS // max(1, values[0].size))
        for start in range(0, len(rows), step):
            scratch = values.take(rows[start : start + step], axis=0, mode="wrap")
            scratch.take(columns, axis=1, out=result[start : start + step], mode="wrap")
        return result
    for dim, index in picks:
        values = values.take(index, axis=dim, mode="wrap")
    return values
