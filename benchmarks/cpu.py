"""The cpu target against the machine's limits and against PyTorch, on the whole suite.

    python -m benchmarks.cpu --json benchmarks/results/cpu.json --markdown table.md --plot roof.svg
    python -m benchmarks.cpu --quick                     # a third of the cases, in a minute
    python -m benchmarks.cpu --only "matmul f32" softmax --threads 1 --peers eager compile
    python -m benchmarks.cpu --cpu-time --only lstm      # one thread, on a machine that is busy

Every case runs KIR, the peers and the limits in turn (A B C A B C ...) in this process, on the same
inputs, with the same number of threads; docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.report import summary
from benchmarks.suite import CASES, Case, quick
from kir import peers
from kir.backend import Executable
from kir.backends.cpu import BACKEND, limits
from kir.backends.cpu.executable import CpuExecutable
from kir.cli.common import write_output
from kir.dtypes import DType
from kir.errors import UsageError
from kir.pipeline import compile as compile_kernel
from kir.specialise import output_shapes
from kir.timing import interleaved

Array = np.ndarray[Any, Any]
Record = dict[str, Any]
TOLERANCE = {"f32": 1e-4, "bf16": 4e-2, "i32": 0.0, "i64": 0.0}
"""Of the greatest error, over one plus the root mean square of the result in f64."""


def tensor_of(dtype: DType, values: Array) -> torch.Tensor:
    """A tensor in memory of PyTorch's own allocator, aligned to 64 bytes."""
    if dtype.name == "bf16":
        return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(values.astype(dtype.numpy)).clone()


def array_of(tensor: torch.Tensor, dtype: DType) -> Array:
    """The same memory as NumPy's array, as KIR takes it."""
    if dtype.name == "bf16":
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(dtype.numpy)
    made: Array = tensor.numpy()
    return made


def make_inputs(case: Case) -> dict[str, tuple[torch.Tensor, Array]]:
    """Random inputs: each as a tensor and as an array, of the same memory."""
    rng = np.random.default_rng()
    kernel = case.kernel()
    made = {}
    for p in kernel.inputs:
        shape = tuple(int(e.value) for e in p.shape)  # type: ignore[attr-defined]
        if p.name in case.fills:
            values = case.fills[p.name](rng, shape)
        elif p.type.is_float:
            values = rng.standard_normal(shape, np.float32)
        else:
            values = rng.integers(-100, 100, shape)
        tensor = tensor_of(p.type, values)
        made[p.name] = (tensor, array_of(tensor, p.type))
    return made


def make_outputs(case: Case) -> dict[str, Array]:
    """Outputs full of NaN, or of -1 where they are integers."""
    kernel = case.kernel()
    shapes = output_shapes(kernel, {})
    made = {}
    for p in kernel.outputs:
        fill = np.full(shapes[p.name], np.nan if p.type.is_float else -1, np.float32)
        made[p.name] = array_of(tensor_of(p.type, fill), p.type)
    return made


def expected(case: Case, inputs: Sequence[torch.Tensor]) -> list[Array]:
    """The outputs by PyTorch in f64."""
    wide = [t.double() if t.is_floating_point() or case.group == "matmul i8" else t for t in inputs]
    with peers.threads_of(os.cpu_count() or 1):
        found = case.function(*wide)
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


def error_of(got: Sequence[Array], want: Sequence[Array]) -> float:
    """The greatest error over one plus the result's root mean square; infinite for NaN."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        if g.shape != w.shape:
            return math.inf
        scale = 1.0 + math.sqrt(float(np.mean(np.square(w, dtype=np.float64))))
        found = float(np.max(np.abs(g.astype(np.float64) - w), initial=0.0)) / scale
        worst = max(worst, found) if found == found else math.inf
    return worst


def check(case: Case, got: dict[str, Array], want: Sequence[Array], when: str) -> float:
    """The error of KIR's outputs; SystemExit where it is too great."""
    outputs = case.kernel().outputs
    if outputs[0].type.name == "i64":  # an index: one of an equal value is as good
        error = float(np.mean(got[outputs[0].name] != want[0])) if len(want) == 1 else math.inf
        limit = 0.0 if "f32" in case.name else 0.01
    else:
        error = error_of([got[p.name] for p in outputs], want)
        limit = TOLERANCE[outputs[0].type.name]
    if not error <= limit:
        raise SystemExit(f"{case.name}: KIR is wrong {when} by {error}")
    return error


