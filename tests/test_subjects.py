"""The models of experiments: which fit which data, what is taken over from trained weights, and what is new."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from cleanai.data import DataMissingError, torchvision_weights_path, trained_weights_path
from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.splits import Splits, TensorImages, load_splits
from cleanai.experiments.subjects import (
    build_model,
    check_model,
    find_files,
    find_weights,
    list_models,
    load_subject,
    name_model,
)
from cleanai.models import resnet18_cifar, resnet20
from cleanai.texts import terms

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "imagenet": (3, 224, 224), "photos": (3, 224, 224)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "root"
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("CLEANAI_DATA", str(folder))
    monkeypatch.setenv("CLEANAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return folder


def make_splits(data: str, classes: int | None = None) -> Splits:
    """Two images of noise in each part, of the shape and with the classes of the data."""
    noise = torch.randn(2, *SHAPES[data], generator=torch.Generator().manual_seed(0))
    images = TensorImages(noise, torch.tensor([0, 1]))
    classes = classes or (10 if data in ("digits", "cifar10") else 1000)
    return Splits(data, data, classes, images, images, images, images, noise[:1])


def make_config(model: str, data: Any, **settings: Any) -> ExperimentConfig:
    return ExperimentConfig(model=model, data=data, **settings)


def save_imagenet_weights(root: Path, name: str) -> dict[str, Tensor]:
    """Random weights in the place and format of torchvision's own; gives them."""
    tensors = torchvision_models.get_model(name, weights=None).state_dict()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        key: torch.randn(value.shape, generator=generator).abs() if value.is_floating_point() else value
        for key, value in tensors.items()
    }
    url = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].url
    torch.save(tensors, root / "hub" / "checkpoints" / Path(url).name)
    return tensors


