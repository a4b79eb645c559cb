"""Activation statistics: one streaming pass over a loader, sums and counts only."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm.auto import tqdm

from cleanai.checks import check_count, check_iterable, check_loader, check_model
from cleanai.errors import InputError
from cleanai.inputs import batch_to_inputs, call_model, first_tensor, map_tensors, output_tensors
from cleanai.isolation import shadow_model
from cleanai.layers import channel_dim, prepare_layers
from cleanai.matrices import LayerMoments
from cleanai.moments import MomentWatch
from cleanai.trace import ForwardFunction

Side = tuple[str, str]
"""A layer's path and "input" or "output"."""


_PIECE = 2**18
"""So many values are held in double precision at a time."""


@dataclass
class ChannelStatistics:
    """Sums over samples and positions for each channel of a layer's input or output.

    All tensors have the shape [channels]; those of x are float64.

    Attributes:
        count: how many values each channel had.
        total, absolute, square: the sums of x, of ``|x|`` and of x².
        low, high: the smallest and the largest x.
        above: {threshold: how many values were larger}.

    Example:
        >>> seen = ChannelStatistics.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]]), dim=1)  # 2 samples, 2 channels
        >>> seen.mean.tolist(), seen.mean_absolute.tolist(), seen.frequency().tolist()
        ([2.0, -1.0], [2.0, 1.0], [1.0, 0.0])
    """

    count: int
    total: Tensor
    absolute: Tensor
    square: Tensor
    low: Tensor
    high: Tensor
    above: dict[float, Tensor]

    @classmethod
    def of(cls, values: Tensor, dim: int, thresholds: Sequence[float] = (0.0,)) -> ChannelStatistics:
        """The statistics of one tensor with its channels along ``dim``."""
        values = values.detach()
        values, dim = (values[None], 1) if values.dim() == 1 else (values, dim % values.dim())
        others = [axis for axis in range(values.dim()) if axis != dim]
        longest = max(others, key=lambda axis: values.shape[axis])
        # In pieces: double precision of the whole tensor would be several times its size.
        step = max(1, _PIECE * values.shape[longest] // values.numel())
        pieces = (piece.movedim(dim, 0).flatten(1) for piece in values.split(step, longest))
        whole = functools.reduce(cls.merge, (cls._of_rows(piece, thresholds) for piece in pieces))
        sums = (whole.total, whole.absolute, whole.square, whole.low, whole.high)
        return cls(whole.count, *(sum.cpu() for sum in sums), {t: n.cpu() for t, n in whole.above.items()})

    @classmethod
    def _of_rows(cls, rows: Tensor, thresholds: Sequence[float]) -> ChannelStatistics:
        above = {threshold: (rows > threshold).sum(1) for threshold in thresholds}
        low, high = rows.amin(1).double(), rows.amax(1).double()
        wide = rows.double()
        return cls(rows.shape[1], wide.sum(1), wide.abs().sum(1), wide.square().sum(1), low, high, above)

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """The statistics of both sets of samples together.

        Raises:
            InputError: they counted what lies above different thresholds.
        """
        if self.above.keys() != other.above.keys():
            raise InputError(
                f"statistics that counted values above {sorted(self.above)} and above {sorted(other.above)} cannot be "
                "merged: collect both with the same thresholds"
            )
        return ChannelStatistics(
            self.count + other.count,
            self.total + other.total,
            self.absolute + other.absolute,
            self.square + other.square,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            {threshold: count + other.above[threshold] for threshold, count in self.above.items()},
        )

    def keep(self, positions: Sequence[int] | Tensor) -> ChannelStatistics:
        """The statistics of some of the channels."""
        index = torch.as_tensor(positions)
        sums = (self.total, self.absolute, self.square, self.low, self.high)
        above = {threshold: count[index] for threshold, count in self.above.items()}
        return ChannelStatistics(self.count, *(values[index] for values in sums), above)

    @property
    def mean(self) -> Tensor:
        """E[x] of each channel."""
        return self.total / self.count

    @property
    def mean_absolute(self) -> Tensor:
        """``E[|x|]`` of each channel."""
        return self.absolute / self.count

    @property
    def root_mean_square(self) -> Tensor:
        """sqrt(E[x²]) of each channel."""
        return (self.square / self.count).sqrt()

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each channel, sqrt(E[x²] - E[x]²)."""
        return (self.square / self.count - self.mean.square()).clamp(min=0).sqrt()

    @property
    def largest(self) -> Tensor:
        """``max |x|`` of each channel."""
        return torch.maximum(-self.low, self.high)

    def frequency(self, threshold: float = 0.0) -> Tensor:
        """The share of values above a threshold that the pass counted.

        Raises:
            InputError: the pass did not count what lies above this threshold.
        """
        if threshold not in self.above:
            raise InputError(
                f"the activations were collected without counting values above {threshold:g} (but above "
                f"{', '.join(f'{known:g}' for known in self.above) or 'nothing'}): collect them again with "
                f"thresholds=({threshold:g},)"
            )
        return self.above[threshold].double() / self.count


@dataclass
class BlockStatistics:
    """How alike a residual block's input and output are: the sum of ``count`` cosines between them."""

    count: int
    cosines: float

    @classmethod
    def of(cls, before: Tensor, after: Tensor, dim: int | None) -> BlockStatistics:
        """The cosines at each position along the channels in ``dim``, or of whole samples without one."""
        first, second = (value.detach().double() for value in (before, after))
        if dim is None:
            first, second, dim = first.flatten(1), second.flatten(1), 1
        norms = first.norm(dim=dim) * second.norm(dim=dim)
        there = norms > 0  # a position without any signal points nowhere
        cosines = (first * second).sum(dim)[there] / norms[there]
        return cls(int(there.sum()), float(cosines.sum()))

    def merge(self, other: BlockStatistics) -> BlockStatistics:
        """The statistics of both sets of samples together."""
        return BlockStatistics(self.count + other.count, self.cosines + other.cosines)

    @property
    def influence(self) -> float:
        """1 - E[cos(x, y)] for what goes into the block and what comes out: 0 for a block that changes nothing."""
        return 1 - self.cosines / self.count if self.count else 0.0


@dataclass
class ActivationStatistics:
    """What a calibration pass saw: statistics for the channels of each layer, and for residual blocks by path.

    Attributes:
        sides: {(layer path, "input" or "output"): sums over samples and positions, float64, shape [channels]}.
        batches, samples: how many of each were seen.
        blocks: {block path: how alike its input and output are}, where blocks were watched.
        moments: {layer path: second moments of what it reads}, where a criterion asked for them.

    Example:
        >>> from cleanai import collect_statistics
        >>> layer = nn.Linear(2, 1)
        >>> morning = collect_statistics(layer, [torch.tensor([[1.0, -2.0]])], progress=False)
        >>> evening = collect_statistics(layer, [torch.tensor([[3.0, 0.0]])], progress=False)
        >>> both = morning.merge(evening)
        >>> both
        ActivationStatistics(1 layers, 2 batches, 2 samples)
        >>> both.get("", "input").mean_absolute.tolist()
        [2.0, 1.0]
    """

    sides: dict[Side, ChannelStatistics]
    batches: int = 0
    samples: int = 0
    blocks: dict[str, BlockStatistics] = field(default_factory=dict)
    moments: dict[str, LayerMoments] = field(default_factory=dict)

    def get(self, layer: str, side: str) -> ChannelStatistics | None:
        """The statistics of a ``layer``'s channels on a ``side``, "input" or "output"; None if it was not watched."""
        return self.sides.get((layer, side))

    def merge(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics of this pass and an ``other`` (shards of the data), as one pass over both would give them.

        Raises:
            InputError: they counted what lies above different thresholds.
        """
        sides = dict(self.sides)
        for key, value in other.sides.items():
            sides[key] = sides[key].merge(value) if key in sides else value
        blocks = dict(self.blocks)
        for path, block in other.blocks.items():
            blocks[path] = blocks[path].merge(block) if path in blocks else block
        moments = dict(self.moments)
        for path, seen in other.moments.items():
            moments[path] = moments[path].merge(seen) if path in moments else seen
        return ActivationStatistics(sides, self.batches + other.batches, self.samples + other.samples, blocks, moments)

    def after(self, kept: Mapping[Side, Tensor]) -> ActivationStatistics:
        """The statistics of the channels that a cut ``kept``: {(layer, side): positions}; other layers as they are."""
        sides = {key: value.keep(kept[key]) if key in kept else value for key, value in self.sides.items()}
        moments = {
            path: left
            for path, seen in self.moments.items()
            if (
                left := seen.keep(*(kept.get((path, side), kept.get((path, "result"))) for side in ("input", "output")))
            )
            is not None
        }
        return ActivationStatistics(sides, self.batches, self.samples, self.blocks, moments)

    def __repr__(self) -> str:
        layers = len({layer for layer, _ in self.sides})
        return f"ActivationStatistics({layers} layers, {self.batches} batches, {self.samples} samples)"


def select_inputs(batch: Any, example_inputs: Any) -> Any:
    """The model's inputs in a loader's batch: as many as the example has, else all but the labels."""
    if isinstance(example_inputs, Mapping):
        fields = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(fields, Mapping) and all(key in fields for key in example_inputs):
            return {key: fields[key] for key in example_inputs}
    if type(example_inputs) is tuple and isinstance(batch, (tuple, list)) and len(batch) >= len(example_inputs):
        return tuple(batch[: len(example_inputs)])
    return batch_to_inputs(batch)[0]


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model's first parameter is."""
    check_model(model)
    return next((tensor.device for tensor in model.parameters()), None)


def collect_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    example_inputs: Any = None,
    num_batches: int | None = None,
    forward_fn: ForwardFunction | None = None,
    progress: bool | None = None,
    blocks: Mapping[str, int | None] | None = None,
    thresholds: Sequence[float] = (0.0,),
    norms: bool = False,
    stages: Mapping[str, int] | None = None,
) -> ActivationStatistics:
    """One pass over a loader, with hooks on every convolution and linear layer.

    Memory does not grow with the number of batches. The model runs in evaluation mode without gradients and is left as
    it was, whatever happens. `StructuredPruner.collect_activations` is this for the model of a pruner.

    Args:
        model: any model; batches are moved to its device.
        loader: yields tensors, (inputs, labels) pairs, tuples or dicts (labels are left out).
        example_inputs: tells how many of a batch's tensors are inputs; without them all but the labels are.
        num_batches: at most so many batches; None for all.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.
        progress: True or False for a progress bar; None shows one on terminals.
        blocks: residual blocks to watch, with the dimension of their channels ({path: dimension or None}).
        thresholds: for each of these, how many values are larger is counted too.
        norms: watch normalisation layers and embeddings as well.
        stages: the blocks whose second moments are wanted (see `cleanai.moments.MomentWatch`); needs the memory of the
            square of each layer's columns.

    Returns:
        The statistics of each layer's input and output channels, summed over samples and positions.

    Raises:
        InputError: the loader is empty, a batch does not fit the model, a threshold is no finite number, or an
            activation is NaN or infinite (the layer is named).

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> statistics = collect_statistics(net, [torch.ones(5, 3)], progress=False)
        >>> read = statistics.get("2", "input")
        >>> read.count, read.mean_absolute.shape
        (5, torch.Size([4]))
    """
    thresholds = check_thresholds(thresholds)
    sides: dict[Side, ChannelStatistics] = {}
    seen: dict[str, BlockStatistics] = {}
    device = device_of(model)
    batches = samples = 0
    with shadow_model(model, "real", track_buffers=False, prepare=prepare_layers), torch.no_grad():
        for module in model.modules():
            module.training = False
        watch = MomentWatch(model, stages) if stages else None
        for path, module in model.named_modules():
            dim = channel_dim(module) or (_norm_dim(module) if norms else None)
            if dim:
                _watch_layer(path, module, dim, thresholds, sides)
        for path, dim in (blocks or {}).items():
            _watch_block(model.get_submodule(path), path, dim, seen)
        for number, batch in draw_batches(loader, num_batches, "activations", progress):
            inputs = move_tensors(select_inputs(batch, example_inputs), device)
            samples += count_samples(inputs)
            try:
                call_model(model, inputs, forward_fn)
            except (RuntimeError, TypeError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"the model cannot run on batch {number} of the loader ({type(error).__name__}: {error}); "
                    "batches must hold what example_inputs holds, with or without labels"
                ) from error
            batches = number + 1
        if not samples and output_tensors(inputs):
            raise InputError("the batches of the loader hold no samples: activations need at least one")
        moments = watch.collect() if watch is not None else {}
    return ActivationStatistics(sides, batches, samples, seen, moments)


def draw_batches(
    loader: Iterable[Any], num_batches: int | None, purpose: str, progress: bool | None = None
) -> Iterator[tuple[int, Any]]:
    """The batches of a loader with their numbers, at most ``num_batches`` of them, with a progress bar.

    Raises:
        InputError: the loader is empty, or ``num_batches`` is below 1.
    """
    check_loader(loader)
    if num_batches is not None:
        check_count(num_batches, "num_batches", otherwise=", or None for the whole loader")
    total = num_batches if num_batches is not None else _length(loader)
    drawn = 0
    with tqdm(total=total, desc=purpose, unit="batch", disable=None if progress is None else not progress) as bar:
        for batch in loader:
            if drawn == num_batches:
                break
            yield drawn, batch
            drawn += 1
            bar.update()
    if not drawn:
        raise InputError(f"the loader is empty: {purpose} need at least one batch")


def move_tensors(batch: Any, device: torch.device | None) -> Any:
    """A batch with its tensors on a device."""
    return batch if device is None else map_tensors(lambda tensor: tensor.to(device), batch)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def count_samples(inputs: Any) -> int:
    """The size of the first dimension of the first tensor."""
    sizes: list[int] = []
    map_tensors(lambda tensor: sizes.append(tensor.shape[0] if tensor.dim() else 1), inputs)
    return sizes[0] if sizes else 0


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds as floats, each once, or a clear error."""
    check_iterable(thresholds, "thresholds", "finite numbers, such as (0.0,)")
    for value in thresholds:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"thresholds holds {value!r}; it must hold finite numbers")
    return tuple(dict.fromkeys(float(value) for value in thresholds))


def _norm_dim(module: nn.Module) -> int | None:
    """Where a normalisation layer or an embedding has its channels; None for any other module, and for several axes."""
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        return 1
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return -1 if len(module.normalized_shape) == 1 else None
    return -1 if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None


def _watch_layer(
    path: str, module: nn.Module, dim: int, thresholds: Sequence[float], sides: dict[Side, ChannelStatistics]
) -> None:
    def note(side: str, value: Any) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return
        statistics = ChannelStatistics.of(value, dim, thresholds)
        if not bool(statistics.square.isfinite().all()):
            raise InputError(
                f"the {side} of the layer {path or 'model'} holds NaN or infinite values: look at the data and at "
                "the weights before it"
            )
        key = (path, side)
        sides[key] = sides[key].merge(statistics) if key in sides else statistics

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        note("input", args[0] if args else next(iter(kwargs.values()), None))
        note("output", output)

    module.register_forward_hook(hook, with_kwargs=True)


def _watch_block(module: nn.Module, path: str, dim: int | None, seen: dict[str, BlockStatistics]) -> None:
    given: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_tensor(args, kwargs)
        given[:] = [] if tensor is None else [tensor.clone()]  # the block may write to it

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        if given and isinstance(result, Tensor) and result.shape == given[0].shape:
            statistics = BlockStatistics.of(given.pop(), result, dim)
            seen[path] = seen[path].merge(statistics) if path in seen else statistics

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)
