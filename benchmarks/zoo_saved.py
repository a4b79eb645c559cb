"""Prunes a random part of the zoo, saves it, loads it in a new process, and compares the outputs bit by bit.

    python -m benchmarks.zoo_saved --share 0.1 --output docs/results/zoo_saved.json

The new process builds the networks from their code with other weights, and knows nothing else than the files. The exit
code is 1 if an output differs, or anything was refused, crashed or hung.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.suites import SUITES, Case, randomise
from benchmarks.zoo import FAILURES, Job, Row, list_jobs, run_jobs, save_results, timed
from cleanai.evaluate import count_parameters
from cleanai.history import history_of
from cleanai.inputs import call_model, output_tensors
from cleanai.pruner import StructuredPruner
from cleanai.state import load_pruned, save_pruned

RATIO = 0.3
BAD = ("refused", *FAILURES)
Limits = dict[str, Any]


def save_network(case: Case, folder: Path) -> Iterator[Row]:
    """Prunes a network and writes it with the outputs it gives."""
    row: Row = {"stage": "pruning", "settings": {}}
    yield row
    options: dict[str, Any] = {"forward_fn": case.forward_fn, "output_transform": case.output_transform}
    pruned = StructuredPruner(case.model, case.inputs, "magnitude", RATIO, verify=False, **options).prune()
    row |= {"stage": "saving", "parameters": count_parameters(case.model), "kept": count_parameters(pruned)}
    folder.mkdir(parents=True)
    path, row["save_s"] = timed(lambda: save_pruned(pruned, folder / "pruned.safetensors"))
    row["mb"] = path.stat().st_size / 1e6
    save_file(_name_outputs(case, pruned), folder / "outputs.safetensors")
    yield {**row, "stage": "", "status": "verified", "message": ""}


def load_network(case: Case, folder: Path) -> Iterator[Row]:
    """Loads what `save_network` wrote into a network with other weights, and compares its outputs."""
    row: Row = {"stage": "loading", "settings": {}}
    yield row
    path = folder / "pruned.safetensors"
    model, row["load_s"] = timed(lambda: load_pruned(path, lambda: randomise(case.model, seed=1)))
    row["stage"] = "comparing"
    yield row
    ours, theirs = _name_outputs(case, model), load_file(folder / "outputs.safetensors")
    different = [name for name in theirs if not _is_equal(ours[name], theirs[name])]
    if not len(history_of(model)):
        different.append("its history")
    message = f"differs after loading: {', '.join(different)}" if different else ""
    yield {**row, "stage": "", "status": "wrong" if different else "verified", "message": message}


def _name_outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        output = call_model(model, case.inputs, case.forward_fn)
    tensors = output_tensors(output if case.output_transform is None else case.output_transform(output))
    return {f"output {number}": tensor.contiguous().clone() for number, tensor in enumerate(tensors)}


def _is_equal(ours: Tensor, theirs: Tensor) -> bool:
    same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return same and torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)


def save_networks(jobs: Sequence[Job], folder: Path, **limits: Any) -> Iterator[Row]:
    """Saves all networks below a folder, each in a process of its own."""
    for job in jobs:
        job.examine = partial(save_network, folder=folder / job.suite / job.name)
    return run_jobs(jobs, **limits)


def load_networks(folder: Path, limits: Limits) -> dict[str, Row]:
    """Loads all networks below a folder from one new process; gives their rows by suite and name."""
    command = [sys.executable, "-m", "benchmarks.zoo_saved", "--load", str(folder), json.dumps(limits)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {f"{row['suite']}/{row['name']}": row for row in rows}


def _load_here(folder: Path, limits: Limits) -> None:
    """The part of the new process: a line of JSON for each network."""
    names = [(path.parent.parent.name, path.parent.name) for path in sorted(folder.rglob("outputs.safetensors"))]
    entries = {suite: SUITES[suite]() for suite in {suite for suite, _ in names}}
    jobs = [
        Job(suite, name, entries[suite][name], partial(load_network, folder=folder / suite / name))
        for suite, name in names
    ]
    for row in run_jobs(jobs, **limits):
        print(json.dumps(row), flush=True)


def check_saved(jobs: Sequence[Job], **limits: Any) -> Iterator[Row]:
    """The rows of all networks, saved by this process and loaded by a new one."""
    with tempfile.TemporaryDirectory(prefix="zoo-saved-") as folder:
        saved = list(save_networks(jobs, Path(folder), **limits))
        loaded = load_networks(Path(folder), limits)
        for row in saved:
            yield {**row, **loaded.get(f"{row['suite']}/{row['name']}", {})}


def draw_share(suites: Sequence[str], share: float, seed: int) -> list[Job]:
    """A random share of each suite's networks."""
    return [
        job
        for suite in suites
        for job in list_jobs([suite], sample=max(1, round(share * len(SUITES[suite]()))), seed=seed)
    ]


def describe_row(row: Row) -> Row:
    """What of a row is kept in the results."""
    names = ("suite", "name", "status", "message", "parameters", "kept", "mb", "save_s", "load_s")
    return {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in names if name in row}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a share of the suites, prints what differs and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), default=["torchvision", "timm", "transformers"])
    parser.add_argument("--share", type=float, default=0.1, help="of each suite, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="networks at the same time")
    parser.add_argument("--limit", type=float, default=300, help="seconds per network")
    parser.add_argument("--memory", type=float, default=12, help="GB per network")
    parser.add_argument("--output", type=Path, help="a JSON file, which is replaced")
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "LIMITS"), help="the part of the new process")
    args = parser.parse_args(arguments)
    if args.load:
        _load_here(Path(args.load[0]), json.loads(args.load[1]))
        return 0
    rows = []
    for row in check_saved(
        draw_share(args.suite, args.share, args.seed), limit=args.limit, memory=args.memory, parallel=args.jobs
    ):
        rows.append(describe_row(row))
        print(f"{row['suite']}/{row['name']:42} {row['status']:9} {row['message'][:200]}", flush=True)
    print(f"{sum(row['status'] == 'verified' for row in rows)} of {len(rows)} give the same outputs after loading")
    if args.output:
        command = f"python -m benchmarks.zoo_saved {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
        save_results(args.output, {"command": command, "rows": {f"{row['suite']}/{row['name']}": row for row in rows}})
    return int(any(row["status"] in BAD for row in rows))


if __name__ == "__main__":
    sys.exit(main())
