"""Hostile files: each one is refused with what is wrong, or is a model; none runs code, changes the caller's model,
takes long or fills the memory."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai import (
    CleanAIError,
    History,
    Plan,
    StructuredPruner,
    history_of,
    load_pruned,
    read_history,
    save_pruned,
)
from cleanai.experiments.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from cleanai.models import digits_resnet

MOST_SECONDS = 5.0  # of the processor, also on a slow one; `python tests/test_hostile_files.py` measures
MOST_BYTES = 1 << 30
ROUNDS = 20
PER_ROUND = 30

# ------------------------------------------------------------------------------------------------------------- models


class Watched(nn.Module):
    """Norms by group, attention, a tied weight, and a property that must not be read by a plan."""

    looks = 0

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.norm = nn.GroupNorm(2, 8)
        self.inner = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def width(self) -> int:
        Watched.looks += 1
        return 8

    @width.setter
    def width(self, value: int) -> None:
        Watched.looks += 1

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x + self.inner(x))


BUILDERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet": (lambda: digits_resnet(4), torch.ones(2, 1, 8, 8)),
    "watched": (Watched, torch.tensor([[1, 2, 3]])),
}
KINDS = [(name, removed) for name in BUILDERS for removed in (False, True)]


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return BUILDERS[name][0]().eval()


@cache
def make_file(name: str, removed: bool) -> tuple[bytes, nn.Module]:
    """A whole file and the model in it."""
    import tempfile

    model, inputs = build(name), BUILDERS[name][1]
    for ratio in (0.5, 0.3):
        options: dict[str, Any] = {"pruning_ratio": ratio, "keep_removed": True}
        if name == "resnet":
            options["depth_pruning_ratio"] = 0.34
        model = StructuredPruner(model, inputs, "magnitude", **options).prune()
    assert len(history_of(model).plan.cuts)
    with tempfile.TemporaryDirectory() as folder:
        return save_pruned(model, Path(folder) / "whole", include_removed=removed).read_bytes(), model


# ------------------------------------------------------------------------------------------------------ what is wrong

HUGE = [2**31, 2**53, 2**62, 2**63, 2**64, 10**30, -1, -(2**63), 0]
STRANGE: list[Any] = [
    *HUGE,
    *(None, True, False, 0.5, float("nan"), float("inf"), "", "..", "__class__", "forward", "training", "width"),
    *(
        "_parameters",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "x" * 100_000,
        [],
        {},
        [[]],
        [1, 2, 3],
        {"a": 1},
        [10**30],
        ["a"],
    ),
]
NAMES = [
    "../../x",
    "/etc/passwd",
    "a\0b",
    "n" * 70_000,
    "",
    ".",
    "..",
    "__metadata__",
    "__class__",
    "ünï\ud7ff",
    "a..b",
]


def split_file(blob: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def join_file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def flip_weights(draw: random.Random, blob: bytes) -> bytes:
    header, data = split_file(blob)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 40)):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return join_file(header, bytes(changed))


def zero_weights(draw: random.Random, blob: bytes) -> bytes:
    header, data = split_file(blob)
    start, end = sorted(draw.randrange(len(data)) for _ in range(2))
    return join_file(header, data[:start] + bytes(end - start) + data[end:])


def truncate(draw: random.Random, blob: bytes) -> bytes:
    return blob[: draw.choice([0, 1, 7, 8, 9, len(blob) - 1, draw.randrange(len(blob))])]


def flip(draw: random.Random, blob: bytes) -> bytes:
    changed = bytearray(blob)
    end = draw.choice([8, 200, int.from_bytes(blob[:8], "little"), len(blob)])
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def insert(draw: random.Random, blob: bytes) -> bytes:
    place = draw.choice([0, 8, len(blob), draw.randrange(len(blob))])
    return blob[:place] + draw.randbytes(draw.choice([1, 8, 1000])) + blob[place:]


def delete(draw: random.Random, blob: bytes) -> bytes:
    place = draw.choice([0, 8, draw.randrange(len(blob))])
    return blob[:place] + blob[place + draw.choice([1, 8, 500]) :]


def zero(draw: random.Random, blob: bytes) -> bytes:
    place, size = draw.choice([0, 8, draw.randrange(len(blob))]), draw.choice([1, 8, 500])
    return blob[:place] + bytes(len(blob[place : place + size])) + blob[place + size :]


def lie_about_length(draw: random.Random, blob: bytes) -> bytes:
    true = int.from_bytes(blob[:8], "little")
    length = draw.choice([0, 1, true - 1, true + 1, len(blob), len(blob) - 8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + blob[8:]


def lie_about_tensor(draw: random.Random, blob: bytes) -> bytes:
    header, data = split_file(blob)
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    field = draw.choice(["dtype", "shape", "data_offsets", "extra"])
    if field == "dtype":
        types = ["F64", "F16", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F4", "nonsense", "", 3, None]
        entry["dtype"] = draw.choice(types)
    elif field == "shape":
        flat = [-1] if not entry["shape"] else [*entry["shape"]]
        shapes = [flat[::-1], [*flat, 1], [0, 2**62], [2**63], [2**32, 2**32], [-1, -4], [1] * 100_000, [], None, "x"]
        entry["shape"] = draw.choice([*shapes, [draw.choice(HUGE)], [1.5]])
    elif field == "data_offsets":
        entry["data_offsets"] = draw.choice([[0, len(data)], [0, 0], [8, 0], [2**62, 2**63], [-8, 0], [0], [], None])
    else:
        entry[draw.choice(NAMES)] = draw.choice(STRANGE)
    return join_file(header, data)


def rename_tensor(draw: random.Random, blob: bytes) -> bytes:
    header, data = split_file(blob)
    old, other = draw.sample([name for name in header if name != "__metadata__"], 2)
    new = draw.choice([*NAMES, old + "x", other, f"cleanai.removed.0.0.{old}", f"cleanai.removed.9.0.{old}"])
    return join_file({new if name == old else name: entry for name, entry in header.items()}, data)


def add_or_lose_tensor(draw: random.Random, blob: bytes) -> bytes:
    header, data = split_file(blob)
    names = [name for name in header if name != "__metadata__"]
    last = max(names, key=lambda name: header[name]["data_offsets"][1])
    if draw.random() < 0.5:
        data = data[: header[last]["data_offsets"][0]]
        del header[last]
    else:
        header[draw.choice(NAMES)] = {"dtype": "U8", "shape": [8], "data_offsets": [len(data), len(data) + 8]}
        data += bytes(8)
    return join_file(header, data)


def describe(blob: bytes, change: Callable[[Any], Any]) -> bytes:
    header, data = split_file(blob)
    header["__metadata__"]["cleanai"] = json.dumps(change(json.loads(header["__metadata__"]["cleanai"])))
    return join_file(header, data)


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in JSON values where something stands: (container, key)."""
    places, waiting = [], [value]
    while waiting:
        box = waiting.pop()
        for key in box if isinstance(box, dict) else range(len(box)):
            places.append((box, key))
            if isinstance(box[key], (dict, list)):
                waiting.append(box[key])
    return places


