"""Panels for notebooks: controls over the public functions that compute and draw (needs ``cleanai[notebooks]``)."""

from __future__ import annotations

from cleanai.widgets.graph_explorer import GraphExplorer
from cleanai.widgets.importance_explorer import ImportanceExplorer
from cleanai.widgets.pruning_explorer import PruningExplorer

__all__ = ["GraphExplorer", "ImportanceExplorer", "PruningExplorer"]
