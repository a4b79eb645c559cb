"""Inputs and outputs of every nesting survive with their types, and nothing that was passed in changes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cleanai.inputs import batch_to_inputs, call_model, map_tensors, output_tensors

Pair = namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass(frozen=True)
class FrozenOutput:
    logits: Tensor
    loss: Tensor | None = None
    late: Tensor = dataclasses.field(init=False)


class ModelOutput(OrderedDict):
    """Like the class of transformers: a dict whose entries are attributes as well."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


@dataclasses.dataclass
class DictOutput(ModelOutput):
    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


class ListInput(nn.Module):
    def forward(self, images: list[Tensor]) -> Tensor:
        assert isinstance(images, list)
        return torch.stack([image.sum() for image in images])


def double(tensor: Tensor) -> Tensor:
    return tensor * 2


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    "inputs",
    [(ones(2) * 3, ones(2)), {"right": ones(2), "left": ones(2) * 3}, UserDict(left=ones(2) * 3, right=ones(2))],
    ids=["tuple", "dict", "UserDict"],
)
def test_call_model_spreads_tuples_and_mappings(inputs: Any) -> None:
    assert torch.equal(call_model(TwoInputs(), inputs), ones(2) * 2)


def test_call_model_passes_everything_else_as_one_argument() -> None:
    assert torch.equal(call_model(nn.Identity(), ones(3)), ones(3))
    assert call_model(ListInput(), [ones(2), ones(3)]).tolist() == [2, 3]
    pair = Pair(ones(1), ones(2))
    assert call_model(nn.Identity(), pair) is pair


def test_call_model_uses_the_forward_function_instead() -> None:
    output = call_model(TwoInputs(), ones(2), forward_fn=lambda model, x: model(x, x * 5))
    assert torch.equal(output, ones(2) * -4)


@pytest.mark.parametrize(
    "tree",
    [
        (ones(1), ones(2)),
        [ones(1), "text", None],
        {"a": ones(1), "b": {"c": ones(2)}},
        OrderedDict(b=ones(1), a=ones(2)),
        UserDict(a=ones(1)),
        MappingProxyType({"a": ones(1)}),
        Pair(ones(1), [ones(2)]),
        FrozenOutput(ones(2)),
        DictOutput(logits=ones(2), hidden=(ones(1), ones(3))),
        torch.return_types.max((ones(1), ones(1))),
        nn.utils.rnn.pack_sequence([ones(3), ones(2)])._replace(batch_sizes=ones(3)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_map_tensors_keeps_types_and_leaves_the_argument_alone(tree: Any) -> None:
    before = output_tensors(tree)
    mapped = map_tensors(double, tree)
    after = output_tensors(mapped)
    assert type(mapped) is type(tree)
    assert len(after) == len(before) > 0
    assert all(torch.equal(new, old * 2) for new, old in zip(after, before, strict=True))
    assert all(new is old for new, old in zip(output_tensors(tree), before, strict=True))


def test_map_tensors_keeps_what_is_not_a_tensor() -> None:
    marker = object()
    tree = {"text": "abc", "none": None, "number": 3, "object": marker, "type": FrozenOutput}
    assert map_tensors(double, tree) == tree


def test_map_tensors_keeps_default_factories_and_attribute_views() -> None:
    tree: defaultdict[str, Any] = defaultdict(list, x=ones(1))
    assert map_tensors(double, tree)["missing"] == []
    mapped = map_tensors(double, DictOutput(logits=ones(2)))
    assert mapped.logits is mapped["logits"]
    assert mapped.logits.tolist() == [2, 2]
    assert mapped.hidden is None


def test_output_tensors_come_in_order_and_skip_the_rest() -> None:
    a, b, c, d = (torch.tensor(float(i)) for i in range(4))
    found = output_tensors((a, None, {"x": [b, "text"], "y": FrozenOutput(c)}, Pair(d, 3)))
    assert [tensor.item() for tensor in found] == [0, 1, 2, 3]
    assert output_tensors(None) == output_tensors("text") == []


def test_batches_of_every_kind() -> None:
    x, z, y = ones(2, 3), ones(2, 1), torch.tensor([0, 1])
    assert batch_to_inputs(x) == (x, None)
    for sequence in (tuple, list):
        inputs, targets = batch_to_inputs(sequence([x, y]))
        assert inputs is x and targets is y
        inputs, targets = batch_to_inputs(sequence([x, z, y]))
        assert type(inputs) is tuple and inputs[0] is x and inputs[1] is z and targets is y
        assert batch_to_inputs(sequence([x]))[0] is x
    nested = {"pixels": x}
    inputs, targets = batch_to_inputs((nested, y))
    assert inputs is nested and targets is y


@pytest.mark.parametrize("key", ["labels", "label", "target", "targets"])
@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType])
def test_dict_batches_lose_their_labels_and_keep_their_type(key: str, kind: Any) -> None:
    x, y = ones(2, 3), torch.tensor([0, 1])
    batch = kind({"x": x, key: y, "mask": None})
    inputs, targets = batch_to_inputs(batch)
    assert type(inputs) is kind
    assert list(inputs) == ["x", "mask"] and inputs["x"] is x and targets is y
    assert key in batch


def test_dict_batch_without_labels_is_all_input() -> None:
    batch = {"x": ones(1)}
    assert batch_to_inputs(batch) == (batch, None)


def test_packed_sequences_are_one_input() -> None:
    packed = nn.utils.rnn.pack_sequence([ones(3), ones(2)])
    inputs, targets = batch_to_inputs(packed)
    assert inputs is packed and targets is None


def test_batches_of_a_data_loader() -> None:
    x, y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    inputs, targets = batch_to_inputs(next(iter(DataLoader(TensorDataset(x, y), batch_size=3))))
    assert torch.equal(inputs, x) and torch.equal(targets, y)
    inputs, targets = batch_to_inputs(next(iter(DataLoader(TensorDataset(x), batch_size=3))))
    assert torch.equal(inputs, x) and targets is None
