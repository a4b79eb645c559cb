"""Runs the notebooks and stores their outputs; the Turkish editions get the code of the English ones.

    python notebooks/refresh.py                        # all of them
    python notebooks/refresh.py 00_quickstart.ipynb    # this one

A Turkish edition has its own text cells and nothing else of its own, so the two cannot drift apart. Where the English
code says ``language = "en"``, the Turkish says ``language = "tr"`` and is run itself; elsewhere outputs are shared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_SECONDS = 300
ENGLISH_LINE, TURKISH_LINE = 'language = "en"', 'language = "tr"'
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = "%|"  # in the text that stands for a progress bar


def refresh_notebook(path: Path) -> None:
    """Runs an English notebook in its folder, stores it, and brings its Turkish edition up to date."""
    notebook = nbformat.read(path, as_version=4)
    run_notebook(notebook, path.parent)
    nbformat.write(notebook, path)
    turkish_path = path.parent / "tr" / path.name
    if turkish_path.exists():
        turkish = nbformat.read(turkish_path, as_version=4)
        copy_code(notebook, turkish)
        if any(new.source != old.source for new, old in zip(_code(turkish), _code(notebook), strict=True)):
            run_notebook(turkish, turkish_path.parent)
        nbformat.write(turkish, turkish_path)


def run_notebook(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs a notebook in a folder; its outputs are stored in it."""
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute()
    _forget_the_run(notebook)


def copy_code(source: nbformat.NotebookNode, target: nbformat.NotebookNode) -> None:
    """Replaces the code cells of a notebook, outputs included; its text cells must stand at the same places."""
    kinds = [[cell.cell_type for cell in notebook.cells] for notebook in (source, target)]
    if kinds[0] != kinds[1]:
        raise SystemExit("The Turkish edition has other cells than the English one: change its text cells first.")
    target.cells = [
        old if old.cell_type == "markdown" else nbformat.from_dict({**new, "source": translate_code(new.source)})
        for new, old in zip(source.cells, target.cells, strict=True)
    ]
    target.metadata = source.metadata


def translate_code(source: str) -> str:
    """The code of a Turkish edition: the same, but for the line that chooses the language of titles and tables."""
    return "\n".join(TURKISH_LINE if line == ENGLISH_LINE else line for line in source.split("\n"))


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _is_bar(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    return WIDGET in data and "image/png" not in data and BAR in data.get("text/plain", "")


def _forget_the_run(notebook: nbformat.NotebookNode) -> None:
    """Drops what differs from run to run or machine to machine without saying anything.

    That is times, the Python version, and the names of widgets, which no later session knows: what is stored of a
    panel is its picture, and of a progress bar nothing.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}


if __name__ == "__main__":
    names = sys.argv[1:] or [path.name for path in sorted(FOLDER.glob("*.ipynb"))]
    for name in names:
        refresh_notebook(FOLDER / name)
