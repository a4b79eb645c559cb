"""A model exported for other runtimes, and what was exported run and compared with the eager model."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.checks import check_file, check_model, check_positive
from cleanai.errors import CleanAIError, InputError, VerificationError
from cleanai.inputs import call_model, map_tensors, output_tensors
from cleanai.isolation import evaluation_mode, preserve_model
from cleanai.verify import random_inputs

TOLERANCE = 1e-4
Runner = Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True)
class Export:
    """A file that was written, and how far its outputs are from the eager model's.

    Attributes:
        path: the file.
        kind: "ONNX", "torch.export" or "TorchScript".
        max_relative_error: the largest difference, relative to the largest value of the eager output.
        batches: the batch sizes it was run with; empty where an input has no dimension.
        size_mb: of the file, in 10⁶ bytes.

    Example:
        >>> import tempfile
        >>> from cleanai import export_torchscript
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = export_torchscript(nn.Linear(3, 2), Path(folder) / "layer.pt", torch.zeros(4, 3))
        >>> export.kind, export.path.name, export.batches, export.max_relative_error < 1e-4
        ('TorchScript', 'layer.pt', (4,), True)
    """

    path: Path
    kind: str
    max_relative_error: float
    batches: tuple[int, ...]
    size_mb: float


def export_onnx(
    model: nn.Module, path: str | Path, example_inputs: Any, *, dynamic_batch: bool = True, tolerance: float = TOLERANCE
) -> Export:
    """Writes a model as ONNX, runs the file with onnxruntime on random inputs, and compares.

    Needs onnx, onnxscript and onnxruntime: ``pip install "cleanai[export]"``.

    Args:
        model: on any device and in any mode; it is exported in evaluation mode and left as it was.
        path: the file; an older one is replaced whole or not at all.
        example_inputs: as for `cleanai.StructuredPruner`.
        dynamic_batch: the first dimension of every input may have any size (it is run with two sizes).
        tolerance: the largest difference allowed, relative to the largest output value.

    Raises:
        InputError: a package is missing, or the model cannot be exported; the reason is given.
        VerificationError: the exported model's outputs are others. No file is left.

    Example:
        >>> from cleanai.models import digits_resnet
        >>> export_onnx(digits_resnet(), "digits.onnx", torch.zeros(1, 1, 8, 8)).batches  # doctest: +SKIP
        (1, 2)
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _import(name)

    def write(file: Path, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> None:
        torch.onnx.export(
            model, args, file, kwargs=kwargs, dynamo=True, verbose=False, dynamic_shapes=shapes, external_data=False
        )

    def read(file: Path) -> Runner:
        session = _import("onnxruntime").InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(inputs: Any) -> list[Tensor]:
            named = isinstance(inputs, Mapping) and set(names) <= set(inputs)
            values = [inputs[name] for name in names] if named else output_tensors(inputs)
            feed = {name: value.cpu().numpy() for name, value in zip(names, values, strict=True)}
            return [torch.from_numpy(value) for value in session.run(None, feed)]

        return run

    return _export("ONNX", model, Path(path), example_inputs, dynamic_batch, tolerance, write, read)


def export_program(
    model: nn.Module, path: str | Path, example_inputs: Any, *, dynamic_batch: bool = True, tolerance: float = TOLERANCE
) -> Export:
    """Writes a model with `torch.export` (".pt2"), loads the file, runs it on random inputs, and compares.

    Nothing has to be installed for it.

    Args:
        model: on any device and in any mode; it is exported in evaluation mode and left as it was.
        path: the file; an older one is replaced whole or not at all.
        example_inputs: as for `cleanai.StructuredPruner`.
        dynamic_batch: the first dimension of every input may have any size (it is run with two sizes).
        tolerance: the largest difference allowed, relative to the largest output value.

    Raises:
        InputError: the model cannot be exported; the reason is given.
        VerificationError: the exported model's outputs are others. No file is left.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = export_program(layer, Path(folder) / "layer.pt2", torch.zeros(1, 3))
        >>> export.max_relative_error < 1e-4, export.batches
        (True, (1, 2))
    """

    def write(file: Path, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> None:
        torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=shapes), file)

    def read(file: Path) -> Runner:
        program = torch.export.load(file).module()
        return lambda inputs: output_tensors(call_model(program, inputs))

    return _export("torch.export", model, Path(path), example_inputs, dynamic_batch, tolerance, write, read, ".pt2")


