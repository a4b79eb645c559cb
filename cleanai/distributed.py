"""Several processes that do one job, started by ``torchrun``: who they are, what they share, what they exchange.

Under plain ``python`` everything here is the identity, so that code need not ask how it was started.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import itertools
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from cleanai.errors import InputError
from cleanai.inputs import batch_to_inputs, map_tensors, output_tensors

_failed = False


class Mergeable(Protocol):
    """What was collected from a part of the data."""

    def merge(self, other: Any, /) -> Any:
        """What would have been collected from both parts."""
        ...


_T = TypeVar("_T")
_Statistics = TypeVar("_Statistics", bound=Mergeable)


class SizedLoader(Sized, Iterable[Any], Protocol):
    """Batches that can be counted beforehand: a `DataLoader` over a data set, or a list."""


# ------------------------------------------------------------------------------------------------------ the processes


def world() -> tuple[int, int]:
    """This process's number from 0, and how many there are: (0, 1) under plain ``python``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> tuple[int, int]:
    """This process's number among those on its machine, and how many there are on it."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return world()[0] == 0


@contextlib.contextmanager
def start_processes(device: str = "auto") -> Generator[None]:
    """Under ``torchrun``, the connection between the processes: made at the first entry, kept until the program ends.

    A connection that exists already is used. ``device`` is "cpu", "cuda" or "auto" (each process its own GPU where the
    machine has enough of them). A process that fails inside does not wait for the others at its end, so that
    ``torchrun`` sees it end and ends them all.
    """
    global _failed
    if world()[1] > 1 and not distributed.is_initialized():
        _connect(choose_local_device(device))
    try:
        yield
        _failed = False
    except BaseException:
        _failed = True
        raise


def choose_local_device(device: str = "auto") -> torch.device:
    """The device of this process under ``torchrun``: its own GPU, or the CPU."""
    number, count = local_world()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and torch.cuda.device_count() >= count else "cpu"
    chosen = torch.device(device)
    return torch.device("cuda", number) if chosen.type == "cuda" else chosen


def _connect(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_disconnect)


def _disconnect() -> None:
    # After a failure NCCL would wait for what the others still owe; Gloo must be ended in any case.
    if distributed.is_initialized() and (distributed.get_backend() == "gloo" or not _failed):
        distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------- what they exchange


def gather(value: _T) -> list[_T]:
    """Every process's value, in the order of their numbers, in every process."""
    if not _is_connected():
        return [value]
    values: list[Any] = [None] * world()[1]
    distributed.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Waits until every process is here."""
    gather(None)


def merge_over_processes(statistics: _Statistics) -> _Statistics:
    """The statistics of all processes together, the same in each: merged by their ``merge``, in the processes' order.

    Each process collects from its `share_batches`.
    """
    merged, *others = gather(statistics)
    for other in others:
        merged = merged.merge(other)
    return merged


def run_on_main(fn: Callable[[], _T]) -> _T:
    """What ``fn()`` gives in the first process, which alone calls it, in all of them; or its exception in all."""
    if not _is_connected():
        return fn()
    value: Any = None
    error: Exception | None = None
    if is_main():
        try:
            value = fn()
        except Exception as raised:
            error = raised
    box: list[Any] = [(value, None if error is None else _portable(error))]
    distributed.broadcast_object_list(box, src=0)
    value, told = box[0]
    if error is not None:
        raise error
    if told is not None:
        raise told
    return value


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the buffers of the first one, such as the running statistics of BatchNorm."""
    if _is_connected():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def _is_connected() -> bool:
    if world()[1] == 1:
        return False
    if not distributed.is_initialized():
        raise InputError(
            f"{world()[1]} processes were started, but they are not connected: put what they do together inside "
            "`with cleanai.distributed.start_processes():`."
        )
    return True


def _portable(error: Exception) -> Exception:
    """The exception, or one that says the same where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))  # made in this very line
        return error
    except Exception:
        return InputError(f"{type(error).__name__}: {error}")


# -------------------------------------------------------------------------------------------------- how they share data


class BatchShare:
    """Every n-th batch of a loader, whole, beginning with the process's own number; see `share_batches`."""

    def __init__(self, loader: SizedLoader, limit: int | None) -> None:
        refuse_divided(loader)
        self._batches = fix_order(loader, limit)
        self._own = range(world()[0], count_batches(loader, limit), world()[1])

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._batches, FixedLoader):
            return iter(self._batches.replace([self._batches.order[number] for number in self._own]))
        return itertools.islice(self._batches, self._own.start, self._own.stop, self._own.step)


