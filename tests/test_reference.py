"""What is public is written down: every public name has a docstring with an example, its arguments and its errors.

A public module is one with ``__all__``, and the names in it are the API. Only the sources are read here; that the
examples run is seen by pytest's doctests.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cleanai

ROOT = Path(cleanai.__file__).parent
ERRORS = {"CleanAIError", "InputError", "TraceError", "PlanError", "VerificationError", "DataMissingError"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# ------------------------------------------------------------------------------------------------- reading the sources


@dataclass(frozen=True)
class Source:
    """A module of a package, as text: ``root`` is the package's folder, ``name`` the dotted name below it."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        folder = self.root.joinpath(*self.name.split(".")) if self.name else self.root
        return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")

    @property
    def body(self) -> list[ast.stmt]:
        return parse(self.path)

    def follow(self, module: str) -> Source | None:
        """The module of the same package that an import names; None for one from elsewhere."""
        package, _, name = module.partition(".")
        found = Source(self.root, name)
        return found if package == self.root.name and found.path.exists() else None


@functools.cache
def parse(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


@dataclass(frozen=True)
class Definition:
    """Where a name is made: a class, a function, or an assignment with the text that follows it."""

    source: Source
    node: ast.stmt
    text: str


def find_definition(source: Source, name: str) -> Definition | None:
    """A name's definition, in the module itself or in the one that it is imported from."""
    body = source.body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return Definition(source, node, ast.get_docstring(node) or "")
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return Definition(source, node, read_text(after))
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin = source.follow(node.module or "") if (alias.asname or alias.name) == name else None
                if origin is not None and origin != source:  # else it names a part of its own package
                    return find_definition(origin, alias.name)
    return None


def read_text(node: ast.stmt | None) -> str:
    """The text that stands alone as a statement, such as one below an assignment; "" for any other statement."""
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def list_names(body: list[ast.stmt]) -> list[str] | None:
    """What ``__all__`` holds; None where there is none."""
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return ast.literal_eval(node.value)
    return None


def list_bases(definition: Definition) -> Iterator[Definition]:
    """A class and those of the package that it inherits from, nearest first."""
    yield definition
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        found = find_definition(definition.source, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found.node, ast.ClassDef):
            yield from list_bases(found)


# ------------------------------------------------------------------------------------------------- what is to be said


def list_arguments(function: Function) -> list[str]:
    spec = function.args
    given = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *([spec.vararg] if spec.vararg else [])]
    given += [spec.kwarg] if spec.kwarg else []
    return [each.arg for each in given if each.arg not in ("self", "cls") and not each.arg.startswith("_")]


