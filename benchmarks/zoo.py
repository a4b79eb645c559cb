"""Prunes whole model libraries, proves every result, and says what each network costs and what stays frozen.

    python -m benchmarks.zoo --suite torchvision timm [--only 'resnet*'] [--jobs 2] [--output results.json]
    python -m benchmarks.zoo --suite timm --sample 10 --seed 3 --copies

Every network runs in a process of its own with a limit on time and memory: pruned in three settings, each proven equal
to the masked original. ``--copies`` also runs, trains, copies and exports what comes out. The exit code is 1 if
anything is wrong, crashed, hung or unusable; a network that CleanAI refuses with a reason is none of these.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from math import isfinite
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suites import SUITES, Case, Entry, randomise, stack_inputs
from cleanai.coupling import couple_channels
from cleanai.errors import CleanAIError
from cleanai.evaluate import count_macs, count_parameters
from cleanai.inputs import call_model, output_tensors
from cleanai.pruner import StructuredPruner
from cleanai.slicing import slice_model
from cleanai.trace import trace_model
from cleanai.verify import verify_pruning

SETTINGS: dict[str, dict[str, Any]] = {
    "local 0.3": {"pruning_ratio": 0.3},
    "local 0.65": {"pruning_ratio": 0.65},
    "global 0.5": {"pruning_ratio": 0.5, "global_pruning": True},
}
# From best to worst: a network is as bad as the worst of its settings.
STATUSES = ("verified", "refused", "unusable", "hung", "crashed", "wrong")
FAILURES = STATUSES[2:]
Row = dict[str, Any]


class TimeUp(BaseException):
    """The time limit; no ``except Exception`` on the way may catch it."""


# ---------------------------------------------------------------------------------------------------- one network


def examine(case: Case, *, copies: bool = False, settings: Sequence[str] = tuple(SETTINGS)) -> Iterator[Row]:
    """What is known of a network so far, again and again until everything is: a killed process has told the rest."""
    options: dict[str, Any] = {"forward_fn": case.forward_fn, "output_transform": case.output_transform}
    model = case.model
    row: Row = {"stage": "the original's forward", "settings": {}}
    outputs, row["forward_s"] = _measure_forward(case)
    row["outputs"] = sum(tensor.numel() for tensor in outputs if tensor.is_floating_point())
    row["parameters"] = count_parameters(model)
    row["macs"] = count_macs(model, case.inputs, case.forward_fn)
    yield row
    slicing = []
    pruned: nn.Module | None = None
    for name in settings:
        row["stage"] = f"{name}: analysis"
        result: Row = {}
        row["settings"][name] = result
        try:
            pruner, analysis_s = timed(
                lambda name=name: StructuredPruner(
                    model, case.inputs, importance="magnitude", verify=False, **SETTINGS[name], **options
                )
            )
            row["stage"] = f"{name}: plan"
            plan, result["plan_s"] = timed(pruner.make_plan)
            row["stage"] = f"{name}: slicing"
            smaller = copy.deepcopy(model)
            _, slicing_s = timed(lambda smaller=smaller, plan=plan: slice_model(smaller, plan))
            clones, cloning_s = timed(lambda smaller=smaller: [p.detach().clone() for p in smaller.parameters()])
            del clones
            slicing.append((slicing_s, cloning_s))
            result["parameters"] = count_parameters(smaller)
            row["stage"] = f"{name}: MACs"
            result["macs"] = count_macs(smaller, case.inputs, case.forward_fn)
            row["stage"] = f"{name}: proof"
            proof = verify_pruning(model, smaller, plan, case.inputs, **options)
            error_size = (
                proof.max_relative_error if isfinite(proof.max_relative_error) else None
            )  # JSON knows no infinity
            result |= {"error": error_size, "dtype": proof.dtype, "proof_s": proof.seconds}
            result["status"] = "verified" if proof.passed else "wrong"
            result["message"] = "" if proof.passed else str(proof)
        except CleanAIError as error:
            result |= {"status": "refused", "message": f"{type(error).__name__}: {error}"}
            continue
        except (Exception, TimeUp) as error:
            hung = isinstance(error, TimeUp)
            result |= {"status": "hung" if hung else "crashed", "message": _describe(error)}
            result["traceback"] = traceback.format_exc()[-4000:]
            if hung:
                break
            continue
        if pruned is None:
            pruned = smaller
            row |= _describe_analysis(model, pruner)
            row |= _measure_analysis(case, analysis_s)
        yield row
    if slicing:
        row["slicing_s"] = statistics.median(seconds for seconds, _ in slicing)
        row["slicing_multiple"] = statistics.median(seconds / max(cloning, 1e-9) for seconds, cloning in slicing)
    if copies and pruned is not None:
        row["stage"] = "copies"
        yield row
        row["copies"] = check_copies(case, pruned)
    row["stage"] = ""
    yield row


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the seconds it took."""
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def _median_seconds(action: Callable[[], Any], enough: float = 1.0) -> float:
    """The median of five calls, of fewer where they are slow."""
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < enough:
        seconds.append(timed(action)[1])
    return statistics.median(seconds)


