"""The command line: exit codes, clear errors, and a demo whose printed numbers are the measured ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cleanai import __version__
from cleanai.cli import main
from cleanai.demo import run_demo
from cleanai.errors import InputError
from cleanai.report import Report
from cleanai.texts import percent


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"cleanai {__version__}\n"
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_the_version_is_the_one_of_the_project_file() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert f'\nversion = "{__version__}"\n' in project.read_text(encoding="utf-8")


def test_the_module_runs_as_a_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "cleanai.cli", "demo", "--data", "x"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "invalid choice: 'x'" in ended.stderr


@pytest.mark.parametrize(("language", "word"), [("en", "not found"), ("tr", "bulunamadı")])
def test_missing_data_are_explained_in_the_language_asked_for(
    language: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLEANAI_DATA", str(tmp_path))
    status = main(["demo", "--data", "cifar10", "--language", language, "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert status == 1
    assert word in captured.err and str(tmp_path) in captured.err
    assert "resnet20.safetensors" in captured.err and "cifar-10-batches-py" in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "mnist"}, "'digits', 'cifar10'"),
        ({"language": "de"}, "language='de'"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"output": __file__}, "a file is in its place"),
    ],
)
def test_senseless_settings_are_refused_before_anything_is_done(
    settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        run_demo(**settings)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("language", "words"), [("en", ["Fine-tuning"]), ("tr", ["İnce ayar yapılıyor", "Rapor:"])])
def test_digits_demo_halves_the_macs_and_keeps_the_accuracy(
    language: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_state = torch.get_rng_state()
    report = run_demo("digits", output=tmp_path / "reports", language=language)
    printed = capsys.readouterr().out
    before, after, tuned = (report.metrics[stage] for stage in ("original", "pruned", "fine-tuned"))
    assert before.macs == 828_736 and before.parameters == 38_266
    assert after.macs / before.macs == pytest.approx(0.5, abs=0.01)
    assert (tuned.macs, tuned.parameters) == (after.macs, after.parameters)
    assert before.accuracy is not None and before.accuracy >= 97
    assert tuned.accuracy is not None and tuned.accuracy >= 97
    assert before.samples == tuned.samples == 450
    assert report.proof.passed is True
    assert Report.load(tmp_path / "reports" / "demo_digits.json") == report
    page = (tmp_path / "reports" / "demo_digits.html").read_text(encoding="utf-8")
    for metrics in (before, after, tuned):
        assert metrics.accuracy is not None
        accuracy = percent(metrics.accuracy / 100, language, digits=2)
        assert accuracy in printed and accuracy in page
    assert all(word in printed for word in words)
    assert torch.equal(torch.get_rng_state(), random_state)
