"""A small writer of LLVM IR text: typed values, instructions, structured control flow.

Text, because it has what llvmlite's own IR classes lack (splat constants, poison, fast-math flags
on intrinsics) and costs little to make. LLVM's parser and verifier check every word of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class V:
    """An SSA value or a constant: its text, its scalar LLVM type, its lanes (0: a scalar)."""

    ref: str
    ty: str
    lanes: int = 0

    @property
    def type(self) -> str:
        return f"<{self.lanes} x {self.ty}>" if self.lanes else self.ty

    @property
    def constant(self) -> int | None:
        """The value of a scalar integer constant; None for anything else."""
        if self.lanes or self.ty[0] != "i" or self.ref[0] not in "-0123456789tf":
            return None
        return {"true": 1, "false": 0}[self.ref] if self.ref[0] in "tf" else int(self.ref)

    def __str__(self) -> str:
        return f"{self.type} {self.ref}"


def integer(value: int, ty: str = "i64") -> V:
    """An integer constant, taken modulo the type's width; `i1` is true or false."""
    bits = int(ty[1:])
    if bits == 1:
        return V("true" if value & 1 else "false", ty)
    value &= (1 << bits) - 1
    return V(str(value - (1 << bits) if value >> (bits - 1) else value), ty)


def real(value: float, ty: str) -> V:
    """A `float` or `double` constant, rounded to it; exact in the text."""
    if ty == "float":
        value = round_to_single(value)
    return V(f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}", ty)


def round_to_single(value: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return rounded


def bits_of(ty: str) -> int:
    return {"float": 32, "double": 64, "half": 16, "bfloat": 16, "ptr": 64}.get(ty) or int(ty[1:])


def suffix(ty: str, lanes: int) -> str:
    """How LLVM spells a type in an overloaded intrinsic's name: `v8f32`, `i64`, `p0`."""
    short = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}.get(
        ty, ty
    )
    return f"v{lanes}{short}" if lanes else short


@dataclass
class Module:
    """The functions and declarations of one module, in the order in which they were made."""

    triple: str
    functions: list[str] = field(default_factory=list)
    declarations: dict[str, str] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=lambda: ["!{i32 1}"])
    """Metadata: what each number stands for. `!0` is that of streaming stores."""

    def note(self, text: str) -> str:
        """The number of new metadata; `!self` in the text stands for it."""
        number = f"!{len(self.notes)}"
        self.notes.append(text.replace("!self", number))
        return number

    def declare(self, name: str, result: str, args: Sequence[str], attributes: str = "") -> None:
        text = f"declare {result} @{name}({', '.join(args)}) {attributes}".rstrip()
        self.declarations.setdefault(name, text)

    def text(self) -> str:
        head = [f'target triple = "{self.triple}"', ""]
        tail = ["", *(f"!{k} = {text}" for k, text in enumerate(self.notes)), ""]
        return "\n".join(head + list(self.declarations.values()) + [""] + self.functions + tail)


COLD = "nounwind noinline optnone"
"""Attributes of a function that runs once a call or for each chunk of work: LLVM would take longer
to improve it than it will ever run."""

PURE = frozenset((
    "add", "sub", "mul", "and", "or", "xor", "shl", "lshr", "ashr", "icmp", "select",
    "getelementptr", "insertelement", "shufflevector", "sext", "zext", "trunc", "bitcast",
    "fadd", "fsub", "fmul", "fneg", "fcmp",
))  # fmt: skip
"""Instructions whose value depends on nothing but their text."""