# -------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("digits_resnet", "digits"),
        ("resnet20", "cifar10"),
        ("resnet56", "cifar10"),
        ("cifar_vit", "cifar10"),
        ("resnet18", "cifar10"),
        ("resnet50", "cifar10"),
        ("mobilenet_v2", "cifar10"),
        ("squeezenet1_1", "cifar10"),  # its last layer is a convolution
        ("mobilenet_v2", "photos"),
        ("resnet18", "imagenet"),
    ],
)
def test_models_take_their_data_and_depend_on_the_seed_alone(name: str, data: str) -> None:
    before = torch.get_rng_state()
    model = build_model(name, data).eval()
    splits = make_splits(data)
    with torch.no_grad():
        assert model(splits.example).shape == (1, splits.classes)
    torch.manual_seed(99)
    again, other = build_model(name, data), build_model(name, data, seed=1)
    torch.set_rng_state(before)
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    assert any(not torch.equal(value, own[key]) for key, value in other.state_dict().items())


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_model("resnet18", "cifar10", seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_resnet18_on_cifar10_is_the_projects_own() -> None:
    model, expected = build_model("resnet18", "cifar10"), resnet18_cifar()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert isinstance(model.maxpool, nn.Identity) and model.conv1.stride == (1, 1)


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnext50_32x4d"])
def test_resnets_keep_all_pixels_of_cifar10_in_their_first_stage(name: str) -> None:
    with torch.device("meta"):
        model: Any = torchvision_models.get_model(name, weights=None)
    small: Any = build_model(name, "cifar10")
    assert small.conv1.weight.shape == (64, 3, 3, 3) and small.fc.out_features == 10
    changed = {"conv1.weight", "fc.weight", "fc.bias"}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    differing = {key for key, value in small.state_dict().items() if value.shape != shapes[key]}
    assert differing == changed and set(shapes) == set(small.state_dict())
    assert small.layer1(small.maxpool(small.conv1(torch.zeros(1, 3, 32, 32)))).shape[2:] == (32, 32)


def test_a_folder_with_other_classes_gets_a_head_for_them() -> None:
    model: Any = build_model("resnet18", "imagenet", 3)
    assert model.fc.out_features == 3 and model.conv1.kernel_size == (7, 7)


def test_titles_are_unique_and_fit_into_file_names() -> None:
    names = list(dict.fromkeys([*list_models("digits"), *list_models("cifar10"), *list_models("imagenet")]))
    titles = [name_model(name) for name in names]
    assert len(set(titles)) == len(titles) > 80
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", title) for title in titles)
    expected = {"resnet18": "ResNet18", "resnet20": "ResNet20", "mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50"}
    assert {name: name_model(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("resnet81", "cifar10", r"There is no model 'resnet81'; did you mean .*resnet18"),
        ("mobilenetv2", "photos", r"did you mean .*mobilenet_v2"),
        ("zzz", "digits", r"no model 'zzz'; use resnet18"),
        ("resnet18", "digits", r"resnet18 is not made for digits; use digits_resnet\."),
        ("resnet20", "photos", r"resnet20 is not made for photos; use torchvision's classifiers \(resnet18"),
        ("digits_resnet", "cifar10", r"not made for cifar10; use resnet20, resnet32, .*cifar_vit, torchvision's"),
        ("googlenet", "imagenet", r"googlenet has auxiliary heads"),
        ("resnet18", "mnist", r"no data set 'mnist'; there are digits, cifar10, imagenet, photos"),
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, data: str, message: str) -> None:
    for refuse in (build_model, check_model):
        with pytest.raises(InputError, match=message):
            refuse(name, data)


def test_a_model_too_large_for_the_images_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"alexnet does not run on images of 32×32 pixels"):
        load_subject(make_config("alexnet", "cifar10", weights="none"), make_splits("cifar10"))


# -------------------------------------------------------------------------------------------------------------- weights


def test_imagenet_weights_on_cifar10_with_a_cropped_stem_and_a_fresh_head(root: Path) -> None:
    tensors = save_imagenet_weights(root, "resnet18")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    subject = load_subject(make_config("resnet18", "cifar10", seed=5), make_splits("cifar10"))
    assert torch.equal(torch.get_rng_state(), before)
    own = subject.model.state_dict()
    assert torch.equal(own["conv1.weight"], tensors["conv1.weight"][:, :, 2:5, 2:5])
    taken = [name for name in own if own[name].shape == tensors[name].shape and torch.equal(own[name], tensors[name])]
    assert set(own) - set(taken) == {"conv1.weight", "fc.weight", "fc.bias"}
    assert subject.title == "ResNet18" and not any(module.training for module in subject.model.modules())
    assert subject.weights == (
        f"{len(taken)} of {len(own)} tensors from torchvision's ImageNet weights (resnet18-f37072fd.pth); "
        "of the trained 7×7 kernels of conv1.weight, the 3×3 in the middle; new and untrained: fc.weight, fc.bias"
    )
    assert terms("tr", subject.weights) == (
        "122 tensörün 119 tanesi torchvision'ın ImageNet ağırlıklarından (resnet18-f37072fd.pth); "
        "conv1.weight için eğitilmiş 7×7 çekirdeklerin ortasındaki 3×3 kısmı; yeni ve eğitilmemiş: fc.weight, fc.bias"
    )
    fresh = build_model("resnet18", "cifar10", seed=5).state_dict()
    assert torch.equal(own["fc.weight"], fresh["fc.weight"])
    other = load_subject(make_config("resnet18", "cifar10", seed=6), make_splits("cifar10")).model.state_dict()
    assert not torch.equal(own["fc.weight"], other["fc.weight"])
    assert torch.equal(own["conv1.weight"], other["conv1.weight"])


def test_imagenet_weights_as_they_are(root: Path) -> None:
    tensors = save_imagenet_weights(root, "mobilenet_v2")
    subject = load_subject(make_config("mobilenet_v2", "photos"), make_splits("photos"))
    assert all(torch.equal(value, tensors[name]) for name, value in subject.model.state_dict().items())
    assert subject.weights == "314 of 314 tensors from torchvision's ImageNet weights (mobilenet_v2-b0353104.pth)"
    copy = subject.build()
    copy.load_state_dict(subject.model.state_dict())
    assert not torch.equal(subject.build().state_dict()["classifier.1.weight"], tensors["classifier.1.weight"])


def test_weights_saved_under_old_names_are_read(root: Path) -> None:
    tensors = save_imagenet_weights(root, "densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in tensors.items()}
    assert set(old) != set(tensors)
    torch.save(old, torchvision_weights_path("densenet121"))
    subject = load_subject(make_config("densenet121", "cifar10"), make_splits("cifar10"))
    assert subject.weights.endswith("new and untrained: classifier.weight, classifier.bias")
    own = subject.model.state_dict()
    assert all(torch.equal(own[name], tensors[name]) for name in own if not name.startswith("classifier"))


def test_torchs_own_cache_is_looked_into(root: Path) -> None:
    place = Path(torch.hub.get_dir()) / "checkpoints"
    place.mkdir(parents=True)
    (place / "resnet50-0676ba61.pth").touch()
    assert find_weights(make_config("resnet50", "imagenet")) == place / "resnet50-0676ba61.pth"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read as weights"), (b"not a checkpoint", "cannot be read as weights")],
)
def test_damaged_weights_are_named(root: Path, content: bytes, message: str) -> None:
    (root / "hub" / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(InputError, match=rf"resnet18-f37072fd\.pth {message}"):
        load_subject(make_config("resnet18", "cifar10"), make_splits("cifar10"))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_weights_run_no_code(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Harmful()}, root / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_subject(make_config("resnet18", "cifar10"), make_splits("cifar10"))
    assert not (tmp_path / "harm").exists()


def test_weights_of_another_network_are_refused(root: Path) -> None:
    place = root / "hub" / "checkpoints"
    save_imagenet_weights(root, "resnet34")
    (place / "resnet34-b627a593.pth").rename(place / "resnet50-0676ba61.pth")
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth does not fit ResNet: .*layer1\.0\.conv3"):
        load_subject(make_config("resnet50", "cifar10"), make_splits("cifar10"))


def test_trained_weights_of_the_projects_own_networks(root: Path, tmp_path: Path) -> None:
    tensors = build_model("resnet20", "cifar10", seed=8).state_dict()
    for path in (root / "models" / "resnet20.safetensors", tmp_path / "mine.safetensors"):
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
    splits = make_splits("cifar10")
    for weights, said in (
        ("auto", "trained weights (resnet20.safetensors)"),
        ("trained", "trained weights (resnet20.safetensors)"),
        (str(tmp_path / "mine.safetensors"), "weights of mine.safetensors"),
    ):
        subject = load_subject(make_config("resnet20", "cifar10", weights=weights), splits)
        assert subject.weights == said and terms("tr", said) != said
        assert all(torch.equal(value, tensors[name]) for name, value in subject.model.state_dict().items())
    untrained = load_subject(make_config("resnet20", "cifar10", weights="none", seed=4), splits)
    assert untrained.weights == "untrained, initialised with seed 4"
    assert not torch.equal(untrained.model.state_dict()["conv1.weight"], tensors["conv1.weight"])
    with pytest.raises(InputError, match=r"mine\.safetensors does not fit CifarResNet"):
        load_subject(make_config("resnet56", "cifar10", weights=str(tmp_path / "mine.safetensors")), splits)


@pytest.mark.parametrize(
    ("model", "data", "weights", "message"),
    [
        ("resnet20", "cifar10", "imagenet", r"no weights 'imagenet' for resnet20; use none or trained, or the path"),
        ("resnet18", "cifar10", "trained", r"no weights 'trained' for resnet18; use none or imagenet, or the path"),
        ("digits_resnet", "digits", "trained", r"no weights 'trained' for digits_resnet; use none, or the path"),
        ("resnet18", "cifar10", "mine.pth", r"weights is 'mine.pth'; use auto, imagenet, trained, none or the path"),
        ("resnet18", "cifar10", "gone.safetensors", r"weights is 'gone\.safetensors', but there is no such file"),
        ("vit_h_14", "imagenet", "auto", r"no weights IMAGENET1K_V1 for vit_h_14"),
    ],
)
def test_weights_that_there_are_not_are_refused(root: Path, model: str, data: str, weights: str, message: str) -> None:
    config = make_config(model, data, weights=weights)
    with pytest.raises(InputError, match=message):
        find_weights(config)


@pytest.mark.parametrize(
    ("model", "data", "file"),
    [
        ("resnet18", "cifar10", "resnet18-f37072fd.pth"),
        ("resnet50", "imagenet", "resnet50-0676ba61.pth"),
        ("resnet56", "cifar10", "resnet56.safetensors"),
        ("cifar_vit", "cifar10", "cifar_vit.safetensors"),
    ],
)
def test_missing_weights_say_how_to_do_without(root: Path, model: str, data: str, file: str) -> None:
    with pytest.raises(DataMissingError, match=rf"(?s){re.escape(file)}.*--set weights=none") as caught:
        load_subject(make_config(model, data), make_splits(data))
    turkish = caught.value.describe("tr")
    assert f"{file}" in turkish and turkish.endswith("Eğitilmiş ağırlıklar olmadan başlamak için: --set weights=none")


def test_all_missing_files_are_one_error(root: Path) -> None:
    with pytest.raises(DataMissingError, match=r"(?s)CIFAR-10.*not found.*resnet20\.safetensors.*weights=none"):
        find_files(make_config("resnet20", "cifar10"))
    with pytest.raises(DataMissingError, match=r"(?s)ImageNet.*bulunamadı.*resnet50-0676ba61\.pth.*weights=none"):
        find_files(make_config("resnet50", "imagenet", language="tr"))
    find_files(make_config("digits_resnet", "digits"))


def test_the_real_weights_are_right_about_real_images() -> None:
    config = make_config("mobilenet_v2", "photos", test_images=20, calibration_batches=1, calibration_batch_size=1)
    try:
        splits = load_splits(config)
        subject = load_subject(config, splits)
    except DataMissingError as error:
        pytest.skip(f"needs the photos and MobileNetV2 under the data root (CLEANAI_DATA): {error.missing}")
    images, labels = next(iter(splits.loader("test", 20)))
    with torch.no_grad():
        assert int((subject.model(images).argmax(1) == labels).sum()) >= 14  # 84.8 % of all thousand


def test_the_trained_resnet20_is_the_projects_own() -> None:
    try:
        path = trained_weights_path("resnet20")
    except DataMissingError:
        pytest.skip("needs the trained ResNet-20 under the data root (CLEANAI_DATA)")
    subject = load_subject(make_config("resnet20", "cifar10"), make_splits("cifar10"))
    assert type(subject.model) is type(resnet20()) and path.name in subject.weights
