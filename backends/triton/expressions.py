"""From IR expressions to Triton source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from kir.backends.triton.handlers import COMPARISONS, EXACT, HANDLERS, INFIX
from kir.backends.triton.names import Names
from kir.backends.triton.prelude import HELPERS
from kir.backends.triton.scope import (
    Condition,
    Lane,
    MemoryBuffer,
    ValueBuffer,
    always,
    at_first_lane,
    names_in,
    nonnegative,
)
from kir.backends.triton.types import held
from kir.backends.triton.values import Value, atom, bare, expanded
from kir.dtypes import DType, bool_, f64, i64
from kir.errors import UnsupportedError
from kir.ir import Bitcast, Cast, Const, Expr, Kernel, Node, Op, Read, Var, walk

WIDTH = 76
"""A longer expression is given a name."""
DIVISIONS = ("floordiv", "mod", "tdiv", "trem", "cdiv")


class Expressions:
    """Writes expressions as lines of Triton; the base of the statement writer.

    `lanes` are the tile axes in scope, `order` the order of a block's dimensions, `conditions`
    the masks in force, `scalars` the Python names of indices and dims.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.names = Names()
        self.lines: list[str] = []
        self.prologue: list[str] = []
        self.depth = 1
        self.scalars: dict[str, str] = {}
        self.lane_of: dict[str, Lane] = {}
        self.lanes: list[Lane] = []
        self.order: list[str] | None = None
        self.conditions: list[Condition] = []
        self.extents: dict[str, Expr] = {}
        self.tensors: dict[str, ValueBuffer | MemoryBuffer] = {}
        self.read_and_written: set[str] = set()
        self.cache: dict[tuple[Expr, tuple[str, ...]], Value] = {}
        self.dims_of: dict[Expr, str] = {}

    # --- lines

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def hoist(self, value: Value, name: str) -> Value:
        """Give a value a name of its own."""
        new = self.names.fresh(name)
        self.line(f"{new} = {bare(value.text)}")
        return Value(new, value.axes)

    def refuse(self, message: str, node: Node, hint: str | None = None) -> UnsupportedError:
        return UnsupportedError(message, node=node, kernel=self.kernel, hint=hint)

    # --- lanes

    def ranking(self) -> list[str]:
        return self.order or [lane.name for lane in self.lanes]

    def sorted(self, axes: set[str]) -> tuple[str, ...]:
        rank = self.ranking()
        return tuple(sorted(axes, key=rank.index))

    def size(self, axes: Sequence[str]) -> str:
        extents = {lane.name: lane.extent for lane in self.lanes}
        return "[" + ", ".join(str(extents[a]) for a in axes) + "]"

    @contextmanager
    def ordered(self, order: list[str]) -> Iterator[None]:
        """Within, blocks have their dimensions in this order of lanes."""
        before, self.order = self.order, order
        try:
            yield
        finally:
            self.order = before

    def lanes_in(self, e: Expr) -> set[str]:
        """The lanes along which an expression varies."""
        found = {self.lane_of[n].name for n in names_in(e) if n in self.lane_of}
        for node in walk(e):
            if isinstance(node, Read):
                buffer = self.tensors.get(node.tensor)
                if isinstance(buffer, ValueBuffer):
                    found |= {lane.name for lane in buffer.private}
                elif isinstance(buffer, MemoryBuffer) and buffer.base is not None:
                    found |= set(buffer.base.axes)
        return found

    def full(self, value: Value, axes: Sequence[str]) -> str:
        """Source of the value broadcast to all of `axes`."""
        if value.axes == tuple(axes) or not axes:
            return value.text
        return f"tl.broadcast_to({expanded(value, axes)}, {self.size(axes)})"

    def join(self, values: Sequence[Value], write: Callable[[list[str]], str]) -> Value:
        """One value made of several, at their common axes."""
        axes = self.sorted({a for v in values for a in v.axes})
        return Value(write([expanded(v, axes) for v in values]), axes)

    # --- masks

    def mask(self, axes: set[str], safe: bool = False) -> tuple[Value | None, set[str]]:
        """The mask of an access that varies along `axes`, and the axes it then needs.

        An access may run only where some active lane wants it. A condition on other lanes is
        tried at their lane 0; where that cannot be told, the access takes on those lanes too. An
        access that is `safe` wherever it runs ignores them.
        """
        found, axes = self.needed(axes, safe)
        parts = [c.value if isinstance(c, Condition) else self.value(c) for c in found]
        if not parts:
            return None, axes
        return self.join(parts, _both), axes

    def needed(self, axes: set[str], safe: bool) -> tuple[list[Condition | Expr], set[str]]:
        """The conditions of `mask`, as they stand or at lane 0 of other lanes; writes nothing."""
        axes = set(axes)
        while True:
            parts, wider = self._needed(axes, safe)
            if wider <= axes:
                return parts, axes
            axes |= wider

    def _needed(self, axes: set[str], safe: bool) -> tuple[list[Condition | Expr], set[str]]:
        parts: list[Condition | Expr] = []
        for condition in self.conditions:
            extra = set(condition.value.axes) - axes
            if not extra:
                parts.append(condition)
                continue
            if safe:
                continue
            others = [c for c in self.conditions if c is not condition]
            projected: Expr | None = condition.expr
            for name, lane in self.lane_of.items():
                if lane.name in extra and projected is not None:
                    shared = any(lane.name in c.value.axes for c in others)
                    projected = None if shared else at_first_lane(projected, name)
            if projected is None:
                return parts, extra
            if not always(projected, self.extents):
                parts.append(projected)
        return parts, set()

    def in_bounds(self, index: Expr, extent: Expr) -> bool:
        """Whether the loops around and the masks in force say that `index` is below `extent`."""
        if isinstance(index, Const) and isinstance(extent, Const):
            return int(index.value) < int(extent.value)
        below = Op("lt", (index, extent), bool_)
        return always(below, self.extents) or any(c.expr == below for c in self.conditions)

    def is_safe(self, r: Read) -> bool:
        """Whether a read is in bounds wherever it runs, by the form of its indices."""
        buffer = self.tensors[r.tensor]
        if r.fill is not None or isinstance(buffer, ValueBuffer):
            return True
        return all(
            nonnegative(i) and self.in_bounds(i, e)
            for i, e in zip(r.indices, buffer.shape, strict=True)
        )

    # --- expressions

    def value(self, e: Expr) -> Value:
        match e:
            case Const():
                return self.constant(e)
            case Var(name):
                if name in self.lane_of:
                    lane = self.lane_of[name].name
                    return Value(lane, (lane,))
                return Value(self.scalar(name))
            case Read():
                return self.read(e)
            case Cast(inner, to):
                return self.named(self.cast(self.value(inner), inner.dtype, to))
            case Bitcast():
                return self.bitcast(e)
            case Op(name) if name in DIVISIONS:
                key = (e, tuple(self.ranking()))
                if key not in self.cache:
                    made = self.op(e)
                    self.cache[key] = made if made.text[0] == "(" else self.hoist(made, "t")
                return self.cache[key]
            case Op():
                return self.named(self.op(e))
        raise self.refuse(f"the Triton backend cannot express {type(e).__name__}", e)

    def scalar(self, name: str) -> str:
        return self.scalars[name]

    def named(self, value: Value) -> Value:
        return self.hoist(value, "t") if len(value.text) > WIDTH else value

    def constant(self, e: Const) -> Value:
        """A literal, rounded to its dtype."""
        if e.type.is_bool:
            text = str(bool(e.value))
        elif e.type.is_integer:
            text = str(int(e.value))
        else:
            text = _float_literal(e.value, e.type)
        return Value(f"tl.full([], {text}, {held(e.type).value})", (), text)

    def op(self, e: Op) -> Value:
        dtype = e.args[-1].dtype if e.name != "shl" and e.name != "shr" else e.args[0].dtype
        index = self.index_division(e)
        if index is not None:
            return index
        values = [self.value(a) for a in e.args]
        if e.name in INFIX:
            made = self.join(_literals(values), lambda t: infix(INFIX[e.name], t))
        elif e.name in HANDLERS:
            made = self.join(values, lambda t: HANDLERS[e.name]([atom(x) for x in t], dtype))
        else:
            raise self.refuse(f"the Triton backend has no handler for `{e.name}`", e)
        exact = e.name in EXACT or e.name in COMPARISONS or not e.type.is_float
        return made if exact else Value(self.rounded(made.text, e.type), made.axes)

    def index_division(self, e: Op) -> Value | None:
        """Division of what is not negative by a positive constant: Triton's own operator."""
        if e.name not in DIVISIONS or e.dtype != i64:
            return None
        divisor = e.args[1]
        if not (isinstance(divisor, Const) and divisor.value > 0 and nonnegative(e.args[0])):
            return None
        v = self.value(e.args[0])
        if v.literal is not None:
            return None
        c = int(divisor.value)
        if e.name == "cdiv":
            return Value(f"(({v.text} + {c - 1}) // {c})", v.axes)
        sign = "%" if e.name in ("mod", "trem") else "//"
        return Value(f"({v.text} {sign} {c})", v.axes)

    def rounded(self, text: str, dtype: DType) -> str:
        """Source of an f32 value rounded to a narrow float."""
        if dtype.name in ("f8e4m3", "f8e5m2"):
            return f"round_{dtype}({bare(text)})"
        if dtype.name in ("f16", "bf16"):
            return f"{atom(text)}.to({held(dtype).memory}).to(tl.float32)"
        return text

    def cast(self, v: Value, old: DType, new: DType) -> Value:
        if old == new:
            return v
        return Value(self.conversion(atom(v.text), old, new), v.axes)

    def conversion(self, x: str, old: DType, new: DType) -> str:
        if new.is_bool:
            return f"({x} != 0)"
        to = held(new).value
        if old.is_float and new.is_integer:
            low, high = (f"tl.full([], {limit}, {to})" for limit in new.limits())
            return f"float_to_int({bare(x)}, {low}, {high}, {to})"
        if not new.is_float:
            return f"{x}.to({to})"
        if new.bits >= 32:
            return x if old.is_float and held(old).value == to else f"{x}.to({to})"
        if old.is_float:
            if old == f64 and new.name != "f16":
                return self.rounded(f"f32_odd({bare(x)})", new)
            if old == f64:
                return f"{x}.to(tl.float16).to(tl.float32)"
            return x if _contains(new, old) else self.rounded(x, new)
        if old.bits >= 32 and new.name != "f16":
            wide = f"f32_odd({x}.to(tl.float64))" if old.bits == 32 else f"int_f32_odd({bare(x)})"
            return self.rounded(wide, new)
        return self.rounded(f"{x}.to(tl.float32)", new)

    def bitcast(self, e: Bitcast) -> Value:
        old, new = e.value.dtype, e.type
        v = self.value(e.value)
        if old == new:
            return v
        raw = self.to_memory(v.text, old)
        if new.is_bool:
            return Value(f"({raw} != 0)", v.axes)
        cast = f"{atom(raw)}.to({held(new).memory}, bitcast=True)"
        return Value(self.from_memory(cast, new), v.axes)

    # --- memory

    def from_memory(self, text: str, dtype: DType) -> str:
        if dtype.is_bool:
            return f"({text} != 0)"
        if dtype.name in ("f16", "bf16"):
            return f"{atom(text)}.to(tl.float32)"
        if dtype.name in ("f8e4m3", "f8e5m2"):
            return f"{dtype}_value({text})"
        return text

    def to_memory(self, text: str, dtype: DType) -> str:
        if dtype.is_bool:
            return f"{atom(text)}.to(tl.int8)"
        if dtype.name in ("f16", "bf16"):
            done = f".to({held(dtype).memory})"  # just rounded: no need to do it twice
            if text.endswith(f"{done}.to(tl.float32)"):
                return text.removesuffix(".to(tl.float32)")
            return atom(text) + done
        if dtype.name in ("f8e4m3", "f8e5m2"):
            return f"{dtype}_bits({bare(text)})"
        return text

    def read(self, r: Read) -> Value:
        key = (r, tuple(self.ranking()))
        if key not in self.cache:
            buffer = self.tensors[r.tensor]
            if isinstance(buffer, ValueBuffer):
                self.cache[key] = self.block(buffer, r.indices, r)
            else:
                self.cache[key] = self.load(r, buffer)
        return self.cache[key]

    def block(self, buffer: ValueBuffer, indices: Sequence[Expr], node: Node) -> Value:
        """A register block as it stands under the lanes that address it."""
        axes = [lane.name for lane in buffer.private]
        for index in indices:
            assert isinstance(index, Var)
            axes.append(self.lane_of[index.name].name)
        return Value(buffer.name, tuple(axes))

    def load(self, r: Read, buffer: MemoryBuffer, raw: bool = False) -> Value:
        """A load under the masks in force; `raw` leaves the element as it lies in memory, with 0
        where it is masked."""
        inside: Value | None = None
        if r.fill is not None:
            inside = self.inside(r, buffer)
        at = self.offset(buffer, r.indices)
        axes = set(at.axes) | (set(inside.axes) if inside is not None else set())
        mask, axes = self.mask(axes, self.is_safe(r))
        if inside is not None:
            mask = inside if mask is None else self.join([inside, mask], _both)
        order = self.sorted(axes | (set(mask.axes) if mask is not None else set()))
        pointer = self.address(buffer, at, order if mask is not None else at.axes)
        parts = [pointer]
        other = _literal_fill(r)
        if mask is not None:
            parts.append(f"mask={bare(expanded(mask, order))}")
            if raw or other is not None:
                parts.append(f"other={other or 0}")
        else:
            order = at.axes
        text = f"tl.load({', '.join(parts)})"
        loaded = self.hoist(Value(text if raw else self.from_memory(text, r.type), order), r.tensor)
        if r.fill is not None and inside is not None and other is None:
            values = [inside, loaded, self.value(r.fill)]
            return self.named(self.join(values, lambda t: f"tl.where({', '.join(t)})"))
        return loaded

    def inside(self, r: Read, buffer: MemoryBuffer) -> Value | None:
        """Whether the indices of a padded read are in bounds."""
        parts: list[Value] = []
        for index, extent in zip(r.indices, buffer.shape, strict=True):
            v = self.value(index)
            if not nonnegative(index):
                zero = Value("0", (), "0")
                parts.append(self.join(_literals([v, zero]), lambda t: infix(">=", t)))
            if not self.in_bounds(index, extent):
                bound = self.value(extent)
                parts.append(self.join(_literals([v, bound]), lambda t: infix("<", t)))
        if not parts:
            return None
        return self.hoist(self.join(parts, lambda t: " & ".join(t)), "inside")

    def offset(self, buffer: MemoryBuffer, indices: Sequence[Expr]) -> Value:
        """The row-major offset of an element, in elements."""
        total = Value("0", (), "0")
        for place, index in enumerate(indices):
            v = self.value(index)
            if v.literal is not None:
                v = Value(_bare_literal(v.literal), (), v.literal)
            if place == 0 or total.literal == "0":
                total = v
                continue
            scaled = Value(f"{atom(total.text)} * {self.dim(buffer.shape[place])}", total.axes)
            if v.literal == "0":
                total = scaled
            else:
                total = self.join([scaled, v], lambda t: f"{t[0]} + {t[1]}")
        if buffer.base is not None:
            total = self.join([buffer.base, total], lambda t: f"{t[0]} + {t[1]}")
        return total

    def dim(self, extent: Expr) -> str:
        """A dimension of a tensor: a literal, a dim, or a name for what is computed from dims."""
        if isinstance(extent, Const):
            return str(int(extent.value))
        if isinstance(extent, Var):
            return self.scalar(extent.name)
        if extent not in self.dims_of:
            return atom(self.value(extent).text)
        return self.dims_of[extent]

    def name_dim(self, extent: Expr, name: str) -> str:
        """At the top of the function: give a dimension that is computed a name."""
        if not isinstance(extent, Const | Var) and extent not in self.dims_of:
            self.dims_of[extent] = self.hoist(self.value(extent), name).text
        return self.dim(extent)

    def address(self, buffer: MemoryBuffer, at: Value, axes: Sequence[str]) -> str:
        if at.literal == "0" and not axes:
            return buffer.pointer
        return f"{buffer.pointer} + {atom(self.full(at, axes)) if axes else atom(at.text)}"


