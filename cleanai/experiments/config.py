"""The settings of an experiment: typed, checked, saved beside its results.

A setting belongs to the stage whose outcome it changes: a stage that is done need not be repeated while its own
settings and those of the stages before it are the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cleanai.checks import suggest_names
from cleanai.errors import InputError
from cleanai.recipe import OptimizerName, Precision, SchedulerName
from cleanai.serialize import format_json, write_text

Stage = Literal["prepare", "prune", "finetune", "report"]
STAGES: tuple[Stage, ...] = ("prepare", "prune", "finetune", "report")

FORMAT = "cleanai-experiment"


def _setting(default: Any, stage: str, help: str, *, least: float | None = None, below: float | None = None) -> Any:
    """A field with what the command line says of it; ``stage`` "machine" marks what changes no outcome."""
    return dataclasses.field(default=default, metadata={"stage": stage, "help": help, "least": least, "below": below})


@dataclass(frozen=True)
class ExperimentConfig:
    """Every setting of one experiment; unknown names and values out of range are errors that list the choices.

    Ratios are shares (0.2 = 20 %). A batch size counts the images of all processes together. ``cleanai settings``
    lists the settings with their stages and defaults.

    Attributes:
        scenario: the scenario's name, as it stands in file names.
        profile: full, quick or smoke: what the other settings started from.
        model: resnet18, resnet20, resnet56, digits_resnet or a torchvision model.
        data: the data set; auto: an ImageNet folder, or the NIPS-2017 photos where there is none.
        weights: where the first weights come from: auto (the model's usual ones), imagenet, trained, none, or a
            .safetensors file.
        train_images: use so many training images; None: all.
        validation_images: training images kept apart for validation.
        test_images: measure on so many test images; None: all.
        seed: of splits, order, augmentation, dropout.
        prepare_epochs: epochs of the original model's fine-tuning; 0: none.
        prepare_lr: its learning rate.
        batch_size: images of a step, all processes together.
        optimizer: the optimiser.
        momentum: Nesterov momentum of sgd.
        weight_decay: on weights, not on biases and norms.
        scheduler: of the learning rate.
        warmup_epochs: epochs in which the learning rate rises.
        label_smoothing: share of the target spread over all classes.
        clip_norm: largest norm of the gradient; None: any.
        accumulate: batches whose gradients make one step.
        precision: of numbers in training.
        patience: early stopping: epochs without a better validation accuracy; None: never.
        keep: weights that a training ends with.
        methods: coverage, wanda, magnitude, taylor, ....
        pruning_ratio: the share to remove.
        target: what the ratio is of.
        global_pruning: rank all layers' channels together.
        isomorphic: rank the channels of layers of one structure together.
        iterative_steps: reach the ratio in so many steps.
        schedule: of these steps.
        metric: how coverage is measured.
        threshold: of coverage by frequency: active above it.
        calibration_batches: batches the scores look at.
        calibration_batch_size: their size.
        calibration_source: where they come from; test images then judge what they chose.
        max_pruning_ratio: no group loses more than this share.
        min_channels: no group keeps fewer.
        round_to: kept channels are a multiple of this.
        ignored_layers: layers that are left whole, by name; none: no layer.
        recover: repair without training, right after the cut.
        finetune_epochs: epochs after pruning; 0: none.
        finetune_lr: its learning rate.
        distillation_weight: share of the loss that follows the unpruned model's outputs.
        distillation_temperature: softens these outputs.
        max_batches: evaluate on so many batches only; None: all.
        latency_batch_size: images of a timed call.
        latency_seconds: how long each model is timed, in five rounds; 0: not at all.
        checkpoint_interval: a checkpoint every so many epochs.
        state_minutes: minutes between states to resume from, within an epoch.
        device: auto, cpu, cuda, mps.
        workers: processes that load images from files.
        language: of texts and reports.

    Raises:
        InputError: a value of the wrong type, out of its range, or not among its choices.

    Example:
        >>> config = ExperimentConfig().replace(pruning_ratio="0.3", methods="coverage,wanda")
        >>> config.pruning_ratio, config.methods
        (0.3, ('coverage', 'wanda'))
    """

    # What is pruned, and on what data
    scenario: str = _setting("TS1", "prepare", "the scenario's name, as it stands in file names")
    profile: str = _setting("full", "machine", "full, quick or smoke: what the other settings started from")
    model: str = _setting("resnet18", "prepare", "resnet18, resnet20, resnet56, digits_resnet or a torchvision model")
    data: Literal["digits", "cifar10", "imagenet", "photos", "auto"] = _setting(
        "cifar10", "prepare", "the data set; auto: an ImageNet folder, or the NIPS-2017 photos where there is none"
    )
    weights: str = _setting(
        "auto",
        "prepare",
        "where the first weights come from: auto (the model's usual ones), imagenet, trained, none, or a .safetensors "
        "file",
    )
    train_images: int | None = _setting(None, "prepare", "use so many training images; None: all", least=1)
    validation_images: int = _setting(5000, "prepare", "training images kept apart for validation", least=1)
    test_images: int | None = _setting(None, "prepare", "measure on so many test images; None: all", least=1)
    seed: int = _setting(0, "prepare", "of splits, order, augmentation, dropout", least=0)

    # Training, before and after pruning
    prepare_epochs: int = _setting(20, "prepare", "epochs of the original model's fine-tuning; 0: none", least=0)
    prepare_lr: float = _setting(0.01, "prepare", "its learning rate", least=0)
    batch_size: int = _setting(128, "prepare", "images of a step, all processes together", least=1)
    optimizer: OptimizerName = _setting("sgd", "prepare", "the optimiser")
    momentum: float = _setting(0.9, "prepare", "Nesterov momentum of sgd", least=0, below=1)
    weight_decay: float = _setting(5e-4, "prepare", "on weights, not on biases and norms", least=0)
    scheduler: SchedulerName = _setting("cosine", "prepare", "of the learning rate")
    warmup_epochs: float = _setting(0.0, "prepare", "epochs in which the learning rate rises", least=0)
    label_smoothing: float = _setting(0.0, "prepare", "share of the target spread over all classes", least=0, below=1)
    clip_norm: float | None = _setting(None, "prepare", "largest norm of the gradient; None: any", least=0)
    accumulate: int = _setting(1, "prepare", "batches whose gradients make one step", least=1)
    precision: Precision = _setting("32-true", "prepare", "of numbers in training")
    patience: int | None = _setting(
        None, "prepare", "early stopping: epochs without a better validation accuracy; None: never", least=1
    )
    keep: Literal["best", "last"] = _setting("best", "prepare", "weights that a training ends with")

    # Scores and the cut
    methods: tuple[str, ...] = _setting(("coverage", "wanda"), "report", "coverage, wanda, magnitude, taylor, ...")
    pruning_ratio: float = _setting(0.2, "prune", "the share to remove", least=0, below=1)
    target: Literal["channels", "params", "macs", "latency"] = _setting("channels", "prune", "what the ratio is of")
    global_pruning: bool = _setting(False, "prune", "rank all layers' channels together")
    isomorphic: bool = _setting(False, "prune", "rank the channels of layers of one structure together")
    iterative_steps: int = _setting(5, "prune", "reach the ratio in so many steps", least=1)
    schedule: Literal["linear", "geometric", "cubic", "one_shot"] = _setting("linear", "prune", "of these steps")
    metric: Literal["normalized_mean", "frequency", "mean_absolute", "combined"] = _setting(
        "normalized_mean", "prune", "how coverage is measured"
    )
    threshold: float = _setting(0.0, "prune", "of coverage by frequency: active above it", least=0)
    calibration_batches: int = _setting(50, "prune", "batches the scores look at", least=1)
    calibration_batch_size: int = _setting(64, "prune", "their size", least=1)
    calibration_source: Literal["train", "test"] = _setting(
        "train", "prune", "where they come from; test images then judge what they chose"
    )
    max_pruning_ratio: float = _setting(1.0, "prune", "no group loses more than this share", least=0)
    min_channels: int = _setting(1, "prune", "no group keeps fewer", least=1)
    round_to: int | None = _setting(None, "prune", "kept channels are a multiple of this", least=1)
    ignored_layers: tuple[str, ...] = _setting((), "prune", "layers that are left whole, by name; none: no layer")
    recover: Literal["none", "batchnorm", "bias", "least_squares"] = _setting(
        "none", "prune", "repair without training, right after the cut"
    )

    # Fine-tuning of the pruned model
    finetune_epochs: int = _setting(30, "finetune", "epochs after pruning; 0: none", least=0)
    finetune_lr: float = _setting(0.01, "finetune", "its learning rate", least=0)
    distillation_weight: float = _setting(
        0.0, "finetune", "share of the loss that follows the unpruned model's outputs", least=0
    )
    distillation_temperature: float = _setting(4.0, "finetune", "softens these outputs", least=0)

    # What is measured and written
    max_batches: int | None = _setting(None, "prepare", "evaluate on so many batches only; None: all", least=1)
    latency_batch_size: int = _setting(1, "report", "images of a timed call", least=1)
    latency_seconds: float = _setting(
        5.0, "report", "how long each model is timed, in five rounds; 0: not at all", least=0
    )
    checkpoint_interval: int = _setting(5, "machine", "a checkpoint every so many epochs", least=1)
    state_minutes: float = _setting(10.0, "machine", "minutes between states to resume from, within an epoch", least=0)
    device: str = _setting("auto", "machine", "auto, cpu, cuda, mps")
    workers: int = _setting(0, "machine", "processes that load images from files", least=0)
    language: Literal["en", "tr"] = _setting("en", "machine", "of texts and reports")

    def __post_init__(self) -> None:
        for field, kind in _kinds().items():
            object.__setattr__(self, field, _check(field, kind, getattr(self, field)))
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods is {', '.join(self.methods) or 'empty'}; name at least one, each once")
        if self.distillation_weight > 1:
            raise InputError(f"distillation_weight is {self.distillation_weight:g}; it is a share, at most 1")

    def replace(self, **changes: Any) -> ExperimentConfig:
        """The configuration with some settings changed; values may be texts, as a command line has them.

        Args:
            changes: settings by name.

        Raises:
            InputError: an unknown name, with those that there are, or a value that cannot be used.

        Example:
            >>> ExperimentConfig().replace(methods="taylor").methods
            ('taylor',)
        """
        check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all settings; `from_dict` reads them."""
        settings = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExperimentConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            InputError: an unknown setting, or a value that cannot be used.
        """
        check_names(data)
        settings: dict[str, Any] = dict(data)
        return cls(**settings)

    def save(self, path: str | Path) -> Path:
        """Writes the settings as JSON; gives the path."""
        write_text(Path(path), format_json({"format": FORMAT, **self.to_dict()}))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> ExperimentConfig:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no configuration of an experiment: {error}") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise InputError(f'{path} is no configuration of an experiment: its "format" is not "{FORMAT}"')
        return cls.from_dict(data)

    def settings_until(self, stage: Stage) -> dict[str, Any]:
        """What the outcome of a stage depends on: its own settings and those of the stages before it.

        Args:
            stage: "prepare", "prune", "finetune" or "report".

        Example:
            >>> "pruning_ratio" in ExperimentConfig().settings_until("prepare")
            False
        """
        stages = STAGES[: STAGES.index(stage) + 1]
        return {name: value for name, value in self.to_dict().items() if stage_of(name) in stages}


def stage_of(name: str) -> str:
    """The stage that a setting belongs to, or "machine"."""
    return _fields()[name].metadata["stage"]


def describe_settings() -> list[tuple[str, str, str, str]]:
    """(name, stage, default, meaning) of every setting, for people."""
    return [
        (name, field.metadata["stage"], write_setting(field.default), _describe(field))
        for name, field in _fields().items()
    ]


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """The settings of ``key=value`` texts.

    Raises:
        InputError: a text without "=", or an unknown name.

    Example:
        >>> parse_settings(["pruning_ratio=0.3", "model=resnet20"])
        {'pruning_ratio': '0.3', 'model': 'resnet20'}
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{pair!r} is no setting: write key=value, e.g. pruning_ratio=0.3")
        settings[name.strip()] = value.strip()
    check_names(settings)
    return settings


def check_names(names: Mapping[str, Any]) -> None:
    """Raises `InputError` for a name that no setting has, listing the names."""
    known = list(_fields())
    for name in names:
        if name not in known:
            hint = suggest_names(name, known) or "."
            raise InputError(f"There is no setting {name!r}{hint} The settings are {', '.join(known)}.")


# ---------------------------------------------------------------------------------------------------------- one value


def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(ExperimentConfig)}


