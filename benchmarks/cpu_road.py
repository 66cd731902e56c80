"""How near the default schedules of the cpu come to this machine's limits.

Each kernel and its limits alternate in one run (A B C A B C ...), with preallocated outputs. The
limit of elementwise and row kernels is the faster of two copies of as many bytes as must move:
`numpy.copyto`, and KIR's own `y[i, j] = x[i, j]` with stores that bypass the cache. That of the
matrix product is a loop of independent fused multiply-adds. The ratio of medians is reported, and
that of the fastest rounds, which other work on the machine disturbs least; with one thread and with
all cores. Outputs are poisoned before and checked after.

`--cpu-time` counts the processor time of the calling thread and takes one thread only: on a machine
shared with other work it leaves out the time in which neither side ran.

    python -m benchmarks.cpu_road [--size 4096] [--rounds 15] [-o benchmarks/results/cpu_road.json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kir.backend import Executable
from kir.backends.cpu import BACKEND
from kir.backends.cpu.archs import chip_of, machine_of
from kir.backends.cpu.native import Loaded, load_object
from kir.backends.llvm.compile import compile_object, versions
from kir.check import check_kernel
from kir.ir import Kernel
from kir.pipeline import schedule
from kir.plan.cpu import plan
from kir.specialise import specialise
from kir.syntax import load, parse, parse_kernel

ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]


CLOCK = [time.perf_counter]


@dataclass(frozen=True)
class Timing:
    """Seconds: of the middle round and of the fastest."""

    median: float
    best: float


def alternate(rounds: int, *functions: Callable[[], object]) -> list[Timing]:
    """Each function's times, run in turn after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for n in range(rounds + 2):
        for taken, f in zip(times, functions, strict=True):
            start = CLOCK[0]()
            f()
            if n >= 2:
                taken.append(CLOCK[0]() - start)
    return [Timing(statistics.median(t), min(t)) for t in times]


def read_kernel(name: str, size: int) -> Kernel:
    """An example with all its dims constant, as `kir run` compiles it."""
    kernel = parse(load(ROOT / "examples" / f"{name}.kir")).kernels()[name]
    return specialise(kernel, {d.name: size for d in kernel.dims if d.default is None})


COPY = """kernel copy[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  y[i: M, j: N] = x[i, j]
}"""


def executable(kernel: Kernel, threads: int) -> Executable:
    """The default schedule, checked and compiled."""
    scheduled = schedule(kernel, plan(kernel, chip_of("native")))
    check_kernel(scheduled)
    return BACKEND.with_threads(BACKEND.lower(scheduled, "cpu", "native"), threads)


def parallel_copy(threads: int, source: Array, target: Array) -> Callable[[], object]:
    """numpy.copyto of flat arrays, in as many parts as there are threads."""
    if threads == 1:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(threads)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    return lambda: list(pool.map(lambda p: np.copyto(p[1], p[0]), parts))


def references() -> dict[str, Callable[..., Array]]:
    import math

    erf = np.vectorize(math.erf, otypes=[np.float64])

    def normalised(x: Array) -> Array:
        d: Array = x - x.mean(1, keepdims=True)
        scaled: Array = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5)
        return scaled

    def shifted(x: Array) -> Array:
        moved: Array = x - x.max(1, keepdims=True)
        return moved

    return {
        "add": lambda a, b: a + b,
        "gelu": lambda x: 0.5 * x * (1 + erf(x * 0.70710677)),
        "softmax": lambda x: np.exp(shifted(x)) / np.exp(shifted(x)).sum(1, keepdims=True),
        "log_softmax": lambda x: shifted(x) - np.log(np.exp(shifted(x)).sum(1, keepdims=True)),
        "layer_norm": lambda x, weight, bias: normalised(x) * weight + bias,
        "rms_norm": lambda x, weight: x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight,
        "matmul": lambda a, b: a @ b,
    }


def check(name: str, inputs: dict[str, Array], got: Array) -> float:
    """The greatest error, relative to 1, on 16 rows computed in float64."""
    rows = np.linspace(0, got.shape[0] - 1, 16).astype(int)
    per_row = {n for n, a in inputs.items() if a.ndim == 2 and not (name == "matmul" and n == "b")}
    some = [a[rows] if n in per_row else a for n, a in inputs.items()]
    want = references()[name](*(a.astype(np.float64) for a in some))
    error = float(np.max(np.abs(got[rows] - want) / (1 + np.abs(want))))
    if not error < 1e-3:
        raise SystemExit(f"{name} is wrong: {error}")
    return error


def make_inputs(kernel: Kernel, size: int) -> dict[str, Array]:
    rng = np.random.default_rng()
    return {
        p.name: rng.standard_normal([size] * len(p.shape), dtype=np.float32) for p in kernel.inputs
    }


