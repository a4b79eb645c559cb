"""Model inputs and outputs of any shape: tensors nested in tuples, lists, dicts, named tuples and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

LABEL_KEYS = ("labels", "label", "targets", "target")
"""The keys under which a loader's dict batches carry their targets; the first one present wins."""


def call_model(model: nn.Module, example_inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None = None) -> Any:
    """The output of one call of the model on inputs in any of the accepted forms.

    A plain tuple is spread over the positional arguments and a mapping over the keywords. Everything else is the one
    positional argument: a tensor, a list (torchvision's detection models take a list of images), a named tuple (such
    as ``PackedSequence``). ``forward_fn(model, example_inputs)`` replaces the call altogether.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> x = torch.ones(1, 3)
        >>> call_model(layer, x).shape == call_model(layer, (x,)).shape == call_model(layer, {"input": x}).shape
        True
    """
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if type(example_inputs) is tuple:  # exactly: a named tuple is one structured argument, not a list of arguments
        return model(*example_inputs)
    return model(example_inputs)


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """A copy of a nested structure with ``fn`` applied to every tensor and everything else passed through.

    Containers keep their type: tuples, lists, dicts and their subclasses, named tuples, torch's own return types,
    dataclasses (frozen ones too) and dict-like dataclasses such as the ``ModelOutput`` of transformers. The structure
    that was passed in is not changed.

    Example:
        >>> import torch
        >>> map_tensors(lambda tensor: tuple(tensor.shape), {"x": torch.ones(2, 3), "flags": [True, torch.ones(1)]})
        {'x': (2, 3), 'flags': [True, (1,)]}
    """
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, Mapping):
        return _rebuild_mapping(tree, {key: map_tensors(fn, value) for key, value in tree.items()})
    if isinstance(tree, tuple):
        values = [map_tensors(fn, value) for value in tree]
        make = getattr(type(tree), "_make", type(tree))  # named tuples need `_make`, any other tuple takes one iterable
        return make(values)
    if isinstance(tree, list):
        rebuilt = copy.copy(tree)
        rebuilt[:] = [map_tensors(fn, value) for value in tree]
        return rebuilt
    if _is_dataclass_instance(tree):
        rebuilt = copy.copy(tree)
        for name, value in _dataclass_values(tree):
            object.__setattr__(rebuilt, name, map_tensors(fn, value))  # reaches the fields of frozen dataclasses too
        return rebuilt
    return tree


def output_tensors(output: Any) -> list[Tensor]:
    """Every tensor in a nested model output, in order; ``None`` and anything that is not a tensor is skipped.

    Example:
        >>> import torch
        >>> [tuple(t.shape) for t in output_tensors((torch.ones(1), {"aux": None, "main": [torch.ones(2, 2)]}))]
        [(1,), (2, 2)]
    """
    return list(_iterate_tensors(output))


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first floating-point tensor among the arguments of a call, or None.

    Example:
        >>> import torch
        >>> first_tensor((torch.tensor([1]), None), {"x": torch.ones(2), "y": torch.ones(3)})
        tensor([1., 1.])
    """
    values = (*args, *kwargs.values())
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def batch_to_inputs(batch: Any) -> tuple[Any, Any]:
    """The ``(inputs, targets)`` of one batch of a loader; targets are ``None`` where the batch has none.

    ======================================  =======================================  ==================
    batch                                   inputs                                   targets
    ======================================  =======================================  ==================
    tensor                                  the tensor                               ``None``
    ``(x,)``                                ``x``                                    ``None``
    ``(x, y)``, tuple or list               ``x``                                    ``y``
    ``(x1, x2, ..., y)``, tuple or list     the tuple ``(x1, x2, ...)``              ``y``
    mapping                                 the same type without its label keys     the first label key
    ======================================  =======================================  ==================

    The label keys are ``labels``, ``label``, ``targets`` and ``target``. A batch of any other type (a dataclass, a
    ``PackedSequence``) is itself the input. The inputs go to `call_model` as they are.

    Example:
        >>> import torch
        >>> inputs, targets = batch_to_inputs({"pixels": torch.ones(2, 4), "labels": torch.tensor([0, 1])})
        >>> sorted(inputs), targets.tolist()
        (['pixels'], [0, 1])
    """
    if isinstance(batch, Mapping):
        return _split_mapping(batch)
    if not isinstance(batch, tuple | list) or not batch or _is_packed_sequence(batch):
        return batch, None
    if len(batch) == 1:
        return batch[0], None
    *inputs, targets = batch
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), targets


def _split_mapping(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    present = [key for key in LABEL_KEYS if key in batch]
    if not present:
        return batch, None
    inputs = {key: value for key, value in batch.items() if key not in present}
    return _rebuild_mapping(batch, inputs), batch[present[0]]


def _rebuild_mapping(original: Mapping[str, Any], content: dict[str, Any]) -> Any:
    """A mapping of the original's type that holds ``content``, whose keys are some of the original's."""
    if not isinstance(original, MutableMapping):
        return type(original)(content)  # ty: ignore[too-many-positional-arguments]
    rebuilt = copy.copy(original)  # keeps a default factory, and whatever else a subclass carries
    if len(content) < len(original):
        for key in original.keys() - content.keys():
            del rebuilt[key]
    for key, value in content.items():
        rebuilt[key] = value
    return rebuilt


def _iterate_tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    children: Any = ()
    if isinstance(tree, Mapping):
        children = tree.values()
    elif isinstance(tree, tuple | list):
        children = tree
    elif _is_dataclass_instance(tree):
        children = [value for _, value in _dataclass_values(tree)]
    for child in children:
        yield from _iterate_tensors(child)


def _is_dataclass_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _dataclass_values(instance: Any) -> list[tuple[str, Any]]:
    """Name and value of the fields that are set (a field declared with ``init=False`` need not be)."""
    names = [field.name for field in dataclasses.fields(instance)]
    return [(name, getattr(instance, name)) for name in names if hasattr(instance, name)]


def _is_packed_sequence(value: Any) -> bool:
    return isinstance(value, nn.utils.rnn.PackedSequence)
