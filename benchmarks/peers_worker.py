"""The side of `benchmarks.peers` that runs in a peer's own environment: one job, one process.

    python -m benchmarks.peers_worker job.json folder

A job is JSON; what comes back is ``folder/result.json``, and for correctness one ``NUMBER.json`` for each cut, with
``NUMBER.safetensors``: the tensors of the network and its outputs in double precision. This is the
only place that imports pruning libraries, each in a function of its own and by name, so that nothing here needs one to
be read, checked or tested. Each function calls its library as that library's documentation does;
`benchmarks.peers.TOOLS` says in words how.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import re
import signal
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.peers_nets import NETWORKS, Network, build_case
from benchmarks.suites import Case
from cleanai.inputs import output_tensors
from cleanai.verify import random_inputs

Job = Mapping[str, Any]


class TimeUp(BaseException):
    """The time limit; no ``except Exception`` on the way may catch it."""


class RefusedError(Exception):
    """The tool said, in an error of its own, that it cannot prune this."""


# ------------------------------------------------------------------------------------------------- calling the tools


def prune_with_cleanai(case: Case, network: Network, ratio: float) -> nn.Module:
    """CleanAI as its README calls it; it is told nothing about the network."""
    from cleanai import StructuredPruner
    from cleanai.errors import CleanAIError

    try:
        return StructuredPruner(case.model, case.inputs, importance="l2", pruning_ratio=ratio).prune()
    except CleanAIError as error:
        raise RefusedError(f"{type(error).__name__}: {error}") from error


def prune_with_torch_pruning(case: Case, network: Network, ratio: float) -> nn.Module:
    """README, "High-level Pruners"; attention as in examples/transformers and examples/LLMs."""
    tp = import_module("torch_pruning")
    model = case.model
    heads = {model.get_submodule(name): count for name, count in network.heads.items()}
    options: dict[str, Any] = {}
    if network.name == "gqa_rotary":  # examples/LLMs: whole heads, as rotary tables do not follow
        options = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": ratio}
    pruner = tp.pruner.BasePruner(
        model,
        case.inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(name) for name in network.outputs],
        num_heads=heads,
        **options,
    )
    pruner.step()
    return _update_attributes(model, network)


def _update_attributes(model: Any, network: Network) -> nn.Module:
    """What Torch-Pruning's README leaves to the user: numbers that a forward reads from attributes."""
    if network.name == "vit_b_16":  # examples/torchvision_models
        model.hidden_dim = model.conv_proj.out_channels
    elif network.name == "gqa_rotary":  # examples/LLMs
        model.num_heads = model.q.out_features // model.head_dim
        model.num_kv_heads = model.k.out_features // model.head_dim
    return model


def prune_with_fasterai(case: Case, network: Network, ratio: float) -> nn.Module:
    """The tutorial of `Pruner`; it finds linear output layers and fused attention itself, others are named to it."""
    pruner_class = import_module("fasterai.prune.pruner").Pruner
    criteria = import_module("fasterai.core.criteria")
    outputs = [case.model.get_submodule(name) for name in network.outputs]
    finds_itself = all(isinstance(layer, nn.Linear) for layer in outputs)
    try:
        pruner = pruner_class(
            case.model,
            ratio,
            "local",
            criteria.large_final,
            ignored_layers=None if finds_itself else outputs,
            example_inputs=case.inputs,
        )
    except ValueError as error:
        if "before pruning" in str(error):  # its own check of the model
            raise RefusedError(f"ValueError: {error}") from error
        raise
    pruner.prune_model()
    return _update_attributes(case.model, network)


