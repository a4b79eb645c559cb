"""The data of an experiment in parts that share no image: training, calibration, validation, test.

The training images are the same whatever is asked for calibration, so that models prepared once can be pruned in many
ways: calibration images come from a pool of their own, taken out of the training images beforehand.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from cleanai.data import (
    CIFAR10_CLASSES,
    DataMissingError,
    draw_shifts,
    find_all,
    find_cifar10,
    find_imagenet,
    find_photos,
    list_nips_photos,
    load_digits_data,
    normalise_cifar10,
    normalise_photo,
    open_image,
    read_cifar10,
    shift_and_mirror,
)
from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig

if TYPE_CHECKING:
    from PIL import Image

Part = Literal["train", "calibration", "validation", "test"]

TITLES = {"digits": "Digits", "cifar10": "CIFAR10", "imagenet": "ImageNet", "photos": "NIPS2017"}
IMAGENET_CLASSES = 1000
POOL_SHARE, POOL_SIZE = 10, 10_000  # a tenth of the training images is kept for calibration, at most so many
TEST_SEED = 0  # of a limited test set: the same images whatever the experiment's own seed

CALIBRATED_ON_TEST = "the calibration images are test images, so the scores have seen what they are judged on"
FEW_CALIBRATION_IMAGES = "there are {count} calibration images, {asked} were asked for"
PHOTOS = "the NIPS-2017 photos are not ImageNet's images, and easier than its validation images"
FEW_CLASSES = "{count} of ImageNet's 1000 classes occur, and the model chooses among all"
OTHER_CLASSES = "the class folders are not named by the WordNet ids of ImageNet's 1000 classes: classes count by name"


# ------------------------------------------------------------------------------------------------------------- images


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images, ready for a model: item i is ``(image, label)``, float32 (C, H, W) and int64 ().

    Subclasses say how a batch is read, and how it is read in training. What training changes at random is drawn once
    per pass, one row per image, so that it depends neither on the order nor on who reads the image.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = self.labels[index]  # raises IndexError behind the last one, which ends a plain loop
        return self.batch(torch.tensor([index]))[0], label

    def select(self, rows: Tensor) -> Images:
        """The images of these rows (N,), int64, in this order."""
        raise NotImplementedError

    def batch(self, rows: Tensor) -> Tensor:
        """The images (N, C, H, W) of these rows as they are measured."""
        raise NotImplementedError

    def draw(self, generator: torch.Generator) -> Tensor:
        """One row of random numbers per image, for one pass of `augmented`."""
        return torch.empty(len(self), 0)

    def augmented(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """The images of these rows as they are trained on; ``drawn`` holds their rows of `draw`."""
        return self.batch(rows)


class TensorImages(Images):
    """Images in memory as they go into the model; nothing is changed in training."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def select(self, rows: Tensor) -> TensorImages:
        """The images of these rows (N,), int64, in this order."""
        return TensorImages(self.images[rows], self.labels[rows])

    def batch(self, rows: Tensor) -> Tensor:
        """The images (N, C, H, W) of these rows as they are measured."""
        return self.images[rows]


