"""An emulator of the PTX that the CuTe DSL emits, in NumPy: one CTA at a time, no GPU.

It shows what the compiled PTX means, down to the tensor core's fragments as the PTX ISA lays them
out, and it checks what a GPU would not tell: accesses outside every tensor, threads of a CTA that
write what others touch with no barrier between (races), shuffles and barriers not reached by all
threads. It is slow (some 10^5 instructions per second and CTA), covers the instructions that these
kernels consist of, and refuses others.

All threads run in lockstep: each step takes the lowest program counter at which some thread
stands and does that instruction for all threads there. A thread's values are raw bits, one array
of a fixed width per register.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from kir.errors import EvaluationError, UnsupportedError

Array = np.ndarray[Any, Any]
WIDTHS = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
    "pred": np.bool_,
}  # fmt: skip
_REGISTERS = {"%p": np.bool_, "%rs": np.uint16, "%r": np.uint32, "%rd": np.uint64}
SHARED_SYMBOL = "__dynamic_shmem__0"
GUARD = 4096


@dataclass(frozen=True)
class Instruction:
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    text: str


@dataclass(frozen=True)
class Function:
    """One entry: its instructions, where its labels point, its parameters in order."""

    name: str
    code: tuple[Instruction, ...]
    labels: Mapping[str, int]
    parameters: tuple[str, ...]


def parse(ptx: str) -> dict[str, Function]:
    """The entries of a PTX text."""
    text = re.sub(r"//[^\n]*", "", ptx)
    found: dict[str, Function] = {}
    for m in re.finditer(r"\.entry\s+(\w+)\((.*?)\)[^{]*\{(.*?)\n\}", text, re.S):
        parameters = re.findall(r"(\w+_param_\d+)", m[2])
        code: list[Instruction] = []
        labels: dict[str, int] = {}
        for piece in re.split(r"(\$\w+:)|;", m[3]):
            line = " ".join((piece or "").split())
            if line.endswith(":"):
                labels[line[:-1]] = len(code)
            elif line and not line.startswith("."):
                code.append(_instruction(line))
        found[m[1]] = Function(m[1], tuple(code), labels, tuple(parameters))
    return found


def _instruction(line: str) -> Instruction:
    m = re.match(r"(?:@(!?)(%\w+) )?([a-z][\w.:]*)\s*(.*)", line)
    if m is None:
        raise UnsupportedError(f"the PTX emulator cannot read `{line}`")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", m[4])
    guard = (m[2], m[1] == "") if m[2] else None
    return Instruction(tuple(m[3].split(".")), tuple(operands), guard, line)


class Region:
    """Bytes that threads share, with who touched each of them since the CTA's last barrier."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self.epoch = 0
        self.written = np.full(len(data), -1, np.int64)  # in which epoch
        self.writer = np.zeros(len(data), np.int32)
        self.read = np.full(len(data), -1, np.int64)
        self.reader = np.zeros(len(data), np.int32)  # -1: several threads

    def load(self, offsets: Array, size: int, threads: Array) -> Array:
        """One row of `size` bytes for each offset; EvaluationError for a race."""
        at = offsets[:, None] + np.arange(size)
        who = np.broadcast_to(threads[:, None], at.shape)
        if ((self.written[at] == self.epoch) & (self.writer[at] != who)).any():
            raise EvaluationError("a race: a thread reads what another wrote, no barrier between")
        several = (self.read[at] == self.epoch) & (self.reader[at] != who)
        self.read[at] = self.epoch
        self.reader[at] = who
        self.reader[at[several | (self.reader[at] != who)]] = -1
        found: Array = self.data[at]
        return found

    def store(self, offsets: Array, new: Array, threads: Array) -> None:
        """Write rows of bytes; EvaluationError for a race (several may write the same value)."""
        at = offsets[:, None] + np.arange(new.shape[1])
        who = np.broadcast_to(threads[:, None], at.shape)
        changes = self.data[at] != new
        others = (self.written[at] == self.epoch) & (self.writer[at] != who) & changes
        readers = (self.read[at] == self.epoch) & (self.reader[at] != who)
        self.data[at] = new
        self.written[at] = self.epoch
        self.writer[at] = who
        if (others | readers | (self.data[at] != new)).any():
            raise EvaluationError(
                "a race: a thread writes what another touched, no barrier between"
            )