def bandwidth_case(name: str, size: int, threads: int, rounds: int) -> dict[str, Any]:
    kernel = read_kernel(name, size)
    run = executable(kernel, threads)
    inputs = make_inputs(kernel, size)
    outputs = {p.name: np.full([size] * len(p.shape), np.nan, np.float32) for p in kernel.outputs}
    moved = sum(a.nbytes for a in (*inputs.values(), *outputs.values()))
    rows = moved // 8 // size
    stream = executable(specialise(parse_kernel(COPY), {"M": rows, "N": size}), threads)
    source, target = np.ones((rows, size), np.float32), np.zeros((rows, size), np.float32)
    ours, numpy, streamed = alternate(
        rounds,
        lambda: run(inputs, None, outputs),
        parallel_copy(threads, source.ravel(), target.ravel()),
        lambda: stream({"x": source}, None, {"y": target}),
    )
    limit = min(numpy.median, streamed.median)
    return {
        "kernel": name, "threads": threads, "bytes": moved, "seconds": ours.median,
        "numpy_copy_seconds": numpy.median, "stream_copy_seconds": streamed.median,
        "of_copy": limit / ours.median,
        "of_copy_best": min(numpy.best, streamed.best) / ours.best,
        "GB/s": moved / ours.median / 1e9, "numpy copy GB/s": moved / numpy.median / 1e9,
        "stream copy GB/s": moved / streamed.median / 1e9,
        "error": check(name, inputs, next(iter(outputs.values()))),
    }  # fmt: skip


CHAINS = 10


def fma_peak(threads: int) -> tuple[Callable[[], object], float, Loaded]:
    """A loop of independent vector fused multiply-adds, and its floating-point operations."""
    machine = machine_of("native")
    lanes = machine.vector_bits // 32
    ty = f"<{lanes} x float>"
    names = range(CHAINS)
    lines = [f"declare {ty} @llvm.fma.v{lanes}f32({ty}, {ty}, {ty})",
             "define float @peak(i64 %n, float %s) {", "entry:",
             f"  %a = insertelement {ty} poison, float %s, i64 0",
             f"  %v = shufflevector {ty} %a, {ty} poison, <{lanes} x i32> zeroinitializer",
             "  br label %loop", "loop:",
             "  %i = phi i64 [ 0, %entry ], [ %m, %loop ]"]  # fmt: skip
    lines += [f"  %x{k} = phi {ty} [ %v, %entry ], [ %y{k}, %loop ]" for k in names]
    lines += [f"  %y{k} = call {ty} @llvm.fma.v{lanes}f32({ty} %x{k}, {ty} %v, {ty} %v)"
              for k in names]  # fmt: skip
    lines += ["  %m = add i64 %i, 1", "  %c = icmp slt i64 %m, %n",
              "  br i1 %c, label %loop, label %out", "out:"]  # fmt: skip
    total = "%y0"
    for k in range(1, CHAINS):
        lines.append(f"  %t{k} = fadd {ty} {total}, %y{k}")
        total = f"%t{k}"
    lines += [f"  %r = extractelement {ty} {total}, i64 0", "  ret float %r", "}"]
    loaded = load_object(compile_object("\n".join(lines), machine), "peak")
    peak = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_float)(loaded.address)
    steps = 4_000_000
    flops = 2.0 * CHAINS * lanes * steps * threads
    if threads == 1:
        return lambda: peak(steps, 0.5), flops, loaded
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda _: peak(steps, 0.5), range(threads))), flops, loaded


def matmul_case(size: int, threads: int, rounds: int) -> dict[str, Any]:
    kernel = read_kernel("matmul", size)
    run = executable(kernel, threads)
    inputs = make_inputs(kernel, size)
    outputs = {"c": np.full((size, size), np.nan, np.float32)}
    peak, peak_flops, _keep = fma_peak(threads)
    ours, peer = alternate(rounds, lambda: run(inputs, None, outputs), peak)
    rate, limit = 2.0 * size**3 / ours.median, peak_flops / peer.median
    return {
        "kernel": "matmul", "threads": threads, "seconds": ours.median, "GFLOP/s": rate / 1e9,
        "peak GFLOP/s": limit / 1e9, "of_peak": rate / limit,
        "of_peak_best": 2.0 * size**3 / ours.best * peer.best / peak_flops,
        "error": check("matmul", inputs, outputs["c"]),
    }  # fmt: skip


def machine_description() -> dict[str, Any]:
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        name = found[0] if found else name
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=ROOT, check=False).stdout.strip()  # fmt: skip
    return {"cpu": name, "llvm_cpu": machine_of("native").cpu, "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0], "commit": commit, "numpy": np.__version__,
            **versions()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--matmul-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    machine, rows = machine_description(), []
    names = [n for n in references() if not options.only or n in options.only]
    if options.cpu_time:
        CLOCK[0] = time.thread_time
    machine["clock"] = CLOCK[0].__name__
    for threads in [1] if options.cpu_time else sorted({1, os.cpu_count() or 1}):
        for name in names:
            if name == "matmul":
                row = matmul_case(options.matmul_size, threads, options.rounds)
                share, best, limit = row["of_peak"], row["of_peak_best"], "the FMA peak"
                rates = f"{row['GFLOP/s']:.0f} of {row['peak GFLOP/s']:.0f} GFLOP/s"
            else:
                row = bandwidth_case(name, options.size, threads, options.rounds)
                share, best, limit = row["of_copy"], row["of_copy_best"], "the faster copy"
                rates = (f"{row['GB/s']:.1f} GB/s; numpy.copyto {row['numpy copy GB/s']:.1f}, "
                         f"streaming copy {row['stream copy GB/s']:.1f} GB/s")  # fmt: skip
            row["load"] = os.getloadavg()[0]
            print(f"{name:12} {threads} thread(s): {share:6.1%} of {limit} (fastest rounds "
                  f"{best:6.1%}), {rates}; load {row['load']:.1f}", flush=True)  # fmt: skip
            rows.append(row)
    machine["load_after"] = os.getloadavg()[0]
    if options.output:
        options.output.write_text(
            json.dumps({"machine": machine, "results": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
