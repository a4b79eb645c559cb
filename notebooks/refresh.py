"""Runs the notebooks and stores their outputs; the Turkish editions get the code and outputs of the English ones.

    python notebooks/refresh.py                        # all of them
    python notebooks/refresh.py 00_quickstart.ipynb    # this one

A Turkish edition has its own text cells and nothing else of its own, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_SECONDS = 300


def refresh_notebook(path: Path) -> None:
    """Runs an English notebook in its folder, stores it, and brings its Turkish edition up to date."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    _forget_the_run(notebook)
    nbformat.write(notebook, path)
    turkish_path = path.parent / "tr" / path.name
    if turkish_path.exists():
        turkish = nbformat.read(turkish_path, as_version=4)
        copy_code(notebook, turkish)
        nbformat.write(turkish, turkish_path)


def copy_code(source: nbformat.NotebookNode, target: nbformat.NotebookNode) -> None:
    """Replaces the code cells of a notebook, outputs included; its text cells must stand at the same places."""
    kinds = [[cell.cell_type for cell in notebook.cells] for notebook in (source, target)]
    if kinds[0] != kinds[1]:
        raise SystemExit("The Turkish edition has other cells than the English one: change its text cells first.")
    target.cells = [
        old if old.cell_type == "markdown" else new for new, old in zip(source.cells, target.cells, strict=True)
    ]
    target.metadata = source.metadata


def _forget_the_run(notebook: nbformat.NotebookNode) -> None:
    """Drops what differs from run to run or machine to machine without saying anything: times, the Python version."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}


if __name__ == "__main__":
    names = sys.argv[1:] or [path.name for path in sorted(FOLDER.glob("*.ipynb"))]
    for name in names:
        refresh_notebook(FOLDER / name)
