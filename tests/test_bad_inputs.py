"""What cannot be used is refused with one sentence that says what is wrong and what to do, and nothing has changed.

The table is the documentation of these messages: one entry for each mistake, with the whole text. ``{tmp}`` in it
stands for a temporary folder; nothing else does. Whatever the mistake, the models are as before bit for bit (values,
modes, hooks, attributes, gradients), so are the random generators and torch's settings, and no file is left behind.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cleanai.data
from cleanai import (
    CleanAIError,
    History,
    InputError,
    MixedImportance,
    NeuronCoverageImportance,
    Plan,
    PlanError,
    Sensitivity,
    StructuredPruner,
    TraceError,
    VerificationError,
    WeightActivationImportance,
)
from cleanai.cli import main
from cleanai.comparison import compare_criteria, measure_criteria
from cleanai.coverage import CoverageAnalyzer, CoveragePruner
from cleanai.data import load_cifar10, load_nips_photos
from cleanai.evaluate import evaluate_model, measure_latency, measure_model
from cleanai.experiments import make_config, run_experiment
from cleanai.experiments.scenarios import find_method
from cleanai.graph import build_graph
from cleanai.isolation import list_state, preserve_random_state
from cleanai.plan import TensorCut
from cleanai.preview import Previewer, try_settings
from cleanai.recover import recover_model
from cleanai.search import SearchSpace, search_plans
from cleanai.sensitivity import analyze_sensitivity, auto_ratio
from cleanai.verify import verify_pruning

X = torch.linspace(-1, 1, 12).reshape(4, 3)
LABELS = torch.tensor([0, 1, 0, 1])
BATCHES = [(X, LABELS), (X.flip(0), LABELS)]


# ------------------------------------------------------------------------------------------------------------- models


def make_net(width: int = 8) -> nn.Module:
    """Three inputs, one group of channels ("first"), two classes."""
    layers = {"first": nn.Linear(3, width), "act": nn.ReLU(), "last": nn.Linear(width, 2)}
    return nn.Sequential(OrderedDict(layers))


class Residual(nn.Module):
    """Two branches that are added, so that their channels go together, and a block that can be dropped whole."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 8), nn.Linear(3, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) + self.right(x)
        return self.head(x + self.block(x))


class Chosen(nn.Module):
    """A forward of one's own, for layers that a rule speaks for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.exp()


class Uncopiable(nn.Linear):
    """Holds something that no copy can be made of."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


def with_nan(model: nn.Module) -> nn.Module:
    """One weight is NaN."""
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    return model


def make_under_inference_mode() -> nn.Module:
    """Its weights can never be trained."""
    with torch.inference_mode():
        return make_net()


# ------------------------------------------------------------------------------------------------------ what is watched


class World:
    """What the calls of the table work with; everything that is handed out is compared with what it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._watched: list[tuple[nn.Module, list[Any]]] = []
        self._files: dict[Path, bytes] = {}
        self.net: Any = self.make(make_net).train()
        self.net.first.register_forward_hook(lambda *_: None)
        self.net.first.eval()
        self.net.last.weight.grad = torch.ones_like(self.net.last.weight)
        self.net.last.bias.requires_grad_(False)
        self._watched = [(self.net, describe(self.net))]
        self._around = describe_surroundings()

    def make(self, factory: Callable[[], nn.Module]) -> nn.Module:
        """A model of its own, watched from now on."""
        with preserve_random_state():
            torch.manual_seed(0)
            model = factory()
        self._watched.append((model, describe(model)))
        return model

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy, watched from now on."""
        return self.make(lambda: copy.deepcopy(model))

    def watch(self, model: nn.Module) -> nn.Module:
        """A model that was made elsewhere, watched from now on."""
        self._watched.append((model, describe(model)))
        return model

    def pruner(self, importance: Any = "magnitude", ratio: Any = 0.5, **settings: Any) -> StructuredPruner:
        """A pruner of the net; every case changes one setting."""
        return StructuredPruner(self.net, X, importance, ratio, **settings)

    def file(self, name: str, content: str = "") -> Path:
        """A file that must stay as it is."""
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        self._files[path] = path.read_bytes()
        return path

    def saved(self, **options: Any) -> Path:
        """A file of `save_pruned`."""
        path = cleanai.save_pruned(self.pruner(**options).prune(), self.folder / "net.safetensors")
        self._files[path] = path.read_bytes()
        return path

    def check(self) -> None:
        """Nothing has changed."""
        for model, before in self._watched:
            assert_same(before, describe(model))
        assert_same(self._around, describe_surroundings())
        files = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        assert files == self._files


def describe(model: nn.Module) -> list[Any]:
    """Everything of a model that could have changed: objects and their values, modes, hooks, attributes, gradients."""
    found: list[Any] = []
    for path, module in model.named_modules():
        found.append((path, id(module), type(module), module.training))
        for name, value in module.__dict__.items():
            inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            found.append((path, name, id(value), [(key, id(each)) for key, each in inside]))
    if any(
        isinstance(p, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))
        for p in model.parameters()
    ):
        return found
    for state in list_state(model):
        tensor = state.tensor
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
        values = tensor.shape if tensor.is_meta else tensor.detach().clone()
        found.append((state.name, id(tensor), tensor.requires_grad, grad, values))
    return found


def describe_surroundings() -> list[Any]:
    """Random generators, and what torch is set to."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the one that a forward may draw from)
    return [
        *(torch.get_rng_state(), random.getstate(), torch.from_numpy(np.asarray(keys)), name, rest),
        *(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        ),
    ]


def assert_same(before: Any, after: Any) -> None:
    """Equal bit for bit, NaN being equal to itself."""
    assert type(before) is type(after)
    if isinstance(before, Tensor):
        assert torch.equal(before.contiguous().view(torch.uint8), after.contiguous().view(torch.uint8))
    elif isinstance(before, (list, tuple)) and not isinstance(before, torch.Size):
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert_same(old, new)
    else:
        assert before == after


# -------------------------------------------------------------------------------------------------------- helping hands


def loop(*batches: Any) -> Any:
    """A generator, which can be gone through only once."""
    yield from batches


def used_up() -> Any:
    """A generator that somebody has gone through already."""
    generator = loop(*BATCHES)
    list(generator)
    return generator


def plan_of(parameter: str = "first.weight", dim: int = 0, size: int = 8, dropped: tuple[int, ...] = (1,)) -> Plan:
    """A plan of one cut."""
    return Plan(cuts=(TensorCut(parameter, dim, size, dropped),))


def widen(step: Any) -> None:
    """A callback that rebuilds what it may only train."""
    step.model.first.weight = nn.Parameter(torch.ones(5, 3))


def spoil(step: Any) -> None:
    """A callback whose training diverges."""
    with torch.no_grad():
        step.model.last.weight.fill_(torch.inf)


def prune_with_rule(w: World, connect: Any, shrink: Any = None) -> object:
    """Prunes a net with a layer that a rule of the user's speaks for."""
    model = w.make(lambda: nn.Sequential(nn.Linear(3, 8), Chosen(8), nn.Linear(8, 2)))
    cleanai.register_rule(Chosen, connect, shrink)
    try:
        return StructuredPruner(model, X).prune()
    finally:
        cleanai.unregister_rule(Chosen)


def tie(links: Any) -> None:
    """The right rule of `Chosen`."""
    links.tie(links.input().dim(1), links.tensor("weight").dim(0), links.output().dim(1))


def raise_error(module: nn.Module) -> None:
    """A part of a rule that does not work."""
    raise ZeroDivisionError("on purpose")


def no_model() -> nn.Module:
    """A factory that fails."""
    raise FileNotFoundError("no checkpoint here")


def enter(context: Any) -> None:
    """Does with a context manager what ``with`` does."""
    with context:
        pass


def collect_once(w: World) -> object:
    """A criterion that looks at every step again, given data that can be seen once."""
    pruner = w.pruner(cleanai.AdaptiveNeuronCoverageImportance(), iterative_steps=2)
    pruner.collect_activations(loop(*BATCHES), progress=False)
    return pruner.prune()


def prune_with_other_threshold(w: World) -> object:
    """Scores by values above a threshold that were not counted."""
    pruner = w.pruner(NeuronCoverageImportance("frequency"))
    pruner.collect_activations(BATCHES, progress=False)
    return pruner.vary(importance=NeuronCoverageImportance("frequency", 0.5)).prune()


def prune_without_curvature(w: World) -> object:
    """Scores by second derivatives that were not looked at."""
    pruner = w.pruner("hessian")
    pruner.collect_gradients(BATCHES, curvature=False, progress=False)
    return pruner.prune()


def prune_and(w: World, then: Callable[[StructuredPruner], object]) -> object:
    """Something done with a pruner that has pruned."""
    pruner = w.pruner()
    pruner.prune()
    return then(pruner)


def damaged_plan() -> Plan:
    """A plan file in which a number has become a text."""
    data = plan_of().to_dict()
    return Plan.from_dict({**data, "cuts": [{**data["cuts"][0], "size": "eight"}]})


def recover_call(w: World, loader: Any = BATCHES, **settings: Any) -> object:
    """A repair of a pruned model by hand."""
    pruner = w.pruner()
    small = w.watch(pruner.prune())
    assert pruner.plan is not None
    coupling = pruner.analysis.coupling
    return recover_model(w.net, small, pruner.plan, coupling, loader, X, progress=False, **settings)


def sensitivity_of(w: World) -> Sensitivity:
    """What one cut of the net costs."""
    return analyze_sensitivity(w.pruner(), once(50.0), ratios=(0.5,), progress=False)


def panels() -> Any:
    """The panels of notebooks."""
    from cleanai import widgets

    return widgets


def make_scripted() -> nn.Module:
    """A model that is no longer Python."""
    with warnings.catch_warnings(), preserve_random_state():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(nn.Linear(3, 2))


def once(value: Any) -> Callable[..., Any]:
    """A function that returns the same whatever it is given."""
    return lambda *_, **__: value


# ------------------------------------------------------------------------------------------------------------ the table

Case = tuple[str, Callable[[World], object], type[CleanAIError], str]

