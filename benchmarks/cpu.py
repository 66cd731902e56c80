"""The cpu target against the machine's limits and against PyTorch and JAX, on the whole suite.

    python -m benchmarks.cpu --json benchmarks/results/cpu.json --markdown table.md --plot roof.svg
    python -m benchmarks.cpu --quick                     # a third of the cases, in a minute
    python -m benchmarks.cpu --only "matmul f32" softmax --threads 1 --peers eager compile
    python -m benchmarks.cpu --cpu-time --only lstm      # one thread, on a machine that is busy

Every case runs KIR, the peers and the limits in turn (A B C A B C ...), on the same inputs, with
the same number of threads; docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kir
from benchmarks import machine, report
from benchmarks.jax_peer import Jax
from benchmarks.report import summary
from benchmarks.roofline import roofline
from benchmarks.suite import CASES, Case, quick
from kir import peers
from kir.backends.cpu import limits
from kir.backends.cpu.archs import host_features
from kir.cli.common import write_output
from kir.dtypes import DType
from kir.errors import KirError, UsageError, VerificationError
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
    """The error of KIR's outputs; VerificationError where it is too great."""
    outputs = case.kernel().outputs
    if outputs[0].type.name == "i64":  # an index: one of an equal value is as good
        error = float(np.mean(got[outputs[0].name] != want[0])) if len(want) == 1 else math.inf
        limit = 0.0 if "f32" in case.name else 0.01
    else:
        error = error_of([got[p.name] for p in outputs], want)
        limit = TOLERANCE[outputs[0].type.name]
    if not error <= limit:
        raise VerificationError(f"{case.name}: KIR is wrong {when} by {error}")
    return error


def function_of(case: Case, threads: int = 0) -> kir.Function:
    """The kernel as a user gets it: from the file, with the dims that no shape gives."""
    return kir.compile(
        case.path, case.kernel_name or None, dims=parameters_of(case), threads=threads
    )


@functools.cache
def parameters_of(case: Case) -> dict[str, int]:
    """The dims of a case that no shape gives; kept, since finding them parses the file."""
    params = {d.name for d in case.spec().dims if d.default is not None}
    return {n: v for n, v in case.dims.items() if n in params}


