"""What a call costs before any work is done: kernels on tiny tensors, beside torch and NumPy ops.

Calls alternate in rounds (ours, then each peer), many calls to a round; the lower quartile of the
rounds is compared, since other work on the machine only ever adds. `start` is the time from a
kernel's file to its first result in a new process that has imported kir and NumPy: `cold` with an
empty cache, `warm` with what the cold run left.

    python -m benchmarks.overhead [-o benchmarks/results/overhead.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import kir

ROOT = Path(__file__).resolve().parent.parent
CALLS, ROUNDS = 2000, 41
ADD = "kernel add[N](x: f32[N], y: f32[N]) -> (z: f32[N]) { z[i: N] = x[i] + y[i] }"
START = """
import sys, time
import numpy as np, ml_dtypes, kir
wall, cpu = time.perf_counter(), time.process_time()
y = kir.compile(sys.argv[1])(np.ones((64, 1000), np.float32))
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def seconds_per_call(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The lower quartile over rounds in which all functions take turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            times[name].append((time.perf_counter() - start) / CALLS)
    return {name: statistics.quantiles(t, n=4)[0] for name, t in times.items()}


def calls() -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(1)
    x, y, z = (np.ones(16, np.float32) for _ in range(3))
    tx, ty, tz = map(torch.from_numpy, (x, y, z))
    add = kir.compile(ADD)
    mlp = kir.compile(ROOT / "examples" / "mlp.kir")
    b, i, h, o = 1, 8, 8, 8
    shapes = ((b, i), (h, i), (h,), (o, h), (o,))
    arrays = [np.ones(s, np.float32) for s in shapes]
    tensors = [torch.from_numpy(a) for a in arrays]
    for _ in range(3):
        add(x, y)
        mlp(*arrays)

    def torch_mlp() -> Any:
        t, w1, b1, w2, b2 = tensors
        linear, gelu = torch.nn.functional.linear, torch.nn.functional.gelu
        return linear(gelu(linear(t, w1, b1)), w2, b2)

    with torch.no_grad():
        return {
            "add of 16 f32": seconds_per_call(
                {
                    "kir": lambda: add(x, y),
                    "torch": lambda: torch.add(tx, ty),
                    "numpy": lambda: np.add(x, y),
                }
            ),
            "add of 16 f32, out=": seconds_per_call(
                {
                    "kir": lambda: add(x, y, out=z),
                    "torch": lambda: torch.add(tx, ty, out=tz),
                    "numpy": lambda: np.add(x, y, out=z),
                }
            ),
            "mlp 1x8x8x8, a graph of two kernels": seconds_per_call(
                {"kir": lambda: mlp(*arrays), "torch": torch_mlp}
            ),
        }


def start() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "KIR_CACHE_DIR": folder}
        for name in ("cold", "warm", "warm", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", START, str(ROOT / "examples" / "softmax.kir")],
                cwd=ROOT, env=env, capture_output=True, text=True, check=True,
            )  # fmt: skip
            wall, cpu = map(float, done.stdout.split())
            best = found.get(name, {"wall_s": wall, "cpu_s": cpu})
            found[name] = {"wall_s": min(wall, best["wall_s"]), "cpu_s": min(cpu, best["cpu_s"])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT,
                            capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    record: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "numpy": np.__version__, "commit": commit,
        "load": os.getloadavg()[0], "seconds_per_call": calls(), "start": start(),
    }  # fmt: skip
    for case, times in record["seconds_per_call"].items():
        shown = ", ".join(f"{n} {t * 1e6:.2f} us" for n, t in times.items())
        print(f"{case}: {shown}")
    for name, t in record["start"].items():
        print(f"softmax.kir to the first result, {name}: {t['wall_s'] * 1e3:.1f} ms "
              f"({t['cpu_s'] * 1e3:.1f} ms of processor time)")  # fmt: skip
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
