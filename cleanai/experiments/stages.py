"""The stages of an experiment: prepare the model, prune it, fine-tune what is left, measure.

Each stage reads the checkpoint that the one before wrote, and writes its own; what it measures is measured on the
model as it was read back. A stage that is finished with the same settings is not repeated, one that was interrupted
while training goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cleanai.distributed import run_on_main, share_batches, world
from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics, count_trainable_parameters
from cleanai.experiments.checkpoints import load_checkpoint, read_checkpoint
from cleanai.experiments.config import ExperimentConfig, Stage
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, ModelState, Preparation, PruneResult, TuneResult
from cleanai.experiments.scenarios import Method
from cleanai.experiments.subjects import load_subject
from cleanai.experiments.tables import method_label
from cleanai.experiments.workspace import Workspace
from cleanai.plan import Plan
from cleanai.pruner import StructuredPruner
from cleanai.texts import local_number, percent
from cleanai.training import EpochRecord, Recipe, train_classifier

# ------------------------------------------------------------------------------------------------------------ prepare


def prepare_model(space: Workspace) -> Preparation:
    """The original model, fitted to the data: checkpoints `_pretrained`, `_FT_epochN`, `_FT_final`."""
    names, config, narrator = space.names, space.config, space.narrator
    record = names.folder() / "prepare.json"
    done = space.find_done(space.preparation_folder / record, "prepare", Preparation)
    if done is not None:
        narrator.say("Prepared already: {path}", path=space.preparation_folder / names.folder())
        return done
    if space.prepared is not None:
        raise InputError(f"{space.prepared} holds no finished preparation: run the stage prepare there first.")
    if space.overwrite:
        _clear(space, space.output / names.folder())
    subject = load_subject(config, space.splits)
    model = subject.model.to(space.device)
    start = time.perf_counter()
    pretrained = space.save_model(model, names.checkpoint("pretrained"), facts={"weights": subject.weights})
    with narrator.step("Measuring the model with its first weights") as title:
        before = ModelState(space.measure(model, title), count_trainable_parameters(model))
    epochs = config.prepare_epochs if space.trains else 0
    if epochs:
        with narrator.step("Fine-tuning {model} on {data}", model=names.model, data=names.data) as title:
            trained = _train(space, model, make_recipe(config, epochs, config.prepare_lr), "FT", None, None, title)
    else:
        trained = _Trained([], False, None, {})
    final = space.save_model(model, names.checkpoint("FT_final"), facts={"epochs": len(trained.history)})
    model = load_on_all(space, space.output / final)
    with narrator.step("Measuring the fine-tuned model") as title:
        after = ModelState(space.measure(model, title), count_trainable_parameters(model)) if epochs else before
    result = Preparation(
        weights=subject.weights,
        before=before,
        after=after,
        history=trained.history,
        stopped_early=trained.stopped_early,
        best_epoch=trained.best_epoch,
        seconds=time.perf_counter() - start,
        files={pretrained.stem: str(pretrained), **trained.files, final.stem: str(final)},
    )
    _finish(space, record, "prepare", result, "FT")
    return result


# -------------------------------------------------------------------------------------------------------------- prune


def prune_model(space: Workspace, method: Method, preparation: Preparation) -> PruneResult:
    """The original model without its least important channels: checkpoint `_pruned_CODE`."""
    names, config, narrator = space.names, space.config, space.narrator
    record = names.folder(method.title) / "prune.json"
    done = space.find_done(space.output / record, "prune", PruneResult)
    if done is not None:
        narrator.say("Pruned already: {path}", path=space.output / names.folder(method.title))
        return done
    if space.overwrite:
        _clear(space, space.output / names.folder(method.title))
    start = time.perf_counter()
    model = load_on_all(space, space.preparation_folder / names.checkpoint("FT_final"))
    pruner = make_pruner(config, model, method, space)
    with narrator.step("Collecting what {method} looks at", method=method_label(method.name, config.language)):
        collect_statistics(space, pruner)
    with narrator.step("Pruning by {method} and proving the result", method=method_label(method.name, config.language)):
        pruned = pruner.prune()
    assert pruner.plan is not None
    check_same_plan(pruner.plan)
    path = space.save_model(pruned, names.checkpoint(f"pruned_{method.code}", method.title), plan=pruner.plan)
    pruned = load_on_all(space, space.output / path)
    with narrator.step("Measuring the pruned model") as title:
        metrics = {ORIGINAL: preparation.after.metrics, PRUNED: space.measure(pruned, title)}
    name = f"{names.model} ({names.data})"
    report = pruner.report(model_name=name, metrics=metrics, language=config.language)
    result = PruneResult(report, time.perf_counter() - start, {path.stem: str(path)})
    space.save_done(space.output / record, "prune", result)
    return result


def make_pruner(config: ExperimentConfig, model: nn.Module, method: Method, space: Workspace) -> StructuredPruner:
    """The pruner that an experiment's settings describe."""
    return StructuredPruner(
        model,
        space.example(1),
        importance=method.make(config),
        pruning_ratio=config.pruning_ratio,
        target=config.target,
        global_pruning=config.global_pruning,
        isomorphic=config.isomorphic,
        iterative_steps=config.iterative_steps,
        schedule=config.schedule,
        ignored_layers=config.ignored_layers,
        max_pruning_ratio=config.max_pruning_ratio,
        min_channels=config.min_channels,
        round_to=config.round_to,
        recover=config.recover,
    )


