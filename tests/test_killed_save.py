"""Files are written whole or not at all, whenever the process is killed, and killed ones leave nothing for long."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cleanai.serialize import write_bytes

KILLS = 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts children by fork")
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_save.py")
    command = [sys.executable, str(script), str(tmp_path / "pruned.safetensors"), str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["killed"] == KILLS and told["torn"] == 0
    assert all(told["seen"]), "both models were found: some saves came to their end, some did not"
    assert told["last"] - told["first"] > 0.4, "the kills lie all over the save"
    assert told["most_leftovers"] == 1, "the next save removes what a killed one left"
    assert told["left"] == []


def leave(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    return path


def test_leftovers_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = platform.node()
    gone = leave(tmp_path, f".a.{host}.{child.pid}.1.tmp")
    kept = [
        leave(tmp_path, f".a.{host}.{os.getpid()}.1.tmp"),  # somebody is writing it
        leave(tmp_path, f".b.{host}.{child.pid}.1.tmp"),  # of another file
        leave(tmp_path, f".a.another-{host}.{child.pid}.1.tmp"),  # of another machine
        leave(tmp_path, f".a.{host}.notes.tmp"),
    ]
    write_bytes(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert not gone.exists() and all(path.exists() for path in kept)


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    write_bytes(target, b"old", durable=durable)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(target, b"new", durable=durable)
    assert target.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a"]
