"""Results that lie in folders, several of them side by side in tables and figures, and tables as they show."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_factory import make_four_methods, make_preparation, make_result, make_results
from PIL import Image

from cleanai.errors import InputError
from cleanai.experiments import load_results, load_stages, make_config, run_experiment
from cleanai.experiments.document import facts_table, scenario_document
from cleanai.experiments.figures import plot_removed_shares
from cleanai.experiments.pages import draw_pages
from cleanai.experiments.results import (
    ORIGINAL,
    PRUNED,
    STAGE_FORMAT,
    STORED,
    ExperimentResults,
    MethodResult,
    PruneResult,
    find_stored,
    to_plain,
)
from cleanai.experiments.tables import agreement_table, overview_table
from cleanai.rendering import Table
from cleanai.report import GroupRecord, LayerRecord

ROOT = Path(__file__).parent.parent


def make_group(name: str, size: int, removed: tuple[int, ...]) -> GroupRecord:
    kept = size - len(removed)
    layer = LayerRecord(name, f"{name}.weight", 0, "output", before=size, after=kept)
    return GroupRecord(name, "channels", (layer,), size, kept, removed)


def make_cut(method: str, **removed: tuple[int, ...]) -> MethodResult:
    """A method's result that removed these channels of groups of ten."""
    groups = tuple(make_group(name, 10, units) for name, units in removed.items())
    result = make_result(method)
    return dataclasses.replace(result, report=dataclasses.replace(result.report, groups=groups))


# -------------------------------------------------------------------------------------------------- reading a folder


def test_a_folder_gives_its_results_by_name_and_leaves_other_files_alone(tmp_path: Path) -> None:
    results = make_four_methods()
    results.save(tmp_path / "TS1.json")
    dataclasses.replace(results, name="TS2").save(tmp_path / "other name.json")
    results.config.save(tmp_path / "TS1_config.json")
    results.methods["wanda"].report.save(tmp_path / "TS1_WANDA.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    found = load_results(tmp_path)
    assert list(found) == ["TS1", "TS2"]
    assert found["TS1"].to_dict() == results.to_dict()


def test_results_are_read_in_the_language_asked_for(tmp_path: Path) -> None:
    make_results().save(tmp_path / "a.json")
    (turkish,) = load_results(tmp_path, "tr").values()
    assert turkish.config.language == "tr"
    assert {result.report.language for result in turkish.methods.values()} == {"tr"}
    assert "nöron kapsaması" in str(turkish)
    assert turkish.translate("en").to_dict() == make_results().to_dict()
    with pytest.raises(InputError, match="language"):
        turkish.translate("de")


@pytest.mark.parametrize("content", [None, "{", '{"format": "cleanai-results"}'])
def test_a_folder_without_results_or_with_damaged_ones_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="holds no results" if content is None else "damaged"):
        load_results(tmp_path)


def test_stored_results_are_found_above_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks" / "tr")
    assert find_stored() == ROOT / STORED
    names = set(load_results())
    assert {"TS1_ResNet20_CIFAR10", *(f"TS{number}_MobileNetV2_NIPS2017" for number in (2, 3, 4))} <= names
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name the folder"):
        load_results()


def test_finished_stages_are_read_without_the_report(tmp_path: Path) -> None:
    def write(place: str, result: Any) -> None:
        path = tmp_path / "checkpoints" / f"{place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"format": STAGE_FORMAT, "stage": path.stem, "settings": {}, "result": to_plain(result)}
        path.write_text(json.dumps(data))

    result = make_result()
    preparation = make_preparation(result.report.metrics[ORIGINAL])
    write("TS1/prepare", preparation)
    write("TS1_Coverage_X_Y/prune", PruneResult(result.report, 2.5, {}))
    (tmp_path / "checkpoints" / "TS1" / "prune.json").write_text('{"format": "something else"}')
    stages = load_stages(tmp_path)
    assert stages["TS1/prepare"] == preparation
    pruned = stages["TS1_Coverage_X_Y/prune"]
    assert isinstance(pruned, PruneResult)
    assert pruned.report.to_dict() == result.report.to_dict()
    assert len(stages) == 2
    assert load_stages(tmp_path / "nothing") == {}