# The model: what a pruner cannot work with at all.
MODELS: list[Case] = [
    (
        "no module",
        lambda w: StructuredPruner(X, X),
        InputError,
        "model is a Tensor; give a torch.nn.Module",
    ),
    (
        "a class",
        lambda w: StructuredPruner(nn.Linear, X),
        InputError,
        "model is a type; give a torch.nn.Module, such as an instance of Linear",
    ),
    (
        "a state dict",
        lambda w: StructuredPruner(w.net.state_dict(), X),
        InputError,
        "model is a OrderedDict; give a torch.nn.Module that has loaded it",
    ),
    (
        "scripted",
        lambda w: StructuredPruner(make_scripted(), X),
        InputError,
        "model is a torch.jit.ScriptModule, which cannot be followed; give the eager model it was made from",
    ),
    (
        "lazy",
        lambda w: StructuredPruner(w.make(lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))), X),
        InputError,
        "0.weight is not initialised yet (a lazy layer): run the model once on real inputs, then prune it.",
    ),
    (
        "nan weights",
        lambda w: StructuredPruner(w.make(lambda: with_nan(make_net())), X),
        InputError,
        "first.weight holds NaN or infinite values: repair or retrain the model before pruning it",
    ),
    (
        "inference tensors",
        lambda w: StructuredPruner(w.make(make_under_inference_mode), X),
        InputError,
        "first.weight was made under torch.inference_mode; make the model outside of it",
    ),
    (
        "no values to prove anything with",
        lambda w: StructuredPruner(w.make(lambda: make_net().to("meta")), X.to("meta"), importance="random").prune(),
        InputError,
        "first.weight is on the meta device and has no values that a proof could compare: load the weights first, or "
        "leave the proof out (verify=False)",
    ),
    (
        "data parallel",
        lambda w: StructuredPruner(nn.DataParallel(w.net), X),
        InputError,
        "model is wrapped in DataParallel; prune the model inside (module), then wrap it again",
    ),
    (
        "no forward",
        lambda w: StructuredPruner(w.make(lambda: nn.ModuleList([nn.Linear(3, 2)])), X),
        InputError,
        "example_inputs do not fit the model: the forward raised NotImplementedError: Module "
        '[ModuleList] is missing the required "forward" function',
    ),
    (
        "no parameters",
        lambda w: StructuredPruner(w.make(nn.ReLU), X),
        TraceError,
        "the model has no parameters: there is nothing to prune",
    ),
    (
        "frozen forward",
        lambda w: w.pruner(output_transform=torch.Tensor.detach),
        TraceError,
        "no output of the model depends on its parameters through autograd (1 output tensors were looked "
        "at): check that forward does not run under no_grad or detach its result, or pick the "
        "differentiable part with output_transform.",
    ),
    (
        "meta weights",
        lambda w: StructuredPruner(w.make(lambda: make_net().to("meta")), X, "magnitude").prune(),
        InputError,
        "first.weight is on the meta device, so it has no values to score: give the model its weights",
    ),
    (
        "cannot be copied",
        lambda w: StructuredPruner(w.make(lambda: nn.Sequential(Uncopiable(3, 8), nn.Linear(8, 2))), X).prune(),
        InputError,
        "the model cannot be copied (TypeError: no copies); prune it with inplace=True instead",
    ),
]

# example_inputs, forward_fn and output_transform.
EXAMPLES: list[Case] = [
    (
        "wrong shape",
        lambda w: StructuredPruner(w.net, torch.ones(1, 4)),
        InputError,
        "example_inputs do not fit the model: the forward raised RuntimeError in first: addmm: mat1 and "
        "mat2 shapes cannot be multiplied (1x4 and 3x8)",
    ),
    (
        "wrong dtype",
        lambda w: StructuredPruner(w.net, torch.ones(1, 3, dtype=torch.int64)).prune(),
        VerificationError,
        "the original model could not be run for the proof: expected m1 and m2 to have the same dtype, "
        "but got: long int != float",
    ),
    (
        "none",
        lambda w: StructuredPruner(w.net, None),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError in first: linear(): argument "
        "'input' (position 1) must be Tensor, not NoneType"
        "; give a tensor, a tuple of positional arguments or a dict of keyword arguments",
    ),
    (
        "a number",
        lambda w: StructuredPruner(w.net, 3),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError in first: linear(): argument "
        "'input' (position 1) must be Tensor, not int"
        "; give a tensor, a tuple of positional arguments or a dict of keyword arguments",
    ),
    (
        "a shape",
        lambda w: StructuredPruner(w.net, (1, 3)),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: Sequential.forward() takes 2 "
        "positional arguments but 3 were given"
        "; a tuple holds the positional arguments of the forward, without labels",
    ),
    (
        "too many arguments",
        lambda w: StructuredPruner(w.net, (X, X)),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: Sequential.forward() takes 2 "
        "positional arguments but 3 were given"
        "; a tuple holds the positional arguments of the forward, without labels",
    ),
    (
        "unknown keyword",
        lambda w: StructuredPruner(w.net, {"pixels": X}),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: Sequential.forward() got an "
        "unexpected keyword argument 'pixels'"
        "; a dict holds the keyword arguments of the forward",
    ),
    (
        "a batch with labels",
        lambda w: StructuredPruner(w.net, BATCHES[0]),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: Sequential.forward() takes 2 "
        "positional arguments but 3 were given"
        "; a tuple holds the positional arguments of the forward, without labels",
    ),
    (
        "a loader",
        lambda w: StructuredPruner(w.net, BATCHES),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError in first: linear(): argument "
        "'input' (position 1) must be Tensor, not list"
        "; give a tensor, a tuple of positional arguments or a dict of keyword arguments",
    ),
    (
        "on another device",
        lambda w: StructuredPruner(w.net, X.to("meta")).prune(),
        VerificationError,
        "the original model could not be run for the proof: Tensor on device cpu is not on the expected device meta!",
    ),
    (
        "numpy",
        lambda w: StructuredPruner(w.net, X.numpy()),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError in first: linear(): argument "
        "'input' (position 1) must be Tensor, not numpy.ndarray"
        "; give a tensor, a tuple of positional arguments or a dict of keyword arguments",
    ),
    (
        "forward_fn no function",
        lambda w: w.pruner(forward_fn="forward"),
        InputError,
        "forward_fn is 'forward'; give a function, or leave it out",
    ),
    (
        "forward_fn raises",
        lambda w: w.pruner(forward_fn=lambda model, x: model(x["x"])),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: new(): invalid data type 'str'",
    ),
    (
        "forward_fn takes one",
        lambda w: w.pruner(forward_fn=lambda x: x),
        InputError,
        "example_inputs do not fit the model: the forward raised TypeError: <lambda>.<locals>.<lambda>() "
        "takes 1 positional argument but 2 were given",
    ),
    (
        "output_transform no function",
        lambda w: w.pruner(output_transform="logits"),
        InputError,
        "output_transform is 'logits'; give a function, or leave it out",
    ),
    (
        "output_transform picks nothing",
        lambda w: w.pruner(output_transform=once(None)),
        TraceError,
        "no output of the model depends on its parameters through autograd (0 output tensors were looked "
        "at): check that forward does not run under no_grad or detach its result, or pick the "
        "differentiable part with output_transform.",
    ),
]

# Numbers: how much may go.
RATIOS: list[Case] = [
    (
        "ratio of everything",
        lambda w: w.pruner(ratio=1.0),
        InputError,
        "pruning_ratio is 1.0; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio negative",
        lambda w: w.pruner(ratio=-0.1),
        InputError,
        "pruning_ratio is -0.1; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio in percent",
        lambda w: w.pruner(ratio=30),
        InputError,
        "pruning_ratio is 30; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio nan",
        lambda w: w.pruner(ratio=float("nan")),
        InputError,
        "pruning_ratio is nan; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio text",
        lambda w: w.pruner(ratio="0.5"),
        InputError,
        "pruning_ratio is '0.5'; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio bool",
        lambda w: w.pruner(ratio=True),
        InputError,
        "pruning_ratio is True; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio none",
        lambda w: w.pruner(ratio=None),
        InputError,
        "pruning_ratio is None; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio mapping",
        lambda w: w.pruner(ratio={"first": 0.5}),
        InputError,
        "pruning_ratio is {'first': 0.5}; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "ratio tensor",
        lambda w: w.pruner(ratio=torch.tensor(0.5)),
        InputError,
        "pruning_ratio is tensor(0.5000); it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "max ratio zero",
        lambda w: w.pruner(max_pruning_ratio=0),
        InputError,
        "max_pruning_ratio is 0; it must lie in (0, 1]",
    ),
    (
        "max ratio above one",
        lambda w: w.pruner(max_pruning_ratio=1.5),
        InputError,
        "max_pruning_ratio is 1.5; it must lie in (0, 1]",
    ),
    (
        "max ratio nan",
        lambda w: w.pruner(max_pruning_ratio=float("nan")),
        InputError,
        "max_pruning_ratio is nan; it must lie in (0, 1]",
    ),
    (
        "max ratio bool",
        lambda w: w.pruner(max_pruning_ratio=True),
        InputError,
        "max_pruning_ratio is True; it must lie in (0, 1]",
    ),
    (
        "min channels zero",
        lambda w: w.pruner(min_channels=0),
        InputError,
        "min_channels is 0; at least 1 channel must stay",
    ),
    (
        "min channels share",
        lambda w: w.pruner(min_channels=0.5),
        InputError,
        "min_channels is 0.5; it must be a whole number",
    ),
    (
        "min channels more than all",
        lambda w: w.pruner(min_channels=100),
        InputError,
        "min_channels is 100, but the largest group (first) has 8 channels: nothing could go",
    ),
    (
        "round_to zero",
        lambda w: w.pruner(round_to=0),
        InputError,
        "round_to is 0; it must be at least 1",
    ),
    (
        "round_to negative",
        lambda w: w.pruner(round_to=-8),
        InputError,
        "round_to is -8; it must be at least 1",
    ),
    (
        "round_to bool",
        lambda w: w.pruner(round_to=True),
        InputError,
        "round_to is True; it must be a whole number",
    ),
    (
        "round_to float",
        lambda w: w.pruner(round_to=8.0),
        InputError,
        "round_to is 8.0; it must be a whole number",
    ),
    (
        "round_to more than all",
        lambda w: w.pruner(round_to=100),
        InputError,
        "round_to is 100, but the largest group (first) has 8 channels: nothing could go",
    ),
    (
        "steps zero",
        lambda w: w.pruner(iterative_steps=0),
        InputError,
        "iterative_steps is 0; it must be a whole number of at least 1",
    ),
    (
        "steps float",
        lambda w: w.pruner(iterative_steps=2.0),
        InputError,
        "iterative_steps is 2.0; it must be a whole number of at least 1",
    ),
    (
        "steps bool",
        lambda w: w.pruner(iterative_steps=True),
        InputError,
        "iterative_steps is True; it must be a whole number of at least 1",
    ),
]

