"""Sweeps: every combination once, in one table; what is done is not redone; on other machines as here."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cleanai import InputError
from cleanai.cli import main
from cleanai.experiments import ExperimentResults, make_config, run_sweep
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED
from cleanai.experiments.sweep import Cell, list_cells, summarise
from cleanai.experiments.sweep_plot import MARKERS, plot_sweep

SMALL: dict[str, Any] = {
    "prepare_epochs": 2,
    "finetune_epochs": 1,
    "iterative_steps": 1,
    "calibration_batches": 1,
    "latency_seconds": 0.1,
}
WORDS = [f"{name}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a sweep over two methods, two ratios and two seeds."""
    place = tmp_path_factory.mktemp("sweep")
    words = ["sweep", "TS1", "--profile", "smoke", "--methods", "wanda", "magnitude", "--ratios", "0.2", "0.5"]
    assert main([*words, "--seeds", "0", "1", "--output", str(place), "--set", *WORDS]) == 0
    return place


def test_every_combination_is_in_the_table(folder: Path) -> None:
    table = pd.read_csv(folder / "sweep.csv")
    assert len(table) == 2 * 2 * 2 * 3
    keys = table[["method", "pruning_ratio", "seed", "stage"]]
    assert not keys.duplicated().any()
    assert set(table.stage) == {ORIGINAL, PRUNED, FINETUNED}
    # Cells of one seed begin with the same model, those of another seed with another.
    originals = table[table.stage == ORIGINAL].groupby("seed").loss.nunique()
    assert list(originals) == [1, 1] and table[table.stage == ORIGINAL].loss.nunique() == 2
    for _, row in table.iterrows():
        cell = Cell(str(row.method), float(row.pruning_ratio), int(row.seed))
        found = ExperimentResults.load(folder / cell.folder / "result.json")
        metrics = found.methods[cell.method].report.metrics[str(row.stage)]
        assert (metrics.parameters, metrics.accuracy) == (row.parameters, pytest.approx(row.accuracy))
    smaller = table[table.stage == PRUNED].groupby("pruning_ratio").parameters.mean()
    assert smaller[0.5] < smaller[0.2] < table[table.stage == ORIGINAL].parameters.min()


def test_the_summary_has_mean_and_deviation(folder: Path) -> None:
    table, summary = pd.read_csv(folder / "sweep.csv"), pd.read_csv(folder / "summary.csv")
    assert len(summary) == 2 * 2 * 3 and set(summary.seeds) == {2}
    chosen = (table.method == "wanda") & (table.pruning_ratio == 0.5) & (table.stage == FINETUNED)
    own = (summary.method == "wanda") & (summary.pruning_ratio == 0.5) & (summary.stage == FINETUNED)
    values = list(table[chosen].accuracy)
    assert summary[own].accuracy_mean.item() == pytest.approx(statistics.fmean(values))
    assert summary[own].accuracy_sd.item() == pytest.approx(statistics.stdev(values))


def test_figures_are_drawn(folder: Path) -> None:
    assert (folder / "accuracy_cost.png").stat().st_size > 5000
    assert "<svg" in (folder / "accuracy_cost.svg").read_text()
    rows = pd.read_csv(folder / "sweep.csv").to_dict("records")
    axes = plot_sweep(rows, "tr").axes  # type: ignore[arg-type]
    assert [each.get_title(loc="left") for each in axes] == ["budanmış", "budanmış ve ince ayarlı"]
    drawn = [np.asarray(line.get_xdata(), dtype=float) for line in axes[0].lines if str(line.get_marker()) in MARKERS]
    assert [len(kept) for kept in drawn] == [2, 2] and all(kept.max() < 100 for kept in drawn)


def test_what_is_done_is_not_done_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    lost = folder / "seed1" / "wanda_0.5"
    (lost / "result.json").unlink()  # as if stopped there
    config = make_config("TS1", "smoke", **SMALL)
    found = run_sweep(
        config, methods=["wanda", "magnitude"], ratios=[0.2, 0.5], seeds=[0, 1], output=folder, silent=True
    )
    assert len(found) == 24 and (lost / "result.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_sweep_can_grow_but_not_change(folder: Path) -> None:
    config = make_config("TS1", "smoke", **SMALL)
    with pytest.raises(InputError, match=r"momentum was 0\.9, is 0\.5"):
        run_sweep(config.replace(momentum=0.5), methods=["wanda"], ratios=[0.2], output=folder, silent=True)


def test_workers_of_a_scheduler_do_the_same(folder: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    settings: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster:
        words = ["sweep", "TS1", "--profile", "smoke", "--methods", "wanda", "--ratios", "0.2", "0.5", "--seeds", "1"]
        words += ["--scheduler", cluster.scheduler_address, "--output", str(tmp_path), "--set", *WORDS]
        assert main(words) == 0
    ours, theirs = (pd.read_csv(place / "sweep.csv") for place in (folder, tmp_path))
    ours = ours[(ours.seed == 1) & (ours.method == "wanda")].reset_index(drop=True)
    same = [name for name in ours if not name.startswith("latency")]
    pd.testing.assert_frame_equal(ours[same], theirs[same])


def test_there_must_be_a_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    words = ["sweep", "TS1", "--profile", "smoke", "--scheduler", "tcp://127.0.0.1:1", "--output", str(tmp_path)]
    assert main(words) == 1
    assert "dask scheduler" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"methods": ["wanda", "wanda"]}, "each once"),
        ({"methods": []}, "methods"),
        ({"methods": ["cover"]}, "coverage"),
        ({"ratios": [1.2]}, "ratios"),
        ({"seeds": [-1]}, "seed"),
    ],
)
def test_bad_combinations_are_refused_first(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word):
        run_sweep(make_config("TS1", "smoke"), output=tmp_path, silent=True, **changes)
    assert not list(tmp_path.iterdir())


def test_cells_go_seed_by_seed() -> None:
    cells = list_cells(make_config("TS1"), ["wanda", "taylor"], [0.1, 0.2], [3, 4])
    assert len(cells) == 8 and [cell.seed for cell in cells] == [3] * 4 + [4] * 4
    assert cells[0].folder == Path("seed3/wanda_0.1")


def test_summary_of_one_seed_has_no_deviation() -> None:
    row = {"method": "wanda", "pruning_ratio": 0.1, "stage": PRUNED, "accuracy": 50.0, "parameters": 4, "macs": 2}
    (one,) = summarise([row])
    assert (one["accuracy_mean"], one["accuracy_sd"]) == (50.0, None)
    (missing,) = summarise([row, {**row, "accuracy": math.nan}])
    assert missing["accuracy_mean"] is None and missing["macs_mean"] == 2
