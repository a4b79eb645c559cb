"""Saves two models to one file by turns in children that are killed at random moments; prints what was left.

    python tests/killed_save.py FILE KILLS SEED

Started by `test_killed_save.py` in a process of its own. The parent makes both models and computes what they give;
each child only saves.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from cleanai import StructuredPruner, load_pruned, save_pruned

WIDTH = 384


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))


def make(seed: int) -> nn.Module:
    """A pruned model of about a megabyte."""
    torch.manual_seed(seed)
    return StructuredPruner(build(), torch.ones(1, 16), pruning_ratio=0.1 + 0.1 * seed, keep_removed=True).prune()


def start(model: nn.Module, path: Path) -> tuple[int, int]:
    """A child that is about to save; gives its process number, and a pipe that opens when it begins."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            os.write(theirs, b"x")
            save_pruned(model, path, include_removed=True)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    os.close(theirs)
    return child, ours


def save(model: nn.Module, path: Path, seconds: float) -> tuple[bool, float]:
    """Saves in a child that is killed after so long; whether it was, and how long it lived."""
    child, ready = start(model, path)
    os.read(ready, 1)
    os.close(ready)
    began = time.perf_counter()
    deadline = began + seconds
    while time.perf_counter() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                sys.exit(f"a save failed with status {status}")
            return False, time.perf_counter() - began
        time.sleep(0.0001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), time.perf_counter() - began


def main() -> None:
    path, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)
    models = [make(seed) for seed in (0, 1)]
    inputs = torch.randn(3, 16)
    outputs = [model(inputs) for model in models]
    whole = min(save(models[0], path, 60.0)[1] for _ in range(5))  # the quickest: moments lie inside every save
    killed, torn, most_leftovers, seen, moments = 0, 0, 0, [0, 0], []
    for number in range(20 * kills):
        if killed == kills:
            break
        target = models[(number + 1) % 2]
        moment = draw.uniform(0, 1.1)
        was_killed, seconds = save(target, path, moment * whole)
        whole = whole if was_killed else min(whole, seconds)
        killed += was_killed
        moments += [moment] * was_killed
        loaded = load_pruned(path, build)(inputs)
        same = [torch.equal(loaded, each) for each in outputs]
        torn += not any(same)
        seen = [count + one for count, one in zip(seen, same, strict=True)]
        most_leftovers = max(most_leftovers, len(list(path.parent.iterdir())) - 1)
    save_pruned(models[0], path)
    left = [each.name for each in path.parent.iterdir() if each != path]
    told = {"killed": killed, "torn": torn, "seen": seen, "most_leftovers": most_leftovers, "left": left}
    sys.stdout.write(json.dumps({**told, "first": min(moments), "last": max(moments), "seconds": whole}) + "\n")


if __name__ == "__main__":
    main()
