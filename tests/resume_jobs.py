"""What `test_resume` kills: a training with all that has a state, in child processes of one that only waits.

    python tests/resume_jobs.py FOLDER KILLS SEED

trains once undisturbed (FOLDER/whole.pt), then again with a state in FOLDER/state, killed so often at random moments;
FOLDER/places.json says where each killed training stood.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cleanai.data import make_loader
from cleanai.training import Recipe, TrainingResult, train_classifier
from cleanai.training_state import STATE_FILE

RECIPE = Recipe(
    epochs=8, lr=0.1, warmup_epochs=1, accumulate=2, clip_norm=2.0, patience=5, seed=7, distillation_weight=0.3
)


def make_data(rows: int, seed: int) -> TensorDataset:
    images = torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, (images[:, 0, 0, 0] > 0).long())


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2)),
    )


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped, images.flip(3), images) + 0.1 * torch.randn(images.shape)


def train(folder: Path | None) -> tuple[nn.Module, TrainingResult]:
    """BatchNorm, dropout, two generators, momentum, warm-up, accumulation, a teacher, the best weights."""
    net = make_net()
    result = train_classifier(
        net,
        make_loader(make_data(800, 1), batch_size=8, shuffle_seed=0, augment=mirror),
        RECIPE,
        validation=make_loader(make_data(100, 2), batch_size=50),
        teacher=make_net(5),
        keep="best",
        folder=folder,
        state_minutes=0.0005,
        device="cpu",
    )
    return net, result


def summarise(net: nn.Module, result: TrainingResult) -> dict[str, Any]:
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    rows = [
        [record.epoch, record.train_loss, record.train_accuracy, record.lr, record.val_loss, record.val_accuracy]
        for record in result.history
    ]
    return {"sha256": digest.hexdigest(), "history": rows, "best": result.best_epoch, "stopped": result.stopped}


def run_child(work: Callable[[], object]) -> int:
    """Forks; the child does the work and ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_often(folder: Path, kills: int, seed: int) -> None:
    whole = folder / "whole.json"
    start = time.perf_counter()
    _, status = os.waitpid(run_child(lambda: whole.write_text(json.dumps(summarise(*train(None))))), 0)
    assert status == 0, status
    duration, moments, places = time.perf_counter() - start, random.Random(seed), []
    for _ in range(kills):
        child = run_child(lambda: train(folder / "state"))
        time.sleep(0.1 + moments.uniform(0.0, 0.15) * duration)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it was done before it was killed"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        path = folder / "state" / STATE_FILE
        state = torch.load(path, weights_only=True) if path.is_file() else {"epoch": 1, "done": 0}
        places.append([state["epoch"], state["done"]])
    (folder / "places.json").write_text(json.dumps(places))


if __name__ == "__main__":
    torch.set_num_threads(1)
    import lightning_fabric  # noqa: F401  (once, before the children need it)

    kill_often(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
