"""This machine's limits, as functions to be timed beside what they limit: copying, reading,
multiplying and adding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from kir.backend import Executable
from kir.backends.cpu import BACKEND
from kir.backends.cpu.archs import machine_of
from kir.backends.cpu.call import aligned
from kir.backends.cpu.native import load_object
from kir.backends.llvm.compile import compile_object
from kir.check import check_kernel
from kir.specialise import specialise
from kir.syntax import parse_kernel
from kir.timing import Timing, interleaved

Call = Callable[[], object]
Limits = dict[str, Call]
Maker = Callable[[], Call]

COPY = """kernel copy[P, N](x: f32[P, N, 64]) -> (y: f32[P, N, 64]) {
  grid p: P {
    for j: N hint(stream = 1) {
      tile l: 64 {
        y[p, j, l] = x[p, j, l]
      }
    }
  }
}"""
READ = """kernel read[P, N](x: f32[P, STREAMS, N, LANES]) -> (y: f32[P, STREAMS, LANES]) {
  grid p: P {
    buffer acc: f32[STREAMS, LANES] in reg = 0.0
    for j: N {
      unroll s: STREAMS {
        tile l: LANES {
          acc[s, l] += x[p, s, j, l]
        }
      }
    }
    unroll s: STREAMS {
      tile l: LANES {
        y[p, s, l] = acc[s, l]
      }
    }
  }
}"""
"""With STREAMS x LANES = 128 sums: enough that adding never waits for itself."""


@lru_cache(maxsize=64)
def _executable(text: str, parts: int, length: int, threads: int) -> Executable:
    kernel = specialise(parse_kernel(text), {"P": parts, "N": length})
    check_kernel(kernel)
    return BACKEND.with_threads(BACKEND.lower(kernel, "cpu", "native"), threads)


def _ones(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    made = aligned(shape, np.dtype(np.float32))
    made.fill(1.0)
    return made


def stream_copy(nbytes: int, threads: int) -> Call:
    """KIR's copy that reads and writes `nbytes` in all, past the cache where it is large."""
    length = max(1, nbytes // 2 // threads // 256)
    run = _executable(COPY, threads, length, threads)
    source, target = (_ones((threads, length, 64)) for _ in range(2))
    arrays, results = {"x": source}, {"y": target}
    return lambda: run(arrays, None, results)


def read(nbytes: int, threads: int, streams: int = 1) -> Call:
    """A sum of `nbytes` of f32, 128 partial sums on each thread: what reading alone takes.

    Each thread reads from `streams` places at once (1, 2 or 4): which is the fastest depends on
    the cache that the data is in, and on what fetches ahead."""
    lanes = 128 // streams
    length = max(1, nbytes // threads // 512)
    text = READ.replace("STREAMS", str(streams)).replace("LANES", str(lanes))
    run = _executable(text, threads, length, threads)
    arrays = {"x": _ones((threads, streams, length, lanes))}
    results = {"y": np.zeros((threads, streams, lanes), np.float32)}
    return lambda: run(arrays, None, results)


CHAINS = 10
STEPS = 1_000_000


@lru_cache(maxsize=4)
def fma_peak(threads: int) -> tuple[Call, float]:
    """A loop of ten independent chains of f32 vector multiply-adds on each thread, and its
    floating-point operations."""
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
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_float)(loaded.address)
    flops = 2.0 * CHAINS * lanes * STEPS * threads
    pool = ThreadPoolExecutor(threads)

    def run(loaded: object = loaded) -> object:  # keeps the code alive
        if threads == 1:
            return function(STEPS, 0.5)
        return list(pool.map(lambda _: function(STEPS, 0.5), range(threads)))

    return run, flops


@dataclass(frozen=True)
class Work:
    """What a kernel must do at the least: `bytes` moved, `written` of them; `flops` of products
    (0 where memory alone limits it)."""

    bytes: int
    written: int
    flops: float


def limit_calls(work: Work, threads: int, copies: Mapping[str, Maker] | None = None) -> Limits:
    """The functions to be timed beside a kernel: `copy`, the fastest copy of as many bytes (of
    KIR's and the given ones); `read`, the fastest loop that reads them, where little is written;
    `peak`, a loop of multiply-adds, where there are products."""
    copying = {"kir": lambda: stream_copy(work.bytes, threads), **(copies or {})}
    found = {"copy": _fastest(("copy", work.bytes, threads), copying)}
    if work.written * 4 < work.bytes:
        reading = {str(n): partial(read, work.bytes, threads, n) for n in (1, 2, 4)}
        found["read"] = _fastest(("read", work.bytes, threads), reading)
    if work.flops:
        found["peak"] = fma_peak(threads)[0]
    return found


_chosen: dict[tuple[str, int, int], str] = {}


def _fastest(key: tuple[str, int, int], makers: Mapping[str, Maker]) -> Call:
    """The fastest of some functions, tried once for each key."""
    if key not in _chosen:
        made = {name: make() for name, make in makers.items()}
        trial = interleaved(made, 0.02)
        _chosen[key] = min(made, key=lambda n: trial[n].quartile)
        return made[_chosen[key]]
    return makers[_chosen[key]]()


def least_seconds(work: Work, threads: int, times: Mapping[str, Timing]) -> dict[str, float]:
    """The least seconds that each limit allows, by the times of `limit_calls`."""
    moving = "read" if "read" in times else "copy"
    found = {moving: times[moving].median}
    if work.flops:
        found["peak"] = work.flops / fma_peak(threads)[1] * times["peak"].median
    return found