class Builder:
    """Writes one function, block by block; instructions go to the end of the current block.

    Arithmetic takes operands of any lanes and splats the scalar ones. Integer operations on
    scalar constants fold, so that unrolled indices stay constants. A pure instruction whose text
    was written before, where that place dominates this one, is not written again: LLVM would
    remove it, but takes its time.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines: list[str] = []
        self.prologue: list[str] = []
        self.epilogue: list[str] = []
        self.block = "start"
        self._known: list[dict[str, V]] = [{}]
        self._early: list[dict[str, V]] = [{}]
        self._count = 0
        self._inside: list[tuple[int, int, int]] = []
        """Of the loops inside this one that are unrolled whole: their lines, their weight."""

    # --- text

    def fresh(self, stem: str = "t") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def emit(self, instruction: str, ty: str, lanes: int = 0, pure: bool = False) -> V:
        if not pure and instruction.partition(" ")[0] not in PURE:
            name = "%" + self.fresh()
            self.line(f"{name} = {instruction}")
            return V(name, ty, lanes)
        for known in self._known:
            if instruction in known:
                return known[instruction]
        name = "%" + self.fresh()
        self.line(f"{name} = {instruction}")
        made = self._known[-1][instruction] = V(name, ty, lanes)
        return made

    def label(self, name: str, dominated: bool = False) -> None:
        """Begin a block. `dominated`: all that `known` holds was computed on every way to here."""
        self.lines.append(f"{name}:")
        self.block = name
        if not dominated:
            for known in self._known:
                known.clear()

    @contextmanager
    def arm(self, name: str) -> Iterator[None]:
        """A block that the current one dominates, and that does not dominate what follows it."""
        self.label(name, dominated=True)
        self._known.append({})
        yield
        self._known.pop()

    def jump(self, label: str) -> None:
        self.line(f"br label %{label}")

    def branch(self, condition: V, then: str, other: str) -> None:
        self.line(f"br {condition}, label %{then}, label %{other}")

    @contextmanager
    def in_prologue(self) -> Iterator[None]:
        """Straight-line code written here runs once, at the function's entry."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        self.lines, self.prologue = self.prologue, self.lines
        self._known, self._early = self._early, self._known

    def define(self, head: str, attributes: str, result: str = "ret void") -> None:
        """Close the function: `head` is its line from `define` to the parenthesis."""
        self.module.functions.append(
            "\n".join(
                [
                    f"{head} {attributes} {{",
                    "entry:",
                    *self.prologue,
                    "  br label %start",
                    "start:",
                    *self.lines,
                    *self.epilogue,
                    f"  {result}",
                    "}",
                    "",
                ]
            )
        )

    # --- values

    def splat(self, value: V, lanes: int) -> V:
        if not lanes or value.lanes:
            return value
        if value.ref[0] not in "%@":
            known = value.ref in ("poison", "zeroinitializer", "null")
            text = "zeroinitializer" if value.ref == "null" else value.ref
            return V(text if known else f"splat ({value})", value.ty, lanes)
        one = self.emit(
            f"insertelement <{lanes} x {value.ty}> poison, {value}, i64 0", value.ty, lanes
        )
        return self.emit(
            f"shufflevector {one}, <{lanes} x {value.ty}> poison, <{lanes} x i32> zeroinitializer",
            value.ty,
            lanes,
        )

    def together(self, *values: V) -> list[V]:
        """The values with equal lanes: scalars beside vectors are splat."""
        lanes = max(v.lanes for v in values)
        return [self.splat(v, lanes) for v in values]

    def op(self, name: str, a: V, b: V) -> V:
        """A binary instruction, flags included in its name (`fadd`, `mul nsw`)."""
        folded = fold(name, a, b)
        if folded is not None:
            return folded
        a, b = self.together(a, b)
        return self.emit(f"{name} {a}, {b.ref}", a.ty, a.lanes)

    def icmp(self, predicate: str, a: V, b: V) -> V:
        x, y = a.constant, b.constant
        if x is not None and y is not None and predicate in COMPARE:
            return integer(int(COMPARE[predicate](x, y)), "i1")
        a, b = self.together(a, b)
        return self.emit(f"icmp {predicate} {a}, {b.ref}", "i1", a.lanes)

    def fcmp(self, predicate: str, a: V, b: V) -> V:
        a, b = self.together(a, b)
        return self.emit(f"fcmp {predicate} {a}, {b.ref}", "i1", a.lanes)

    def fneg(self, a: V) -> V:
        return self.emit(f"fneg {a}", a.ty, a.lanes)

    def select(self, c: V, a: V, b: V) -> V:
        if c.constant is not None:
            return a if c.constant else b
        if c.lanes or a.lanes or b.lanes:
            lanes = max(c.lanes, a.lanes, b.lanes)
            a, b = self.splat(a, lanes), self.splat(b, lanes)
        return self.emit(f"select {c}, {a}, {b}", a.ty, a.lanes)

    def convert(self, name: str, a: V, ty: str) -> V:
        """`sext`, `trunc`, `sitofp`, `bitcast`... lane by lane; nothing where the type is equal."""
        if a.ty == ty:
            return a
        if a.constant is not None and ty[0] == "i" and name in ("sext", "zext", "trunc"):
            value = a.constant
            if name == "zext" and a.ty != "i1":
                value &= (1 << bits_of(a.ty)) - 1
            if name == "sext" and a.ty == "i1":
                value = -value
            return integer(value, ty)
        target = V("", ty, a.lanes).type
        return self.emit(f"{name} {a} to {target}", ty, a.lanes)

    def intrinsic(self, stem: str, *args: V, flags: str = "") -> V:
        """An intrinsic overloaded on its first operand's type, which it also returns."""
        vectors = self.together(*args)
        ty, lanes = vectors[0].ty, vectors[0].lanes
        return self.call(f"{stem}.{suffix(ty, lanes)}", ty, lanes, *vectors, flags=flags)

    def call(
        self, name: str, ty: str, lanes: int, *args: V, flags: str = "", attributes: str = ""
    ) -> V:
        result = V("", ty, lanes).type
        if name not in self.module.made:
            self.module.declare(name, result, [a.type for a in args], attributes)
        listed = ", ".join(str(a) for a in args)
        if ty == "void":
            self.line(f"call void @{name}({listed})")
            return V("", "void")
        return self.emit(
            f"call {flags + ' ' if flags else ''}{result} @{name}({listed})", ty, lanes
        )

    def lane(self, vector: V, index: int) -> V:
        return self.emit(f"extractelement {vector}, i64 {index}", vector.ty)

    def halves(self, vector: V) -> tuple[V, V]:
        """The first and the second half of an even number of lanes."""
        half = vector.lanes // 2
        masks = (", ".join(f"i32 {k * half + i}" for i in range(half)) for k in (0, 1))
        text = f"shufflevector {vector}, {V('poison', vector.ty, vector.lanes)}, <{half} x i32>"
        first, second = (self.emit(f"{text} <{m}>", vector.ty, half) for m in masks)
        return first, second

    def shuffle(self, a: V, b: V, lanes: Sequence[int]) -> V:
        """Lanes of `a`, then of `b`, by number; -1 for one of no consequence."""
        mask = ", ".join(f"i32 {k}" if k >= 0 else "i32 poison" for k in lanes)
        text = f"shufflevector {a}, {b}, <{len(lanes)} x i32> <{mask}>"
        return self.emit(text, a.ty, len(lanes))

    def joined(self, parts: Sequence[V]) -> V:
        """Vectors one after the other; none is longer than the first."""
        total = parts[0]
        for part in parts[1:]:
            size = total.lanes
            wide = [*range(part.lanes), *[-1] * (size - part.lanes)]
            part, count = self.shuffle(part, part, wide), part.lanes
            total = self.shuffle(total, part, [*range(size), *range(size, size + count)])
        return total

    def insert(self, vector: V, value: V, index: int) -> V:
        return self.emit(f"insertelement {vector}, {value}, i64 {index}", vector.ty, vector.lanes)

    def iota(self, lanes: int, ty: str = "i64") -> V:
        return V("<" + ", ".join(f"{ty} {i}" for i in range(lanes)) + ">", ty, lanes)

    def logical_and(self, values: Sequence[V]) -> V | None:
        """All of the conditions; None where there is none (always true)."""
        result: V | None = None
        for v in values:
            if v.constant == 1:
                continue
            result = v if result is None else self.op("and", result, v)
        return result

    def any(self, mask: V) -> V:
        return self.call(f"llvm.vector.reduce.or.{suffix('i1', mask.lanes)}", "i1", 0, mask)

    def all(self, mask: V) -> V:
        return self.call(f"llvm.vector.reduce.and.{suffix('i1', mask.lanes)}", "i1", 0, mask)

    # --- memory

    def alloca(self, ty: str, count: int, align: int) -> V:
        name = "%" + self.fresh("m")
        self.prologue.append(f"  {name} = alloca [{count} x {ty}], align {align}")
        return V(name, "ptr")

    def gep(self, pointer: V, ty: str, index: V) -> V:
        if index.constant == 0:
            return pointer
        return self.emit(f"getelementptr {ty}, {pointer}, {index}", "ptr", index.lanes)

    def load(self, pointer: V, ty: str, lanes: int, align: int) -> V:
        return self.emit(f"load {V('', ty, lanes).type}, {pointer}, align {align}", ty, lanes)

    def store(self, value: V, pointer: V, align: int, stream: bool = False) -> None:
        tail = ", !nontemporal !0" if stream else ""
        self.line(f"store {value}, {pointer}, align {align}{tail}")

    def masked_load(self, pointer: V, mask: V, fill: V, align: int) -> V:
        name = f"llvm.masked.load.{suffix(fill.ty, fill.lanes)}.p0"
        return self.call(name, fill.ty, fill.lanes, pointer, integer(align, "i32"), mask, fill)

    def masked_store(self, value: V, pointer: V, mask: V, align: int) -> None:
        name = f"llvm.masked.store.{suffix(value.ty, value.lanes)}.p0"
        self.call(name, "void", 0, value, pointer, integer(align, "i32"), mask)

    def gather(self, pointers: V, mask: V | None, fill: V, align: int) -> V:
        mask = mask or self.splat(integer(1, "i1"), fill.lanes)
        name = f"llvm.masked.gather.{suffix(fill.ty, fill.lanes)}.{suffix('ptr', fill.lanes)}"
        return self.call(name, fill.ty, fill.lanes, pointers, integer(align, "i32"), mask, fill)

    def scatter(self, value: V, pointers: V, mask: V | None, align: int) -> None:
        mask = mask or self.splat(integer(1, "i1"), value.lanes)
        name = f"llvm.masked.scatter.{suffix(value.ty, value.lanes)}.{suffix('ptr', value.lanes)}"
        self.call(name, "void", 0, value, pointers, integer(align, "i32"), mask)

    # --- control flow

    @contextmanager
    def loop(self, begin: V, end: V, *, unroll: int = 0) -> Iterator[V]:
        """A counted loop over [begin, end); yields the index. LLVM is told to write a body without
        branches several times where that makes no more than `unroll` (see `unrolling`)."""
        head, body, latch, done = (self.fresh(s) for s in ("head", "body", "latch", "done"))
        index, following = V("%" + self.fresh("i"), "i64"), V("%" + self.fresh("n"), "i64")
        before, opening = self.block, len(self.lines)
        self.jump(head)
        self.label(head, dominated=True)
        self.line(
            f"{index.ref} = phi i64 [ {begin.ref}, %{before} ], [ {following.ref}, %{latch} ]"
        )
        self.branch(self.emit(f"icmp slt {index}, {end.ref}", "i1"), body, done)
        first = len(self.lines)
        outer, self._inside = self._inside, []
        with self.arm(body):
            yield index
            weight = self._straight(first + 1) if unroll else None
            copies, all_of_them = unrolling(weight, begin, end, unroll)
            self.jump(latch)
            self.label(latch, dominated=True)
            self.line(f"{following.ref} = add nsw {index}, 1")
            self.line(f"br label %{head}{self._wish(copies, all_of_them)}")
        self.label(done, dominated=True)
        self._inside = outer
        if weight is not None and all_of_them:
            self._inside.append((opening, len(self.lines), weight * copies))

    def _straight(self, first: int) -> int | None:
        """The weight of the lines from `first` on, loops that are unrolled whole included; None
        where there are branches, or calls of functions that become long chains of their own."""
        total, at = 0, first
        for start, end, weight in (*self._inside, (len(self.lines), len(self.lines), 0)):
            own = self.lines[at:start]
            if any(not line.startswith(" ") or "@kir." in line for line in own):
                return None
            total += sum(map(weight_of, own)) + weight
            at = end
        return total

    def _wish(self, copies: int, all_of_them: bool) -> str:
        """Metadata of the branch back to a loop's head: how many copies its body wants."""
        if copies == 1 and not all_of_them:
            return ""
        count = f'"llvm.loop.unroll.count", i32 {copies}'
        how = '"llvm.loop.unroll.full"' if all_of_them else count
        wish = self.module.note(f"!{{!{how}}}")
        return ", !llvm.loop " + self.module.note(f"distinct !{{!self, {wish}}}")

    @contextmanager
    def when(self, condition: V | None) -> Iterator[None]:
        """Code that runs only where a scalar condition holds; always where it is None. Of what
        never runs no line stays."""
        if condition is None or condition.constant == 1:
            yield
            return
        if condition.constant == 0:
            here, block, inside = len(self.lines), self.block, len(self._inside)
            self._known.append({})
            yield
            self._known.pop()
            del self.lines[here:], self._inside[inside:]
            self.block = block
            return
        then, done = self.fresh("then"), self.fresh("fi")
        self.branch(condition, then, done)
        with self.arm(then):
            yield
            self.jump(done)
        self.label(done, dominated=True)

    def phi(self, value: V, block: str, other: V, other_block: str) -> V:
        return self.emit(
            f"phi {value.type} [ {value.ref}, %{block} ], [ {other.ref}, %{other_block} ]",
            value.ty,
            value.lanes,
        )


