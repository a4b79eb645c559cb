"""Panels for notebooks: controls over the public functions that compute and draw (needs ``cleanai[notebooks]``)."""

from __future__ import annotations

from cleanai.widgets.graph_explorer import GraphExplorer

__all__ = ["GraphExplorer"]
