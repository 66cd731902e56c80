"""What can be told of a scheduled kernel without running it: an analytic model of a CPU core, and
the counts that it and the learned model (`model.py`) work from.

For each innermost statement it counts iterations, the vector width that its accesses allow, the
loads that register blocks share, the chain of dependent updates, and the bytes that each level of
cache has to bring (the footprints of the loops inside the outermost one that fits, times the trips
of the loops around it; after Wolf and Lam, PLDI 1991). Its time is the greatest of these, divided
over cores where it is in a `grid`. It knows no prefetcher and no port: what it gets wrong is for
the learned model to mend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kir.ir import Buffer, Cast, Const, Expr, If, Kernel, Loop, Op, Read, Stmt, Store, Var, walk

VERSION = 1
"""Of the features: a learned model takes no others than those of its version."""


@dataclass(frozen=True)
class Chip:
    """Cycles and bytes of one core: cache sizes, their sets (1 where addresses are hashed), bytes
    per cycle out of each level beyond it."""

    cores: int = 2
    vector: int = 32
    registers: int = 16
    caches: tuple[int, ...] = (32 << 10, 512 << 10, 4 << 20)
    sets: tuple[int, ...] = (64, 1024, 1)
    bandwidths: tuple[float, ...] = (32.0, 12.0, 5.0)
    latency: int = 4
    launch: int = 15_000


COSTS = {"div": 5.0, "sqrt": 6.0, "exp": 20.0, "log": 20.0, "tanh": 25.0, "erf": 25.0, "pow": 40.0,
         "floordiv": 8.0, "mod": 8.0, "sin": 20.0, "cos": 20.0, "rsqrt": 6.0}  # fmt: skip
"""Cycles of an op on a vector, beside others; 1 where not named, halved for two pipes."""
FILL = 3.0
"""Cycles on a vector to tell which lanes are in bounds."""
COMPONENTS = ("vector", "latency", "memory", "launch", "spills")
"""What may limit a kernel, in the words that the knowledge uses."""


@dataclass(frozen=True)
class Analysis:
    """`features`: base-2 logarithms of counts and cycles. `cycles` by what limits; `bottleneck` is
    the one that has the most."""

    features: Mapping[str, float]
    cycles: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.cycles.values())

    @property
    def bottleneck(self) -> str:
        return max(self.cycles, key=lambda name: self.cycles[name])


def analyse(kernel: Kernel, walker: Callable[[Kernel], Walker] | None = None) -> Analysis:
    """The model's view of a scheduled kernel whose dims are constants: of a CPU core, or by
    another walker."""
    made = walker(kernel) if walker else Walker(kernel)
    made.block(kernel.body, ())
    cycles = made.cycles
    counts = made.counts
    counts |= {f"{name}_cycles": value for name, value in cycles.items()}
    counts["cycles"] = sum(cycles.values())
    return Analysis({k: round(math.log2(1 + v), 4) for k, v in sorted(counts.items())}, cycles)


@dataclass(frozen=True)
class Around:
    """A loop around a statement: name, trips, kind, and whether a `where` leaves iterations out."""

    name: str
    trips: int
    kind: str
    masked: bool = False


@dataclass(frozen=True)
class _Access:
    """An access: elements' size, the tensor's bytes and space, elements moved per loop."""

    tensor: str
    size: int
    whole: int
    space: str
    strides: Mapping[str, float]


class Walker:
    """Counts of a kernel's statements, and a core's cycles for them."""

    def __init__(self, kernel: Kernel, chip: Chip | None = None) -> None:
        self.chip = chip or Chip()
        self.tensors: dict[str, tuple[int, tuple[int, ...], str]] = {}
        for p in kernel.params:
            self.tensors[p.name] = (_bytes(p), tuple(_number(e) for e in p.shape), "global")
        self.cycles = dict.fromkeys(COMPONENTS, 0.0)
        self.counts: dict[str, float] = dict.fromkeys(
            ("statements", "code", "lanes", "parallel", "temporaries", "local", "registers",
             "masks", "grids", "strided", "iterations", "unrolled", "depth", "buffers",
             "num_warps", "num_stages"), 0.0
        )  # fmt: skip

    def block(self, body: Iterable[Stmt], around: tuple[Around, ...]) -> None:
        for s in body:
            if isinstance(s, Buffer):
                self._buffer(s)
            elif isinstance(s, Loop):
                self.counts["masks"] += len(s.where)
                for name, value in s.hints:
                    if name in self.counts:
                        self.counts[name] = float(value)
                if s.kind == "grid" and not any(a.kind == "grid" for a in around):
                    self.counts["grids"] += 1
                    self._launch(around)
                loop = Around(s.axis.name, max(0, _number(s.axis.extent)), s.kind, bool(s.where))
                self.block(s.body, (*around, loop))
            elif isinstance(s, If):
                self.counts["masks"] += 1
                self.block(s.body, around)
            elif isinstance(s, Store):
                self._store(s, around)

    def _launch(self, around: tuple[Around, ...]) -> None:
        self.cycles["launch"] += self.chip.launch * trips_of(around)

    def _buffer(self, s: Buffer) -> None:
        shape = tuple(_number(e) for e in s.shape)
        self.tensors[s.name] = (_bytes(s), shape, s.space)
        held = _bytes(s) * math.prod(shape)
        kind = {"global": "temporaries", "local": "local", "reg": "registers"}[s.space]
        self.counts[kind] = max(self.counts[kind], held)
        self.counts["buffers"] += 1

    def _store(self, s: Store, around: tuple[Around, ...]) -> None:
        chip, trips = self.chip, trips_of(around)
        reads = [n for n in walk(s.value) if isinstance(n, Read)]
        accesses = [a for a in (self._access(r.tensor, r.indices) for r in reads) if a]
        target = self._access(s.target, s.indices)
        updates = s.op is not None or any(r.tensor == s.target for r in reads)
        every = [*accesses, target] if target else accesses
        width, gathers = self._width(every, around, updates, target)
        lanes = math.prod(a.trips for a in around if a.kind == "tile")
        unrolled = math.prod(a.trips for a in around if a.kind == "unroll")
        steps = trips / max(lanes, 1)
        cost = operations(s.value) + (0.5 if s.op is not None else 0.0)
        cost += sum(r.fill is not None for r in reads) * FILL
        loads = sum(self._loads(a, around, trips, width) for a in every) / 2
        arithmetic = trips * max(cost, 0.5) / width
        chain = 0.0
        if updates and target and around and target.strides.get(self._inner(around), 0.0) == 0:
            chain = steps * chip.latency
        vectors = lanes / width
        room = chip.registers - 2
        spilled = max(0.0, vectors - room) * steps * 2 if updates and vectors > room else 0.0
        memory = sum(
            self._traffic(every, around, size, sets) / rate
            for size, sets, rate in zip(chip.caches, chip.sets, chip.bandwidths, strict=True)
        )
        speedup = self._speedup(around)
        overhead = steps / max(unrolled, 1)
        busy = {
            "vector": max(arithmetic, loads) + overhead + gathers * trips,
            "latency": chain,
            "memory": memory,
        }
        worst = max(busy, key=lambda name: busy[name])
        self.cycles[worst] += busy[worst] / speedup
        self.cycles["spills"] += spilled / speedup
        self.counts["statements"] += 1
        self.counts["iterations"] += trips
        self.counts["code"] += vectors * unrolled
        self.counts["unrolled"] = max(self.counts["unrolled"], float(unrolled))
        self.counts["lanes"] = max(self.counts["lanes"], float(lanes))
        self.counts["parallel"] = max(self.counts["parallel"], speedup)
        self.counts["depth"] = max(self.counts["depth"], float(len(around)))
        self.counts["strided"] += gathers * trips

    def _inner(self, around: tuple[Around, ...]) -> str:
        """The innermost loop that is walked in order."""
        return next((a.name for a in reversed(around) if a.kind not in ("tile", "grid")), "")

    def _width(
        self,
        every: list[_Access],
        around: tuple[Around, ...],
        updates: bool,
        target: _Access | None,
    ) -> tuple[float, float]:
        """Lanes that work at once, and cycles per iteration lost to lanes that are not neighbours
        in memory. The innermost `tile` is vectors; LLVM makes them of a plain innermost loop."""
        if not around or target is None:
            return 1.0, 0.0
        inner = around[-1]
        plain = inner.kind == "for" and target.strides.get(inner.name) == 1
        if (inner.kind != "tile" and not plain) or inner.masked:
            return 1.0, 0.0
        size = max((a.size for a in every), default=4)
        apart = [a for a in every if a.strides.get(inner.name, 0.0) not in (0.0, 1.0)
                 and a.space != "reg"]  # fmt: skip
        if plain and apart:
            return 1.0, 0.0
        full = self.chip.vector / size
        width = min(full, max(1, inner.trips)) if inner.trips < full or plain else full
        if inner.kind == "tile" and updates and target.strides.get(inner.name, 0.0) == 0:
            width = max(1.0, width / 2)  # lanes are added up at the end
        return float(width), 1.0 * len(apart)

    def _loads(self, a: _Access, around: tuple[Around, ...], trips: float, width: float) -> float:
        """Vector loads of an access: one for all lanes of a block that share it."""
        if a.space == "reg":
            return 0.0
        shared = math.prod(
            x.trips for x in around if x.kind in ("tile", "unroll") and not a.strides.get(x.name)
        )
        inner = around[-1].name if around else ""
        each = width if a.strides.get(inner) == 1 else 1.0
        return trips / max(shared, 1) / each

    def _traffic(
        self, every: list[_Access], around: tuple[Around, ...], cache: int, sets: int
    ) -> float:
        """Bytes that come from beyond a cache of a size, whose lines lie in so many sets."""
        kept = [a for a in every if a.space != "reg"]
        for depth in range(len(around) + 1):
            inside = around[depth:]
            prints = [_footprint(a, inside) for a in kept]
            taken = sum(_taken(a, inside, held, sets) for a, held in zip(kept, prints, strict=True))
            if taken <= cache * 0.75 or depth == len(around):
                total = 0.0
                for a, held in zip(kept, prints, strict=True):
                    used = [x for x in around[:depth] if x.trips > 1]
                    while used and not a.strides.get(used[-1].name):
                        used.pop()  # it stays from one iteration of these to the next
                    total += max(held * trips_of(used), 0.0)
                return total if depth or sum(prints) > cache else min(total, sum(prints))
        return 0.0

    def _speedup(self, around: tuple[Around, ...]) -> float:
        programs = math.prod(a.trips for a in around if a.kind == "grid")
        if not any(a.kind == "grid" for a in around) or programs == 0:
            return 1.0
        return programs / math.ceil(programs / self.chip.cores)

    def _access(self, tensor: str, indices: tuple[Expr, ...]) -> _Access | None:
        known = self.tensors.get(tensor)
        if known is None:
            return None
        size, shape, space = known
        strides: dict[str, float] = {}
        row = 1
        for index, extent in zip(reversed(indices), reversed(shape), strict=False):
            for name, by in _coefficients(index).items():
                strides[name] = strides.get(name, 0.0) + by * row
            row *= max(1, extent)
        return _Access(tensor, size, size * row, space, strides)


def _footprint(a: _Access, inside: tuple[Around, ...]) -> float:
    """Bytes of cache lines that the loops inside touch."""
    moving = [(x, abs(a.strides.get(x.name, 0.0))) for x in inside]
    moving = [(x, by) for x, by in moving if by and x.trips > 1]
    elements = math.prod(x.trips for x, _ in moving)
    nearest = min((by for _, by in moving), default=1.0)
    line = min(64.0, max(1.0, nearest) * a.size)
    return min(elements * line, max(a.whole, 64))


def _taken(a: _Access, inside: tuple[Around, ...], held: float, sets: int) -> float:
    """Bytes of cache that lines of so many bytes take away: where they lie apart by a power of two,
    as in the columns of a matrix, they share few sets (Lam, Rothberg, Wolf, The Cache Performance
    and Optimizations of Blocked Algorithms, ASPLOS 1991, section 3)."""
    if sets == 1:
        return held
    reached, run = 1.0, float(a.size)
    for x in inside:
        apart = abs(a.strides.get(x.name, 0.0)) * a.size
        if not apart or x.trips <= 1:
            continue
        if apart < 64:
            run += apart * (x.trips - 1)
        elif apart % 64 == 0:
            reached *= min(x.trips, sets // math.gcd(int(apart // 64), sets))
        else:
            reached *= x.trips
    reached = min(float(sets), reached * max(1.0, run / 64))
    lines = held / 64
    return max(held, lines / reached * sets * 64) if lines > reached else held


def _coefficients(index: Expr) -> dict[str, float]:
    """How far an index moves with each variable, near enough: `//` moves in a share, `%` as what
    it wraps; what is read from a tensor moves at random, and counts as far."""
    if isinstance(index, Var):
        return {index.name: 1.0}
    if isinstance(index, Cast):
        return _coefficients(index.value)
    if isinstance(index, Op) and index.name in ("add", "sub"):
        left, right = (_coefficients(a) for a in index.args)
        sign = 1 if index.name == "add" else -1
        return {n: left.get(n, 0.0) + sign * right.get(n, 0.0) for n in {**left, **right}}
    if isinstance(index, Op) and index.name == "mul":
        for a, b in (index.args, index.args[::-1]):
            if isinstance(b, Const):
                return {n: c * float(b.value) for n, c in _coefficients(a).items()}
    if isinstance(index, Op) and index.name in ("floordiv", "mod"):
        by = index.args[1]
        share = float(by.value) if isinstance(by, Const) and by.value else 1.0
        found = _coefficients(index.args[0])
        return found if index.name == "mod" else {n: c / share for n, c in found.items()}
    return {n.name: 64.0 for n in walk(index) if isinstance(n, Var)}


def operations(e: Expr) -> float:
    """Cycles on a vector, two pipes for it, of an expression; indices are left out."""
    if isinstance(e, Op):
        return 0.5 * COSTS.get(e.name, 1.0) + sum(operations(a) for a in e.args)
    return 0.5 + operations(e.value) if isinstance(e, Cast) else 0.0


def trips_of(around: Iterable[Around]) -> float:
    return float(math.prod(a.trips for a in around))


def _number(extent: Expr) -> int:
    """A constant extent; 16 where it depends on other loops."""
    return int(extent.value) if isinstance(extent, Const) else 16


def _bytes(tensor: object) -> int:
    dtype = getattr(tensor, "type", None)
    return max(1, int(getattr(dtype, "bits", 32)) // 8)