def test_no_time_is_taken_where_none_is_asked_for(tmp_path: Path) -> None:
    config = make_config(
        "TS1", "smoke", methods="wanda", prepare_epochs=1, finetune_epochs=0, iterative_steps=1, latency_seconds=0
    )
    results = run_experiment(config, output=tmp_path, documents=False, silent=True)
    assert results is not None
    assert [metrics.latency for metrics in results.methods["wanda"].report.metrics.values()] == [None, None]
    assert results.preparation.after.metrics.latency is None
    assert list(load_stages(tmp_path)) == ["TS1/prepare", "TS1_WANDA_DigitsResNet_Digits/prune"]


# ------------------------------------------------------------------------------------------------------------- tables


def test_the_overview_has_a_row_per_method_of_each_experiment() -> None:
    untuned = make_results(make_result("wanda", final=None, pruned=3.25), epochs=0, name="TS4_Net_Data")
    globally = untuned.config.replace(global_pruning=True, recover="least_squares", pruning_ratio=0.1)
    table = overview_table([make_four_methods(), dataclasses.replace(untuned, config=globally)], "en")
    assert [row[:3] for row in table.rows] == [
        ("TS1", "50.0 % local", "neuron coverage"),
        ("", "50.0 % local", "WANDA"),
        ("", "50.0 % local", "magnitude"),
        ("", "50.0 % local", "Taylor"),
        ("TS4 Net Data", "10.0 % global, least squares", "WANDA"),
    ]
    assert table.rows[1][3:6] == ("91.73", "60.50", "91.90")
    assert table.rows[4][3:6] == ("91.73", "3.25", "—")
    assert table.notes[0] == "TS1: accuracy in % on 450 test images."


def test_the_overview_in_turkish() -> None:
    table = overview_table([make_results()], "tr")
    assert table.rows[0][:4] == ("TS1", "%50,0 yerel", "nöron kapsaması", "91,73")


def test_agreement_counts_what_both_removed_beside_chance() -> None:
    first = make_cut("coverage", a=(0, 1, 2, 3), b=(5,))
    results = make_results(first, make_cut("wanda", a=(2, 3, 9), b=(6,)))
    table = agreement_table(results, "coverage", "wanda", "en")
    assert table.rows == (("a", "10", "4", "3", "2", "1.2"), ("b", "10", "1", "1", "0", "0.1"))
    assert table.title == (
        "neuron coverage and WANDA chose 2 of 5 channels alike; blind choices would share 1.3"
    )  # 4 · 3 / 10 + 1 · 1 / 10
    assert "5 kanalın 2 tanesinde" in agreement_table(results, "coverage", "wanda", "tr").title
    with pytest.raises(InputError, match="taylor"):
        agreement_table(results, "coverage", "taylor", "en")


def test_facts_say_what_was_measured_but_not_when() -> None:
    results = make_results(warnings=["there are 500 calibration images, 3200 were asked for"])
    table = facts_table(results, "en")
    facts = {row[0]: row[1] for row in table.rows}
    assert facts["Images"] == "training 1,000, calibration 147, validation 200, test 450"
    assert facts["Command"] == results.environment.command
    assert facts["Machine"] == "Linux, 2 × Intel Xeon"
    assert "2026" not in str(table)
    assert table.notes == ("there are 500 calibration images, 3200 were asked for",)
    assert facts_table(results, "tr").notes == ("500 kalibrasyon görüntüsü var, 3200 tane istenmişti",)