UNROLLED = 8
"""Copies of a loop's body, at most; all of them where it runs no more often."""
COPIES_WEIGHT = 256
"""Instructions of 256 bits in all the copies of a loop's body, at most."""
SUMS_WEIGHT = 700
"""The same of a loop that accumulates and is written out whole: the taps of a 3 x 3 window share
most of what they load. One that only copies is written out whole or not at all."""
_COUNTED = re.compile(r"\b(load|store|call|f?add|f?sub|f?mul|fdiv|select|icmp|fcmp)\b")
_VECTOR = re.compile(r"<(\d+) x ([a-z]+\d*)>")


def unrolling(weight: int | None, begin: V, end: V, most: int) -> tuple[int, bool]:
    """How many copies of a loop's body of this weight (None: not at all) are worth their code, and
    whether these are all, which may weigh `most`."""
    if weight is None:
        return 1, False
    first, last = begin.constant, end.constant
    if first is not None and last is not None and 0 < last - first <= UNROLLED:
        whole = (last - first) * weight <= most
        return (last - first, True) if whole else (1, False)
    if most <= COPIES_WEIGHT:
        return 1, False
    return next((n for n in (8, 4, 2) if n * weight <= COPIES_WEIGHT), 1), False


def weight_of(line: str) -> int:
    """Instructions of 256 bits that a line becomes, roughly: arithmetic, loads and stores."""
    if not _COUNTED.search(line):
        return 0
    found = _VECTOR.search(line)
    return -(-int(found[1]) * bits_of(found[2]) // 256) if found else 1


COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
}


def fold(name: str, a: V, b: V) -> V | None:
    """A binary integer instruction on constants, or with a neutral constant; None otherwise."""
    x, y, stem = a.constant, b.constant, name.split()[0]
    if x is not None and y is not None:
        if stem in ("add", "sub", "mul"):
            return integer({"add": x + y, "sub": x - y, "mul": x * y}[stem], a.ty)
        if a.ty == "i1" and stem in ("and", "or"):
            return integer(x & y if stem == "and" else x | y, "i1")
    if stem in ("add", "sub") and y == 0:
        return a
    if stem == "add" and x == 0:
        return b
    if stem == "mul" and not a.lanes and not b.lanes and 0 in (x, y):
        return integer(0, a.ty)
    if stem == "mul" and y == 1:
        return a
    if stem == "mul" and x == 1:
        return b
    if stem == "and" and a.ty == "i1" and (x == 1 or y == 1):
        return b if x == 1 else a
    return None