def _measure_forward(case: Case) -> tuple[list[Tensor], float]:
    def forward() -> Any:
        with torch.no_grad():
            return call_model(case.model, case.inputs, case.forward_fn)

    output = forward()  # the first one warms up
    if case.output_transform is not None:
        output = case.output_transform(output)
    return output_tensors(output), _median_seconds(forward)


def _measure_analysis(case: Case, analysis_s: float) -> Row:
    """The time of the steps of the analysis, which has run before: everything is warm."""
    options: dict[str, Any] = {"forward_fn": case.forward_fn, "output_transform": case.output_transform}
    trace = trace_model(case.model, case.inputs, **options)
    trace_s = _median_seconds(lambda: trace_model(case.model, case.inputs, **options))
    coupling_s = _median_seconds(lambda: couple_channels(trace))
    return {
        "method": trace.method,
        "operations": len(trace.operations),
        "trace_s": trace_s,
        "coupling_s": coupling_s,
        "fitting_s": max(0.0, analysis_s - trace_s - coupling_s),
    }


def _describe_analysis(model: nn.Module, pruner: StructuredPruner) -> Row:
    """What can be pruned, and what is frozen for which reason."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    reached = {member.parameter for group in pruner.groups for member in group.members}
    prunable = sum(sizes.get(name, 0) for name in reached) / max(1, sum(sizes.values()))
    return {
        "groups": len(pruner.groups),
        "prunable_share": prunable,
        "frozen_share": 1 - prunable,
        "frozen": [
            {"layers": list(frozen.layers), "channels": frozen.channels, "reason": frozen.reason}
            for frozen in pruner.frozen
        ],
        "warnings": pruner.warnings,
    }


def _describe(error: BaseException) -> str:
    """An error and the innermost place of ours on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}cleanai{os.sep}" in frame.filename]
    place = f" (at {Path(ours[-1].filename).name}:{ours[-1].lineno}, {ours[-1].name})" if ours else ""
    return f"{type(error).__name__}: {str(error)[:500]}{place}"


# --------------------------------------------------------------------------------------------------------- copies


def check_copies(case: Case, pruned: nn.Module) -> dict[str, str]:
    """What can be done with a pruned network: "ok", "n/a" where it cannot be done with the original, or the error."""
    results = {}
    for name, check in CHECKS.items():
        try:
            check(case, copy.deepcopy(pruned))
            results[name] = "ok"
        except Exception as error:
            results[name] = _describe(error)
            try:
                check(case, copy.deepcopy(case.model))
            except Exception:
                results[name] = "n/a"
    return results


def _call(case: Case, model: nn.Module, inputs: Any) -> list[Tensor]:
    output = call_model(model, inputs, case.forward_fn)
    return output_tensors(output if case.output_transform is None else case.output_transform(output))


def _check_forward(batch: int) -> Callable[[Case, nn.Module], None]:
    def check(case: Case, model: nn.Module) -> None:
        inputs = stack_inputs(case.inputs, batch)
        with torch.no_grad():
            ours, theirs = _call(case, model, inputs), _call(case, case.model, inputs)
        if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
            raise ValueError(f"outputs have the shapes {[tuple(t.shape) for t in ours]}, not the original's")

    return check


def _check_backward(case: Case, model: nn.Module) -> None:
    outputs = [tensor for tensor in _call(case, model, case.inputs) if tensor.requires_grad]
    torch.stack([tensor.abs().square().sum() for tensor in outputs]).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            raise ValueError(f"the gradient of {name} has the shape {tuple(parameter.grad.shape)}")


def _check_state(case: Case, model: nn.Module) -> None:
    other = randomise(copy.deepcopy(model), seed=1)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        _compare(_call(case, other, case.inputs), _call(case, model, case.inputs))


def _positional(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def _check_export(case: Case, model: nn.Module) -> None:
    args, kwargs = _positional(case.inputs)
    exported = torch.export.export(model, args, kwargs).module()
    with torch.no_grad():
        _compare(output_tensors(exported(*args, **kwargs)), output_tensors(model(*args, **kwargs)), 1e-3)


def _check_onnx(case: Case, model: nn.Module) -> None:
    args, kwargs = _positional(case.inputs)
    torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)


