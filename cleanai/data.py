"""Data for the pipeline: scikit-learn's digits, which need no download; CIFAR-10, ImageNet and photos from a folder.

Nothing is ever downloaded. Files are looked for under the data root: the folder named by the environment variable
``CLEANAI_DATA``, or ``data/`` in the working directory. What is missing is named, with where it was looked for and how
to get it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate
from tqdm.auto import tqdm

from cleanai.checks import check_count
from cleanai.errors import InputError
from cleanai.texts import term

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DataMissingError",
    "DigitsData",
    "augment_cifar10",
    "cache_root",
    "data_root",
    "find_cifar10",
    "find_imagenet",
    "load_cifar10",
    "load_digits_data",
    "load_nips_photos",
    "make_loader",
    "normalise_cifar10",
    "normalise_photo",
    "torchvision_weights_path",
    "trained_weights_path",
]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-python.tar.xz")

# The trained CIFAR ResNets were trained with the ImageNet numbers, not with CIFAR-10's own.
CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.229, 0.224, 0.225)

IMAGENET_MEAN, IMAGENET_STD = CIFAR10_MEAN, CIFAR10_STD
PHOTOS_FOLDER = "nips17-1000"
PHOTOS_SIZE = 224  # of the square in the middle of each photo

DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3760  # of the 1,797 images, scaled to 0..1
DIGITS_CALIBRATION_SIZE = 297
DIGITS_TEST_SIZE = 450


class DataMissingError(InputError):
    """Data or weights that are not under the data root; the message says how to get them.

    A `cleanai.InputError`, so ``except InputError`` catches it too.

    Attributes:
        missing: what was looked for.
        looked_in: the folders where it was looked for.
        source: a command or place to get it from.
        otherwise: how to do without it, an English sentence that `cleanai.texts` can translate; empty for no way.
        others: errors about what else is missing; the message tells of them too.

    Example:
        >>> error = DataMissingError("resnet20.safetensors", [Path("/data/models")], "the address of the file")
        >>> error.missing, error.looked_in
        ('resnet20.safetensors', ['/data/models'])
        >>> isinstance(error, InputError)
        True
    """

    def __init__(
        self,
        missing: str,
        looked_in: Sequence[Path],
        source: str,
        *,
        otherwise: str = "",
        others: Sequence[DataMissingError] = (),
    ) -> None:
        self.missing = missing
        self.looked_in = [str(Path(place).absolute()) for place in looked_in]
        self.source = source
        self.otherwise = otherwise
        self.others = tuple(others)
        super().__init__(self.describe())

    def describe(self, language: str = "en") -> str:
        """The message in English or, for "tr", in Turkish.

        Example:
            >>> error = DataMissingError("resnet20.safetensors", [Path("/data/models")], "the address of the file")
            >>> print(error.describe())
            resnet20.safetensors: not found. Looked in /data/models. To get it:
                the address of the file
            or set CLEANAI_DATA to the folder that has it (details: data/README.md).
        """
        if language == "tr":
            text = (
                f"{self.missing}: bulunamadı. Bakılan yerler: {', '.join(self.looked_in)}. Edinmek için:\n"
                f"    {self.source}\n"
                "ya da dosyaların bulunduğu klasörü CLEANAI_DATA değişkenine yazın (ayrıntılar: data/README.md)."
            )
        else:
            text = (
                f"{self.missing}: not found. Looked in {' and '.join(self.looked_in)}. To get it:\n"
                f"    {self.source}\n"
                "or set CLEANAI_DATA to the folder that has it (details: data/README.md)."
            )
        if self.otherwise:
            text += f"\n{term(language, self.otherwise)}"
        return "\n".join([text, *(other.describe(language) for other in self.others)])


def find_all(lookups: Iterable[Callable[[], object]], language: str = "en") -> None:
    """Calls every look-up, then raises one error about all that is missing: nobody comes back for the second file.

    Raises:
        DataMissingError: if at least one of them raised it; its message is in the language asked for.

    Example:
        >>> find_all([find_cifar10, lambda: trained_weights_path("resnet20")])  # doctest: +SKIP
    """
    missing: list[DataMissingError] = []
    for look in lookups:
        try:
            look()
        except DataMissingError as error:
            missing.append(error)
    if missing:
        first, *others = missing
        error = DataMissingError(
            first.missing,
            [Path(place) for place in first.looked_in],
            first.source,
            otherwise=first.otherwise,
            others=(*first.others, *others),
        )
        error.args = (error.describe(language),)
        raise error


@dataclasses.dataclass(frozen=True)
class DigitsData:
    """The digits in three disjoint parts: pruning looks at `calibration` only, accuracy is measured on `test`.

    Each part is a `torch.utils.data.TensorDataset` of images, float32 (N, 1, 8, 8), and labels, int64 (N,) from 0 to 9.

    Attributes:
        train: 1,050 images to train on.
        calibration: 297 images for scores and repairs.
        test: 450 images for measuring.

    Example:
        >>> images, labels = load_digits_data().calibration.tensors
        >>> images.shape, labels.shape, labels.dtype
        (torch.Size([297, 1, 8, 8]), torch.Size([297]), torch.int64)
    """

    train: TensorDataset
    calibration: TensorDataset
    test: TensorDataset


def data_root() -> Path:
    """The folder where data lie: the environment variable ``CLEANAI_DATA``, or ``data`` in the working directory.

    It need not exist: what looks for something in it says what is missing.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, CLEANAI_DATA="/data/vision"):
        ...     data_root().as_posix()
        '/data/vision'
    """
    return Path(os.environ.get("CLEANAI_DATA") or "data").expanduser()


def cache_root() -> Path:
    """The folder for unpacked archives: the environment variable ``CLEANAI_CACHE``, or ``~/.cache/cleanai``.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, CLEANAI_CACHE="/tmp/unpacked"):
        ...     cache_root().as_posix()
        '/tmp/unpacked'
    """
    return Path(os.environ.get("CLEANAI_CACHE") or "~/.cache/cleanai").expanduser()


def load_digits_data(seed: int = 0) -> DigitsData:
    """scikit-learn's 1,797 handwritten digits: 1,050 for training, 297 for calibration, 450 for testing.

    They come with scikit-learn, so nothing is downloaded. Images are float32 of shape (1, 8, 8) with mean 0 and
    standard deviation 1, labels int64 from 0 to 9. The parts are disjoint and depend on the seed alone; torch's and
    NumPy's global random states are not used.

    Args:
        seed: which images go into which part, a whole number.

    Raises:
        InputError: the seed is no whole number.

    Example:
        >>> data = load_digits_data()
        >>> len(data.train), len(data.calibration), len(data.test)
        (1050, 297, 450)
    """
    check_count(seed, "seed", least=None)
    from sklearn.datasets import load_digits  # takes a second, which only those who need the digits should wait

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.float32).reshape(-1, 1, 8, 8) / 16.0
    images = (images - DIGITS_MEAN) / DIGITS_STD
    targets = torch.from_numpy(labels).to(torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, calibration, train = order.split(
        [DIGITS_TEST_SIZE, DIGITS_CALIBRATION_SIZE, len(order) - DIGITS_TEST_SIZE - DIGITS_CALIBRATION_SIZE]
    )
    parts = [TensorDataset(images[part], targets[part]) for part in (train, calibration, test)]
    return DigitsData(*parts)


def load_cifar10(split: str = "test", *, limit: int | None = None, seed: int | None = None) -> TensorDataset:
    """CIFAR-10 images, normalised for the trained ResNets, all in memory (Krizhevsky, 2009).

    Images are float32 of shape (3, 32, 32), labels int64 from 0 to 9. Looks for the folder ``cifar-10-batches-py`` in
    the data root and in its ``cifar10`` folder. Where only an archive lies there, it is unpacked once into the cache
    (see `cache_root`).

    Args:
        split: "train" (50,000 images) or "test" (10,000).
        limit: keep so many images only (the whole training split takes 614 MB); None keeps all.
        seed: draw them at random with this seed; None keeps the first ones.

    Raises:
        DataMissingError: if the data are in none of these places.
        InputError: if split or limit make no sense.

    Example:
        >>> images, labels = load_cifar10("test", limit=100).tensors  # doctest: +SKIP

        Without the data the error says what to do:

        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     try:
        ...         load_cifar10("test")
        ...     except DataMissingError as error:
        ...         print(error.missing)
        CIFAR-10 (cifar-10-batches-py, cifar-10-python.tar.gz, cifar-10-python.tar.xz)
    """
    if split not in ("train", "test"):
        raise InputError(f"load_cifar10: split must be 'train' or 'test', got {split!r}.")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"load_cifar10: limit must be at least 1 or None, got {limit!r}.")
    pixels, labels = read_cifar10(split)
    chosen = _choose_rows(len(pixels), limit, seed)
    return TensorDataset(normalise_cifar10(pixels[chosen.numpy()]), labels[chosen])


def read_cifar10(split: str) -> tuple[NDArray[np.uint8], Tensor]:
    """CIFAR-10 as it lies on the disk: pixels (N, 32, 32, 3) of 0..255, and labels (N,), int64.

    A quarter of the memory of `load_cifar10`: 154 MB for the 50,000 images of "train", 31 MB for "test".

    Raises:
        DataMissingError: as `find_cifar10`.
    """
    from torchvision.datasets import CIFAR10

    dataset = CIFAR10(str(find_cifar10()), train=split == "train", download=False)
    return dataset.data, torch.tensor(dataset.targets, dtype=torch.int64)


def normalise_cifar10(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (N, 32, 32, 3) of 0..255 as the float32 tensor (N, 3, 32, 32) that the trained ResNets expect.

    Each colour is scaled to 0..1, then its mean (0.485, 0.456, 0.406) is taken off and it is divided by its standard
    deviation (0.229, 0.224, 0.225): ImageNet's numbers, with which these networks were trained.

    Example:
        >>> normalise_cifar10(np.zeros((1, 32, 32, 3), dtype=np.uint8))[0, :, 0, 0]
        tensor([-2.1179, -2.0357, -1.8044])
    """
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255.0)
    mean = torch.tensor(CIFAR10_MEAN).reshape(3, 1, 1)
    std = torch.tensor(CIFAR10_STD).reshape(3, 1, 1)
    return images.sub_(mean).div_(std)


