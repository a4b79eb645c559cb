"""Runs an experiment in children that are killed at random moments, then to its end; prints what came out.

    python tests/killed_experiment.py FOLDER KILLS SEED

Started by `test_experiments.py` in a process of its own: the parent imports everything and computes nothing, so that
each child is there at once and begins as a fresh process would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cleanai.experiments import run_experiment

SETTINGS: dict[str, Any] = {
    "methods": ("wanda",),
    "prepare_epochs": 2,
    "finetune_epochs": 12,
    "iterative_steps": 1,
    "latency_seconds": 0.1,
    "state_minutes": 0.0,  # a state after every step: most moments lie within an epoch
    "checkpoint_interval": 3,
}
LONGEST = 0.05  # of the undisturbed time: how far a child may come before it is killed


def start(folder: Path) -> int:
    """A child that runs the experiment from where it stands; gives its process number."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            run_experiment("TS1", profile="smoke", output=folder, silent=True, documents=False, **SETTINGS)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def wait_for_progress(child: int, folder: Path, seconds: float) -> bool:
    """Waits so long from where a child writes a new state of its training; False if it came to its end."""
    before, deadline = newest_state(folder), float("inf")
    while time.perf_counter() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if deadline == float("inf") and newest_state(folder) != before:
            deadline = time.perf_counter() + seconds
        time.sleep(0.002)
    return True


def newest_state(folder: Path) -> float:
    """When a training in the folder last wrote its state."""
    times = [0.0]
    for path in folder.rglob("training_*/*"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed since
            times.append(path.stat().st_mtime)
    return max(times)


def finish(folder: Path) -> float:
    """Runs to the end; gives the seconds it took."""
    began = time.perf_counter()
    _, status = os.waitpid(start(folder), 0)
    if status != 0:
        sys.exit(f"the experiment failed with status {status}")
    return time.perf_counter() - began


def digest(folder: Path) -> str:
    """All weights, what was trained and what was measured; not how long it took."""
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        seen.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    for path in sorted(folder.rglob("finetune.json")) + sorted(folder.rglob("prepare.json")):
        seen.update(json.dumps(without_times(json.loads(path.read_text()))).encode())
    return seen.hexdigest()


def without_times(value: Any) -> Any:
    """The same data, but for seconds."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "seconds"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    whole = finish(folder / "undisturbed")
    killed, training = 0, 0
    while killed < kills:
        child = start(folder / "killed")
        if not wait_for_progress(child, folder / "killed", draw.uniform(0, LONGEST) * whole):
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
        training += any((folder / "killed").rglob("training_*"))
    finish(folder / "killed")
    found = {name: digest(folder / name) for name in ("undisturbed", "killed")}
    sys.stdout.write(json.dumps({**found, "kills": killed, "while_training": training}) + "\n")


if __name__ == "__main__":
    main()