def damage(draw: random.Random, data: Any) -> Any:
    """Other values at one to three places, rather among the fields than among the many indices."""
    for _ in range(draw.randint(1, 3)):
        places = list_places(data)
        fields = [place for place in places if isinstance(place[1], str)]
        box, key = draw.choice(fields if draw.random() < 0.8 else places)
        action = draw.random()
        if action < 0.15:
            del box[key]
        elif action < 0.3 and isinstance(box[key], list) and box[key]:
            box[key].insert(0, draw.choice(box[key]))
        elif action < 0.4 and type(box[key]) is int:
            box[key] += draw.choice([-1, 1])
        elif action < 0.5 and isinstance(box, dict):
            box[draw.choice(NAMES)] = box[key]
        else:
            box[key] = copy.deepcopy(draw.choice(STRANGE))
    return data


def damage_description(draw: random.Random, blob: bytes) -> bytes:
    return describe(blob, lambda data: damage(draw, data))


ATTRIBUTES = ["__class__", "__dict__", "forward", "width", "training", "num_heads", "head_dim", "num_groups", "eps"]
ATTRIBUTES += ["groups", "stride", "padding", "out_channels", "_version", "embed_dim", "weight", "call_super_init"]


def plan_hostile(draw: random.Random, data: Any) -> Any:
    """A plan in the first or last step that is well-formed, and asks for what no plan should."""
    entries = data["history"]["entries"]
    plan = draw.choice(entries)["steps"][0]
    modules = ["", ".", "..", "norm", "attention", "inner", "inner.0", "conv1", "block1", "block1.conv1", "fc", "x.y"]
    what = draw.randrange(6)
    if what == 0:
        old, new = draw.choice([0, 1, 2, 4, 8]), draw.choice([*HUGE, 1, 3])
        index = draw.choice([None, None, 0, 1, -1, -100, 2**63])
        change = {"module": draw.choice(modules), "attribute": draw.choice(ATTRIBUTES)}
        plan["attributes"].append({**change, "index": index, "old": old, "new": new})
    elif what == 1:
        names = [name for name, _ in Watched().named_modules()] + [name for name, _ in build("resnet").named_modules()]
        chosen = names if draw.random() < 0.3 else draw.sample(names, 3)
        places = draw.choice([0, 1, 2, 1000, *HUGE])
        common = {"kind": "x", "dropped": True, "places": places, "score": None, "note": ""}
        plan["blocks"] = [{"module": name, **common} for name in chosen]
    elif what == 2 and plan["cuts"]:
        cut = draw.choice(plan["cuts"])
        cut[draw.choice(["size", "dim"])] = draw.choice(HUGE)
    elif what == 3 and plan["cuts"]:
        cut = draw.choice(plan["cuts"])
        cut["dropped"] = sorted(draw.sample(range(cut["size"]), draw.randint(1, cut["size"] - 1)))
    elif what == 4 and plan["cuts"]:
        plan["cuts"] = draw.sample(plan["cuts"], draw.randint(0, len(plan["cuts"]) - 1))
    else:
        entries *= draw.choice([0, 2, 50])
    if draw.random() < 0.3:
        data["removed"] = not data["removed"]
    return data


