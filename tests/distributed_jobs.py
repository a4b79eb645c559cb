"""What `test_distributed` runs in one process and in two; each job gives plain tensors and numbers.

    python -m torch.distributed.run --nproc-per-node=2 tests/distributed_jobs.py OUTPUT

writes OUTPUT.0 and OUTPUT.1, one for each process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cleanai.calibration import collect_statistics
from cleanai.distributed import gather, merge_over_processes, run_on_main, share_batches, start_processes, world
from cleanai.errors import InputError
from cleanai.gradients import collect_gradients
from cleanai.training import EpochRecord, Recipe, TrainingResult, train_classifier

ROWS, BATCH = 45, 8  # the last batch has 5 rows, which two processes cannot halve


def make_data() -> TensorDataset:
    x = torch.randn(ROWS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def make_net(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.1)] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Linear(6, 10), *middle, nn.Linear(10, 3)).double()


def make_loader(*, shuffle: bool = True) -> DataLoader:
    return DataLoader(make_data(), batch_size=BATCH, shuffle=shuffle)


def plain(result: TrainingResult) -> list[dict[str, Any]]:
    """The history without what differs from run to run."""
    rows = [dataclasses.asdict(dataclasses.replace(record, seconds=0.0)) for record in result.history]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def train_plainly() -> dict[str, Any]:
    """Nothing random but the order: the same weights in any number of processes."""
    net = make_net()
    recipe = Recipe(epochs=3, lr=0.1, accumulate=2, clip_norm=1.0, label_smoothing=0.1)
    loader = make_loader()
    result = train_classifier(net, loader, recipe, validation=make_loader(shuffle=False), keep="best", device="cpu")
    return {"weights": net.state_dict(), "history": plain(result)}


def train_on_lists() -> dict[str, Any]:
    """Batches that are no data set's: rows are divided after loading; frozen parameters are no hindrance."""
    x, y = make_data().tensors
    net = make_net()
    net.register_parameter("frozen", nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False))
    batches = [(x[:7], y[:7]), (x[7:17], y[7:17]), (x[17:20], y[17:20])]
    recipe = Recipe(epochs=2, lr=0.2, optimizer="adamw")
    one = DataLoader(make_data(), batch_size=ROWS)  # a batch for only one of two processes
    result = train_classifier(net, batches, recipe, validation=one, device="cpu")
    return {"weights": net.state_dict(), "history": plain(result)}


def train_unused() -> dict[str, Any]:
    """A parameter that is never used."""
    net = make_net()
    net.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    try:
        train_classifier(net, make_loader(), Recipe(epochs=1, weight_decay=0.0), device="cpu")
        message = ""
    except InputError as error:
        message = str(error)
    return {"message": message}


def train_with_norms() -> dict[str, Any]:
    net = make_net(norm=True)
    result = train_classifier(net, make_loader(), Recipe(epochs=12, lr=0.1, seed=2), device="cpu")
    return {"weights": net.state_dict(), "history": plain(result)}


def collect() -> dict[str, Any]:
    """The statistics that scores are made of, over 5 of the 6 batches."""
    net = make_net(norm=True)
    loader = make_loader(shuffle=False)
    activations = merge_over_processes(collect_statistics(net, share_batches(loader, 5), norms=True, progress=False))
    gradients = merge_over_processes(collect_gradients(net, share_batches(loader, 5), progress=False))
    sides = {
        "/".join(side): [value.total, value.square, value.low, value.high] for side, value in activations.sides.items()
    }
    squares = {f"{name}/{dim}": value for (name, dim), value in gradients.squares.items()}
    counts = [activations.batches, activations.samples, gradients.batches, gradients.samples]
    return {"sides": sides, "squares": squares, "counts": counts}


def resume(folder: Path) -> dict[str, Any]:
    """A training that is stopped by an error in its second epoch, then called again; and an undisturbed one."""
    recipe = Recipe(epochs=3, lr=0.1, seed=4)
    calls: list[int] = []

    def interrupt(record: EpochRecord, _: nn.Module) -> None:
        calls.append(record.epoch)
        if calls == [1, 2]:
            raise KeyboardInterrupt

    nets = [make_net(norm=True), make_net(norm=True), make_net(norm=True)]
    whole = train_classifier(nets[0], make_loader(), recipe, device="cpu")
    arguments: dict[str, Any] = {"folder": folder, "state_minutes": 0.0, "on_epoch": interrupt, "device": "cpu"}
    with contextlib.suppress(KeyboardInterrupt):
        train_classifier(nets[1], make_loader(), recipe, **arguments)
    again = train_classifier(nets[2], make_loader(), recipe, **arguments)
    same = all(
        torch.equal(a, b) for a, b in zip(nets[0].state_dict().values(), nets[2].state_dict().values(), strict=True)
    )
    return {"calls": calls, "same": same and plain(whole) == plain(again)}


def share_answers() -> dict[str, Any]:
    """What the first process says, errors included; and who takes part."""

    def refuse() -> Tensor:
        raise InputError(f"refused by {world()[0]}")

    try:
        run_on_main(refuse)
        message = ""
    except InputError as error:
        message = str(error)
    return {"world": world(), "all": gather(world()[0]), "main": run_on_main(lambda: world()[0]), "message": message}


def run_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    with start_processes("cpu"):
        return {
            "plain": train_plainly(),
            "lists": train_on_lists(),
            "norms": train_with_norms(),
            "unused": train_unused(),
            "statistics": collect(),
            "resume": resume(folder),
            "answers": share_answers(),
        }


if __name__ == "__main__":
    output = Path(sys.argv[1])
    torch.save(run_jobs(output.with_suffix(".states")), f"{output}.{world()[0]}")
