"""What people read is spelled right, in English and Turkish: documents, notebooks, docstrings, the report's words.

simplemma knows the words of both languages; `spelling/en.txt` and `spelling/tr.txt` hold those of this project, one a
line; `tensör*` stands for every word that begins so. A Turkish text may use the field's English words as they are.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import simplemma

from cleanai import texts
from cleanai.experiments import phrases

ROOT = Path(__file__).parent.parent
LISTS = Path(__file__).parent / "spelling"
LEFT_OUT = ("zoo", "peers")  # pages that are made, and full of the names of networks
WORD = re.compile(r"(?<!['’])\b[^\W\d_]+")  # what an apostrophe sets off is an ending
LANGUAGES = {"en": ("en",), "tr": ("tr", "en")}
NO_WORDS = re.compile(
    r"^```.*?^```"  # fenced blocks
    r"|^    .*?$(?=\n)"  # indented code
    r"|<!--.*?-->|<[^>\s][^>]*>"
    r"|\$\$.*?\$\$|\$[^$\n]+\$"
    r"|``[^`]+``|`[^`]+`"
    r"|(?<=\])\([^)]*\)|https?://\S+|[\w.-]+@[\w.-]+"
    r"|[\w*/.-]*[\w*]+[/_.=][\w*/.=-]*\w"  # paths, file names and identifiers
    r"|\w*\d\w*",  # names with digits
    re.DOTALL | re.MULTILINE,
)


def list_documents(language: str) -> list[Path]:
    """The Markdown documents and notebooks in one language."""
    folders = (ROOT, ROOT / "docs", ROOT / "docs" / "guide", ROOT / "docs" / "guide" / "tr", ROOT / ".github")
    found = [path for folder in folders for path in folder.glob("*.md")] + [ROOT / "data" / "README.md"]
    found += (ROOT / ".github").rglob("*.md")
    found += [path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    return sorted({path for path in found if language_of(path) == language and not path.name.startswith(LEFT_OUT)})


def language_of(path: Path) -> str:
    """ "tr" for what lies in a folder tr or is called NAME.tr.md, else "en"."""
    return "tr" if path.parent.name == "tr" or path.name.endswith(".tr.md") else "en"


def read_prose(path: Path) -> str:
    """What a document says, without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


def list_words(text: str) -> list[str]:
    """The words of a text, without endings that stand after an apostrophe."""
    return WORD.findall(NO_WORDS.sub(" ", text))


@cache
def load_list(language: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The project's own words of a language in small letters, and the beginnings of others."""
    lines = (LISTS / f"{language}.txt").read_text(encoding="utf-8").split("\n")
    words = [lower(line.strip(), language) for line in lines if line.strip() and not line.startswith("#")]
    whole = frozenset(word for word in words if not word.endswith("*"))
    return whole, tuple(word[:-1] for word in words if word.endswith("*"))


def lower(word: str, language: str) -> str:
    """A word in small letters; Turkish has an i with a dot and one without."""
    return (word.replace("İ", "i").replace("I", "ı") if language == "tr" else word).lower()


def is_right(word: str, language: str) -> bool:
    """Whether a word is one of a language that texts in this one are made of, or one of the project's."""
    for each in LANGUAGES[language]:
        small = lower(word, each)
        whole, beginnings = load_list(each)
        known = len(word) == 1 or small in whole or small.startswith(beginnings)
        if known or simplemma.is_known(small, lang=each) or simplemma.is_known(word, lang=each):
            return True
    return False


def list_docstrings() -> Iterator[tuple[str, str]]:
    """(place, text) of every docstring in the library, without its examples."""
    for path in sorted((ROOT / "cleanai").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                lines = re.sub(r"^\s*(>>>|\.\.\.).*?(?=\n\s*\n|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
                yield f"{path.name}: {getattr(node, 'name', 'module')}", re.sub(r"^\s+", "", lines, flags=re.MULTILINE)


def find_misspelled(text: str, language: str) -> list[str]:
    """The words of a text that nobody knows."""
    return sorted({word for word in list_words(text) if not is_right(word, language)})


@pytest.mark.parametrize("language", ["en", "tr"])
def test_documents_and_notebooks_are_spelled_right(language: str) -> None:
    for path in list_documents(language):
        in_both = "tr" if path.name == "glossary.md" else language  # the English page has the Turkish words as well
        assert find_misspelled(read_prose(path), in_both) == [], path.relative_to(ROOT)


@pytest.mark.parametrize("language", ["en", "tr"])
def test_what_reports_and_runs_say_is_spelled_right(language: str) -> None:
    tables = (texts._TURKISH, texts._TERMS, texts._REASONS, phrases.TURKISH)
    said = [re.sub(r"\{[^}]*\}", " ", pair[language == "tr"]) for table in tables for pair in table.items()]
    assert find_misspelled("\n\n".join(line.strip() for line in said), language) == []


def test_docstrings_are_spelled_right() -> None:
    for place, text in list_docstrings():
        assert find_misspelled(text, "en") == [], place


@pytest.mark.parametrize("language", ["en", "tr"])
def test_misspelled_words_are_found(language: str) -> None:
    text = "\n\n".join(read_prose(path) for path in list_documents(language))
    words = sorted({word for word in list_words(text) if len(word) > 5 and word.islower()})
    generator = random.Random(0)
    wrong = [misspell(word, generator) for word in generator.sample(words, 300)]
    assert sum(not is_right(word, language) for word in wrong) > 0.85 * len(wrong)


def misspell(word: str, generator: random.Random) -> str:
    """A word with two neighbours changed places, a letter left out, or one written twice."""
    at = generator.randrange(1, len(word) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    doubled = word[:at] + word[at] * 3 + word[at + 1 :]
    return generator.choice([swapped if swapped != word else doubled, word[:at] + word[at + 1 :], doubled])
