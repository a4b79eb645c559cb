"""History, saving, loading, replay, rollback: what was cut is known, comes back, and can be done again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cleanai import (
    History,
    InputError,
    Plan,
    StructuredPruner,
    hash_architecture,
    history_of,
    load_pruned,
    read_history,
    replay_history,
    rollback,
    save_pruned,
    slice_model,
)
from cleanai.models import cifar_vit, digits_resnet
from cleanai.plan import TensorCut

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return digits_resnet(4).eval()


def prune(model: nn.Module, ratio: float = 0.5, importance: str = "magnitude", **options: Any) -> nn.Module:
    return StructuredPruner(model, IMAGE, importance, ratio, **options).prune()


def assert_same_structure(first: nn.Module, second: nn.Module) -> None:
    """Modules of the same classes with the same plain attributes, tensors of the same shapes."""
    for (path, a), (other, b) in zip(first.named_modules(), second.named_modules(), strict=True):
        assert path == other and type(a) is type(b)
        assert repr(a) == repr(b)
        plain = [
            {
                k: v
                for k, v in m.__dict__.items()
                if not k.startswith("_") and isinstance(v, (bool, int, float, str, tuple))
            }
            for m in (a, b)
        ]
        assert plain[0] == plain[1], path
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (first, second)]
    assert shapes[0] == shapes[1]


def assert_same_values(first: nn.Module, second: nn.Module) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ------------------------------------------------------------------------------------------------------------ history


def test_every_prune_is_an_entry_in_order() -> None:
    model = build()
    once = prune(model, 0.5, "magnitude", target="params")
    twice = prune(once, 0.25, "random", iterative_steps=3)
    assert len(history_of(model)) == 0 and len(history_of(once)) == 1
    first, second = history_of(twice)
    assert [entry.criterion for entry in (first, second)] == ["magnitude", "random"]
    assert (first.budget["target"], first.budget["pruning_ratio"]) == ("params", 0.5)
    assert (second.budget["target"], second.budget["iterative_steps"]) == ("channels", 3)
    assert first.architecture == hash_architecture(model) and second.architecture == hash_architecture(once)
    assert first.created < second.created
    assert first == history_of(once)[0]


def test_the_plan_of_a_history_leads_from_the_first_model_to_the_last() -> None:
    model = build()
    twice = prune(prune(model), 0.25, "random")
    direct = slice_model(copy.deepcopy(model), history_of(twice).plan)
    assert_same_values(direct, twice)


def test_channel_maps_say_where_channels_came_from() -> None:
    model = build()
    twice = prune(prune(model), 0.5, "random")
    outputs, inputs = history_of(twice).channel_maps("block2.conv1")
    assert (outputs.dim, inputs.dim) == (0, 1)
    weight: Any = model.get_submodule("block2.conv1").weight
    small: Any = twice.get_submodule("block2.conv1").weight
    for new, old in enumerate(outputs.kept):
        assert outputs.new_indices[old] == new
        assert torch.equal(small[new], weight[old][list(inputs.kept)])
    assert [outputs.new_indices[old] for old in outputs.dropped] == [None] * len(outputs.dropped)
    assert history_of(twice).channel_maps("nothing") == ()


def test_a_history_is_json() -> None:
    history = history_of(prune(prune(build())))
    again = History.from_json(history.to_json())
    assert again == history and again.plan == history.plan
    assert json.loads(history.to_json())["entries"][0]["criterion"] == "magnitude"
    assert "magnitude" in str(history) and "2 prunes" in str(history)


def test_a_slice_by_hand_is_an_entry_too() -> None:
    plan = Plan(cuts=(TensorCut("weight", 0, 4, (1,)), TensorCut("bias", 0, 4, (1,))))
    (entry,) = history_of(slice_model(nn.Linear(3, 4), plan))
    assert (entry.criterion, entry.budget, entry.plan) == ("", {}, plan)


def test_a_failed_prune_leaves_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    pruner = StructuredPruner(model, IMAGE, inplace=True)
    monkeypatch.setattr("cleanai.pruner.compare_with_reference", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pruner.prune()
    assert len(history_of(model)) == 0
    assert_same_values(model, build())


def test_prunes_of_a_part_are_in_the_history_of_the_whole() -> None:
    whole = nn.Sequential(build(), nn.Softmax(-1))
    StructuredPruner(whole[0], IMAGE, inplace=True, keep_removed=True).prune()
    (entry,) = history_of(whole)
    fresh = nn.Sequential(build(1), nn.Softmax(-1))
    replay_history(fresh, history_of(whole), check_architecture=False)
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh(IMAGE), whole(IMAGE))
    assert all(cut.parameter.startswith("0.") for cut in entry.plan.cuts)


def test_the_architecture_is_classes_names_and_shapes() -> None:
    def net(*parts: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), *parts)

    same = hash_architecture(net(nn.ReLU()))
    assert hash_architecture(net(nn.ReLU()).double()) == same  # neither values nor precision
    others = [net(nn.GELU()), net(nn.ReLU(), nn.ReLU()), nn.Sequential(nn.Linear(3, 5), nn.ReLU())]
    assert same not in {hash_architecture(other) for other in others}


# ------------------------------------------------------------------------------------------------- saving and loading


def test_saved_and_loaded(tmp_path: Path) -> None:
    pruned = prune(prune(build()), 0.25, "random")
    loaded = load_pruned(save_pruned(pruned, tmp_path / "small.safetensors"), lambda: build(1))
    assert_same_structure(loaded, pruned)
    assert_same_values(loaded, pruned)
    assert torch.equal(loaded(IMAGE), pruned(IMAGE))
    assert history_of(loaded) == history_of(pruned) == read_history(tmp_path / "small.safetensors")


def test_what_is_loaded_can_be_pruned_further_in_another_process(tmp_path: Path) -> None:
    """Composition: a new process, another criterion; loaded here again, it is the same model."""
    path = save_pruned(prune(build()), tmp_path / "once.safetensors")
    script = """