def hostile_plan(draw: random.Random, blob: bytes) -> bytes:
    return describe(blob, lambda data: plan_hostile(draw, data))


def hostile_sharing(draw: random.Random, blob: bytes) -> bytes:
    names = [name for name in split_file(blob)[0] if name != "__metadata__"]
    a, b = draw.sample(names, 2)
    maps: list[Any] = [{a: b}, {a: a}, {"x": a}, {"x": "y"}, {"x": "y", "y": "x"}, {"x": 3}, [a], None, {"": ""}, "x"]
    return describe(blob, lambda data: {**data, "shared": draw.choice(maps)})


def swap_files(draw: random.Random, blob: bytes) -> bytes:
    other, _ = make_file(*draw.choice(KINDS))
    header, data = split_file(blob)
    header["__metadata__"] = split_file(other)[0]["__metadata__"]
    return join_file(header, data)


WEIGHTS_ONLY = (flip_weights, zero_weights)
MUTATORS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *WEIGHTS_ONLY,
    *(truncate, flip, insert, delete, zero, lie_about_length, lie_about_tensor, rename_tensor, add_or_lose_tensor),
    *(damage_description, damage_description, hostile_plan, hostile_plan, hostile_sharing, swap_files),
)


# -------------------------------------------------------------------------------------------------------------- bombs


def bomb_texts() -> Iterator[tuple[str, str]]:
    """JSON that unfolds to much more than itself, takes long, or breaks who walks it."""
    for depth in (50, 500, 900, 100_000):
        yield f"lists {depth} deep", "[" * depth + "]" * depth
        yield f"objects {depth} deep", '{"a":' * depth + "1" + "}" * depth
    yield "a huge number", "9" * 1_000_000
    yield "a huge exponent", "1e999999999"
    yield "millions of keys", "{" + ",".join(f'"{n}":0' for n in range(1_500_000)) + "}"
    yield "millions of objects", "[" + '{"":0},' * 2_500_000 + "0]"
    yield "millions of empty lists", "[" + "[]," * 5_000_000 + "0]"
    yield "millions of numbers", "[" + "999," * 5_000_000 + "0]"
    yield "one key many times", "{" + '"format":"x",' * 1_000_000 + '"format":"cleanai-pruned-1"}'
    yield "a long text", '"' + "x" * 20_000_000 + '"'