# Settings that are names or switches.
CHOICES: list[Case] = [
    (
        "target typo",
        lambda w: w.pruner(target="mac"),
        InputError,
        "target is 'mac'; use 'channels' or 'params' or 'macs' or 'latency'; did you mean 'macs'?",
    ),
    (
        "target unknown",
        lambda w: w.pruner(target="energy"),
        InputError,
        "target is 'energy'; use 'channels' or 'params' or 'macs' or 'latency'",
    ),
    (
        "target unhashable",
        lambda w: w.pruner(target=["macs"]),
        InputError,
        "target is ['macs']; use 'channels' or 'params' or 'macs' or 'latency'",
    ),
    (
        "importance typo",
        lambda w: w.pruner("magnitud"),
        InputError,
        "no importance is named 'magnitud'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, "
        "taylor, hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random; did "
        "you mean 'magnitude'?",
    ),
    (
        "importance unknown",
        lambda w: w.pruner("zzz"),
        InputError,
        "no importance is named 'zzz'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, taylor, "
        "hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random",
    ),
    (
        "importance class",
        lambda w: w.pruner(cleanai.MagnitudeImportance),
        InputError,
        "importance is the class MagnitudeImportance; give an instance: MagnitudeImportance()",
    ),
    (
        "importance number",
        lambda w: w.pruner(2),
        InputError,
        "importance is 2; give a name (l1, l2, magnitude, bn_scale, fpgm, lamp, taylor, hessian, "
        "reconstruction, activation, wanda, weight_activation, coverage, coverage_mean_absolute, "
        "coverage_frequency, coverage_combined, adaptive_coverage, random) or a callable on a group that "
        "returns one score per unit",
    ),
    (
        "importance none",
        lambda w: w.pruner(None),
        InputError,
        "importance is None; give a name (l1, l2, magnitude, bn_scale, fpgm, lamp, taylor, hessian, "
        "reconstruction, activation, wanda, weight_activation, coverage, coverage_mean_absolute, "
        "coverage_frequency, coverage_combined, adaptive_coverage, random) or a callable on a group that "
        "returns one score per unit",
    ),
    (
        "schedule typo",
        lambda w: w.pruner(schedule="cubik", iterative_steps=2),
        InputError,
        "no schedule is named 'cubik'; the names are linear, geometric, cubic, one_shot; did you mean 'cubic'?",
    ),
    (
        "schedule number",
        lambda w: w.pruner(schedule=0.5),
        InputError,
        "schedule is 0.5; give a name (linear, geometric, cubic, one_shot) or a function from the step "
        "(1, 2, …) to the share reached after it",
    ),
    (
        "schedule falls",
        lambda w: w.pruner(schedule=lambda step: 1.2 - step / 2, iterative_steps=2),
        InputError,
        "the schedule falls (0.7, 0.2): nothing can grow back",
    ),
    (
        "schedule short",
        lambda w: w.pruner(schedule=lambda step: 0.5, iterative_steps=2),
        InputError,
        "the schedule ends at 0.5 after step 2; the last step must reach 1, the whole ratio",
    ),
    (
        "schedule beyond",
        lambda w: w.pruner(schedule=lambda step: 2.0 * step, iterative_steps=2),
        InputError,
        "the schedule gives 2.0 for step 1; it must be a number from 0 to 1",
    ),
    (
        "schedule text",
        lambda w: w.pruner(schedule=lambda step: "all"),
        InputError,
        "the schedule gives 'all' for step 1; it must be a number from 0 to 1",
    ),
    (
        "recover typo",
        lambda w: w.pruner(recover="least_square"),
        InputError,
        "recover is 'least_square'; use 'none', 'batchnorm', 'bias' or 'least_squares'; did you mean 'least_squares'?",
    ),
    (
        "recover unknown",
        lambda w: w.pruner(recover="magic"),
        InputError,
        "recover is 'magic'; use 'none', 'batchnorm', 'bias' or 'least_squares'",
    ),
    (
        "recover none",
        lambda w: w.pruner(recover=None),
        InputError,
        "recover is None; use 'none', 'batchnorm', 'bias' or 'least_squares'",
    ),
    (
        "recover list",
        lambda w: w.pruner(recover=["bias"]),
        InputError,
        "recover is ['bias']; use 'none', 'batchnorm', 'bias' or 'least_squares'",
    ),
    (
        "global text",
        lambda w: w.pruner(global_pruning="yes"),
        InputError,
        "global_pruning is 'yes'; give True or False",
    ),
    (
        "isomorphic number",
        lambda w: w.pruner(isomorphic=1),
        InputError,
        "isomorphic is 1; give True or False",
    ),
    (
        "inplace text",
        lambda w: w.pruner(inplace="no"),
        InputError,
        "inplace is 'no'; give True or False",
    ),
    (
        "verify none",
        lambda w: w.pruner(verify=None),
        InputError,
        "verify is None; give True or False",
    ),
    (
        "keep_removed text",
        lambda w: w.pruner(keep_removed="all"),
        InputError,
        "keep_removed is 'all'; give True or False",
    ),
    (
        "cost_aware text",
        lambda w: w.pruner(cost_aware="auto"),
        InputError,
        "cost_aware is 'auto'; give True or False",
    ),
    (
        "cost_aware alone",
        lambda w: w.pruner(cost_aware=True),
        InputError,
        "cost_aware=True ranks units of several groups: use it with global_pruning=True or isomorphic=True",
    ),
    (
        "vary unknown",
        lambda w: w.pruner().vary(pruning_ration=0.3),
        InputError,
        "vary: 'pruning_ration' is no setting that can be varied; use importance, pruning_ratio, target, "
        "global_pruning, isomorphic, cost_aware, recover; did you mean 'pruning_ratio'?",
    ),
    (
        "vary bad",
        lambda w: w.pruner().vary(pruning_ratio=2),
        InputError,
        "pruning_ratio is 2; it must lie in [0, 1): 0.3 removes 30 %",
    ),
]

# Naming layers: layer_pruning_ratios, ignored_layers, drop_layers, depth_pruning_ratio.
LAYERS: list[Case] = [
    (
        "layer typo",
        lambda w: w.pruner(layer_pruning_ratios={"frist": 0.5}),
        InputError,
        "layer_pruning_ratios: the model has no layer named 'frist'; did you mean 'first' or 'last'? "
        "(names are those of model.named_modules())",
    ),
    (
        "layer ratio above one",
        lambda w: w.pruner(layer_pruning_ratios={"first": 50}),
        InputError,
        "layer_pruning_ratios['first'] is 50; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "layer ratio bool",
        lambda w: w.pruner(layer_pruning_ratios={"first": True}),
        InputError,
        "layer_pruning_ratios['first'] is True; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "layer of another model",
        lambda w: w.pruner(layer_pruning_ratios={w.make(lambda: nn.Linear(3, 8)): 0.5}),
        InputError,
        "layer_pruning_ratios: the Linear given there is not part of the model",
    ),
    (
        "layer type absent",
        lambda w: w.pruner(layer_pruning_ratios={nn.Conv2d: 0.5}),
        InputError,
        "layer_pruning_ratios: the model has no layer of the type Conv2d",
    ),
    (
        "layer type no module",
        lambda w: w.pruner(layer_pruning_ratios={int: 0.5}),
        InputError,
        "layer_pruning_ratios: the model has no layer of the type int",
    ),
    (
        "layer number",
        lambda w: w.pruner(layer_pruning_ratios={0: 0.5}),
        InputError,
        "layer_pruning_ratios: 0 is no module, name or module type",
    ),
    (
        "layer is the output",
        lambda w: w.pruner(layer_pruning_ratios={"last": 0.5}),
        InputError,
        "layer_pruning_ratios: the layer 'last' cannot be pruned: the output of the model",
    ),
    (
        "layer without channels",
        lambda w: w.pruner(layer_pruning_ratios={"act": 0.5}),
        InputError,
        "layer_pruning_ratios: the layer 'act' cannot be pruned: it has no output channels that could be removed",
    ),
    (
        "ratios twice",
        lambda w: StructuredPruner(w.make(Residual), X, layer_pruning_ratios={"left": 0.5, "right": 0.25}),
        InputError,
        "layer_pruning_ratios: left and right are pruned together (group left) but have the ratios 0.5 "
        "and 0.25; give them the same one, or name only one",
    ),
    (
        "ratios list",
        lambda w: w.pruner(layer_pruning_ratios=[0.5]),
        InputError,
        "layer_pruning_ratios is a list; give a dict {layer: ratio}",
    ),
    (
        "ratios number",
        lambda w: w.pruner(layer_pruning_ratios=0.5),
        InputError,
        "layer_pruning_ratios is a float; give a dict {layer: ratio}",
    ),
    (
        "ignored typo",
        lambda w: w.pruner(ignored_layers=["lasst"]),
        InputError,
        "ignored_layers: the model has no layer named 'lasst'; did you mean 'last' or 'act' or 'first'? "
        "(names are those of model.named_modules())",
    ),
    (
        "ignored unlike anything",
        lambda w: w.pruner(ignored_layers=["zzz"]),
        InputError,
        "ignored_layers: the model has no layer named 'zzz' (names are those of model.named_modules())",
    ),
    (
        "ignored empty name",
        lambda w: w.pruner(ignored_layers=[""]),
        InputError,
        "ignored_layers: the model has no layer named '' (names are those of model.named_modules())",
    ),
    (
        "ignored number",
        lambda w: w.pruner(ignored_layers=[3]),
        InputError,
        "ignored_layers: 3 is no module, name or module type",
    ),
    (
        "ignored no list",
        lambda w: w.pruner(ignored_layers=3),
        InputError,
        "ignored_layers is 3; give a list of modules, names or module types",
    ),
    (
        "ignored none",
        lambda w: w.pruner(ignored_layers=None),
        InputError,
        "ignored_layers is None; give a list of modules, names or module types",
    ),
    (
        "dropped is no block",
        lambda w: StructuredPruner(w.make(Residual), X, drop_layers=["left"]),
        InputError,
        "drop_layers: left cannot be dropped whole: its input has the shape (4, 3) and its output (4, 8) "
        "(the model has no residual blocks)",
    ),
    (
        "dropped without blocks",
        lambda w: w.pruner(drop_layers=["first"]),
        InputError,
        "drop_layers: first cannot be dropped whole: its input has the shape (4, 3) and its output (4, "
        "8) (the model has no residual blocks)",
    ),
    (
        "dropped typo",
        lambda w: StructuredPruner(w.make(Residual), X, drop_layers=["blok"]),
        InputError,
        "drop_layers: the model has no layer named 'blok'; did you mean 'block' or 'block.2' or "
        "'block.1'? (names are those of model.named_modules())",
    ),
    (
        "depth out of range",
        lambda w: StructuredPruner(w.make(Residual), X, depth_pruning_ratio=1),
        InputError,
        "depth_pruning_ratio is 1; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "depth bool",
        lambda w: StructuredPruner(w.make(Residual), X, depth_pruning_ratio=True),
        InputError,
        "depth_pruning_ratio is True; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "depth without blocks",
        lambda w: w.pruner(depth_pruning_ratio=0.5),
        InputError,
        "depth_pruning_ratio is 0.5, but the model has no residual block that could be dropped",
    ),
]

