"""The trace sees every operation, and leaves the model and the random state exactly as they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import CASES, PlainCnn, Residual, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import InputError, RandomImportance, StructuredPruner, TraceError, analyze_model, collect_statistics
from cleanai.isolation import list_state
from cleanai.trace import trace_model

# ------------------------------------------------------------------------------------------------- left as it was


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything a model is: classes, attributes, hooks, tensors as objects with their values, flags and gradients."""
    found: list[Any] = []
    for path, module in model.named_modules(remove_duplicate=False):
        found.append((path, type(module), module.training, list(vars(module))))
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found.append((name, id(value), value.detach().clone(), value.requires_grad))
            elif isinstance(value, dict | list | set):
                content = list(value.items()) if isinstance(value, dict) else list(value)
                found.append((name, id(value), [_plain(item) for item in content]))
            else:
                found.append((name, id(value)))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
                found.append((name, id(tensor), tensor.detach().clone(), tensor.requires_grad, grad, tensor.dtype))
    return found


def _plain(item: Any) -> Any:
    return item.detach().clone() if isinstance(item, Tensor) else item


def random_states() -> list[Any]:
    """The states of the three random number generators."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state(), random.getstate(), kind, torch.from_numpy(np.array(keys)), rest]


def assert_same(before: Any, after: Any) -> None:
    """Equal, tensors bit for bit."""
    if isinstance(before, Tensor):
        assert isinstance(after, Tensor) and before.dtype == after.dtype
        assert torch.equal(before, after) or (before.isnan() == after.isnan()).all()
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before is after or before == after


def in_a_peculiar_state(model: nn.Module) -> nn.Module:
    """Modes mixed, one parameter frozen, a gradient, an odd buffer and hooks: what a careless tool would reset."""
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.full_like(parameters[-1], 3.0)
    model.register_buffer("odd", torch.tensor([float("nan"), -0.0]), persistent=False)
    model.register_forward_hook(_watch)
    model.register_forward_pre_hook(_watch)
    model.register_state_dict_post_hook(_watch)
    return model


def _watch(*_: Any) -> None:
    return None


USES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "trace": trace_model,
    "analyze": analyze_model,
    "prune": lambda model, inputs: StructuredPruner(model, inputs, RandomImportance()).prune(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_left_exactly_as_it_was(name: str, use: str) -> None:
    model = in_a_peculiar_state(CASES[name].make())
    inputs = CASES[name].inputs(2)
    before, states = fingerprint(model), random_states()
    USES[use](model, inputs)
    assert_same(before, fingerprint(model))
    assert_same(states, random_states())


class _Raises(nn.Module):
    """Changes what it can reach, then raises."""

    seen: Tensor

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.fc, self.error, self.log, self.count = nn.Linear(6, 4), error, [], 0
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.log.append(x)
        self.extra = x
        self.seen += 1
        self.fc.weight.requires_grad_(False)
        self.eval()
        torch.rand(3)
        self.register_forward_hook(_watch)
        raise self.error("planted")


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, KeyboardInterrupt])
def test_a_forward_that_raises_leaves_no_trace(error: type[BaseException]) -> None:
    model = in_a_peculiar_state(_Raises(error))
    before, states = fingerprint(model), random_states()
    expected = KeyboardInterrupt if error is KeyboardInterrupt else TraceError
    with pytest.raises(expected, match="planted"):
        trace_model(model, torch.ones(2, 6))
    assert_same(before, fingerprint(model))
    assert_same(states, random_states())


def test_random_numbers_of_python_and_numpy_drawn_in_forward_are_put_back() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * random.random() * float(np.random.rand()) * torch.rand(1)  # noqa: NPY002

    model, inputs = Draws(), torch.ones(2, 6)
    states = random_states()
    for use in USES.values():
        use(model, inputs)
        assert_same(states, random_states())


def test_a_backward_hook_on_a_layer_stays_and_freezes_nothing() -> None:
    model = CASES["plain_cnn"].make()
    model.conv1.register_full_backward_hook(_watch)
    before = fingerprint(model)
    analysis = analyze_model(model, CASES["plain_cnn"].inputs(2))
    assert {group.name: group.size for group in analysis.groups} == {"conv1": 8, "conv2": 12}
    assert_same(before, fingerprint(model))


def test_calibration_leaves_the_model_as_it_was_too() -> None:
    model = in_a_peculiar_state(CASES["caching"].make())
    before = fingerprint(model)
    collect_statistics(model, [CASES["caching"].inputs(2)], progress=False)
    assert_same(before, fingerprint(model))
    with pytest.raises(InputError):
        collect_statistics(model, [torch.randn(2, 4)], progress=False)
    assert_same(before, fingerprint(model))


def test_the_example_inputs_are_not_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mul_(2).add_(1))

    inputs = torch.ones(2, 6, requires_grad=False)
    StructuredPruner(Writes(), inputs).prune()
    assert torch.equal(inputs, torch.ones(2, 6))
    assert not inputs.requires_grad and inputs.grad is None


def test_a_model_that_kept_outputs_from_training_is_traced_and_left_alone() -> None:
    """A cache that holds a graph: its tensors must not become part of the trace, nor lose their graph."""
    model = CASES["residual"].make()
    model.cache = model(CASES["residual"].inputs(1))
    graph = model.cache.grad_fn
    trace_model(model, CASES["residual"].inputs(2))
    assert model.cache.grad_fn is graph


# ------------------------------------------------------------------------------------------------- what it sees


def kinds(model: nn.Module, inputs: Any, **options: Any) -> list[str]:
    """The operations that are not leaves, in order."""
    trace = trace_model(model, inputs, **options)
    return [op.kind for op in trace.operations if op.kind not in ("Parameter", "Input", "Clone")]


def test_a_small_network_is_its_operations_in_order() -> None:
    assert kinds(PlainCnn(), torch.randn(2, 3, 8, 8)) == [
        "Convolution", "NativeBatchNorm", "Relu", "Convolution", "Relu", "MaxPool2DWithIndices", "Mean", "View", "T",
        "Addmm",
    ]  # fmt: skip


def test_operations_know_their_shapes_inputs_parameters_and_modules() -> None:
    trace = trace_model(PlainCnn(), torch.randn(2, 3, 8, 8))
    first = next(op for op in trace.operations if op.kind == "Convolution")
    assert (first.module, first.where, first.shapes) == ("conv1", "Convolution in conv1", ((2, 8, 8, 8),))
    assert [value.shape for value in first.inputs if value] == [(2, 3, 8, 8), (8, 3, 3, 3), (8,)]
    states = [trace.operations[v.operation].state for v in first.inputs if v]
    assert [state.name if state else None for state in states] == [None, "conv1.weight", "conv1.bias"]
    assert trace.outputs[0].shape == (2, 5)
    for op in trace.operations:
        assert all(value is None or value.operation < op.index for value in op.inputs)


def test_parameters_are_those_of_the_model_and_unused_ones_are_listed() -> None:
    model = CASES["unused"].make()
    trace = trace_model(model, CASES["unused"].inputs(2))
    seen = {op.state.name: op.state.tensor for op in trace.operations if op.state}
    assert set(seen) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert all(tensor is model.get_parameter(name) for name, tensor in seen.items())
    assert {state.name for state in trace.unused} == {"spare.weight", "spare.bias", "nothing"}


def test_tied_parameters_are_one_state_with_two_places() -> None:
    model = CASES["tied_embedding"].make()
    (tied,) = (state for state in list_state(model) if len(state.places) > 1)
    assert tied.name == "embed.weight"
    trace = trace_model(model, CASES["tied_embedding"].inputs(2))
    assert sum(op.state is not None and op.state.name == "embed.weight" for op in trace.operations) == 1


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_it_works_under_no_grad_and_for_frozen_parameters(around: Callable[[], Any]) -> None:
    expected = kinds(PlainCnn(), torch.randn(2, 3, 8, 8))
    with around():
        assert kinds(PlainCnn(), torch.randn(2, 3, 8, 8)) == expected
        assert kinds(PlainCnn().requires_grad_(False), torch.randn(2, 3, 8, 8)) == expected


def test_it_traces_evaluation_mode_whatever_the_mode_and_training_mode_on_request() -> None:
    inputs = CASES["auxiliary"].inputs(2)
    model = CASES["auxiliary"].make()
    expected = kinds(model, inputs)
    assert kinds(model.train(), inputs) == expected
    assert kinds(model.eval(), inputs, training=True).count("Convolution") == 3
    assert not model.training


def test_dropout_is_off_and_batchnorm_uses_its_statistics_in_either_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    for training in (False, True):
        assert "NativeDropout" not in kinds(net, torch.randn(1, 4), training=training)


def test_without_data_where_it_can_and_with_data_where_it_must() -> None:
    plain, dependent = CASES["plain_cnn"], CASES["value_dependent"]
    assert trace_model(plain.make(), plain.inputs(1)).method == "meta"
    assert trace_model(dependent.make(), dependent.inputs(1)).method == "real"


def test_a_model_too_large_for_memory_is_traced() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2**16, 2**20), nn.ReLU(), nn.Linear(2**20, 2**16))
    trace = trace_model(model, torch.randn(1, 2**16))
    assert trace.outputs[0].shape == (1, 2**16)


def test_a_deep_network_needs_no_recursion() -> None:
    model = nn.Sequential(*[nn.Identity() if i % 2 else nn.Linear(2, 2) for i in range(3000)])
    assert len(kinds(model, torch.randn(1, 2))) == 3000


@pytest.mark.parametrize("name", ["two_inputs", "dict_inputs", "named_outputs", "none_outputs"])
def test_inputs_and_outputs_of_any_form(name: str) -> None:
    trace = trace_model(CASES[name].make(), CASES[name].inputs(3))
    assert [value.shape for value in trace.outputs] == {
        "two_inputs": [(3, 5)], "dict_inputs": [(3, 5)], "named_outputs": [(3, 4), (3, 10)], "none_outputs": [(3, 4)],
    }[name]  # fmt: skip


def test_a_forward_function_and_an_output_transform_of_the_users_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            raise AssertionError("forward must not run")

        def encode(self, x: Tensor) -> dict[str, Any]:
            return {"text": "no tensor", "z": self.b(F.relu(self.a(x)))}

    def encode(model: Any, inputs: dict[str, Tensor]) -> Any:
        return model.encode(inputs["batch"])

    trace = trace_model(
        Two(),
        {"batch": torch.randn(2, 3)},
        forward_fn=encode,
        output_transform=lambda output: output["z"],
    )
    assert trace.outputs[0].shape == (2, 2) and not trace.unused


# ------------------------------------------------------------------------------------------------------- errors


class _NoPath(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(6, 4), how

    def forward(self, x: Tensor) -> Any:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.fc(x)
        y = self.fc(x)
        return {"detach": y.detach(), "argmax": y.argmax(1), "nothing": None, "number": 3.0}[self.how]


@pytest.mark.parametrize("how", ["no_grad", "detach", "argmax", "nothing", "number"])
def test_an_output_without_a_gradient_path_is_an_error_that_says_what_to_look_at(how: str) -> None:
    model = _NoPath(how)
    before = fingerprint(model)
    with pytest.raises(TraceError, match="no output of the model depends on its parameters"):
        trace_model(model, torch.randn(2, 6))
    assert_same(before, fingerprint(model))


def test_a_forward_that_raises_is_named_with_its_layer_and_its_error() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.Linear(5, 2)))
    with pytest.raises(TraceError, match=r"RuntimeError in 1\.0") as caught:
        trace_model(model, torch.randn(2, 6))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(InputError, match="example_inputs do not fit the model"):
        analyze_model(model, torch.randn(2, 6))


def test_a_lazy_layer_that_was_never_run_is_an_error() -> None:
    with pytest.raises(InputError, match="not initialised"):
        trace_model(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 6))


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(TraceError, match="use 'meta' or 'real'"):
        trace_model(PlainCnn(), torch.randn(2, 3, 8, 8), method="magic")


def test_an_output_that_depends_on_no_parameter_but_only_on_the_inputs_is_an_error() -> None:
    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(TraceError, match="no output of the model depends on its parameters"):
        trace_model(Ignores(), torch.randn(2, 6))


def test_tracing_twice_gives_the_same() -> None:
    model, inputs = randomise(Residual()), torch.randn(2, 3, 8, 8)
    assert kinds(model, inputs) == kinds(model, inputs) == kinds(model, inputs, method="real")
