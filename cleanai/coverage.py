"""Neuron coverage for its own sake (`CoverageAnalyzer`), and the pruner that is driven by it (`CoveragePruner`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.calibration import (
    ActivationStatistics,
    ChannelStatistics,
    check_thresholds,
    collect_statistics,
    device_of,
    select_inputs,
)
from cleanai.coupling import Coupling, couple_channels, link_classes
from cleanai.errors import CleanAIError, InputError
from cleanai.fields import IntArray
from cleanai.importance import COVERAGE, AdaptiveNeuronCoverageImportance, NeuronCoverageImportance
from cleanai.importance.activations import CoverageMetric, check_coverage
from cleanai.isolation import preserve_random_state
from cleanai.pruner import StructuredPruner, copy_model
from cleanai.trace import ForwardFunction, Trace, trace_model

# ------------------------------------------------------------------------------------------------- who reads a channel


_Names = dict[tuple[str, str], IntArray]
"""A number for each channel of a layer's side: the same where it is the same channel."""


class Readers:
    """Where in a model each layer's output channels are read: by which layers with weights, at which positions.

    A layer reads another's channels where the two are connected without a layer with weights between them, and the
    channels are the same ones (see `cleanai.coupling`): through nonlinearities, norms, pooling, concatenation, shuffles
    and flattening. What is added up on the way (a residual stream) is read as the sum.
    """

    def __init__(self, trace: Trace, coupling: Coupling) -> None:
        # Channels that are one by the operations between them; else (behind a flatten) those that could only go
        # together.
        self._names = [_name_channels(coupling, names) for names in (link_classes(coupling.context), _free(coupling))]
        self._following = _follow(trace, {site.module for site in coupling.context.sites if site.side == "input"})

    def pool(self, layer: str, statistics: ActivationStatistics) -> ChannelStatistics | None:
        """The averages of what is read of each output channel of a layer; None where one of them is not read."""
        found = (self._pool_by(names, layer, statistics) for names in self._names)
        return next((pooled for pooled in found if pooled is not None), None)

    def _pool_by(self, names: _Names, layer: str, statistics: ActivationStatistics) -> ChannelStatistics | None:
        written = names.get((layer, "output"), np.zeros(0, np.int64))
        order = np.argsort(written, kind="stable")
        if not len(written) or (np.diff(written[order]) == 0).any():
            return None
        parts = []
        for reader in self._following.get(layer, ()):
            seen, read = statistics.get(reader, "input"), names.get((reader, "input"))
            if seen is None or read is None or len(seen.total) != len(read):
                continue
            place = np.searchsorted(written[order], read)
            channel = order[np.minimum(place, len(order) - 1)]
            positions = np.flatnonzero(written[channel] == read)
            if len(positions):
                parts.append((torch.from_numpy(channel[positions]), seen.keep(torch.from_numpy(positions))))
        return _average(parts, len(written)) if parts else None


def _name_channels(coupling: Coupling, names: IntArray) -> _Names:
    """The name of each channel at each site; of a layer that is called several times, at the first."""
    found: _Names = {}
    for site in coupling.context.sites:
        found.setdefault((site.module, site.side), names[site.labels])
    return found


def _free(coupling: Coupling) -> IntArray:
    """The class of every label; those of frozen ones, which say nothing, all differ."""
    free = np.isin(coupling.class_of, np.concatenate([group.classes for group in coupling.groups] or [[]]))
    return np.where(free, coupling.class_of, -1 - np.arange(len(free)))


def _follow(trace: Trace, reading: set[str]) -> dict[str, list[str]]:
    """The layers that each layer's output reaches without passing another one."""
    consumers: list[list[int]] = [[] for _ in trace.operations]
    starts: dict[str, list[int]] = {}
    for operation in trace.operations:
        for value in operation.inputs:
            if value is not None:
                consumers[value.operation].append(operation.index)
        if operation.state is None:
            starts.setdefault(operation.module, []).append(operation.index)
    found: dict[str, list[str]] = {}
    for layer, frontier in starts.items():
        seen, reached = set(frontier), dict[str, None]()
        frontier = list(frontier)
        while frontier:
            for consumer in consumers[frontier.pop()]:
                module = trace.operations[consumer].module
                if module in reading and module != layer:
                    reached[module] = None
                elif consumer not in seen:
                    seen.add(consumer)
                    frontier.append(consumer)
        found[layer] = list(reached)
    return found


