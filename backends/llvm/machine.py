"""What the emitter must know about a machine, as data: nothing about x86 is built in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Machine:
    """Facts of one LLVM target.

    `vector_bits` is the width of its vector registers. `half` says that conversions between
    `half` and `float` are instructions; else integer code stands in. `fma` says the same of fused
    multiply-add. `libm` says that C's math library may be linked; else functions with no inline
    code are refused.

    `grid` is how a top-level `grid` nest is lowered: `gomp` spreads it over threads with
    libgomp's `GOMP_parallel`; `sequential` is a plain loop; `range` makes a function of each nest,
    exported as `kir_<kernel>.grid<n>`, that takes the range of iterations to run, so that a
    run-time system can hand ranges to its processing elements.

    `local` is where scratch comes from: `heap` (`aligned_alloc`, one block per thread) or `arena`
    (`kir_local_alloc(bytes)` and `kir_local_free(pointer)` of the run-time system). Blocks up to
    `stack_bytes` of constant size stand on the stack in both.

    Stores under `hint(stream = 1)` bypass the cache where a kernel's inputs and outputs fill
    `stream_bytes` (0: never), outputs a fourth of it, and are aligned; `stream_fence`, an
    intrinsic's name, orders them at the end.

    `unaligned` says that vectors of 32-bit words are loaded from any address as fast, or nearly.

    `dots` are the types of which it adds groups of products in one instruction (see `dots`).
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int
    half: bool
    fma: bool
    libm: bool = True
    grid: Literal["gomp", "sequential", "range"] = "sequential"
    local: Literal["heap", "arena"] = "heap"
    stack_bytes: int = 1 << 16
    stream_bytes: int = 0
    stream_fence: str = ""
    unaligned: bool = False
    dots: tuple[str, ...] = ()
