"""What a training needs to go on exactly where it was killed: random states, tensors, and the file that holds them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.errors import InputError

STATE_FILE = "training.pt"
_VERSION = 1


# ------------------------------------------------------------------------------------------------------ random states


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of a loader and of its samplers, each once."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(item): item for item in found if isinstance(item, torch.Generator)}.values())


def seed_everything(numbers: Iterable[int], generators: Iterable[torch.Generator] = ()) -> None:
    """Seeds torch (GPUs included), NumPy, Python and these generators from a few numbers together."""
    seeds = np.random.SeedSequence([*numbers]).generate_state(4, np.uint64)
    torch.manual_seed(int(seeds[0]) >> 1)
    random.seed(int(seeds[1]))
    np.random.seed(int(seeds[2]) >> 32)  # noqa: NPY002  (data sets draw from it)
    for generator in generators:
        generator.manual_seed(int(seeds[3]) >> 1)


def capture_random_state(device: torch.device, generators: Iterable[torch.Generator]) -> dict[str, Any]:
    """The states of all generators that a training draws from, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "generators": [generator.get_state() for generator in generators],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device, generators: list[torch.Generator]) -> None:
    """Puts back what `capture_random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    for generator, value in zip(generators, state["generators"], strict=True):
        generator.set_state(value)


# ------------------------------------------------------------------------------------------------------------ tensors


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those included that a ``state_dict`` leaves out; shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copy_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The values of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def put_tensors(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Writes values into the model's own tensors."""
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            tensor.copy_(values[name])


def fingerprint(model: nn.Module) -> str:
    """A hash of all values, by which another model of the same shapes is told apart."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(model).items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- the file


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes beside the file, then renames over it, so that a kill at any moment leaves the old state or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{STATE_FILE}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        torch.save({"version": _VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())  # a machine that loses power may otherwise keep the name and lose the content
    temporary.replace(folder / STATE_FILE)


def read_state(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, or None; leftovers of killed processes are removed.

    Raises:
        InputError: it is damaged, or of a training with other settings; the message says which.
    """
    for leftover in folder.glob(f".{STATE_FILE}.*.tmp"):
        leftover.unlink(missing_ok=True)
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}). Delete it to begin anew.") from error
    if state.get("version") != _VERSION:
        raise InputError(f"{path} was written by another version of CleanAI. Delete it to begin anew.")
    differences = _compare(state["settings"], settings)
    if differences:
        raise InputError(
            f"{path} holds another training: {'; '.join(differences)}. Choose another folder, or delete the file to "
            "begin anew."
        )
    return state


def _compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nests of settings, in words."""
    found = []
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _compare(old, new)
        elif old != new:
            found.append(f"{name} was {old}, now it is {new}")
    return found