def first_results(case: Case, inputs: dict[str, Array]) -> tuple[CpuExecutable, Record]:
    """The seconds from the file's text to the first result: with an empty cache, then with the
    cache filled."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("KIR_CACHE_DIR")
        os.environ["KIR_CACHE_DIR"] = folder
        try:
            for _ in range(2):
                start = time.perf_counter()
                run = compile_kernel(case.spec(), "cpu", case.dims)
                run(inputs)
                seconds.append(time.perf_counter() - start)
        finally:
            del os.environ["KIR_CACHE_DIR"]
            if before is not None:
                os.environ["KIR_CACHE_DIR"] = before
    assert isinstance(run, CpuExecutable)
    return run, {"compile_s": seconds[0], "cached_s": seconds[1]}


def torch_copy(nbytes: int) -> Callable[[], object]:
    """PyTorch's copy of a tensor that reads and writes `nbytes` in all."""
    half = max(64, nbytes // 2 // 4)
    source, target = torch.ones(half), torch.zeros(half)
    return lambda: target.copy_(source)


@dataclass(frozen=True)
class Options:
    """See `run`."""

    threads: tuple[int, ...]
    names: tuple[str, ...]
    budget: float
    rounds: int | None = None
    cpu_time: bool = False


class Runner:
    """One run of the benchmark: its options, and what the cases share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.clock = time.thread_time if options.cpu_time else time.perf_counter
        self.machine = {
            **machine.description(), "torch": torch.__version__, "clock": self.clock.__name__,
        }  # fmt: skip

    def case(self, case: Case) -> list[Record]:
        made = make_inputs(case)
        arrays = {name: array for name, (_, array) in made.items()}
        tensors = [tensor for tensor, _ in made.values()]
        run, compiled = first_results(case, arrays)
        want = expected(case, tensors)
        found = []
        for threads in self.options.threads:
            ours = BACKEND.with_threads(run.artifact, threads)
            with peers.threads_of(threads):
                record = self.timed(case, threads, ours, arrays, tensors, want)
            record |= compiled
            print(line(record), flush=True)
            found.append(record)
        return found

    def timed(
        self,
        case: Case,
        threads: int,
        ours: Executable,
        arrays: dict[str, Array],
        tensors: Sequence[torch.Tensor],
        want: Sequence[Array],
    ) -> Record:
        work = limits.Work(case.bytes, case.written, case.flops)
        outputs = make_outputs(case)
        ours(arrays, None, outputs)
        error = check(case, outputs, want, "before timing")
        functions: dict[str, Callable[[], object]] = {"ours": lambda: ours(arrays, None, outputs)}
        rivals = {name: peers.make(name, case.function, tensors) for name in self.options.names}
        if "eager" in rivals and case.flops and "bf16" in case.name:
            rivals["eager-f32"] = peers.in_f32(case.function, tensors)
        for name, rival in rivals.items():
            if rival.call is not None:
                functions[name] = rival.call
        functions |= limits.limit_calls(work, threads, {"torch": torch_copy(case.bytes)})
        times = interleaved(functions, self.options.budget, self.options.rounds, self.clock)
        for array in outputs.values():
            array.fill(0)
        ours(arrays, None, outputs)
        check(case, outputs, want, "after timing")
        mine = times["ours"]
        least = limits.least_seconds(work, threads, times)
        return {
            "case": case.name, "group": case.group, "threads": threads, "ours_s": mine.median,
            "peers": {n: times[n].median for n in rivals if n in times},
            "limit_fraction": max(least.values()) / mine.median,
            "limit": max(least, key=lambda n: least[n]),
            "copy_fraction": times["copy"].median / mine.median,
            "ours_q1_s": mine.quartile,
            "peers_q1": {n: times[n].quartile for n in rivals if n in times},
            "copy_q1_s": times["copy"].quartile,
            "peers_compile_s": {n: r.first for n, r in rivals.items() if r.first},
            "peers_missing": {n: r.why for n, r in rivals.items() if r.call is None},
            "rounds": mine.rounds, "bytes": case.bytes, "flops": case.flops, "cold": case.cold,
            "error": error, "machine": self.machine,
        }  # fmt: skip


def line(record: Record) -> str:
    """One record for the terminal."""
    ours = record["ours_s"]
    ratios = "  ".join(f"{n} {s / ours:5.2f}x" for n, s in record["peers"].items())
    low = "  ".join(f"{s / record['ours_q1_s']:.2f}" for s in record["peers_q1"].values())
    gone = "  ".join(f"no {n}" for n in record["peers_missing"])
    return (
        f"{record['case']:42} {record['threads']}t {ours * 1e6:10.1f} us  {ratios} (q1 {low}) "
        f"{gone}  {record['limit_fraction']:4.0%} of {record['limit']}, "
        f"{record['copy_fraction']:4.0%} of copy; first result {record['compile_s']:.2f} s, "
        f"cached {record['cached_s']:.3f}"
    )


def choose(only: Sequence[str], third: bool) -> list[Case]:
    """The cases asked for; UsageError where no name has any of the strings."""
    found = [c for c in (quick() if third else CASES) if not only or any(s in c.name for s in only)]
    if not found:
        raise UsageError("no case has such a name", hint="python -m benchmarks.cpu --list")
    return found


def keep_memory() -> None:
    """glibc keeps freed memory: no side pays for first touches of fresh pages."""
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def run(
    threads: Sequence[int] = (1, 2),
    names: Sequence[str] = ("eager",),
    only: Sequence[str] = (),
    quick: bool = False,
    budget: float | None = None,
    rounds: int | None = None,
    cpu_time: bool = False,
    json_file: str | Path | None = None,
) -> list[Record]:
    """Time the cases and print each as it comes, then the means and the floors.

    `names` are peers of `kir.peers.PEERS`; `budget` is in seconds for each case and thread count
    (0.5, or 0.1 of the quick third).
    """
    cases = choose(only, quick)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        if {"compile", "max-autotune"} & set(names):
            peers.prepare(folder)
        budget = budget or (0.1 if quick else 0.5)
        runner = Runner(Options(tuple(threads), tuple(names), budget, rounds, cpu_time))
        compile_kernel(CASES[0].spec(), "cpu", CASES[0].dims)  # LLVM's own start
        records = []
        for case in cases:
            records += runner.case(case)
            if json_file is not None and str(json_file) != "-":
                write(json_file, records)
    print(summary(records))
    if str(json_file) == "-":
        print(json.dumps(records, indent=1))
    return records


def write(path: str | Path, records: Sequence[Record]) -> None:
    write_output(Path(path), json.dumps(records, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="SUBSTR", default=[],
                        help="cases with any of these in the name")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a fixed third, in a minute")
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, default=["eager"])
    parser.add_argument("--budget", type=float, help="seconds per case and thread count")
    parser.add_argument("--rounds", type=int, help="rounds of every case, instead of a budget")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, one thread")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = [1]
    options.threads = options.threads or sorted({1, min(2, os.cpu_count() or 1)})
    return options


def main() -> None:
    options = arguments()
    if options.list:
        print("\n".join(c.name for c in choose(options.only, options.quick)))
        return
    run(options.threads, options.peers, options.only, options.quick, options.budget,
        options.rounds, options.cpu_time, options.json)  # fmt: skip


if __name__ == "__main__":
    main()