def _compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if b.is_floating_point() and b.numel():
            difference = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
            if not difference <= tolerance:
                raise ValueError(f"its output differs by {difference:.1e}")


CHECKS: dict[str, Callable[[Case, nn.Module], None]] = {
    "batch 1": _check_forward(1),
    "batch 2": _check_forward(2),
    "backward": _check_backward,
    "state_dict": _check_state,
    "export": _check_export,
    "onnx": _check_onnx,
}

# ------------------------------------------------------------------------------------------------------ processes


@dataclass
class Job:
    """A network that waits or runs: its process, and the last it told."""

    suite: str
    name: str
    entry: Entry
    examine: Callable[..., Iterator[Row]] = examine
    row: Row = field(default_factory=lambda: {"stage": "building", "settings": {}})
    process: Any = None
    start: float = 0.0


def run_jobs(jobs: Sequence[Job], *, limit: float, memory: float, parallel: int, **options: Any) -> Iterator[Row]:
    """The finished rows of all networks, as they come: ``limit`` in seconds, ``memory`` in GB, others for `examine`."""
    context = multiprocessing.get_context("fork")  # the libraries are imported once, by the parent
    count_macs(nn.Linear(1, 1), torch.zeros(1, 1))  # its first call imports what takes longer than most networks
    waiting, running = list(jobs)[::-1], dict[connection.Connection, Job]()
    while waiting or running:
        while waiting and len(running) < parallel:
            job = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            job.process = context.Process(target=_work, args=(job, theirs, limit, memory, options))
            job.process.start()
            job.start = time.perf_counter()
            theirs.close()  # so that the end of the process ends the pipe
            running[ours] = job
        for pipe in connection.wait(list(running), timeout=1.0):
            assert isinstance(pipe, connection.Connection)
            try:
                running[pipe].row = pipe.recv()
            except EOFError:
                job = running.pop(pipe)
                job.process.join()
                yield _finish(job)
        for job in running.values():
            if time.perf_counter() - job.start > 1.1 * limit + 10:  # it did not even notice its alarm
                job.row |= {"status": "hung", "message": f"killed during {job.row['stage']}"}
                job.process.kill()


def _work(job: Job, pipe: connection.Connection, limit: float, memory: float, options: dict[str, Any]) -> None:
    """What a process does with its network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _limit_memory(memory)
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    row: Row = {"stage": "building", "settings": {}}
    try:
        torch.manual_seed(0)
        for row in job.examine(job.entry(), **options):
            pipe.send(row)
    except (Exception, TimeUp) as error:
        row["status"] = "hung" if isinstance(error, TimeUp) else "crashed"
        row |= {"message": f"{row['stage']}: {_describe(error)}", "traceback": traceback.format_exc()[-4000:]}
    signal.setitimer(signal.ITIMER_REAL, 0)
    row["seconds"] = time.perf_counter() - start
    row["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    pipe.send(row)


def _limit_memory(gigabytes: float) -> None:
    """A network that is too large fails by itself and takes nothing else down; libraries are no part of the limit."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ring(*_: Any) -> None:
    raise TimeUp("the time is up")


def _finish(job: Job) -> Row:
    """The row of an ended process, with its verdict."""
    row: Row = {"suite": job.suite, "name": job.name, **job.row}
    if row["stage"] and "status" not in row:
        row |= {"status": "crashed", "message": f"died during {row['stage']} (exit code {job.process.exitcode})"}
    return judge(row)


def judge(row: Row) -> Row:
    """A row with its verdict: the worst that is known of it, and where that was."""
    found = [(setting["status"], name, setting["message"]) for name, setting in row["settings"].items() if setting]
    found += [(row["status"], "", row["message"])] if "status" in row else []
    failed = {name: text for name, text in row.get("copies", {}).items() if text not in ("ok", "n/a")}
    found += [("unusable", name, text) for name, text in failed.items()]
    if not row.get("outputs", 1):
        found.append(("crashed", "", "there is nothing to compare: the output is empty"))
    status, where, message = max(found, key=lambda each: STATUSES.index(each[0]))
    return {**row, "status": status, "message": f"{where}: {message}".removeprefix(": ") if message else ""}


# --------------------------------------------------------------------------------------------------------- results

_HEADER = (
    f"{'network':42} {'status':9} {'prunable':>8} {'groups':>6} {'params':>7} {'MACs':>7} {'trace':>7} {'couple':>7} "
    f"{'fit':>7} {'×forward':>8} {'×clone':>6} {'memory':>8} {'total':>6}  kept at local 0.3; seconds; MB"
)


