"""A document of headings, paragraphs, tables and figures, and its two forms: PDF by typst, and one HTML page.

Both forms are laid out by a template from the same plain content, so they say the same. Content reaches the templates
as data, never as markup: a name may hold any character. Equal documents give equal bytes.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cleanai.errors import InputError
from cleanai.rendering import Table, html_environment, printable, shorten, with_minus
from cleanai.serialize import write_bytes
from cleanai.texts import check_language, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_DPI = 110
PAGE_COLOURS = 96  # of a page shown in a notebook: a third of the bytes, and no difference to the eye
MAX_FIGURE_CM = (17.4, 21.5)  # the width of a page's text; a height that leaves room for the caption
LONG_DOCUMENT = 8  # pages, above which there is a table of contents


@dataclass(frozen=True)
class Paragraph:
    """Running text; a warning stands out, a quiet one is small."""

    text: str
    kind: Literal["plain", "quiet", "warning"] = "plain"


@dataclass(frozen=True)
class Verdict:
    """The result of a check in a word, and the sentence that explains it."""

    state: Literal["proven", "failed", "unproven"]
    word: str
    text: str


@dataclass(frozen=True)
class Facts:
    """Labels with their values; the values of `code` are shown as one would type them."""

    rows: tuple[tuple[str, str], ...]
    code: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Grid:
    """A table under its title; `code` are columns whose cells one would type, `strong` ends cells that stand out."""

    table: Table
    code: frozenset[int] = frozenset()
    strong: str | None = None


@dataclass(frozen=True)
class Picture:
    """A figure, drawn anew for each form, and the caption under it; `name` is for the file that holds it alone."""

    name: str
    caption: str
    draw: Callable[[], Figure]


Block = Paragraph | Verdict | Facts | Grid | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole document: its cover and its sections; `scenario_document` and `method_document` make them.

    Attributes:
        title: stands on the cover.
        subtitle: stands below it.
        language: "en" or "tr".
        created: an ISO date and time, which the PDF carries as its date.
        facts: labels and values on the cover.
        opening: what must be seen first.
        sections: headings with their text, tables and figures.

    Raises:
        InputError: an unknown language.

    Example:
        >>> summary = Section("Summary", (Paragraph("Half of the channels went."),))
        >>> document = Document("A test", "of pages", "en", "2026-01-01T12:00:00+00:00", Facts(()), (), (summary,))
        >>> [section.heading for section in document.sections]
        ['Summary']
    """

    title: str
    subtitle: str
    language: str
    created: str
    facts: Facts
    opening: tuple[Block, ...]
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        check_language(self.language)


def save_document(document: Document, path: str | Path) -> Path:
    """Writes a document as ``.pdf`` or ``.html``, whole or not at all, and returns the path.

    Args:
        document: of `scenario_document` or `method_document`.
        path: its ending decides the form.

    Raises:
        InputError: another suffix.

    Example:
        >>> import tempfile
        >>> summary = Section("Summary", (Paragraph("Half of the channels went."),))
        >>> document = Document("A test", "of pages", "en", "2026-01-01T12:00:00+00:00", Facts(()), (), (summary,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "Half of the channels went." in save_document(document, Path(folder) / "test.html").read_text("utf-8")
        True
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _FORMS:
        choices = " or ".join(_FORMS)
        raise InputError(f"A document is saved as {choices}; {target.name!r} ends in {suffix or 'no suffix'!r}.")
    write_bytes(target, _FORMS[suffix](document))
    return target


# ------------------------------------------------------------------------------------------------------- plain content


def save_figures(document: Document, folder: str | Path, stem: str) -> list[Path]:
    """Writes each figure of a document alone, as SVG and as PNG: ``stem_name.svg``; gives their paths.

    Of figures with the same name, the second and later ones have a number.
    """
    paths, seen = [], Counter[str]()
    for picture in (block for section in document.sections for block in section.blocks if isinstance(block, Picture)):
        seen[picture.name] += 1
        number = f"{seen[picture.name]}" if seen[picture.name] > 1 else ""
        figure = picture.draw()
        for form in ("svg", "png"):
            paths.append(Path(folder) / f"{stem}_{picture.name}{number}.{form}")
            write_bytes(paths[-1], _save_figure(figure, form))
    return paths


def plain_content(document: Document) -> tuple[dict[str, Any], list[Picture]]:
    """The document as JSON values, tables and figures numbered; and its figures, in the order of their numbers."""
    counts = {"Table": 0, "Figure": 0}
    pictures: list[Picture] = []

    def number(kind: str, caption: str) -> str:
        counts[kind] += 1
        return f"{say(document.language, kind)} {counts[kind]}. {caption}"

    def plain(block: Block) -> dict[str, Any]:
        if isinstance(block, Grid):
            return {"block": "table", "caption": number("Table", block.table.title), **_plain_table(block)}
        if isinstance(block, Picture):
            pictures.append(block)
            return {"block": "figure", "caption": number("Figure", block.caption), "at": len(pictures) - 1}
        if isinstance(block, Facts):
            return {"block": "facts", **_plain_facts(block)}
        if isinstance(block, Verdict):
            return {"block": "verdict", "state": block.state, "word": block.word, "text": block.text}
        return {"block": "paragraph", "kind": block.kind, "text": block.text}

    content = {
        "title": document.title,
        "subtitle": document.subtitle,
        "running": {"title": shorten(document.title, 60), "subtitle": shorten(document.subtitle, 45)},
        "language": document.language,
        "contents": say(document.language, "Contents"),
        "long": LONG_DOCUMENT,
        "facts": _plain_facts(document.facts),
        "opening": [plain(block) for block in document.opening],
        "sections": [
            {"heading": f"{place}. {section.heading}", "blocks": [plain(block) for block in section.blocks]}
            for place, section in enumerate(document.sections, 1)
        ],
    }
    return _show(content), pictures


def _plain_facts(facts: Facts) -> dict[str, Any]:
    rows = [{"label": label, "value": value, "code": label in facts.code} for label, value in facts.rows]
    return {"rows": rows}


def _plain_table(grid: Grid) -> dict[str, Any]:
    table = grid.table
    rows = [
        [
            {
                "text": with_minus(cell) if table.align[at] == "r" else cell,
                "code": at in grid.code,
                "strong": grid.strong is not None and cell.endswith(grid.strong),
            }
            for at, cell in enumerate(row)
        ]
        for row in table.rows
    ]
    return {"columns": list(table.columns), "align": list(table.align), "rows": rows, "notes": list(table.notes)}


def _show(value: Any) -> Any:
    """The content with control characters written out, which neither form can hold."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _show(item) for key, item in value.items()}
    return [_show(item) for item in value] if isinstance(value, list) else value