class Memory:
    """Global memory: arrays at addresses far apart; an access outside of them is an error."""

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.regions: list[Region] = []
        self.next = 1 << 20

    def add(self, array: Array) -> int:
        """Place a contiguous array, which is read and written in place; its address."""
        base = self.next
        self.bases.append(base)
        self.regions.append(Region(array.reshape(-1).view(np.uint8)))
        self.next = base + -(-(array.nbytes + GUARD) // GUARD) * GUARD
        return base

    def find(self, addresses: Array, size: int) -> tuple[Array, Array]:
        """For each address which region, and where in it; EvaluationError outside of all."""
        which = np.searchsorted(self.bases, addresses, side="right") - 1
        ends = np.array([b + len(r.data) for b, r in zip(self.bases, self.regions, strict=True)])
        if (which < 0).any() or (addresses + size > ends[which]).any() or (addresses % size).any():
            raise EvaluationError(f"an access of {size} bytes outside every tensor")
        return which, addresses - np.array(self.bases)[which]

    def barrier(self) -> None:
        for region in self.regions:
            region.epoch += 1


class Cta:
    """One CTA's run of a function."""

    def __init__(
        self,
        function: Function,
        arguments: Sequence[int],
        threads: int,
        shared: int,
        block: int,
        memory: Memory,
    ) -> None:
        self.function, self.memory, self.threads, self.block = function, memory, threads, block
        self.parameters = dict(zip(function.parameters, arguments, strict=True))
        self.shared = Region(np.zeros(shared, np.uint8))
        self.registers: dict[str, Array] = {}
        memory.barrier()  # what other CTAs did is another matter

    def run(self, limit: int = 10_000_000) -> None:
        """Until every thread returns; EvaluationError for what no correct kernel does."""
        counters = np.zeros(self.threads, np.int64)
        end = len(self.function.code)
        for _ in range(limit):
            at = int(counters.min())
            if at >= end:
                return
            active = np.flatnonzero(counters == at)
            i = self.function.code[at]
            try:
                if i.guard is not None:
                    taken = self.get(i.guard[0], "pred", active) == i.guard[1]
                    skipped, active = active[~taken], active[taken]
                    counters[skipped] = at + 1
                    if not len(active):
                        continue
                counters[active] = at + 1
                if i.opcode[0] == "bra":
                    counters[active] = self.function.labels[i.operands[0]]
                elif i.opcode[0] in ("ret", "exit"):
                    counters[active] = end
                else:
                    self.step(i, active, int((counters < end).sum()))
            except EvaluationError as error:
                where = f"block {self.block}, thread {active[0]}: `{i.text}`"
                raise EvaluationError(f"{error.message}; {where}") from None
        raise EvaluationError(f"no end after {limit} instructions")

    # --- operands ----------------------------------------------------------------------------

    def get(self, operand: str, kind: str, active: Array) -> Array:
        """An operand's values in the active threads, as `kind`."""
        dtype = np.dtype(WIDTHS[kind])
        if operand.startswith("-%"):
            return -self.get(operand[1:], kind, active)
        if operand.startswith("%tid"):
            values = np.arange(self.threads) if operand == "%tid.x" else np.zeros(self.threads)
            return values[active].astype(dtype)
        if operand.startswith("%ctaid"):
            return np.full(len(active), self.block * (operand == "%ctaid.x"), dtype)
        if operand.startswith("%"):
            if operand not in self.registers:
                raise EvaluationError(f"register {operand} is read before it is written")
            raw = self.registers[operand][active]
            return raw if raw.dtype == dtype else self._view(raw, dtype)
        if operand == SHARED_SYMBOL:
            return np.zeros(len(active), dtype)
        return np.full(len(active), _immediate(operand, dtype))

    @staticmethod
    def _view(raw: Array, dtype: np.dtype[Any]) -> Array:
        """Bits of another type; a wider register gives its low bits."""
        if raw.dtype.itemsize != dtype.itemsize:
            raw = raw.astype(np.dtype(f"u{dtype.itemsize}"))
        return raw.view(dtype)

    def set(self, operand: str, values: Array, active: Array) -> None:
        if operand == "_":
            return
        bits = values if values.dtype == np.bool_ else values.view(f"u{values.dtype.itemsize}")
        width = _REGISTERS.get(operand.rstrip("0123456789"))
        if width is None:
            raise UnsupportedError(f"the PTX emulator has no register `{operand}`")
        dtype = np.dtype(width)
        old = self.registers.get(operand)
        if old is None:
            old = self.registers[operand] = np.zeros(self.threads, dtype)
        old[active] = bits.astype(dtype)

    # --- instructions ------------------------------------------------------------------------

    def step(self, i: Instruction, active: Array, alive: int) -> None:
        name = i.opcode[0]
        special = _SPECIAL.get(name)
        if special is not None:
            special(self, i, active, alive)
            return
        rule = _PLAIN.get(name)
        if rule is None:
            raise UnsupportedError(f"the PTX emulator does not know `{i.text}`")
        kind = i.opcode[-1]
        values = [self.get(x, kind, active) for x in i.operands[1:]]
        if name == "mad" and "wide" in i.opcode:
            values[2] = self.get(i.operands[3], f"{kind[0]}64", active)
        with np.errstate(all="ignore"):
            self.set(i.operands[0], rule(i.opcode, *values), active)

    def _setp(self, i: Instruction, active: Array, alive: int) -> None:
        _, test, kind = i.opcode
        a, b = (self.get(x, kind, active) for x in i.operands[1:3])
        nan = np.zeros(len(a), bool)
        floating = "f" in kind
        if floating:
            nan = np.isnan(a) | np.isnan(b)
        if test in ("nan", "num"):
            result = nan if test == "nan" else ~nan
        else:
            unordered = test.endswith("u") and floating and len(test) == 3
            result = _COMPARE[test[:2]](a, b)
            result = (result | nan) if unordered else (result & ~nan)
        self.set(i.operands[0], result, active)

    def _selp(self, i: Instruction, active: Array, alive: int) -> None:
        kind = i.opcode[-1]
        a, b = (self.get(x, kind, active) for x in i.operands[1:3])
        chosen = self.get(i.operands[3], "pred", active)
        self.set(i.operands[0], np.where(chosen, a, b), active)

    def _mov(self, i: Instruction, active: Array, alive: int) -> None:
        target, source = i.operands
        kind = i.opcode[-1]
        if target.startswith("{"):
            low, high = _group(target)
            whole = self.get(source, kind, active)
            part = np.dtype(f"u{whole.dtype.itemsize // 2}")
            parts = np.ascontiguousarray(whole).view(part).reshape(-1, 2)
            self.set(low, parts[:, 0].copy(), active)
            self.set(high, parts[:, 1].copy(), active)
        elif source.startswith("{"):
            half = f"b{int(kind[1:]) // 2}"
            pieces = [self.get(x, half, active) for x in _group(source)]
            whole = np.stack(pieces, axis=1).view(WIDTHS[kind]).reshape(-1)
            self.set(target, whole, active)
        else:
            self.set(target, self.get(source, kind, active), active)

    def _cvt(self, i: Instruction, active: Array, alive: int) -> None:
        *modes, to, source = i.opcode[1:]
        value = self.get(i.operands[1], source, active)
        with np.errstate(all="ignore"):
            self.set(i.operands[0], _convert(value, modes, to), active)

    def _shfl(self, i: Instruction, active: Array, alive: int) -> None:
        self._converged(active)
        offset = self.get(i.operands[2], "u32", active)
        own = self.get(i.operands[1], "b32", active)
        lanes = active % 32
        if i.opcode[2] != "bfly":
            raise UnsupportedError(f"the PTX emulator does not know `{i.text}`")
        where = (active - lanes) + (lanes ^ offset)
        self.set(i.operands[0].split("|")[0], own[np.searchsorted(active, where)], active)

    def _converged(self, active: Array) -> None:
        """Warp instructions must be reached by whole warps together."""
        warps, counts = np.unique(active // 32, return_counts=True)
        if (counts != 32).any():
            raise EvaluationError(f"warp {warps[counts != 32][0]} is not converged")

    def _bar(self, i: Instruction, active: Array, alive: int) -> None:
        if len(active) != alive:
            raise EvaluationError(f"a barrier that {alive - len(active)} threads do not reach")
        self.shared.epoch += 1
        self.memory.barrier()

    def _mma(self, i: Instruction, active: Array, alive: int) -> None:
        """mma.sync m16n8k16, fragments as in the PTX ISA, "Matrix fragments for mma.m16n8k16"."""
        self._converged(active)
        kind = i.opcode[-2]
        if i.opcode[3] != "m16n8k16" or i.opcode[-1] != "f32" or kind not in ("bf16", "f16"):
            raise UnsupportedError(f"the PTX emulator does not know `{i.text}`")
        d, a, b, c = (_group(x) for x in i.operands)
        warps = len(active) // 32
        parts = [self._pairs(x, kind, active).reshape(warps, 32, 2) for x in (*a, *b)]
        sums = [self.get(x, "f32", active).reshape(warps, 32) for x in c]
        left = np.zeros((warps, 16, 16), np.float32)
        right = np.zeros((warps, 16, 8), np.float32)
        total = np.zeros((warps, 16, 8), np.float32)
        lane = np.arange(32)
        row, column = lane // 4, lane % 4 * 2
        for n in range(4):
            for h in range(2):
                left[:, row + 8 * (n % 2), column + 8 * (n // 2) + h] = parts[n][:, :, h]
        for n in range(2):
            for h in range(2):
                right[:, column + 8 * n + h, row] = parts[4 + n][:, :, h]
        for n in range(4):
            total[:, row + 8 * (n // 2), column + n % 2] = sums[n]
        with np.errstate(all="ignore"):
            wide = left.astype(np.float64) @ right.astype(np.float64) + total
        result = wide.astype(np.float32)
        for n in range(4):
            own = result[:, row + 8 * (n // 2), column + n % 2]
            self.set(d[n], np.ascontiguousarray(own).reshape(-1), active)

    def _pairs(self, operand: str, kind: str, active: Array) -> Array:
        bits = np.ascontiguousarray(self.get(operand, "b32", active))
        pairs: Array = bits.view(WIDTHS[kind]).reshape(-1, 2).astype(np.float32)
        return pairs

    # --- memory ------------------------------------------------------------------------------

    def _ld(self, i: Instruction, active: Array, alive: int) -> None:
        kind = i.opcode[-1]
        targets = _group(i.operands[0])
        if "param" in i.opcode:
            name = i.operands[1].strip("[]")
            value = np.full(len(active), self.parameters[name] % 2**64, np.uint64)
            self.set(targets[0], value, active)
            return
        dtype = np.dtype(WIDTHS[kind])
        addresses = self._addresses(i.operands[1], active)
        for n, target in enumerate(targets):
            raw = np.empty((len(active), dtype.itemsize), np.uint8)
            for region, offsets, some in self._places(i, addresses, n, dtype.itemsize):
                raw[some] = region.load(offsets, dtype.itemsize, active[some])
            self.set(target, _extend(raw.view(dtype).reshape(-1), target), active)

    def _st(self, i: Instruction, active: Array, alive: int) -> None:
        kind = i.opcode[-1]
        addresses = self._addresses(i.operands[0], active)
        for n, source in enumerate(_group(i.operands[1])):
            values = np.ascontiguousarray(self.get(source, kind, active))
            size = values.dtype.itemsize
            raw = values.view(np.uint8).reshape(-1, size)
            for region, offsets, some in self._places(i, addresses, n, size):
                region.store(offsets, raw[some], active[some])

    def _addresses(self, operand: str, active: Array) -> Array:
        base, _, offset = operand.strip("[]").partition("+")
        narrow = base.startswith("%r") and not base.startswith("%rd")
        found: Array = self.get(base, "u32" if narrow else "u64", active).astype(np.int64)
        found = found + int(offset or 0)
        return found % 2**32 if narrow else found

    def _places(
        self, i: Instruction, addresses: Array, n: int, size: int
    ) -> Iterator[tuple[Region, Array, Array]]:
        """The n-th element of a (vector) access: each region, offsets in it, which threads."""
        at = addresses + n * size
        if "shared" in i.opcode:
            if (at < 0).any() or (at + size > len(self.shared.data)).any() or (at % size).any():
                raise EvaluationError(f"an access of {size} bytes outside shared memory")
            yield self.shared, at, np.arange(len(at))
            return
        if "global" not in i.opcode:
            raise UnsupportedError(f"the PTX emulator does not know `{i.text}`")
        which, offsets = self.memory.find(at, size)
        for r in np.unique(which):
            some = np.flatnonzero(which == r)
            yield self.memory.regions[r], offsets[some], some


def _group(operand: str) -> list[str]:
    return [x.strip() for x in operand.strip("{}").split(",")]


def _immediate(text: str, dtype: np.dtype[Any]) -> Any:
    if text.startswith(("0f", "0F")):
        bits = np.array(int(text[2:], 16), np.uint32)
        return bits.view(np.float32) if dtype == np.float32 else bits.view(dtype)
    if text.startswith(("0d", "0D")):
        return np.array(int(text[2:], 16), np.uint64).view(np.float64)
    if dtype == np.bool_:
        return text != "0"
    value = int(text.rstrip("U"), 0)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return np.array(value % (1 << (8 * dtype.itemsize)), unsigned).view(dtype)


def _extend(values: Array, target: str) -> Array:
    """A narrow load into a wide register: signed values keep their sign."""
    if values.dtype.kind == "i":
        return values.astype(np.int64 if target.startswith("%rd") else np.int32)
    return values


def _convert(value: Array, modes: Sequence[str], to: str) -> Array:
    dtype = np.dtype(WIDTHS[to])
    if "sat" in modes:
        clamped = np.clip(value, 0, 1)
        return np.where(np.isnan(value), 0, clamped).astype(dtype)
    rounding = next((m for m in modes if m.endswith("i")), None)
    if rounding is not None:
        value = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](value)
    if to[0] in "su" and value.dtype.kind == "f":
        info = np.iinfo(dtype)
        whole = np.where(np.isnan(value), 0, value).astype(np.float64)
        inside = np.clip(whole, float(info.min), np.nextafter(float(info.max) + 1, 0)).astype(dtype)
        return np.where(whole >= float(info.max), dtype.type(info.max), inside)
    return value.astype(dtype)


def _narrow(wide: Array, opcode: Sequence[str]) -> Array:
    """Round f64 to f32: to nearest, or down with `.rm`."""
    result: Array = wide.astype(np.float32)
    if "rm" in opcode:
        lower = np.nextafter(result, np.float32(-np.inf))
        result = np.where(result.astype(np.float64) > wide, lower, result)
    return result


def _fma(opcode: Sequence[str], a: Array, b: Array, c: Array) -> Array:
    if a.dtype != np.float32:
        return a * b + c
    return _narrow(a.astype(np.float64) * b + c, opcode)


def _mad(opcode: Sequence[str], a: Array, b: Array, c: Array) -> Array:
    return _mul(opcode, a, b) + c


def _mul(opcode: Sequence[str], a: Array, b: Array) -> Array:
    if "wide" in opcode:
        kind = np.int64 if a.dtype.kind == "i" else np.uint64
        return a.astype(kind) * b.astype(kind)
    if "hi" in opcode:
        bits = 8 * a.dtype.itemsize
        full = [int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)]
        return np.array(full, a.dtype)
    return a * b


def _div(opcode: Sequence[str], a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    safe: Array = np.where(b == 0, 1, b).astype(a.dtype)
    quotient: Array = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((a % safe != 0) & ((a < 0) != (safe < 0)))
        quotient = quotient.astype(a.dtype)
    return quotient


def _rem(opcode: Sequence[str], a: Array, b: Array) -> Array:
    safe: Array = np.where(b == 0, 1, b).astype(a.dtype)
    remainder: Array = a - _div(opcode, a, safe) * safe
    return remainder


def _shift(opcode: Sequence[str], a: Array, b: Array) -> Array:
    amount = b.astype(np.int64) & 0xFFFFFFFF
    bits = 8 * a.dtype.itemsize
    safe = np.minimum(amount, bits - 1).astype(a.dtype)
    if opcode[0] == "shl":
        return np.where(amount >= bits, 0, a << safe).astype(a.dtype)
    far = a >> a.dtype.type(bits - 1) if a.dtype.kind == "i" else np.zeros_like(a)
    return np.where(amount >= bits, far, a >> safe).astype(a.dtype)


def _extremum(opcode: Sequence[str], a: Array, b: Array) -> Array:
    greatest = opcode[0] == "max"
    if a.dtype.kind != "f":
        return np.maximum(a, b) if greatest else np.minimum(a, b)
    if "NaN" in opcode:
        return np.maximum(a, b) if greatest else np.minimum(a, b)
    return np.fmax(a, b) if greatest else np.fmin(a, b)


def _permute(opcode: Sequence[str], a: Array, b: Array, selector: Array) -> Array:
    """prmt: each nibble of the selector picks a byte of {b, a}, or with its top bit its sign."""
    source = np.stack([a, b], axis=1).astype(np.uint32).view(np.uint8).reshape(-1, 8)
    rows, picked = np.arange(len(a)), np.empty((len(a), 4), np.uint8)
    for n in range(4):
        nibble = (selector >> np.uint32(4 * n)) & np.uint32(15)
        byte = source[rows, nibble & 7]
        picked[:, n] = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
    result: Array = picked.view(np.uint32).reshape(-1)
    return result


def _in_f64(function: Callable[[Array], Array]) -> Callable[..., Array]:
    def apply(opcode: Sequence[str], a: Array) -> Array:
        tiny = np.abs(a) < np.finfo(np.float32).tiny
        a = np.where(tiny & ("ftz" in opcode), np.copysign(np.float32(0), a), a)
        result = function(a.astype(np.float64)).astype(a.dtype)
        flush = (np.abs(result) < np.finfo(np.float32).tiny) & ("ftz" in opcode)
        return np.where(flush, np.copysign(np.float32(0), result), result)

    return apply


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_PLAIN: dict[str, Callable[..., Array]] = {
    "add": lambda o, a, b: a + b,
    "sub": lambda o, a, b: a - b,
    "mul": _mul,
    "mad": _mad,
    "fma": _fma,
    "div": _div,
    "rem": _rem,
    "neg": lambda o, a: -a,
    "abs": lambda o, a: np.abs(a),
    "min": _extremum,
    "max": _extremum,
    "and": lambda o, a, b: a & b,
    "or": lambda o, a, b: a | b,
    "xor": lambda o, a, b: a ^ b,
    "not": lambda o, a: ~a,
    "shl": _shift,
    "shr": _shift,
    "prmt": _permute,
    "copysign": lambda o, a, b: np.copysign(b, a),
    "sqrt": _in_f64(np.sqrt),
    "rsqrt": _in_f64(lambda x: 1 / np.sqrt(x)),
    "rcp": _in_f64(lambda x: 1 / x),
    "ex2": _in_f64(np.exp2),
    "lg2": _in_f64(np.log2),
    "sin": _in_f64(np.sin),
    "cos": _in_f64(np.cos),
}
_SPECIAL: dict[str, Callable[[Cta, Instruction, Array, int], None]] = {
    "setp": Cta._setp,
    "selp": Cta._selp,
    "mov": Cta._mov,
    "cvt": Cta._cvt,
    "shfl": Cta._shfl,
    "bar": Cta._bar,
    "mma": Cta._mma,
    "ld": Cta._ld,
    "st": Cta._st,
}
