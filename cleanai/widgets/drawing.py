"""A drawing in a panel that can be clicked: SVG, because ipywidgets has no picture that tells where it was clicked."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from cleanai.errors import InputError

# Runs in the browser. A click is sent as the number in the id of what was hit ("node-3", "name-3").
_SCRIPT = """
function render({ model, el }) {
  const draw = () => { el.innerHTML = model.get("svg"); };
  el.classList.add("cleanai-drawing");
  el.addEventListener("click", (event) => {
    const hit = event.target.closest('[id^="node-"], [id^="name-"]');
    if (hit) model.send({ node: Number(hit.id.split("-")[1]) });
  });
  model.on("change:svg", draw);
  draw();
}
export default { render };
"""
_STYLE = """
.cleanai-drawing svg { max-width: 100%; height: auto; }
.cleanai-drawing [id^="node-"], .cleanai-drawing [id^="name-"] { cursor: pointer; }
.cleanai-drawing [id^="node-"] path { pointer-events: all; }
"""


def make_drawing(panel: str, on_click: Callable[[int], object]) -> Any:
    """A widget that shows its ``svg`` and calls ``on_click`` with the number of the node that is clicked.

    Raises:
        InputError: anywidget is not installed.
    """
    drawing = _drawing_class(panel)()
    drawing.on_msg(lambda _, content, __: on_click(int(content["node"])))
    return drawing


@functools.cache
def _drawing_class(panel: str) -> Any:
    try:
        anywidget, traitlets = importlib.import_module("anywidget"), importlib.import_module("traitlets")
    except ImportError as error:
        raise InputError(f'{panel} needs anywidget: pip install "cleanai[notebooks]".') from error
    members = {"_esm": _SCRIPT, "_css": _STYLE, "svg": traitlets.Unicode("").tag(sync=True)}
    return type("Drawing", (anywidget.AnyWidget,), members)