class PixelImages(Images):
    """CIFAR-10 in memory as bytes, normalised batch by batch; shifted and mirrored in training.

    Args:
        pixels: (N, 32, 32, 3) of 0..255; shared by all selections.
        labels: (N,), int64.
        rows: those of the pixels that belong here, in their order; None means all.
    """

    def __init__(self, pixels: NDArray[np.uint8], labels: Tensor, rows: Tensor | None = None) -> None:
        self.pixels = pixels
        self.rows = torch.arange(len(pixels)) if rows is None else rows
        self._all_labels = labels
        self.labels = labels[self.rows]

    def select(self, rows: Tensor) -> PixelImages:
        """The images of these rows (N,), int64, in this order."""
        return PixelImages(self.pixels, self._all_labels, self.rows[rows])

    def batch(self, rows: Tensor) -> Tensor:
        """The images (N, C, H, W) of these rows as they are measured."""
        return normalise_cifar10(self.pixels[self.rows[rows].numpy()])

    def draw(self, generator: torch.Generator) -> Tensor:
        """How each image is shifted and mirrored: int64 (images, 3), see `cleanai.data.draw_shifts`."""
        return draw_shifts(len(self), generator)

    def augmented(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """The images (N, 3, 32, 32) of these rows, shifted and mirrored as their rows of ``drawn`` say."""
        return shift_and_mirror(self.batch(rows), drawn)


class FileImages(Images):
    """Images in files, read when they are asked for.

    Args:
        files: one per image.
        labels: (N,), int64.
        view: an image of a file as it is measured.
        crop: the same as it is trained on, drawing from torch's random state; None means ``view``.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Tensor,
        view: Callable[[Image.Image], Tensor],
        crop: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self.files, self.labels, self.view, self.crop = files, labels, view, crop or view

    def select(self, rows: Tensor) -> FileImages:
        """The images of these rows (N,), int64, in this order."""
        return FileImages([self.files[row] for row in rows.tolist()], self.labels[rows], self.view, self.crop)

    def batch(self, rows: Tensor) -> Tensor:
        """The images (N, C, H, W) of these rows as they are measured."""
        return torch.stack([self.view(open_image(self.files[row])) for row in rows.tolist()])

    def draw(self, generator: torch.Generator) -> Tensor:
        """A seed for each image: int64 (images,)."""
        return torch.randint(2**62, (len(self),), generator=generator)

    def augmented(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """The images (N, C, H, W) of these rows as ``crop`` makes them with their seeds in ``drawn``."""
        images = []
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from torch's own state
            for row, seed in zip(rows.tolist(), drawn.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                images.append(self.crop(open_image(self.files[row])))
        return torch.stack(images)


# ------------------------------------------------------------------------------------------------------------ loaders


class _Rows(Dataset[int]):
    """The numbers of the rows: batches are read whole, by `_Collate`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class _Collate:
    """Reads a batch; with ``drawn``, as it is trained on in one pass."""

    images: Images
    drawn: Tensor | None = None

    def __call__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        labels = self.images.labels[chosen]
        if self.drawn is None:
            return self.images.batch(chosen), labels
        return self.images.augmented(chosen, self.drawn[chosen]), labels


class TrainLoader(DataLoader[int]):
    """A loader whose passes depend on its ``generator`` alone: its order, and what is changed in each image.

    How an image is changed is drawn for all images when a pass begins. So it is the same in the main process and in
    workers, on one machine and on several, and in a pass of which the first batches are skipped.
    """

    def __iter__(self) -> Any:
        collate: Any = self.collate_fn
        self.collate_fn = dataclasses.replace(collate, drawn=collate.images.draw(self.generator))
        return super().__iter__()


@dataclass(frozen=True, eq=False)
class Splits:
    """An experiment's data in four parts that share no image, unless `notes` say otherwise.

    Attributes:
        name: "digits", "cifar10", "imagenet" or "photos".
        title: the same as it stands in file names.
        classes: how many outputs a classifier needs.
        train, calibration, validation, test: the parts; the photos have None to train on and to validate with.
        example: one test image, (1, C, H, W), float32.
        notes: what a reader of the results must know; `cleanai.texts.term` has them in Turkish.
    """

    name: str
    title: str
    classes: int
    train: Images | None
    calibration: Images
    validation: Images | None
    test: Images
    example: Tensor
    notes: tuple[str, ...] = ()

    def part(self, name: Part) -> Images:
        """The images of a part; raises `InputError` where there are none or no such part."""
        parts = {part: getattr(self, part) for part in ("train", "calibration", "validation", "test")}
        if name not in parts:
            raise InputError(f"There is no part {name!r} of the data; there are {', '.join(parts)}.")
        if parts[name] is None:
            found = ", ".join(part for part, images in parts.items() if images is not None)
            raise InputError(f"{self.title} has no {name} images, only {found}.")
        return parts[name]

    def loader(self, part: Part, batch_size: int, *, workers: int = 0) -> DataLoader:
        """Batches ``(images, labels)`` of a part, in order and unchanged; ``workers`` processes read them."""
        return _make_loader(self.part(part), batch_size, workers)

    def train_loader(self, batch_size: int, *, workers: int = 0) -> TrainLoader:
        """Batches of the training images, shuffled and augmented.

        Seed its ``generator`` before a pass: order and augmentation depend on nothing else, neither on ``workers`` nor
        on torch's random state, which is left alone.
        """
        images = self.part("train")
        return TrainLoader(
            _Rows(len(images)),
            batch_size=_check_batch_size(batch_size),
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
            collate_fn=_Collate(images),
            num_workers=workers,
            # BatchNorm cannot be trained on one image; another one is left out in every pass.
            drop_last=len(images) > batch_size > 1 and len(images) % batch_size == 1,
        )

    def calibration_loader(self, batch_size: int, batches: int, *, workers: int = 0) -> DataLoader:
        """At most so many batches of the calibration images, in order and unchanged."""
        return _make_loader(self.part("calibration"), batch_size, workers, limit=batch_size * batches)


def _make_loader(images: Images, batch_size: int, workers: int, limit: int | None = None) -> DataLoader:
    count = len(images) if limit is None else min(limit, len(images))
    # Its own generator, since a pass would draw from torch's random state otherwise.
    return DataLoader(
        _Rows(count),
        batch_size=_check_batch_size(batch_size),
        collate_fn=_Collate(images),
        num_workers=workers,
        generator=torch.Generator(),
    )


def _check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    return batch_size


# ------------------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class _Source:
    """A data set before it is shared out: images to train and validate on, a pool to calibrate on, test images."""

    classes: int
    training: Images | None
    pool: Images
    test: Images
    notes: tuple[str, ...] = ()


def load_splits(config: ExperimentConfig) -> Splits:
    """The data of an experiment, shared out by its seed.

    Validation images are drawn from the training images, a pool for calibration was taken out of them before: a tenth
    of them, at most 10,000 (of the digits, 297). With ``calibration_source="test"`` the calibration images are drawn
    from the test images, and `Splits.notes` warns. A limited number of test images is the same for every seed.
    torch's random state is left alone.

    Raises:
        DataMissingError: the data are not there; the message says how to get them.
        InputError: more images are asked for than there are, or the folders are not as they must be.

    Example:
        >>> splits = load_splits(ExperimentConfig(data="digits", validation_images=100, calibration_batches=4))
        >>> [len(splits.part(part)) for part in ("train", "calibration", "validation", "test")]
        [950, 256, 100, 450]
    """
    source = _SOURCES[config.data](config)
    title = TITLES[config.data]
    test = _limit_test(source.test, config.test_images, title)
    train, validation = (None, None)
    if source.training is not None:
        train, validation = _split_training(source.training, config, title)
    calibration, notes = _choose_calibration(source.pool, test, config)
    return Splits(
        name=config.data,
        title=title,
        classes=source.classes,
        train=train,
        calibration=calibration,
        validation=validation,
        test=test,
        example=test[0][0][None].clone(),
        notes=(*source.notes, *notes),
    )


def settle_data(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with ``data="auto"`` replaced by what there is: an ImageNet folder, else the photos.

    Raises:
        DataMissingError: there is neither.
    """
    if config.data != "auto":
        return config
    for name in ("imagenet", "photos"):
        with contextlib.suppress(DataMissingError):
            _FINDERS[name]()
            return config.replace(data=name)
    find_all([_FINDERS["imagenet"], _FINDERS["photos"]], config.language)  # says how to get either
    return config


def find_data(config: ExperimentConfig) -> None:
    """Looks for the data of an experiment; raises `DataMissingError` where they are not."""
    _FINDERS[config.data]()


def _limit_test(test: Images, asked: int | None, title: str) -> Images:
    if asked is None:
        return test
    if asked > len(test):
        raise InputError(f"test_images is {asked}, but {title} has {len(test)} test images.")
    return test.select(_draw(len(test), TEST_SEED)[:asked].sort().values)


def _split_training(training: Images, config: ExperimentConfig, title: str) -> tuple[Images, Images]:
    count, kept = len(training), config.validation_images
    if kept >= count:
        raise InputError(
            f"validation_images is {kept}, but {title} has {count} images for training and validation together "
            "(those for calibration and test are kept apart). Use a smaller number, such as "
            f"validation_images={max(count // POOL_SHARE, 1)}."
        )
    left = count - kept
    if config.train_images is not None and config.train_images > left:
        raise InputError(
            f"train_images is {config.train_images}, but {left} of {title}'s {count} images for training and "
            f"validation are left beside the {kept} for validation. Use train_images={left} or fewer, or none for all."
        )
    order = _draw(count, config.seed)
    return training.select(order[kept:][: config.train_images]), training.select(order[:kept])


def _choose_calibration(pool: Images, test: Images, config: ExperimentConfig) -> tuple[Images, list[str]]:
    asked = config.calibration_batches * config.calibration_batch_size
    notes = []
    if config.calibration_source == "test":
        pool = test.select(_draw(len(test), config.seed))
        notes.append(CALIBRATED_ON_TEST)
    if asked > len(pool):
        notes.append(FEW_CALIBRATION_IMAGES.format(count=len(pool), asked=asked))
    return pool.select(torch.arange(min(asked, len(pool)))), notes


def _draw(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _take_pool(images: Images, seed: int) -> tuple[Images, Images]:
    """(training images, pool for calibration), drawn with the seed."""
    size = min(max(len(images) // POOL_SHARE, 1), POOL_SIZE)
    order = _draw(len(images), seed)
    return images.select(order[size:]), images.select(order[:size])


def _load_digits(config: ExperimentConfig) -> _Source:
    data = load_digits_data(config.seed)
    train, calibration, test = (TensorImages(*part.tensors) for part in (data.train, data.calibration, data.test))
    return _Source(10, train, calibration, test)


def _load_cifar10(config: ExperimentConfig) -> _Source:
    training, pool = _take_pool(PixelImages(*read_cifar10("train")), config.seed)
    return _Source(len(CIFAR10_CLASSES), training, pool, PixelImages(*read_cifar10("test")))


def _load_photos(config: ExperimentConfig) -> _Source:
    pool, test = (
        FileImages([str(file) for file in files], labels, normalise_photo)
        for files, labels in (list_nips_photos("even"), list_nips_photos("odd"))
    )
    return _Source(IMAGENET_CLASSES, None, pool, test, (PHOTOS,))


def _load_imagenet(config: ExperimentConfig) -> _Source:
    folder = find_imagenet()
    classes, labels, notes = _label_classes(folder)
    view, crop = _make_views(config.model)
    train, test = (FileImages(*_list_images(folder / part, labels), view, crop) for part in ("train", "val"))
    return _Source(classes, *_take_pool(train, config.seed), test, notes)


_FINDERS: dict[str, Callable[[], object]] = {
    "digits": lambda: None,  # they come with scikit-learn
    "cifar10": find_cifar10,
    "imagenet": find_imagenet,
    "photos": find_photos,
}
_SOURCES: dict[str, Callable[[ExperimentConfig], _Source]] = {
    "digits": _load_digits,
    "cifar10": _load_cifar10,
    "imagenet": _load_imagenet,
    "photos": _load_photos,
}


# ----------------------------------------------------------------------------------------------------------- ImageNet


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes in torchvision's order, which is that of the alphabet."""
    text = resources.files("cleanai.experiments").joinpath("imagenet_wnids.txt").read_text(encoding="ascii")
    return tuple(text.split())


def _label_classes(folder: Path) -> tuple[int, dict[str, int], tuple[str, ...]]:
    """(number of classes, label of each class folder, notes) of a folder with ``train`` and ``val``."""
    names, tested = (_list_classes(folder / part) for part in ("train", "val"))
    if unknown := sorted(set(tested) - set(names)):
        raise InputError(
            f"{folder / 'val'} has {len(unknown)} class folders that {folder / 'train'} lacks "
            f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}). {_HOW_TO_SORT.format(folder=folder)}"
        )
    wnids = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    if set(names) <= set(wnids):
        notes = () if len(names) == len(wnids) else (FEW_CLASSES.format(count=len(names)),)
        return IMAGENET_CLASSES, {name: wnids[name] for name in names}, notes
    return len(names), {name: label for label, name in enumerate(names)}, (OTHER_CLASSES,)