@contextlib.contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """KIR's cache in this folder."""
    before = os.environ.get("KIR_CACHE_DIR")
    os.environ["KIR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["KIR_CACHE_DIR"]
        if before is not None:
            os.environ["KIR_CACHE_DIR"] = before


def first_results(
    case: Case, arrays: Sequence[Array], clock: Callable[[], float] = time.perf_counter
) -> Record:
    """The seconds from the file to the first result, less those of a second run: with an empty
    cache, then with what that left in it."""
    seconds = []
    parameters_of(case)  # before the clock runs
    with tempfile.TemporaryDirectory() as folder, cache_in(folder):
        for _ in range(2):
            start = clock()
            function = function_of(case)
            function(*arrays)
            middle = clock()
            function(*arrays)
            end = clock()
            seconds.append(max(0.0, (middle - start) - (end - middle)))
            del function
    return {"compile_s": seconds[0], "cached_s": seconds[1]}


def by_f32_peak(case: Case) -> bool:
    """Whether the peak of f32 multiply-adds limits a case: not products of narrow types for which
    the CPU has instructions of their own, that do more at once."""
    if "i8" in case.group:
        return False
    return "bf16" not in case.name or not host_features() & {"avx512bf16", "amx-bf16", "bf16"}


def torch_copy(nbytes: int) -> Callable[[], object]:
    """PyTorch's copy of a tensor that reads and writes `nbytes` in all."""
    half = max(64, nbytes // 2 // 4)
    source, target = torch.ones(half), torch.zeros(half)
    return lambda: target.copy_(source)


@dataclass(frozen=True)
class Options:
    """What to run and how. `names` are peers of `kir.peers.PEERS`; `budget` is in seconds for each
    case and thread count (0.5, or 0.1 of the quick third) unless `rounds` are given."""

    threads: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ("eager",)
    only: tuple[str, ...] = ()
    quick: bool = False
    budget: float | None = None
    rounds: int | None = None
    cpu_time: bool = False
    json_file: str | None = None
    update: bool = False
    jax_python: str = sys.executable
    inductor_cache: str | None = None

    @property
    def seconds(self) -> float:
        return self.budget or (0.1 if self.quick else 0.5)


class Runner:
    """One run of the benchmark: its options, and what the cases share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.clock = time.thread_time if options.cpu_time else time.perf_counter
        self.machine = {
            **machine.description(), "torch": torch.__version__, "clock": self.clock.__name__,
        }  # fmt: skip
        self.jax = Jax(options.jax_python, options.cpu_time)
        self.no_jax = self.jax.missing() if "jax" in options.names else ""

    def case(self, case: Case) -> list[Record]:
        made = make_inputs(case)
        arrays = {name: array for name, (_, array) in made.items()}
        tensors = [tensor for tensor, _ in made.values()]
        compiled = first_results(case, list(arrays.values()), self.clock)
        want = expected(case, tensors)
        found = []
        for threads in self.options.threads:
            with peers.threads_of(threads):
                rivals = self.rivals(case, threads, arrays, tensors, want)
                record = self.timed(case, threads, rivals, arrays, want)
            record |= compiled
            print(line(record), flush=True)
            found.append(record)
        return found

    def rivals(
        self,
        case: Case,
        threads: int,
        arrays: dict[str, Array],
        tensors: Sequence[torch.Tensor],
        want: Sequence[Array],
    ) -> dict[str, peers.Peer]:
        """The peers, compiled. Max-autotune differs from the default for matrix products alone."""
        found = {}
        for name in self.options.names:
            if name == "jax":
                missing = peers.Peer(None, why=self.no_jax)
                found[name] = (
                    missing if self.no_jax else self.jax.peer(case, threads, arrays, list(want))
                )
            elif name != "max-autotune" or case.group.startswith("matmul"):
                found[name] = peers.make(name, case.function, tensors)
        if "eager" in found and case.flops and "bf16" in case.name:
            found["eager-f32"] = peers.in_f32(case.function, tensors)
        return found

    def timed(
        self,
        case: Case,
        threads: int,
        rivals: dict[str, peers.Peer],
        arrays: dict[str, Array],
        want: Sequence[Array],
    ) -> Record:
        work = limits.Work(case.bytes, case.written, case.flops if by_f32_peak(case) else 0.0)
        outputs = make_outputs(case)
        function, inputs, out = function_of(case, threads), [*arrays.values()], [*outputs.values()]
        function(*inputs, out=out)
        error = check(case, outputs, want, "before timing")
        functions: dict[str, Callable[[], object]] = {"ours": lambda: function(*inputs, out=out)}
        functions |= {n: r.call for n, r in rivals.items() if r.call is not None}
        functions |= limits.limit_calls(work, threads, {"torch": partial(torch_copy, case.bytes)})
        options = self.options
        times = interleaved(functions, options.seconds, options.rounds, self.clock)
        for array in out:
            array.fill(0)
        function(*inputs, out=out)
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
            "peak_flops": work.flops and limits.fma_peak(threads)[1] / times["peak"].median,
            "copy_bytes_per_s": case.bytes / times["copy"].median,
            "peers_compile_s": {n: r.first for n, r in rivals.items() if r.first},
            "peers_missing": {n: r.why for n, r in rivals.items() if r.call is None},
            "rounds": mine.rounds, "bytes": case.bytes, "flops": case.flops,
            "operations": case.operations, "cold": case.cold, "error": error,
            "machine": self.machine,
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


def run(options: Options) -> list[Record]:
    """Time the cases and print each as it comes, then the means and the floors. The JSON file is
    written after each case; with `update` it keeps what it holds of other cases."""
    cases = choose(options.only, options.quick)
    kept = read(options.json_file) if options.update and options.json_file else []
    keep_memory()
    records: list[Record] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, cache_in(f"{folder}/kir"):
        if {"compile", "max-autotune"} & set(options.names):
            peers.prepare(options.inductor_cache or f"{folder}/inductor")
        runner = Runner(options)
        function_of(CASES[0])(*(a for _, a in make_inputs(CASES[0]).values()))  # LLVM's own start
        try:
            for case in cases:
                try:
                    records += runner.case(case)
                except KirError as error:  # the others are still worth their time
                    print(f"{case.name}: {error}", flush=True)
                    failed.append(case.name)
                if options.json_file not in (None, "-"):
                    write(str(options.json_file), merged(kept, records))
        finally:
            runner.jax.close()
    if records:
        print(summary(records))
    if failed:
        raise VerificationError(f"{len(failed)} cases failed: {', '.join(failed)}")
    if options.json_file == "-":
        print(json.dumps(records, indent=1))
    return merged(kept, records)


def merged(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """All records, the new ones in the place of old ones of the same case, in the suite's order."""
    order = {c.name: k for k, c in enumerate(CASES)}
    found = {(r["case"], r["threads"]): r for r in (*old, *new) if r["case"] in order}
    return sorted(found.values(), key=lambda r: (order[r["case"]], r["threads"]))


def read(path: str | Path) -> list[Record]:
    """The records of a file; none where there is no such file yet."""
    found: list[Record] = json.loads(Path(path).read_text()) if Path(path).exists() else []
    return found


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
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--update", action="store_true",
                        help="keep what the JSON file holds of other cases")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table, or `-`")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the roofline, as SVG")
    parser.add_argument("--show", action="store_true", help="run nothing: show the JSON file")
    parser.add_argument("--jax-python", default=sys.executable, help="an interpreter with JAX")
    parser.add_argument(
        "--inductor-cache",
        metavar="FOLDER",
        help="keep torch.compile's code: compile times mean nothing then",
    )
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = [1]
    options.threads = options.threads or sorted({1, min(2, os.cpu_count() or 1)})
    return options


def main() -> None:
    given = arguments()
    if given.list:
        print("\n".join(c.name for c in choose(given.only, given.quick)))
        return
    if given.show:
        records = read(given.json)
        print(summary(records))
    else:
        records = run(Options(
            tuple(given.threads), tuple(given.peers), tuple(given.only), given.quick, given.budget,
            given.rounds, given.cpu_time, given.json, given.update, given.jax_python,
            given.inductor_cache,
        ))  # fmt: skip
    if given.markdown:
        text = report.markdown(records)
        print(text) if str(given.markdown) == "-" else write_output(given.markdown, text)
    if given.plot:
        write_output(given.plot, roofline(records))


if __name__ == "__main__":
    main()
