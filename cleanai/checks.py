"""Checks of arguments: what is given is what is meant, or an error says which argument it is and what to give."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cleanai.errors import InputError


def suggest_names(name: Any, known: Iterable[str], most: int = 3, alike: float = 0.6) -> str:
    """What to add to an error about a mistyped name: "; did you mean 'a' or 'b'?", or nothing.

    Example:
        >>> suggest_names("mac", ["params", "macs"])
        "; did you mean 'macs'?"
    """
    names = [each for each in known if each]
    close = difflib.get_close_matches(name, names, most, alike) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_choice(value: Any, choices: Iterable[str], name: str) -> str:
    """One of several names, or a clear error that lists them."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} is {value!r}; use {' or '.join(map(repr, known))}{suggest_names(value, known)}")
    return value


def check_ratio(value: Any, name: str) -> float:
    """A ratio as a float, or a clear error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{name} is {value!r}; it must lie in [0, 1): 0.3 removes 30 %")
    return float(value)


def check_count(value: Any, name: str, least: int | None = 1, otherwise: str = "") -> int:
    """A whole number, at least ``least``, or a clear error; ``otherwise`` says what else it may be."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        raise InputError(f"{name} is {value!r}; it must be {wanted}{otherwise}")
    return value


def check_positive(value: Any, name: str) -> float:
    """A finite number above 0, or a clear error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; it must be a number above 0")
    return float(value)


def check_flag(value: Any, name: str) -> bool:
    """True or False, or a clear error: a text is always true, whatever it says."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; give True or False")
    return value


def check_model(model: Any) -> None:
    """Raises `InputError` for what is no module."""
    if not isinstance(model, nn.Module):
        remedy = " that has loaded it" if isinstance(model, Mapping) else ""  # a state dict
        remedy = f", such as an instance of {model.__name__}" if isinstance(model, type) else remedy
        raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module{remedy}")


def check_plain(model: Any) -> None:
    """Raises `InputError` for a module that only wraps the one to work on, or that is no longer Python."""
    check_model(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            "model is a torch.jit.ScriptModule, which cannot be followed; give the eager model it was made from"
        )
    for module in model.modules():
        inside = _WRAPPERS.get(type(module).__name__)
        if inside is not None and inside in module._modules:
            raise InputError(
                f"model is wrapped in {type(module).__name__}; prune the model inside ({inside}), then wrap it again"
            )
    # By name: torch.distributed.tensor is imported only by those who shard.
    sharded = next((name for name, each in model.named_parameters() if type(each).__name__ == "DTensor"), None)
    if sharded is not None:
        raise InputError(f"{sharded} is sharded over processes (a DTensor); prune the whole model, then shard it")


_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}
"""Where wrappers keep the model; that of torch.compile is imported only by those who compile."""


def check_type(value: Any, kind: type, name: str, what: str) -> None:
    """Raises `InputError` for what is of another class; ``what`` says what to give."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; give {what}")


def check_iterable(value: Any, name: str, what: str) -> None:
    """Raises `InputError` for what cannot be gone through; ``what`` says what to give."""
    if not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
        raise InputError(f"{name} is {value!r}; give {what}")


def check_loader(loader: Any) -> None:
    """Raises `InputError` for what yields no batches."""
    check_iterable(loader, "loader", "a DataLoader or a list of batches")


def check_file(path: Any) -> Path:
    """The path of a file that can be written, or a clear error; nothing is written yet."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path is {path!r}; give the path of a file")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a file")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"{path} cannot be written: {parent} is a file, not a folder")
    return path
