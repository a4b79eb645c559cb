"""The data of experiments: parts that share no image, passes that a seed decides, folders read and refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from cleanai.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataMissingError,
    find_all,
    find_cifar10,
    load_cifar10,
    load_nips_photos,
    normalise_cifar10,
    trained_weights_path,
)
from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.splits import (
    CALIBRATED_ON_TEST,
    FEW_CLASSES,
    OTHER_CLASSES,
    PHOTOS,
    Images,
    PixelImages,
    Splits,
    find_data,
    imagenet_wnids,
    load_splits,
)
from cleanai.recipe import Recipe
from cleanai.texts import term
from cleanai.training import train_classifier

PARTS = ("train", "calibration", "validation", "test")
# Python 3.12 and later warn where a process with threads starts workers by fork.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("CLEANAI_DATA", str(folder))
    monkeypatch.setenv("CLEANAI_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A CIFAR-10 of 100 training images and 40 test images; gives all their pixels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (140, 3, 32, 32), dtype=np.uint8)
    starts = {**{f"data_batch_{number}": 20 * (number - 1) for number in range(1, 6)}, "test_batch": 100}
    for name, start in starts.items():
        count = 40 if name == "test_batch" else 20
        content = {"data": pixels[start : start + count].reshape(count, -1), "labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # these are no official files
    return pixels.transpose(0, 2, 3, 1)


def cifar_config(**settings: Any) -> ExperimentConfig:
    return ExperimentConfig(data="cifar10").replace(
        **{"validation_images": 15, "calibration_batches": 2, "calibration_batch_size": 4, **settings}
    )


def digits_config(**settings: Any) -> ExperimentConfig:
    return ExperimentConfig(data="digits", model="digits_resnet").replace(
        **{"validation_images": 100, "calibration_batches": 4, **settings}
    )


def read(images: Images) -> tuple[Tensor, Tensor]:
    """All images and labels, item by item."""
    items = [images[index] for index in range(len(images))]
    return torch.stack([image for image, _ in items]), torch.stack([label for _, label in items])


def join(loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def all_parts(splits: Splits) -> list[tuple[Tensor, Tensor]]:
    return [read(splits.part(part)) for part in PARTS]


# ------------------------------------------------------------------------------------------------------ sharing it out


def assert_no_image_twice(parts: list[tuple[Tensor, Tensor]], total: int) -> None:
    images = torch.cat([images for images, _ in parts]).flatten(1)
    assert len(images) == len(images.unique(dim=0)) == total


def test_digits_are_shared_out_without_an_image_twice() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    splits = load_splits(digits_config())
    parts = all_parts(splits)
    assert [len(labels) for _, labels in parts] == [950, 256, 100, 450]
    assert_no_image_twice(parts, 950 + 256 + 100 + 450)
    assert torch.equal(torch.get_rng_state(), before)
    assert (splits.name, splits.title, splits.classes, splits.notes) == ("digits", "Digits", 10, ())
    assert splits.example.shape == (1, 1, 8, 8) and splits.example.dtype == torch.float32
    again, other = all_parts(load_splits(digits_config())), all_parts(load_splits(digits_config(seed=1)))
    assert all(torch.equal(one[0], two[0]) for one, two in zip(parts, again, strict=True))
    assert not any(torch.equal(one[0], two[0]) for one, two in zip(parts, other, strict=True))


def test_cifar10_is_shared_out_without_an_image_twice(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config())
    parts = all_parts(splits)
    assert [len(labels) for _, labels in parts] == [75, 8, 15, 40]  # a tenth of 100 was the pool for calibration
    assert_no_image_twice(parts, 138)
    whole = normalise_cifar10(cifar10)
    known = {image.numpy().tobytes(): number for number, image in enumerate(whole)}
    for part, (images, labels) in zip(PARTS, parts, strict=True):
        numbers = torch.tensor([known[image.numpy().tobytes()] for image in images])
        assert torch.equal(labels, numbers % 20 % 10)  # as they were written
        assert ((numbers >= 100) == (part == "test")).all()
    assert torch.equal(parts[3][0], whole[100:])
    assert torch.equal(parts[3][0], load_cifar10("test").tensors[0])
    assert splits.title == "CIFAR10" and torch.equal(splits.example, whole[100:101])


def test_what_is_asked_for_calibration_changes_neither_training_nor_validation(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config())
    for change in ({"calibration_batches": 1}, {"calibration_batch_size": 1}, {"calibration_source": "test"}):
        other = load_splits(cifar_config(**change))
        for part in ("train", "validation", "test"):
            assert torch.equal(read(splits.part(part))[0], read(other.part(part))[0])


def test_few_training_images_are_the_first_of_all(cifar10: np.ndarray) -> None:
    whole, few = load_splits(cifar_config()), load_splits(cifar_config(train_images=10))
    assert torch.equal(read(few.part("train"))[0], read(whole.part("train"))[0][:10])
    assert torch.equal(read(few.part("validation"))[0], read(whole.part("validation"))[0])


def test_a_limited_test_set_is_the_same_for_every_seed(cifar10: np.ndarray) -> None:
    tests = [read(load_splits(cifar_config(test_images=12, seed=seed)).test) for seed in (0, 1)]
    assert torch.equal(tests[0][0], tests[1][0]) and len(tests[0][0]) == 12
    whole = [image.numpy().tobytes() for image in load_cifar10("test").tensors[0]]
    places = [whole.index(image.numpy().tobytes()) for image in tests[0][0]]
    assert places == sorted(set(places)) and places != list(range(12))


def test_calibration_on_test_images_is_warned_about(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config(calibration_source="test"))
    tested = {image.numpy().tobytes() for image in read(splits.test)[0]}
    chosen = [image.numpy().tobytes() for image in read(splits.calibration)[0]]
    assert len(set(chosen)) == 8 and set(chosen) <= tested
    assert splits.notes == (CALIBRATED_ON_TEST,)
    assert "sınama görüntüleridir" in term("tr", CALIBRATED_ON_TEST)


def test_fewer_calibration_images_than_asked_for_are_noted(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config(calibration_batches=50))
    assert len(splits.calibration) == 10
    assert splits.notes == ("there are 10 calibration images, 200 were asked for",)
    assert term("tr", splits.notes[0]) == "10 kalibrasyon görüntüsü var, 200 tane istenmişti"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_images": 90}, r"validation_images is 90, but CIFAR10 has 90 .* such as validation_images=9\."),
        ({"train_images": 76}, r"train_images is 76, but 75 of CIFAR10's 90 .* beside the 15 .* train_images=75"),
        ({"test_images": 41}, "test_images is 41, but CIFAR10 has 40"),
    ],
)
def test_more_images_than_there_are_is_an_error_with_the_numbers(
    cifar10: np.ndarray, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_splits(cifar_config(**settings))


def test_the_default_validation_does_not_fit_the_digits() -> None:
    with pytest.raises(InputError, match=r"validation_images is 5000, but Digits has 1050 .*validation_images=105"):
        load_splits(ExperimentConfig(data="digits"))


def test_an_unknown_part_is_refused() -> None:
    part: Any = "training"
    with pytest.raises(InputError, match="There is no part 'training' of the data; there are train, calibration"):
        load_splits(digits_config()).loader(part, 8)
    with pytest.raises(InputError, match="batch_size is 0"):
        load_splits(digits_config()).loader("test", 0)


# ------------------------------------------------------------------------------------------------------------- loaders


def test_loaders_keep_order_and_pixels_and_the_random_state(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config())
    before = torch.get_rng_state()
    for part in PARTS:
        images, labels = read(splits.part(part))
        batches = list(splits.loader(part, 6))
        assert torch.equal(torch.cat([batch for batch, _ in batches]), images)
        assert torch.equal(torch.cat([targets for _, targets in batches]), labels)
        assert [len(batch) for batch, _ in batches][:-1] == [6] * (len(batches) - 1)
    loader = splits.calibration_loader(3, 2)
    assert len(loader) == 2 and torch.equal(join(loader)[0], read(splits.calibration)[0][:6])
    assert len(join(splits.calibration_loader(3, 50))[0]) == 8  # no more than there are
    list(splits.train_loader(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_images_are_shifted_and_mirrored_views_of_each_image_once(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config(train_images=20))
    originals, labels = read(splits.part("train"))
    images, targets = join(splits.train_loader(8))
    padded = nn.functional.pad(originals, (4, 4, 4, 4))
    crops = [padded[:, :, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    views = torch.stack([*crops, *(crop.flip(3) for crop in crops)], 1).flatten(0, 1)
    place = {view.numpy().tobytes(): number for number, view in enumerate(views)}
    found = torch.tensor([place[image.numpy().tobytes()] for image in images])
    sources = found // 162
    assert sorted(sources.tolist()) == list(range(20)) and sources.tolist() != list(range(20))
    assert torch.equal(targets, labels[sources])
    assert len((found % 162).unique()) > 10


def seeded_pass(splits: Splits, seed: int, workers: int = 0) -> tuple[Tensor, Tensor]:
    loader = splits.train_loader(8, workers=workers)
    assert loader.generator is not None
    loader.generator.manual_seed(seed)
    return join(loader)


@forks
def test_a_pass_depends_on_the_generator_alone(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config())
    first = seeded_pass(splits, 1)
    torch.manual_seed(123)
    for images, labels in (seeded_pass(splits, 1), seeded_pass(splits, 1, workers=2)):
        assert torch.equal(images, first[0]) and torch.equal(labels, first[1])
    assert not torch.equal(seeded_pass(splits, 2)[1], first[1])
    loader = splits.train_loader(8)
    assert not torch.equal(join(loader)[0], join(loader)[0])  # two passes without a new seed


def test_two_passes_at_once_do_not_mix(cifar10: np.ndarray) -> None:
    loader = load_splits(cifar_config()).train_loader(8)
    assert loader.generator is not None
    loader.generator.manual_seed(1)
    alone = join(loader)[0]
    loader.generator.manual_seed(1)
    iterator = iter(loader)
    images = [next(iterator)[0]]
    iter(loader)
    images += [batch for batch, _ in iterator]
    assert torch.equal(torch.cat(images), alone)


@pytest.mark.parametrize(("batch_size", "batches"), [(37, 2), (25, 3), (74, 1), (1, 75), (100, 1)])
def test_no_training_batch_has_one_image_unless_asked_for(cifar10: np.ndarray, batch_size: int, batches: int) -> None:
    assert len(load_splits(cifar_config()).train_loader(batch_size)) == batches  # 75 images, 75 = 2 · 37 + 1 = 74 + 1


def test_training_depends_on_the_recipes_seed_alone(cifar10: np.ndarray) -> None:
    splits = load_splits(cifar_config())

    def train(seed: int, state: int) -> list[Tensor]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        torch.manual_seed(state)
        train_classifier(model, splits.train_loader(32), Recipe(epochs=2, lr=0.01, seed=seed), device="cpu")
        return [parameter.detach() for parameter in model.parameters()]

    first = train(3, state=0)
    assert all(torch.equal(one, two) for one, two in zip(first, train(3, state=1), strict=True))
    assert not torch.equal(first[0], train(4, state=0)[0])


# ------------------------------------------------------------------------------------------------------------ ImageNet

TENCH, TABBY, TISSUE = "n01440764", "n02123045", "n15075141"


def write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        size = (int(rng.integers(40, 60)), int(rng.integers(40, 60)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number:02}.JPEG", quality=95)


def write_imagenet(place: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        write_images(place / "train" / name, 12, seed=number)
        write_images(place / "val" / name, 4, seed=100 + number)


def imagenet_config(**settings: Any) -> ExperimentConfig:
    return ExperimentConfig(data="imagenet", model="resnet50").replace(
        **{"validation_images": 5, "calibration_batches": 1, "calibration_batch_size": 2, **settings}
    )


def test_the_table_of_classes_is_torchvisions() -> None:
    wnids, categories = imagenet_wnids(), ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(set(wnids)) == len(categories) == 1000 and list(wnids) == sorted(wnids)
    known = {TENCH: "tench", TABBY: "tabby", TISSUE: "toilet tissue", "n02504458": "African elephant"}
    known |= {"n07749582": "lemon", "n04552348": "warplane", "n02085620": "Chihuahua"}
    assert {wnid: categories[wnids.index(wnid)] for wnid in known} == known


@pytest.mark.parametrize("place", [".", "imagenet", "ILSVRC2012", "imagenet/ILSVRC/Data/CLS-LOC"])
def test_folders_named_by_wordnet_keep_their_labels(root: Path, place: str) -> None:
    write_imagenet(root / place, [TISSUE, TENCH, TABBY])
    splits = load_splits(imagenet_config())
    assert splits.title == "ImageNet" and splits.classes == 1000
    assert [len(splits.part(part)) for part in PARTS] == [28, 2, 5, 12]  # a tenth of 36 was the pool for calibration
    assert splits.part("test").labels.tolist() == [0] * 4 + [281] * 4 + [999] * 4
    labels = torch.cat([splits.part(part).labels for part in ("train", "validation")])
    assert set(labels.tolist()) == {0, 281, 999}
    assert splits.notes == (FEW_CLASSES.format(count=3),) and "3 tanesi" in term("tr", splits.notes[0])


def test_imagenet_parts_share_no_file(root: Path) -> None:
    write_imagenet(root, [TENCH, TABBY, TISSUE])
    splits = load_splits(imagenet_config())
    parts: dict[str, Any] = {part: splits.part(part) for part in PARTS}
    files = [file for images in parts.values() for file in images.files]
    assert len(set(files)) == len(files) == 47
    for part, images in parts.items():
        for file, label in zip(images.files, images.labels.tolist(), strict=True):
            assert Path(file).parent.parent.name == ("val" if part == "test" else "train")
            assert imagenet_wnids()[label] == Path(file).parent.name


def test_other_folders_count_by_name(root: Path) -> None:
    write_imagenet(root, ["walrus", "ant", "cat"])
    (root / "train" / ".cache").mkdir()
    splits = load_splits(imagenet_config())
    assert splits.classes == 3 and splits.part("test").labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.notes == (OTHER_CLASSES,) and term("tr", OTHER_CLASSES) != OTHER_CLASSES


def test_imagenet_is_measured_as_torchvision_does_and_trained_on_random_crops(root: Path) -> None:
    write_imagenet(root, [TENCH, TABBY, TISSUE])
    splits = load_splits(imagenet_config())
    with Image.open(root / "val" / TENCH / "00.JPEG") as file:
        photo = file.convert("RGB")
    width, height = photo.size
    scale = 256 / min(width, height)
    resized = photo.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    pixels = torch.from_numpy(np.array(resized)[top : top + 224, left : left + 224]).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    torch.testing.assert_close(splits.example[0], expected)
    before = torch.get_rng_state()
    images, labels = seeded_pass(splits, 1)
    assert images.shape == (28, 3, 224, 224) and images.dtype == torch.float32
    assert type(images) is Tensor and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(seeded_pass(splits, 1)[0], images)
    plain, order = read(splits.part("train"))
    assert sorted(labels.tolist()) == sorted(order.tolist())
    kept = {image.numpy().tobytes() for image in plain}
    assert not any(image.numpy().tobytes() in kept for image in images)


@forks
def test_crops_are_the_same_in_workers(root: Path) -> None:
    write_imagenet(root, [TENCH, TABBY])
    splits = load_splits(imagenet_config(validation_images=12))
    alone, helped = seeded_pass(splits, 1), seeded_pass(splits, 1, workers=2)
    assert torch.equal(alone[0], helped[0]) and torch.equal(alone[1], helped[1])


def test_sizes_follow_the_models_weights(root: Path) -> None:
    write_imagenet(root, [TENCH, TABBY])
    splits = load_splits(imagenet_config(model="efficientnet_b1", validation_images=12))
    assert splits.example.shape == (1, 3, 240, 240)
    assert splits.part("train").augmented(torch.tensor([0]), torch.tensor([5])).shape == (1, 3, 240, 240)


def test_validation_images_without_class_folders_are_explained(root: Path) -> None:
    write_images(root / "train" / TENCH, 2, seed=0)
    write_images(root / "val", 2, seed=1)
    with pytest.raises(InputError, match=r"(?s)val holds no class folders.*parse_val_archive"):
        load_splits(imagenet_config())
    write_images(root / "val" / "images", 2, seed=1)  # as Tiny ImageNet has it
    with pytest.raises(InputError, match=r"(?s)1 class folders that .*train lacks \(images\).*parse_val_archive"):
        load_splits(imagenet_config())


def test_empty_folders_and_damaged_files_are_named(root: Path) -> None:
    write_imagenet(root, [TENCH])
    (root / "train" / TABBY).mkdir()
    with pytest.raises(InputError, match=rf"{TABBY} holds no images \(\.jpg"):
        load_splits(imagenet_config())
    write_images(root / "train" / TABBY / "deeper", 3, seed=0)
    (root / "val" / TENCH / "00.JPEG").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"00\.JPEG cannot be read as an image"):
        load_splits(imagenet_config())


def test_a_missing_imagenet_is_explained_with_its_places(root: Path) -> None:
    (root / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(DataMissingError, match=r"(?s)ImageNet \(train/ and val/.*image-net\.org") as caught:
        load_splits(imagenet_config())
    assert str(root / "imagenet" / "ILSVRC2012") in caught.value.describe("tr")
    with pytest.raises(DataMissingError):
        find_data(imagenet_config())


# ------------------------------------------------------------------------------------------------------------- photos


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["file,class_index"]
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{10 * number}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def photos_config(**settings: Any) -> ExperimentConfig:
    return ExperimentConfig(data="photos", model="mobilenet_v2").replace(
        **{"calibration_batches": 2, "calibration_batch_size": 2, **settings}
    )


def test_photos_are_calibrated_on_even_and_tested_on_odd_rows(root: Path) -> None:
    write_photos(root / "nips17-1000", 11)
    splits = load_splits(photos_config())
    assert splits.train is None and splits.validation is None
    assert (splits.title, splits.classes, splits.notes) == ("NIPS2017", 1000, (PHOTOS,))
    assert splits.calibration.labels.tolist() == [0, 20, 40, 60]  # no more than needed
    assert splits.test.labels.tolist() == [10, 30, 50, 70, 90]
    assert torch.equal(join(splits.loader("test", 2))[0], load_nips_photos("odd").tensors[0])
    assert torch.equal(join(splits.calibration_loader(2, 2))[0], load_nips_photos("even", limit=4).tensors[0])
    with pytest.raises(InputError, match="NIPS2017 has no train images, only calibration, test"):
        splits.train_loader(4)
    assert term("tr", PHOTOS).startswith("NIPS-2017 fotoğrafları")


# ------------------------------------------------------------------------------------------------------- missing files


def test_all_that_is_missing_is_one_error(root: Path) -> None:
    with pytest.raises(DataMissingError) as caught:
        find_all([find_cifar10, lambda: root, lambda: trained_weights_path("resnet20")])
    message, turkish = str(caught.value), caught.value.describe("tr")
    assert "CIFAR-10" in message and "resnet20.safetensors" in message
    assert "CIFAR-10" in turkish and "resnet20.safetensors: bulunamadı" in turkish
    with pytest.raises(DataMissingError, match=r"(?s)CIFAR-10.*bulunamadı.*resnet20\.safetensors: bulunamadı"):
        find_all([find_cifar10, lambda: trained_weights_path("resnet20")], "tr")
    find_all([lambda: root])
    find_data(digits_config())


# ---------------------------------------------------------------------------------------------------------- real data


def test_the_real_cifar10_is_shared_out() -> None:
    try:
        splits = load_splits(ExperimentConfig(data="cifar10"))
    except DataMissingError:
        pytest.skip("needs CIFAR-10 under the data root (CLEANAI_DATA, see data/README.md)")
    assert [len(splits.part(part)) for part in PARTS] == [40_000, 3_200, 5_000, 10_000]
    rows: list[Tensor] = []
    for part in ("train", "calibration", "validation"):
        images = splits.part(part)
        assert isinstance(images, PixelImages) and images.pixels.dtype == np.uint8  # 154 MB, not 614
        rows.append(images.rows)
    assert len(torch.cat(rows).unique()) == 48_200
    expected, labels = load_cifar10("test", limit=300).tensors
    first = next(iter(splits.loader("test", 300)))
    assert torch.equal(first[0], expected) and torch.equal(first[1], labels)


def test_the_real_photos_are_shared_out() -> None:
    try:
        splits = load_splits(photos_config(test_images=20))
    except DataMissingError:
        pytest.skip("needs the NIPS-2017 photos under the data root (CLEANAI_DATA, see data/README.md)")
    assert (len(splits.calibration), len(splits.test)) == (4, 20)
    assert torch.equal(join(splits.calibration_loader(2, 2))[0], load_nips_photos("even", limit=4).tensors[0])
