"""The chips of the target `cpu`, as machines of the LLVM emitter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from kir.backends.cpu import host
from kir.backends.llvm import Machine
from kir.backends.llvm.compile import host as llvm_host
from kir.errors import MissingHardwareError, UnsupportedError
from kir.plan.cpu.chip import Chip

STREAM_BYTES = 1 << 25
"""Outputs bypass the cache where the schedule says `hint(stream = 1)` and a kernel moves that much,
or more: a fourth of it written, at the least."""
MEMORY: dict[str, Any] = {
    "stream_bytes": STREAM_BYTES, "stream_fence": "llvm.x86.sse.sfence", "unaligned": True,
}  # fmt: skip


@dataclass(frozen=True)
class Arch:
    """`cpu` and `features` as LLVM names them; `needed`: features of a host that runs its code."""

    triple: str
    cpu: str
    features: str
    vector_bits: int
    needed: tuple[str, ...]


X86 = "x86_64-unknown-linux-gnu"
ARM = "aarch64-unknown-linux-gnu"
NAMED = {
    "x86-64-v3": Arch(X86, "x86-64-v3", "", 256, ("avx2", "fma", "f16c", "bmi2")),
    "x86-64-v4": Arch(X86, "x86-64-v4", "", 512, ("avx512f", "avx512vl", "avx512bw", "avx512dq")),
    "sapphirerapids": Arch(
        X86,
        "sapphirerapids",
        "",
        512,
        ("avx512f", "avx512bw", "avx512bf16", "avx512vnni", "amx-tile"),
    ),
    "aarch64": Arch(ARM, "generic", "+v8.2a,+fullfp16", 128, ("neon", "fullfp16")),
    "neoverse-v1": Arch(ARM, "neoverse-v1", "", 128, ("neon", "fullfp16", "bf16", "i8mm", "sve")),
}
ARCHS = ("native", *NAMED)


@lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    return frozenset(f[1:] for f in llvm_host()[2].split(",") if f.startswith("+"))


@lru_cache(maxsize=16)
def machine_of(arch: str, parallel: bool = True) -> Machine:
    """The machine of an arch; UnsupportedError for an unknown one. Without `parallel`, `grid`
    is a plain loop (where there is no libgomp to link)."""
    grid: Literal["gomp", "sequential"] = "gomp" if parallel else "sequential"
    if arch in NAMED:
        known = NAMED[arch]
        made = Machine(known.triple, known.cpu, known.features, known.vector_bits,
                       half=True, fma=True, grid=grid)  # fmt: skip
        if known.triple == ARM:
            return made
        return replace(made, **MEMORY, dots=_dots(known.vector_bits, known.needed))
    if arch != "native":
        raise UnsupportedError(f"cpu has no arch `{arch}`", hint="it has: " + ", ".join(ARCHS))
    triple, cpu, features = llvm_host()
    have = host_features()
    if triple.startswith("x86_64"):
        bits = 512 if "avx512f" in have else 256 if "avx2" in have else 128
        made = Machine(triple, cpu, features, bits, half="f16c" in have, fma="fma" in have,
                       grid=grid)  # fmt: skip
        return replace(made, **MEMORY, dots=_dots(bits, have))
    arm = triple.startswith("aarch64")
    return Machine(triple, cpu, features, 128, half=arm, fma=arm, grid=grid)


def _dots(bits: int, have: Collection[str]) -> tuple[str, ...]:
    """Of which types an x86 chip adds groups of products in one instruction."""
    if bits == 256:
        return ("i16",)
    wanted = {"avx512bw": "i16", "avx512vnni": "u8i8", "avx512bf16": "bf16"}
    return tuple(kind for feature, kind in wanted.items() if bits == 512 and feature in have)


@lru_cache(maxsize=16)
def chip_of(arch: str) -> Chip:
    """What the planner must know of an arch: this machine's own caches where it is `native`."""
    bits = machine_of(arch).vector_bits
    registers = 32 if bits == 512 or machine_of(arch).triple.startswith("aarch64") else 16
    if arch != "native":
        return Chip(vector_bits=bits, registers=registers, dots=machine_of(arch).dots)
    here = Chip(vector_bits=bits, registers=registers, cores=host.cores(),
                dots=machine_of(arch).dots)  # fmt: skip
    found: dict[str, Any] = dict(host.caches())
    return replace(here, **found)


def require_host(arch: str) -> None:
    """MissingHardwareError unless this machine can run code made for `arch`."""
    if arch == "native":
        return
    processor, own = NAMED[arch].triple.split("-")[0], llvm_host()[0].split("-")[0]
    lacking = [f for f in NAMED[arch].needed if f not in host_features()]
    if processor != own:
        lacking = [f"an {processor} processor"]
    if lacking:
        raise MissingHardwareError(
            f"this machine cannot run code for {arch}: it lacks {', '.join(lacking)}",
            hint="compile for `native` to run here",
        )