def list_fields(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass, in which those that nobody passes do not count."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    fields = [each for each in fields if each.value is None or "init=False" not in ast.unparse(each.value)]
    names = [each.target.id for each in fields if isinstance(each.target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def list_methods(node: ast.ClassDef) -> dict[str, Function]:
    return {each.name: each for each in node.body if isinstance(each, Function)}


def list_raised(functions: list[Function]) -> set[str]:
    """The errors of CleanAI that functions raise themselves."""
    raised = [each.exc for function in functions for each in ast.walk(function) if isinstance(each, ast.Raise)]
    called = [each.func if isinstance(each, ast.Call) else each for each in raised]
    return {each.id for each in called if isinstance(each, ast.Name)} & ERRORS


def names_missing(text: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]


def judge_text(text: str) -> Iterator[str]:
    """What is wrong with any docstring."""
    first, *rest = text.strip().splitlines() or [""]
    if not first:
        yield "has no docstring"
    elif not first.endswith((".", ":")):
        yield "begins with a line that is no sentence"
    elif rest and rest[0].strip():
        yield "needs an empty line after the first one"


def judge_function(function: Function, text: str) -> Iterator[str]:
    """What is wrong with what is said of arguments and errors; a single argument may go without saying."""
    arguments = list_arguments(function)
    missing = names_missing(text, arguments) if len(arguments) > 1 else []
    if missing:
        yield f"does not name its arguments {', '.join(missing)}"
    unsaid = sorted(list_raised([function]) - set(re.findall(r"\w+", text)))
    if unsaid:
        yield f"does not say that it raises {', '.join(unsaid)}"


def judge_class(definition: Definition) -> Iterator[tuple[str, str]]:
    """What is wrong with a class: with its own docstring, and with those of its methods and properties."""
    classes = [found.node for found in list_bases(definition) if isinstance(found.node, ast.ClassDef)]
    text = definition.text
    makers = [
        methods[name] for node in classes for methods in [list_methods(node)] for name in MAKERS if name in methods
    ]
    fields = [name for node in classes for name in list_fields(node)]
    own = [name for maker in makers[:1] for name in list_arguments(maker)]
    missing = names_missing(text, own or list(dict.fromkeys(fields)))
    if missing:
        yield "", f"does not name its arguments {', '.join(missing)}"
    unsaid = sorted(list_raised(makers) - set(re.findall(r"\w+", text)))
    if unsaid:
        yield "", f"does not say that it raises {', '.join(unsaid)}"
    seen: set[str] = set()
    for node in classes:
        for name, method in list_methods(node).items():
            if name.startswith("_") or name in seen or any("overload" in ast.unparse(d) for d in method.decorator_list):
                continue
            seen.add(name)
            if any(ast.unparse(d).endswith((".setter", ".deleter")) for d in method.decorator_list):
                continue
            said = ast.get_docstring(method) or ""
            yield from ((f".{name}", problem) for problem in [*judge_text(said), *judge_function(method, said)])


MAKERS = ("__init__", "__post_init__")


def judge_module(source: Source) -> list[str]:
    """What is wrong with the docstrings of a public module."""
    problems = [
        f"{source.name}: {problem}" for problem in judge_text(ast.get_docstring(ast.Module(source.body, [])) or "")
    ]
    names = list_names(source.body) or []
    problems += [f"{name}: stands twice in __all__" for name in sorted({n for n in names if names.count(n) > 1})]
    for name in names:
        definition = find_definition(source, name)
        if definition is None:
            problems.append(f"{name}: is not defined in the package")
            continue
        found = [("", problem) for problem in judge_text(definition.text)]
        if isinstance(definition.node, ast.ClassDef | Function) and ">>> " not in definition.text:
            found.append(("", "has no example"))
        if isinstance(definition.node, ast.ClassDef):
            found += judge_class(definition)
        elif isinstance(definition.node, Function):
            found += [("", problem) for problem in judge_function(definition.node, definition.text)]
        problems += [f"{name}{place}: {problem}" for place, problem in found]
    return problems


def list_modules(root: Path) -> list[Source]:
    """The public modules of a package."""
    names = {".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(root.rglob("*.py"))}
    names = {name.removesuffix("__init__").removesuffix(".") for name in names}
    sources = [Source(root, name) for name in sorted(names)]
    return [source for source in sources if list_names(source.body) is not None]


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("source", list_modules(ROOT), ids=lambda source: source.name or "cleanai")
def test_every_public_name_is_documented(source: Source) -> None:
    assert judge_module(source) == []


def test_every_public_module_is_found() -> None:
    names = {source.name for source in list_modules(ROOT)}
    assert {"", "importance", "rules", "data", "models", "experiments", "widgets"} <= names
    assert list_names(Source(ROOT, "").body) == cleanai.__all__


GOOD = {
    "__init__.py": '''
        """A package."""
        from small.parts import SIZE, Box, fold

        __all__ = ["SIZE", "Box", "fold"]
    ''',
    "parts.py": '''
        """Where things are made."""
        from dataclasses import dataclass

        from cleanai import InputError

        SIZE = 3
        """How many there are."""


        class _Base:
            def turn(self, angle, axis):
                """Turned by an ``angle`` in degrees around an ``axis``."""
                return angle, axis


        @dataclass
        class Box(_Base):
            """A box.

            Attributes:
                width, height: in cm.

            Raises:
                InputError: the box is flat.

            Example:
                >>> Box(1, 2).area
                2
            """

            width: int
            height: int

            def __post_init__(self):
                if not self.height:
                    raise InputError("flat")

            @property
            def area(self):
                """In cm²."""
                return self.width * self.height


        def fold(box, times=1):
            """A box folded so many ``times``; raises `InputError` where the ``box`` is too thick.

            Example:
                >>> fold(Box(4, 2))
                Box(2, 2)
            """
            if times > 7:
                raise InputError("too thick")
    ''',
}
FAULTS = {  # what is taken away, and what is then said
    '"""How many there are."""': "SIZE: has no docstring",
    '"""A package."""': ": has no docstring",
    '"""In cm²."""': "Box.area: has no docstring",
    ">>> Box(1, 2).area": "Box: has no example",
    ">>> fold(Box(4, 2))": "fold: has no example",
    "width, height: in cm.": "Box: does not name its arguments width, height",
    "InputError: the box is flat.": "Box: does not say that it raises InputError",
    "; raises `InputError` where the ``box`` is too thick": "fold: does not say that it raises InputError",
    " folded so many ``times``": "fold: does not name its arguments times",
    "ed by an ``angle`` in degrees around an ``axis``": "Box.turn: does not name its arguments angle, axis",
    '"""Turned by an ``angle`` in degrees around an ``axis``."""': "Box.turn: has no docstring",
    " is too thick.": "fold: begins with a line that is no sentence",
    "SIZE = 3": "SIZE: is not defined in the package",
}


def write_package(folder: Path, without: str = "") -> Source:
    package = folder / "small"
    package.mkdir()
    for name, text in GOOD.items():
        (package / name).write_text(textwrap.dedent(text).replace(without, "") if without else textwrap.dedent(text))
    return Source(package, "")


def test_what_is_documented_passes(tmp_path: Path) -> None:
    source = write_package(tmp_path)
    assert judge_module(source) == []
    assert [each.name for each in list_modules(source.root)] == [""]


@pytest.mark.parametrize("gone", FAULTS)
def test_what_is_missing_is_found(gone: str, tmp_path: Path) -> None:
    assert any(gone in text for text in GOOD.values())
    assert FAULTS[gone] in judge_module(write_package(tmp_path, without=gone))


def test_a_name_that_stands_twice_is_found(tmp_path: Path) -> None:
    source = write_package(tmp_path)
    source.path.write_text(source.path.read_text().replace('"SIZE", ', '"SIZE", "SIZE", '))
    assert judge_module(source) == ["SIZE: stands twice in __all__"]