def _average(parts: Sequence[tuple[Tensor, ChannelStatistics]], channels: int) -> ChannelStatistics | None:
    """Averages in place of sums (a count of 1), over all places where a channel is read."""
    count, total, absolute, square = (torch.zeros(channels, dtype=torch.float64) for _ in range(4))
    low, high = torch.full_like(count, torch.inf), torch.full_like(count, -torch.inf)
    above = {threshold: torch.zeros_like(count) for threshold in parts[0][1].above}
    for channel, seen in parts:
        count.index_add_(0, channel, torch.full((len(channel),), float(seen.count), dtype=torch.float64))
        for sums, values in ((total, seen.total), (absolute, seen.absolute), (square, seen.square)):
            sums.index_add_(0, channel, values)
        low.scatter_reduce_(0, channel, seen.low, "amin")
        high.scatter_reduce_(0, channel, seen.high, "amax")
        for threshold, counts in above.items():
            counts.index_add_(0, channel, seen.above[threshold].double())
    if not bool((count > 0).all()):
        return None
    above = {threshold: counts / count for threshold, counts in above.items()}
    return ChannelStatistics(1, total / count, absolute / count, square / count, low, high, above)


# ------------------------------------------------------------------------------------------------------- the analyzer


class CoverageAnalyzer:
    """Neuron coverage of a model: which channels the data makes active, how often, how strongly, and which never.

    A layer's coverage is taken from the values that the next layers with weights read of its output channels, after the
    norm and the nonlinearity between; where no layer reads all of them (the last layer) or the model cannot be traced,
    from the layer's own output. Only sums and counts are kept: memory does not grow with the data, and passes over
    parts of it can be merged exactly. No hooks stay on the model, whatever happens.

    Args:
        model: any model; left as it was.
        device: run the passes there, on a copy if the model is elsewhere; None for where it is.
        thresholds: above which values are counted for the metrics "frequency" and "combined"; the first is the usual
            one.
        norms: list normalisation layers and embeddings too, with their own outputs.
        example_inputs: what the model is called with; None to take it from the first batch.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.

    Attributes:
        statistics: what all passes saw together; None before the first.

    Raises:
        InputError: the model is no module, or the thresholds are not finite numbers, at least one.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(1.0), net[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -9.0]))
        >>> analyzer = CoverageAnalyzer(net)
        >>> _ = analyzer.collect([torch.ones(5, 3), torch.ones(2, 3)], progress=False)
        >>> analyzer.compute_neuron_coverage("frequency")["0"].tolist()
        [1.0, 1.0, 1.0, 0.0]
        >>> analyzer.find_dead()
        {'0': tensor([3])}
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        *,
        thresholds: Sequence[float] = (0.0,),
        norms: bool = False,
        example_inputs: Any = None,
        forward_fn: ForwardFunction | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        self.model = model
        self.device = torch.device(device) if device is not None else None
        self.thresholds = check_thresholds(thresholds)
        if not self.thresholds:
            raise InputError("thresholds is empty; give at least one, e.g. (0.0,)")
        self.norms = norms
        self.example_inputs = example_inputs
        self.statistics: ActivationStatistics | None = None
        self._forward_fn = forward_fn
        self._readers: Readers | None = None

    def __repr__(self) -> str:
        state = repr(self.statistics) if self.statistics is not None else "nothing collected yet"
        return f"CoverageAnalyzer({type(self.model).__name__}, {state})"

    def collect(
        self, loader: Iterable[Any], max_batches: int | None = None, *, progress: bool | None = None
    ) -> ActivationStatistics:
        """One pass over a loader, added to what earlier passes saw; returns the statistics of all of them.

        Args:
            loader: yields tensors, (inputs, labels) pairs, tuples or dicts (labels are left out).
            max_batches: at most so many batches; None for all.
            progress: True or False for a progress bar; None shows one on terminals.

        Raises:
            InputError: the loader is empty, a batch does not fit the model, or an activation is NaN or infinite.
        """
        with preserve_random_state():  # a shuffling loader draws from it
            loader, first = _peek(loader)
            if self._readers is None and first is not None:
                self._readers = self._find_readers(first)
            found = collect_statistics(
                self._model_on_device(),
                loader,
                example_inputs=self.example_inputs,
                num_batches=max_batches,
                forward_fn=self._forward_fn,
                progress=progress,
                thresholds=self.thresholds,
                norms=self.norms,
            )
        self.statistics = found if self.statistics is None else self.statistics.merge(found)
        return self.statistics

    def _model_on_device(self) -> nn.Module:
        if self.device is None or self.device == device_of(self.model):
            return self.model
        return copy_model(self.model).to(self.device)

    def _find_readers(self, batch: Any) -> Readers | None:
        inputs = self.example_inputs if self.example_inputs is not None else select_inputs(batch, None)
        try:
            trace = trace_model(self.model, inputs, forward_fn=self._forward_fn)
            return Readers(trace, couple_channels(trace))
        except CleanAIError:  # each layer is then judged by its own output
            return None

    def merge(self, other: CoverageAnalyzer) -> CoverageAnalyzer:
        """An analyzer with what this one and an ``other`` saw: two shards of the data, as one pass over both.

        Raises:
            InputError: one of them saw nothing, or another model.

        Example:
            >>> first, second = CoverageAnalyzer(layer := nn.Linear(3, 2)), CoverageAnalyzer(layer)
            >>> _ = first.collect([torch.ones(5, 3)], progress=False)
            >>> _ = second.collect([torch.ones(2, 3)], progress=False)
            >>> first.merge(second).statistics.samples
            7
        """
        if self.statistics is None or other.statistics is None:
            raise InputError("there is nothing to merge yet: call collect(loader) on both analyzers first")
        if _list_sizes(self.statistics) != _list_sizes(other.statistics):
            raise InputError("the analyzers looked at models with different layers; merge passes over one model")
        merged = CoverageAnalyzer(
            self.model,
            self.device,
            thresholds=self.thresholds,
            norms=self.norms,
            example_inputs=self.example_inputs,
            forward_fn=self._forward_fn,
        )
        merged.statistics = self.statistics.merge(other.statistics)
        merged._readers = self._readers or other._readers
        return merged

    def _list_statistics(self) -> dict[str, ChannelStatistics]:
        """The statistics that judge each layer's output channels."""
        if self.statistics is None:
            raise InputError("nothing has been collected yet: call collect(loader) first")
        written = {layer: seen for (layer, side), seen in self.statistics.sides.items() if side == "output"}
        if self._readers is None:
            return written
        return {layer: self._readers.pool(layer, self.statistics) or own for layer, own in written.items()}

    def compute_neuron_coverage(
        self, metric: CoverageMetric = "normalized_mean", threshold: float | None = None
    ) -> dict[str, Tensor]:
        """The coverage of each layer's output channels, high = active: {layer path: float64, shape [channels]}.

        Args:
            metric: "normalized_mean", "frequency", "mean_absolute" or "combined" (see `NeuronCoverageImportance`).
            threshold: above which a value counts as active; None for the first of the analyzer's thresholds.

        Raises:
            InputError: nothing was collected, an unknown metric, or a threshold that was not counted.
        """
        threshold = self.thresholds[0] if threshold is None else threshold
        check_coverage(metric, threshold)
        return self._measure(lambda seen: COVERAGE[metric](seen, float(threshold)))

    def _measure(self, measure: Callable[[ChannelStatistics], Tensor]) -> dict[str, Tensor]:
        return {layer: measure(seen) for layer, seen in self._list_statistics().items()}

    def find_dead(self, tolerance: float = 0.0) -> dict[str, Tensor]:
        """The channels that are never active, ``|x| ≤ tolerance`` throughout: {layer path: indices}, others left out.

        Raises:
            InputError: nothing was collected.
        """
        return _indices(self._measure(lambda seen: seen.largest <= tolerance))

    def find_saturated(self, tolerance: float = 1e-3) -> dict[str, Tensor]:
        """The channels that are stuck at a value other than 0: {layer path: indices}, others left out.

        Stuck is a channel whose standard deviation is at most ``tolerance`` times its mean's size: a sigmoid at 1, a
        tanh at -1, a ReLU6 at 6, a constant. What it passes on could as well be a bias.

        Raises:
            InputError: nothing was collected.

        Example:
            >>> net = nn.Sequential(nn.Linear(1, 2), nn.Sigmoid(), nn.Linear(2, 1))
            >>> with torch.no_grad():
            ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [0.0]])), net[0].bias.copy_(torch.tensor([0.0, 9.0]))
            >>> analyzer = CoverageAnalyzer(net)
            >>> _ = analyzer.collect([torch.tensor([[-1.0], [1.0]])], progress=False)
            >>> analyzer.find_saturated()
            {'0': tensor([1])}
        """
        return _indices(
            self._measure(lambda seen: (seen.largest > 0) & (seen.deviation <= tolerance * seen.mean.abs()))
        )