# Calibration: collect_activations and what it needs.
ACTIVATIONS: list[Case] = [
    (
        "no batches",
        lambda w: w.pruner("wanda").collect_activations([]),
        InputError,
        "the loader is empty: activations need at least one batch",
    ),
    (
        "generator used up",
        lambda w: w.pruner("wanda").collect_activations(used_up()),
        InputError,
        "the loader is empty: activations need at least one batch",
    ),
    (
        "no loader",
        lambda w: w.pruner("wanda").collect_activations(None),
        InputError,
        "loader is None; give a DataLoader or a list of batches",
    ),
    (
        "loader is a number",
        lambda w: w.pruner("wanda").collect_activations(3),
        InputError,
        "loader is 3; give a DataLoader or a list of batches",
    ),
    (
        "batch of another shape",
        lambda w: w.pruner("wanda").collect_activations([torch.ones(2, 5)]),
        InputError,
        "the model cannot run on batch 0 of the loader (RuntimeError: addmm: mat1 and mat2 shapes cannot "
        "be multiplied (2x5 and 3x8)); batches must hold what example_inputs holds, with or without labels",
    ),
    (
        "batch of another type",
        lambda w: w.pruner("wanda").collect_activations(["text"]),
        InputError,
        "the model cannot run on batch 0 of the loader (TypeError: linear(): argument 'input' (position "
        "1) must be Tensor, not str); batches must hold what example_inputs holds, with or without labels",
    ),
    (
        "batch of keywords",
        lambda w: w.pruner("wanda").collect_activations([{"pixels": X}]),
        InputError,
        "the model cannot run on batch 0 of the loader (TypeError: Sequential.forward() got an "
        "unexpected keyword argument 'pixels'); batches must hold what example_inputs holds, with or "
        "without labels",
    ),
    (
        "nan data",
        lambda w: w.pruner("wanda").collect_activations([X / 0]),
        InputError,
        "the input of the layer first holds NaN or infinite values: look at the data and at the weights before it",
    ),
    (
        "num_batches zero",
        lambda w: w.pruner("wanda").collect_activations(BATCHES, 0),
        InputError,
        "num_batches is 0; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "num_batches share",
        lambda w: w.pruner("wanda").collect_activations(BATCHES, 0.5),
        InputError,
        "num_batches is 0.5; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "num_batches bool",
        lambda w: w.pruner("wanda").collect_activations(BATCHES, True),
        InputError,
        "num_batches is True; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "empty batches",
        lambda w: w.pruner("wanda").collect_activations([X[:0]]),
        InputError,
        "the batches of the loader hold no samples: activations need at least one",
    ),
    (
        "not collected",
        lambda w: w.pruner("wanda").prune(),
        InputError,
        "wanda needs activations: call collect_activations(loader) before prune()",
    ),
    (
        "not collected for repair",
        lambda w: w.pruner(recover="bias").prune(),
        InputError,
        "recover='bias' works on calibration data: call collect_activations(loader) first",
    ),
    (
        "loader goes once",
        lambda w: collect_once(w),
        InputError,
        "AdaptiveNeuronCoverageImportance(metric='normalized_mean', threshold=0.0) collects activations "
        "before every step, but the loader given to collect_activations can be gone through only once; "
        "give a DataLoader or a list of batches",
    ),
    (
        "bad threshold",
        lambda w: cleanai.collect_statistics(w.net, BATCHES, thresholds=(float("nan"),)),
        InputError,
        "thresholds holds nan; it must hold finite numbers",
    ),
    (
        "thresholds number",
        lambda w: cleanai.collect_statistics(w.net, BATCHES, thresholds=0.5),
        InputError,
        "thresholds is 0.5; give finite numbers, such as (0.0,)",
    ),
    (
        "statistics of no model",
        lambda w: cleanai.collect_statistics("net", BATCHES),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "other threshold",
        lambda w: prune_with_other_threshold(w),
        InputError,
        "the activations were collected without counting values above 0.5 (but above 0): collect them "
        "again with thresholds=(0.5,)",
    ),
]

# Gradients: collect_gradients and its loss.
GRADIENTS: list[Case] = [
    (
        "no batches at all",
        lambda w: w.pruner("taylor").collect_gradients([]),
        InputError,
        "the loader is empty: gradients need at least one batch",
    ),
    (
        "no labels",
        lambda w: w.pruner("taylor").collect_gradients([X]),
        InputError,
        "gradients need labels: give (inputs, labels) batches, or a loss_fn(model, batch) that needs none",
    ),
    (
        "labels of another number",
        lambda w: w.pruner("taylor").collect_gradients([(X, LABELS[:2])]),
        InputError,
        "cross-entropy cannot compare the model's output of shape (4, 2) with labels of shape (2,) "
        "(Expected input batch_size (4) to match target batch_size (2).): give a loss_fn(model, batch)",
    ),
    (
        "labels out of range",
        lambda w: w.pruner("taylor").collect_gradients([(X, LABELS + 7)]),
        InputError,
        "cross-entropy cannot compare the model's output of shape (4, 2) with labels of shape (4,) "
        "(Target 7 is out of bounds.): give a loss_fn(model, batch)",
    ),
    (
        "labels with fractions",
        lambda w: w.pruner("taylor").collect_gradients([(X, torch.ones(4))]),
        InputError,
        "cross-entropy cannot compare the model's output of shape (4, 2) with labels of shape (4,) "
        "(expected target dtype to be Long or Byte, but got Float): give a loss_fn(model, batch)",
    ),
    (
        "inputs of another shape",
        lambda w: w.pruner("taylor").collect_gradients([(torch.ones(2, 5), LABELS[:2])]),
        InputError,
        "the loss of batch 0 of the loader cannot be computed (RuntimeError: addmm: mat1 and mat2 shapes "
        "cannot be multiplied (2x5 and 3x8))",
    ),
    (
        "loss no scalar",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, lambda model, batch: model(batch[0])),
        InputError,
        "loss_fn gave a tensor of shape (4, 2) for batch 0; it must give a scalar tensor",
    ),
    (
        "loss a number",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, lambda model, batch: 0.5),
        InputError,
        "loss_fn gave float for batch 0; it must give a scalar tensor",
    ),
    (
        "loss nan",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, lambda model, batch: model(batch[0]).sum() / 0),
        InputError,
        "loss_fn is -inf for batch 0: look at the data and the labels",
    ),
    (
        "loss detached",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, lambda model, batch: model(batch[0]).sum().detach()),
        InputError,
        "loss_fn of batch 0 does not depend on the parameters: compute it from the model's output, "
        "without torch.no_grad() or .detach()",
    ),
    (
        "loss no function",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, "cross_entropy"),
        InputError,
        "loss_fn is 'cross_entropy'; give a function loss_fn(model, batch), or leave it out",
    ),
    (
        "gradients num_batches",
        lambda w: w.pruner("taylor").collect_gradients(BATCHES, num_batches=-1),
        InputError,
        "num_batches is -1; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "probes zero",
        lambda w: w.pruner("hessian").collect_gradients(BATCHES, probes=0),
        InputError,
        "probes is 0; it must be a whole number of at least 1",
    ),
    (
        "seed text",
        lambda w: w.pruner("hessian").collect_gradients(BATCHES, seed="one"),
        InputError,
        "seed is 'one'; it must be a whole number",
    ),
    (
        "gradients not collected",
        lambda w: w.pruner("taylor").prune(),
        InputError,
        "taylor needs gradients: call collect_gradients(loader) before prune()",
    ),
    (
        "curvature not collected",
        lambda w: prune_without_curvature(w),
        InputError,
        "scoring the group first needs curvature: call collect_gradients(loader, curvature=True)",
    ),
]

# Criteria: what they are made of, and what a scorer of the user's returns.
CRITERIA: list[Case] = [
    (
        "weights sum to zero",
        lambda w: WeightActivationImportance(0.0, 0.0),
        InputError,
        "weight_ratio + activation_ratio is 0; they must sum to 1, e.g. weight_ratio=0, activation_ratio=1",
    ),
    (
        "weights beyond one",
        lambda w: WeightActivationImportance(1.5, -0.5),
        InputError,
        "weight_ratio is 1.5; it must lie between 0 and 1",
    ),
    (
        "weights bool",
        lambda w: WeightActivationImportance(True, False),
        InputError,
        "weight_ratio is True; it must lie between 0 and 1",
    ),
    (
        "metric typo",
        lambda w: NeuronCoverageImportance("frequenzy"),
        InputError,
        "metric is 'frequenzy'; use 'normalized_mean' or 'frequency' or 'mean_absolute' or 'combined'; "
        "did you mean 'frequency'?",
    ),
    (
        "metric list",
        lambda w: NeuronCoverageImportance(["frequency"]),
        InputError,
        "metric is ['frequency']; use 'normalized_mean' or 'frequency' or 'mean_absolute' or 'combined'",
    ),
    (
        "threshold negative",
        lambda w: NeuronCoverageImportance("frequency", threshold=-1.0),
        InputError,
        "threshold is -1.0; it must be a number of at least 0, so that a channel that is always 0 is never active",
    ),
    (
        "threshold nan",
        lambda w: NeuronCoverageImportance("frequency", threshold=float("nan")),
        InputError,
        "threshold is nan; it must be a number of at least 0, so that a channel that is always 0 is never active",
    ),
    (
        "p of three",
        lambda w: cleanai.MagnitudeImportance(p=3),
        InputError,
        "MagnitudeImportance: p is 3; use 1 (sum of absolute weights) or 2 (Euclidean norm)",
    ),
    (
        "p bool",
        lambda w: cleanai.MagnitudeImportance(p=True),
        InputError,
        "MagnitudeImportance: p is True; use 1 (sum of absolute weights) or 2 (Euclidean norm)",
    ),
    (
        "normalizer typo",
        lambda w: cleanai.MagnitudeImportance(normalizer="meen"),
        InputError,
        "normalizer is 'meen'; use 'none', 'mean', 'max', 'sum', 'standardise', 'gaussian', 'lamp', "
        "'sentinel' or 'sentinel:q' with a quantile q in (0, 1]; did you mean 'mean'?",
    ),
    (
        "reduction typo",
        lambda w: cleanai.MagnitudeImportance(reduction="maximum"),
        InputError,
        "reduction is 'maximum'; use 'mean' or 'sum' or 'max' or 'product' or 'first'; did you mean 'max'?",
    ),
    (
        "mix empty",
        lambda w: MixedImportance({}),
        InputError,
        "MixedImportance: there are no terms; give e.g. {'coverage': 0.5, 'magnitude': 0.5}",
    ),
    (
        "mix negative",
        lambda w: MixedImportance({"magnitude": -1.0}),
        InputError,
        "MixedImportance: the weight of 'magnitude' is -1.0; it must be positive",
    ),
    (
        "mix typo",
        lambda w: MixedImportance({"magnitud": 1.0}),
        InputError,
        "no importance is named 'magnitud'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, "
        "taylor, hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random; did "
        "you mean 'magnitude'?",
    ),
    (
        "mix no pairs",
        lambda w: MixedImportance(["magnitude", "wanda"]),
        InputError,
        "MixedImportance: 'magnitude' is no pair of a criterion and its weight",
    ),
    (
        "mix number",
        lambda w: MixedImportance(3),
        InputError,
        "terms is 3; give {name: weight}, e.g. {'coverage': 0.5, 'magnitude': 0.5}",
    ),
    (
        "mix bad scale",
        lambda w: MixedImportance({"magnitude": 1.0}, scale="meen"),
        InputError,
        "normalizer is 'meen'; use 'none', 'mean', 'max', 'sum', 'standardise', 'gaussian', 'lamp', "
        "'sentinel' or 'sentinel:q' with a quantile q in (0, 1]; did you mean 'mean'?",
    ),
    (
        "random seed",
        lambda w: cleanai.RandomImportance(seed="one"),
        InputError,
        "seed is 'one'; it must be a whole number",
    ),
    (
        "scores of another number",
        lambda w: w.pruner(lambda group: torch.ones(3)).prune(),
        InputError,
        "<lambda> returned scores of shape (3,) for the group first, which has 8 channels: return one score for each",
    ),
    (
        "scores nan",
        lambda w: w.pruner(lambda group: torch.full((group.size,), torch.nan)).prune(),
        InputError,
        "<lambda> returned NaN or infinite scores for the group first",
    ),
    (
        "scores text",
        lambda w: w.pruner(lambda group: "high").prune(),
        InputError,
        "<lambda> returned a str for the group first: return one number for each unit, or None",
    ),
    (
        "scores number",
        lambda w: w.pruner(lambda group: 0.5).prune(),
        InputError,
        "<lambda> returned scores of shape () for the group first, which has 8 channels: return one score for each",
    ),
    (
        "coverage metric",
        lambda w: CoveragePruner(w.net, X, BATCHES, metric="meen"),
        InputError,
        "metric is 'meen'; use 'normalized_mean' or 'frequency' or 'mean_absolute' or 'combined'",
    ),
    (
        "analyzer thresholds",
        lambda w: CoverageAnalyzer(w.net, thresholds=()),
        InputError,
        "thresholds is empty; give at least one, e.g. (0.0,)",
    ),
    (
        "analyzer not collected",
        lambda w: CoverageAnalyzer(w.net).merge(CoverageAnalyzer(w.net)),
        InputError,
        "there is nothing to merge yet: call collect(loader) on both analyzers first",
    ),
]

