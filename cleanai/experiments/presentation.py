"""A presentation from stored results: every slide and table, to show in a notebook and to export in both languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cleanai.experiments.cut_slides import (
    matrix_table,
    slide_inverted,
    slide_matrix,
    slide_scope,
    slide_steps,
    slide_tradeoff,
)
from cleanai.experiments.cut_study import CutStudy
from cleanai.experiments.result_slides import slide_costs, slide_overview, slide_training, slide_untrained
from cleanai.experiments.results import ExperimentResults
from cleanai.experiments.slides import FORMATS, SlideFigure, check_formats, save_slide, save_table
from cleanai.experiments.tables import overview_table
from cleanai.rendering import Table
from cleanai.texts import LANGUAGES


def make_slides(
    experiments: Sequence[ExperimentResults], study: CutStudy, language: str = "en"
) -> dict[str, SlideFigure]:
    """Every slide by its name, in the order of the talk: figures of 13.33 × 7.5 inches whose ``finding`` is the title.

    The costs of each experiment are a slide of their own, and so is the training of each that was fine-tuned. Slides
    show themselves small in a notebook; `export_presentation` writes them at full size.

    Args:
        experiments: results of `run_experiment` or `load_results`.
        study: of `load_study`.
        language: "en" or "tr".

    Raises:
        InputError: the study or an experiment has nothing that a slide could show.

    Example:
        From what the repository holds:

        >>> from cleanai.experiments import load_results, load_study
        >>> slides = make_slides([load_results()["TS1_ResNet20_CIFAR10"]], load_study())
        >>> list(slides)[:5]
        ['methods', 'costs_TS1', 'training_TS1', 'untrained', 'matrix']
    """
    tuned = [each for each in experiments if any(result.report.history for result in each.methods.values())]
    return {
        "methods": slide_overview(experiments, language),
        **{f"costs_{each.config.scenario}": slide_costs(each, language) for each in experiments},
        **{f"training_{each.config.scenario}": slide_training(each, language) for each in tuned},
        "untrained": slide_untrained(experiments, language),
        "matrix": slide_matrix(study, language),
        "tradeoff": slide_tradeoff(study, language),
        "global_local": slide_scope(study, language),
        "iterative": slide_steps(study, language),
        "inverted": slide_inverted(study, language),
    }


def make_tables(experiments: Sequence[ExperimentResults], study: CutStudy, language: str = "en") -> dict[str, Table]:
    """The tables that are drawn on slides, by the names of their slides."""
    return {"methods": overview_table(experiments, language), "matrix": matrix_table(study, language)}


def export_presentation(
    experiments: Sequence[ExperimentResults],
    study: CutStudy,
    folder: str | Path,
    *,
    languages: Sequence[str] = LANGUAGES,
    formats: Sequence[str] = FORMATS,
) -> dict[str, list[Path]]:
    """Writes every slide and table, numbered, into one folder for each language; gives the files by language.

    Args:
        experiments: results of `run_experiment` or `load_results`.
        study: of `load_study`.
        folder: made if missing.
        languages: of "en" and "tr".
        formats: of the slides: "png" (1920 × 1080 pixels), "svg" and "pdf". Tables are always HTML and CSV.

    Raises:
        InputError: another format.

    Example:
        From what the repository holds:

        >>> from cleanai.experiments import load_results, load_study
        >>> files = export_presentation(list(load_results().values()), load_study(), "slides")  # doctest: +SKIP
        >>> export_presentation([], load_study(), "slides", formats=["gif"])
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: There is no format 'gif'; use png, svg, pdf.
    """
    check_formats(formats)
    written: dict[str, list[Path]] = {}
    for language in languages:
        place, files = Path(folder) / language, []
        slides = make_slides(experiments, study, language)
        names = {name: f"{number:02}_{name}" for number, name in enumerate(slides, 1)}
        for name, slide in slides.items():
            files += save_slide(slide, place, names[name], formats).values()
        for name, table in make_tables(experiments, study, language).items():
            files += save_table(table, place, names[name], language).values()
        written[language] = files
    return written


def count_formats(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, int]]:
    """How many files of each format there are, by language."""
    return {
        language: {ending: sum(path.suffix == f".{ending}" for path in paths) for ending in (*FORMATS, "html", "csv")}
        for language, paths in files.items()
    }