import sys, torch
from cleanai import StructuredPruner, load_pruned, save_pruned
from cleanai.models import digits_resnet
model = load_pruned(sys.argv[1], lambda: digits_resnet(4))
image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
save_pruned(StructuredPruner(model.eval(), image, "random", 0.5).prune(), sys.argv[2])
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path), str(tmp_path / "twice.safetensors")], check=True
    )
    there = load_pruned(tmp_path / "twice.safetensors", build)
    here = prune(load_pruned(path, build), 0.5, "random")
    assert_same_values(there, here)
    assert [entry.criterion for entry in history_of(there)] == ["magnitude", "random"]


def test_a_model_that_was_never_pruned(tmp_path: Path) -> None:
    loaded = load_pruned(save_pruned(build(), tmp_path / "whole.safetensors"), lambda: build(1))
    assert_same_values(loaded, build())


def test_dtype_of_the_file_and_device_of_the_factory(tmp_path: Path) -> None:
    pruned = prune(build()).double()
    path = save_pruned(pruned, tmp_path / "double.safetensors")
    assert torch.equal(load_pruned(path, build)(IMAGE.double()), pruned(IMAGE.double()))
    with torch.device("meta"):
        empty = digits_resnet(4).eval()
    assert torch.equal(load_pruned(path, lambda: empty)(IMAGE.double()), pruned(IMAGE.double()))


