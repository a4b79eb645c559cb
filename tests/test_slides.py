"""The slides show the stored numbers, their titles follow them; their files come in three formats and two languages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from experiment_factory import make_result as result_of
from experiment_factory import make_results
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer

from cleanai.errors import InputError
from cleanai.experiments import (
    CutStudy,
    ExperimentResults,
    export_presentation,
    load_results,
    make_slides,
    presentation,
)
from cleanai.experiments.cut_slides import (
    find_pairs,
    matrix_table,
    mean_points,
    slide_inverted,
    slide_matrix,
    slide_scope,
    slide_steps,
    slide_tradeoff,
)
from cleanai.experiments.cut_study import Cut, ScoreExample, load_study
from cleanai.experiments.presentation import count_formats
from cleanai.experiments.result_slides import slide_costs, slide_overview, slide_training, slide_untrained
from cleanai.experiments.results import FINETUNED, ORIGINAL, Environment
from cleanai.experiments.slides import FORMATS, LOOKS, SlideFigure, save_slide, save_table, slide_table
from cleanai.plots import KEPT, REMOVED
from cleanai.rendering import Table

STORED = Path(__file__).parent.parent / "data" / "results"
ENVIRONMENT = Environment(
    {"torch": "2"}, "a machine", "cpu", 1, 1, "2026-11-21T12:00:00+00:00", "python -m benchmarks.x"
)


def make_cut(criterion: str, ratio: float, accuracy: float, **settings: Any) -> Cut:
    kept = 1 - ratio + 0.01
    values: dict[str, Any] = {"accuracy": accuracy, "macs_kept": kept, "parameters_kept": kept, "seconds": 1.0}
    return Cut(criterion=criterion, ratio=ratio, **values, **settings)


def make_study() -> CutStudy:
    """Coverage and WANDA, repaired and not, local and in steps, with a wrong sign; and two draws of random scores."""
    cuts = []
    for ratio, coverage, wanda in ((0.2, 80.0, 70.0), (0.6, 30.0, 40.0)):
        cuts += [make_cut("coverage", ratio, coverage), make_cut("wanda", ratio, wanda)]
        cuts += [make_cut("coverage", ratio, coverage + 15, recovery="least_squares")]
        cuts += [make_cut("wanda", ratio, wanda + 10, recovery="least_squares")]
        cuts += [make_cut("coverage", ratio, coverage - 5, scope="local")]
        cuts += [make_cut("wanda", ratio, wanda + 1, scope="local")]
        cuts += [make_cut("wanda", ratio, wanda + 2, steps=5), make_cut("coverage", ratio, coverage + 3, steps=5)]
    cuts += [make_cut("random", 0.2, 50.0), make_cut("random", 0.2, 60.0, seed=1), make_cut("random", 0.6, 10.0)]
    cuts += [make_cut("coverage", 0.2, 12.5, inverted=True)]
    example = ScoreExample("coverage", "layer.conv", 0.5, (0.4, 0.0, 0.9, 0.6), (1, 0), (2, 3))
    return CutStudy("ResNet-20", "CIFAR-10", 91.73, 1000, 100, 10000, 512, ENVIRONMENT, tuple(cuts), (example,))


def change_cut(study: CutStudy, accuracy: float, **settings: Any) -> CutStudy:
    """The same study with another accuracy of one cut, as if a stored number had been edited."""
    chosen = [cut for cut in study.cuts if all(getattr(cut, name) == value for name, value in settings.items())]
    assert len(chosen) == 1
    cuts = tuple(replace(cut, accuracy=accuracy) if cut is chosen[0] else cut for cut in study.cuts)
    return replace(study, cuts=cuts)


PLAIN: dict[str, Any] = {"scope": "global", "steps": 1, "recovery": "none", "inverted": False}


def make_experiment(**finals: float) -> ExperimentResults:
    results = make_results(*(result_of(method, final=final) for method, final in finals.items()))
    return replace(results, name="TS1_DigitsNet_Digits")


def line_points(slide: SlideFigure, panel: int) -> list[list[tuple[float, float]]]:
    """The points of every line with marks in a panel."""
    lines = [line for line in slide.axes[panel].get_lines() if line.get_marker() not in ("None", None, "")]
    return [
        [(float(x), float(y)) for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)]
        for line in lines
    ]


def bar_heights(slide: SlideFigure, panel: int) -> list[list[float]]:
    found = [each for each in slide.axes[panel].containers if isinstance(each, BarContainer)]
    return [[bar.get_height() for bar in container] for container in found]


def texts_of(slide: SlideFigure, panel: int) -> list[str]:
    return [text.get_text() for text in slide.axes[panel].texts]


# ------------------------------------------------------------------------------------------------ the study as a file


def test_a_study_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    study = make_study()
    assert CutStudy.load(study.save(tmp_path / "study.json")) == study


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"format": "cleanai-cut-study", "model": "x"}'])
def test_another_file_is_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json holds no study of cuts"):
        CutStudy.load(path)


def test_a_study_is_found_above_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "results" / "reports").mkdir(parents=True)
    make_study().save(tmp_path / "data" / "results" / "presentation" / "net.json")
    (tmp_path / "notebooks" / "tr").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "tr")
    assert load_study("net") == make_study()


def test_find_means_the_usual_settings_unless_told_otherwise() -> None:
    study = make_study()
    assert [cut.accuracy for cut in study.find(criterion="coverage")] == [80, 30]
    assert [cut.accuracy for cut in study.find(criterion="coverage", scope="local")] == [75, 25]
    assert [cut.accuracy for cut in study.find(criterion="coverage", inverted=True)] == [12.5]


# ------------------------------------------------------------------------------------------------- numbers are drawn


def test_seeds_are_meant() -> None:
    assert mean_points(make_study(), "random") == {0.2: (81.0, 55.0), 0.6: (pytest.approx(41.0), 10.0)}


def test_the_trade_off_draws_the_stored_points() -> None:
    slide = slide_tradeoff(make_study())
    points = line_points(slide, 0)
    assert points[0] == [(pytest.approx(81), 80), (pytest.approx(41), 30)]  # coverage
    assert points[1] == [(pytest.approx(81), 70), (pytest.approx(41), 40)]  # WANDA
    assert points[2] == [(pytest.approx(81), 55), (pytest.approx(41), 10)]  # random
    assert line_points(slide, 1)[0] == [(pytest.approx(81), 95), (pytest.approx(41), 45)]
    edited = change_cut(make_study(), 77.0, criterion="coverage", ratio=0.2, **PLAIN)
    assert line_points(slide_tradeoff(edited), 0)[0][0] == (pytest.approx(81), 77)


def test_the_matrix_writes_the_stored_numbers_and_marks_the_best() -> None:
    slide = slide_matrix(make_study())
    assert texts_of(slide, 0) == ["80.0", "30.0", "70.0", "40.0", "55.0", "10.0"]
    bold = [text.get_text() for text in slide.axes[0].texts if text.get_fontweight() == "bold"]
    assert bold == ["80.0", "40.0"]
    table = matrix_table(make_study())
    assert table.columns == ("criterion", "20 %", "60 %", "20 %, least squares", "60 %, least squares")
    assert table.rows[0] == ("neuron coverage", "80.00 †", "30.00", "95.00 †", "45.00")
    assert table.rows[2] == ("random", "55.00", "10.00", "—", "—")
    turkish = matrix_table(make_study(), "tr")
    assert turkish.rows[0] == ("nöron kapsaması", "80,00 †", "30,00", "95,00 †", "45,00")


def test_the_wrong_sign_shows_what_goes_and_what_is_left() -> None:
    slide = slide_inverted(make_study())
    assert bar_heights(slide, 1) == [[80], [55], [12.5]]  # right, random, wrong
    right, wrong = ([to_rgb(bar.get_facecolor()) for bar in bars] for bars in slide.axes[0].containers)
    # By score the channels are 1, 0, 3, 2: the two lowest go, or by mistake the two highest.
    assert right == [to_rgb(REMOVED), to_rgb(REMOVED), to_rgb(KEPT), to_rgb(KEPT)]
    assert wrong == [to_rgb(KEPT), to_rgb(KEPT), to_rgb(REMOVED), to_rgb(REMOVED)]


def test_two_ways_to_cut_stand_side_by_side() -> None:
    # Neuron coverage, then WANDA, each by ratio: global and local.
    assert bar_heights(slide_scope(make_study()), 0) == [[80], [75], [30], [25], [70], [71], [40], [41]]
    assert bar_heights(slide_steps(make_study()), 0) == [[83], [80], [33], [30], [72], [70], [42], [40]]


def test_the_costs_are_those_of_the_last_stage() -> None:
    results = make_experiment(coverage=90.25, wanda=91.9)
    stages = results.methods["wanda"].report.metrics
    slide = slide_costs(results)
    heights = [bars[0] for bars in (bar_heights(slide, panel) for panel in range(4))]
    assert heights[0] == [91.73, 90.25, 91.9]
    assert heights[1] == [pytest.approx(stages[s].parameters / 1e3) for s in (ORIGINAL, FINETUNED, FINETUNED)]
    assert heights[2] == [pytest.approx(stages[s].flops / 1e6) for s in (ORIGINAL, FINETUNED, FINETUNED)]
    assert heights[3] == [2.0, 1.25, 1.25]


def test_a_disturbed_latency_is_not_drawn() -> None:
    results = make_experiment(coverage=90.25)
    result = results.methods["coverage"]
    metrics = dict(result.report.metrics)
    latency = metrics[ORIGINAL].latency
    assert latency is not None
    metrics[ORIGINAL] = replace(metrics[ORIGINAL], latency=replace(latency, disturbed=True))
    result = replace(result, report=replace(result.report, metrics=metrics))
    slide = slide_costs(replace(results, methods={"coverage": result}))
    assert len(slide.axes) == 3
    assert "time" not in slide.finding
    assert any("No speed-up is given" in text.get_text().replace("\n", " ") for text in slide.texts)


def test_the_training_curve_is_the_stored_history() -> None:
    results = make_experiment(coverage=90.25)
    history = results.methods["coverage"].report.history or []
    slide = slide_training(results)
    assert line_points(slide, 0) == [[(each["epoch"], each["val_accuracy"]) for each in history]]
    assert line_points(slide, 1) == [[(0, 91.73), (1, 60.5), (2, 90.25)]]
    assert texts_of(slide, 1) == ["91.7", "60.5", "90.2"]


def test_untrained_accuracies_are_bars() -> None:
    results = make_results(result_of("coverage", pruned=60.5), result_of("wanda", pruned=20.0))
    assert bar_heights(slide_untrained([results]), 0) == [[60.5], [20.0]]


def test_a_table_holds_every_cell() -> None:
    table = Table("title", ("name", "value"), (("a", "1"), ("", "2"), ("b", "3 †")), "lr", ("a note",))
    slide = slide_table(table, "finding")
    assert set(texts_of(slide, 0)) == {"name", "value", "a", "1", "", "2", "b", "3 †"}
    assert [text.get_text() for text in slide.texts] == ["finding", "a note"]


# ------------------------------------------------------------------------------------------------- titles follow them


def test_titles_follow_the_numbers() -> None:
    study = make_study()
    assert slide_matrix(study).finding == (
        "Best with 60 % of the MACs gone: WANDA 40.0 %; repaired without training: WANDA 50.0 %"
    )
    edited = change_cut(study, 60.0, criterion="coverage", ratio=0.6, **{**PLAIN, "recovery": "least_squares"})
    assert slide_matrix(edited).finding.endswith("WANDA 40.0 %; repaired without training: neuron coverage 60.0 %")
    assert slide_tradeoff(edited).finding == (
        "At 40 % of the MACs, repair without training brings neuron coverage from 30.0 % to 60.0 % (original: 91.7 %)"
    )


def test_the_winner_of_a_comparison_is_counted() -> None:
    study = make_study()
    # Local is worse by 5 points for coverage, better by 1 for WANDA: two wins each.
    assert slide_scope(study).finding == (
        "Global and local win 2 of 4 cuts each; largest lead of global: 5.00 points (neuron coverage, 20 % of the "
        "MACs gone)"
    )
    edited = change_cut(study, 90.0, criterion="coverage", ratio=0.2, **{**PLAIN, "scope": "local"})
    assert slide_scope(edited).finding == (
        "Local beats global in 3 of 4 cuts; largest lead: 10.00 points (neuron coverage, 20 % of the MACs gone)"
    )
    assert slide_steps(study).finding == (
        "Iterative (5 steps) beats one-shot in 4 of 4 cuts; largest lead: 3.00 points (neuron coverage, 20 % of the "
        "MACs gone)"
    )


def test_the_wrong_sign_is_told_in_numbers() -> None:
    assert slide_inverted(make_study()).finding == (
        "One wrong sign: 20 % of the MACs gone leave 12.5 % instead of 80.0 % (random: 55.0 %)"
    )
    edited = change_cut(make_study(), 33.0, criterion="coverage", ratio=0.2, **{**PLAIN, "inverted": True})
    assert "leave 33.0 % instead" in slide_inverted(edited).finding
    assert bar_heights(slide_inverted(edited), 1)[2] == [33.0]


def test_titles_of_experiments_follow_the_numbers() -> None:
    results = make_experiment(coverage=90.25, wanda=89.0)
    assert slide_training(results).finding == (
        "8 epochs win back 95 % of what neuron coverage lost: 1.48 points below the original"
    )
    assert "neuron coverage: FLOPs" in slide_costs(results).finding
    assert slide_overview([results]).finding == (
        "Smallest loss without training: 31.23 points (neuron coverage, TS1). "
        "Fine-tuned: 1.48 points (neuron coverage, TS1)"
    )
    better = make_experiment(coverage=90.25, wanda=92.73)
    assert slide_training(better).finding.startswith("8 epochs win back 103 % of what WANDA lost: 1.00 points above")
    assert slide_costs(better).finding.endswith("accuracy 91.73 % → 92.73 %")
    assert slide_untrained([better]).finding == (
        "Without training, DigitsNet falls from 91.7 % to 60.5 % at best (50 % of the channels removed)"
    )


def test_pairs_differ_in_one_setting_only() -> None:
    pairs = find_pairs(make_study(), {"scope": "global"}, {"scope": "local"}, "none")
    assert [(a.criterion, a.ratio, a.scope, b.scope) for a, b in pairs] == [
        ("coverage", 0.2, "global", "local"),
        ("wanda", 0.2, "global", "local"),
        ("coverage", 0.6, "global", "local"),
        ("wanda", 0.6, "global", "local"),
    ]


@pytest.mark.parametrize("draw", [slide_matrix, slide_tradeoff, slide_scope, slide_steps, slide_inverted])
def test_an_empty_study_is_refused(draw: Callable[[CutStudy], SlideFigure]) -> None:
    with pytest.raises(InputError):
        draw(replace(make_study(), cuts=()))


def test_missing_measurements_are_refused() -> None:
    untrained = make_results(result_of(final=None))
    with pytest.raises(InputError, match="nothing was fine-tuned"):
        slide_training(untrained)
    with pytest.raises(InputError, match="no method"):
        slide_costs(replace(untrained, methods={}))
    with pytest.raises(InputError, match="no pruned model"):
        slide_untrained([replace(untrained, methods={})])


# ------------------------------------------------------------------------------------------------------------- files


def test_exports_come_in_three_formats_and_two_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments, study = [make_experiment(coverage=90.25)], make_study()
    monkeypatch.setattr(presentation, "make_slides", _make_two_slides)  # all of them would take half a minute
    files = export_presentation(experiments, study, tmp_path)
    each = {"png": 2, "svg": 2, "pdf": 2, "html": 2, "csv": 2}
    assert count_formats(files) == {"en": each, "tr": each}
    assert {path.name for path in files["en"]} == {path.name for path in files["tr"]}
    assert {path.stem for path in files["en"]} == {"01_methods", "02_matrix"}
    assert all(path.is_file() for paths in files.values() for path in paths)
    for language, heading in (("en", "neuron coverage"), ("tr", "nöron kapsaması")):
        (csv,) = (tmp_path / language).glob("*_matrix.csv")
        assert heading in csv.read_text(encoding="utf-8")
        (page,) = (tmp_path / language).glob("*_matrix.html")
        assert f'lang="{language}"' in page.read_text(encoding="utf-8") and heading in page.read_text(encoding="utf-8")
    pictures = [(tmp_path / language / "02_matrix.png").read_bytes() for language in ("en", "tr")]
    assert pictures[0] != pictures[1]


def _make_two_slides(experiments: list[ExperimentResults], study: CutStudy, language: str) -> dict[str, SlideFigure]:
    return {"methods": slide_overview(experiments, language), "matrix": slide_matrix(study, language)}


def test_every_slide_is_there_in_both_languages() -> None:
    experiments = [make_experiment(coverage=90.25)]
    english, turkish = (make_slides(experiments, make_study(), language) for language in ("en", "tr"))
    assert list(english) == [
        *("methods", "costs_TS1", "training_TS1", "untrained"),
        *("matrix", "tradeoff", "global_local", "iterative", "inverted"),
    ]
    assert all(english[name].finding != slide.finding for name, slide in turkish.items())


def test_a_slide_has_its_size_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (save_slide(slide_inverted(make_study(), "tr"), tmp_path / name, "x") for name in ("a", "b"))
    assert [first[each].read_bytes() == second[each].read_bytes() for each in FORMATS] == [True, True, True]
    png = first["png"].read_bytes()
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1920, 1080)
    assert b"/MediaBox [ 0 0 960 540 ]" in first["pdf"].read_bytes()
    assert b"/Type3" not in first["pdf"].read_bytes()  # its letters can be searched and copied
    assert not [word for word in (b"CreationDate", b"matplotlib.org, ") if word in first["pdf"].read_bytes()]
    assert "<dc:date>" not in first["svg"].read_text(encoding="utf-8")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format 'gif'; use png, svg, pdf"):
        save_slide(slide_matrix(make_study()), tmp_path, "x", ["gif"])
    assert not list(tmp_path.iterdir())


def test_a_table_is_saved_as_the_language_writes_it(tmp_path: Path) -> None:
    paths = save_table(matrix_table(make_study(), "tr"), tmp_path, "m", "tr")
    assert paths["csv"].read_text(encoding="utf-8").splitlines()[1].startswith('nöron kapsaması,"80,00 †"')


def test_drawing_leaves_the_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_slide(slide_tradeoff(make_study()), tmp_path, "x")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("language", ["en", "tr"])
def test_everything_lies_on_the_slide(language: str) -> None:
    slides = make_slides([make_experiment(coverage=90.25, wanda=92.73)], make_study(), language)
    for name, slide in slides.items():
        _assert_inside(slide, name)


def _assert_inside(slide: SlideFigure, name: str) -> None:
    """Nothing is cut off, and no panel reaches into the title or the foot."""
    slide.draw_without_rendering()
    drawn = slide.get_tightbbox()
    width, height = slide.get_size_inches()
    assert min(drawn.x0, drawn.y0) > 0 and drawn.x1 < width and drawn.y1 < height, name
    title, foot = (text.get_window_extent() for text in slide.texts[:2])
    panels = [box for axes in slide.axes if (box := axes.get_tightbbox()) is not None]
    assert len(panels) == len(slide.axes)
    assert all(box.y1 <= title.y0 and box.y0 >= foot.y1 for box in panels), name
    for legend in slide.legends:
        box = legend.get_window_extent()
        assert foot.y1 <= box.y0 and box.y1 <= min(panel.y0 for panel in panels) + 1, name
        assert box.x0 > 0 and box.x1 < slide.bbox.width, name


def test_a_slide_prints_its_finding() -> None:
    slide = slide_inverted(make_study())
    assert repr(slide) == slide.finding == slide.texts[0].get_text().replace("\n", " ")
    assert slide._repr_png_()[:4] == b"\x89PNG"


def test_criteria_look_different() -> None:
    assert len({look["color"] for look in LOOKS.values()}) == len(LOOKS)
    assert len({look["marker"] for look in LOOKS.values()}) == len(LOOKS)


# -------------------------------------------------------------------------------------------------- what is committed


def test_the_committed_results_fill_every_slide() -> None:
    results = list(load_results(STORED / "reports").values())
    study = CutStudy.load(STORED / "presentation" / "resnet20_cifar10.json")
    assert study.test_images == 10_000
    assert study.environment.command == "python -m benchmarks.presentation --threads 1"
    for language in ("en", "tr"):
        for name, slide in make_slides(results, study, language).items():
            _assert_inside(slide, f"{language}: {name}")


def test_the_committed_study_is_what_its_command_measures() -> None:
    from benchmarks.presentation import list_settings

    study = CutStudy.load(STORED / "presentation" / "resnet20_cifar10.json")
    assert [cut.setting for cut in study.cuts] == list_settings()
    assert all(abs(cut.macs_kept - (1 - cut.ratio)) < 0.03 for cut in study.cuts)
    assert json.loads((STORED / "presentation" / "resnet20_cifar10.json").read_text())["format"] == "cleanai-cut-study"
    assert dataclasses.is_dataclass(study)