# Pruning, looking, and verifying.
CUTTING: list[Case] = [
    (
        "callback no function",
        lambda w: w.pruner().prune(callback="train"),
        InputError,
        "callback is 'train'; give a function of a PruningStep",
    ),
    (
        "callback rebuilds",
        lambda w: w.pruner().prune(widen),
        InputError,
        "the callback of step 1 changed the shape of first.weight from (4, 3) to (5, 3): it may train "
        "the model, not rebuild it",
    ),
    (
        "callback rebuilds in place",
        lambda w: w.pruner(inplace=True).prune(widen),
        InputError,
        "the callback of step 1 changed the shape of first.weight from (4, 3) to (5, 3): it may train "
        "the model, not rebuild it",
    ),
    (
        "callback diverges in place",
        lambda w: w.pruner(inplace=True).prune(spoil),
        InputError,
        "last.weight holds NaN or infinite values: repair or retrain the model before pruning it",
    ),
    (
        "report too early",
        lambda w: w.pruner().report(),
        InputError,
        "there is nothing to report yet: call prune() first",
    ),
    (
        "report language",
        lambda w: prune_and(w, lambda p: p.report(language="de")),
        InputError,
        "language='de' is not one of 'en', 'tr'.",
    ),
    (
        "select in steps",
        lambda w: w.pruner(iterative_steps=2).select_units(),
        InputError,
        "select_units chooses by scores alone, but iterative_steps is above 1: use make_plan()",
    ),
    (
        "select foreign scores",
        lambda w: w.pruner().select_units({"second": torch.ones(8)}),
        InputError,
        "select_units: the scores are not those of the groups, see first",
    ),
    (
        "select short scores",
        lambda w: w.pruner().select_units({"first": torch.ones(3)}),
        InputError,
        "select_units: the scores of first have the shape (3,); give one for each of its 8 channels",
    ),
    (
        "select infinite scores",
        lambda w: w.pruner(global_pruning=True).select_units({"first": torch.full((8,), float("inf"))}),
        InputError,
        "select_units: the scores of first hold NaN or infinite values; give finite ones",
    ),
    (
        "trace text",
        lambda w: cleanai.trace_model("net", X),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "trace method",
        lambda w: cleanai.trace_model(w.net, X, method="fake"),
        TraceError,
        "unknown tracing method 'fake': use 'meta' or 'real'",
    ),
    (
        "analyze no model",
        lambda w: cleanai.analyze_model(None, X),
        InputError,
        "model is a NoneType; give a torch.nn.Module",
    ),
    (
        "graph detail",
        lambda w: build_graph(w.pruner().analysis, detail="modules"),
        InputError,
        "build_graph: detail='modules' is not one of 'layers', 'operations'.",
    ),
    (
        "verify without plan",
        lambda w: verify_pruning(w.net, w.net, None, X),
        InputError,
        "plan is a NoneType; give a Plan, such as pruner.make_plan()",
    ),
    (
        "verify other plan",
        lambda w: verify_pruning(w.net, w.copy(w.net), plan_of("second.weight"), X),
        PlanError,
        "the plan cuts second.weight, which the model does not have: is it another architecture?",
    ),
    (
        "verify no model",
        lambda w: verify_pruning(w.net, None, plan_of(), X),
        InputError,
        "model is a NoneType; give a torch.nn.Module",
    ),
    (
        "verify example",
        lambda w: verify_pruning(w.net, w.copy(w.net), Plan(), torch.ones(1, 4)),
        VerificationError,
        "the original model could not be run for the proof: mm: mat1 and mat2 shapes cannot be "
        "multiplied (1x4 and 3x8)",
    ),
    (
        "verify runs",
        lambda w: verify_pruning(w.net, w.copy(w.net), Plan(), X, runs=0),
        InputError,
        "runs is 0; it must be a whole number of at least 1",
    ),
]

# Plans and histories: reading, slicing, masks.
PLANS: list[Case] = [
    (
        "slice no plan",
        lambda w: cleanai.slice_model(w.net, {"first": [1]}),
        InputError,
        "plan is a dict; give a Plan, such as pruner.make_plan()",
    ),
    (
        "slice no model",
        lambda w: cleanai.slice_model("net", plan_of()),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "slice unknown tensor",
        lambda w: cleanai.slice_model(w.net, plan_of("second.weight")),
        PlanError,
        "the plan cuts second.weight, which the model does not have: is it another architecture?",
    ),
    (
        "slice another size",
        lambda w: cleanai.slice_model(w.net, plan_of(size=16)),
        PlanError,
        "the plan expects 16 indices in dimension 0 of first.weight, which has shape (8, 3): was the "
        "model pruned since, or is it another size?",
    ),
    (
        "slice no such dimension",
        lambda w: cleanai.slice_model(w.net, plan_of("first.bias", dim=1)),
        PlanError,
        "the plan expects 8 indices in dimension 1 of first.bias, which has shape (8,): was the model "
        "pruned since, or is it another size?",
    ),
    (
        "cut index outside",
        lambda w: plan_of(dropped=(8,)),
        PlanError,
        "first.weight dimension 0 has 8 indices; the plan drops 8…8",
    ),
    (
        "cut index twice",
        lambda w: plan_of(dropped=(1, 1)),
        PlanError,
        "the dropped indices of first.weight are not distinct and ascending",
    ),
    (
        "cut everything",
        lambda w: plan_of(dropped=tuple(range(8))),
        PlanError,
        "the plan would empty first.weight dimension 0",
    ),
    (
        "plan no json",
        lambda w: Plan.from_json("{"),
        PlanError,
        "the plan is no valid JSON: JSONDecodeError: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    (
        "plan not text",
        lambda w: Plan.from_json(None),
        PlanError,
        "the plan is a NoneType; give its JSON text",
    ),
    (
        "plan of a list",
        lambda w: Plan.from_json("[]"),
        PlanError,
        "this is not a plan of the format cleanai-plan-1",
    ),
    (
        "plan of another format",
        lambda w: Plan.from_json('{"format": "theirs"}'),
        PlanError,
        "this is not a plan of the format cleanai-plan-1",
    ),
    (
        "plan without cuts",
        lambda w: Plan.from_json('{"format": "cleanai.plan/1"}'),
        PlanError,
        "this is not a plan of the format cleanai-plan-1",
    ),
    (
        "plan with a wrong field",
        lambda w: Plan.from_dict({**plan_of().to_dict(), "cuts": [{"parameter": 1}]}),
        PlanError,
        "the plan is damaged: cuts, groups, attributes and blocks must be lists",
    ),
    (
        "plan with a wrong value",
        lambda w: damaged_plan(),
        PlanError,
        "the plan is damaged: cuts, groups, attributes and blocks must be lists",
    ),
    (
        "plans that do not follow",
        lambda w: plan_of(dropped=(1, 2)).then(plan_of(size=8)),
        PlanError,
        "the plans do not follow each other: first.weight dimension 0 has 6 indices after the first and "
        "8 before the second",
    ),
    (
        "masks of no plan",
        lambda w: enter(cleanai.Plan.apply_masks(plan_of(), None)),
        InputError,
        "model is a NoneType; give a torch.nn.Module that can be called",
    ),
    (
        "masks of another model",
        lambda w: enter(plan_of(size=4).apply_masks(w.net)),
        PlanError,
        "the plan expects 4 indices in dimension 0 of first.weight, which has shape (8, 3): was the "
        "model pruned since, or is it another size?",
    ),
    (
        "history no json",
        lambda w: History.from_json("nothing"),
        PlanError,
        "the history is no valid JSON: JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        "history of a plan",
        lambda w: History.from_json(plan_of().to_json()),
        PlanError,
        "this is not a history of the format cleanai-history-1",
    ),
    (
        "history of a list",
        lambda w: History.from_dict([]),
        PlanError,
        "this is not a history of the format cleanai-history-1",
    ),
    (
        "replay nothing",
        lambda w: cleanai.replay_history(w.net, None),
        InputError,
        "history is a NoneType; give a History, such as history_of(model)",
    ),
    (
        "replay on another",
        lambda w: cleanai.replay_history(w.make(lambda: make_net(16)), cleanai.history_of(w.pruner().prune())),
        InputError,
        "first.weight has shape (16, 3), but prune 1 began with 8 indices in dimension 0: build the "
        "architecture that was pruned",
    ),
    (
        "replay on no model",
        lambda w: cleanai.replay_history("net", History()),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "history of no model",
        lambda w: cleanai.history_of("net"),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "rollback too far",
        lambda w: cleanai.rollback(w.net, 1),
        InputError,
        "to=1: the model has 0 prunes; give how many of them stay, 0…0",
    ),
    (
        "rollback negative",
        lambda w: cleanai.rollback(w.net, -1),
        InputError,
        "to=-1: the model has 0 prunes; give how many of them stay, 0…0",
    ),
    (
        "rollback bool",
        lambda w: cleanai.rollback(w.net, True),
        InputError,
        "to=True: the model has 0 prunes; give how many of them stay, 0…0",
    ),
    (
        "rollback no model",
        lambda w: cleanai.rollback(None),
        InputError,
        "model is a NoneType; give a torch.nn.Module",
    ),
    (
        "rollback not kept",
        lambda w: cleanai.rollback(w.watch(w.pruner().prune())),
        InputError,
        "prune 1 cannot be taken back: what it removed was not kept. Prune with keep_removed=True, or "
        "build the original model anew",
    ),
]

