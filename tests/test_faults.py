"""Whatever is raised, wherever: the caller's model, the random state and every setting of the process are as before.

A scenario runs once while the entries into CleanAI's own functions are counted. Then it runs again and again with an
exception raised at one of those points, spread evenly over the modules.
"""

from __future__ import annotations

import random
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from quick import measure_briefly
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointFunction

import cleanai
from cleanai import (
    CleanAIError,
    CoverageAnalyzer,
    PruningStep,
    StructuredPruner,
    evaluate_model,
    export_program,
    history_of,
    isolation,
    load_pruned,
    migrate_optimizer,
    replay_history,
    rollback,
    save_pruned,
    slice_model,
)
from cleanai.evaluate import measure_model
from cleanai.models import cifar_vit

LIBRARY = str(Path(cleanai.__file__).parent)
POINTS = 9  # of each scenario
pytestmark = pytest.mark.timeout(900)  # a minute on a quiet core
UNDOING = {"surely"}  # if undoing itself cannot begin, nothing is undone; once it has begun, it is done again
KINDS: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError, KeyboardInterrupt, ValueError)

# --------------------------------------------------------------------------------------------------- breaking off


Point = tuple[str, int]
"""A function of CleanAI, and which of its calls."""


class Faults:
    """Counts the calls of each of CleanAI's functions in this thread, and raises at the start of one of them."""

    def __init__(self, at: Point | None = None, fault: BaseException | None = None) -> None:
        self.calls: dict[str, int] = {}
        self.at, self.fault, self.raised = at, fault, False
        self._starts: dict[Any, int] = {}

    def __enter__(self) -> Faults:
        self._before = sys.gettrace()
        sys.settrace(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(LIBRARY) or code.co_name in UNDOING:
            return
        if frame.f_lasti > self._starts.setdefault(code, frame.f_lasti):
            return  # a generator that goes on
        name = f"{Path(code.co_filename).relative_to(LIBRARY)}:{code.co_firstlineno}:{code.co_name}"
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.at == (name, self.calls[name]):
            assert self.fault is not None
            sys.settrace(None)
            self.raised = True
            raise self.fault


def choose_points(calls: dict[str, int]) -> list[Point]:
    """So many of the counted calls: a different function each time while there are any, module after module."""
    draw = random.Random(len(calls))
    modules: dict[str, list[str]] = {}
    for name in sorted(calls):
        modules.setdefault(name.partition(":")[0], []).append(name)
    queues = list(modules.values())
    for names in (*queues, queues):
        draw.shuffle(names)
    chosen: list[Point] = []
    while len(chosen) < POINTS and any(queues):
        names = [queue.pop() for queue in queues if queue]
        chosen += [(name, draw.randint(1, calls[name])) for name in names]
    return chosen[:POINTS]


# ------------------------------------------------------------------------------------------- what must be as before


def freeze(value: Any) -> Any:
    """A value that equals itself only as long as nothing of it changes; it keeps what it speaks of alive."""
    if isinstance(value, Tensor):
        whole = value.detach().contiguous()
        content = zlib.crc32(whole.view(torch.uint8).numpy().tobytes()) if whole.dim() else whole.item()
        described = (value.dtype, tuple(value.shape), value.stride(), value.requires_grad, value.data_ptr())
        return Same(value), described, content, freeze(value.grad) if value.is_leaf else None
    if isinstance(value, dict):
        return Same(value), tuple((key, freeze(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return Same(value), tuple(map(freeze, value))
    return value if isinstance(value, (bool, int, float, str, bytes, type(None))) else Same(value)


class Same:
    """Equal where it is the very same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} at {id(self.value)}"


def freeze_model(model: nn.Module) -> dict[str, Any]:
    """All that a model is: every module's class and attributes, with tensors, gradients, modes, hooks and history."""
    return {
        f"{path}.{name}": (type(module), freeze(value))
        for path, module in model.named_modules()
        for name, value in module.__dict__.items()
    }


def freeze_process() -> dict[str, Any]:
    """The random generators and what else threads share, or a context may leave behind."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch": zlib.crc32(torch.get_rng_state().numpy().tobytes()),
        "numpy": repr(numpy_state),
        "python": random.getstate(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "warnings": list(warnings.filters),
        "modes": (len(_get_current_dispatch_mode_stack()), torch._C._len_torch_function_stack()),
        "kernels": (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
        "checkpoint": "apply" in vars(CheckpointFunction),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "transactions": dict(isolation._transactions),
        "lock": lock_is_free(),
    }


def lock_is_free() -> bool:
    """Whether another thread could take the lock of the process now."""
    found: list[bool] = []

    def attempt() -> None:
        found.append(isolation.process_state.acquire(blocking=False))
        if found[0]:
            isolation.process_state.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


def same(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def digest(result: Any) -> Any:
    """A result, to be compared with that of another run."""
    if isinstance(result, nn.Module):
        return [(name, digest(value)) for name, value in result.state_dict().items()], len(history_of(result))
    if isinstance(result, Tensor):
        return tuple(result.shape), result.dtype, result.detach().contiguous().numpy().tobytes()
    if isinstance(result, dict):
        return [(str(key), digest(value)) for key, value in result.items()]
    return [digest(each) for each in result] if isinstance(result, (list, tuple)) else result


# ------------------------------------------------------------------------------------------------------- scenarios


class HeadNet(nn.Module):
    """A convolution with statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.notes = ["trained"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Block(nn.Module):
    """A residual block with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """Residual blocks; it keeps a size, a cache of tensors and a list of its own."""

    def __init__(self, blocks: int = 1) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 6, 3, padding=1), nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(6, 3)
        self.width, self.notes, self.cache = 6, ["trained"], {(2, 2): torch.ones(2)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)).view(len(x), self.width))


IMAGE, LABELS = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
BATCHES = [(IMAGE + shift, LABELS) for shift in (0.0, 0.1, 0.2)]


def prepare(model: nn.Module) -> nn.Module:
    """As a caller's model may be: gradients, mixed modes, a frozen parameter and hooks."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
        parameter.grad = torch.randn(parameter.shape)
    first = next(model.children())
    first.train(False)
    next(first.parameters()).requires_grad_(False)
    model.register_forward_hook(_user_hook)
    return model


def _user_hook(module: nn.Module, args: Any, output: Any) -> None:
    pass


class Scenario:
    """What a caller does, and with which model; nothing of it may change if ``run`` raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = prepare(self.build())
        self.setup()
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002

    def build(self) -> nn.Module:
        return Net()

    def setup(self) -> None:
        """What is done before, and may not fail."""

    def run(self) -> Any:
        raise NotImplementedError

    def freeze(self) -> dict[str, Any]:
        state = {f"process {name}": value for name, value in freeze_process().items()}
        state |= {f"model{name}": value for name, value in freeze_model(self.model).items()}
        return state | {"files": sorted(path.name for path in self.folder.iterdir())}


def loader() -> Iterator[Any]:
    """Batches that draw from the global generator, as a shuffling loader's do."""
    for x, y in BATCHES:
        order = torch.randperm(len(x))
        yield x[order], y[order]


class Reloading:
    """A loader that can be gone through again."""

    def __iter__(self) -> Iterator[Any]:
        return loader()


def train_a_step(step: PruningStep) -> None:
    """A callback that trains, without drawing random numbers."""
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.01, momentum=0.9)
    step.model.train()
    nn.functional.cross_entropy(step.model(IMAGE), LABELS).backward()
    optimizer.step()
    if step.verification is None or not step.verification.passed:
        raise ValueError("a step without a proof")


class InPlace(Scenario):
    """In place: made, calibrated and pruned, with what goes kept."""

    def run(self) -> Any:
        pruner = StructuredPruner(self.model, IMAGE[:1], "wanda", 0.4, inplace=True, keep_removed=True)
        pruner.collect_activations(Reloading())
        return pruner.prune(), pruner.plan


class Iterative(Scenario):
    """In place in two steps, with a callback that trains, after a cut of before."""

    def setup(self) -> None:
        slice_model(self.model, StructuredPruner(self.model, IMAGE[:1], pruning_ratio=0.2).make_plan())
        self.model.eval()  # in training mode the caller's own forward passes move statistics
        self.pruner = StructuredPruner(self.model, IMAGE[:1], pruning_ratio=0.5, iterative_steps=2, inplace=True)

    def run(self) -> Any:
        return self.pruner.prune(train_a_step)


class LeastSquares(Scenario):
    """In place, repaired by least squares; calibrated before."""

    def setup(self) -> None:
        self.pruner = StructuredPruner(
            self.model, IMAGE[:1], "wanda", 0.4, inplace=True, recover="least_squares", keep_removed=True
        )
        self.pruner.collect_activations(Reloading())

    def run(self) -> Any:
        return self.pruner.prune()


class Norms(LeastSquares):
    """A copy in two steps, with a callback, statistics collected anew and BatchNorm's as well."""

    def setup(self) -> None:
        self.pruner = StructuredPruner(
            self.model, IMAGE[:1], "wanda", 0.4, iterative_steps=2, recover="batchnorm", global_pruning=True
        )
        self.pruner.collect_activations(Reloading())

    def run(self) -> Any:
        return self.pruner.prune(train_a_step)


class DroppedBlock(Scenario):
    """A block goes whole, in place, by gradients with curvature."""

    def build(self) -> nn.Module:
        return Net(blocks=2)

    def setup(self) -> None:
        self.pruner = StructuredPruner(
            self.model, IMAGE[:1], "hessian", 0.3, depth_pruning_ratio=0.5, inplace=True, keep_removed=True
        )

    def run(self) -> Any:
        self.pruner.collect_gradients(Reloading())
        return self.pruner.prune()


class Heads(Scenario):
    """A transformer loses heads, for so many MACs."""

    def build(self) -> nn.Module:
        return cifar_vit(dim=8, depth=1, num_heads=2)

    def setup(self) -> None:
        self.inputs = torch.randn(1, 3, 32, 32)

    def run(self) -> Any:
        return StructuredPruner(self.model, self.inputs, pruning_ratio=0.3, target="macs").prune()


class Calibration(Scenario):
    """All that looks at a model: calibration, gradients, scores, a plan, masks, accuracy, coverage, measurement."""

    def setup(self) -> None:
        self.pruner = StructuredPruner(self.model, IMAGE[:1], "taylor", 0.4)

    def run(self) -> Any:
        statistics = self.pruner.collect_activations(Reloading())
        self.pruner.collect_gradients(Reloading())
        scores, plan = self.pruner.score_groups(), self.pruner.make_plan()
        with plan.apply_masks(self.model) as masked:
            preview = masked(IMAGE)
        seen = evaluate_model(self.model, loader())
        CoverageAnalyzer(self.model, example_inputs=IMAGE[:1]).collect(Reloading())
        measured = measure_model(self.model, IMAGE[:1])
        return scores, preview, plan, seen, measured.macs, {key: v.total for key, v in statistics.sides.items()}


class Undone(Scenario):
    """Two prunes, one of them of a block, are taken back."""

    def build(self) -> nn.Module:
        return Net(blocks=2)

    def setup(self) -> None:
        for ratio in (0.2, 0.4):
            pruner = StructuredPruner(self.model, IMAGE[:1], pruning_ratio=ratio, depth_pruning_ratio=ratio - 0.2)
            slice_model(self.model, pruner.make_plan(), keep_removed=True)

    def run(self) -> Any:
        return rollback(self.model)


class Replayed(Undone):
    """The same two prunes are made again from their history."""

    def setup(self) -> None:
        super().setup()
        self.history = history_of(self.model)
        rollback(self.model)

    def run(self) -> Any:
        return replay_history(self.model, self.history)


class Files(Scenario):
    """Saved, loaded into a model that exists, and exported."""

    def setup(self) -> None:
        self.pruned = StructuredPruner(self.model, IMAGE[:1], keep_removed=True).prune()
        self.path = self.folder / "pruned.safetensors"

    def run(self) -> Any:
        save_pruned(self.pruned, self.path, include_removed=True)
        self.path = self.path.rename(self.folder.parent / f"{self.folder.name}.safetensors")
        return load_pruned(self.path, lambda: self.model)


class Exported(Scenario):
    """Exported; the file is there whole, or none is."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def run(self) -> Any:
        return export_program(self.model, self.folder / "net.pt2", torch.ones(1, 3), dynamic_batch=False).batches


class Migrated(Scenario):
    """An optimizer follows a cut."""

    def setup(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.optimizer.step()
        pruner = StructuredPruner(self.model, IMAGE[:1])
        self.pruned, self.plan = pruner.prune(), pruner.plan

    def run(self) -> Any:
        assert self.plan is not None
        migrate_optimizer(self.optimizer, self.plan)
        return [digest(dict(self.optimizer.state[p])) for p in self.pruned.parameters() if p in self.optimizer.state]

    def freeze(self) -> dict[str, Any]:
        return super().freeze() | {
            "groups": tuple(map(freeze, self.optimizer.param_groups)),
            "state": tuple((Same(parameter), freeze(state)) for parameter, state in self.optimizer.state.items()),
        }


SCENARIOS: tuple[type[Scenario], ...] = tuple(
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Scenario) and value is not Scenario
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)


def begin(kind: type[Scenario], folder: Path) -> Scenario:
    torch.manual_seed(3)
    folder.mkdir()
    return kind(folder)


@pytest.mark.parametrize("kind", SCENARIOS)
def test_nothing_has_happened_wherever_something_is_raised(kind: type[Scenario], tmp_path: Path) -> None:
    scenario = begin(kind, tmp_path / "whole")
    before = freeze_process()
    expected = digest(scenario.run())
    assert not same(before, freeze_process())
    scenario = begin(kind, tmp_path / "counted")
    with Faults() as counted:
        result = scenario.run()
    assert digest(result) == expected
    chosen = choose_points(counted.calls)
    assert len(chosen) == min(POINTS, len(counted.calls))
    for number, at in enumerate(chosen):
        fault = KINDS[number % len(KINDS)](f"injected in {at}")
        scenario = begin(kind, tmp_path / f"{number}")
        before = scenario.freeze()
        arrived: BaseException | None = None
        with Faults(at, fault) as faults:
            try:
                result = scenario.run()
            except BaseException as error:
                arrived = error
        where = f"{type(fault).__name__} in {at}"
        assert faults.raised, f"{where}: it was never reached"
        if arrived is None:
            # What one way of working stumbles over, another may do without; the result is what it always is.
            assert isinstance(fault, Exception), where
            assert digest(result) == expected, f"{where}: swallowed, and the result is another"
            continue
        chain = [arrived]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        assert arrived is fault or (isinstance(arrived, CleanAIError) and fault in chain), f"{where}: {arrived!r}"
        assert isinstance(fault, Exception) or arrived is fault, f"{where}: became {arrived!r}"
        changed = same(before, scenario.freeze())
        assert not changed, f"{where}: {changed[:5]}"
        if number % 3 == 0:
            assert digest(scenario.run()) == expected, f"{where}: the second attempt gives another result"


# ------------------------------------------------------------------------------------------- the caller's own functions


class Bomb:
    """Raises when it is touched for the ``after``-th time."""

    def __init__(self, kind: type[BaseException], after: int) -> None:
        self.fault, self.left = kind("in the caller's own code"), after

    def touch(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.fault


def fail_in_loader(model: nn.Module, bomb: Bomb) -> None:
    def batches() -> Iterator[Any]:
        for batch in loader():
            bomb.touch()
            yield batch

    StructuredPruner(model, IMAGE[:1], "wanda", inplace=True).collect_activations(batches())


def fail_in_loss(model: nn.Module, bomb: Bomb) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        bomb.touch()
        return model(batch[0]).square().mean() * torch.rand(())

    StructuredPruner(model, IMAGE[:1], "taylor", inplace=True).collect_gradients(Reloading(), loss)


def fail_in_criterion(model: nn.Module, bomb: Bomb) -> None:
    def score(group: Any) -> Tensor:
        bomb.touch()
        return torch.rand(group.size, generator=torch.Generator().manual_seed(0))

    StructuredPruner(model, IMAGE[:1], score, inplace=True, iterative_steps=3).prune()


def fail_in_forward(model: nn.Module, bomb: Bomb) -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        bomb.touch()
        return y

    StructuredPruner(model, IMAGE[:1], forward_fn=forward, inplace=True, keep_removed=True).prune()


def fail_in_output(model: nn.Module, bomb: Bomb) -> None:
    def pick(output: Tensor) -> Tensor:
        bomb.touch()
        return output

    StructuredPruner(model, IMAGE[:1], output_transform=pick, inplace=True, iterative_steps=2).prune()


def fail_in_callback(model: nn.Module, bomb: Bomb) -> None:
    def callback(step: PruningStep) -> None:
        train_a_step(step)
        step.model.zero_grad()
        step.model[1].requires_grad_(step.number % 2 == 0)  # ty: ignore[not-subscriptable]
        step.model[1].notes.append("pruned")  # ty: ignore[not-subscriptable]
        step.model.register_buffer("more", torch.ones(1))
        bomb.touch()

    StructuredPruner(model, IMAGE[:1], inplace=True, iterative_steps=3).prune(callback)


def fail_in_other_precision(model: nn.Module, bomb: Bomb) -> None:
    def callback(step: PruningStep) -> None:
        step.model.double().to(memory_format=torch.channels_last)
        bomb.touch()
        next(step.model.parameters()).data = torch.zeros(1)

    StructuredPruner(model, IMAGE[:1], inplace=True).prune(callback)


class Scale(nn.Module):
    """A layer of the caller's, with a rule of the caller's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.exp().reshape(1, self.width, 1, 1)


def fail_in_rule(model: nn.Module, bomb: Bomb) -> None:
    def connect(links: Any) -> None:
        bomb.touch()
        links.tie(links.input().dim(1), links.tensor("weight").dim(0), links.output().dim(1))

    def shrink(module: Any) -> None:
        bomb.touch()
        module.width = module.weight.shape[0]

    cleanai.register_rule(Scale, connect, shrink)
    try:
        StructuredPruner(model, IMAGE[:1], inplace=True).prune()
    finally:
        cleanai.unregister_rule(Scale)


FAILURES = (
    fail_in_loader,
    fail_in_loss,
    fail_in_criterion,
    fail_in_forward,
    fail_in_output,
    fail_in_callback,
    fail_in_other_precision,
    fail_in_rule,
)


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__.removeprefix("fail_in_"))
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_nothing_has_happened_when_the_caller_s_own_code_raises(
    fail: Callable[[nn.Module, Bomb], None], kind: type[BaseException]
) -> None:
    arrived, after = 0, 1
    while True:
        torch.manual_seed(0)
        model = nn.Sequential(prepare(nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), Scale(6))), prepare(HeadNet()))
        bomb = Bomb(kind, after)
        before = freeze_model(model) | freeze_process()
        try:
            fail(model, bomb)
        except (kind, CleanAIError) as error:
            caught: BaseException | None = error
        else:
            caught = None
        fired = bomb.left <= 0
        if caught is not None:
            arrived += 1
            own = caught is bomb.fault or (isinstance(caught, CleanAIError) and kind is not KeyboardInterrupt)
            assert own or not fired, repr(caught)
            assert not same(before, freeze_model(model) | freeze_process()), f"touched {after} times"
        if not fired:
            break
        after += 1 + after // 3
    assert arrived, "it was never touched"
