"""The model of an experiment: an architecture that fits the data, and where its first weights come from.

torchvision's classifiers go on ImageNet as they are. For CIFAR-10 they get a head of ten classes, and ResNets a small
stem; what of the ImageNet weights still fits is taken over, and what is new is named.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from cleanai.checks import suggest_names
from cleanai.data import CIFAR10_CLASSES, DataMissingError, find_all, torchvision_weights_path, trained_weights_path
from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.splits import IMAGENET_CLASSES, Splits, find_data
from cleanai.isolation import preserve_random_state
from cleanai.models import (
    cifar_vit,
    digits_resnet,
    load_weights,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    use_small_stem,
)

CLASSES = {"digits": 10, "cifar10": len(CIFAR10_CLASSES), "imagenet": IMAGENET_CLASSES, "photos": IMAGENET_CLASSES}
WEIGHTS = ("auto", "imagenet", "trained", "none")

FROM_IMAGENET = "{count} of {total} tensors from torchvision's ImageNet weights ({file})"
CROPPED = "of the trained {old} kernels of {name}, the {new} in the middle"
FRESH = "new and untrained: {names}"
FROM_FILE = "weights of {file}"
FROM_TRAINED = "trained weights ({file})"
UNTRAINED = "untrained, initialised with seed {seed}"
WITHOUT_WEIGHTS = "Or start without trained weights: --set weights=none"


@dataclass(frozen=True)
class Subject:
    """The model of an experiment with its first weights, in evaluation mode.

    Attributes:
        title: the model's name in file names, such as "ResNet18".
        weights: where the weights came from, and which are new; `cleanai.texts.terms` has it in Turkish.
        build: makes the same architecture, untrained.
    """

    model: nn.Module
    title: str
    weights: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class _OwnModel:
    """One of `cleanai.models`: the data it is made for, and the weights it usually starts with."""

    title: str
    data: str
    usual: str
    build: Callable[[], nn.Module]


_OWN = {
    "digits_resnet": _OwnModel("DigitsResNet", "digits", "none", digits_resnet),
    "resnet20": _OwnModel("ResNet20", "cifar10", "trained", resnet20),
    "resnet32": _OwnModel("ResNet32", "cifar10", "trained", resnet32),
    "resnet44": _OwnModel("ResNet44", "cifar10", "trained", resnet44),
    "resnet56": _OwnModel("ResNet56", "cifar10", "trained", resnet56),
    "cifar_vit": _OwnModel("CifarViT", "cifar10", "trained", cifar_vit),
}


def load_subject(config: ExperimentConfig, splits: Splits) -> Subject:
    """The model of an experiment with its first weights; what is new in it depends on the seed alone.

    torch's random state is left alone. Nothing is downloaded, and pickled files are read with ``weights_only=True``.

    Raises:
        DataMissingError: the weights are not there; the message says how to get them, or do without.
        InputError: there is no such model or weights, or it does not fit the data.

    Example:
        >>> from cleanai.experiments.splits import load_splits
        >>> config = ExperimentConfig(data="digits", model="digits_resnet", validation_images=100)
        >>> load_subject(config, load_splits(config)).weights
        'untrained, initialised with seed 0'
    """
    model = build_model(config.model, config.data, splits.classes, seed=config.seed).eval()
    weights = _load_first_weights(model, config)
    _check_example(model, config, splits)
    build = partial(build_model, config.model, config.data, splits.classes)
    return Subject(model, name_model(config.model), weights, build)


def build_model(name: str, data: str, classes: int | None = None, *, seed: int = 0) -> nn.Module:
    """An untrained model for a data set, initialised with the seed; torch's random state is left alone.

    On CIFAR-10 torchvision's ResNets have a 3×3 stem of stride 1 and no max-pool (`cleanai.models.use_small_stem`).

    Args:
        name: one of `list_models` for these data.
        data: "digits", "cifar10", "imagenet" or "photos".
        classes: outputs of the model; None means what the data usually have.

    Raises:
        InputError: there is no such model, listing close names, or it is not made for the data.

    Example:
        >>> build_model("resnet18", "cifar10").fc.out_features
        10
    """
    check_model(name, data)
    with preserve_random_state():
        torch.manual_seed(seed)
        if name in _OWN:
            return _OWN[name].build()
        model = torchvision.models.get_model(name, weights=None, num_classes=classes or CLASSES[data])
        if data == "cifar10" and isinstance(model, torchvision.models.ResNet):
            use_small_stem(model)
        return model


def list_models(data: str) -> list[str]:
    """The names of the models that fit a data set: those of `cleanai.models`, then torchvision's classifiers.

    Example:
        >>> list_models("digits")
        ['digits_resnet']
    """
    own = [name for name, model in _OWN.items() if model.data == data]
    return own if data == "digits" else [*own, *_torchvision_classifiers()]


def name_model(name: str) -> str:
    """A model's name as it stands in titles and file names.

    Raises:
        InputError: there is no such model.

    Example:
        >>> [name_model(name) for name in ("resnet20", "resnet50", "mobilenet_v2", "vit_b_16")]
        ['ResNet20', 'ResNet50', 'MobileNetV2', 'ViTB-16']
    """
    _check_known(name)
    if name in _OWN:
        return _OWN[name].title
    title = torchvision.models.get_model_weights(name).__name__.removesuffix("_Weights")
    return re.sub(r"_(?=\d)", "-", title).replace("_", "")


def check_model(name: str, data: str) -> None:
    """Raises `InputError` where there is no such model, or it is not made for the data."""
    if data not in CLASSES:
        raise InputError(f"There is no data set {data!r}; there are {', '.join(CLASSES)}.")
    _check_known(name)
    fitting = list_models(data)
    if name not in fitting:
        own = [each for each in fitting if each in _OWN]
        choices = [
            *own,
            *(["torchvision's classifiers (resnet18, resnet50, mobilenet_v2, ...)"] if own != fitting else []),
        ]
        raise InputError(f"{name} is not made for {data}; use {', '.join(choices)}.")


def find_weights(config: ExperimentConfig) -> Path | None:
    """The file of an experiment's first weights; None where it starts untrained.

    Raises:
        DataMissingError: it is not there; the message says how to get it, or do without.
        InputError: there is no such model, or no such weights for it.
    """
    check_model(config.model, config.data)
    kind = _choose_weights(config)
    if kind == "none":
        return None
    if kind not in WEIGHTS:
        path = Path(kind).expanduser()
        if not path.is_file():
            raise InputError(f"weights is {config.weights!r}, but there is no such file.")
        return path
    look = torchvision_weights_path if kind == "imagenet" else trained_weights_path
    try:
        return look(config.model)
    except DataMissingError as error:
        places = [Path(place) for place in error.looked_in]
        raise DataMissingError(error.missing, places, error.source, otherwise=WITHOUT_WEIGHTS) from None


def sees_training_images(config: ExperimentConfig) -> bool:
    """Whether the first weights were trained on the very images that are shared out here."""
    return _choose_weights(config) == {"cifar10": "trained", "imagenet": "imagenet"}.get(config.data)


def find_files(config: ExperimentConfig) -> None:
    """Looks for the data and the weights of an experiment before anything is read.

    Raises:
        DataMissingError: one error about all that is missing, in the experiment's language.
    """
    find_all([lambda: find_data(config), lambda: find_weights(config)], config.language)


# ------------------------------------------------------------------------------------------------------------ weights


def _choose_weights(config: ExperimentConfig) -> str:
    """ "imagenet", "trained", "none", or the path of a file."""
    name, weights = config.model, config.weights
    own = _OWN.get(name)
    if weights == "auto":
        return own.usual if own else "imagenet"
    kinds = ("none", own.usual if own else "imagenet")
    if weights not in WEIGHTS and not weights.endswith(".safetensors"):
        raise InputError(f"weights is {weights!r}; use {', '.join(WEIGHTS)} or the path of a .safetensors file")
    if weights in WEIGHTS and weights not in kinds:
        raise InputError(
            f"There are no weights {weights!r} for {name}; use {' or '.join(dict.fromkeys(kinds))}, or the path of a "
            ".safetensors file."
        )
    return weights


def _load_first_weights(model: nn.Module, config: ExperimentConfig) -> str:
    """Loads the weights in place; says where they came from."""
    path = find_weights(config)
    if path is None:
        return UNTRAINED.format(seed=config.seed)
    kind = _choose_weights(config)
    if kind == "imagenet":
        return _take_over(model, _read_pickle(path), path)
    load_weights(model, path)
    return (FROM_TRAINED if kind == "trained" else FROM_FILE).format(file=path.name)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    # torchvision's DenseNets were saved when a layer could still be called "norm.1".
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value for name, value in tensors.items()
    }


def _take_over(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> str:
    """Loads what fits by name and shape, and the middle of kernels that have become smaller; says what is new.

    Only a head for another number of classes may be new.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    taken = {name: tensors[name] for name in own if name in tensors and tensors[name].shape == own[name].shape}
    cropped = {
        name: _crop_kernel(tensors[name], own[name].shape)
        for name in own
        if name in tensors and name not in taken and _is_smaller_kernel(own[name], tensors[name])
    }
    fresh = [name for name in own if name in tensors and name not in taken and name not in cropped]
    unfit = missing + [name for name in fresh if own[name].shape[1:] != tensors[name].shape[1:]]
    if unfit:
        raise InputError(f"{path} does not fit {type(model).__name__}: {', '.join(unfit[:3])} differ or are missing.")
    model.load_state_dict({**own, **taken, **cropped})
    parts = [FROM_IMAGENET.format(count=len(taken), total=len(own), file=path.name)]
    parts += [
        CROPPED.format(name=name, old=_size(tensors[name]), new=_size(kernel)) for name, kernel in cropped.items()
    ]
    parts += [FRESH.format(names=", ".join(fresh))] if fresh else []
    return "; ".join(parts)