def augment_cifar10(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images (N, 3, 32, 32), each shifted by up to 4 pixels over a border of zeros and mirrored half of the time.

    This is how the CIFAR ResNets were trained (He et al., "Deep residual learning for image recognition", 2016,
    section 4.2). It fits the argument ``augment`` of `make_loader`.

    Args:
        images: any number of square images, of any size and channels; they are not changed.
        generator: where the shifts are drawn from; torch's own random state is not used.

    Example:
        >>> augment_cifar10(torch.ones(5, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 32, 32])
    """
    return shift_and_mirror(images, draw_shifts(len(images), generator))


def draw_shifts(count: int, generator: torch.Generator) -> Tensor:
    """How `augment_cifar10` changes so many images: int64 (count, 3), first row and column of 0..8, mirrored or not."""
    shifts = torch.randint(0, 9, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    return torch.cat([*shifts, mirrored.to(torch.int64)], dim=1)


def shift_and_mirror(images: Tensor, shifts: Tensor) -> Tensor:
    """The images (N, 3, 32, 32) over a border of 4 zeros, each cut out and mirrored as its row of `draw_shifts` says.

    Example:
        >>> images = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> shift_and_mirror(images, torch.tensor([[4, 5, 1]]))[0, 0]
        tensor([[0., 2., 1.],
                [0., 5., 4.],
                [0., 8., 7.]])
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4))
    rows, columns = shifts[:, :1] + torch.arange(height), shifts[:, 1:2] + torch.arange(width)
    columns = torch.where(shifts[:, 2:] > 0, columns.flip(1), columns)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def find_cifar10() -> Path:
    """The folder that holds ``cifar-10-batches-py``, from where torchvision's CIFAR10 reads.

    Unpacks an archive into the cache if that is all there is.

    Raises:
        DataMissingError: if there is neither the folder nor an archive.
        InputError: if an archive cannot be unpacked.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     (Path(folder) / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
        ...     find_cifar10().name
        'cifar10'
    """
    root = data_root()
    places = (root, root / "cifar10")
    for place in places:
        if (place / CIFAR10_FOLDER).is_dir():
            return place
    for place in places:
        for name in CIFAR10_ARCHIVES:
            if (place / name).is_file():
                return unpack_archive(place / name, CIFAR10_FOLDER)
    raise DataMissingError(
        f"CIFAR-10 ({', '.join((CIFAR10_FOLDER, *CIFAR10_ARCHIVES))})",
        places,
        f"python -c \"from torchvision.datasets import CIFAR10; CIFAR10(r'{root}', download=True)\"",
    )