_HOW_TO_SORT = (
    "Both need one folder per class, of the same names. The challenge's own archive of validation images has no "
    "folders; sort them with its devkit, both .tar files in {folder}:\n"
    '    python -c "from torchvision.datasets.imagenet import parse_devkit_archive, parse_val_archive; '
    "parse_devkit_archive(r'{folder}'); parse_val_archive(r'{folder}')\""
)


def _list_classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds no class folders. {_HOW_TO_SORT.format(folder=folder.parent)}")
    return names


def _list_images(folder: Path, labels: dict[str, int]) -> tuple[list[str], Tensor]:
    """The image files below each class folder, and their labels (N,), int64."""
    names = _show_progress(_list_classes(folder), folder)
    found = [(file, labels[name]) for name in names for file in _walk(folder, name)]
    return [file for file, _ in found], torch.tensor([label for _, label in found], dtype=torch.int64)


def _walk(folder: Path, name: str) -> list[str]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    try:
        return [file for file, _ in make_dataset(str(folder), {name: 0}, extensions=IMG_EXTENSIONS)]
    except FileNotFoundError as error:
        raise InputError(f"{folder / name} holds no images ({', '.join(IMG_EXTENSIONS)}).") from error


def _show_progress(names: list[str], folder: Path) -> Iterator[str]:
    with tqdm(names, desc=f"listing {folder.name}", unit="class", leave=False, disable=None) as bar:
        yield from bar


def _make_views(model: str) -> tuple[Callable[[Image.Image], Tensor], Callable[[Image.Image], Tensor]]:
    """(as measured, as trained on): sizes and scaling are those of the model's ImageNet weights, or ResNet-50's.

    Measured: the shorter side resized to 256, the square of 224 in the middle. Trained on: a random crop of random
    shape, resized to 224, mirrored half of the time (Szegedy et al., "Going deeper with convolutions", 2015).
    """
    from torchvision.models import get_model_weights
    from torchvision.transforms import v2

    weights = get_model_weights(model).__members__ if model in _classifiers() else {}
    known = weights.get("IMAGENET1K_V1") or get_model_weights("resnet50")["IMAGENET1K_V1"]
    view: Any = known.transforms()
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(view.crop_size[0], interpolation=view.interpolation),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(view.mean, view.std),
            v2.ToPureTensor(),
        ]
    )
    return view, crop


def _classifiers() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)