# Files: saving, loading, exporting; optimisers.
FILES: list[Case] = [
    (
        "save no model",
        lambda w: cleanai.save_pruned("net", w.folder / "net.safetensors"),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "save on a folder",
        lambda w: cleanai.save_pruned(w.net, w.folder),
        InputError,
        "{tmp} is a folder; give the path of a file",
    ),
    (
        "save what was not kept",
        lambda w: cleanai.save_pruned(w.pruner().prune(), w.folder / "net.safetensors", include_removed=True),
        InputError,
        "include_removed=True: what prune 1 removed was not kept; prune with keep_removed=True",
    ),
    (
        "save into a file",
        lambda w: cleanai.save_pruned(w.net, w.file("taken") / "net.safetensors"),
        InputError,
        "{tmp}/taken/net.safetensors cannot be written: {tmp}/taken is a file, not a folder",
    ),
    (
        "save number as path",
        lambda w: cleanai.save_pruned(w.net, 3),
        InputError,
        "path is 3; give the path of a file",
    ),
    (
        "load nothing there",
        lambda w: cleanai.load_pruned(w.folder / "none.safetensors", make_net),
        InputError,
        "there is no file {tmp}/none.safetensors",
    ),
    (
        "load a text",
        lambda w: cleanai.load_pruned(w.file("notes.txt", "hello"), make_net),
        InputError,
        "{tmp}/notes.txt is damaged, or no safetensors file: its header is longer than the file",
    ),
    (
        "load a folder",
        lambda w: cleanai.load_pruned(w.folder, make_net),
        InputError,
        "{tmp} is a folder, not a file",
    ),
    (
        "load no factory",
        lambda w: cleanai.load_pruned(w.saved(), w.net),
        InputError,
        "model_factory is a Sequential; give a function that returns a fresh model, such as lambda: resnet18()",
    ),
    (
        "load factory returns nothing",
        lambda w: cleanai.load_pruned(w.saved(), once(None)),
        InputError,
        "model_factory returned a NoneType; it must return a torch.nn.Module",
    ),
    (
        "load another architecture",
        lambda w: cleanai.load_pruned(w.saved(), lambda: w.make(lambda: make_net(16))),
        InputError,
        "{tmp}/net.safetensors cannot be loaded into this model: first.weight has shape (16, 3), but "
        "prune 1 began with 8 indices in dimension 0: build the architecture that was pruned",
    ),
    (
        "read another file",
        lambda w: cleanai.read_history(w.file("notes.txt", "hello there, this is text")),
        InputError,
        "{tmp}/notes.txt is damaged, or no safetensors file: its header is longer than the file",
    ),
    (
        "export no model",
        lambda w: cleanai.export_program("net", w.folder / "net.pt2", X),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "export wrong inputs",
        lambda w: cleanai.export_program(w.net, w.folder / "net.pt2", torch.ones(1, 4)),
        InputError,
        "the model does not run on example_inputs (RuntimeError: addmm: mat1 and mat2 shapes cannot be "
        "multiplied (1x4 and 3x8)); give inputs that it accepts",
    ),
    (
        "export torchscript wrong inputs",
        lambda w: cleanai.export_torchscript(w.net, w.folder / "net.pt", torch.ones(1, 4)),
        InputError,
        "the model does not run on example_inputs (RuntimeError: addmm: mat1 and mat2 shapes cannot be "
        "multiplied (1x4 and 3x8)); give inputs that it accepts",
    ),
    (
        "export tolerance",
        lambda w: cleanai.export_torchscript(w.net, w.folder / "net.pt", X, tolerance=-1),
        InputError,
        "tolerance is -1; it must be a number above 0",
    ),
    (
        "export into a file",
        lambda w: cleanai.export_torchscript(w.net, w.file("taken") / "net.pt", X),
        InputError,
        "{tmp}/taken/net.pt cannot be written: {tmp}/taken is a file, not a folder",
    ),
    (
        "optimizer none",
        lambda w: cleanai.migrate_optimizer(None, plan_of()),
        InputError,
        "optimizer is a NoneType; give a torch.optim.Optimizer",
    ),
    (
        "optimizer without plan",
        lambda w: cleanai.migrate_optimizer(torch.optim.SGD(w.net.parameters(), 0.1), None),
        InputError,
        "plan is a NoneType; give the Plan of the cut, such as pruner.plan",
    ),
    (
        "optimizer of another model",
        lambda w: cleanai.migrate_optimizer(torch.optim.SGD(w.net.parameters(), 0.1), plan_of()),
        InputError,
        "migrate_optimizer: parameter 0 of group 0, of shape (8, 3), was not in the model when this plan "
        "was carried out, or the pruned model is gone. Give the plan of the cut that was made to the "
        "very model that the optimizer was made for (step.cut in a callback), and keep the pruned model",
    ),
    (
        "optimizer wrong model",
        lambda w: cleanai.migrate_optimizer(torch.optim.SGD(w.net.parameters(), 0.1), plan_of(), "net"),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "report of nothing",
        lambda w: cleanai.Report.load(w.folder / "report.json"),
        InputError,
        "There is no report at '{tmp}/report.json'.",
    ),
    (
        "report of a text",
        lambda w: cleanai.Report.load(w.file("report.json", "{")),
        InputError,
        "'{tmp}/report.json' is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
]

# Rules of the user's own.
RULES: list[Case] = [
    (
        "rule for a number",
        lambda w: cleanai.register_rule(3, tie),
        InputError,
        "register_rule: 3 is no module, no class of modules, no torch.autograd.Function and no name of an operation",
    ),
    (
        "rule for no module",
        lambda w: cleanai.register_rule(int, tie),
        InputError,
        "register_rule: <class 'int'> is no module, no class of modules, no torch.autograd.Function and "
        "no name of an operation",
    ),
    (
        "rule without connect",
        lambda w: cleanai.register_rule(Chosen, None),
        InputError,
        "connect and shrink must be functions: connect(links) and shrink(module)",
    ),
    (
        "rule with a bad shrink",
        lambda w: cleanai.register_rule(Chosen, tie, "shrink"),
        InputError,
        "connect and shrink must be functions: connect(links) and shrink(module)",
    ),
    (
        "rule shrinks an operation",
        lambda w: cleanai.register_rule("ReluBackward0", tie, raise_error),
        InputError,
        "ReluBackward0 is an operation, which holds nothing that could shrink; leave shrink out",
    ),
    (
        "rule raises",
        lambda w: prune_with_rule(w, raise_error),
        TraceError,
        "the rule for Chosen in 1 failed on shapes ((4, 8),): on purpose",
    ),
    (
        "rule names no tensor",
        lambda w: prune_with_rule(w, lambda links: links.tensor("wheight")),
        TraceError,
        "the rule for Chosen in 1 failed on shapes ((4, 8),): Chosen in 1 has no floating-point tensor "
        "'wheight'; there are weight",
    ),
    (
        "rule names no input",
        lambda w: prune_with_rule(w, lambda links: links.input(3)),
        TraceError,
        "the rule for Chosen in 1 failed on shapes ((4, 8),): Chosen in 1 has 1 floating-point "
        "arguments; there is no number 3",
    ),
    (
        "rule names no dimension",
        lambda w: prune_with_rule(w, lambda links: links.input().dim(7)),
        TraceError,
        "the rule for Chosen in 1 failed on shapes ((4, 8),): input 0 of Chosen in 1 has 2 dimensions; "
        "there is no dimension 7",
    ),
    (
        "rule ties different sizes",
        lambda w: prune_with_rule(w, lambda links: links.tie(links.input().dim(0), links.output().dim(1))),
        TraceError,
        "the rule for Chosen in 1 failed on shapes ((4, 8),): only dimensions of the same size can be tied, not [4, 8]",
    ),
]

# Measuring, and judging on data.
MEASURING: list[Case] = [
    (
        "measure no model",
        lambda w: measure_model("net", X),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "latency threads",
        lambda w: measure_latency(w.net, X, num_threads=0),
        InputError,
        "measure_latency: num_threads is 0; it must be a whole number of at least 1",
    ),
    (
        "latency threads share",
        lambda w: measure_latency(w.net, X, num_threads=1.5),
        InputError,
        "measure_latency: num_threads is 1.5; it must be a whole number of at least 1",
    ),
    (
        "latency time",
        lambda w: measure_latency(w.net, X, min_run_time=0),
        InputError,
        "measure_latency: min_run_time is 0; it must be a number above 0",
    ),
    (
        "latency time nan",
        lambda w: measure_latency(w.net, X, min_run_time=float("nan")),
        InputError,
        "measure_latency: min_run_time is nan; it must be a number above 0",
    ),
    (
        "evaluate no model",
        lambda w: evaluate_model("net", BATCHES),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "evaluate no loader",
        lambda w: evaluate_model(w.net, None),
        InputError,
        "loader is None; give a DataLoader or a list of batches",
    ),
    (
        "evaluate empty",
        lambda w: evaluate_model(w.net, []),
        InputError,
        "evaluate_model: the loader gave no batches (list). Check that its data set is not empty, and "
        "that a generator has not been used up.",
    ),
    (
        "evaluate no labels",
        lambda w: evaluate_model(w.net, [X]),
        InputError,
        "evaluate_model: batch 0 of the loader has no targets. It must yield (x, y) pairs or dicts with "
        "the labels under 'labels', 'label', 'targets' or 'target'.",
    ),
    (
        "evaluate max_batches",
        lambda w: evaluate_model(w.net, BATCHES, max_batches=0),
        InputError,
        "evaluate_model: max_batches is 0; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "evaluate max_batches text",
        lambda w: evaluate_model(w.net, BATCHES, max_batches="all"),
        InputError,
        "evaluate_model: max_batches is 'all'; it must be a whole number of at least 1, or None for the whole loader",
    ),
    (
        "evaluate wrong labels",
        lambda w: evaluate_model(w.net, [(X, LABELS[:2])]),
        InputError,
        "evaluate_model: the loss of batch 0 cannot be computed from an output of shape (4, 2) and "
        "targets of shape (2,) (Expected input batch_size (4) to match target batch_size (2).). Pass a "
        "loss_fn(output, targets) that fits them.",
    ),
    (
        "evaluate labels out of range",
        lambda w: evaluate_model(w.net, [(X, LABELS + 7)]),
        InputError,
        "evaluate_model: the loss of batch 0 cannot be computed from an output of shape (4, 2) and "
        "targets of shape (4,) (Target 7 is out of bounds.). Pass a loss_fn(output, targets) that fits "
        "them.",
    ),
    (
        "evaluate no output",
        lambda w: evaluate_model(w.net, BATCHES, forward_fn=once("scores")),
        InputError,
        "evaluate_model: the model's output (str) holds no tensor. Pass output_transform=lambda output: "
        "... to pick the logits.",
    ),
    (
        "recover typo in call",
        lambda w: recover_call(w, method="least_square"),
        InputError,
        "recover is 'least_square'; use 'none', 'batchnorm', 'bias' or 'least_squares'; did you mean 'least_squares'?",
    ),
    (
        "recover no data",
        lambda w: recover_call(w, loader=[]),
        InputError,
        "the loader is empty: calibration need at least one batch",
    ),
    (
        "recover wrong data",
        lambda w: recover_call(w, loader=[torch.ones(2, 5)]),
        InputError,
        "the model cannot run on batch 0 of the loader (RuntimeError: addmm: mat1 and mat2 shapes cannot "
        "be multiplied (2x5 and 3x8)); batches must hold what example_inputs holds, with or without labels",
    ),
    (
        "recover steps",
        lambda w: recover_call(w, refine_steps=-1),
        InputError,
        "refine_steps is -1; it must be a whole number of at least 0",
    ),
]

# Sensitivity, search, comparison, panels.
ANALYSES: list[Case] = [
    (
        "sensitivity no pruner",
        lambda w: analyze_sensitivity(w.net, BATCHES),
        InputError,
        "pruner is a Sequential; give a StructuredPruner of the trained model",
    ),
    (
        "sensitivity ratios",
        lambda w: analyze_sensitivity(w.pruner(), BATCHES, ratios=(0.5, 1.5)),
        InputError,
        "ratios is 1.5; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "sensitivity no ratios",
        lambda w: analyze_sensitivity(w.pruner(), BATCHES, ratios=()),
        InputError,
        "ratios is (); give shares of a group's units between 0 and 1, such as (0.25, 0.5)",
    ),
    (
        "sensitivity number of ratios",
        lambda w: analyze_sensitivity(w.pruner(), BATCHES, ratios=0.5),
        InputError,
        "ratios is 0.5; give shares of a group's units between 0 and 1, such as (0.25, 0.5)",
    ),
    (
        "sensitivity evaluate",
        lambda w: analyze_sensitivity(w.pruner(), 3),
        InputError,
        "evaluate is a int; give a function from a model to its accuracy, or a loader of (inputs, "
        "labels) that can be gone through many times",
    ),
    (
        "sensitivity returns text",
        lambda w: analyze_sensitivity(w.pruner(), once("good")),
        InputError,
        "evaluate returned 'good'; it must return a finite number, higher = better",
    ),
    (
        "sensitivity empty calibration",
        lambda w: analyze_sensitivity(w.pruner(), calibration=[]),
        InputError,
        "the calibration loader is empty: outputs are compared on at least one batch",
    ),
    (
        "sensitivity from text",
        lambda w: Sensitivity.from_json("{}"),
        InputError,
        "this is no sensitivity that to_json wrote: 'format'",
    ),
    (
        "sensitivity unknown group",
        lambda w: sensitivity_of(w).points_of("frist"),
        InputError,
        "no group named 'frist' was cut; there are first",
    ),
    (
        "auto both",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), budget=0.5, max_loss=1.0),
        InputError,
        "auto_ratio: give either budget (a share to save) or max_loss (how much may be lost)",
    ),
    (
        "auto neither",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner()),
        InputError,
        "auto_ratio: give either budget (a share to save) or max_loss (how much may be lost)",
    ),
    (
        "auto budget",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), budget=1.5),
        InputError,
        "budget is 1.5; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "auto out of reach",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), budget=0.9),
        InputError,
        "auto_ratio: a budget of 0.9 is out of reach; the ratios that were tried save 0.500 of the macs "
        "together: analyze larger ratios",
    ),
    (
        "auto max_loss",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), max_loss=-1),
        InputError,
        "auto_ratio: max_loss is -1; it must be a number of at least 0",
    ),
    (
        "auto target",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), budget=0.1, target="flops"),
        InputError,
        "auto_ratio: target is 'flops'; use 'channels', 'params' or 'macs'",
    ),
    (
        "auto by",
        lambda w: auto_ratio(sensitivity_of(w), w.pruner(), budget=0.1, by="accurracy"),
        InputError,
        "auto_ratio: by is 'accurracy'; use 'accuracy' or 'error'",
    ),
    (
        "auto of nothing",
        lambda w: auto_ratio({"first": 0.5}, w.pruner(), budget=0.1),
        InputError,
        "sensitivity is a dict; give what analyze_sensitivity returned",
    ),
    (
        "auto of another model",
        lambda w: auto_ratio(sensitivity_of(w), StructuredPruner(w.make(Residual), X), budget=0.1),
        InputError,
        "the sensitivity is of another model: this one has no group first",
    ),
    (
        "search evaluate",
        lambda w: search_plans(w.net, X, 3),
        InputError,
        "search_plans: evaluate is 3; give a function from a model to its accuracy",
    ),
    (
        "search trials",
        lambda w: search_plans(w.net, X, once(1.0), n_trials=0),
        InputError,
        "search_plans: n_trials is 0; it must be a whole number of at least 1",
    ),
    (
        "search objectives",
        lambda w: search_plans(w.net, X, once(1.0), objectives=("accuracy", "mac")),
        InputError,
        "search_plans: objectives is ('accuracy', 'mac'); give two or more of accuracy, params, macs, latency",
    ),
    (
        "search one objective",
        lambda w: search_plans(w.net, X, once(1.0), objectives="macs"),
        InputError,
        "search_plans: objectives is 'macs'; give two or more of accuracy, params, macs, latency",
    ),
    (
        "search prepare",
        lambda w: search_plans(w.net, X, once(1.0), prepare="calibrate"),
        InputError,
        "search_plans: prepare is 'calibrate'; give a function of a pruner",
    ),
    (
        "search chosen option",
        lambda w: search_plans(w.net, X, once(1.0), pruning_ratio=0.5),
        InputError,
        "search_plans: pruning_ratio is chosen by the search (see space); leave it out",
    ),
    (
        "search unknown option",
        lambda w: search_plans(w.net, X, once(1.0), min_chanels=2),
        InputError,
        "search_plans: 'min_chanels' is no setting of StructuredPruner; did you mean 'min_channels'?",
    ),
    (
        "search space",
        lambda w: search_plans(w.net, X, once(1.0), space="group"),
        InputError,
        "space is a str; give a SearchSpace",
    ),
    (
        "space by",
        lambda w: SearchSpace(by="layers"),
        InputError,
        "SearchSpace: by is 'layers'; use 'group', 'stage' or 'model'",
    ),
    (
        "space step",
        lambda w: SearchSpace(step=0),
        InputError,
        "SearchSpace: step is 0; it must be a number above 0",
    ),
    (
        "space step text",
        lambda w: SearchSpace(step="small"),
        InputError,
        "SearchSpace: step is 'small'; it must be a number above 0",
    ),
    (
        "space scopes",
        lambda w: SearchSpace(scopes=("globl",)),
        InputError,
        "SearchSpace: scopes is ('globl',) and importances ('magnitude',); give at least one criterion, "
        "and scopes from 'local', 'global' and 'isomorphic'",
    ),
    (
        "space importances",
        lambda w: SearchSpace(importances=("magnitud",)),
        InputError,
        "no importance is named 'magnitud'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, "
        "taylor, hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random; did "
        "you mean 'magnitude'?",
    ),
    (
        "compare no pruner",
        lambda w: compare_criteria(w.net, ["magnitude", "random"]),
        InputError,
        "pruner is a Sequential; give a StructuredPruner of the trained model",
    ),
    (
        "compare a name",
        lambda w: compare_criteria(w.pruner(), "magnitude"),
        InputError,
        "criteria is the name 'magnitude'; give several: ['magnitude', 'random']",
    ),
    (
        "compare nothing",
        lambda w: compare_criteria(w.pruner(), []),
        InputError,
        "criteria is empty; give e.g. ['coverage', 'magnitude']",
    ),
    (
        "compare typo",
        lambda w: compare_criteria(w.pruner(), ["magnitude", "randm"]),
        InputError,
        "no importance is named 'randm'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, taylor, "
        "hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random; did "
        "you mean 'random' or 'wanda'?",
    ),
    (
        "compare a number",
        lambda w: compare_criteria(w.pruner(), 3),
        InputError,
        "criteria is 3; give several, e.g. ['coverage', 'magnitude']",
    ),
    (
        "compare not collected",
        lambda w: compare_criteria(w.pruner(), ["magnitude", "wanda"]),
        InputError,
        "WandaImportance() needs activations: call collect_activations(loader) before prune()",
    ),
    (
        "measure ratios",
        lambda w: measure_criteria(w.pruner(), BATCHES, ["magnitude"], ratios=(2,), repairs=("none",), progress=False),
        InputError,
        "pruning_ratio is 2; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "measure repairs",
        lambda w: measure_criteria(
            w.pruner(), BATCHES, ["magnitude"], ratios=(0.5,), repairs=("bais",), progress=False
        ),
        InputError,
        "recover is 'bais'; use 'none', 'batchnorm', 'bias' or 'least_squares'; did you mean 'bias'?",
    ),
    (
        "preview language",
        lambda w: Previewer(w.pruner(), "de"),
        InputError,
        "language='de' is not one of 'en', 'tr'.",
    ),
    (
        "preview no pruner",
        lambda w: Previewer(w.net),
        InputError,
        "pruner is a Sequential; give a StructuredPruner of the trained model",
    ),
    (
        "preview ratio",
        lambda w: Previewer(w.pruner()).preview(pruning_ratio=2),
        InputError,
        "pruning_ratio is 2; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "preview setting",
        lambda w: Previewer(w.pruner()).preview(ratio=0.5),
        InputError,
        "vary: 'ratio' is no setting that can be varied; use importance, pruning_ratio, target, "
        "global_pruning, isomorphic, cost_aware, recover",
    ),
    (
        "preview not collected",
        lambda w: Previewer(w.pruner()).preview(importance="wanda"),
        InputError,
        "wanda needs activations: call collect_activations(loader) before prune()",
    ),
    (
        "try a setting",
        lambda w: try_settings(w.pruner(), pruning_ratio=1),
        InputError,
        "pruning_ratio is 1; it must lie in [0, 1): 0.3 removes 30 %",
    ),
    (
        "panel of nothing",
        lambda w: panels().GraphExplorer("net", X),
        InputError,
        "model is a str; give a torch.nn.Module",
    ),
    (
        "panel detail",
        lambda w: panels().GraphExplorer(w.net, X, detail="modules"),
        InputError,
        "build_graph: detail='modules' is not one of 'layers', 'operations'.",
    ),
    (
        "panel inputs",
        lambda w: panels().GraphExplorer(w.net),
        InputError,
        "GraphExplorer: a model needs example_inputs, as in GraphExplorer(model, torch.zeros(1, 3, 32, 32)).",
    ),
    (
        "panel language",
        lambda w: panels().ImportanceExplorer(w.pruner(), language="de"),
        InputError,
        "language='de' is not one of 'en', 'tr'.",
    ),
    (
        "panel no pruner",
        lambda w: panels().ImportanceExplorer(w.net),
        InputError,
        "pruner is a Sequential; give a StructuredPruner of the trained model",
    ),
    (
        "panel criteria",
        lambda w: panels().PruningExplorer(w.pruner(), criteria=["magnitud"]),
        InputError,
        "no importance is named 'magnitud'; the names are l1, l2, magnitude, bn_scale, fpgm, lamp, "
        "taylor, hessian, reconstruction, activation, wanda, weight_activation, coverage, "
        "coverage_mean_absolute, coverage_frequency, coverage_combined, adaptive_coverage, random; did "
        "you mean 'magnitude'?",
    ),
    (
        "panel of a model",
        lambda w: panels().PruningExplorer(w.net),
        InputError,
        "pruner is a Sequential; give a StructuredPruner of the trained model",
    ),
]

