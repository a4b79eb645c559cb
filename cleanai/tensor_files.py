"""Tensors and their description in one safetensors file: written whole or not at all, read without trust.

Reading executes no code, refuses whatever does not add up, and costs little more memory than the file is large: what
would unfold to more, or take long, is refused before it is read. A process that is killed while it writes leaves the
old file; a machine that loses power leaves the old file or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cleanai.errors import InputError, PlanError
from cleanai.plan import parse_json
from cleanai.serialize import write_bytes

SUFFIX = ".safetensors"
MOST_HEADER_BYTES = 32 << 20
MOST_TENSORS = 50_000
_KEY = "cleanai"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Path:
    """Writes tensors and a JSON description; an older file is replaced whole or not at all.

    Raises:
        InputError: a tensor has no values.
    """
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise InputError(f"{name} is on the meta device, so it has no values to save")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata={_KEY: json.dumps(described)})  # several keys would have no fixed order
    header = int.from_bytes(content[:8], "little")
    if header > MOST_HEADER_BYTES or len(plain) > MOST_TENSORS:
        raise InputError(
            f"{path} would hold {len(plain)} tensors and {header >> 20} MB of description, more than the "
            f"{MOST_TENSORS} and {MOST_HEADER_BYTES >> 20} MB that can be read; save the state dict yourself, with "
            "history_of(model).to_json() beside it"
        )
    write_bytes(path, content, durable=True)
    return path


def read_description(path: Path) -> Any:
    """The JSON description in a file, without its tensors.

    Raises:
        InputError: the file is missing, no safetensors file, damaged, or was not written by CleanAI.
    """
    return _read(path, tensors=False)[0]


def read_tensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The JSON description and the tensors in a file.

    Raises:
        InputError: as `read_description`.
    """
    return _read(path, tensors=True)


def _read(path: Path, tensors: bool) -> tuple[Any, dict[str, Tensor]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys()) if tensors else []
            if len(names) > MOST_TENSORS:
                raise InputError(f"it has {len(names)} tensors, more than the {MOST_TENSORS}")
            found = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is damaged, or no safetensors file ({error!s:.200})") from error
    if _KEY not in metadata:
        raise InputError(f"{path} was not written by CleanAI: it does not say how to build its model")
    try:
        return parse_json(metadata[_KEY], f"the description in {path}"), found
    except PlanError as error:
        raise InputError(str(error)) from error


def _check_header(path: Path) -> None:
    """Refuses, before anything is read, a file whose header is not inside it, or is too long to be ours."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}")
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if total < 8 or length > total - 8:
        raise InputError(f"{path} is damaged, or no safetensors file: its header is longer than the file")
    if length > MOST_HEADER_BYTES:
        raise InputError(
            f"{path} is refused: its header has {length >> 20} MB, more than the {MOST_HEADER_BYTES >> 20}"
        )


def list_saved(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model's state dict to write, and for each that is another one again, whose it is.

    Raises:
        InputError: something in the state dict is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}  # who was first to hold some memory
    shared: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{name} in the model's state dict is a {type(tensor).__name__}, which a safetensors file cannot hold; "
                "save the state dict yourself, with history_of(model).to_json() beside it"
            )
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.device.type == "meta" or not tensor.numel():  # has no memory to share
            key = (id(tensor),)
        if first.setdefault(key, name) != name:
            shared[name] = first[key]
        else:
            tensors[name] = tensor
    return tensors, shared


def restore_shared(tensors: Mapping[str, Tensor], shared: Any, path: Path) -> dict[str, Tensor]:
    """The tensors with those that are others again."""
    if not isinstance(shared, dict) or not all(isinstance(name, str) for name in shared.values()):
        raise InputError(f"{path} is damaged: its list of shared tensors is none")
    twice = [name for name in shared if name in tensors]
    if twice:
        raise InputError(f"{path} is damaged: {twice[0]} has values of its own and those of {shared[twice[0]]}")
    lost = [name for name in shared.values() if name not in tensors]
    if lost:
        raise InputError(f"{path} is damaged: {lost[0]} is missing")
    return {**tensors, **{name: tensors[source] for name, source in shared.items()}}