def unpack_archive(archive: Path, folder: str) -> Path:
    """The cache folder that holds the content of a tar archive; unpacks it only if it is not there yet.

    Args:
        archive: a .tar.gz or .tar.xz file. Members that would land outside the cache are refused.
        folder: the folder the archive must contain.

    Raises:
        InputError: if the archive cannot be unpacked or does not contain the folder; the cache is unchanged.
    """
    target = cache_root() / f"{archive.name.split('.')[0]}-{_fingerprint(archive)}"
    if (target / folder).is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside the target and renamed at the end, so that an interrupted run leaves no half-filled cache.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _extract(archive, scratch)
        if not (scratch / folder).is_dir():
            raise InputError(f"{archive} holds no folder {folder}.")
        _rename(scratch, target, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def trained_weights_path(name: str) -> Path:
    """The path of a trained CIFAR network's safetensors file, for `cleanai.models.load_weights`.

    Args:
        name: the file's name without its ending, such as "resnet20".

    Raises:
        DataMissingError: if it is neither in ``cifar10/models`` nor in ``models`` under the data root, nor in the
            cache, where ``benchmarks.train_vit`` puts "cifar_vit".

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     (Path(folder) / "models").mkdir()
        ...     (Path(folder) / "models" / "resnet20.safetensors").touch()
        ...     trained_weights_path("resnet20").name
        'resnet20.safetensors'
    """
    root = data_root()
    places = (root / "cifar10" / "models", root / "models", cache_root())
    for place in places:
        if (path := place / f"{name}.safetensors").is_file():
            return path
    resnets = "github.com/akamaster/pytorch_resnet_cifar10 (pretrained_models/ → safetensors)"
    source = {"cifar_vit": "python -m benchmarks.train_vit"}.get(name, resnets)
    raise DataMissingError(f"{name}.safetensors", places, source)


def load_nips_photos(part: str = "all", *, limit: int | None = None) -> TensorDataset:
    """The 1,000 photos of the NIPS-2017 adversarial competition with their ImageNet labels, for torchvision's networks.

    Images are float32 of shape (3, 224, 224), the middle of each photo; labels int64 from 0 to 999, of which 430
    occur. These photos are easier than ImageNet's validation images: an accuracy on them is no ImageNet accuracy.
    Looks for the folder ``nips17-1000`` (``labels.csv`` with the columns file and class_index, and the files it names)
    in the data root and in its ``imagenet`` folder.

    Args:
        part: "all", "even" or "odd" rows of ``labels.csv``, counted from 0: two disjoint halves.
        limit: keep so many of them only, the first ones (a half takes 301 MB); None keeps all.

    Raises:
        DataMissingError: if the photos are in neither place.
        InputError: if part or limit make no sense, or a file is no image.

    Example:
        A folder with one grey photo, in place of the real ones:

        >>> import tempfile
        >>> from unittest.mock import patch
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     photos = Path(folder) / "nips17-1000"
        ...     photos.mkdir()
        ...     Image.new("RGB", (256, 256), "grey").save(photos / "a.png")
        ...     _ = (photos / "labels.csv").write_text("file,class_index" + os.linesep + "a.png,207")
        ...     images, labels = load_nips_photos().tensors
        >>> images.shape, labels
        (torch.Size([1, 3, 224, 224]), tensor([207]))
    """
    files, labels = list_nips_photos(part)
    if limit is not None and not 1 <= limit <= len(files):
        raise InputError(f"load_nips_photos: limit must be from 1 to {len(files)} or None, got {limit}.")
    files, labels = files[:limit], labels[:limit]
    images = torch.empty(len(files), 3, PHOTOS_SIZE, PHOTOS_SIZE)
    for place, file in enumerate(tqdm(files, desc="photos", unit="photo", leave=False, disable=None)):
        images[place] = normalise_photo(open_image(file))
    return TensorDataset(images, labels)


def list_nips_photos(part: str = "all") -> tuple[list[Path], Tensor]:
    """The files of the photos and their labels (N,), int64; for the parts and errors see `load_nips_photos`."""
    if part not in (choices := {"all": (0, 1), "even": (0, 2), "odd": (1, 2)}):
        raise InputError(f"load_nips_photos: part must be 'all', 'even' or 'odd', got {part!r}.")
    folder = find_photos()
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first, step = choices[part]
    rows = rows[first::step]
    labels = torch.tensor([int(row["class_index"]) for row in rows], dtype=torch.int64)
    return [folder / row["file"] for row in rows], labels


def find_photos() -> Path:
    """The folder of the NIPS-2017 photos; raises `DataMissingError` where there is none."""
    root = data_root()
    places = (root, root / "imagenet")
    for place in places:
        if (place / PHOTOS_FOLDER / "labels.csv").is_file():
            return place / PHOTOS_FOLDER
    source = "github.com/ZhengyuZhao/Targeted-Tansfer (dataset/: photos of 256×256, labels.csv with class_index from 0)"
    raise DataMissingError(f"NIPS-2017 photos ({PHOTOS_FOLDER}/labels.csv)", places, source)


def open_image(path: str | Path) -> Image.Image:
    """The image of a file in RGB; raises `InputError` for what is none."""
    from PIL import Image  # comes with torchvision

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def normalise_photo(photo: Image.Image) -> Tensor:
    """The middle of a photo, float32 (3, 224, 224), normalised as torchvision's networks expect.

    Args:
        photo: an RGB image of PIL; one of fewer than 224 pixels gets a black border.

    Example:
        >>> from PIL import Image
        >>> normalise_photo(Image.new("RGB", (256, 256)))[:, 0, 0]
        tensor([-2.1179, -2.0357, -1.8044])
    """
    from torchvision.transforms import functional as transforms  # takes a second, needed for photos only

    pixels = transforms.to_tensor(np.array(photo))
    image = transforms.center_crop(pixels, [PHOTOS_SIZE, PHOTOS_SIZE])
    return transforms.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))