# Data and experiments.
EXPERIMENTS: list[Case] = [
    (
        "cifar split",
        lambda w: load_cifar10("tset"),
        InputError,
        "load_cifar10: split must be 'train' or 'test', got 'tset'.",
    ),
    (
        "cifar limit",
        lambda w: load_cifar10("test", limit=0),
        InputError,
        "load_cifar10: limit must be at least 1 or None, got 0.",
    ),
    (
        "cifar limit text",
        lambda w: load_cifar10("test", limit="all"),
        InputError,
        "load_cifar10: limit must be at least 1 or None, got 'all'.",
    ),
    (
        "photos part",
        lambda w: load_nips_photos("half"),
        InputError,
        "load_nips_photos: part must be 'all', 'even' or 'odd', got 'half'.",
    ),
    (
        "digits seed",
        lambda w: cleanai.data.load_digits_data("zero"),
        InputError,
        "seed is 'zero'; it must be a whole number",
    ),
    (
        "scenario unknown",
        lambda w: make_config("TS9"),
        InputError,
        "There is no scenario 'TS9'; there are TS1, TS2, TS3, TS4; did you mean 'TS4' or 'TS3' or 'TS2'?",
    ),
    (
        "scenario lower",
        lambda w: make_config("ts1"),
        InputError,
        "There is no scenario 'ts1'; there are TS1, TS2, TS3, TS4.",
    ),
    (
        "profile typo",
        lambda w: make_config("TS1", "smok"),
        InputError,
        "There is no profile 'smok'; there are full, quick, smoke; did you mean 'smoke'?",
    ),
    (
        "setting typo",
        lambda w: make_config("TS1", pruning_ration=0.3),
        InputError,
        "There is no setting 'pruning_ration'; did you mean 'pruning_ratio' or 'max_pruning_ratio'? The "
        "settings are scenario, profile, model, data, weights, train_images, validation_images, "
        "test_images, seed, prepare_epochs, prepare_lr, batch_size, optimizer, momentum, weight_decay, "
        "scheduler, warmup_epochs, label_smoothing, clip_norm, accumulate, precision, patience, keep, "
        "methods, pruning_ratio, target, global_pruning, isomorphic, iterative_steps, schedule, metric, "
        "threshold, calibration_batches, calibration_batch_size, calibration_source, max_pruning_ratio, "
        "min_channels, round_to, ignored_layers, recover, finetune_epochs, finetune_lr, "
        "distillation_weight, distillation_temperature, max_batches, latency_batch_size, "
        "latency_seconds, checkpoint_interval, state_minutes, device, workers, language.",
    ),
    (
        "setting unlike anything",
        lambda w: make_config("TS1", zzz=1),
        InputError,
        "There is no setting 'zzz'. The settings are scenario, profile, model, data, weights, "
        "train_images, validation_images, test_images, seed, prepare_epochs, prepare_lr, batch_size, "
        "optimizer, momentum, weight_decay, scheduler, warmup_epochs, label_smoothing, clip_norm, "
        "accumulate, precision, patience, keep, methods, pruning_ratio, target, global_pruning, "
        "isomorphic, iterative_steps, schedule, metric, threshold, calibration_batches, "
        "calibration_batch_size, calibration_source, max_pruning_ratio, min_channels, round_to, "
        "ignored_layers, recover, finetune_epochs, finetune_lr, distillation_weight, "
        "distillation_temperature, max_batches, latency_batch_size, latency_seconds, "
        "checkpoint_interval, state_minutes, device, workers, language.",
    ),
    (
        "setting out of range",
        lambda w: make_config("TS1", pruning_ratio=1.5),
        InputError,
        "pruning_ratio is 1.5; it must be at least 0 and below 1",
    ),
    (
        "setting of another type",
        lambda w: make_config("TS1", seed="one"),
        InputError,
        "seed is 'one'; it must be a whole number",
    ),
    (
        "setting bool",
        lambda w: make_config("TS1", pruning_ratio=True),
        InputError,
        "pruning_ratio is True; it must be a number",
    ),
    (
        "setting choice",
        lambda w: make_config("TS1", language="de"),
        InputError,
        "language is 'de'; use en or tr",
    ),
    (
        "setting nan",
        lambda w: make_config("TS1", pruning_ratio="nan"),
        InputError,
        "pruning_ratio is nan; it must be at least 0 and below 1",
    ),
    (
        "methods none",
        lambda w: make_config("TS1", methods=()),
        InputError,
        "methods is empty; name at least one, each once",
    ),
    (
        "method typo",
        lambda w: find_method("coverge"),
        InputError,
        "There is no method 'coverge'; did you mean 'coverage'? The methods are coverage, wanda, "
        "magnitude, taylor, l1, l2, bn_scale, fpgm, lamp, hessian, reconstruction, activation, "
        "weight_activation, coverage_mean_absolute, coverage_frequency, coverage_combined, "
        "adaptive_coverage, random.",
    ),
    (
        "method unlike anything",
        lambda w: find_method("zzz"),
        InputError,
        "There is no method 'zzz'. The methods are coverage, wanda, magnitude, taylor, l1, l2, bn_scale, "
        "fpgm, lamp, hessian, reconstruction, activation, weight_activation, coverage_mean_absolute, "
        "coverage_frequency, coverage_combined, adaptive_coverage, random.",
    ),
    (
        "model typo",
        lambda w: run_experiment("TS1", profile="smoke", model="resnet81", output=w.folder, silent=True),
        InputError,
        "There is no model 'resnet81'; did you mean 'resnet18' or 'resnet152' or 'resnet101' or "
        "'resnet56' or 'resnet50'?",
    ),
    (
        "method in a run",
        lambda w: run_experiment("TS1", profile="smoke", methods=("coverge",), output=w.folder, silent=True),
        InputError,
        "There is no method 'coverge'; did you mean 'coverage'? The methods are coverage, wanda, "
        "magnitude, taylor, l1, l2, bn_scale, fpgm, lamp, hessian, reconstruction, activation, "
        "weight_activation, coverage_mean_absolute, coverage_frequency, coverage_combined, "
        "adaptive_coverage, random.",
    ),
    (
        "stage typo",
        lambda w: run_experiment("TS1", profile="smoke", stage="reprot", output=w.folder, silent=True),
        InputError,
        "There is no stage 'reprot'; there are prepare, prune, finetune, report; did you mean 'report' or 'prepare'?",
    ),
    (
        "output is a file",
        lambda w: run_experiment("TS1", profile="smoke", output=w.file("taken"), silent=True),
        InputError,
        "The output folder cannot be {tmp}/taken: a file is in its place.",
    ),
    (
        "configuration and settings",
        lambda w: run_experiment(make_config("TS1", "smoke"), seed=1, output=w.folder),
        InputError,
        "run_experiment: with a configuration, set everything in it (config.replace(...)).",
    ),
]