def list_texts(value: Any) -> Iterator[str]:
    """Every text of the plain content, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from list_texts(item)


# --------------------------------------------------------------------------------------------------------------- forms


def render_html(document: Document) -> bytes:
    """The document as one page that needs nothing else, with its figures inside."""
    content, pictures = plain_content(document)
    images = [base64.b64encode(_save_figure(picture.draw(), "png")).decode("ascii") for picture in pictures]
    page = html_environment().get_template("document.html.j2").render(document=content, images=images)
    return page.encode("utf-8")


def render_pdf(document: Document) -> bytes:
    """The document as a PDF on A4."""
    return compile_pages(document, "pdf")


def compile_pages(document: Document, form: Literal["pdf", "png"], ppi: float = 100.0) -> Any:
    """What typst makes of the document: the bytes of a PDF, or of one PNG per page."""
    import matplotlib as mpl
    import typst

    content, pictures = plain_content(document)
    # Several files go in one dictionary, which the type hints of typst do not know.
    files: Any = {"main.typ": _read_template("document.typ")}
    content["figures"] = []
    for at, picture in enumerate(pictures):
        figure = picture.draw()
        width, height = figure.get_size_inches()
        files[f"figure{at}.svg"] = _save_figure(figure, "svg")
        shown = min(MAX_FIGURE_CM[0], MAX_FIGURE_CM[1] * width / height)
        content["figures"].append({"file": f"figure{at}.svg", "width": round(float(shown), 3)})
    files["content.json"] = json.dumps(content, ensure_ascii=False).encode("utf-8")
    return typst.compile(
        files,
        format=form,
        ppi=ppi,
        ignore_system_fonts=True,  # every machine gives the same pages
        font_paths=[str(Path(mpl.get_data_path()) / "fonts" / "ttf")],  # the font that the figures were laid out with
        timestamp=int(_read_date(document.created).timestamp()),
    )


def draw_pages(document: Document, first: int = 1, last: int = 1, ppi: float = 55.0) -> bytes:
    """Pages of a document's PDF side by side, as the bytes of a PNG.

    Args:
        document: of `scenario_document` or `method_document`.
        first: the first page, from 1.
        last: the last page.
        ppi: pixels per inch.

    Raises:
        InputError: the document has no such pages.

    Example:
        >>> summary = Section("Summary", (Paragraph("Half of the channels went."),))
        >>> document = Document("A test", "of pages", "en", "2026-01-01T12:00:00+00:00", Facts(()), (), (summary,))
        >>> draw_pages(document)[1:4]
        b'PNG'
    """
    from PIL import Image

    pages = compile_pages(document, "png", ppi)
    pages = [pages] if isinstance(pages, bytes) else pages
    if not 1 <= first <= last <= len(pages):
        raise InputError(f"There are no pages {first} to {last}: the document has {len(pages)}.")
    pictures = [Image.open(io.BytesIO(page)).convert("RGB") for page in pages[first - 1 : last]]
    gap = 8
    size = sum(each.width + gap for each in pictures) - gap, max(each.height for each in pictures)
    sheet, left = Image.new("RGB", size, "#888888"), 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    buffer = io.BytesIO()
    sheet.quantize(PAGE_COLOURS).save(buffer, "png", optimize=True)
    return buffer.getvalue()


_FORMS: dict[str, Callable[[Document], bytes]] = {".pdf": render_pdf, ".html": render_html}


def _read_template(name: str) -> bytes:
    return (resources.files("cleanai") / "templates" / name).read_bytes()


def _save_figure(figure: Figure, form: Literal["svg", "png"]) -> bytes:
    """A figure's bytes, the same every time: PNG, or SVG whose words stay text."""
    import matplotlib as mpl

    from cleanai.plots import figure_style

    buffer = io.BytesIO()
    unmarked = {"Software": None} if form == "png" else {"Creator": None, "Date": None}
    with figure_style(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cleanai"}):
        figure.savefig(buffer, format=form, dpi=PAGE_DPI, metadata=unmarked)
    # Without this, several spaces in a row would become one.
    return buffer.getvalue().replace(b"<svg ", b'<svg xml:space="preserve" ', 1 if form == "svg" else 0)


def _read_date(created: str) -> datetime:
    """An ISO date and time; one that says no zone is taken as UTC, anything else as the start of 1970."""
    try:
        found = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def write_date(created: str, language: str) -> str:
    """A date and time for people; what is no date stays as it is."""
    try:
        datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    found = _read_date(created).astimezone(timezone.utc)
    return found.strftime("%Y-%m-%d %H:%M UTC" if language == "en" else "%d.%m.%Y %H:%M UTC")
