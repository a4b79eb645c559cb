"""Eight billion weights that are nowhere: a network of Llama 3's size is planned in a minute and a few gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, resource, sys, time
import torch
from tiny_llama import Llama, Sizes
from cleanai import StructuredPruner

with torch.device("meta"):
    model = Llama(Sizes(4096, 14336, 32, 32, 8, 128256, 8192), tied=False, theta=500000.0)
start = time.perf_counter()
pruner = StructuredPruner(
    model, torch.arange(16)[None], importance="random", pruning_ratio=0.25, target=sys.argv[1], verify=False
)
analysed = time.perf_counter()
plan = pruner.make_plan()
planned = time.perf_counter()
left = {name: parameter.numel() for name, parameter in model.named_parameters()}
for cut in plan.cuts:
    if cut.parameter in left:
        left[cut.parameter] = left[cut.parameter] * cut.kept_size // cut.size
print(json.dumps({
    "weights": sum(parameter.numel() for parameter in model.parameters()),
    "left": sum(left.values()),
    "nowhere": all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())),
    "groups": {group.name: [group.kind, group.size] for group in pruner.groups},
    "kept": {group.name: group.kept_size for group in plan.groups},
    "attributes": sorted({change.attribute for change in plan.attributes}),
    "analysis": analysed - start,
    "plan": planned - analysed,
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.parametrize("target", ["channels", "params"])
def test_a_network_of_eight_billion_weights_is_planned_without_them(target: str) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, target],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    cost = f"{found['analysis']:.1f} s, plan {found['plan']:.1f} s, {found['gigabytes']:.2f} GB"
    assert found["weights"] == 8_030_261_248 and found["nowhere"]
    expected = {"embed": ["channels", 4096]}
    for block in range(32):
        expected[f"blocks.{block}.attention.q"] = ["heads", 8]
        expected[f"blocks.{block}.w1"] = ["channels", 14336]
    assert found["groups"] == expected
    assert {"heads", "kv_heads"} <= set(found["attributes"])
    if target == "channels":
        kept = {"embed": 3072, "heads": 6, "channels": 10752}
        assert all(found["kept"][name] == kept.get(name, kept[kind]) for name, (kind, _) in expected.items())
    else:
        assert found["left"] / found["weights"] == pytest.approx(0.75, abs=0.01)
    assert found["analysis"] + found["plan"] < 60 and found["gigabytes"] < 4, cost
