"""The scenarios and their profiles, and the methods that they compare."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cleanai.checks import suggest_names
from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig, write_setting
from cleanai.importance import Importance, NeuronCoverageImportance
from cleanai.importance.names import CRITERIA, find_importance

# What differs from `ExperimentConfig`'s defaults. A profile changes a scenario; settings of the user change both.
_IMAGENET: dict[str, Any] = {
    "model": "resnet50",
    "data": "auto",
    "prepare_epochs": 0,  # the weights were trained on this very data
    "finetune_epochs": 10,
    "batch_size": 256,
    "weight_decay": 1e-4,
    "validation_images": 10_000,
    "workers": 8,
}
SCENARIOS: dict[str, dict[str, Any]] = {
    "TS1": {"model": "resnet18", "data": "cifar10", "pruning_ratio": 0.2, "methods": ("coverage", "wanda")},
    "TS2": {**_IMAGENET, "pruning_ratio": 0.3, "methods": ("coverage", "wanda")},
    "TS3": {**_IMAGENET, "pruning_ratio": 0.1, "methods": ("coverage", "wanda", "magnitude", "taylor")},
    "TS4": {
        **_IMAGENET,
        "pruning_ratio": 0.1,
        "global_pruning": True,
        "methods": ("coverage", "wanda", "magnitude", "taylor"),
    },
}
_SMOKE: dict[str, Any] = {
    "model": "digits_resnet",
    "data": "digits",
    "train_images": 850,  # all that the digits leave; with --set data=cifar10 it stays as short
    "validation_images": 200,
    "test_images": 450,
    "prepare_epochs": 6,
    "prepare_lr": 0.05,
    "finetune_epochs": 2,
    "finetune_lr": 0.02,
    "batch_size": 64,
    "iterative_steps": 2,
    "calibration_batches": 4,
    "checkpoint_interval": 1,
    "latency_seconds": 0.5,
    "workers": 0,
}
_QUICK_IMAGENET: dict[str, Any] = {
    "train_images": 20_000,
    "validation_images": 2_000,
    "test_images": 5_000,
    "finetune_epochs": 1,
    "iterative_steps": 1,
}
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {name: {} for name in SCENARIOS},
    # On a machine without accelerator: a smaller network whose weights are trained already.
    "quick": {
        "TS1": {"model": "resnet20", "prepare_epochs": 0, "finetune_epochs": 3},
        **dict.fromkeys(("TS2", "TS3", "TS4"), _QUICK_IMAGENET),
    },
    # Seconds, without any files: shows that every step works, not what a method is worth.
    "smoke": dict.fromkeys(SCENARIOS, _SMOKE),
}


def make_config(scenario: str = "TS1", profile: str = "full", **settings: Any) -> ExperimentConfig:
    """The configuration of a scenario, changed by a profile, changed by the settings given.

    Args:
        scenario: "TS1" … "TS4".
        profile: "full", "quick" (a smaller network or fewer images) or "smoke" (seconds, on scikit-learn's digits).
        settings: of `ExperimentConfig`, such as ``pruning_ratio=0.3``.

    Raises:
        InputError: there is no such scenario, profile or setting, or a value cannot be used; the choices are listed.

    Example:
        >>> config = make_config("TS4", pruning_ratio=0.2)
        >>> config.model, config.global_pruning, config.pruning_ratio
        ('resnet50', True, 0.2)
    """
    for word, value, choices in (("scenario", scenario, SCENARIOS), ("profile", profile, PROFILES)):
        if value not in choices:
            hint = suggest_names(value, choices) or "."
            raise InputError(f"There is no {word} {value!r}; there are {', '.join(choices)}{hint}")
    preset = {**SCENARIOS[scenario], **PROFILES[profile][scenario]}
    return ExperimentConfig(scenario=scenario, profile=profile).replace(**{**preset, **settings})


def write_command(config: ExperimentConfig) -> str:
    """The command that runs an experiment with these very settings.

    Example:
        >>> write_command(make_config("TS1", "smoke", pruning_ratio=0.3))
        'cleanai run TS1 --profile smoke --set pruning_ratio=0.3'
    """
    words = ["cleanai", "run", config.scenario]
    if config.profile != "full":
        words += ["--profile", config.profile]
    preset = make_config(config.scenario, config.profile)
    changed = [
        f"{field.name}={write_setting(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(preset, field.name)
    ]
    return shlex.join([*words, *(["--set", *changed] if changed else [])])


# ------------------------------------------------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Method:
    """A criterion as experiments know it: its name, its title and code in file names, and what makes it."""

    name: str
    title: str
    code: str
    make: Callable[[ExperimentConfig], Importance]


_KNOWN = (
    Method("coverage", "Coverage", "NC", lambda config: NeuronCoverageImportance(config.metric, config.threshold)),
    Method("wanda", "WANDA", "W", lambda config: find_importance("wanda")),
    Method("magnitude", "Magnitude", "M", lambda config: find_importance("magnitude")),
    Method("taylor", "Taylor", "T", lambda config: find_importance("taylor")),
)


def find_method(name: str) -> Method:
    """The method of a name: coverage, wanda, magnitude, taylor, or any other criterion there is.

    Raises:
        InputError: there is none of this name; the names are listed.

    Example:
        >>> find_method("coverage").code, find_method("fpgm").code
        ('NC', 'FPGM')
    """
    for method in _KNOWN:
        if method.name == name:
            return method
    if name not in CRITERIA:
        names = list(dict.fromkeys([*(method.name for method in _KNOWN), *CRITERIA]))
        hint = suggest_names(name, names) or "."
        raise InputError(f"There is no method {name!r}{hint} The methods are {', '.join(names)}.")
    title = "".join(part.capitalize() for part in name.split("_"))
    return Method(name, title, name.replace("_", "").upper(), lambda config: find_importance(name))