def _kinds() -> dict[str, Any]:
    return typing.get_type_hints(ExperimentConfig)


def _describe(field: dataclasses.Field[Any]) -> str:
    choices = typing.get_args(_kinds()[field.name])
    named = [choice for choice in choices if isinstance(choice, str)]
    return field.metadata["help"] + (f" ({', '.join(named)})" if named else "")


def write_setting(value: Any) -> str:
    """A value as ``key=value`` on the command line has it."""
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _check(name: str, kind: Any, value: Any) -> Any:
    """The value in its type and range; a text is read first."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise InputError(f"{name} is {value!r}; use {' or '.join(choices)}{suggest_names(value, choices)}")
        return value
    if kind == tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if value in ("none", "") and _fields()[name].default == ():
            parts = ()
        if not isinstance(parts, (tuple, list)) or not all(isinstance(part, str) and part.strip() for part in parts):
            raise InputError(f"{name} is {value!r}; give names separated by commas")
        return tuple(part.strip() for part in parts)
    kinds = typing.get_args(kind) or (kind,)
    if type(None) in kinds and (value is None or value in ("none", "None", "")):
        return None
    value = _read(name, next(each for each in kinds if each is not type(None)), value, type(None) in kinds)
    return value if isinstance(value, (str, bool)) else _check_range(name, value)


_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _read(name: str, kind: Any, value: Any, may_miss: bool) -> Any:
    wanted = _WORDS[kind] + (" or none" if may_miss else "")
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
        return value.lower() in ("true", "yes", "1")
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise InputError(f"{name} is {value!r}; it must be {wanted}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or value == "":
        raise InputError(f"{name} is {value!r}; it must be {wanted}")
    return value


def _check_range(name: str, value: float) -> float:
    field = _fields()[name]
    least, below = field.metadata["least"], field.metadata["below"]
    if not math.isfinite(value) or (least is not None and value < least) or (below is not None and value >= below):
        bounds = [f"at least {least:g}"] if least is not None else []
        bounds += [f"below {below:g}"] if below is not None else []
        raise InputError(f"{name} is {value:g}; it must be {' and '.join(bounds) or 'finite'}")
    return value