def _peek(loader: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    """A loader and its first batch, which is still in it; None where it is empty."""
    if isinstance(loader, Sequence):
        return loader, loader[0] if loader else None
    batches = iter(loader)
    first = list(itertools.islice(batches, 1))
    return itertools.chain(first, batches), first[0] if first else None


def _list_sizes(statistics: ActivationStatistics) -> dict[tuple[str, str], int]:
    return {key: len(seen.total) for key, seen in statistics.sides.items()}


def _indices(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {layer: which.nonzero().flatten() for layer, which in found.items() if bool(which.any())}


# --------------------------------------------------------------------------------------------------------- the pruner


class CoveragePruner(StructuredPruner):
    """`StructuredPruner` driven by neuron coverage, with its own collection pass: what the data leaves inactive goes.

    Args:
        model: the trained model.
        example_inputs: what it is called with.
        loader: calibration data; gone through at once, and again before each step where ``adaptive``.
        pruning_ratio: the share to remove, in [0, 1).
        metric: "normalized_mean", "frequency", "mean_absolute" or "combined" (see `NeuronCoverageImportance`).
        threshold: above which a value counts as active.
        adaptive: collect afresh before each of the ``iterative_steps``.
        max_batches: at most so many batches; None for all.
        reduction, normalizer: see `NeuronCoverageImportance`.
        progress: True or False for a progress bar; None shows one on terminals.
        options: everything else that `StructuredPruner` takes.

    Raises:
        InputError: an argument that cannot be used, as in `StructuredPruner` and its ``collect_activations``.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = CoveragePruner(net, torch.randn(1, 3), [torch.randn(16, 3)], 0.5, progress=False)
        >>> pruner.prune()[0]
        Linear(in_features=3, out_features=4, bias=True)
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        loader: Iterable[Any],
        pruning_ratio: float = 0.5,
        *,
        metric: CoverageMetric = "normalized_mean",
        threshold: float = 0.0,
        adaptive: bool = False,
        max_batches: int | None = None,
        reduction: str = "mean",
        normalizer: str = "mean",
        progress: bool | None = None,
        **options: Any,
    ) -> None:
        kind = AdaptiveNeuronCoverageImportance if adaptive else NeuronCoverageImportance
        importance = kind(metric, threshold, reduction=reduction, normalizer=normalizer)
        super().__init__(model, example_inputs, importance, pruning_ratio, **options)
        self.collect_activations(loader, max_batches, progress=progress)
