"""What is left of a target when something is cut, and what single steps save: counted, or measured for latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from cleanai.analysis import Analysis
from cleanai.cost import CostModel
from cleanai.fields import IntArray
from cleanai.fitting import make_plan
from cleanai.isolation import copy_model, list_state
from cleanai.prediction import alive_classes
from cleanai.select import Ladder
from cleanai.slicing import slice_model


class Prices:
    """The target's value for every choice of units in a model as it is now.

    Args:
        target: "channels", "params", "macs" or "latency".
        measure: the latency of a model, in shares of the original's; for the target "latency" only.
    """

    def __init__(
        self, model: nn.Module, analysis: Analysis, target: str, measure: Callable[[nn.Module], float] | None = None
    ) -> None:
        self._model, self._analysis, self._target, self._measure = model, analysis, target, measure
        parameters = [state for state in list_state(model) if isinstance(state.tensor, nn.Parameter)]
        costs = CostModel(analysis.coupling, parameters)
        self._count = costs.count_parameters if target == "params" else costs.count_macs
        self._measured: dict[bytes, float] = {}

    def cost(self, choice: Mapping[int, IntArray]) -> float:
        """What is left: parameters, MACs, or latency as a share of the original's (measured once per choice)."""
        if self._measure is None:
            return float(self._count(alive_classes(self._analysis.coupling, choice)))
        groups = self._analysis.groups
        key = repr([(groups[index].name, units.tobytes()) for index, units in sorted(choice.items())]).encode()
        if key not in self._measured:
            plan = make_plan(self._analysis.coupling, choice, self._analysis.rules)
            self._measured[key] = self._measure(slice_model(copy_model(self._model), plan))
        return self._measured[key]

    def save(self, ladder: Ladder) -> np.ndarray:
        """What each step of a ladder alone saves: channels, or a share of parameters or (for latency too) of MACs."""
        group = ladder.group
        if self._target == "channels":
            return np.array([float(len(step) * group.width) for step in ladder.steps])
        coupling = self._analysis.coupling
        whole = self._count(alive_classes(coupling, {}))
        known: dict[bytes, float] = {}
        savings = []
        for step in ladder.steps:
            # Steps with equally many units of each layer that the group joins save the same.
            key = np.bincount(group.sources[step]).tobytes() if len(group.sources) else b""
            if key not in known:
                known[key] = (whole - self._count(alive_classes(coupling, {group.index: step}))) / max(whole, 1)
            savings.append(known[key])
        return np.array(savings)
