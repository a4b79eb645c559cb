"""Pruned models saved, loaded and replayed: weights as safetensors, the cuts as data beside them, no pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.checks import check_file, check_type
from cleanai.errors import CleanAIError, InputError, PlanError
from cleanai.history import (
    History,
    HistoryEntry,
    Removed,
    check_same_names,
    hash_architecture,
    history_of,
    own_history,
    set_own_history,
)
from cleanai.isolation import list_state, transaction
from cleanai.slicing import slice_model
from cleanai.tensor_files import list_saved, read_description, read_tensors, restore_shared, write_tensors

FORMAT = "cleanai-pruned-1"
_REMOVED, _BLOCK = "cleanai.removed", "cleanai.block"


def save_pruned(model: nn.Module, path: str | Path, *, include_removed: bool = False) -> Path:
    """Writes a pruned model's weights and its history to one safetensors file.

    An older file of that name is replaced whole or not at all. A model that was never pruned has an empty history.

    Args:
        model: from `cleanai.StructuredPruner.prune`, `cleanai.slice_model` or `cleanai.load_pruned`.
        path: the file; ".safetensors" is the usual suffix.
        include_removed: also what was removed, where it was kept (``keep_removed=True``), so that
            `cleanai.rollback` works after loading.

    Returns:
        The path.

    Raises:
        InputError: the removed values were not kept, the state dict holds something that is no tensor, or the path
            cannot be written.

    Example:
        >>> import tempfile
        >>> from cleanai import StructuredPruner
        >>> def build():
        ...     return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruned = StructuredPruner(build(), torch.ones(1, 3)).prune()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pruned(pruned, Path(folder) / "pruned.safetensors")
        ...     loaded = load_pruned(path, build)
        >>> torch.equal(loaded(torch.ones(1, 3)), pruned(torch.ones(1, 3)))
        True
    """
    history = history_of(model)
    tensors, shared = list_saved(model)
    if include_removed:
        tensors = {**tensors, **_list_removed(history)}
    described = {"format": FORMAT, "history": history.to_dict(), "shared": shared, "removed": include_removed}
    return write_tensors(check_file(path), tensors, described)


def load_pruned(
    path: str | Path, model_factory: Callable[[], nn.Module], *, check_architecture: bool = True
) -> nn.Module:
    """The pruned model of a file: built by the factory, cut as the history says, and filled with the weights.

    Tensors have the dtypes of the file and the devices that the factory gave them (those on "meta" go to the CPU). The
    model is in the mode that the factory left it in. Nothing in the file is executed.

    Args:
        path: from `save_pruned`.
        model_factory: returns a fresh instance of the architecture that was pruned, such as ``lambda: resnet18()``.
        check_architecture: refuse a model whose modules have other classes than the one that was pruned (a GELU in the
            place of a ReLU); names and shapes are checked in any case.

    Raises:
        InputError: the file is missing or damaged, or does not fit the factory's model. If the factory returned a model
            that exists elsewhere, that is as before.

    Example:
        >>> import tempfile
        >>> from cleanai import StructuredPruner
        >>> def build(width=8):
        ...     return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        >>> pruned = StructuredPruner(build(), torch.ones(1, 3)).prune()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pruned(pruned, Path(folder) / "pruned.safetensors")
        ...     print(load_pruned(path, build)[0])
        ...     try:
        ...         load_pruned(path, lambda: build(16))
        ...     except InputError as error:
        ...         print(str(error).rpartition(": ")[2])
        Linear(in_features=3, out_features=4, bias=True)
        build the architecture that was pruned
    """
    path = Path(path)
    data, tensors = read_tensors(path)
    history = _read_history(data, path)
    if isinstance(model_factory, nn.Module) or not callable(model_factory):
        raise InputError(
            f"model_factory is a {type(model_factory).__name__}; give a function that returns a fresh model, such as "
            "lambda: resnet18()"
        )
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise InputError(f"model_factory returned a {type(model).__name__}; it must return a torch.nn.Module")
    removed = {name: tensors.pop(name) for name in [*tensors] if name.startswith((f"{_REMOVED}.", f"{_BLOCK}."))}
    tensors = restore_shared(tensors, data.get("shared"), path)
    keep = data.get("removed") is True
    try:
        with transaction(model):
            before = own_history(model)
            replay_history(model, history, keep_removed=keep, check_architecture=check_architecture)
            check_same_names([] if keep else [*removed], [], "the removed values")
            if keep:
                replayed = _fill_removed(own_history(model).entries[len(before) :], removed)
                set_own_history(model, History((*before, *replayed)))
            _fill(model, tensors)
    except CleanAIError as error:
        raise InputError(f"{path} cannot be loaded into this model: {error!s:.1000}") from error
    return model


def read_history(path: str | Path) -> History:
    """The history in a file of `save_pruned` at ``path``, without its weights.

    Raises:
        InputError: the file is missing or damaged.

    Example:
        >>> import tempfile
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pruned(StructuredPruner(net, torch.ones(1, 3)).prune(), Path(folder) / "pruned.safetensors")
        ...     history = read_history(path)
        >>> [(entry.criterion, entry.plan) for entry in history]
        [('magnitude', Plan(4 of 8 channels in 1 of 1 groups))]
    """
    return _read_history(read_description(Path(path)), Path(path))


def replay_history(
    model: nn.Module, history: History, *, keep_removed: bool = False, check_architecture: bool = True
) -> nn.Module:
    """Cuts another instance of the same architecture as the history says, in place, and returns it.

    Its weights stay its own: load a state dict afterwards, or compare what another training makes of the same cut.

    Args:
        model: a fresh instance of the architecture that was pruned.
        history: such as ``history_of(pruned)``.
        keep_removed: keep what goes, so that `cleanai.rollback` can put it back.
        check_architecture: refuse a model whose modules have other classes than the one that was pruned.

    Raises:
        InputError: the architecture is another one. Nothing has been changed.
        PlanError: a plan does not fit the model. Nothing has been changed.

    Example:
        >>> from cleanai import StructuredPruner, history_of
        >>> pruned = StructuredPruner(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), torch.ones(1, 3)).prune()
        >>> other = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
        >>> replay_history(other, history_of(pruned))[0]
        Linear(in_features=3, out_features=4, bias=True)
    """
    check_type(history, History, "history", "a History, such as history_of(model)")
    with transaction(model):
        before = own_history(model)
        for number, entry in enumerate(history, 1):
            _check_architecture(model, entry, number, check_architecture)
            for plan in entry.steps:
                slice_model(model, plan, keep_removed=keep_removed)
        replayed = list(own_history(model).entries[len(before) :])
        entries = []
        for entry in history:
            steps = [replayed.pop(0) for _ in entry.steps]
            kept = tuple(part for step in steps for part in step.removed or ())
            entries.append(replace(entry, removed=kept if keep_removed else None))
        set_own_history(model, History((*before, *entries)))
    return model


def _check_architecture(model: nn.Module, entry: HistoryEntry, number: int, strict: bool) -> None:
    if strict and hash_architecture(model) != entry.architecture:
        shapes = {name: tuple(value.shape) for name, value in model.state_dict(keep_vars=True).items()}
        for cut in entry.steps[0].cuts:
            shape = shapes.get(cut.parameter)
            if shape is not None and (cut.dim >= len(shape) or shape[cut.dim] != cut.size):
                raise InputError(
                    f"{cut.parameter} has shape {shape}, but prune {number} began with {cut.size} indices in dimension "
                    f"{cut.dim}: build the architecture that was pruned"
                )
        raise InputError(
            f"the model is not the architecture that prune {number} began with: another class of module, or a tensor "
            "of another name or shape (check_architecture=False tries it nevertheless)"
        )


def _read_history(data: Any, path: Path) -> History:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is no file of save_pruned (format {FORMAT})")
    try:
        return History.from_dict(data.get("history"))
    except PlanError as error:
        raise InputError(f"{path} is damaged: {error!s:.1000}") from error


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the model the values of a file; names and shapes are checked before the first is touched."""
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    check_same_names([*tensors], [*state], "the weights")
    for name, value in tensors.items():
        if value.shape != state[name].shape:
            raise PlanError(f"{name} has shape {tuple(value.shape)} in the file and {tuple(state[name].shape)} here")
        if _kind_of(value) != _kind_of(state[name]):
            raise PlanError(f"{name} has the type {value.dtype} in the file and {state[name].dtype} here")
    values = {id(state[name]): value for name, value in tensors.items()}
    with torch.no_grad():
        for held in list_state(model):
            old = held.tensor
            value = values.get(id(old))
            if value is None:
                if old.device.type == "meta":
                    raise PlanError(
                        f"{held.name} is on the meta device and not in the file: build the model on the CPU"
                    )
                continue
            device = "cpu" if old.device.type == "meta" else old.device
            new: Tensor = torch.empty_like(old, dtype=value.dtype, device=device).copy_(value)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, old.requires_grad and (new.is_floating_point() or new.is_complex()))
            for place in held.places:
                place.put(new)


