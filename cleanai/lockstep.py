"""Several forward passes side by side that wait for each other at chosen modules.

Repairing a network from front to back needs, at every block, what all calibration batches bring there, in a network
whose earlier blocks are repaired already. Starting anew for each block costs as many passes as there are blocks. Here
each batch's forward runs in a thread of its own that waits at the blocks: one pass in all, in the memory of what is
alive between two blocks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from cleanai.errors import InputError
from cleanai.inputs import call_model
from cleanai.isolation import share_tensors, surely


@contextlib.contextmanager
def explain_errors(number: int) -> Generator[None]:
    """Says of what a forward pass raises which batch of the loader it was."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the model cannot run on batch {number} of the loader ({type(error).__name__}: {error}); batches must "
            "hold what example_inputs holds, with or without labels"
        ) from error


class _GivenUp(BaseException):
    """Ends a forward pass that nobody waits for any more."""


class _Walker(threading.Thread):
    """One forward pass in its own thread; only ever runs while the one who called `advance` waits."""

    def __init__(self, model: nn.Module, inputs: Any, stops: Iterable[str], forward: Callable[..., Any] | None) -> None:
        super().__init__(daemon=True)
        self._model, self._inputs, self._forward = model, inputs, forward
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._cancelled = self._ended = False
        self.error: BaseException | None = None
        self.place: str | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        for path in stops:
            model.get_submodule(path).register_forward_pre_hook(self._make_hook(path), with_kwargs=True)

    def _make_hook(self, path: str) -> Callable[..., None]:
        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._cancelled:  # the model has caught what ended its forward, and goes on
                raise _GivenUp
            self.place, self.call = path, (args, kwargs)
            self._stopped.release()
            self._go.acquire()
            self.place, self.call = None, ((), {})
            if self._cancelled:
                raise _GivenUp

        return stop

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._cancelled:
                with torch.no_grad():
                    call_model(self._model, self._inputs, self._forward)
        except _GivenUp:
            pass
        except BaseException as error:
            self.error = error
        self._ended = True
        self._stopped.release()

    def advance(self) -> None:
        """Runs to the next stop, or to the end; past that, nowhere."""
        if not self._ended:
            self._go.release()
            self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Ends the pass wherever it is."""
        self._cancelled = True
        if self.is_alive():
            self._go.release()
            self.join()


class Lockstep:
    """The forward passes of one model over several batches, moved from stop to stop together.

    Args:
        stops: paths of modules that are called once in each forward, in the order of the calls.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with Lockstep(net, [torch.ones(1, 2), torch.zeros(4, 2)], ["2"]) as passes:
        ...     [tuple(args[0].shape) for args, kwargs in passes.reach("2")]
        [(1, 3), (4, 3)]
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        stops: Sequence[str],
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self._walkers = [_Walker(share_tensors(model), inputs, stops, forward) for inputs in batches]

    def __enter__(self) -> Lockstep:
        try:
            for walker in self._walkers:
                walker.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        surely(self._cancel)

    def _cancel(self) -> None:
        for walker in self._walkers:
            walker.cancel()

    def reach(self, path: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Moves every pass to the call of a module and returns what each calls it with."""
        for number, walker in enumerate(self._walkers):
            while walker.place != path:
                with explain_errors(number):
                    walker.advance()
                if walker.place is None:
                    raise InputError(f"the module {path} is not called in every forward: it cannot be repaired")
        return [walker.call for walker in self._walkers]
