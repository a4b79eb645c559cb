"""What the panels share: ipywidgets, imported when a panel is made, and how a panel is shown."""

from __future__ import annotations

import base64
import importlib
import io
from typing import TYPE_CHECKING, Any

from cleanai.errors import InputError
from cleanai.plots import SCREEN_DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def import_widgets(panel: str) -> Any:
    """The module ``ipywidgets``; raises `InputError` saying how to install it where it is missing."""
    try:
        return importlib.import_module("ipywidgets")
    except ImportError as error:
        raise InputError(f'{panel} needs ipywidgets: pip install "cleanai[notebooks]".') from error


def draw_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, the same on every machine."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=SCREEN_DPI, metadata={"Software": None})
    return buffer.getvalue()


def make_image(widgets: Any) -> Any:
    """A picture in its own size, smaller where there is no room."""
    layout = widgets.Layout(max_width="100%", align_self="flex-start", object_fit="contain")
    return widgets.Image(format="png", layout=layout)


class Panel:
    """Controls and a picture: ``box`` is the widget, ``figure`` the picture, mostly shown by ``image``.

    Where no kernel is running (a page, a stored notebook) the picture alone is shown.
    """

    box: Any
    image: Any
    figure: Figure

    def show_figure(self, figure: Figure) -> None:
        """Puts a new figure into the picture.

        Args:
            figure: drawn at the size it has.
        """
        self.figure = figure
        self.image.value = draw_png(figure)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = dict(self.box._repr_mimebundle_())
        picture = base64.b64encode(draw_png(self.figure)).decode("ascii")
        return {**bundle, "text/plain": repr(self), "image/png": picture}
