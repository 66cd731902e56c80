"""The analytic model of a GPU on scheduled IR, before anything is compiled: what `rules` ranks
proposals by. It has the terms of `modelled.py` and cruder counts: layouts, shared memory and what
the compiler leaves out are not known yet. The learned model mends it as a search goes on.
"""

from __future__ import annotations

import math
from functools import partial

from kir.agent.chips import GPUS, Gpu
from kir.agent.features import Analysis, Around, Walker, analyse, operations, trips_of
from kir.ir import Cast, Expr, Kernel, Op, Read, Store, walk

COMPONENTS = ("matrix", "vector", "latency", "memory", "launch", "spills")
WORDS = 200
"""Registers of a thread that tiles may take before they spill."""


def analyser(target: str, arch: str) -> partial[Analysis]:
    """The analysis for a chip: of a GPU where the model knows it, else of a CPU core."""
    found = GPUS.get(arch) if target in ("nvidia", "amd") else None
    return partial(analyse, walker=partial(GpuWalker, gpu=found)) if found else partial(analyse)


class GpuWalker(Walker):
    """Cycles of a chip whose `cores` share the programs of each launch."""

    def __init__(self, kernel: Kernel, gpu: Gpu) -> None:
        super().__init__(kernel)
        self.gpu = gpu
        self.cycles = dict.fromkeys(COMPONENTS, 0.0)
        self.counts |= {"programs": 0.0, "moved": 0.0, "products": 0.0}

    def _store(self, s: Store, around: tuple[Around, ...]) -> None:
        gpu = self.gpu
        lanes = [a for a in around if a.kind == "tile"]
        programs = max(1, math.prod(a.trips for a in around if a.kind == "grid"))
        times = math.prod(a.trips for a in around if a.kind not in ("tile", "grid"))
        warps = self.counts["num_warps"] or 4
        threads = warps * gpu.warp
        width = math.prod(a.trips for a in lanes)
        busiest = math.ceil(programs / gpu.cores)
        reads = [n for n in walk(s.value) if isinstance(n, Read)]
        accesses = [a for a in (self._access(r.tensor, r.indices) for r in reads) if a]
        target = self._access(s.target, s.indices)
        moved = 0.0
        for a in [*accesses, *([target] if target else [])]:
            if a.space != "global":
                continue
            touched = math.prod(x.trips for x in lanes if a.strides.get(x.name))
            near = any(abs(a.strides.get(x.name, 0.0)) == 1 and x.trips * a.size >= 32
                       for x in lanes)  # fmt: skip
            loops = [x for x in around if x.kind not in ("tile", "grid")]
            while loops and not a.strides.get(loops[-1].name):
                loops.pop()
            moved += touched * (a.size if near else 32) * trips_of(loops) * programs
        busy = {
            "memory": moved / gpu.l2_rate * gpu.clock,
            "latency": busiest * times * gpu.latency / max(1.0, self._resident(threads)),
        }
        if len(lanes) >= 3 and s.op == "add" and _product(s.value):
            rate = gpu.matrix.get(8 * max(a.size for a in accesses), 0.0) if accesses else 0.0
            rate = rate or 2 * gpu.fma * gpu.cores * gpu.clock
            busy["matrix"] = 2 * width * times * busiest * gpu.cores / rate * gpu.clock
            stages = self.counts["num_stages"] or 1
            busy["latency"] /= stages
            self.counts["products"] += 2.0 * width * times * programs
        else:
            each = max(width, threads) * max(operations(s.value), 1.0)
            busy["vector"] = busiest * times * each / gpu.fma
        worst = max(busy, key=lambda name: busy[name])
        self.cycles[worst] += busy[worst]
        held = self.counts["registers"] / 4 / threads
        if held > WORDS:
            self.cycles["spills"] += busy[worst] * (held / WORDS)
        self.counts["statements"] += 1
        self.counts["iterations"] += times
        self.counts["lanes"] = max(self.counts["lanes"], float(width))
        self.counts["programs"] = max(self.counts["programs"], float(programs))
        self.counts["moved"] += moved

    def _launch(self, around: tuple[Around, ...]) -> None:
        self.cycles["launch"] += self.gpu.launch * self.gpu.clock * trips_of(around)

    def _resident(self, threads: float) -> float:
        """Programs on a core at once, by threads and the registers of tiles."""
        words = 32 + self.counts["registers"] / 4 / threads
        return min(
            self.gpu.warps * self.gpu.warp // threads,
            self.gpu.registers // (words * threads),
            self.gpu.programs,
        )


def _product(e: Expr) -> bool:
    """A product of two reads, perhaps converted."""
    if not (isinstance(e, Op) and e.name in ("mul", "fma")):
        return _product(e.value) if isinstance(e, Cast) else False
    return all(isinstance(_inner(a), Read) for a in e.args[:2])


def _inner(e: Expr) -> Expr:
    return _inner(e.value) if isinstance(e, Cast) else e