def collect_statistics(space: Workspace, pruner: StructuredPruner) -> None:
    """Activations and gradients as the criterion needs them, of the calibration images of all processes together."""
    config, processes = space.config, world()[1]
    batches = space.splits.calibration_loader(
        config.calibration_batch_size, config.calibration_batches, workers=space.workers
    )
    shared = processes > 1 and config.recover == "none"  # a repair goes through all of them on every process
    if shared and len(batches) < processes:
        raise InputError(f"There are {len(batches)} calibration batches for {processes} processes: give one to each.")
    batches = share_batches(batches) if shared else batches
    criterion = pruner.importance
    if getattr(criterion, "needs_activations", False) or config.recover != "none":
        pruner.collect_activations(batches, distributed=shared)
    if getattr(criterion, "needs_gradients", False):
        pruner.collect_gradients(batches, distributed=shared)


def check_same_plan(plan: Plan) -> None:
    """Raises `InputError` where processes chose differently, before anyone writes or trains anything."""
    first = run_on_main(plan.to_json)
    if plan.compare(Plan.from_json(first)):
        raise InputError(
            "the processes chose different channels: their devices round differently. Prune in one process first "
            "(--stage prune), then train in several."
        )


# ----------------------------------------------------------------------------------------------------------- finetune


def finetune_model(space: Workspace, method: Method, pruned: PruneResult) -> TuneResult | None:
    """The pruned model trained further: checkpoints `_FTAP_CODE_epochN`, `_FTAP_CODE_final`; None without training."""
    names, config, narrator = space.names, space.config, space.narrator
    if not space.trains or not config.finetune_epochs:
        return None
    record = names.folder(method.title) / "finetune.json"
    done = space.find_done(space.output / record, "finetune", TuneResult)
    if done is not None:
        narrator.say("Fine-tuned already: {path}", path=space.output / names.folder(method.title))
        return done
    start = time.perf_counter()
    state = f"FTAP_{method.code}"
    path = space.output / names.checkpoint(f"pruned_{method.code}", method.title)
    plan = read_checkpoint(path).plan
    model = load_on_all(space, path)
    teacher = None
    if config.distillation_weight:
        teacher = load_on_all(space, space.preparation_folder / names.checkpoint("FT_final"))
    recipe = make_tuning_recipe(config)
    with narrator.step("Fine-tuning what {method} left", method=method_label(method.name, config.language)) as title:
        trained = _train(space, model, recipe, state, method.title, plan, title, teacher)
    facts = {"epochs": len(trained.history)}
    final = space.save_model(model, names.checkpoint(f"{state}_final", method.title), plan=plan, facts=facts)
    model = load_on_all(space, space.output / final)
    with narrator.step("Measuring the fine-tuned model") as title:
        metrics = space.measure(model, title)
    result = TuneResult(
        metrics,
        trained.history,
        trained.stopped_early,
        trained.best_epoch,
        time.perf_counter() - start,
        {**trained.files, final.stem: str(final)},
    )
    _finish(space, record, "finetune", result, state, method.title)
    return result


def stage_metrics(pruned: PruneResult, tuned: TuneResult | None) -> dict[str, ModelMetrics]:
    """The columns of the comparison table."""
    return {**pruned.report.metrics, **({FINETUNED: tuned.metrics} if tuned is not None else {})}


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Trained:
    history: list[dict[str, Any]]
    stopped_early: bool
    best_epoch: int | None
    files: dict[str, str]