def _is_smaller_kernel(own: Tensor, other: Tensor) -> bool:
    """Whether both are convolutions of the same channels, and one kernel lies in the middle of the other."""
    if own.ndim != 4 or other.ndim != 4 or own.shape[:2] != other.shape[:2]:
        return False
    sizes = zip(own.shape[2:], other.shape[2:], strict=True)
    return all(small <= large and (large - small) % 2 == 0 for small, large in sizes)


def _crop_kernel(kernel: Tensor, shape: torch.Size) -> Tensor:
    top, left = ((large - small) // 2 for large, small in zip(kernel.shape[2:], shape[2:], strict=True))
    return kernel[:, :, top : top + shape[2], left : left + shape[3]]


def _size(kernel: Tensor) -> str:
    return "×".join(map(str, kernel.shape[2:]))


# ------------------------------------------------------------------------------------------------------------- checks


@cache
def _torchvision_classifiers() -> tuple[str, ...]:
    """torchvision's classifiers, without those that give other outputs in training than in evaluation."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(name for name in names if name not in _AUXILIARY)


_AUXILIARY = ("googlenet", "inception_v3")


def _check_known(name: str) -> None:
    known = [*_OWN, *_torchvision_classifiers()]
    if name in known:
        return
    if name in _AUXILIARY:
        raise InputError(f"{name} has auxiliary heads, which give other outputs in training; use another model.")
    hint = suggest_names(name, known, 5, 0.5) or "; use resnet18, resnet50, mobilenet_v2, resnet20, ..."
    raise InputError(f"There is no model {name!r}{hint}")


def _check_example(model: nn.Module, config: ExperimentConfig, splits: Splits) -> None:
    """Raises `InputError` where the model cannot take the images."""
    try:
        with torch.no_grad(), preserve_random_state():
            output: Any = model(splits.example)
    except (RuntimeError, AssertionError, ValueError) as error:
        size = "×".join(map(str, splits.example.shape[2:]))
        raise InputError(f"{config.model} does not run on images of {size} pixels ({splits.title}): {error}") from error
    if output.shape != (1, splits.classes):
        raise InputError(
            f"{config.model} gives {tuple(output.shape)}, not one score for each of {splits.classes} classes"
        )