TABLE: list[Case] = [
    *MODELS,
    *EXAMPLES,
    *RATIOS,
    *CHOICES,
    *LAYERS,
    *ACTIVATIONS,
    *GRADIENTS,
    *CRITERIA,
    *CUTTING,
    *PLANS,
    *FILES,
    *RULES,
    *MEASURING,
    *ANALYSES,
    *EXPERIMENTS,
]


@pytest.mark.parametrize("case", TABLE, ids=[case[0] for case in TABLE])
def test_it_is_refused_with_this_message_and_nothing_has_changed(case: Case, tmp_path: Path) -> None:
    _, call, error, message = case
    world = World(tmp_path)
    with pytest.raises(CleanAIError) as caught:
        call(world)
    assert str(caught.value).replace(str(tmp_path), "{tmp}") == message
    assert isinstance(caught.value, error)
    world.check()


def test_the_table_is_large_and_every_mistake_is_there_once() -> None:
    names = [case[0] for case in TABLE]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "TS9"], "cleanai: There is no scenario 'TS9'; there are TS1, TS2, TS3, TS4; did you mean"),
        (["run", "TS1", "--profile", "smok"], "cleanai: There is no profile 'smok'; there are full, quick, smoke; did"),
        (["run", "TS1", "--set", "pruning_ration=0.3"], "cleanai: There is no setting 'pruning_ration'; did you mean"),
        (["run", "TS1", "--set", "pruning_ratio"], "cleanai: 'pruning_ratio' is no setting: write key=value, e.g."),
        (["run", "TS1", "--set", "seed=one"], "cleanai: seed is 'one'; it must be a whole number"),
        (["run", "TS1", "--method", "coverge", "--profile", "smoke"], "cleanai: There is no method 'coverge'; did you"),
    ],
)
def test_the_command_line_says_it_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(message) and shown.err.count("\n") == 1 and not shown.out
    assert not list(tmp_path.iterdir())


def test_sharded_models_are_refused(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = FullyShardedDataParallel(make_net(), device_id=torch.device("cpu"))
            sharded = fully_shard(make_net(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match=r"in FullyShardedDataParallel; prune the model inside"):
            StructuredPruner(wrapped, X)
        with pytest.raises(InputError, match=r"first.weight is sharded over processes .*, then shard it"):
            StructuredPruner(sharded, X)
    finally:
        torch.distributed.destroy_process_group()