def export_torchscript(
    model: nn.Module, path: str | Path, example_inputs: Any, *, tolerance: float = TOLERANCE
) -> Export:
    """Writes a model as traced TorchScript (".pt"), loads the file, runs it on random inputs, and compares.

    For runtimes that know nothing newer; torch develops it no further. A branch that depends on values is frozen as the
    example takes it.

    Args:
        model: on any device and in any mode; it is exported in evaluation mode and left as it was.
        path: the file; an older one is replaced whole or not at all.
        example_inputs: as for `cleanai.StructuredPruner`.
        tolerance: the largest difference allowed, relative to the largest output value.

    Raises:
        InputError: the model cannot be exported; the reason is given.
        VerificationError: the exported model's outputs are others. No file is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = export_torchscript(nn.Linear(3, 2), Path(folder) / "layer.pt", torch.zeros(1, 3))
        >>> export.max_relative_error < 1e-4
        True
    """

    def write(file: Path, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        given = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
        torch.jit.save(torch.jit.trace(model, strict=False, **given), file)

    def read(file: Path) -> Runner:
        script = torch.jit.load(file)
        return lambda inputs: output_tensors(call_model(script, inputs))

    return _export("TorchScript", model, Path(path), example_inputs, False, tolerance, write, read)


def _export(
    kind: str,
    model: nn.Module,
    path: Path,
    example_inputs: Any,
    dynamic_batch: bool,
    tolerance: float,
    write: Callable[[Path, tuple[Any, ...], dict[str, Any], Any], None],
    read: Callable[[Path], Runner],
    suffix: str = "",
) -> Export:
    """Writes beside the file, compares what was written, and renames it."""
    check_model(model)
    check_positive(tolerance, "tolerance")
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
    with preserve_model(model), evaluation_mode(model), _quiet():
        try:
            inputs = _list_inputs(model, example_inputs, dynamic_batch)
            # The larger batch is the example: a size of 1 would be taken for a constant.
            args, kwargs = _split(inputs[-1])
            shapes = map_tensors(_free_batch, (args, kwargs)) if dynamic_batch else None
            with torch.no_grad():
                _write(kind, lambda: write(temporary, args, kwargs, _merge_shapes(shapes)))
                worst = max(_compare(kind, model, read(temporary), each) for each in inputs)
            if not worst <= tolerance:
                raise VerificationError(
                    f"the outputs of the exported model ({kind}) differ by {worst:.1e} of the largest value, more than "
                    f"{tolerance:.0e}: does the forward branch on values, or draw random numbers?"
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    batches = [next((len(t) for t in output_tensors(each) if t.dim()), None) for each in inputs]
    sizes = tuple(dict.fromkeys(size for size in batches if size is not None))
    return Export(path, kind, worst, sizes, path.stat().st_size / 1e6)


def _list_inputs(model: nn.Module, example_inputs: Any, dynamic_batch: bool) -> list[Any]:
    """Random inputs to compare with: two like the example, or one and another with twice its batch.

    The last one is what is exported with; on it alone, a value taken for a constant would not be noticed.
    """
    dtype = next((t.dtype for t in output_tensors(example_inputs) if t.is_floating_point()), torch.float32)
    inputs = [random_inputs(example_inputs, 0, dtype)]
    _try(model, inputs[0], "example_inputs", "give inputs that it accepts")
    if not dynamic_batch:
        # Of other signs and sizes, so that a branch on values goes the other way.
        return [map_tensors(lambda t: -2 * t if t.is_floating_point() else t, inputs[0]), *inputs]
    twice = map_tensors(
        lambda t: torch.cat([t, t.roll(1, -1)]) if t.dim() else t, random_inputs(example_inputs, 1, dtype)
    )
    _try(model, twice, "twice the batch", "export it with dynamic_batch=False")
    return [*inputs, twice]


def _try(model: nn.Module, inputs: Any, what: str, remedy: str) -> None:
    try:
        with torch.no_grad():
            call_model(model, map_tensors(Tensor.clone, inputs))
    except Exception as error:
        raise InputError(
            f"the model does not run on {what} ({type(error).__name__}: {error!s:.200}); {remedy}"
        ) from error


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if type(inputs) is tuple else (inputs,)), {}


def _free_batch(tensor: Tensor) -> Any:
    return {0: torch.export.Dim.DYNAMIC} if tensor.dim() else {}


def _merge_shapes(shapes: Any) -> Any:
    """As `torch.export` wants them: by position, or by name."""
    return shapes if shapes is None else shapes[1] or shapes[0]


def _write(kind: str, write: Callable[[], None]) -> None:
    try:
        write()
    except CleanAIError:
        raise
    except Exception as error:  # whatever the exporter raises: it has dozens of errors of its own
        cause = error
        while cause.__cause__ is not None:  # an exporter that uses another one tells its own next steps only
            cause = cause.__cause__
        first = next((line for line in str(cause).splitlines() if line.strip()), "")
        raise InputError(f"the model cannot be exported as {kind} ({type(cause).__name__}: {first:.300})") from error


def _compare(kind: str, model: nn.Module, exported: Runner, inputs: Any) -> float:
    theirs = output_tensors(call_model(model, map_tensors(Tensor.clone, inputs)))
    ours = exported(map_tensors(Tensor.clone, inputs))
    if [tuple(t.shape) for t in ours] != [tuple(t.shape) for t in theirs]:
        raise VerificationError(f"the exported model ({kind}) gives {len(ours)} outputs of other shapes")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if b.numel():
            difference = float((a.double().cpu() - b.double().cpu()).abs().max())
            worst = max(worst, difference / (float(b.double().abs().max()) or 1.0))
    return worst


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f'exporting to ONNX needs {name}: pip install "cleanai[export]"') from error


@contextmanager
def _quiet() -> Generator[None]:
    """Exporters warn of their own future; what matters is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
