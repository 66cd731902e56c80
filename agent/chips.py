"""GPUs by their vendors' numbers, for a fitness that is modelled where no such chip is at hand.

Sources, by chip:
- sm_80: NVIDIA A100 Tensor Core GPU Architecture (2020), tables 4 and 5; L2 read 5120 bytes/clock.
- sm_90: NVIDIA H100 Tensor Core GPU Architecture (2022), table 2 (SXM5).
- sm_100: NVIDIA DGX B200 datasheet (2024), an eighth of it for one GPU.
- gfx942: AMD CDNA 3 White Paper (2023) and the Instinct MI300X datasheet.
- gfx950: AMD CDNA 4 White Paper (2025) and the Instinct MI355X datasheet.
- gfx1100: AMD Radeon RX 7900 XTX product page; RDNA 3 Instruction Set Architecture (2023).
Registers, warps, programs and shared memory of a core: CUDA C++ Programming Guide, technical
specifications by compute capability; AMD's ISA guides and the Composable Kernel / ROCm
documentation, hardware specifications.

No vendor states latencies, nor what the L2 of later chips delivers. Latencies are of the order that
microbenchmarks find (Luo et al., Benchmarking and Dissecting the NVIDIA Hopper GPU Architecture via
Microbenchmarking, 2024: 200 to 270 cycles to L2, 470 to 560 to memory; AMD's caches answer later).
Where L2's rate is not stated it is the A100's bytes per clock, and on AMD what the Infinity Cache
is stated to deliver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kir.errors import UnsupportedError


@dataclass(frozen=True)
class Gpu:
    """One chip. `cores` are SMs or CUs, `clock` in Hz, `fma` multiply-adds of f32 that a core
    starts in a cycle (`doubles` of f64), `matrix` operations per second of the whole chip by the
    operands' bits, `registers` of 32 bits of a core, `file` the most that a thread may have (of
    AMD: of which a wave's share is taken), `unit` by which registers of a thread are given out,
    `shared` bytes of a core and `ports` bytes of it per cycle, `l2` bytes; rates in bytes/s,
    latencies in cycles, `launch` in seconds."""

    cores: int
    clock: float
    warp: int
    fma: int
    doubles: float
    matrix: Mapping[int, float]
    registers: int
    unit: int
    warps: int
    programs: int
    shared: int
    l2: int
    l2_rate: float
    rate: float
    ports: int = 128
    l2_latency: int = 250
    latency: int = 550
    launch: float = 3e-6


GPUS: Mapping[str, Gpu] = {
    "sm_80": Gpu(
        108, 1.41e9, 32, 64, 32, {8: 624e12, 16: 312e12, 32: 156e12, 64: 19.5e12},
        65536, 8, 64, 32, 164 << 10, 40 << 20, 5120 * 1.41e9, 1.555e12,
    ),
    "sm_90": Gpu(
        132, 1.83e9, 32, 128, 64, {8: 1979e12, 16: 989e12, 32: 495e12, 64: 67e12},
        65536, 8, 64, 32, 228 << 10, 50 << 20, 5120 * 1.83e9, 3.35e12,
    ),
    "sm_100": Gpu(
        148, 1.85e9, 32, 128, 64, {8: 4500e12, 16: 2250e12, 32: 1125e12, 64: 37e12},
        65536, 8, 64, 32, 228 << 10, 126 << 20, 5120 * 1.85e9, 8.0e12,
    ),
    "gfx942": Gpu(
        304, 2.1e9, 64, 128, 64, {8: 2615e12, 16: 1307e12, 32: 163e12, 64: 163e12},
        4 * 512 * 64, 8, 32, 16, 64 << 10, 256 << 20, 17.2e12, 5.3e12,
        l2_latency=500, latency=1400,
    ),
    "gfx950": Gpu(
        256, 2.4e9, 64, 128, 64, {8: 5033e12, 16: 2517e12, 32: 157e12, 64: 79e12},
        4 * 512 * 64, 8, 32, 16, 160 << 10, 256 << 20, 17.2e12, 8.0e12,
        l2_latency=500, latency=1400,
    ),
    "gfx1100": Gpu(
        96, 2.5e9, 32, 128, 2, {8: 123e12, 16: 123e12},
        2 * 1536 * 32, 24, 32, 16, 64 << 10, 96 << 20, 5.3e12, 0.96e12,
        l2_latency=400, latency=900,
    ),
}  # fmt: skip


def gpu(arch: str) -> Gpu:
    """UnsupportedError where the model knows no such chip."""
    if arch not in GPUS:
        raise UnsupportedError(
            f"there is no model of `{arch}`", hint="there is one of: " + ", ".join(GPUS)
        )
    return GPUS[arch]
