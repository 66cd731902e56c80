"""TVM MetaSchedule on one f32 product, in an interpreter that has `apache-tvm` and `xgboost`:

    python benchmarks/tvm_worker.py M N K --budget 600 --threads 2 --inputs FOLDER

Prints JSON: seconds of a call (least and median of runs after the search), trials, versions, and
the sum of absolute values of the result. It is a script of its own: nothing of KIR is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def product(m: int, n: int, k: int) -> Any:
    """c = a @ b as a TensorIR function."""
    from tvm import te

    a = te.placeholder((m, k), "float32", name="a")
    b = te.placeholder((k, n), "float32", name="b")
    r = te.reduce_axis((0, k), name="r")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    return te.create_prim_func([a, b, c])


def tuned(args: argparse.Namespace, target: Any) -> tuple[Any, int]:
    """The best schedule that MetaSchedule found in the budget, and how many it tried. It takes a
    number of trials, not a time: it is asked for more, on one database, until the time is up."""
    import tvm
    from tvm.s_tir import meta_schedule as ms

    module = tvm.IRModule({"main": product(args.m, args.n, args.k)})
    started, trials = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="tvm-") as folder:
        while time.monotonic() - started < args.budget:
            trials += args.step
            database = ms.tir_integration.tune_tir(
                module, target, folder, max_trials_global=args.step, num_trials_per_iter=args.step,
                cost_model=args.cost_model, num_tuning_cores=args.threads, seed=trials,
            )  # fmt: skip
        schedule = ms.tir_integration.compile_tir(database, module, target)
    return schedule, trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("m", "n", "k"):
        parser.add_argument(name, type=int)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", type=int, default=32, help="trials between looks at the clock")
    parser.add_argument("--cost-model", default="xgb", choices=("xgb", "random"))
    parser.add_argument("--inputs", type=Path, help="folder of a.npy and b.npy")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(args.threads)
    import numpy as np
    import tvm

    cpu = tvm.target.codegen.llvm_get_system_cpu() or "generic"
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": args.threads})
    schedule, trials = tuned(args, target)
    function = tvm.compile(schedule.mod, target)
    rng = np.random.default_rng(0)
    folder = args.inputs
    a = np.load(folder / "a.npy") if folder else rng.random((args.m, args.k), np.float32)
    b = np.load(folder / "b.npy") if folder else rng.random((args.k, args.n), np.float32)
    arrays = [tvm.runtime.tensor(x) for x in (a, b, np.zeros((args.m, args.n), np.float32))]
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        function(*arrays)
        times.append(time.perf_counter() - start)
    wrong = float(np.abs(arrays[2].numpy() - a @ b).max() / np.abs(a @ b).max())
    print(json.dumps({
        "seconds": statistics.median(times), "least": min(times), "trials": trials,
        "tvm": tvm.__version__, "target": str(target), "worst": wrong,
    }))  # fmt: skip
    return 0 if wrong < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
