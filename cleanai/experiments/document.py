"""What the document of an experiment says: one method's whole story, or a scenario with its methods side by side.

>>> from cleanai.experiments import load_results, save_document
>>> results = load_results("experiments/reports")["TS1_ResNet20_CIFAR10"]                 # doctest: +SKIP
>>> save_document(method_document(results, "coverage", language="tr"), "coverage.pdf")    # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cleanai import plots
from cleanai.experiments.figures import best_sentence, find_best, plot_method_accuracies, plot_stage_costs
from cleanai.experiments.pages import (
    Block,
    Document,
    Facts,
    Grid,
    Paragraph,
    Picture,
    Section,
    Verdict,
    write_date,
)
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, ExperimentResults, MethodResult
from cleanai.experiments.tables import (
    BEST,
    comparison_table,
    find_method,
    label_stages,
    method_label,
    methods_table,
    points,
    preparation_table,
    settings_tables,
    summarize,
    summary_table,
    times,
    write_accuracy,
)
from cleanai.rendering import (
    Table,
    blocks_table,
    budget_table,
    frozen_table,
    groups_table,
    proof_lines,
    recovery_lines,
    verdict,
)
from cleanai.report import Report
from cleanai.texts import MISSING, check_language, local_number, percent, say, significant, term, terms, whole_number

KEY_COLUMNS = frozenset({1, 2})  # of the settings tables: the name and the value, as one types them


def method_document(results: ExperimentResults, method: str, language: str | None = None) -> Document:
    """The whole story of one method: what was asked, what happened at each stage, what it saved and what it cost.

    Args:
        results: of `run_experiment` or `load_results`.
        method: one of ``results.methods``.
        language: "en" or "tr"; the configuration's own if left out.

    Raises:
        InputError: a method that has no result, with those that have one, or an unknown language.

    Example:
        From the results that the repository holds; `save_document` writes it:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> method_document(results, "wanda").title
        'Pruning experiment TS1: WANDA'
    """
    language = check_language(language or results.config.language)
    result = find_method(results, method)
    report = _translate(results, result, language)
    title = say(
        language,
        "Pruning experiment {scenario}: {method}",
        scenario=results.config.scenario,
        method=method_label(method, language),
    )
    sections = [
        Section(say(language, "Summary"), (_proof(report), *_tell(results, result, language))),
        Section(say(language, "Comparison"), _comparison(results, result, report, language)),
        Section(say(language, "Accuracy against cost"), _costs(results, [method], language)),
        Section(say(language, "Preparation of the original model"), _preparation(results, language)),
        Section(say(language, "Pruning"), _pruning(report)),
        Section(say(language, "Scores"), _scores(report)),
        Section(say(language, "Frozen"), (Grid(frozen_table(report, limit=None)),)),
        Section(say(language, "Proof"), _proof_and_repair(report)),
        Section(say(language, "Fine-tuning"), _finetuning(results, result, language)),
        *_closing(results, [result], language),
    ]
    return _assemble(results, [result], title, sections, language)


def scenario_document(results: ExperimentResults, language: str | None = None) -> Document:
    """The methods of a scenario side by side, and the comparison table of each.

    Args:
        results: of `run_experiment` or `load_results`.
        language: "en" or "tr"; the configuration's own if left out.

    Raises:
        InputError: an unknown language.

    Example:
        From the results that the repository holds; `save_document` writes it:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> [section.heading for section in scenario_document(results).sections][:2]
        ['Summary', 'Accuracy against cost']
    """
    language = check_language(language or results.config.language)
    title = say(language, "Pruning experiment {scenario}: comparison of methods", scenario=results.config.scenario)
    found = list(results.methods.values())
    sections = [
        Section(say(language, "Summary"), _compare_methods(results, language)),
        Section(say(language, "Accuracy against cost"), _costs(results, list(results.methods), language)),
        Section(say(language, "Preparation of the original model"), _preparation(results, language)),
        *(
            Section(
                say(language, "Method: {method}", method=method_label(result.method, language)),
                _method_part(results, result, language),
            )
            for result in found
        ),
        *_closing(results, found, language),
    ]
    return _assemble(results, found, title, sections, language)


def _assemble(
    results: ExperimentResults, found: Sequence[MethodResult], title: str, sections: Sequence[Section], language: str
) -> Document:
    subtitle = say(language, "{model} on {data}", model=results.config.model, data=results.data.name)
    return Document(
        title=title,
        subtitle=subtitle,
        language=language,
        created=results.environment.created,
        facts=_cover(results, found, language),
        opening=_warnings(results, found, language),
        sections=tuple(section for section in sections if section.blocks),
    )


def _translate(results: ExperimentResults, result: MethodResult, language: str) -> Report:
    """The method's report in the document's language, its stages under the headings of the tables."""
    metrics = label_stages(results, result.method, language)
    return dataclasses.replace(result.report, language=language, metrics=metrics)


# --------------------------------------------------------------------------------------------------------------- cover


def facts_table(results: ExperimentResults, language: str | None = None) -> Table:
    """What an experiment was measured on, and what must be known about its numbers: its cover as a table.

    Args:
        results: of `run_experiment` or `load_results`.
        language: "en" or "tr"; the configuration's own if left out.

    Raises:
        InputError: an unknown language.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> facts_table(results).rows[0]
        ('Scenario', 'TS1 (TS1_ResNet20_CIFAR10)')
    """
    language = check_language(language or results.config.language)
    found = list(results.methods.values())
    date = say(language, "Date")
    rows = [row for row in _cover(results, found, language).rows if row[0] != date]
    rows.append((say(language, "Machine"), results.environment.machine))
    notes = tuple(block.text for block in _warnings(results, found, language) if isinstance(block, Paragraph))
    columns = (say(language, "quantity"), say(language, "value"))
    title = say(language, "What was measured: {experiment}", experiment=results.name.replace("_", " "))
    return Table(title, columns, tuple(rows), "ll", notes)


def _cover(results: ExperimentResults, found: Sequence[MethodResult], language: str) -> Facts:
    config, data, environment = results.config, results.data, results.environment
    methods = ", ".join(_named(result, language) for result in found)
    command = say(language, "Command")
    rows = (
        (say(language, "Scenario"), _scenario(results)),
        (
            say(language, "Model"),
            f"{config.model} ({say(language, 'weights')}: {terms(language, results.preparation.weights)})",
        ),
        (say(language, "Data set"), f"{data.name} ({say(language, '{n} classes', n=data.classes)})"),
        (say(language, "Images"), _images(results, language)),
        (say(language, "Method" if len(found) == 1 else "Methods"), methods),
        (say(language, "Pruning ratio"), _ratio(results, language)),
        (say(language, "Date"), write_date(environment.created, language)),
        (say(language, "Seed"), str(config.seed)),
        (command, environment.command),
    )
    return Facts(rows, frozenset({command}))


def _scenario(results: ExperimentResults) -> str:
    scenario = results.config.scenario
    return scenario if results.name == scenario else f"{scenario} ({results.name})"


def _named(result: MethodResult, language: str) -> str:
    """A method in words, and the name that the command takes where these differ."""
    label = method_label(result.method, language)
    return label if label.lower() == result.method.lower() else f"{label} ({result.method})"


def _images(results: ExperimentResults, language: str) -> str:
    data = results.data
    phrase = "training {train}, calibration {calibration}, validation {validation}, test {test}"
    parts = ("train", "calibration", "validation", "test")
    return say(language, phrase, **{part: whole_number(getattr(data, part), language) for part in parts})


_TARGETS = {
    "channels": "{share} of the channels",
    "params": "{share} of the parameters",
    "macs": "{share} of the MACs",
    "latency": "{share} of the latency",
}


def _ratio(results: ExperimentResults, language: str) -> str:
    """What was asked for: the share and what it is of, among which layers, in how many steps."""
    config = results.config
    scope = "layer by layer (local)"
    if config.isomorphic:
        scope = "layers of one structure ranked together"
    if config.global_pruning:
        scope = "all layers ranked together (global)"
    steps = say(language, "in one step")
    if config.iterative_steps > 1:
        steps = say(language, "in {n} steps", n=config.iterative_steps)
    share = say(language, _TARGETS[config.target], share=percent(config.pruning_ratio, language))
    return f"{share}; {say(language, scope)}; {steps}"


def _warnings(results: ExperimentResults, found: Sequence[MethodResult], language: str) -> tuple[Block, ...]:
    """What a reader must know before the numbers: once each, with its methods where it is not of all."""
    texts: dict[str, list[str]] = {text: [] for text in (*results.data.note.split("; "), *results.warnings) if text}
    for result in found:
        for text in result.report.warnings:
            if text not in texts or texts[text]:
                texts.setdefault(text, []).append(method_label(result.method, language))
    blocks = []
    for text, methods in texts.items():
        several = len(found) > 1 and methods and len(methods) < len(found)
        prefix = f"{', '.join(methods)}: " if several else ""
        blocks.append(Paragraph(prefix + terms(language, text), "warning"))
    return tuple(blocks)


# ----------------------------------------------------------------------------------------------------------- sentences


def _tell(results: ExperimentResults, result: MethodResult, language: str) -> list[Block]:
    """What was removed, what became of the accuracy, and how much faster it is, in sentences made from the numbers."""
    summary, stages = summarize(result), result.report.metrics
    original, pruned, final = (stages.get(stage) for stage in (ORIGINAL, PRUNED, FINETUNED))
    removed = say(
        language,
        "Pruning by {method} removed {channels} of the channels: {parameters} of the parameters, {flops} of the FLOPs "
        "and {size} of the size are gone.",
        method=method_label(result.method, language),
        channels=percent(result.report.budget.channels, language),
        parameters=percent(summary.parameters, language),
        flops=percent(summary.flops, language),
        size=percent(summary.size, language),
    )
    sentences = [removed, *_tell_accuracy(results, result, language)]
    if summary.speedup is not None and original and original.latency:
        phrase = "The speed-up of one call with batch size {batch} is {speedup}."
        batch = original.latency.batch_size
        sentences.append(say(language, phrase, batch=batch, speedup=times(summary.speedup, language)))
    if final is None:
        sentences.append(say(language, "The pruned model was not fine-tuned." if pruned else "Nothing was pruned."))
    return [Paragraph(" ".join(sentences))]


def _tell_accuracy(results: ExperimentResults, result: MethodResult, language: str) -> list[str]:
    """The accuracy from stage to stage; nothing where it was not measured."""
    stages, summary = result.report.metrics, summarize(result)
    original, pruned, final = (stages.get(stage) for stage in (ORIGINAL, PRUNED, FINETUNED))
    if original is None or pruned is None or summary.pruning_drop is None:
        return []
    phrase = "On {samples} test images the accuracy was {before} before pruning and {after} right after it."
    samples = MISSING if original.samples is None else whole_number(original.samples, language)
    numbers = {"before": write_accuracy(original, language), "after": write_accuracy(pruned, language)}
    sentences = [say(language, phrase, samples=samples, **numbers)]
    if summary.final_drop is None or final is None:
        return sentences
    phrase = "Fine-tuning brought it to {accuracy}."
    values = {"accuracy": write_accuracy(final, language)}
    if summary.recovery is not None:
        phrase = "Fine-tuning brought it to {accuracy} and so won back {recovery} of what had been lost."
        values["recovery"] = percent(summary.recovery, language)
    sentences.append(say(language, phrase, **values))
    endings = [
        "That equals the original.",
        "That is {points} below the original.",
        "That is {points} above the original.",
    ]
    ending = endings[0 if not summary.final_drop else 1 if summary.final_drop > 0 else 2]
    sentences.append(say(language, ending, points=points(abs(summary.final_drop), language)))
    return sentences


def _tell_training(
    history: Sequence[dict[str, Any]], best: int | None, early: bool, seconds: float | None, language: str
) -> list[str]:
    sentences = [say(language, "{n} epochs of training.", n=len(history))]
    if seconds is not None:
        sentences.append(say(language, "It took {seconds} s.", seconds=significant(seconds, 3, language)))
    if best is not None:
        sentences.append(say(language, "The validation accuracy was best in epoch {epoch}.", epoch=best))
    if early:
        sentences.append(say(language, "It was stopped early: the validation accuracy no longer rose."))
    return sentences


# ------------------------------------------------------------------------------------------------- parts of a document


def _comparison(results: ExperimentResults, result: MethodResult, report: Report, language: str) -> tuple[Block, ...]:
    tables = (comparison_table(results, result.method, language), summary_table(results, result.method, language))
    caption = say(language, "Costs as shares of the original, and accuracy, in each stage.")
    return (*map(Grid, tables), Picture("stages", caption, lambda: plots.plot_metrics(report)))


def _costs(results: ExperimentResults, methods: Sequence[str], language: str) -> tuple[Block, ...]:
    if find_best(results, methods) is None:
        return ()
    caption = say(
        language,
        "Accuracy against the share of the FLOPs that is kept. A hollow mark is a pruned model, a filled one the same "
        "after fine-tuning.",
    )
    return (Picture("accuracy_cost", caption, lambda: plot_stage_costs(results, methods, language)),)


def _preparation(results: ExperimentResults, language: str) -> tuple[Block, ...]:
    preparation = results.preparation
    sentences = [say(language, "First weights: {weights}.", weights=terms(language, preparation.weights))]
    if preparation.history:
        early, seconds = preparation.stopped_early, preparation.seconds
        sentences += _tell_training(preparation.history, preparation.best_epoch, early, seconds, language)
    else:
        sentences.append(say(language, "The original model was not trained further."))
    blocks: list[Block] = [Paragraph(" ".join(sentences)), Grid(preparation_table(results, language))]
    name = say(language, "Preparation")
    return (*blocks, *_curves(preparation.history, name, language, "preparation"))


def _curves(history: Sequence[dict[str, Any]] | None, name: str, language: str, place: str) -> list[Block]:
    if not history or not plots.has_curves(history):
        return []
    caption = say(language, "{training}: loss and accuracy by epoch.", training=name)
    return [Picture(place, caption, lambda: plots.plot_training(history, language=language))]


def _pruning(report: Report) -> tuple[Block, ...]:
    language = report.language
    blocks: list[Block] = [Grid(budget_table(report))]
    if report.groups:
        caption = say(language, "The share of its channels that each group of layers keeps.")
        blocks.append(Picture("kept_channels", caption, lambda: plots.plot_kept_channels(report)))
        blocks.append(Grid(_without_indices(groups_table(report))))
    if report.blocks:
        blocks.append(Grid(blocks_table(report)))
    return tuple(blocks)


def _without_indices(table: Table) -> Table:
    """The groups table without its last column, the removed indices: a page is too narrow for them."""
    rows = tuple(row[:-1] for row in table.rows)
    return dataclasses.replace(table, columns=table.columns[:-1], rows=rows, align=table.align[:-1])


def _scores(report: Report) -> tuple[Block, ...]:
    if not plots.scored_groups(report):
        return ()
    caption = say(report.language, "Scores of the removed and the kept channels in the largest groups, and the cut.")
    return (Picture("scores", caption, lambda: plots.plot_score_distributions(report)),)


def _proof(report: Report) -> Verdict:
    state = {True: "proven", False: "failed", None: "unproven"}[report.proof.passed]
    return Verdict(state, verdict(report), proof_lines(report)[0])


def _proof_and_repair(report: Report) -> tuple[Block, ...]:
    lines = [*proof_lines(report)[1:], *recovery_lines(report)]
    return (_proof(report), *(Paragraph(line, "quiet") for line in lines))


def _finetuning(results: ExperimentResults, result: MethodResult, language: str) -> tuple[Block, ...]:
    history = result.report.history
    if not history:
        return ()
    seconds = result.seconds.get("finetune")
    sentences = _tell_training(history, result.best_epoch, result.stopped_early, seconds, language)
    if results.config.distillation_weight:
        phrase = "A share of {share} of the loss followed the outputs of the unpruned model (distillation)."
        sentences.append(say(language, phrase, share=percent(results.config.distillation_weight, language)))
    return (Paragraph(" ".join(sentences)), *_curves(history, say(language, "Fine-tuning"), language, "finetuning"))


def _compare_methods(results: ExperimentResults, language: str) -> tuple[Block, ...]:
    best = find_best(results, list(results.methods))
    blocks: list[Block] = [Paragraph(f"{best_sentence(results, best, language)}.")] if best else []
    blocks.append(Grid(methods_table(results, language), strong=BEST))
    if best:
        caption = say(language, "Accuracy of each method right after pruning and after fine-tuning.")
        blocks.append(Picture("methods", caption, lambda: plot_method_accuracies(results, language)))
    return tuple(blocks)


def _method_part(results: ExperimentResults, result: MethodResult, language: str) -> tuple[Block, ...]:
    report = _translate(results, result, language)
    history = result.report.history
    name = say(language, "Fine-tuning after {method}", method=method_label(result.method, language))
    return (
        _proof(report),
        *_tell(results, result, language),
        Grid(comparison_table(results, result.method, language)),
        Grid(summary_table(results, result.method, language)),
        *_curves(history, name, language, f"finetuning_{result.method}"),
    )


def _closing(results: ExperimentResults, found: Sequence[MethodResult], language: str) -> list[Section]:
    """What anyone who repeats the experiment needs: settings, environment, and the files that it left."""
    settings = tuple(Grid(table, code=KEY_COLUMNS) for table in settings_tables(results.config, language))
    return [
        Section(say(language, "Configuration"), settings),
        Section(say(language, "Environment and seeds"), (_environment(results, found, language),)),
        Section(say(language, "Files"), _files(results, found, language)),
    ]


def _environment(results: ExperimentResults, found: Sequence[MethodResult], language: str) -> Facts:
    environment = results.environment
    versions = ", ".join(f"{package} {version}" for package, version in environment.versions.items())
    command = say(language, "Command")
    rows = [
        (say(language, "Versions"), versions),
        (say(language, "Machine"), environment.machine),
        (say(language, "Device"), environment.device),
        (say(language, "CPU threads"), str(environment.threads)),
        (say(language, "Processes"), str(environment.processes)),
        (say(language, "Seed"), str(results.config.seed)),
        (say(language, "Date"), write_date(environment.created, language)),
        (command, environment.command),
    ]
    for result in found:
        taken = ", ".join(_write_seconds(stage, seconds, language) for stage, seconds in result.seconds.items())
        if taken:
            rows.append((say(language, "Time: {method}", method=method_label(result.method, language)), taken))
    return Facts(tuple(rows), frozenset({command}))


_STAGE_WORDS = {"prepare": "Preparation", "prune": "Pruning", "finetune": "Fine-tuning"}


def _write_seconds(stage: str, seconds: float, language: str) -> str:
    word = say(language, _STAGE_WORDS[stage]) if stage in _STAGE_WORDS else term(language, stage)
    return say(language, "{stage}: {seconds} s", stage=word, seconds=local_number(f"{seconds:,.1f}", language))


def _files(results: ExperimentResults, found: Sequence[MethodResult], language: str) -> tuple[Block, ...]:
    """The checkpoints by name, with their paths in the output folder."""
    rows = list(results.preparation.files.items())
    for result in found:
        rows += [pair for pair in result.files.items() if pair not in rows]
    if not rows:
        return ()
    columns = (say(language, "name"), say(language, "path"))
    note = say(language, "Paths are relative to the folder of the results.")
    table = Table(say(language, "Files made"), columns, tuple(rows), "ll", (note,))
    return (Grid(table, code=frozenset({0, 1})),)