def _kind_of(tensor: Tensor) -> tuple[bool, bool]:
    """What no loading may change: whether its numbers are real, complex, or none of both."""
    return tensor.is_floating_point(), tensor.is_complex()


# ------------------------------------------------------------------------------------------------- what was removed


def _list_removed(history: History) -> dict[str, Tensor]:
    """What was removed, under the names that it has in a file."""
    tensors = {}
    for number, entry in enumerate(history):
        if entry.removed is None:
            raise InputError(
                f"include_removed=True: what prune {number + 1} removed was not kept; prune with keep_removed=True"
            )
        for step, removed in enumerate(entry.removed):
            tensors.update({f"{_REMOVED}.{number}.{step}.{name}": value for name, value in removed.tensors.items()})
            for path, block in removed.blocks.items():
                saved, _ = list_saved(block)
                tensors.update({f"{_BLOCK}.{number}.{step}.{path}.{name}": value for name, value in saved.items()})
    return tensors


def _fill_removed(replayed: Sequence[HistoryEntry], tensors: dict[str, Tensor]) -> list[HistoryEntry]:
    """Replayed entries with the values of a file in the place of those that the replay removed."""
    entries = []
    wanted: list[str] = []
    for number, entry in enumerate(replayed):
        parts = []
        for step, removed in enumerate(entry.removed or ()):
            prefix = f"{_REMOVED}.{number}.{step}."
            wanted += [prefix + name for name in removed.tensors]
            filled = {name: _same_shape(tensors, prefix + name, value) for name, value in removed.tensors.items()}
            for path, block in removed.blocks.items():
                prefix = f"{_BLOCK}.{number}.{step}.{path}."
                saved, shared = list_saved(block)
                wanted += [prefix + name for name in saved]
                own = {name: _same_shape(tensors, prefix + name, value) for name, value in saved.items()}
                _fill(block, {**own, **{name: own[source] for name, source in shared.items()}})
            parts.append(Removed(filled, removed.blocks, removed.modules))
        entries.append(replace(entry, removed=tuple(parts)))
    check_same_names([*tensors], wanted, "the removed values")
    return entries


def _same_shape(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    value = tensors.get(name)
    if value is None or value.shape != like.shape:
        raise PlanError(f"{name} is missing or has another shape than the cut says")
    return value
