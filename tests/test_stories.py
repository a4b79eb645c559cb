"""A trained Llama that tells stories, with fewer heads and narrower layers: equal to the masked original, and the loss.

Needs stories260K.bin and tok512.bin of llama2.c in the folder text/ of the data root (CLEANAI_DATA) and skips without.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from oracle import to_double
from tiny_llama import Llama, Tokens, load_llama2c
from torch import Tensor
from torch.nn import functional as F

from cleanai import StructuredPruner, verify_pruning
from cleanai.data import data_root

STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her
friends. One day, she saw a big red ball under a tree. She was very happy and wanted to play with it. But then a small
dog came and took the ball away. Lily was sad. Her mom said, "Do not be sad, Lily. We can find the dog and ask for the
ball." So they walked and walked until they saw the dog. The dog gave the ball back to Lily and she smiled. They all
played together and had a lot of fun. At the end of the day, Lily and her mom went home."""


class Stories:
    """The trained network and the tokens of a story it has not seen."""

    def __init__(self) -> None:
        folder = data_root() / "text"
        self.model: Any = load_llama2c(folder / "stories260K.bin")
        self.coder = Tokens(folder / "tok512.bin")
        self.tokens = torch.tensor([self.coder.encode(" ".join(STORY.split()))])

    def loss(self, model: Llama) -> float:
        """Nats for each token of the story."""
        with torch.no_grad():
            scores = model(self.tokens[:, :-1])
        return float(F.cross_entropy(scores[0], self.tokens[0, 1:]))


@pytest.fixture(scope="module")
def stories() -> Stories:
    missing = [name for name in ("stories260K.bin", "tok512.bin") if not (data_root() / "text" / name).exists()]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} in the folder text/ of the data root (CLEANAI_DATA)")
    return Stories()


def test_the_network_is_read_as_it_was_trained(stories: Stories) -> None:
    """A wrong order of the weights or a wrong rotation would cost it most of what it knows."""
    assert b"".join(stories.coder.pieces[number] for number in stories.tokens[0, 1:].tolist()).decode() == (
        " " + " ".join(STORY.split())
    )
    assert 150 <= stories.tokens.numel() <= 300
    assert sum(parameter.numel() for parameter in stories.model.parameters()) == 260_032
    loss = stories.loss(stories.model)
    assert loss < 1.5, f"{loss:.3f} nats for each token of the story"


def masked(model: Llama, plan: Any) -> Any:
    """The original in float64 with the dropped slices zeroed."""
    twin = to_double(copy.deepcopy(model))
    with torch.no_grad():
        for cut in plan.cuts:
            twin.get_parameter(cut.parameter).index_fill_(cut.dim, torch.tensor(cut.dropped), 0.0)
    return twin


RATIOS: dict[str, dict[str, float]] = {
    "heads by a quarter": {"q": 0.25},
    "layers by a quarter": {"w1": 0.25},
    "heads and layers by a quarter": {"q": 0.25, "w1": 0.25},
    "heads and layers by a half": {"q": 0.5, "w1": 0.5},
}


@pytest.mark.parametrize("name", RATIOS)
def test_a_pruned_storyteller(stories: Stories, name: str) -> None:
    model, ratios = stories.model, RATIOS[name]
    paths: dict[Any, float] = {}
    for block in range(5):
        paths |= {f"blocks.{block}.{'attention.' * (kind == 'q')}{kind}": ratio for kind, ratio in ratios.items()}
    pruner = StructuredPruner(model, stories.tokens[:, :24], "magnitude", 0.0, layer_pruning_ratios=paths)
    before = stories.loss(model)
    pruned: Any = pruner.prune()
    after = stories.loss(pruned)
    said = f"{name}: {before:.3f} -> {after:.3f} nats, {sum(p.numel() for p in pruned.parameters())} weights"
    # Key heads go with both queries that read them; head channels and the stream stay.
    heads, width = round(4 * (1 - ratios.get("q", 0))), 172 - round(172 * ratios.get("w1", 0))
    for block in pruned.blocks:
        assert (block.attention.kv_heads, block.attention.heads, block.attention.head_dim) == (heads, 2 * heads, 8)
        assert (block.attention.q.out_features, block.attention.k.out_features) == (16 * heads, 8 * heads)
        assert (block.w1.out_features, block.w3.out_features, block.w2.in_features) == (width,) * 3, said
    assert pruned.head.weight is pruned.embed.weight and pruned.embed.weight.shape == (512, 64)
    assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
    assert pruner.verification.dtype == "float64"
    assert verify_pruning(model, pruned, pruner.plan, stories.tokens).passed
    torch.testing.assert_close(
        to_double(pruned)(stories.tokens), masked(model, pruner.plan)(stories.tokens), rtol=1e-5, atol=1e-5
    )
    assert before <= after < math.log(512), said


def test_the_narrower_stream(stories: Stories) -> None:
    """The stream itself can go too: what the norms divide by is the mean over what is left, as the proof has it."""
    pruner = StructuredPruner(stories.model, stories.tokens[:, :24], "magnitude", 0.25)
    pruned: Any = pruner.prune()
    before, after = stories.loss(stories.model), stories.loss(pruned)
    assert pruned.embed.weight.shape == (512, 48) and pruned.blocks[4].attention.q.weight.shape == (48, 48)
    assert pruner.verification is not None and pruner.verification.passed
    assert pruned(stories.tokens).shape == (*stories.tokens.shape, 512)
    assert before <= after, f"{before:.3f} -> {after:.3f} nats"


def generate(model: Llama, tokens: Tensor, count: int) -> list[int]:
    """The likeliest next tokens, one after the other."""
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens[0].tolist()


def test_it_still_tells_stories(stories: Stories) -> None:
    """Lightly pruned it goes on in words, from token to token, in a batch of any size and length."""
    paths: dict[Any, float] = {f"blocks.{block}.w1": 0.1 for block in range(5)}
    pruner = StructuredPruner(stories.model, stories.tokens[:, :24], "magnitude", 0.0, layer_pruning_ratios=paths)
    pruned: Any = pruner.prune()
    start = torch.tensor([stories.coder.encode("Once upon a time")])
    told = b"".join(stories.coder.pieces[number] for number in generate(pruned, start, 40)[1:]).decode()
    assert told.startswith(" Once upon a time") and len(told.split()) > 12, told
    both = pruned(start.expand(2, -1))
    torch.testing.assert_close(both[0], pruned(start)[0])