def find_imagenet() -> Path:
    """The folder that holds ImageNet's ``train`` and ``val``, each with one folder of images per class.

    Looks for them in the data root and in its folders ``imagenet`` and ``ILSVRC2012``, also where the archives of the
    challenge put them (``imagenet/ILSVRC2012``, ``imagenet/ILSVRC/Data/CLS-LOC``).

    Raises:
        DataMissingError: if none of them has both.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     for part in ("train", "val"):
        ...         (Path(folder) / "imagenet" / part).mkdir(parents=True)
        ...     find_imagenet().name
        'imagenet'
    """
    root = data_root()
    names = ("", "imagenet", "ILSVRC2012", "imagenet/ILSVRC2012", "imagenet/ILSVRC/Data/CLS-LOC")
    places = [root / name for name in names]
    for place in places:
        if (place / "train").is_dir() and (place / "val").is_dir():
            return place
    source = "image-net.org (ILSVRC2012, after logging in; torchvision.datasets.ImageNet unpacks the archives)"
    raise DataMissingError("ImageNet (train/ and val/ with a folder for each class)", places, source)


def torchvision_weights_path(name: str) -> Path:
    """The file of torchvision's first ImageNet weights for one of its networks.

    Looks where ``TORCH_HOME`` would have it: in ``hub/checkpoints`` of the data root and of its ``imagenet`` folder,
    then in torch's own cache. The file is a pickle: read it with ``torch.load(path, weights_only=True)``, which
    executes no code.

    Args:
        name: of the network, as `torchvision.models.get_model` takes it.

    Raises:
        DataMissingError: if it is in none of these places.
        InputError: if torchvision has no such weights for it.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, CLEANAI_DATA=folder):
        ...     place = Path(folder) / "hub" / "checkpoints"
        ...     place.mkdir(parents=True)
        ...     (place / "mobilenet_v2-b0353104.pth").touch()
        ...     torchvision_weights_path("mobilenet_v2").name
        'mobilenet_v2-b0353104.pth'
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).__members__
    if "IMAGENET1K_V1" not in weights:
        raise InputError(f"torchvision has no weights IMAGENET1K_V1 for {name}, only {', '.join(weights)}.")
    url = weights["IMAGENET1K_V1"].url
    root = data_root()
    places = (root / "imagenet" / "hub" / "checkpoints", root / "hub" / "checkpoints")
    places = (*places, Path(torch.hub.get_dir()) / "checkpoints")
    for place in places:
        if (path := place / Path(url).name).is_file():
            return path
    raise DataMissingError(f"{name} ({Path(url).name})", places, url)


def make_loader(
    dataset: TensorDataset,
    *,
    batch_size: int = 128,
    shuffle_seed: int | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> DataLoader:
    """A loader over data in memory, shuffled anew in each pass if a seed is given; torch's random state is not used.

    Args:
        dataset: tensors whose first dimension counts the samples, such as `load_digits_data` gives.
        batch_size: samples of a batch; the last one may have fewer.
        shuffle_seed: of the order; None keeps the order of the data.
        augment: ``augment(images, generator)`` changes the images of each batch, as `augment_cifar10` does.

    Returns:
        A loader of batches ``[images, labels]``, or of as many tensors as the data set has.

    Example:
        >>> loader = make_loader(load_digits_data().test, batch_size=128)
        >>> images, labels = next(iter(loader))
        >>> len(loader), images.shape, labels.shape
        (4, torch.Size([128, 1, 8, 8]), torch.Size([128]))
    """
    generator = torch.Generator().manual_seed(shuffle_seed or 0)  # without one, each pass draws from the global state

    def collate(rows: list[tuple[Tensor, ...]]) -> list[Tensor]:
        images, *rest = default_collate(rows)
        return [images if augment is None else augment(images, generator), *rest]

    return DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle_seed is not None, generator=generator, collate_fn=collate
    )


def _choose_rows(total: int, limit: int | None, seed: int | None) -> Tensor:
    if limit is not None and limit > total:
        raise InputError(f"load_cifar10: limit is {limit}, but the split has only {total} images.")
    if seed is None:
        return torch.arange(total)[:limit]
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:limit]


def _fingerprint(archive: Path) -> str:
    """A short name for this very file (path, size, time), so that another archive gets a cache folder of its own."""
    status = archive.stat()
    identity = f"{archive.absolute()}|{status.st_size}|{status.st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _extract(archive: Path, destination: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            for member in _show_progress(tar, archive):
                tar.extract(member, destination, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{archive} cannot be unpacked into {destination.parent}: {error}") from error


def _show_progress(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    with tqdm(tar, desc=f"unpacking {archive.name}", unit="file", leave=False, disable=None) as members:
        yield from members


def _rename(scratch: Path, target: Path, folder: str) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not (target / folder).is_dir():  # unless another process was faster with the same archive
            raise
