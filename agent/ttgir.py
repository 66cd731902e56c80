"""What a program does, counted in Triton's GPU IR (`ttgir`), the last stage that has loops.

By then Triton has chosen layouts, matrix instructions, shared memory and the pipeline of loads. The
text is walked once. Integers are computed as they are for the program in the middle of the grid and
the iteration in the middle of each loop, so that trips, masks and the addresses of accesses are
known; what hangs on data is unknown. An operation that is unknown here counts as one instruction
for each element.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SECTOR = 32
"""Bytes that memory is read and written by (CUDA C++ Best Practices Guide, coalesced access; AMD's
caches take whole lines of 64 or 128, so this is kind to them)."""
REDUCE = 30
"""Cycles of a step of a reduction across lanes: a shuffle and an op (Luo et al. 2024)."""
FREE = frozenset({
    "tt.splat", "tt.expand_dims", "tt.broadcast", "tt.make_range", "tt.get_program_id", "tt.return",
    "tt.reshape", "tt.trans", "tt.unsplat", "tt.bitcast", "tt.int_to_ptr", "tt.reduce.return",
    "tt.scan.return", "arith.constant", "arith.bitcast", "scf.yield", "ttg.memdesc_index",
    "ttg.memdesc_trans", "ttg.memdesc_subslice", "ttg.local_alloc", "ttg.local_dealloc",
    "ttg.async_commit_group", "ttg.async_wait", "ttng.warp_group_dot_wait",
    "ttng.fence_async_shared", "rocdl.sched.barrier", "rocdl.s.setprio",
})  # fmt: skip
HEAVY: tuple[tuple[str, int], ...] = (
    ("pow", 60), ("erf", 30), ("tanh", 30), ("sin", 30), ("cos", 30), ("gelu", 40), ("log", 15),
    ("exp", 12), ("div", 10), ("rem", 20), ("sqrt", 10), ("rsqrt", 4),
)  # fmt: skip
"""Instructions of what is no instruction, by a part of its name: of the order of what NVIDIA's
compiler makes of them (read in its assembly); 1 for all else."""


@dataclass
class Counts:
    """Of one program. `vector`: instructions of a warp, of all its warps (`doubles` the share on
    f64); `matrix`: operations by the operands' bits; `shared`: bytes through shared memory;
    `moved`: bytes between L2 and the core by tensor, in sectors; `stalls`: cycles that a warp waits
    for its own results, memory aside; `waits`, how often it waits for memory, and `ahead` how often
    for loads that a pipeline began before."""

    vector: float = 0.0
    doubles: float = 0.0
    matrix: dict[int, float] = field(default_factory=dict)
    shared: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)
    stalls: float = 0.0
    waits: float = 0.0
    ahead: float = 0.0
    inner: float = 1.0
    """Trips of the loops around the code that runs most often."""


_LAYOUT = re.compile(r"^(#\w+) = #\w+\.(\w+)<\{(.*)\}>", re.M)
_OP = re.compile(r'^\s*(?:(%[^=]+?) = )?"?([a-z_]+\.[a-z_0-9.]+)"?(.*)$')
_FOR = re.compile(r"(%[\w.#-]+) = (%[\w.#-]+) to (%[\w.#-]+) step (%[\w.#-]+)(.*)")
_TENSOR = re.compile(
    r"(?:tensor|memdesc|)<((?:\d+x)+)((?:!tt\.ptr<\w+>)|[a-z]\w*)(?:, (#[\w.]+(?:<\{[^}]*\}>)?))?"
)
_NAME = re.compile(r"%[\w.-]+(?:#\d+)?")
Value = Any
"""An int, an array of them, a (tensor's name, offsets), or None: unknown."""


@dataclass(frozen=True)
class _Type:
    shape: tuple[int, ...]
    element: str
    layout: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        inner = self.element.removeprefix("!tt.ptr<").removesuffix(">")
        digits = re.findall(r"\d+", inner.replace("f8E4M3FN", "f8").replace("f8E5M2", "f8"))
        return int(digits[0]) if digits else 64


def count(text: str, programs: int, warp: int) -> dict[str, Counts]:
    """The counts of each function in the text, for a grid of `programs`."""
    layouts = {name: (kind, given) for name, kind, given in _LAYOUT.findall(text)}
    warps = re.search(r'"ttg\.num-warps" = (\d+)', text)
    found: dict[str, Counts] = {}
    walker: _Walker | None = None
    for line in text.splitlines():
        function = re.search(r"tt\.func public @(\w+)\((.*)\) attributes", line)
        if function:
            walker = _Walker(layouts, int(warps[1]) if warps else 4, warp, programs)
            for name in re.findall(r"(%\w+): !tt\.ptr<", function[2]):
                walker.values[name] = (name[1:], np.zeros((), np.int64))
            found[function[1]] = walker.counts
        elif walker is not None:
            walker.line(line)
    return found


class _Walker:
    def __init__(
        self, layouts: Mapping[str, tuple[str, str]], warps: int, warp: int, programs: int
    ) -> None:
        self.layouts, self.warps, self.threads = layouts, warps, warps * warp
        self.program = programs // 2
        self.programs = programs
        self.values: dict[str, Value] = {}
        self.counts = Counts()
        self.trips = [1.0]
        self.waiting = [False]
        self.region = 0
        """How deep in the body of a reduction, which its own cost stands for."""

    def line(self, line: str) -> None:
        text = line.split(" loc(")[0].strip()
        if text.startswith("})"):
            self.region -= 1
            self._reduction(text)
            return
        if text.startswith("}"):
            if "else" not in text and len(self.trips) > 1:
                self._leave()
            return
        match = _OP.match(text)
        if match is None or self.region:
            return
        results, op, rest = match[1] or "", match[2], match[3]
        if op in ("tt.reduce", "tt.scan"):
            self.region += 1
            return
        if op == "scf.for":
            self._loop(rest)
            return
        if op.startswith("scf.") and text.endswith("{"):
            self._enter(1.0)
            return
        self._op(results, op, rest)

    # --- control -------------------------------------------------------------------------------

    def _enter(self, trips: float) -> None:
        self.trips.append(self.trips[-1] * trips)
        self.waiting.append(False)
        self.counts.inner = max(self.counts.inner, self.trips[-1])

    def _leave(self) -> None:
        self.trips.pop()
        self.waiting.pop()

    def _loop(self, rest: str) -> None:
        match = _FOR.search(rest)
        if match is None:
            self._enter(1.0)
            return
        low, high, step = (self._known(match[k]) for k in (2, 3, 4))
        if isinstance(low, int) and isinstance(high, int) and isinstance(step, int) and step > 0:
            trips = max(0, -(-(high - low) // step))
            self.values[match[1]] = low + step * (trips // 2)
        else:
            trips = 1
        for name, first in re.findall(r"(%[\w.-]+) = (%[\w.#-]+)", match[5].split("->")[0]):
            self.values[name] = self._known(first)
        self._enter(float(trips))

    def _known(self, name: str) -> Value:
        value = self.values.get(name)
        return int(value) if isinstance(value, np.ndarray) and value.ndim == 0 else value

    # --- operations ----------------------------------------------------------------------------

    def _op(self, results: str, op: str, rest: str) -> None:
        types = [_type(t) for t in _TENSOR.finditer(rest)]
        names = _NAME.findall(rest.split(" : ")[0])
        if op in ("tt.load", "amdg.buffer_load", "ttg.async_copy_global_to_local",
                  "amdg.buffer_load_to_local", "tt.store", "amdg.buffer_store") or (
                  "atomic" in op):  # fmt: skip
            self._access(op, rest, names, types)
            return
        if op in ("tt.dot", "ttng.warp_group_dot", "tt.dot_scaled", "ttng.tc_gen5_mma"):
            self._dot(op, types)
            return
        if op in ("ttg.local_load", "ttg.local_store", "ttg.convert_layout"):
            self._shared(op, types)
        elif op not in FREE:
            value = _compute(op, rest, [self.values.get(n) for n in names], types, self)
            self._vector(op, rest, types, known=value is not None)
        value = _compute(op, rest, [self.values.get(n) for n in names], types, self)
        if value is not None and results and ":" not in results:
            self.values[results.strip()] = value

    def _vector(self, op: str, rest: str, types: list[_Type], known: bool) -> None:
        """An instruction for each element of a thread; of an address just one, for what differs
        between a thread's elements goes into the offsets of its accesses."""
        elements = 1 if known or not types else max(t.elements for t in types)
        each = max(1.0, elements / self.threads)
        symbol = re.search(r'symbol = "(\w+)"', rest)
        name = symbol[1] if symbol else op
        cost = next((c for part, c in HEAVY if part in name), 1)
        total = cost * each * self.warps * self.trips[-1]
        self.counts.vector += total
        if any(t.element == "f64" for t in types):
            self.counts.doubles += total

    def _access(self, op: str, rest: str, names: list[str], types: list[_Type]) -> None:
        pointers = [n for n in names if isinstance(self.values.get(n), tuple)]
        shaped = next((t for t in types if t.shape), None)
        bits = next((t.bits for t in types if t.element not in ("i1",)), 32)
        size = max(1, bits // 8)
        tensor, offsets = self.values[pointers[0]] if pointers else ("?", None)
        buffer = re.search(r"%[\w.-]+\[(%[\w.#-]+)\]", rest)
        if buffer:
            offsets = self._known(buffer[1])
        elements = shaped.elements if shaped else 1
        touched = float(elements * size if shaped else SECTOR)
        if offsets is not None:
            touched = _sectors(np.asarray(offsets), self._mask(names, elements), size)
        self.counts.moved[tensor] = self.counts.moved.get(tensor, 0.0) + touched * self.trips[-1]
        wide = max(1, min(16 // size, self._per_thread(shaped)))
        each = max(1.0, elements / self.threads / wide)
        self.counts.vector += each * self.warps * self.trips[-1]
        if "async" in op or "to_local" in op:
            self.counts.shared += elements * size * self.trips[-1]
            self._wait("ahead")
        elif "store" not in op:
            self._wait("waits")

    def _wait(self, kind: str) -> None:
        """Loads of one block of code are waited for together."""
        if not self.waiting[-1]:
            self.waiting[-1] = True
            setattr(self.counts, kind, getattr(self.counts, kind) + self.trips[-1])

    def _mask(self, names: list[str], elements: int) -> Value:
        for name in names:
            value = self.values.get(name)
            if isinstance(value, np.ndarray) and value.dtype == bool and value.size == elements:
                return value
        return None

    def _per_thread(self, shaped: _Type | None) -> int:
        if shaped is None:
            return 1
        _, given = self.layouts.get(shaped.layout, ("", ""))
        sizes = re.search(r"sizePerThread = \[([\d, ]+)\]", given)
        return max((int(k) for k in sizes[1].split(",")), default=1) if sizes else 1

    def _reduction(self, text: str) -> None:
        """Elements of a thread, then a shuffle for each halving of a warp; between warps through
        shared memory."""
        types = [_type(t) for t in _TENSOR.finditer(text)]
        elements = max((t.elements for t in types), default=1)
        each = max(1.0, elements / self.threads)
        lanes = math.log2(self.threads // self.warps)
        across = 2.0 * REDUCE if self.warps > 1 else 0.0
        self.counts.vector += (each + 2 * lanes) * self.warps * self.trips[-1]
        self.counts.stalls += (each * 4 + REDUCE * lanes + across) * self.trips[-1]

    def _dot(self, op: str, types: list[_Type]) -> None:
        left, right, out = types[0], types[1], types[-1]
        steps = out.elements * left.shape[-1]
        kind, _ = self.layouts.get(out.layout, ("", ""))
        if "mma" in kind or "mfma" in kind or "tc_gen5" in op:
            bits = 64 if out.element == "f64" else left.bits
            done = self.counts.matrix.get(bits, 0.0) + 2.0 * steps * self.trips[-1]
            self.counts.matrix[bits] = done
            self.counts.stalls += 32 * self.trips[-1]
            if op != "tt.dot":  # the unit reads shared memory: its right side once a warp group
                groups = max(1.0, self.warps / 4)
                read = left.elements * left.bits + groups * right.elements * right.bits
                self.counts.shared += read / 8 * self.trips[-1]
            return
        work = max(1.0, steps / self.threads) * self.warps * self.trips[-1]
        self.counts.vector += work
        if out.element == "f64":
            self.counts.doubles += work

    def _shared(self, op: str, types: list[_Type]) -> None:
        """Bytes, once for each warp that reads them; a change of layout writes and reads."""
        shaped = [t for t in types if t.shape]
        if not shaped:
            return
        out = shaped[-1]
        amount = out.elements * out.bits / 8
        if op == "ttg.convert_layout":
            amount *= 2
        if op == "ttg.local_load":
            amount *= self._copies(out)
        wide = max(1, 128 // max(out.bits, 8))
        self.counts.shared += amount * self.trips[-1]
        instructions = max(1.0, amount * 8 / out.bits / self.threads / wide)
        self.counts.vector += instructions * self.warps * self.trips[-1]
        self.counts.stalls += REDUCE * self.trips[-1]

    def _copies(self, t: _Type) -> float:
        """How many warps read the same: an operand is shared along the other side of a block."""
        operand = re.search(r"dot_op<\{opIdx = (\d), parent = (#\w+)", t.layout)
        if operand is None:
            return 1.0
        _, given = self.layouts.get(operand[2], ("", ""))
        warps = re.search(r"warpsPerCTA = \[([\d, ]+)\]", given)
        sides = [int(k) for k in warps[1].split(",")] if warps else [1, 1]
        return float(sides[-1] if operand[1] == "0" else sides[-2]) if len(sides) > 1 else 1.0


def _type(match: re.Match[str]) -> _Type:
    shape = tuple(int(k) for k in match[1].split("x") if k)
    return _Type(shape, match[2], match[3] or "")


def _sectors(offsets: Any, mask: Value, size: int) -> float:
    """Bytes of all sectors that one access of a program touches."""
    if mask is not None:
        offsets = np.broadcast_to(offsets, mask.shape)[mask]
    return float(np.unique(offsets * size // SECTOR).size * SECTOR)


def _nonzero(value: Any) -> Any:
    return np.where(np.equal(value, 0), 1, value)


_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "arith.addi": np.add, "arith.subi": np.subtract, "arith.muli": np.multiply,
    "arith.minsi": np.minimum, "arith.maxsi": np.maximum, "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or, "arith.xori": np.bitwise_xor,
    "arith.divsi": lambda a, b: np.trunc(np.divide(a, _nonzero(b))).astype(np.int64),
    "arith.remsi": lambda a, b: np.fmod(a, _nonzero(b)),
}  # fmt: skip
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal,
    "sgt": np.greater, "sge": np.greater_equal, "ult": np.less, "uge": np.greater_equal,
}  # fmt: skip
_SAME = ("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "ttg.convert_layout")


def _compute(op: str, rest: str, given: list[Value], types: list[_Type], at: _Walker) -> Value:
    """The integers that an operation gives; None where they are not known."""
    shape = types[-1].shape if types else ()
    if op == "arith.constant":
        return _constant(rest, shape)
    if op == "tt.get_program_id":
        return at.program if rest.strip().startswith("x") else 0
    if op == "tt.make_range":
        ends = re.search(r"end = (\d+) : i32, start = (\d+)", rest)
        return np.arange(int(ends[2]), int(ends[1])) if ends else None
    if not given or any(v is None for v in given):
        return None
    if op == "tt.addptr":
        return _moved(given[0], given[1]) if isinstance(given[0], tuple) else None
    if isinstance(given[0], tuple):
        tensor, offsets = given[0]
        made = _reshaped(op, rest, offsets, shape)
        return None if made is None else (tensor, made)
    if any(isinstance(v, tuple) for v in given):
        return None
    if op in _BINARY and len(given) == 2:
        return _BINARY[op](given[0], given[1])
    if op == "arith.cmpi" and len(given) == 2:
        compare = _COMPARE.get(rest.strip().split(",")[0].split()[0])
        return compare(given[0], given[1]) if compare else None
    if op == "arith.select" and len(given) == 3:
        return np.where(given[0], given[1], given[2])
    return _reshaped(op, rest, given[0], shape)


def _moved(pointer: tuple[str, Any], by: Any) -> Value:
    return pointer[0], pointer[1] + by


def _reshaped(op: str, rest: str, value: Any, shape: tuple[int, ...]) -> Value:
    if op in _SAME:
        return value
    if op == "tt.splat":
        return np.full(shape, value)
    if op == "tt.expand_dims":
        axis = re.search(r"axis = (\d+)", rest)
        return np.expand_dims(value, int(axis[1])) if axis else None
    if op == "tt.broadcast":
        return np.broadcast_to(value, shape)
    if op == "tt.reshape":
        return np.reshape(value, shape)
    return None


def _constant(rest: str, shape: tuple[int, ...]) -> Value:
    """A whole number or truth value, spread over a tensor."""
    match = re.match(r"\s*(?:dense<)?(-?\d+|true|false)>? :", rest) or re.match(
        r"\s*(true|false)$", rest
    )
    if match is None:
        return None
    value: Any = {"true": True, "false": False}.get(match[1])
    value = int(match[1]) if value is None else value
    return np.full(shape, value) if shape else value
