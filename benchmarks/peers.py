"""CleanAI beside the structured-pruning tools that the package index has: correct cuts, accuracy and speed.

    python -m benchmarks.peers                                    # everything that is not in the results yet
    python -m benchmarks.peers --peers torch-pruning --parts correctness --networks flip resnet18 --output x.json
    python -m benchmarks.peers_page                               # the pages, from the results

Every peer runs in an environment of its own, made in CleanAI's cache folder: a virtual environment that borrows the
project's packages (torch is not downloaded again) and has the peer in the version that `TOOLS` names. A worker process
in it (`benchmarks.peers_worker`) gets a job as JSON and gives back JSON and tensors; CleanAI runs the same way. What
has been measured is in the output and is not measured again; delete an entry to repeat it.

- ``correctness``: each tool removes 30 % and 60 % of the channels of each layer by L2 magnitude, and
  `benchmarks.peers_oracle` judges the network that comes out. A network counts by the worse of the two.
- ``accuracy``: ResNet-20 on CIFAR-10 at half its MACs by each tool's criteria, as it comes out and with BatchNorm
  statistics taken anew by hand. CleanAI's own numbers are in `docs/results/accuracy.csv`. Needs ``CLEANAI_DATA``.
- ``speed``: analysis and slicing as a multiple of CleanAI's, in one process, in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.accuracy import describe_run
from benchmarks.peers_nets import NETWORKS, build_case
from benchmarks.peers_oracle import judge
from cleanai.data import cache_root

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "peers.json"
RATIOS = (0.3, 0.6)
SECONDS = 60  # of processor time for one cut, so that other work on the machine takes nothing from it
WAIT = 300  # seconds of the clock for one cut, and what else a worker does
BATCH = 12  # cuts of one worker
# A network counts by the first of these that any of its ratios has: what one ratio leaves alone, another may cut.
OUTCOMES = ("wrong", "crash", "time-out", "equal", "refused", "left alone")
PARTS = ("correctness", "accuracy", "speed")
CRITERIA = {
    "torch-pruning": ("l1", "l2", "l2 isomorphic", "l2 local", "lamp", "fpgm", "bn_scale", "taylor"),
    "fasterai": ("large_final",),
}
# fasterai calls Torch-Pruning; torch-kirigami's candidates for ResNet-50 alone took it twenty minutes.
TIMED = {"torch-pruning": ("resnet50", "vit_b_16", "densenet201"), "torch-kirigami": ("resnet50",)}
FIXED = ("torch", "torchvision", "numpy", "scipy", "pandas", "safetensors")
Results = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A tool of the comparison: what is installed, its distribution, and how it is called, in two languages."""

    requirements: tuple[str, ...]
    distribution: str
    title: str
    called: Mapping[str, str]
    runs: bool = True  # False: with the torch of today it does not, which is tried on one network and written down


TOOLS = {
    "cleanai": Tool((), "cleanai", "CleanAI", {"en": "as in its README", "tr": "README'sindeki gibi"}),
    "torch-pruning": Tool(
        ("torch-pruning==1.6.1",),
        "torch-pruning",
        "Torch-Pruning",
        {
            "en": "`BasePruner` with `GroupMagnitudeImportance(p=2)` as in its README; output layers in "
            "`ignored_layers`, heads in `num_heads`; sizes that it leaves to the user set as in its examples",
            "tr": "README'sindeki gibi `BasePruner` ve `GroupMagnitudeImportance(p=2)`; çıktı katmanları "
            "`ignored_layers`, başlıklar `num_heads` ile; kullanıcıya bıraktığı boyutlar örneklerindeki gibi",
        },
    ),
    "torch-kirigami": Tool(
        ("torch-kirigami==0.2.1",),
        "torch-kirigami",
        "torch-kirigami",
        {
            "en": "`Greedy(GroupMagnitude(p=2))` as in its README, with a `ChannelRatio`; where it cannot be met, "
            "with a `ParameterBudget`, or with the number of parameters that it says it can reach",
            "tr": "README'sindeki gibi `Greedy(GroupMagnitude(p=2))`, bir `ChannelRatio` ile; karşılanamadığı yerde "
            "bir `ParameterBudget` ya da ulaşabildiğini söylediği parametre sayısı ile",
        },
    ),
    "fasterai": Tool(
        ("fasterai==0.4.1", "torch-pruning==1.6.1"),
        "fasterai",
        "fasterai",
        {
            "en": '`Pruner(…, "local", large_final)` as in its tutorial, which runs Torch-Pruning; output layers that '
            "are not linear named to it",
            "tr": 'Öğreticisindeki gibi `Pruner(…, "local", large_final)`; içinde Torch-Pruning çalışır; doğrusal '
            "olmayan çıktı katmanları ona söylenir",
        },
    ),
    "nni": Tool(
        ("nni==3.0", "tensorboard", "setuptools<80"),
        "nni",
        "NNI",
        {"en": "`L2NormPruner`, then `ModelSpeedup`", "tr": "`L2NormPruner`, ardından `ModelSpeedup`"},
        runs=False,
    ),
    "only-train-once": Tool(
        ("only-train-once==3.0.1",),
        "only-train-once",
        "OTO",
        {"en": "`OTO(model, dummy_input)`", "tr": "`OTO(model, dummy_input)`"},
        runs=False,
    ),
}


