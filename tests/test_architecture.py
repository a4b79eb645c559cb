"""Imports inside the package flow one way, along the pipeline, and no other pruning library is among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from layout import INSIDE, ORDER

import cleanai

ROOT = Path(cleanai.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

PRUNING_LIBRARIES = {"torch_pruning", "fasterai", "only_train_once", "nni", "neural_compressor", "sparseml"}


def list_imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import that runs when the file is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            submodules = {alias.name for alias in node.names} & set(ORDER) if node.module == "cleanai" else set()
            if submodules:
                yield from ((f"cleanai.{name}", node.lineno) for name in sorted(submodules))
            else:
                yield node.module or "", node.lineno
        yield from list_imports(node)


def find_place(parts: tuple[str, ...]) -> tuple[int, int]:
    """Where a file stands: its place in the order, and inside its package."""
    if len(parts) == 1 and parts[0] not in INSIDE:
        return ORDER.index(parts[0]), 0
    inside = INSIDE[parts[0]]
    return ORDER.index(parts[0]), inside.index(parts[1] if len(parts) > 1 else "__init__")


def parts_of(path: Path) -> tuple[str, ...]:
    """A file's name inside the package, as an import spells it."""
    return path.relative_to(ROOT).with_suffix("").parts


def test_every_file_has_its_place_in_the_order() -> None:
    assert len(set(ORDER)) == len(ORDER)
    expected: set[tuple[str, ...]] = {(name,) for name in ORDER if name not in INSIDE}
    expected |= {(package, name) for package, names in INSIDE.items() for name in names}
    assert {parts_of(path) for path in SOURCES} == expected


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(parts_of(path)))
def test_imports_flow_one_way(path: Path) -> None:
    for name, line in list_imports(ast.parse(path.read_text(encoding="utf-8"))):
        package, *parts = name.split(".")
        if package == "cleanai":
            place = find_place(tuple(parts) or ("__init__",))
            # A package's own front names its parts by `from cleanai.rules import …`.
            own = parts == list(parts_of(path)[:-1]) and path.stem == "__init__"
            assert own or place < find_place(parts_of(path)), f"{path.name}:{line} imports {name}, which comes later"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(parts_of(path)))
def test_no_pruning_library_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] not in PRUNING_LIBRARIES, f"{path.name} imports {name}"
            assert not name.startswith("torch.nn.utils.prune"), f"{path.name} imports {name}"


def test_autograd_nodes_are_read_in_one_file_only() -> None:
    readers = {
        path.stem
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("grad_fn", "next_functions", "_input_metadata")
    }
    assert readers == {"trace"}