def test_a_table_shows_itself_in_a_terminal_and_in_a_notebook() -> None:
    table = Table("A <title>", ("name", "value"), (("<script>", "-3"),), "lr", ("a & b",))
    assert str(table).splitlines() == [
        "A <title>",
        "  name      value",
        "  ---------------",
        "  <script>     -3",
        "  a & b",
    ]
    page = table._repr_html_()
    assert "A &lt;title&gt;" in page and "&lt;script&gt;" in page and "−3" in page and "a &amp; b" in page
    assert "<script>" not in page
    assert "color: black" not in page and "background: #fff" not in page  # it must be readable on dark pages as well


# ------------------------------------------------------------------------------------------------------------ figures


def test_removed_shares_are_drawn_group_by_group_and_method_by_method() -> None:
    even = make_results(make_cut("coverage", a=(0,), b=(1,)), make_cut("wanda", a=(2,), b=(3,)))
    uneven = make_results(make_cut("coverage", a=(), b=(1, 2, 3)), name="TS4")
    uneven = dataclasses.replace(uneven, config=uneven.config.replace(scenario="TS4", global_pruning=True))
    figure = plot_removed_shares([even, uneven])
    axes = figure.axes[0]
    values = np.asarray(axes.images[0].get_array())
    assert values == pytest.approx(np.array([[10.0, 10.0, 0.0], [10.0, 10.0, 30.0]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert figure.get_suptitle() == "TS1 takes 10.0 % to 10.0 % of a group; TS4 takes 0.0 % to 30.0 % of a group"
    shown = {text.get_text() for text in axes.texts}
    assert {"TS1: 50.0 % local", "TS4: 50.0 % global", "30"} <= shown


def test_removed_shares_need_the_same_groups() -> None:
    first, second = make_results(make_cut("coverage", a=(0,))), make_results(make_cut("coverage", b=(0,)))
    with pytest.raises(InputError, match="different groups"):
        plot_removed_shares([first, second])
    with pytest.raises(InputError, match="no group"):
        plot_removed_shares([])


def test_pages_of_a_document_stand_side_by_side() -> None:
    document = scenario_document(make_results())
    one, two = (Image.open(io.BytesIO(draw_pages(document, 1, last, ppi=30))) for last in (1, 2))
    assert one.height == two.height == round(29.7 / 2.54 * 30)
    assert two.width == 2 * one.width + 8
    with pytest.raises(InputError, match="no pages 2 to 99"):
        draw_pages(document, 2, 99)


# ------------------------------------------------------------------------------------------- what this project stores


@pytest.fixture(scope="module")
def stored() -> dict[str, ExperimentResults]:
    return load_results(ROOT / STORED)


def test_every_stored_cut_is_proven(stored: dict[str, ExperimentResults]) -> None:
    results = [result for each in stored.values() for result in each.methods.values()]
    assert len(results) >= 12
    assert all(result.report.proof.passed for result in results)


@pytest.mark.parametrize("language", ["en", "tr"])
def test_stored_results_make_their_tables_and_figures(stored: dict[str, ExperimentResults], language: str) -> None:
    table = overview_table(list(stored.values()), language)
    assert len(table.rows) == sum(len(each.methods) for each in stored.values())
    local, globally = (stored[f"TS{number}_MobileNetV2_NIPS2017"] for number in (3, 4))
    values = np.asarray(plot_removed_shares([local, globally], language).axes[0].images[0].get_array())
    assert values.shape == (25, 8)
    assert np.ptp(values[:, :4]) < 5 < np.ptp(values[:, 4:])  # layer by layer all lose the same, ranked together not


def test_local_pruning_costs_the_same_whatever_the_score(stored: dict[str, ExperimentResults]) -> None:
    def costs(name: str) -> set[tuple[int, int]]:
        metrics = [result.report.metrics[PRUNED] for result in stored[name].methods.values()]
        return {(each.parameters, each.macs) for each in metrics}

    assert len(costs("TS3_MobileNetV2_NIPS2017")) == 1
    assert len(costs("TS4_MobileNetV2_NIPS2017")) == 4
