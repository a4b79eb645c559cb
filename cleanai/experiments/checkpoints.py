"""Checkpoints of experiments: names as in the test scenarios, weights as safetensors, the cut as data beside them.

A file holds everything to build its model again: the architecture's name, the plan of the cut, and the weights.
Reading one executes no code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cleanai.errors import InputError, PlanError
from cleanai.experiments.subjects import build_model
from cleanai.history import check_same_names
from cleanai.plan import Plan
from cleanai.slicing import slice_model
from cleanai.tensor_files import SUFFIX, list_saved, read_description, read_tensors, restore_shared, write_tensors

FORMAT = "cleanai-checkpoint"


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
    """What a file says of its model; `read_checkpoint` gives it.

    Attributes:
        model: the architecture's name, as in `ExperimentConfig.model`.
        data: the data set that it was built for.
        classes: how many it tells apart.
        plan: what was cut; None for a whole model.
        facts: more, such as the epoch.

    Example:
        >>> Checkpoint("digits_resnet", "digits", classes=10, plan=None, facts={"epoch": 3}).facts["epoch"]
        3
    """

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
        model: the model; it is not changed.
        path: a ``.safetensors`` file.
        name: of the architecture, as in `ExperimentConfig.model`.
        data: the data set that it was built for, as in `ExperimentConfig.data`.
        classes: how many it tells apart.
        plan: what was cut from that architecture.
        facts: JSON values to keep with it, such as the epoch.

    Returns:
        The path.

    Raises:
        InputError: a tensor has no values.

    Example:
        >>> import tempfile
        >>> from cleanai.models import digits_resnet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "digits.safetensors"
        ...     _ = save_checkpoint(digits_resnet(), path, name="digits_resnet", data="digits", classes=10)
        ...     load_checkpoint(path).conv1.out_channels
        16
    """
    tensors, shared = list_saved(model)
    described = {
        "format": FORMAT,
        "model": name,
        "data": data,
        "classes": classes,
        "plan": None if plan is None else plan.to_dict(),
        "facts": dict(facts or {}),
        "shared": shared,
    }
    return write_tensors(path, tensors, described)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint says of its model, without reading the weights.

    Raises:
        InputError: the file is missing or no checkpoint.

    Example:
        >>> import tempfile
        >>> from cleanai.models import digits_resnet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "digits.safetensors"
        ...     _ = save_checkpoint(digits_resnet(), path, name="digits_resnet", data="digits", classes=10)
        ...     read_checkpoint(path)
        Checkpoint(model='digits_resnet', data='digits', classes=10, plan=None, facts={})
    """
    described, _ = _open(Path(path), tensors=False)
    return described


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a checkpoint, built, cut and filled again, in evaluation mode; executes no code.

    Args:
        path: a file of `save_checkpoint`, or one that an experiment wrote.
        device: where the model is put.

    Raises:
        InputError: the file is missing, no checkpoint, or does not fit its own architecture.

    Example:
        >>> import tempfile
        >>> from cleanai.models import digits_resnet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "digits.safetensors"
        ...     _ = save_checkpoint(digits_resnet(), path, name="digits_resnet", data="digits", classes=10)
        ...     load_checkpoint(path).training
        False
    """
    described, tensors = _open(Path(path), tensors=True)
    try:
        with _NothingAllocated():  # costs nothing, however large the file says that its model is
            _check_fit(_build(described), tensors)
        model = _build(described)
        model.load_state_dict(tensors)
    except (InputError, PlanError, RuntimeError) as error:
        raise InputError(f"{path} does not fit its architecture: {error!s:.1000}") from error
    return model.to(device).eval()


class _NothingAllocated(TorchFunctionMode):
    """Makes the tensors that layers are made of on the meta device; what architectures compute with stays real."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})}
        return func(*args, **kwargs)


def _build(described: Checkpoint) -> nn.Module:
    model = build_model(described.model, described.data, described.classes)
    return model if described.plan is None else slice_model(model, described.plan)


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises `PlanError` where a model's state dict has other names or shapes than the tensors of a file."""
    state = model.state_dict(keep_vars=True)
    check_same_names([*tensors], [*state], "the weights")
    for name, value in tensors.items():
        if value.shape != state[name].shape or value.is_floating_point() != state[name].is_floating_point():
            raise PlanError(
                f"{name} is {value.dtype} {tuple(value.shape)} in the file and {state[name].dtype} "
                f"{tuple(state[name].shape)} in the model"
            )


def _open(path: Path, tensors: bool) -> tuple[Checkpoint, dict[str, Tensor]]:
    data, found = read_tensors(path) if tensors else (read_description(path), {})
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f'{path} is no checkpoint of an experiment: its "format" is not "{FORMAT}".')
    try:
        plan = None if data["plan"] is None else Plan.from_dict(data["plan"])
        found = restore_shared(found, data["shared"], path) if tensors else {}
        described = Checkpoint(data["model"], data["data"], data["classes"], plan, data["facts"])
        kinds = {"model": str, "data": str, "classes": int, "facts": dict}
        wrong = [name for name, kind in kinds.items() if type(getattr(described, name)) is not kind]
        if wrong or not 0 < described.classes < 1 << 31:
            raise ValueError(f'"{wrong[0] if wrong else "classes"}" is not what it must be')
        return described, found
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged checkpoint: {error!s:.1000}") from error