def bomb_files() -> Iterator[tuple[str, bytes]]:
    blob, _ = make_file("resnet", False)
    header, data = split_file(blob)
    draw = random.Random(0)
    for name, text in bomb_texts():
        places = ["description", "settings", "dropped", "shared", "header"]
        for place in places if len(text) < 1_000_000 else draw.sample(places, 2):
            if place == "header":
                yield f"{name} as the header", join_file(text.encode(), data)
                continue
            described = json.loads(header["__metadata__"]["cleanai"])
            step = described["history"]["entries"][0]["steps"][0]
            if place == "settings":
                step["settings"] = {"x": "@@"}
            elif place == "dropped":
                step["cuts"][0]["dropped"] = "@@"
            elif place == "shared":
                described["shared"] = "@@"
            whole = "@@" if place == "description" else described
            bomb = {**header, "__metadata__": {"cleanai": json.dumps(whole).replace('"@@"', text)}}
            yield f"{name} as {place}", join_file(bomb, data)
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
    yield "many tensors", join_file({**header, **{f"t{n}": empty for n in range(200_000)}}, data)
    yield "fewer tensors", join_file({**header, **{f"t{n}": empty for n in range(45_000)}}, data)

    def many(field: str, record: Callable[[int], Any], count: int) -> bytes:
        def change(described: Any) -> Any:
            described["history"]["entries"][0]["steps"][0][field] = [record(n) for n in range(count)]
            return described

        return describe(blob, change)

    block = {"kind": "", "dropped": True, "places": 0, "score": None, "note": ""}
    cut = {"dim": 0, "size": 2, "dropped": [0], "role": ""}
    yield "many blocks", many("blocks", lambda n: {"module": f"b{n}", **block}, 40_000)
    yield "many cuts", many("cuts", lambda n: {"parameter": f"p{n}", **cut}, 40_000)
    nested = many("cuts", lambda n: {"parameter": "a." * 50 + str(n), **cut}, 40_000)
    yield "many deep names", nested

    def repeat(described: Any) -> Any:
        (entry, *_) = described["history"]["entries"]
        entry["steps"] = [{**entry["steps"][0], "cuts": [], "groups": [], "attributes": [], "settings": {}}]
        described["history"]["entries"] = [entry] * 50_000
        return described

    yield "many prunes", describe(blob, repeat)


# ---------------------------------------------------------------------------------------------------------- the law


