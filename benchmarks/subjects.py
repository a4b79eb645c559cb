"""The trained networks that are cut in `benchmarks.accuracy` and `benchmarks.finetune`, and their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.train_vit import default_weights_path
from cleanai.data import (
    DataMissingError,
    load_cifar10,
    load_nips_photos,
    make_loader,
    torchvision_weights_path,
    trained_weights_path,
)
from cleanai.models import cifar_vit, load_weights, resnet20, resnet56

Batch = tuple[Tensor, Tensor]
TEST_BATCH = 500


@dataclass(frozen=True)
class Amounts:
    """How much data is used: None means what `accuracy` says of the network in `SUBJECTS`."""

    calibration_images: int | None = None
    test_images: int | None = None
    mirror: bool | None = None
    vit_weights: Path | None = None


@dataclass(frozen=True)
class Subject:
    """A trained network, one input, calibration batches with their labels, and the test images.

    ``calibration_images`` are different images; mirrored ones come on top of them.
    """

    name: str
    model: nn.Module
    example: Tensor
    calibration: list[Batch]
    test: DataLoader
    data: str
    calibration_images: int
    mirror: bool
    test_images: int


def make_subject(
    name: str, model: nn.Module, calibration: TensorDataset, test: TensorDataset, *, data: str, mirror: bool, batch: int
) -> Subject:
    """A subject from images in memory; with ``mirror``, every calibration image is followed by its mirror image."""
    images, labels = calibration.tensors
    count = len(images)
    if mirror:
        images = torch.stack([images, images.flip(3)], 1).flatten(0, 1)
        labels = labels.repeat_interleave(2)
    return Subject(
        name=name,
        model=model.eval(),
        example=images[:1].clone(),
        calibration=list(zip(images.split(batch), labels.split(batch), strict=True)),
        test=make_loader(test, batch_size=min(TEST_BATCH, 4 * batch)),
        data=data,
        calibration_images=count,
        mirror=mirror,
        test_images=len(test),
    )


def load_cifar_subject(name: str, amounts: Amounts, build: Callable[[], nn.Module]) -> Subject:
    """A network for CIFAR-10: calibrated on 1,024 training images and their mirror images, tested on all 10,000."""
    own = amounts.vit_weights if name == "vit" else None
    model = load_weights(build(), own or _find_weights(name))
    mirror = True if amounts.mirror is None else amounts.mirror
    calibration = load_cifar10("train", limit=amounts.calibration_images or 1024, seed=0)
    test = load_cifar10("test", limit=amounts.test_images)
    return make_subject(name, model, calibration, test, data="CIFAR-10", mirror=mirror, batch=128)


def load_mobilenet(name: str, amounts: Amounts) -> Subject:
    """torchvision's MobileNetV2: calibrated on one half of the NIPS-2017 photos, tested on the other."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(torch.load(torchvision_weights_path("mobilenet_v2"), weights_only=True, map_location="cpu"))
    calibration = load_nips_photos("even", limit=amounts.calibration_images)
    test = load_nips_photos("odd", limit=amounts.test_images)
    mirror = bool(amounts.mirror)  # twice the photos would take twice the memory of activations at 224×224
    return make_subject(name, model, calibration, test, data="NIPS-2017 photos", mirror=mirror, batch=25)


SUBJECTS: dict[str, Callable[[str, Amounts], Subject]] = {
    "resnet20": partial(load_cifar_subject, build=resnet20),
    "resnet56": partial(load_cifar_subject, build=resnet56),
    "mobilenet_v2": load_mobilenet,
    "vit": partial(load_cifar_subject, build=cifar_vit),
}
TITLES = {
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet56": "ResNet-56, CIFAR-10",
    "mobilenet_v2": "MobileNetV2, NIPS-2017 photos",
    "vit": "ViT, CIFAR-10",
}


def _find_weights(name: str) -> Path:
    """Under the data root; the project's own ViT may also be where its training has put it."""
    if name != "vit":
        return trained_weights_path(name)
    try:
        return trained_weights_path("cifar_vit")
    except DataMissingError as error:
        path = default_weights_path()
        if path.is_file():
            return path
        places = [Path(place) for place in (*error.looked_in, str(path.parent))]
        raise DataMissingError("cifar_vit.safetensors", places, "python -m benchmarks.train_vit") from None