def prune_with_nni(case: Case, network: Network, ratio: float) -> nn.Module:
    """The pruning quick start: masks, with dependent layers found first, then `ModelSpeedup`."""
    pruning = import_module("nni.compression.pruning")
    utilities = import_module("nni.compression.utils")
    speedup = import_module("nni.compression.speedup")
    kinds = ["Conv1d", "Conv2d", "ConvTranspose2d", "Linear"]
    config = [{"op_types": kinds, "sparse_ratio": ratio, "exclude_op_names": list(network.outputs)}]
    config = utilities.auto_set_denpendency_group_ids(case.model, config, case.inputs)
    pruner = pruning.L2NormPruner(case.model, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    speedup.ModelSpeedup(case.model, case.inputs, masks).speedup_model()
    return case.model


def prune_with_kirigami(case: Case, network: Network, ratio: float) -> nn.Module:
    """README, "Quick start", with a channel ratio; a budget of parameters, or what it can reach, where that fails."""
    library = import_module("torch_kirigami")
    pruning = import_module("torch_kirigami.pruning")
    errors = (library.KirigamiError, library.UnsupportedOperation)
    try:
        graph = library.DependencyGraph.build(case.model, args=(case.inputs,))
        pruner = pruning.Pruner(case.model, graph=graph)
        candidates = pruner.discover_candidates()
        strategy = pruning.Greedy(pruning.GroupMagnitude(p=2))
        parameters = sum(parameter.numel() for parameter in case.model.parameters())
        try:
            plan = pruner.plan(candidates, budget=pruning.ChannelRatio(ratio), strategy=strategy)
        except pruning.PlanningError:
            budget = pruning.ParameterBudget(max_params=round(parameters * (1 - ratio)))
            try:
                plan = pruner.plan(candidates, budget=budget, strategy=strategy)
            except pruning.PlanningError as error:  # which says how far it came
                remain = re.search(r"(\d+) remain", str(error))
                if remain is None or int(remain[1]) >= parameters:
                    raise
                budget = pruning.ParameterBudget(max_params=int(remain[1]))
                plan = pruner.plan(candidates, budget=budget, strategy=strategy)
        return pruner.apply(plan)[0]
    except errors as error:
        raise RefusedError(f"{type(error).__name__}: {error}") from error


def prune_with_oto(case: Case, network: Network, ratio: float) -> nn.Module:
    """Its graph, as far as it comes: the library prunes while it trains, which is not measured here."""
    import_module("only_train_once").OTO(model=case.model, dummy_input=case.inputs)
    raise RefusedError("it analysed the network; what it prunes while training is not measured here")


PRUNE: dict[str, Callable[[Case, Network, float], nn.Module]] = {
    "cleanai": prune_with_cleanai,
    "torch-pruning": prune_with_torch_pruning,
    "fasterai": prune_with_fasterai,
    "nni": prune_with_nni,
    "torch-kirigami": prune_with_kirigami,
    "only-train-once": prune_with_oto,
}


# ------------------------------------------------------------------------------------------------------- correctness


def cut_networks(job: Job, folder: Path) -> dict[str, Any]:
    """Every (network, ratio) of a job, each written as soon as it is known."""
    too_slow: dict[str, dict[str, Any]] = {}
    for number, (network, ratio) in enumerate(job["cuts"]):
        if network in too_slow:  # another ratio would take as long
            result, tensors = too_slow[network], {}
        else:
            result, tensors = cut_network(job["tool"], NETWORKS[network], ratio, job["limit_s"])
        if result["status"] == "time-out":
            too_slow[network] = result
        if tensors:
            save_file(tensors, folder / f"{number}.safetensors")
        (folder / f"{number}.json").write_text(json.dumps(result), encoding="utf-8")
    return {}


def cut_network(tool: str, network: Network, ratio: float, limit: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Prunes a network and gives back what is left of it, and its outputs for the oracle's inputs."""
    case = build_case(network.name)
    inputs = random_inputs(case.inputs, 0, torch.float64)
    result: dict[str, Any] = {"stage": "pruning"}
    start = time.perf_counter()
    try:
        with limit_seconds(limit):
            pruned = PRUNE[tool](case, network, ratio)
            result["seconds"] = round(time.perf_counter() - start, 3)
            result["stage"] = "forward"
            tensors = {f"state/{name}": tensor for name, tensor in list_tensors(pruned).items()}
            result["tied"] = _list_tied(pruned)
            result["parameters"] = sum(parameter.numel() for parameter in pruned.parameters())
            outputs = _run_in_double(pruned, inputs)
            tensors |= {f"output/{number}": tensor for number, tensor in enumerate(outputs)}
            return {**result, "status": "cut"}, tensors
    except TimeUp:
        return {**result, "status": "time-out", "message": f"{limit} s"}, {}
    except RefusedError as error:
        return {**result, "status": "refused", "message": _one_line(str(error))}, {}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = _one_line(f"{type(error).__name__}: {error}")
        return {**result, "status": "crash", "message": message, "at": f"{Path(place.filename).name}:{place.name}"}, {}


def list_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones under each of their names."""
    named = itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone().contiguous() for name, tensor in named}


def _list_tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def _run_in_double(model: nn.Module, inputs: Any) -> list[Tensor]:
    model.double().eval()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    # Differentiable, so that torch does not switch to fused kernels, which read the sizes from elsewhere.
    return [tensor.detach().contiguous() for tensor in output_tensors(model(inputs))]


@contextlib.contextmanager
def limit_seconds(seconds: float) -> Generator[None]:
    """Raises `TimeUp` in the body after so many seconds of processor time."""

    def stop(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return " ".join(" ".join(lines).split())[:300]


# ---------------------------------------------------------------------------------------------------------- accuracy


def measure_accuracy(job: Job, folder: Path) -> dict[str, Any]:
    """A trained network cut to a share of its MACs by a tool's criterion: its accuracy, and with new BatchNorm."""
    from benchmarks.accuracy import measure_accuracy as measure
    from benchmarks.subjects import SUBJECTS, Amounts
    from cleanai.evaluate import count_macs, count_parameters

    subject = SUBJECTS[job["model"]](job["model"], Amounts())
    original = copy.deepcopy(subject.model)
    macs, parameters = count_macs(original, subject.example), count_parameters(original)
    torch.manual_seed(0)
    try:
        pruned = CUT_TO_MACS[job["tool"]](
            original, subject, job["criterion"], lambda model: count_macs(model, subject.example) / macs, job["keep"]
        )
        row: dict[str, Any] = {
            "macs_kept": round(count_macs(pruned, subject.example) / macs, 4),
            "parameters_kept": round(count_parameters(pruned) / parameters, 4),
            "accuracy": round(measure(pruned, subject), 2),
            "calibration_images": subject.calibration_images,
            "test_images": subject.test_images,
        }
        renew_statistics(pruned, [images for images, _ in subject.calibration])
        row["accuracy_batchnorm"] = round(measure(pruned, subject), 2)
    except Exception as error:
        return {"status": "crash", "message": _one_line(f"{type(error).__name__}: {error}")}
    return row


def renew_statistics(model: nn.Module, batches: list[Tensor]) -> None:
    """BatchNorm's running statistics taken anew, as the mean over batches; the model ends in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for images in batches:
            model(images)
    model.eval()


def _cut_with_torch_pruning(model: Any, subject: Any, criterion: str, share: Callable, keep: float) -> nn.Module:
    """reproduce/main.py: small steps until the MACs are reached; gradients as in examples/transformers, one step.

    A criterion may be followed by "local" (every layer gives the same share) or "isomorphic".
    """
    tp = import_module("torch_pruning")
    criterion, _, ranking = criterion.partition(" ")
    kinds = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1),
        "l2": lambda: tp.importance.MagnitudeImportance(p=2),
        "lamp": lambda: tp.importance.LAMPImportance(p=2),
        "fpgm": lambda: tp.importance.FPGMImportance(p=2),
        "bn_scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
        "random": tp.importance.RandomImportance,
    }
    outputs = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]

    def make(victim: nn.Module, importance: Any, ratio: float, steps: int) -> Any:
        return tp.pruner.BasePruner(
            victim,
            subject.example,
            importance=importance,
            global_pruning=ranking != "local",
            isomorphic=ranking == "isomorphic",
            pruning_ratio=ratio,
            iterative_steps=steps,
            ignored_layers=[victim.get_submodule(name) for name in outputs],
        )

    if criterion not in ("taylor", "hessian"):
        pruner = make(model, kinds[criterion](), 1.0, 400)
        while share(model) > keep:
            pruner.step()
        return model
    gradients: dict[str, Tensor] = {}

    def cut(ratio: float) -> nn.Module:
        victim, importance = copy.deepcopy(model), kinds[criterion]()
        pruner = make(victim, importance, ratio, 1)
        named = dict(victim.named_parameters())
        if not gradients:
            _collect(victim, importance if criterion == "hessian" else None, subject.calibration)
            found = importance._accu_grad if criterion == "hessian" else {p: p.grad for p in named.values()}
            gradients.update({name: found[each].clone() for name, each in named.items() if found.get(each) is not None})
        for name, each in named.items():
            if name in gradients:
                each.grad = gradients[name].clone()
        if criterion == "hessian":
            importance._accu_grad = {named[name]: gradient.clone() for name, gradient in gradients.items()}
        pruner.step()
        return victim

    return find_ratio(cut, share, keep)


def _collect(model: nn.Module, importance: Any, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Gradients of the loss over the calibration images; for the Hessian of every image on its own."""
    model.zero_grad()
    for images, labels in batches:
        if importance is None:
            nn.functional.cross_entropy(model(images), labels).backward()
            continue
        for loss in nn.functional.cross_entropy(model(images), labels, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(model)


def find_ratio(cut: Callable[[float], nn.Module], share: Callable[[nn.Module], float], keep: float) -> nn.Module:
    """The network whose MACs come closest to what is to be kept, by halving the range of ratios nine times."""
    low, high, best, distance = 0.0, 1.0, None, float("inf")
    for _ in range(9):
        ratio = (low + high) / 2
        pruned = cut(ratio)
        left = share(pruned)
        if abs(left - keep) < distance:
            best, distance = pruned, abs(left - keep)
        low, high = (ratio, high) if left > keep else (low, ratio)
    assert best is not None
    return best


def _cut_with_fasterai(model: Any, subject: Any, criterion: str, share: Callable, keep: float) -> nn.Module:
    pruner_class = import_module("fasterai.prune.pruner").Pruner
    criteria = import_module("fasterai.core.criteria")

    def cut(ratio: float) -> nn.Module:
        victim = copy.deepcopy(model)
        outputs = [layer for layer in victim.modules() if isinstance(layer, nn.Linear)]
        pruner_class(
            victim,
            ratio,
            "global",
            getattr(criteria, criterion),
            ignored_layers=outputs,
            example_inputs=subject.example,
        ).prune_model()
        return victim

    return find_ratio(cut, share, keep)


def _cut_with_kirigami(model: Any, subject: Any, criterion: str, share: Callable, keep: float) -> nn.Module:
    library, pruning = import_module("torch_kirigami"), import_module("torch_kirigami.pruning")
    metrics = {"magnitude": lambda: pruning.GroupMagnitude(p=2), "taylor": pruning.WeightTaylor}
    if criterion == "taylor":
        _collect(model, None, subject.calibration)

    def cut(ratio: float) -> nn.Module:
        victim = copy.deepcopy(model)
        for ours, theirs in zip(victim.parameters(), model.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        pruner = pruning.Pruner(victim, graph=library.DependencyGraph.build(victim, args=(subject.example,)))
        strategy = pruning.Greedy(metrics[criterion](), max_trials=100_000)
        budget = pruning.ChannelRatio(ratio, scope="global")
        return pruner.prune(pruner.discover_candidates(), budget=budget, strategy=strategy)[0]

    return find_ratio(cut, share, keep)


CUT_TO_MACS: dict[str, Callable[..., nn.Module]] = {
    "torch-pruning": _cut_with_torch_pruning,
    "fasterai": _cut_with_fasterai,
    "torch-kirigami": _cut_with_kirigami,
}


# ------------------------------------------------------------------------------------------------------------- speed


def measure_speed(job: Job, folder: Path) -> dict[str, Any]:
    """Analysis and the whole way to a smaller network, as multiples of CleanAI's, in turns; the medians of the ratios.

    CleanAI's analysis includes its trial cuts. Pruning is planning and slicing; its ``prune()`` also proves the cut and
    measures latency, size and work before and after, which peers do not do.
    """
    from cleanai import StructuredPruner, slice_model
    from cleanai.analysis import analyze_model

    torchvision = import_module("torchvision")
    model = torchvision.models.get_model(job["model"], weights=None).eval()
    inputs = torch.randn(1, 3, 224, 224)
    analyse, prune = SPEED[job["tool"]]

    options: dict[str, Any] = {"importance": "l2", "pruning_ratio": 0.5}

    def cut(victim: nn.Module) -> nn.Module:
        return slice_model(victim, StructuredPruner(victim, inputs, **options).make_plan())

    def whole(victim: nn.Module) -> nn.Module:
        return StructuredPruner(victim, inputs, inplace=True, **options).prune()

    pairs: dict[str, tuple[Callable, Callable]] = {
        "analysis": (lambda victim: analyze_model(victim, inputs), lambda victim: analyse(victim, inputs))
    }
    if prune is not None:
        theirs = partial(prune, inputs=inputs)
        pairs["pruning"], pairs["prune()"] = (cut, theirs), (whole, theirs)
    row: dict[str, Any] = {}
    for name, pair in pairs.items():
        try:
            row[name] = _compare(model, pair, job["rounds"])
        except Exception as error:
            row[name] = {"status": "crash", "message": _one_line(f"{type(error).__name__}: {error}")}
    return row


def _compare(model: nn.Module, pair: tuple[Callable, Callable], rounds: int, enough: float = 200.0) -> dict[str, Any]:
    """The first round warms up unless it took long; rounds end early where they are slow."""
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    for number in range(rounds + 1):
        each = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            victim = copy.deepcopy(model)
            began = time.perf_counter()
            pair[index](victim)
            each[index] = time.perf_counter() - began
        times.append((each[0], each[1]))
        if time.perf_counter() - start > enough:
            break
    times = times[1:] or times
    return {
        "ratio": float(f"{statistics.median(theirs / ours for ours, theirs in times):.3g}"),
        "rounds": len(times),
        "cleanai_s": round(statistics.median(ours for ours, _ in times), 3),
        "peer_s": round(statistics.median(theirs for _, theirs in times), 3),
    }


def _analyse_with_torch_pruning(model: nn.Module, inputs: Tensor) -> None:
    tp = import_module("torch_pruning")
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))


def _prune_speed_with_torch_pruning(model: Any, inputs: Tensor) -> None:
    tp = import_module("torch_pruning")
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    attention = (layer for layer in model.modules() if isinstance(layer, nn.MultiheadAttention))
    tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last],
        num_heads={layer: layer.num_heads for layer in attention},
    ).step()


def _analyse_with_kirigami(model: nn.Module, inputs: Tensor) -> None:
    library, pruning = import_module("torch_kirigami"), import_module("torch_kirigami.pruning")
    graph = library.DependencyGraph.build(model, args=(inputs,))
    pruning.Pruner(model, graph=graph).discover_candidates()


SPEED: dict[str, tuple[Callable, Callable | None]] = {
    "torch-pruning": (_analyse_with_torch_pruning, _prune_speed_with_torch_pruning),
    "torch-kirigami": (_analyse_with_kirigami, None),
}


TASKS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "correctness": cut_networks,
    "accuracy": measure_accuracy,
    "speed": measure_speed,
}


def main() -> None:
    """Does one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    job = json.loads(arguments.job.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        result = TASKS[job["task"]](job, arguments.folder)
    (arguments.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
