"""The READMEs and CONTRIBUTING.md run as they stand, print what they say, and show what was measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cleanai import rules

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.tr.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def list_blocks(name: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block of a document."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def run_blocks(name: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Runs a document's Python blocks in one namespace; what each printed, and the text block that follows, or ""."""
    namespace: dict[str, Any] = {"__name__": "document"}
    blocks = list_blocks(name)
    outcomes = []
    for position, (language, content) in enumerate(blocks):
        if language == "python":
            exec(compile(content, f"{name}, block {position + 1}", "exec"), namespace)
            following = blocks[position + 1 : position + 2]
            said = following[0][1] if following and following[0][0] == "text" else ""
            outcomes.append((capsys.readouterr().out, said))
    return outcomes


def assert_said(printed: str, said: str) -> None:
    """Every line of the document was printed, in this order; "…" alone stands for lines left out.

    How wide a table's columns are depends on the latencies in it, so spaces and rules count as one.
    """
    lines = iter(_narrow(line) for line in printed.splitlines())
    for line in map(_narrow, said.splitlines()):
        found = line in ("", "…") or line in lines  # goes on where the last search ended
        assert found, f"not printed, or not here: {line!r}"


def _narrow(line: str) -> str:
    return re.sub(r"-{3,}", "---", " ".join(line.split()))


@pytest.mark.parametrize("name", READMES)
def test_a_readme_runs_and_prints_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it writes reports
    outcomes = run_blocks(name, capsys)
    assert sum(bool(said) for _, said in outcomes) == 5
    for printed, said in outcomes:
        assert_said(printed, said)
    written = sorted(path.name for path in (tmp_path / "reports").iterdir())
    assert written == ["pruned.safetensors", "report.html", "report.json", "report.md"]


def test_the_examples_for_contributors_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    assert len(run_blocks("CONTRIBUTING.md", capsys)) == 2


def test_both_readmes_have_the_same_code() -> None:
    english, turkish = (list_blocks(name) for name in READMES)
    assert english == turkish


def test_a_wrong_line_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not printed"):
        assert_said("one\ntwo\n", "two\none\n")


def test_the_readmes_show_what_was_measured() -> None:
    refresh = load_refresh()
    for language, path in refresh.README.items():
        text = path.read_text(encoding="utf-8")
        for marked, table in (
            (refresh.MARKED, refresh.results_table),
            (refresh.MARKED_EXPERIMENTS, refresh.experiments_table),
        ):
            found = marked.search(text)
            assert found is not None and found[0] == table(language)


def test_kept_experiments_are_named_as_what_they_are() -> None:
    kept = load_refresh().load_experiments()
    assert {results.config.scenario for results in kept} == {"TS1", "TS2", "TS3", "TS4"}
    for results in kept:
        assert results.environment.command and results.environment.machine and results.environment.created
        assert all(result.report.proof.passed for result in results.methods.values())
        if results.config.data == "photos":  # easier than ImageNet's images, and not to be taken for them
            assert "ImageNet" not in results.name and any("NIPS-2017" in line for line in results.warnings)


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert all((ROOT / target).exists() for target in targets if "://" not in target)


def load_refresh() -> ModuleType:
    """docs/refresh.py as a module."""
    spec = importlib.util.spec_from_file_location("refresh_docs", ROOT / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
