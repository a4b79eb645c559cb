"""Data: splits that never overlap, CIFAR-10 found or unpacked from an archive, and clear words where it is missing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from cleanai import data as data_module
from cleanai.data import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    DataMissingError,
    augment_cifar10,
    data_root,
    find_cifar10,
    load_cifar10,
    load_digits_data,
    load_nips_photos,
    make_loader,
    normalise_cifar10,
    torchvision_weights_path,
    trained_weights_path,
    unpack_archive,
)
from cleanai.errors import InputError


@pytest.fixture
def empty_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("CLEANAI_DATA", str(root))
    monkeypatch.setenv("CLEANAI_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def real_cifar10() -> Path:
    try:
        return find_cifar10()
    except DataMissingError:
        pytest.skip("needs CIFAR-10 under the data root (CLEANAI_DATA, see data/README.md)")


def make_archive(path: Path, files: dict[str, bytes], mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as tar:  # ty: ignore[no-matching-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_data_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANAI_DATA", "~/elsewhere")
    assert data_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("CLEANAI_DATA")
    assert data_root() == Path("data")


def test_digits_split_is_deterministic_and_disjoint() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = load_digits_data(), load_digits_data(), load_digits_data(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    parts = [first.train, first.calibration, first.test]
    assert [len(part) for part in parts] == [1050, 297, 450]
    assert all(torch.equal(a, b) for a, b in zip(first.test.tensors, again.test.tensors, strict=True))
    assert not torch.equal(first.test.tensors[0], other.test.tensors[0])
    images = torch.cat([part.tensors[0] for part in parts])
    assert len(images.flatten(1).unique(dim=0)) == 1797  # every image once, in one part only


def test_digits_are_normalised_images_with_all_labels() -> None:
    digits = load_digits_data()
    for part in (digits.train, digits.calibration, digits.test):
        images, labels = part.tensors
        assert images.shape[1:] == (1, 8, 8) and images.dtype == torch.float32
        assert labels.dtype == torch.int64 and labels.unique().tolist() == list(range(10))
        assert abs(images.mean().item()) < 0.05
        assert images.std().item() == pytest.approx(1, abs=0.05)


def test_loaders_shuffle_only_when_asked_and_leave_the_random_state_alone() -> None:
    dataset = load_digits_data().test
    before = torch.get_rng_state()

    def first_labels(seed: int | None) -> Tensor:
        return next(iter(make_loader(dataset, batch_size=64, shuffle_seed=seed)))[1]

    assert torch.equal(first_labels(None), dataset.tensors[1][:64])
    assert torch.equal(first_labels(3), first_labels(3))
    assert not torch.equal(first_labels(3), first_labels(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_normalisation_equals_torchvisions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    expected = torch.stack([reference(image) for image in pixels])
    torch.testing.assert_close(normalise_cifar10(pixels), expected)


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    rows, columns = torch.meshgrid(torch.arange(1.0, 33), torch.arange(1.0, 33), indexing="ij")
    image = torch.stack([rows, columns, rows * columns])
    batch = image.repeat(200, 1, 1, 1)
    changed = augment_cifar10(batch, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    crops = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    allowed = torch.stack(crops + [crop.flip(2) for crop in crops]).flatten(1)
    distances = torch.cdist(changed.flatten(1), allowed, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() == 0  # each is one of the 162 possible views
    assert len(distances.argmin(dim=1).unique()) > 80  # and most of these occur
    assert torch.equal(batch, image.repeat(200, 1, 1, 1))


def test_augmenting_loaders_repeat_themselves() -> None:
    dataset = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6))

    def passes(seed: int) -> list[Tensor]:
        loader = make_loader(dataset, batch_size=6, shuffle_seed=seed, augment=augment_cifar10)
        return [images for _ in range(2) for images, _ in loader]

    first, second = passes(0)
    assert torch.equal(first, passes(0)[0])
    assert not torch.equal(first, second)


def test_missing_cifar10_is_explained(empty_root: Path) -> None:
    with pytest.raises(DataMissingError) as caught:
        load_cifar10("test")
    message = str(caught.value)
    for expected in (
        "CIFAR-10",
        "cifar-10-batches-py",
        str(empty_root),
        str(empty_root / "cifar10"),
        "download=True",
        "CLEANAI_DATA",
    ):
        assert expected in message
    turkish = caught.value.describe("tr")
    assert "bulunamadı" in turkish and str(empty_root) in turkish and "download=True" in turkish


def test_missing_weights_are_explained(empty_root: Path) -> None:
    with pytest.raises(DataMissingError, match=r"(?s)resnet20\.safetensors.*CLEANAI_DATA") as caught:
        trained_weights_path("resnet20")
    assert str(empty_root / "cifar10" / "models") in str(caught.value)


def test_weights_are_found_in_both_places(empty_root: Path) -> None:
    for folder in ("models", "cifar10/models"):  # the second one found wins from then on
        path = empty_root / folder / "resnet20.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        assert trained_weights_path("resnet20") == path


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_an_unpacked_folder_is_used_where_it_lies(empty_root: Path, place: str) -> None:
    (empty_root / place / "cifar-10-batches-py").mkdir(parents=True)
    assert find_cifar10() == empty_root / place


@pytest.mark.parametrize(("name", "mode"), [("cifar-10-python.tar.xz", "w:xz"), ("cifar-10-python.tar.gz", "w:gz")])
def test_an_archive_is_unpacked_once_and_outside_the_data_root(empty_root: Path, name: str, mode: str) -> None:
    make_archive(empty_root / name, {"cifar-10-batches-py/batches.meta": b"content"}, mode)
    empty_root.chmod(0o555)
    found = find_cifar10()
    empty_root.chmod(0o755)
    unpacked = found / "cifar-10-batches-py" / "batches.meta"
    assert unpacked.read_bytes() == b"content"
    assert [path.name for path in empty_root.iterdir()] == [name]
    unpacked.write_bytes(b"still here")
    assert find_cifar10() == found
    assert unpacked.read_bytes() == b"still here"
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def test_a_changed_archive_is_unpacked_anew(empty_root: Path) -> None:
    archive = empty_root / "cifar-10-python.tar.xz"
    make_archive(archive, {"cifar-10-batches-py/batches.meta": b"old"})
    old = find_cifar10()
    make_archive(archive, {"cifar-10-batches-py/batches.meta": b"new, longer"})
    new = find_cifar10()
    assert new != old
    assert (new / "cifar-10-batches-py" / "batches.meta").read_bytes() == b"new, longer"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cifar-10-batches-py/ok": b"1", "../outside": b"2"}, "cannot be unpacked"),
        ({"something-else/ok": b"1"}, "holds no folder cifar-10-batches-py"),
    ],
    ids=["traversal", "wrong content"],
)
def test_bad_archives_leave_no_trace(empty_root: Path, files: dict[str, bytes], message: str) -> None:
    make_archive(empty_root / "cifar-10-python.tar.xz", files)
    with pytest.raises(InputError, match=message):
        find_cifar10()
    cache = empty_root.parent / "cache"
    assert list(cache.iterdir()) == []
    assert not (empty_root.parent / "outside").exists() and not (cache / "outside").exists()


def test_a_truncated_archive_is_refused(empty_root: Path) -> None:
    archive = make_archive(
        empty_root / "cifar-10-python.tar.gz", {"cifar-10-batches-py/x": bytes(range(256)) * 99}, "w:gz"
    )
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be unpacked"):
        find_cifar10()


def test_a_faster_process_wins_the_race(empty_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(empty_root / "cifar-10-python.tar.xz", {"cifar-10-batches-py/x": b"mine"})
    extract = data_module._extract

    def extract_while_another_finishes(source: Path, destination: Path) -> None:
        extract(source, destination)
        other = destination.parent / destination.name.removeprefix(".").rsplit("-", 1)[0] / "cifar-10-batches-py"
        other.mkdir(parents=True)
        (other / "x").write_bytes(b"theirs")

    monkeypatch.setattr(data_module, "_extract", extract_while_another_finishes)
    found = unpack_archive(archive, "cifar-10-batches-py")
    assert (found / "cifar-10-batches-py" / "x").read_bytes() == b"theirs"


@pytest.mark.parametrize(("split", "limit"), [("validation", None), ("test", 0)])
def test_senseless_requests_are_refused(empty_root: Path, split: str, limit: int | None) -> None:
    with pytest.raises(InputError, match="load_cifar10: "):
        load_cifar10(split, limit=limit)


def test_cifar10_equals_torchvisions(real_cifar10: Path) -> None:
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    theirs = CIFAR10(str(real_cifar10), train=False, transform=reference)
    ours = load_cifar10("test", limit=20)
    for index in range(20):
        image, label = theirs[index]
        torch.testing.assert_close(ours.tensors[0][index], image)
        assert ours.tensors[1][index] == label


def test_cifar10_limit_and_seed(real_cifar10: Path) -> None:
    drawn, again = load_cifar10("test", limit=50, seed=1), load_cifar10("test", limit=50, seed=1)
    assert torch.equal(drawn.tensors[0], again.tensors[0])
    assert not torch.equal(drawn.tensors[1], load_cifar10("test", limit=50).tensors[1])
    assert len(load_cifar10("test")) == 10_000
    with pytest.raises(InputError, match="only 10000 images"):
        load_cifar10("test", limit=10_001)


@pytest.mark.parametrize("folder", ["nips17-1000", "imagenet/nips17-1000"])
def test_photos_are_cut_normalised_and_split(empty_root: Path, folder: str) -> None:
    images = empty_root / folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(5)]
    lines = ["file,class_index,author"]
    for number, photo in enumerate(pixels):
        Image.fromarray(photo).save(images / f"{number}.png")
        lines.append(f'images/{number}.png,{10 * number},"a, b"')
    (empty_root / folder / "labels.csv").write_text("\n".join(lines) + "\n")
    whole, labels = load_nips_photos().tensors
    assert whole.shape == (5, 3, 224, 224) and labels.tolist() == [0, 10, 20, 30, 40]
    middle = torch.from_numpy(pixels[3][16:240, 16:240]).permute(2, 0, 1) / 255
    expected = (middle - torch.tensor(CIFAR10_MEAN)[:, None, None]) / torch.tensor(CIFAR10_STD)[:, None, None]
    torch.testing.assert_close(whole[3], expected)
    even, odd = load_nips_photos("even"), load_nips_photos("odd")
    assert even.tensors[1].tolist() == [0, 20, 40] and odd.tensors[1].tolist() == [10, 30]
    assert torch.equal(odd.tensors[0][1], whole[3])
    assert load_nips_photos("even", limit=2).tensors[1].tolist() == [0, 20]
    with pytest.raises(InputError, match="'all', 'even' or 'odd', got 'first'"):
        load_nips_photos("first")
    with pytest.raises(InputError, match="from 1 to 2 or None, got 3"):
        load_nips_photos("odd", limit=3)


def test_missing_photos_and_weights_are_named(empty_root: Path) -> None:
    with pytest.raises(DataMissingError, match="NIPS-2017 photos"):
        load_nips_photos()
    with pytest.raises(DataMissingError, match=r"mobilenet_v2-b0353104\.pth") as caught:
        torchvision_weights_path("mobilenet_v2")
    assert str(empty_root / "imagenet" / "hub" / "checkpoints") in str(caught.value)
    place = empty_root / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    place.parent.mkdir(parents=True)
    place.touch()
    assert torchvision_weights_path("mobilenet_v2") == place
