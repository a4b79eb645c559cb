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
import json, time
import torch
from tiny_llama import Llama, Sizes
from cleanai import StructuredPruner

with torch.device("meta"):
    model = Llama(Sizes(4096, 14336, 32, 32, 8, 128256, 8192), tied=False, theta=500000.0)
found = {"weights": sum(parameter.numel() for parameter in model.parameters())}
for target in ("channels", "params"):
    start = time.perf_counter()
    pruner = StructuredPruner(
        model, torch.arange(16)[None], importance="random", pruning_ratio=0.25, target=target, verify=False
    )
    plan = pruner.make_plan()
    seconds = time.perf_counter() - start
    left = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for cut in plan.cuts:
        if cut.parameter in left:
            left[cut.parameter] = left[cut.parameter] * cut.kept_size // cut.size
    found[target] = {
        "left": sum(left.values()),
        "groups": {group.name: [group.kind, group.size] for group in pruner.groups},
        "kept": {group.name: group.kept_size for group in plan.groups},
        "attributes": sorted({change.attribute for change in plan.attributes}),
        "seconds": seconds,
    }
found["nowhere"] = all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
# Its own peak: ru_maxrss begins with that of the process that started it.
with open("/proc/self/status") as status:
    found["gigabytes"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
print(json.dumps(found))
"""


def test_a_network_of_eight_billion_weights_is_planned_without_them() -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["weights"] == 8_030_261_248 and found["nowhere"]
    expected: dict[str, Any] = {"embed": ["channels", 4096]}
    kept = {"embed": 3072}
    for block in range(32):
        expected |= {f"blocks.{block}.attention.q": ["heads", 8], f"blocks.{block}.w1": ["channels", 14336]}
        kept |= {f"blocks.{block}.attention.q": 6, f"blocks.{block}.w1": 10752}
    for target in ("channels", "params"):
        assert found[target]["groups"] == expected
        assert {"heads", "kv_heads"} <= set(found[target]["attributes"])
        assert found[target]["seconds"] < 60, found[target]["seconds"]
    assert found["channels"]["kept"] == kept
    assert found["params"]["left"] / found["weights"] == pytest.approx(0.75, abs=0.01)
    assert found["gigabytes"] < 4