def infix(sign: str, operands: list[str]) -> str:
    """`(a sign b)`, without parentheses around what binds tighter."""
    a, b = operands
    if sign in ("+", "-", "<", "<=", ">", ">=", "==", "!="):
        a, b = _product(a), _product(b)
    return f"({a} {sign} {b})"


def _product(text: str) -> str:
    inner = bare(text)
    return inner if re.fullmatch(r"[\w.]+( \* [\w.]+)+", inner) else text


def _both(texts: list[str]) -> str:
    return " & ".join(atom(t) for t in texts)


def _literals(values: list[Value]) -> list[Value]:
    """Two operands, one of them bare where it is a literal and the other is not."""
    a, b = values
    if a.literal is not None and b.literal is None:
        return [Value(_bare_literal(a.literal)), b]
    if b.literal is not None and a.literal is None:
        return [a, Value(_bare_literal(b.literal))]
    return values


def _bare_literal(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def _float_literal(value: float, dtype: DType) -> str:
    with np.errstate(all="ignore"):
        rounded = float(np.asarray(value, np.float64).astype(dtype.numpy))
    if math.isnan(rounded):
        return 'float("nan")'
    if math.isinf(rounded):
        return f'float("{"-" if rounded < 0 else ""}inf")'
    return str(np.float32(rounded)) if dtype.bits <= 32 else repr(rounded)


def _literal_fill(r: Read) -> str | None:
    """The fill as the `other` of a load: a literal that the memory type can hold directly."""
    if not isinstance(r.fill, Const):
        return None
    if r.type.is_bool:
        return str(int(bool(r.fill.value)))
    if r.type.is_integer:
        return str(int(r.fill.value))
    if r.type.bits == 8:
        return "0" if r.fill.value == 0 and math.copysign(1.0, r.fill.value) > 0 else None
    return _float_literal(float(r.fill.value), r.type)


def _contains(wide: DType, narrow: DType) -> bool:
    """Whether each value of one float type is a value of another (the fp8 types in f16, bf16)."""
    if wide == narrow:
        return True
    return narrow.bits == 8 and wide.bits >= 16


def used_helpers(source: str) -> set[str]:
    """The helpers that a piece of generated source names."""
    return set(re.findall(r"\b(" + "|".join(HELPERS) + r")\b", source))