def format_row(row: Row) -> str:
    """One line of the table."""
    first = row["settings"].get("local 0.3", {})

    def cell(value: float | None, style: str) -> str:
        return format("–", ">" + style.split(".")[0]) if value is None else format(value, style)

    def share(key: str) -> float | None:
        return first[key] / row[key] if first.get(key) and row.get(key) else None

    measured = [(row.get(f"{step}_s"), "7.2f") for step in ("trace", "coupling", "fitting")]
    measured += [(analysis_multiple(row), "8.1f"), (row.get("slicing_multiple"), "6.1f")]
    measured += [(row.get("memory_mb"), "8.0f"), (row.get("seconds"), "6.0f")]
    return (
        f"{row['suite'] + '/' + row['name']:42} {row['status']:9} {cell(row.get('prunable_share'), '8.2f')} "
        f"{cell(row.get('groups'), '6')} {cell(share('parameters'), '7.2f')} {cell(share('macs'), '7.2f')} "
        f"{' '.join(cell(value, style) for value, style in measured)}  {row['message'][:160]}"
    )


def analysis_multiple(row: Row) -> float | None:
    """Trace and coupling as a multiple of one forward."""
    return (row["trace_s"] + row["coupling_s"]) / row["forward_s"] if "trace_s" in row else None


def summarise(suite: str, rows: Sequence[Row]) -> str:
    """A suite in one line."""
    counts = ", ".join(f"{sum(row['status'] == status for row in rows)} {status}" for status in STATUSES)
    shares = [row["prunable_share"] for row in rows if "prunable_share" in row]
    multiples = [value for row in rows if (value := analysis_multiple(row)) is not None]
    means = (
        f"mean prunable share {statistics.mean(shares):.3f}, trace + coupling median {statistics.median(multiples):.1f}"
        " × forward"
        if shares and multiples
        else ""
    )
    return f"{suite}: {len(rows)} networks: {counts}; {means}"


def load_results(path: Path) -> dict[str, Any]:
    """What earlier runs have measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}


def save_results(path: Path, results: dict[str, Any]) -> None:
    """Writes all rows, and on what they were measured."""
    packages = ("torch", "torchvision", "timm", "transformers", "cleanai")
    results["machine"] = _processor()
    results["versions"] = {"python": platform.python_version(), **{name: _version(name) for name in packages}}
    results["measured"] = time.strftime("%Y-%m-%d")
    results["rows"] = dict(sorted(results["rows"].items()))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


# ------------------------------------------------------------------------------------------------------------ main


def list_jobs(suites: Sequence[str], only: Sequence[str] = (), sample: int | None = None, seed: int = 0) -> list[Job]:
    """The networks of some suites: those that match a pattern, and a random part of them on request."""
    jobs = []
    for suite in suites:
        entries = SUITES[suite]()
        names = [name for name in entries if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)]
        if sample is not None and sample < len(names):
            names = sorted(random.Random(f"{suite} {seed}").sample(names, sample))
        jobs += [Job(suite, name, entries[name]) for name in names]
    return jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suites, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), default=["torchvision"])
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--sample", type=int, metavar="K", help="only K of each suite, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--copies", action="store_true", help="run, train, copy and export the pruned network too")
    parser.add_argument("--jobs", type=int, default=1, help="networks at the same time")
    parser.add_argument("--limit", type=float, default=300, help="seconds per network")
    parser.add_argument("--memory", type=float, default=12, help="GB per network")
    parser.add_argument("--output", type=Path, help="a JSON file; rows that are in it already are replaced")
    parser.add_argument("--missing", action="store_true", help="only networks that the output does not have yet")
    args = parser.parse_args(arguments)
    jobs = list_jobs(args.suite, args.only, args.sample, args.seed)
    results = load_results(args.output) if args.output else {"rows": {}}
    if args.missing:
        jobs = [job for job in jobs if f"{job.suite}/{job.name}" not in results["rows"]]
    print(_HEADER, flush=True)
    rows = []
    limits = {"limit": args.limit, "memory": args.memory, "parallel": args.jobs}
    for row in run_jobs(jobs, **limits, copies=args.copies, settings=args.settings):
        print(format_row(row), flush=True)
        rows.append(row)
        results["rows"][f"{row['suite']}/{row['name']}"] = row
        if args.output:
            save_results(args.output, results)
    print()
    for suite in args.suite:
        print(summarise(suite, [row for row in rows if row["suite"] == suite]))
    return int(any(row["status"] in FAILURES for row in rows))


if __name__ == "__main__":
    sys.exit(main())