class Tied(nn.Module):
    """An encoder and a decoder with one weight, an own buffer that is not saved, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.back = nn.Linear(8, 6).requires_grad_(False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(6), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.back(self.hidden(self.embed(tokens)).relu()) * self.scale)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    pruned: Any = StructuredPruner(Tied(), tokens).prune()
    assert pruned.embed.weight.shape[1] < 6
    loaded: Any = load_pruned(save_pruned(pruned, tmp_path / "tied.safetensors"), Tied)
    assert loaded.head.weight is loaded.embed.weight and not loaded.back.weight.requires_grad
    assert torch.equal(loaded(tokens), pruned(tokens))


def test_a_plain_state_dict_beside_the_history(tmp_path: Path) -> None:
    pruned = prune(prune(build()))
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "history.json").write_text(history_of(pruned).to_json())
    model = replay_history(build(1), History.from_json((tmp_path / "history.json").read_text()))
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same_structure(model, pruned)
    assert torch.equal(model(IMAGE), pruned(IMAGE))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = save_pruned(prune(build()), tmp_path / "small.safetensors")
    wide = digits_resnet(8)
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(InputError, match=r"conv1.weight has shape \(8, 1, 3, 3\), but prune 1 began with 4 indices"):
        load_pruned(path, lambda: wide)
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())

    small = save_pruned(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"0\.bias has shape"):
        load_pruned(small, lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU()))
    net = slice_model(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), Plan(cuts=(TensorCut("0.weight", 1, 3, (1,)),)))
    path = save_pruned(net, tmp_path / "relu.safetensors")
    with pytest.raises(InputError, match="another class of module"):
        load_pruned(path, lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU()))
    load_pruned(path, lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU()), check_architecture=False)


# ------------------------------------------------------------------------------------------------------------ rollback


@pytest.mark.parametrize("name", ["resnet", "vit", "encoder"])
def test_rollback_gives_the_model_back(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    models: dict[str, tuple[nn.Module, Tensor]] = {
        "resnet": (digits_resnet(4), IMAGE),
        "vit": (cifar_vit(dim=16, depth=3, num_heads=2), torch.randn(1, 3, 32, 32)),
        "encoder": (nn.Sequential(nn.TransformerEncoder(layer, 2)), torch.randn(2, 5, 16)),
    }
    model, inputs = models[name]
    model.eval()
    pruned = model
    sizes = []
    for ratio, depth in ((0.5, 0.34), (0.5, 0.0)):
        pruner = StructuredPruner(pruned, inputs, "magnitude", ratio, depth_pruning_ratio=depth, keep_removed=True)
        pruned = pruner.prune()
        sizes.append(pruned)
    back = rollback(copy.deepcopy(pruned), to=1)
    assert_same_structure(back, sizes[0])
    assert_same_values(back, sizes[0])
    for whole in (rollback(back), rollback(copy.deepcopy(pruned))):
        assert_same_structure(whole, model)
        assert_same_values(whole, model)
        assert torch.equal(whole(inputs), model(inputs))
        assert len(history_of(whole)) == 0


def test_rollback_after_loading(tmp_path: Path) -> None:
    model = build()
    pruned = prune(prune(model, keep_removed=True), 0.5, "random", keep_removed=True, iterative_steps=2)
    path = save_pruned(pruned, tmp_path / "all.safetensors", include_removed=True)
    loaded = load_pruned(path, lambda: build(1))
    assert torch.equal(loaded(IMAGE), pruned(IMAGE))
    assert_same_values(rollback(loaded), model)
    smaller = save_pruned(pruned, tmp_path / "without.safetensors")
    assert smaller.stat().st_size < path.stat().st_size
    with pytest.raises(InputError, match="prune 1, 2 cannot be taken back"):
        rollback(load_pruned(smaller, build))


def test_after_fine_tuning_only_what_went_has_old_values() -> None:
    model = build()
    pruned: Any = prune(model, keep_removed=True)
    cut = next(cut for cut in history_of(pruned).plan.cuts if cut.parameter == "conv1.weight")
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(7.0)
    back: Any = rollback(pruned)
    old: Any = model
    assert bool((back.conv1.weight[list(cut.kept)] == 7).all())
    assert torch.equal(back.conv1.weight[list(cut.dropped)], old.conv1.weight[list(cut.dropped)])


def test_rollback_follows_precision_and_keeps_memory_formats() -> None:
    model = build().to(memory_format=torch.channels_last)
    pruned = prune(model, keep_removed=True).double()
    back: Any = rollback(pruned)
    assert {tensor.dtype for tensor in back.parameters()} == {torch.float64}
    weight = back.block1.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(back(IMAGE.double()).float(), model(IMAGE), atol=1e-5)


def test_a_rollback_that_fails_changes_nothing() -> None:
    pruned: Any = prune(build(), keep_removed=True)
    wrong: list[Any] = [-1, 2, 1.0, None]
    for number in wrong:
        with pytest.raises(InputError, match="give how many of them stay"):
            rollback(pruned, number)
    slice_by_hand = pruned.block1.bn1
    slice_by_hand.weight = nn.Parameter(slice_by_hand.weight[:1])
    before = {name: value.shape for name, value in pruned.state_dict().items()}
    with pytest.raises(ValueError, match=r"block1.bn1.weight has shape \(1,\)"):
        rollback(pruned)
    assert before == {name: value.shape for name, value in pruned.state_dict().items()}
    assert len(history_of(pruned)) == 1


def test_the_removed_are_saved_only_where_they_were_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what prune 1 removed was not kept"):
        save_pruned(prune(build()), tmp_path / "x.safetensors", include_removed=True)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["magnitude", "random"]), st.floats(0.0, 0.8)), min_size=1, max_size=4),
    to=st.integers(0, 4),
)
def test_law_any_walk_can_be_taken_back_to_any_point(steps: list[tuple[str, float]], to: int) -> None:
    model = build()
    states = [model]
    for importance, ratio in steps:
        states.append(prune(states[-1], ratio, importance, keep_removed=True))
    to = min(to, len(steps))
    back = rollback(copy.deepcopy(states[-1]), to)
    assert_same_structure(back, states[to])
    assert_same_values(back, states[to])
    assert_same_values(
        replay_history(build(), history_of(states[-1])), slice_model(build(), history_of(states[-1]).plan)
    )
