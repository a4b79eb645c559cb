"""What people read runs as it stands, prints what it says, and is the same in both languages.

The READMEs, CONTRIBUTING.md and the guide (docs/guide, docs/guide/tr). That their links lead somewhere is checked on
the built site (`make docs`), their spelling in `tests/test_spelling.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from documents import (
    GUIDE,
    ROOT,
    Block,
    assert_said,
    check_command,
    list_blocks,
    list_commands,
    load_script,
    parse_arguments,
    run_python,
)

import cleanai
from cleanai import registry, rules
from cleanai.importance import CRITERIA

PAGES = sorted(GUIDE.glob("*.md"))
TWINS = {ROOT / "README.md": ROOT / "README.tr.md"} | {path: path.parent / "tr" / path.name for path in PAGES}
DOCUMENTS = [*TWINS, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
RESULTS = load_script(ROOT / "docs" / "refresh.py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def own_registries() -> Generator[None]:
    """What a document registers is forgotten after it."""
    registries: tuple[dict[Any, Any], ...] = (rules.RULES, registry._BY_CLASS, registry._BY_MARK, CRITERIA)
    before: list[dict[Any, Any]] = [dict(each) for each in registries]
    yield
    for each, content in zip(registries, before, strict=True):
        each.clear()
        each |= content


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_python_of_a_document_runs_and_prints_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for printed, said in run_python(path, lambda: capsys.readouterr().out):
        assert_said(printed, said)
        assert said or not printed, f"it printed this, and the document does not say so:\n{printed}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_commands_of_a_document_work(path: Path, tmp_path: Path) -> None:
    for block in list_blocks(path):
        if block.language == "sh":
            for words in list_commands(block):
                check_command(words, block.needs, tmp_path)


@pytest.mark.parametrize("path", TWINS, ids=name_of)
def test_both_languages_have_the_same_code_and_the_same_sections(path: Path) -> None:
    assert list_blocks(path) == list_blocks(TWINS[path])
    english, turkish = (list_headings(page) for page in (path, TWINS[path]))
    assert [level for level, _ in english] == [level for level, _ in turkish]


def test_no_page_is_without_its_twin() -> None:
    assert {path.name for path in (GUIDE / "tr").glob("*.md")} == {path.name for path in PAGES}


@pytest.mark.parametrize("path", [*TWINS, *TWINS.values()], ids=name_of)
def test_only_languages_that_are_checked_are_fenced(path: Path) -> None:
    assert {block.language for block in list_blocks(path)} <= {"python", "text", "sh"}
    fences = re.findall(r"^```", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(list_blocks(path))


def list_headings(path: Path) -> list[tuple[int, str]]:
    """(level, text) of every heading outside fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, re.MULTILINE)]


def test_a_wrong_line_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not printed"):
        assert_said("one\ntwo\n", "two\none\n")


def test_a_wrong_command_is_noticed(tmp_path: Path) -> None:
    for line in ("make no-such-target", "cleanai no-such-command", "python -m benchmarks.zoo --no-such-option", "rm x"):
        (words,) = list_commands(Block("sh", line + "\n"))
        with pytest.raises(AssertionError):
            check_command(words, "", tmp_path)
    with pytest.raises(SystemExit):
        parse_arguments(["run", "TS1", "--no-such-option"])


@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_tables_of_the_documents_show_what_was_measured(language: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in RESULTS.DOCUMENTS[language]}
    assert {path.name for path, text in texts.items() if RESULTS.fill(text, language) != text} == set()
    names = [found["name"] for text in texts.values() for found in RESULTS.MARKED.finditer(text)]
    expected = RESULTS.MAKERS.keys() - ({"layout"} if language == "tr" else set())  # CONTRIBUTING.md is in English
    assert sorted(names) == sorted(expected)


def test_kept_experiments_are_named_as_what_they_are() -> None:
    kept = RESULTS.load_experiments()
    assert {results.config.scenario for results in kept} == {"TS1", "TS2", "TS3", "TS4"}
    for results in kept:
        assert results.environment.command and results.environment.machine and results.environment.created
        assert all(result.report.proof.passed for result in results.methods.values())
        if results.config.data == "photos":  # easier than ImageNet's images, and not to be taken for them
            assert "ImageNet" not in results.name and any("NIPS-2017" in line for line in results.warnings)


def test_the_citation_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [cleanai.__version__]
    for key in ("cff-version", "message", "title", "authors"):  # what the format asks for
        assert re.search(rf"^{key}:", text, re.MULTILINE)


REFERENCE = ROOT / "docs" / "reference"
DIRECTIVE = re.compile(r"^\.\. (?P<kind>auto\w+|currentmodule):: (?P<name>[\w.]+)$", re.MULTILINE)


def list_reference() -> set[tuple[str, str]]:
    """(module, name) of all that the pages of the reference show."""
    shown: set[tuple[str, str]] = set()
    for path in REFERENCE.glob("*.md"):
        module = ""
        for kind, name in DIRECTIVE.findall(path.read_text(encoding="utf-8")):
            if kind == "currentmodule":
                module = name
            elif kind == "automodule":
                shown |= {(name, each) for each in importlib.import_module(name).__all__}
            else:
                shown.add((module, name))
    return shown


def list_public_names() -> set[tuple[str, str]]:
    """(module, name) of every name in an ``__all__``."""
    found = [cleanai.__name__, *(each.name for each in pkgutil.walk_packages(cleanai.__path__, "cleanai."))]
    modules = [importlib.import_module(name) for name in found if not name.endswith("__main__")]
    return {(module.__name__, name) for module in modules for name in getattr(module, "__all__", ())}


def test_every_public_name_stands_in_the_reference_once() -> None:
    shown = [(getattr(importlib.import_module(module), name), name) for module, name in sorted(list_reference())]
    for position, (thing, name) in enumerate(shown):
        assert not any(thing is other for other, _ in shown[:position]), f"{name} is shown twice"
    for module, name in sorted(list_public_names()):
        thing = getattr(importlib.import_module(module), name)
        assert any(thing is other for other, _ in shown), f"{module}.{name} is on no page of docs/reference"


def test_every_page_of_the_reference_can_be_found() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    overview = (REFERENCE / "index.md").read_text(encoding="utf-8")
    for path in REFERENCE.glob("*.md"):
        assert f"reference/{path.stem}\n" in index and (path.stem == "index" or f"({path.name})" in overview)
