"""A random part of the model zoo, another one every day, and the driver that runs the whole of it."""

from __future__ import annotations

import json
import os
import random
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import zoo, zoo_page, zoo_saved
from benchmarks.suites import SUITES, Case
from benchmarks.zoo import Job, examine, format_row, judge, load_results, main, run_jobs
from cleanai.texts import term

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "zoo.json"
SAVED = RESULTS.with_name("zoo_saved.json")
MOST_SECONDS = 5.0
SEED = date.today().toordinal()


def draw_networks(suite: str, count: int = 4) -> list[str]:
    """Some networks of a suite that the kept results call proven and quick."""
    rows = [row for row in load_results(RESULTS)["rows"].values() if row["suite"] == suite]
    light = [row["name"] for row in rows if row["status"] == "verified" and row["seconds"] < MOST_SECONDS]
    return random.Random(SEED).sample(light, min(count, len(light)))


@pytest.mark.parametrize(
    ("suite", "name"),
    [(suite, name) for suite in ("torchvision", "timm", "transformers") for name in draw_networks(suite)],
)
def test_a_network_of_the_day_is_proven(suite: str, name: str) -> None:
    pytest.importorskip(suite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        torch.manual_seed(0)
        *_, row = examine(SUITES[suite]()[name]())
    row = judge(row)
    assert row["status"] == "verified", row["message"]


# ------------------------------------------------------------------------------------------------------- the driver


def tiny() -> Case:
    return Case(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3))


def stubborn() -> Case:
    time.sleep(60)
    return tiny()


def broken() -> Case:
    raise RuntimeError("no such network")


def deadly() -> Case:
    os._exit(3)


def greedy() -> Case:
    torch.empty(10**10).fill_(1.0)
    return tiny()


class NotFollowed(nn.Module):
    """Computes on the original's parameters outside of autograd's sight, so that nothing can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).detach()


def refused() -> Case:
    return Case(NotFollowed(), torch.randn(1, 3))


@pytest.mark.filterwarnings("ignore:This process")  # of fork; the children do no more than these few lines
@pytest.mark.parametrize(
    ("entry", "status", "message"),
    [
        (tiny, "verified", ""),
        (stubborn, "hung", "building"),
        (broken, "crashed", "no such network"),
        (deadly, "crashed", "exit code 3"),
        (greedy, "crashed", "memory"),
        (refused, "refused", "TraceError"),
    ],
)
def test_every_fate_of_a_network_is_told(entry: Callable[[], Case], status: str, message: str) -> None:
    limit = 1.0 if status == "hung" else 60.0
    (row,) = run_jobs([Job("tests", "a-name", entry)], limit=limit, memory=4, parallel=1)
    assert row["status"] == status
    assert message in row["message"]
    assert "a-name" in format_row(row)
    json.dumps(row, allow_nan=False)


def test_copies_are_run_trained_loaded_and_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(zoo.CHECKS, "onnx")  # takes many times as long as all the others
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, row = examine(tiny(), copies=True)
    checks: dict[str, Any] = row["copies"]
    assert checks == dict.fromkeys(("batch 1", "batch 2", "backward", "state_dict", "export"), "ok")
    assert judge({**row, "copies": {"export": "it failed"}})["status"] == "unusable"


@pytest.mark.filterwarnings("ignore:This process")
def test_the_results_of_a_run_are_merged_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUITES, "toys", lambda: {"tiny": tiny, "broken": broken})
    output = tmp_path / "zoo.json"
    assert main(["--suite", "toys", "--only", "tin*", "--output", str(output)]) == 0
    assert main(["--suite", "toys", "--missing", "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "toys: 1 networks: 1 verified" in printed and "1 crashed" in printed
    results = json.loads(output.read_text(encoding="utf-8"))
    assert {name: row["status"] for name, row in results["rows"].items()} == {
        "toys/broken": "crashed",
        "toys/tiny": "verified",
    }
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert results["measured"] and results["machine"]


# ------------------------------------------------------------------------------------------------ saved and loaded


@pytest.mark.filterwarnings("ignore:This process")
def test_saved_networks_give_the_same_outputs_in_a_new_process() -> None:
    pytest.importorskip("timm")
    names = {"torchvision": ["squeezenet1_1", "mobilenet_v3_small"], "timm": ["starnet_s050", "lcnet_035", "resnet10t"]}
    jobs = [job for suite, only in names.items() for job in zoo.list_jobs([suite], only)]
    rows = list(zoo_saved.check_saved(jobs, limit=120, memory=8, parallel=1))
    assert [(row["name"], row["status"], row["message"]) for row in rows] == [
        (job.name, "verified", "") for job in jobs
    ]
    assert all(row["kept"] < 0.8 * row["parameters"] and row["load_s"] for row in rows)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_file_that_does_not_give_the_same_outputs_is_found(tmp_path: Path) -> None:
    (saved,) = zoo_saved.save_networks([Job("tests", "tiny", tiny)], tmp_path, limit=60, memory=4, parallel=1)
    assert saved["status"] == "verified"
    folder = tmp_path / "tests" / "tiny"
    same, other = (list(zoo_saved.load_network(case, folder))[-1] for case in (tiny_again(), tiny_again(wrong=True)))
    assert (same["status"], same["message"]) == ("verified", "")
    assert (other["status"], other["message"]) == ("wrong", "differs after loading: output 0")


def tiny_again(wrong: bool = False) -> Case:
    torch.manual_seed(0)
    case = tiny()
    return Case(case.model, case.inputs + 1 if wrong else case.inputs)


def test_a_random_tenth_of_the_zoo_was_saved_and_loaded() -> None:
    rows = load_results(SAVED)["rows"].values()
    assert len(rows) >= 0.1 * len(load_results(RESULTS)["rows"])
    assert [row["name"] for row in rows if row["status"] != "verified"] == []


# --------------------------------------------------------------------------------------------------------- the pages

needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="the zoo has not been measured yet")


@needs_results
@pytest.mark.parametrize("language", zoo_page.PAGES)
def test_the_pages_show_the_kept_results(language: str) -> None:
    page = zoo_page.PAGES[language].read_text(encoding="utf-8")
    assert page == zoo_page.make_page(load_results(RESULTS), load_results(SAVED), language), (
        "run python -m benchmarks.zoo_page"
    )


@needs_results
def test_every_reason_is_said_in_turkish() -> None:
    rows = load_results(RESULTS)["rows"].values()
    reasons = {frozen["reason"] for row in rows for frozen in row.get("frozen", [])}
    assert [reason for reason in sorted(reasons) if term("tr", reason) == reason] == []


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    frozen = [{"reason": f"Topk in layers.{n}.attn orders it", "channels": 1000} for n in range(3)]
    frozen += [{"reason": f"it reaches the ignored layer {name}", "channels": 5} for name in ("a_b", "c", "d")]
    frozen.append({"reason": "the output of the model", "channels": 10})
    english, turkish = (zoo_page.merge_reasons(frozen, language) for language in ("en", "tr"))
    assert english.startswith(r"Topk in layers.\*.attn orders it (3,000); it reaches the ignored layer a\_b (5)")
    assert english.endswith("; reasons not shown: 1") and "output" not in english
    assert turkish.startswith(r"layers.\*.attn içindeki Topk işlemi onu sıralıyor (3.000); ")