# ------------------------------------------------------------------------------------------------------ environments


def prepare_environment(name: str) -> Path:
    """The Python of a tool's own environment, which is made on the first call; CleanAI's is this one."""
    tool = TOOLS[name]
    if not tool.requirements:
        return Path(sys.executable)
    folder = cache_root() / "peers" / name
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    wanted = "\n".join(tool.requirements)
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making an environment for {tool.title} in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "borrowed.pth").write_text("\n".join(sorted(own)) + "\n", encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{each}=={_version(each)}\n" for each in FIXED), encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-warn-conflicts", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", str(constraints), *tool.requirements], check=True)
    done.write_text(wanted, encoding="utf-8")
    return python


def _version(distribution: str) -> str:
    from importlib import metadata

    return metadata.version(distribution).partition("+")[0]


def ask_version(name: str, python: Path) -> str:
    """Which version of a tool its environment has."""
    code = f"from importlib import metadata; print(metadata.version({TOOLS[name].distribution!r}))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run_worker(python: Path, job: Mapping[str, Any], folder: Path, wait: float = WAIT) -> dict[str, Any]:
    """The result of a job; a worker that ends without one has crashed, or ran too long. ``folder`` is for its files."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [str(python), "-m", "benchmarks.peers_worker", str(folder / "job.json"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=wait, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "time-out", "message": f"{wait:g} s"}
    if not (folder / "result.json").is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"status": "crash", "stage": "worker", "message": last[:300]}
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------- correctness


def examine(tool: str, cuts: Sequence[tuple[str, float]], python: Path) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What a tool makes of networks at ratios, judged; a cut that takes the worker's process with it is a crash."""
    while cuts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job = {"task": "correctness", "tool": tool, "cuts": list(cuts), "limit_s": SECONDS}
            end = run_worker(python, job, folder, WAIT * len(cuts))
            told = 0
            for number, (network, ratio) in enumerate(cuts):
                file = folder / f"{number}.json"
                if not file.is_file():
                    break
                tensors = file.with_suffix(".safetensors")
                result = json.loads(file.read_text(encoding="utf-8"))
                yield network, ratio, describe_cut(network, result, load_file(tensors) if tensors.is_file() else {})
                told += 1
        if told < len(cuts):
            yield *cuts[told], end
            told += 1
        cuts = cuts[told:]


def describe_cut(network: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on what a worker gave back."""
    if result["status"] != "cut":
        return {key: result[key] for key in ("status", "stage", "message", "at") if result.get(key)}
    case = build_case(network)
    state = {name.removeprefix("state/"): each for name, each in tensors.items() if name.startswith("state/")}
    count = len(tensors) - len(state)
    verdict = judge(case.model, case.inputs, state, [tensors[f"output/{number}"] for number in range(count)])
    original = sum(parameter.numel() for parameter in case.model.parameters())
    row = {key: value for key, value in asdict(verdict).items() if value not in (None, "")}
    if verdict.error is not None:
        row["error"] = float(f"{verdict.error:.2g}") if math.isfinite(verdict.error) else None
    row["parameters_kept"] = round(result["parameters"] / original, 4)
    if verdict.status == "equal" and result["parameters"] >= original:
        row["status"] = "left alone"
    if tied_names(case.model) and not result["tied"]:
        row["note"] = "; ".join(filter(None, (row.get("note"), "the tied weights are two now")))
    return row


def tied_names(model: Any) -> bool:
    """Whether two names share a parameter."""
    return len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))


def merge_outcomes(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How a network counts: by the worst of its ratios; refused or left alone only where no ratio removed anything.

    Example:
        >>> merge_outcomes({"0.3": {"status": "equal"}, "0.6": {"status": "crash"}})
        'crash'
    """
    return min((row["status"] for row in rows.values()), key=OUTCOMES.index)


def measure_correctness(
    tools: Sequence[str], networks: Sequence[str], results: Results
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """What is missing in the results: (tool, network, ratio, row); the hard networks of all tools come first."""
    for hard in (True, False):
        for tool in tools:
            chosen = networks if TOOLS[tool].runs else ["resnet18"]
            known = results["correctness"].setdefault(tool, {})
            missing = [
                (network, ratio)
                for network in chosen
                for ratio in RATIOS
                if NETWORKS[network].is_hard == hard and str(ratio) not in known.get(network, {})
            ]
            size = BATCH if hard else len(RATIOS)
            for start in range(0, len(missing), size):
                for network, ratio, row in examine(tool, missing[start : start + size], prepare_environment(tool)):
                    known.setdefault(network, {})[str(ratio)] = row
                    yield tool, network, str(ratio), row


# ---------------------------------------------------------------------------------------------------------- the rest


def run_alone(tool: str, job: Mapping[str, Any], wait: float = 3600) -> dict[str, Any]:
    """A job that gives numbers only, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        return run_worker(prepare_environment(tool), job, Path(name), wait)


def measure_accuracy(tools: Sequence[str], results: Results) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What is missing in the results: (tool, criterion, row), for ResNet-20 at half its MACs."""
    for tool in tools:
        known = results["accuracy"].setdefault(tool, {}) if tool in CRITERIA else {}
        for criterion in CRITERIA.get(tool, ()):
            if criterion not in known:
                job = {"task": "accuracy", "tool": tool, "criterion": criterion, "model": "resnet20", "keep": 0.5}
                known[criterion] = run_alone(tool, job)
                yield tool, criterion, known[criterion]


def measure_speed(tools: Sequence[str], rounds: int, results: Results) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What is missing in the results: (tool, model, row)."""
    for tool in tools:
        known = results["speed"].setdefault(tool, {}) if tool in TIMED else {}
        for model in TIMED.get(tool, ()):
            if model in known:
                continue
            job = {"task": "speed", "tool": tool, "model": model, "rounds": rounds}
            known[model] = run_alone(tool, job)
            yield tool, model, known[model]


def read_results(path: Path) -> Results:
    """What has been measured so far."""
    empty: Results = {part: {} for part in PARTS} | {"versions_of_tools": {}}
    return {**empty, **(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})}


def save_results(path: Path, results: Results) -> None:
    """Writes beside the file, then renames."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=list(TOOLS), default=list(TOOLS), help="default: all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3, help="for the speed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    results = read_results(args.output)
    for tool in args.peers:
        results["versions_of_tools"][tool] = ask_version(tool, prepare_environment(tool))
    results |= describe_run() | {"ratios": list(RATIOS), "seconds": SECONDS}
    steps = {
        "correctness": lambda: measure_correctness(args.peers, args.networks, results),
        "accuracy": lambda: measure_accuracy(args.peers, results),
        "speed": lambda: measure_speed(args.peers, args.rounds, results),
    }
    for part in args.parts:
        for *labels, row in steps[part]():
            save_results(args.output, results)
            print(part, *labels, json.dumps(row, ensure_ascii=False)[:200], flush=True)
    save_results(args.output, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
