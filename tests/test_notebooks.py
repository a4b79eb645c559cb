"""The notebooks are stored as they ran and small, and the Turkish editions differ from the English ones in words only.

That their outputs still come out is tested by nbval (`make test`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
ENGLISH = sorted(FOLDER.glob("*.ipynb"))
ALL = sorted(FOLDER.rglob("[!.]*.ipynb"))
MOST_BYTES = 1_000_000
MOST_LINES = 12  # of a code cell: notebooks call the library and hold no logic of their own
MOST_MODEL_LINES = 22  # of a cell tagged "model": a network or data of the reader's own, which no library holds


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def load_cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in load_cells(path) if cell["cell_type"] == "code"]


def translate_code(lines: list[str]) -> list[str]:
    """The first cell of a Turkish edition: the language is the only thing that may differ."""
    return [re.sub(r'^language = "en"$', 'language = "tr"', line) for line in lines]


def test_there_are_notebooks() -> None:
    assert FOLDER / "00_quickstart.ipynb" in ENGLISH


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_notebook_is_stored_as_it_ran(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in cells), "a cell without output proves nothing when nbval runs it"
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_notebook_is_small_and_calls_the_library(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    for cell in code_cells(path):
        own_model = "model" in cell["metadata"].get("tags", [])
        assert len(cell["source"]) <= (MOST_MODEL_LINES if own_model else MOST_LINES)
        assert own_model or not [line for line in cell["source"] if line.startswith("class ")]


@pytest.mark.parametrize("path", ENGLISH, ids=name_of)
def test_the_turkish_edition_has_the_same_code(path: Path) -> None:
    turkish = FOLDER / "tr" / path.name
    assert [cell["cell_type"] for cell in load_cells(path)] == [cell["cell_type"] for cell in load_cells(turkish)]
    english_code, turkish_code = ([cell["source"] for cell in code_cells(edition)] for edition in (path, turkish))
    assert [translate_code(english_code[0]), *english_code[1:]] == turkish_code, "run notebooks/refresh.py"
    texts = [
        {"".join(cell["source"]) for cell in load_cells(edition) if cell["cell_type"] == "markdown"}
        for edition in (path, turkish)
    ]
    assert not texts[0] & texts[1], "a text cell was not translated"
