"""Checkpoints of experiments: names as in the test scenarios, weights as safetensors, the cut as data beside them.

A file holds everything to build its model again: the architecture's name, the plan of the cut, and the weights.
Reading one executes no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cleanai.errors import InputError, PlanError
from cleanai.experiments.subjects import build_model
from cleanai.plan import Plan
from cleanai.serialize import write_bytes
from cleanai.slicing import slice_model

FORMAT = "cleanai-checkpoint"
SUFFIX = ".safetensors"
_KEY = "cleanai"


@dataclass(frozen=True)
class Names:
    """How one experiment's files are called, all below its output folder.

    Example:
        >>> names = Names("TS1", "ResNet18", "CIFAR10")
        >>> str(names.checkpoint("FT_epoch5"))
        'checkpoints/TS1/ResNet18_CIFAR10_FT_epoch5.safetensors'
        >>> str(names.checkpoint("FTAP_NC_final", method="Coverage"))
        'checkpoints/TS1_Coverage_ResNet18_CIFAR10/ResNet18_CIFAR10_FTAP_NC_final.safetensors'
        >>> str(names.report(".pdf", method="Coverage"))
        'reports/TS1_Coverage_ResNet18_CIFAR10.pdf'
    """

    scenario: str
    model: str
    data: str

    @property
    def subject(self) -> str:
        """Model and data, "ResNet18_CIFAR10"."""
        return f"{self.model}_{self.data}"

    @property
    def experiment(self) -> str:
        """Scenario, model and data, "TS1_ResNet18_CIFAR10"."""
        return f"{self.scenario}_{self.subject}"

    def folder(self, method: str | None = None) -> Path:
        """Where the checkpoints of the preparation, or of a method (its title), lie."""
        return Path("checkpoints") / (f"{self.scenario}_{method}_{self.subject}" if method else self.scenario)

    def checkpoint(self, state: str, method: str | None = None) -> Path:
        """The file of one state, such as "pretrained", "FT_epoch5", "pruned_NC" or "FTAP_NC_final"."""
        return self.folder(method) / f"{self.subject}_{state}{SUFFIX}"

    def report(self, suffix: str, method: str | None = None) -> Path:
        """The report of a method (its title), or of the whole experiment."""
        name = f"{self.scenario}_{method}_{self.subject}" if method else self.experiment
        return Path("reports") / f"{name}{suffix}"


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of its model: the architecture, its data set, the cut if there was one, and more facts."""

    model: str
    data: str
    classes: int
    plan: Plan | None
    facts: dict[str, Any]


def save_checkpoint(
    model: nn.Module,
    path: Path,
    *,
    name: str,
    data: str,
    classes: int,
    plan: Plan | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model's weights and what it takes to build it again; an older file is replaced whole or not at all.

    Args:
        name: of the architecture, as in `ExperimentConfig.model`.
        data: the data set that it was built for, as in `ExperimentConfig.data`.
        classes: how many it tells apart.
        plan: what was cut from that architecture.
        facts: JSON values to keep with it, such as the epoch.
    """
    tensors, shared = _list_tensors(model)
    described = {
        "format": FORMAT,
        "model": name,
        "data": data,
        "classes": classes,
        "plan": None if plan is None else plan.to_dict(),
        "facts": dict(facts or {}),
        "shared": shared,
    }
    write_bytes(path, save(tensors, metadata={_KEY: json.dumps(described)}))  # several keys would have no fixed order
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint says of its model, without reading the weights.

    Raises:
        InputError: the file is missing or no checkpoint.
    """
    described, _ = _open(Path(path), tensors=False)
    return described


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a checkpoint, built, cut and filled again, in evaluation mode.

    Raises:
        InputError: the file is missing, no checkpoint, or does not fit its own architecture.

    Example:
        >>> load_checkpoint("checkpoints/TS1/ResNet18_CIFAR10_FT_final.safetensors")  # doctest: +SKIP
    """
    described, tensors = _open(Path(path), tensors=True)
    model = build_model(described.model, described.data, described.classes)
    try:
        if described.plan is not None:
            slice_model(model, described.plan)
        model.load_state_dict(tensors)
    except (PlanError, RuntimeError) as error:
        raise InputError(f"{path} does not fit {described.model} for {described.data}: {error}") from error
    return model.to(device).eval()


def _list_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to write, and for each that is another one again, whose it is."""
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else (name,)
        if first.setdefault(key, name) != name:
            shared[name] = first[key]
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, shared


def _open(path: Path, tensors: bool) -> tuple[Checkpoint, dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no checkpoint ({error}).") from error
    if _KEY not in metadata:
        raise InputError(f"{path} is no checkpoint of an experiment: it does not say how to build its model.")
    try:
        data = json.loads(metadata[_KEY])
        if data["format"] != FORMAT:
            raise InputError(f'{path} is no checkpoint that can be read: its "format" is not "{FORMAT}".')
        plan = None if data["plan"] is None else Plan.from_dict(data["plan"])
        if tensors:
            found.update({name: found[source] for name, source in data["shared"].items()})
        return Checkpoint(data["model"], data["data"], data["classes"], plan, data["facts"]), found
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged checkpoint: {error}") from error