def fingerprint(model: nn.Module) -> str:
    """Everything that a model is: classes, attributes, tensors as objects and by value, hooks, modes, history."""
    seen = hashlib.sha256()
    for path, module in model.named_modules():
        seen.update(f"{path}{type(module)}{id(module)}".encode())
        for name, value in vars(module).items():
            box = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            kept = id(value) if isinstance(value, (Tensor, nn.Module)) else [(key, id(item)) for key, item in box]
            seen.update(f"{name}{kept or repr(value)}".encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        seen.update(f"{name}{id(tensor)}{tensor.requires_grad}{tensor.dtype}{tuple(tensor.shape)}".encode())
        seen.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def shapes_of(model: nn.Module) -> dict[str, Any]:
    return {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


@contextmanager
def limited_memory(size: int) -> Generator[None]:
    """No more than so many bytes on top of what the process has; more is a `MemoryError`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


_events: list[str] | None = None
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _events is not None and (event in _FORBIDDEN or (event == "open" and args[1] and set("wax+") & set(args[1]))):
        _events.append(f"{event} {args}")


@pytest.fixture(scope="module", autouse=True)
def watch() -> None:
    sys.addaudithook(_watch)  # for good: a hook cannot be removed, but it listens only while a file is read


def read_hostile(action: Callable[[], Any], path: Path) -> Any:
    """What a file gives; None where it was refused in the right way."""
    global _events
    start, _events = time.process_time(), []
    try:
        with limited_memory(MOST_BYTES):
            return action()
    except CleanAIError as error:
        text = str(error)
        assert path.name in text and len(text) > len(str(path)) + 10, f"it does not say what is wrong: {text!r:.300}"
        assert len(text) < 2000 or len(path.name) > 200, f"it says too much: {text[:300]}"
        return None
    finally:
        done, _events = _events, None
        assert done == []
        assert time.process_time() - start < MOST_SECONDS


class Victim:
    """A model that exists elsewhere, handed out by the factory each time; a new one after each that was loaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.renew()

    def renew(self) -> None:
        self.model = build(self.name)
        self.before = fingerprint(self.model)

    def attack(self, path: Path, **options: Any) -> nn.Module | None:
        read_hostile(lambda: read_history(path), path)
        loaded = read_hostile(lambda: load_pruned(path, lambda: self.model, **options), path)
        assert Watched.looks == 0, "the user's property was run"
        if loaded is None:
            assert fingerprint(self.model) == self.before
        else:
            assert len(repr(loaded))
            self.renew()
        return loaded


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_mutated_files(seed: int, tmp_path: Path) -> None:
    """20 × 30 files."""
    draw = random.Random(seed)
    victims = {name: Victim(name) for name in BUILDERS}
    path = tmp_path / "hostile.safetensors"
    for number in range(PER_ROUND):
        name, removed = draw.choice(KINDS)
        blob, whole = make_file(name, removed)
        mutate = MUTATORS[number % len(MUTATORS)]
        path.write_bytes(mutate(draw, blob))
        loaded = victims[name].attack(path, check_architecture=draw.random() < 0.5)
        if mutate in WEIGHTS_ONLY:
            assert loaded is not None
            assert shapes_of(loaded) == shapes_of(whole) and repr(loaded) == repr(whole)
            assert history_of(loaded) == history_of(whole)


def test_the_files_are_whole_before_they_are_mutated(tmp_path: Path) -> None:
    for name, removed in KINDS:
        blob, whole = make_file(name, removed)
        (tmp_path / "whole").write_bytes(join_file(*split_file(blob)))
        loaded = load_pruned(tmp_path / "whole", lambda name=name: build(name))
        assert torch.equal(loaded(BUILDERS[name][1]), whole(BUILDERS[name][1]))


def test_bombs(tmp_path: Path) -> None:
    victim = Victim("resnet")
    for name, blob in bomb_files():
        path = tmp_path / "bomb.safetensors"
        path.write_bytes(blob)
        try:
            victim.attack(path)
        except BaseException as error:
            raise AssertionError(name) from error


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def test_other_things_under_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No safetensors file at all, or no file."""
    monkeypatch.chdir(tmp_path)
    blob, _ = make_file("resnet", False)
    files = {
        "pickle": pickle.dumps(Boom()),
        "empty": b"",
        "no-metadata": join_file({}, b""),
        "text": b"\x89PNG\r\n" * 100,
        "list": join_file([], b""),
        "latin": join_file(b'{"\xff": 1}', b""),
        "holes": join_file({**split_file(blob)[0], "x": {"dtype": "U8", "shape": [0], "data_offsets": [3, 3]}}, b""),
        "twice": join_file(json.dumps(split_file(blob)[0])[:-1].encode() + b',"x":1,"x":2}', split_file(blob)[1]),
    }
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(content)
    torch.save({"a": Boom()}, tmp_path / "torch.safetensors")
    with zipfile.ZipFile(tmp_path / "zip.safetensors", "w") as file:
        file.writestr("../../x", "content")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.safetensors")
    special = ["torch", "zip", "folder", "loop", "dangling", "pipe", "absent", "x" * 5000, "a\0b"]
    victim = Victim("resnet")
    for path in [*paths, *(tmp_path / f"{name}.safetensors" for name in special)]:
        assert victim.attack(path) is None, path
    assert not (tmp_path / "executed").exists()


def test_the_disguises_work_where_they_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Boom()))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("seed", range(5))
def test_plans_and_histories_as_text(seed: int) -> None:
    draw = random.Random(seed)
    _, whole = make_file("watched", False)
    readers: dict[str, Callable[[str], Any]] = {
        history_of(whole).to_json(): History.from_json,
        history_of(whole)[0].plan.to_json(): Plan.from_json,
    }
    for number in range(60):
        text, read = draw.choice(list(readers.items()))
        if number % 3:
            text = json.dumps(damage(draw, json.loads(text)))
        else:
            place = draw.randrange(len(text))
            text = text[:place] + draw.choice(["", "0", "[", "]", "\0", '"', "NaN", "9" * 5000]) + text[place + 1 :]
        try:
            found = read(text)
            assert str(found) and found.to_json()
        except CleanAIError as error:
            assert len(str(error)) > 10  # noqa: PT017 (either outcome is right)


def test_bombs_as_text() -> None:
    for name, text in bomb_texts():
        for read in (Plan.from_json, History.from_json):
            start = time.process_time()
            with limited_memory(MOST_BYTES), pytest.raises(CleanAIError):
                read(text)
            assert time.process_time() - start < MOST_SECONDS, name


@pytest.mark.parametrize("seed", range(3))
def test_mutated_checkpoints(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    torch.manual_seed(0)
    pruner = StructuredPruner(digits_resnet().eval(), torch.ones(2, 1, 8, 8), "magnitude")
    facts = {"name": "digits_resnet", "data": "digits", "classes": 10, "facts": {"epoch": 3}}
    path = save_checkpoint(pruner.prune(), tmp_path / "whole.safetensors", plan=pruner.plan, **facts)
    blob = path.read_bytes()
    target = tmp_path / "hostile.safetensors"
    mutators = [mutate for mutate in MUTATORS if mutate not in (hostile_plan, swap_files)]
    for _ in range(25):
        target.write_bytes(draw.choice(mutators)(draw, blob))
        read_hostile(lambda: read_checkpoint(target), target)
        read_hostile(lambda: load_checkpoint(target), target)
    lies: list[tuple[str, Any]] = [("classes", value) for value in (*HUGE, "10", True, 10**7)]
    lies += [("model", value) for value in ("vit_h_14", "nothing", "", None, ["a"], "os.system", "resnet18")]
    lies += [("data", value) for value in ("imagenet", "../../x", {}, None)]
    for field, value in lies:
        target.write_bytes(describe(blob, lambda data, field=field, value=value: {**data, field: value}))
        read_hostile(lambda: load_checkpoint(target), target)
    huge = {"model": "vit_h_14", "data": "imagenet", "classes": 10**6, "plan": None}
    target.write_bytes(describe(blob, lambda data: {**data, **huge}))
    assert read_hostile(lambda: load_checkpoint(target), target) is None


def measure() -> None:
    """The slowest file, and the most memory that any takes: for the record."""
    import tempfile

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hostile.safetensors"
        results = []
        draw = random.Random(0)
        mutated = (
            (getattr(mutate, "__name__", ""), mutate(draw, make_file(*kind)[0]), kind[0])
            for kind in KINDS
            for mutate in MUTATORS
            for _ in range(10)
        )
        bombs = ((name, blob, "resnet") for name, blob in bomb_files())
        for name, blob, kind in itertools.chain(mutated, bombs):
            path.write_bytes(blob)
            model = build(kind)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            try:
                load_pruned(path, lambda model=model: model)
                fate = "loaded"
            except CleanAIError as error:
                fate = str(error).removeprefix(str(path))[:100]
            seconds = time.process_time() - start
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            results.append((seconds, grown, len(blob) / 1e6, name, fate))
    for seconds, grown, size, name, fate in sorted(results, reverse=True)[:12]:
        sys.stdout.write(f"{seconds:6.2f} s  peak +{grown:5.0f} MB  file {size:6.1f} MB  {name}: {fate}\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(f"{len(results)} files; peak of the process {peak} MB\n")


if __name__ == "__main__":
    measure()