def share_batches(loader: SizedLoader, limit: int | None = None) -> SizedLoader:
    """This process's whole batches of a loader (or of its first ``limit``): together the processes see each one once.

    Made for statistics and accuracy, which are merged afterwards (`merge_over_processes`). All processes must call it,
    since the first one draws the order; it stays the same in every pass over the share. The batches of a `DataLoader`
    over a data set are divided before they are loaded; any other loader must give every process the same batches. A
    process has none where there are fewer batches than processes.

    Example:
        >>> len(share_batches([torch.ones(2), torch.zeros(2)]))
        2
    """
    return BatchShare(loader, limit)


def share_rows(
    loader: SizedLoader, limit: int | None = None, on_ordered: Callable[[], object] | None = None
) -> Iterator[tuple[Any, int]]:
    """This process's rows of each batch (its number, that plus n, …), and how many rows the whole batch has.

    A batch with fewer rows than there are processes is left out. The rows of a `DataLoader` over a data set are
    divided before they are loaded; the batches of any other loader must be the same in every process.
    ``on_ordered`` is called once the order is drawn, before anything is loaded.
    """
    rank, size = world()
    fixed = fix_order(loader, limit)
    if on_ordered is not None:
        on_ordered()
    if size == 1:
        yield from ((batch, count_rows(batch)) for batch in itertools.islice(fixed, limit))
    elif isinstance(fixed, FixedLoader):
        order = [rows for rows in fixed.order if len(rows) >= size]
        yield from zip(fixed.replace([rows[rank::size] for rows in order]), map(len, order), strict=True)
    else:
        for batch in itertools.islice(fixed, limit):
            if (rows := count_rows(batch)) >= size:
                yield take_rows(batch, rows, rank, size), rows


class FixedLoader:
    """A `DataLoader` whose next pass is decided: ``order`` holds the indices of each batch."""

    def __init__(self, loader: DataLoader, order: list[list[Any]]) -> None:
        self._loader, self.order = loader, order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.replace(self.order))

    def replace(self, order: list[list[Any]]) -> DataLoader:
        """A loader of the same data with these batches; workers are started anew, so that no pass hangs on another."""
        fixed = copy.copy(self._loader)
        fixed.__dict__.update(batch_sampler=order, _iterator=None)  # it lets nobody set them as attributes
        return fixed


def fix_order(loader: SizedLoader, limit: int | None = None) -> FixedLoader | SizedLoader:
    """The loader with the batches of its next pass drawn by the first process, or itself where it has no indices."""
    if (
        not isinstance(loader, DataLoader)
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return loader
    sampler, count = loader.batch_sampler, count_batches(loader, limit)
    return FixedLoader(loader, run_on_main(lambda: [list(rows) for rows in itertools.islice(sampler, count)]))


def count_batches(loader: SizedLoader, limit: int | None = None) -> int:
    """The number of batches in one pass over a loader, at most ``limit``."""
    return len(loader) if limit is None else min(len(loader), limit)


def count_rows(batch: Any) -> int:
    """The rows of a batch: those of its targets, or of its first tensor; 0 where there is none."""
    inputs, targets = batch_to_inputs(batch)
    return next((len(tensor) for tensor in output_tensors([targets, inputs]) if tensor.ndim > 0), 0)


def take_rows(batch: Any, rows: int, first: int, step: int) -> Any:
    """Some rows of every tensor of a batch that has them all.

    Example:
        >>> take_rows((torch.arange(5), torch.ones(2)), rows=5, first=1, step=2)
        (tensor([1, 3]), tensor([1., 1.]))
    """
    return map_tensors(lambda tensor: tensor[first::step] if tensor.shape[:1] == (rows,) else tensor, batch)


def refuse_divided(loader: Any) -> None:
    """Raises `InputError` for a loader that is divided among processes already."""
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    if any(isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1 for sampler in samplers):
        raise InputError(
            "the loader has a DistributedSampler, but its batches are divided among the processes here: give a loader "
            "of the whole data, whose batch_size is that of all processes together."
        )
