"""An experiment from end to end: its stages in order, its measurements side by side, its reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cleanai
from cleanai.checks import suggest_names
from cleanai.distributed import run_on_main, start_processes, world
from cleanai.errors import InputError
from cleanai.evaluate import Latency
from cleanai.experiments.checkpoints import Names, load_checkpoint
from cleanai.experiments.config import STAGES, ExperimentConfig, Stage
from cleanai.experiments.document import method_document, scenario_document
from cleanai.experiments.pages import Document, save_document, save_figures
from cleanai.experiments.phrases import TURKISH
from cleanai.experiments.results import (
    FINETUNED,
    ORIGINAL,
    PRUNED,
    DataFacts,
    Environment,
    ExperimentResults,
    MethodResult,
    Preparation,
    PruneResult,
    TuneResult,
)
from cleanai.experiments.scenarios import Method, find_method, make_config, write_command
from cleanai.experiments.splits import settle_data
from cleanai.experiments.stages import (
    check_recipes,
    finetune_model,
    prepare_model,
    prune_model,
    stage_metrics,
)
from cleanai.experiments.subjects import find_files, sees_training_images
from cleanai.experiments.workspace import Workspace, find_device
from cleanai.isolation import preserve_random_state
from cleanai.latency import time_in_turns
from cleanai.narrator import Narrator
from cleanai.serialize import write_text

LATENCY_ROUNDS = 5
SEEN = "the first weights were trained on all training images, those for validation and calibration included"
NOT_TRAINED = "the data has no training images: nothing was trained, neither before nor after pruning"


def run_experiment(
    scenario: str | ExperimentConfig = "TS1",
    *,
    profile: str = "full",
    stage: Stage = "report",
    output: str | Path = ".",
    overwrite: bool = False,
    prepared: str | Path | None = None,
    documents: bool = True,
    silent: bool = False,
    **settings: Any,
) -> ExperimentResults | None:
    """Runs a scenario up to a stage and gives its results; what was finished before is not done again.

    An interrupted run goes on when it is started again, and ends with the same numbers on a CPU. Under ``torchrun``
    all processes call this; the first one writes.

    Args:
        scenario: "TS1" … "TS4", or a whole configuration, to which ``profile`` and ``settings`` add nothing.
        profile: "full", "quick" (a smaller network or fewer images) or "smoke" (seconds, on scikit-learn's digits).
        stage: "prepare", "prune", "finetune" or "report": the last one to run.
        output: the folder that gets ``checkpoints/`` and ``reports/``.
        overwrite: do everything anew that this run covers.
        prepared: the output folder of an earlier experiment whose preparation is used.
        documents: write PDF, HTML, JSON and CSV in the stage "report".
        silent: say nothing.
        settings: of `ExperimentConfig`, such as ``pruning_ratio=0.3``.

    Returns:
        The results, after the stage "report"; None before.

    Raises:
        InputError: an unknown scenario, profile, stage or setting, a value that cannot be used, or a folder with the
            results of other settings.
        DataMissingError: data or weights are not there; the message says how to get them.

    Example:
        >>> results = run_experiment("TS1", profile="smoke", output="smoke")  # doctest: +SKIP
        >>> run_experiment("TS1", pruning_ratio=2)
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: pruning_ratio is 2; it must be at least 0 and below 1
    """
    if isinstance(scenario, ExperimentConfig):
        if settings or profile != "full":
            raise InputError("run_experiment: with a configuration, set everything in it (config.replace(...)).")
        config = scenario
    else:
        config = make_config(scenario, profile, **settings)
    if stage not in STAGES:
        hint = suggest_names(stage, STAGES) or "."
        raise InputError(f"There is no stage {stage!r}; there are {', '.join(STAGES)}{hint}")
    methods = [find_method(name) for name in config.methods]
    folder = Path(output)
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        raise InputError(f"The output folder cannot be {folder}: a file is in its place.")
    check_recipes(config)
    device = find_device(config.device)
    with start_processes(device.type), preserve_random_state():
        config = run_on_main(lambda: settle_data(config))
        run_on_main(lambda: find_files(config))
        narrator = Narrator(config.language, TURKISH, silent=silent or world()[0] > 0)
        space = Workspace(config, folder, narrator, Path(prepared) if prepared is not None else None, overwrite)
        results = _run_stages(space, methods, STAGES[: STAGES.index(stage) + 1])
        if results is not None:
            narrator.say("\n{results}\n", results=results)
        if results is not None and documents:
            with narrator.step("Writing the reports"):
                paths = run_on_main(lambda: write_reports(results, folder))
            for path in paths:
                if path.suffix not in (".svg", ".png"):
                    narrator.say("  {path}", path=path)
        narrator.say(
            "All numbers were measured in this experiment; this call took {seconds} s.", seconds=narrator.elapsed()
        )
        return results


def _run_stages(space: Workspace, methods: Sequence[Method], stages: Sequence[Stage]) -> ExperimentResults | None:
    config, narrator = space.config, space.narrator
    narrator.say("{command}", command=write_command(config))
    names = space.names
    run_on_main(lambda: config.save(space.output / names.report("_config.json")))
    preparation = prepare_model(space)
    pruned = {method.name: prune_model(space, method, preparation) for method in methods if "prune" in stages}
    tuned = {
        method.name: finetune_model(space, method, pruned[method.name]) for method in methods if "finetune" in stages
    }
    if "report" not in stages:
        return None
    return run_on_main(lambda: _collect_results(space, methods, preparation, pruned, tuned))


# ------------------------------------------------------------------------------------------------- collecting metrics


def _collect_results(
    space: Workspace,
    methods: Sequence[Method],
    preparation: Preparation,
    pruned: Mapping[str, PruneResult],
    tuned: Mapping[str, TuneResult | None],
) -> ExperimentResults:
    splits = space.splits
    latencies: dict[tuple[str, str], Latency] = {}
    if space.config.latency_seconds:
        with space.narrator.step("Timing all models in turn"):
            latencies = _time_models(space, methods, tuned)
    original_latency = latencies.get(("", ORIGINAL))
    found = {}
    for method in methods:
        metrics = {
            stage: dataclasses.replace(measured, latency=latencies.get((method.name, stage), original_latency))
            for stage, measured in stage_metrics(pruned[method.name], tuned[method.name]).items()
        }
        found[method.name] = _join(method, pruned[method.name], tuned[method.name], metrics)
    original = dataclasses.replace(preparation.after.metrics, latency=original_latency)
    warnings = [*splits.notes, *([] if space.trains else [NOT_TRAINED])]
    warnings += [SEEN] if space.trains and sees_training_images(space.config) else []
    return ExperimentResults(
        name=space.names.experiment,
        config=space.config,
        data=DataFacts(
            name=splits.title,
            classes=splits.classes,
            train=_count(splits.train),
            calibration=min(
                _count(splits.calibration), space.config.calibration_batches * space.config.calibration_batch_size
            ),
            validation=_count(splits.validation),
            test=original.samples or 0,
            note="; ".join(splits.notes),
        ),
        environment=describe_environment(space),
        preparation=dataclasses.replace(preparation, after=dataclasses.replace(preparation.after, metrics=original)),
        methods=found,
        warnings=list(dict.fromkeys(warnings)),
    )


def _join(method: Method, pruned: PruneResult, tuned: TuneResult | None, metrics: dict[str, Any]) -> MethodResult:
    report = dataclasses.replace(pruned.report, metrics=metrics, history=tuned.history if tuned is not None else None)
    return MethodResult(
        method=method.name,
        code=method.code,
        report=report,
        stopped_early=tuned.stopped_early if tuned is not None else False,
        best_epoch=tuned.best_epoch if tuned is not None else None,
        seconds={"prune": pruned.seconds, **({"finetune": tuned.seconds} if tuned is not None else {})},
        files={**pruned.files, **(tuned.files if tuned is not None else {})},
    )


def _time_models(
    space: Workspace, methods: Sequence[Method], tuned: Mapping[str, TuneResult | None]
) -> dict[tuple[str, str], Latency]:
    """The latency of every checkpoint's model: ("", ORIGINAL), and (method, stage) of the others."""
    names = space.names
    places = {("", ORIGINAL): space.preparation_folder / names.checkpoint("FT_final")}
    for method in methods:
        places[method.name, PRUNED] = space.output / names.checkpoint(f"pruned_{method.code}", method.title)
        if tuned[method.name] is not None:
            final = names.checkpoint(f"FTAP_{method.code}_final", method.title)
            places[method.name, FINETUNED] = space.output / final
    models: list[nn.Module] = [load_checkpoint(path, space.device) for path in places.values()]
    seconds = space.config.latency_seconds / LATENCY_ROUNDS
    times = time_in_turns(
        models, space.example(space.config.latency_batch_size), rounds=LATENCY_ROUNDS, min_run_time=seconds
    )
    return dict(zip(places, times, strict=True))


def _count(part: Any) -> int:
    return 0 if part is None else len(part)


def describe_environment(space: Workspace) -> Environment:
    """Where and how this runs."""
    return Environment(
        versions=list_versions(),
        machine=describe_machine(),
        device=str(space.device),
        threads=torch.get_num_threads(),
        processes=world()[1],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=write_command(space.config),
    )


def list_versions() -> dict[str, str]:
    """The versions of what computed."""
    from importlib.metadata import version

    packages = ("torchvision", "lightning-fabric", "numpy")
    found = {"cleanai": cleanai.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**found, **{package: version(package) for package in packages}}


def describe_machine() -> str:
    """The machine in words: processor, cores, and the GPUs that torch sees."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "; ".join([f"{processor}, {cores} cores, {platform.system()}", *gpus])


# -------------------------------------------------------------------------------------------------------- the reports


def write_reports(results: ExperimentResults, output: Path) -> list[Path]:
    """Documents (PDF and HTML) with their figures (SVG and PNG), data (JSON) and table (CSV); gives their paths."""
    scenario, model, data = results.name.split("_", 2)
    names = Names(scenario, model, data)
    paths = []
    for name, result in results.methods.items():
        title = find_method(name).title
        document = method_document(results, name)
        paths += [save_document(document, output / names.report(suffix, title)) for suffix in (".pdf", ".html")]
        paths += _save_figures(document, output / names.report("", title))
        paths.append(result.report.save(output / names.report(".json", title)))
    document = scenario_document(results)
    paths += [save_document(document, output / names.report(suffix)) for suffix in (".pdf", ".html")]
    paths += _save_figures(document, output / names.report(""))
    paths.append(results.save(output / names.report(".json")))
    table = output / names.report(".csv")
    write_text(table, write_csv(list_rows(results)))
    return [*paths, table]


def _save_figures(document: Document, stem: Path) -> list[Path]:
    return save_figures(document, stem.parent / "figures", stem.name)


def write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as the text of a CSV file; what is missing is empty."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def list_rows(results: ExperimentResults) -> list[dict[str, Any]]:
    """One row per method and stage: what it is, and what it costs and achieves."""
    return [
        {
            "scenario": results.config.scenario,
            "model": results.config.model,
            "data": results.data.name,
            "method": name,
            "pruning_ratio": results.config.pruning_ratio,
            "target": results.config.target,
            "seed": results.config.seed,
            "stage": stage,
            "accuracy": metrics.accuracy,
            "loss": metrics.loss,
            "samples": metrics.samples,
            "parameters": metrics.parameters,
            "size_mb": metrics.size_mb,
            "macs": metrics.macs,
            "flops": metrics.flops,
            "latency_ms": metrics.latency.median_ms if metrics.latency else None,
            "latency_iqr_ms": metrics.latency.iqr_ms if metrics.latency else None,
        }
        for name, result in results.methods.items()
        for stage, metrics in result.report.metrics.items()
    ]