def make_recipe(config: ExperimentConfig, epochs: int, lr: float) -> Recipe:
    """How the settings say to train."""
    return Recipe(
        epochs=epochs,
        lr=lr,
        optimizer=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        scheduler=config.scheduler,
        warmup_epochs=config.warmup_epochs,
        label_smoothing=config.label_smoothing,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        precision=config.precision,
        patience=config.patience,
        seed=config.seed,
    )


def make_tuning_recipe(config: ExperimentConfig) -> Recipe:
    """The same for the pruned model, which may learn from the unpruned one."""
    return dataclasses.replace(
        make_recipe(config, config.finetune_epochs, config.finetune_lr),
        distillation_weight=config.distillation_weight,
        distillation_temperature=config.distillation_temperature,
    )


def check_recipes(config: ExperimentConfig) -> None:
    """Raises `InputError` before anything is done where the settings do not make a training."""
    if config.prepare_epochs:
        make_recipe(config, config.prepare_epochs, config.prepare_lr)
    if config.finetune_epochs:
        make_tuning_recipe(config)


def _train(
    space: Workspace,
    model: nn.Module,
    recipe: Recipe,
    state: str,
    method: str | None,
    plan: Plan | None,
    title: str,
    teacher: nn.Module | None = None,
) -> _Trained:
    """Trains in place, with a checkpoint every few epochs; an interrupted training goes on where it was."""
    config, names = space.config, space.names
    folder = _state_folder(space, state, method)

    def save(record: EpochRecord, model: nn.Module) -> None:
        facts = {"epoch": record.epoch, "val_accuracy": record.val_accuracy, "val_loss": record.val_loss}
        due = record.epoch % config.checkpoint_interval == 0 or record.epoch == recipe.epochs
        for name in ["last", f"epoch{record.epoch}"][: 1 + due]:
            space.save_model(model, names.checkpoint(f"{state}_{name}", method), plan=plan, facts=facts)
        space.narrator.say(
            "  epoch {epoch} of {epochs}: training {train}, validation {validation}; {seconds} s",
            epoch=record.epoch,
            epochs=recipe.epochs,
            train=percent(record.train_accuracy / 100, config.language, 2),
            validation=percent((record.val_accuracy or 0.0) / 100, config.language, 2),
            seconds=local_number(f"{record.seconds:.1f}", config.language),
        )

    result = train_classifier(
        model,
        space.splits.train_loader(config.batch_size, workers=space.workers),
        recipe,
        validation=space.splits.loader("validation", config.batch_size, workers=space.workers),
        teacher=teacher,
        folder=folder,
        keep=config.keep,
        state_minutes=config.state_minutes,
        device=str(space.device),
        on_epoch=save,
        progress=title,
    )
    history = [dataclasses.asdict(record) for record in result.history]
    return _Trained(
        history, result.stopped == "patience", result.best_epoch, _list_epochs(space, state, method, len(history))
    )


def _state_folder(space: Workspace, state: str, method: str | None) -> Path:
    """Where a training that is going on keeps its state."""
    return space.output / space.names.folder(method) / f"training_{state}"


def _finish(space: Workspace, record: Path, stage: Stage, result: Any, state: str, method: str | None = None) -> None:
    """Notes that a stage is finished; only then the state of its training may go."""
    space.save_done(space.output / record, stage, result)
    run_on_main(lambda: shutil.rmtree(_state_folder(space, state, method), ignore_errors=True))


def _list_epochs(space: Workspace, state: str, method: str | None, epochs: int) -> dict[str, str]:
    """The checkpoints written while training, those from before an interruption included."""
    names = [*(f"epoch{epoch}" for epoch in range(1, epochs + 1)), "last"]
    paths = [space.names.checkpoint(f"{state}_{name}", method) for name in names]
    return {path.stem: str(path) for path in paths if (space.output / path).is_file()}


def load_on_all(space: Workspace, path: Path) -> nn.Module:
    """The model of a checkpoint, on every process's device."""
    run_on_main(lambda: None)  # the first process has written it by now
    return load_checkpoint(path, space.device)


def _clear(space: Workspace, folder: Path) -> None:
    """Takes away what an earlier run left, so that no old checkpoint is taken for a new one."""

    def clear() -> None:
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.json")]:
            path.unlink()
        for path in folder.glob("training_*"):
            shutil.rmtree(path, ignore_errors=True)

    run_on_main(clear)
