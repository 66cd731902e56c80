"""Parse tree to typed IR: names, dtypes, ranks. One walk; `Scope` says what each name means.

A literal is *weak*: it takes the dtype of its neighbour, or of the place it goes to. While walking,
weak expressions carry the dtypes WEAK_INT and WEAK_FLOAT; `coerce` settles them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from lark import Token, Tree

from kir.dtypes import DTYPES, NARROW_FLOATS, DType, bool_, f64, i64, u64
from kir.errors import (
    DTypeError,
    DuplicateNameError,
    KirError,
    ParseError,
    ScopeError,
    ShapeError,
    UnknownNameError,
)
from kir.ir import (
    ARG_REDUCTIONS,
    LOOP_KINDS,
    REDUCTIONS,
    SPACES,
    Axis,
    Bitcast,
    Buffer,
    Call,
    Cast,
    Const,
    Define,
    Dim,
    Expr,
    Graph,
    If,
    Item,
    Kernel,
    Loop,
    LoopKind,
    Module,
    Op,
    Param,
    Read,
    Reduce,
    Schedule,
    Space,
    Span,
    Step,
    StepArg,
    Stmt,
    Store,
    Var,
)
from kir.ops import OPS, result_dtype

Node = Tree[Any]
WEAK_INT = DType("integer literal", "int", 0)
WEAK_FLOAT = DType("float literal", "float", 0)
WEAK = (WEAK_INT, WEAK_FLOAT)

_BINARY = {d.infix: d.name for d in OPS.values() if d.infix and d.arity == 2}
_UNARY = {"-": "neg", "~": "bit_not", "not": "not"}
_UPDATES = {"+": "add", "*": "mul"}
FUNCTIONS = {d.name for d in OPS.values() if d.infix is None}
LITERALS = {"inf": math.inf, "nan": math.nan, "true": True, "false": False}
KEYWORDS = {"kernel", "graph", "schedule", "of", "where", "hint", "buffer", "in", "if", "else",
            "and", "or", "not", "bitcast", *LOOP_KINDS}  # fmt: skip
RESERVED = (
    KEYWORDS | FUNCTIONS | set(REDUCTIONS) | set(ARG_REDUCTIONS) | set(DTYPES) | set(LITERALS)
)


def elaborate_module(tree: Node) -> Module:
    """Type a `module` tree. Raises the first error found, with its span."""
    items: list[Item] = []
    kernels: dict[str, Kernel] = {}
    seen: set[str] = set()
    pending: list[Node] = []
    for child in tree.children:
        name = str(child.children[0])
        if name in seen:
            raise DuplicateNameError(
                f"`{name}` is defined twice in this file",
                span=span_of(child.children[0]),
                hint="give it another name",
            )
        seen.add(name)
        if child.data == "kernel":
            kernels[name] = _Kernel().kernel(child)
        pending.append(child)
    for child in pending:
        if child.data == "kernel":
            items.append(kernels[str(child.children[0])])
        elif child.data == "graph":
            items.append(_graph(child, kernels))
        else:
            items.append(_schedule(child))
    return Module(tuple(items))


def elaborate_steps(tree: Node) -> tuple[Step, ...]:
    return tuple(_step(child) for child in tree.children)


def span_of(thing: Node | Token) -> Span | None:
    at: Any = thing.meta if isinstance(thing, Tree) else thing
    if isinstance(thing, Tree) and thing.meta.empty:
        return None
    return Span(at.line, at.column, at.end_line, at.end_column)


# --- names -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """What a tensor's name stands for. `dtype` is None for a recurrence not yet defined."""

    dtype: DType | None
    shape: tuple[Expr, ...]
    role: str  # input, output, buffer, definition


class Scope:
    """Names visible at a place: indices and dims (None) and tensors. Inner scopes see outer ones."""

    def __init__(self, parent: Scope | None = None, loop: str | None = None) -> None:
        self.parent = parent
        self.loop = loop
        self.depth: int = parent.depth + 1 if parent else 0
        self.names: dict[str, Tensor | None] = {}

    def find(self, name: str) -> tuple[bool, Tensor | None]:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True, scope.names[name]
            scope = scope.parent
        return False, None

    def visible(self) -> list[str]:
        return list(self.names) + (self.parent.visible() if self.parent else [])

    def outside_of(self, loop: str) -> Scope:
        """The scope around the loop of this index (where a recurrence over it lives)."""
        scope: Scope = self
        while scope.loop != loop:
            assert scope.parent is not None
            scope = scope.parent
        assert scope.parent is not None
        return scope.parent

    def loops(self) -> list[str]:
        own = [self.loop] if self.loop else []
        return own + (self.parent.loops() if self.parent else [])

    def declare(self, token: Token, meaning: Tensor | None) -> str:
        name = str(token)
        if name in RESERVED:
            raise ParseError(
                f"`{name}` is a word of the language",
                span=span_of(token),
                hint=f"call it `{name}_` or something better",
            )
        if self.find(name)[0]:
            raise DuplicateNameError(
                f"`{name}` already has a meaning here",
                span=span_of(token),
                hint="names are not shadowed: choose another",
            )
        self.names[name] = meaning
        return name

    def unknown(self, token: Token, what: str = "name") -> KirError:
        near = difflib.get_close_matches(str(token), self.visible(), 3)
        hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else None
        visible = ", ".join(sorted(set(self.visible()))[:12])
        return UnknownNameError(
            f"there is no {what} `{token}` here",
            span=span_of(token),
            hint=hint or f"the names here are: {visible}",
        )


# --- literals and dtypes ---------------------------------------------------------------------


def coerce(e: Expr, dtype: DType) -> Expr:
    """Give a weak expression its dtype; a strong one passes through."""
    if e.dtype not in WEAK:
        return e
    if isinstance(e, Const):
        return _literal(e, dtype)
    assert isinstance(e, Op)
    args = tuple(coerce(a, dtype) for a in e.args)
    return Op(e.name, args, result_dtype(e.name, [a.dtype for a in args]), span=e.span)


def _literal(e: Const, dtype: DType) -> Const:
    if dtype.is_float:
        return Const(round_literal(float(e.value), dtype, e.span), dtype, span=e.span)
    if dtype.is_bool or e.dtype == WEAK_FLOAT:
        raise DTypeError(
            f"`{e.value}` stands where a value of {dtype} is needed",
            span=e.span,
            hint="bools are `true` and `false`" if dtype.is_bool else "convert with a cast",
        )
    if not dtype.holds(int(e.value)):
        low, high = dtype.limits()
        raise DTypeError(f"{e.value} does not fit {dtype} ({low} to {high})", span=e.span)
    return Const(int(e.value), dtype, span=e.span)


def round_literal(value: float, dtype: DType, span: Span | None = None) -> float:
    """`value` rounded to `dtype`; DTypeError where a finite literal overflows."""
    with np.errstate(over="ignore"):
        rounded = float(np.asarray(value, np.float64).astype(dtype.numpy).astype(np.float64))
    if math.isfinite(value) and not math.isfinite(rounded):
        raise DTypeError(f"{value} overflows {dtype}", span=span, hint="write `inf` if you mean it")
    if math.isinf(value) and math.isnan(rounded):
        raise DTypeError(f"{dtype} has no infinity", span=span, hint="its greatest value is 448.0")
    return rounded


def settle(e: Expr) -> Expr:
    """A weak expression in a place that asks for no dtype: integers become i64."""
    if e.dtype == WEAK_FLOAT:
        raise DTypeError(
            "this literal needs a dtype", span=e.span, hint="write it as a cast, like `f32(0.5)`"
        )
    return coerce(e, i64) if e.dtype == WEAK_INT else e


def widen(e: Expr, dtype: DType) -> Expr:
    """The one implicit conversion: a narrower integer to i64, where no value changes."""
    if dtype == i64 and e.dtype.is_integer and e.dtype not in (i64, u64):
        return Cast(e, i64, span=e.span)
    return e


def fit(e: Expr, dtype: DType, what: str) -> Expr:
    """`e` as a value of `dtype`, or a DTypeError that says which cast would do it."""
    e = widen(coerce(e, dtype), dtype)
    if e.dtype != dtype:
        raise DTypeError(
            f"{what} is {dtype}, and this value is {e.dtype}",
            span=e.span,
            hint=f"convert it: `{dtype}(...)`",
        )
    return e


def unify(args: Sequence[Expr], symbol: str, span: Span | None) -> list[Expr]:
    """Give operands that must share a dtype one: literals adapt, narrow integers widen to i64."""
    strong = list(dict.fromkeys(a.dtype for a in args if a.dtype not in WEAK))
    if not strong:
        kind = WEAK_FLOAT if any(a.dtype == WEAK_FLOAT for a in args) else WEAK_INT
        return [_weaken(a, kind) for a in args]
    goal = i64 if i64 in strong else strong[0]
    fitted = [widen(coerce(a, goal), goal) for a in args]
    if any(a.dtype != goal for a in fitted):
        kinds = " and ".join(str(t) for t in strong)
        raise DTypeError(
            f"`{symbol}` joins {kinds}",
            span=span,
            hint=f"nothing is converted silently: cast one side, like `{strong[0]}(...)`",
        )
    return fitted


def _weaken(e: Expr, kind: DType) -> Expr:
    if isinstance(e, Const):
        value = float(e.value) if kind == WEAK_FLOAT else e.value
        return Const(value, kind, span=e.span)
    assert isinstance(e, Op)
    return Op(e.name, tuple(_weaken(a, kind) for a in e.args), kind, span=e.span)


def apply(name: str, args: Sequence[Expr], span: Span | None) -> Expr:
    """An op on operands that may be weak, with a readable error where dtypes do not fit."""
    d = OPS[name]
    symbol = d.infix or name
    if len(args) != d.arity:
        raise DTypeError(f"`{symbol}` takes {d.arity} operands, not {len(args)}", span=span)
    if d.rule in ("philox", "rand"):
        fitted = [fit(args[0], u64, "a seed"), fit(args[1], i64, "a counter")]
    elif d.rule == "select":
        condition = fit(args[0], bool_, "the condition of `select`")
        fitted = [condition, *unify(args[1:], symbol, span)]
    else:
        fitted = unify(args, symbol, span)
    values = fitted[1:] if d.rule == "select" else fitted
    if all(a.dtype in WEAK for a in values):
        if d.rule in ("compare", "test"):
            goal = f64 if d.rule == "test" or values[0].dtype == WEAK_FLOAT else i64
            fitted = [coerce(a, goal) for a in fitted]
        else:
            needs_float = "int" not in d.kinds
            kind = WEAK_FLOAT if needs_float else values[0].dtype
            if kind.kind not in d.kinds:
                raise DTypeError(f"`{symbol}` is not defined on {kind}s", span=span)
            weak = [_weaken(a, kind) for a in values]
            return Op(name, (*fitted[: len(fitted) - len(weak)], *weak), kind, span=span)
    try:
        return Op(name, tuple(fitted), result_dtype(name, [a.dtype for a in fitted]), span=span)
    except DTypeError as error:
        raise error.at(span=span, hint=_op_hint(name, values[0].dtype)) from None


def _op_hint(name: str, dtype: DType) -> str | None:
    if name == "div" and dtype.is_integer:
        return "on integers `//` rounds down and `tdiv(a, b)` to zero; cast for a float quotient"
    if dtype.is_integer and "float" in OPS[name].kinds:
        return "cast the operand to a float, like `f32(...)`"
    if dtype.is_bool:
        return "on bools use `and`, `or`, `not`, `select`"
    return None


# --- kernels ---------------------------------------------------------------------------------


class _Kernel:
    """Elaborates one kernel. `self.scope` is the scope at the place being walked."""

    def __init__(self) -> None:
        self.scope = Scope()
        self.assumed: dict[str, list[Read]] = {}
        """Reads of recurrences whose dtype was taken from their fill, by tensor."""

    def signature(
        self, tree: Node
    ) -> tuple[str, tuple[Dim, ...], tuple[Param, ...], tuple[Param, ...], tuple[Expr, ...]]:
        name, dims, inputs, outputs, constraints = tree.children[:5]
        if str(name) in KEYWORDS:
            raise ParseError(f"`{name}` is a word of the language", span=span_of(name))
        found = tuple(self._dim(d) for d in dims.children)
        ins = tuple(self._param(p, "input") for p in inputs.children)
        outs = tuple(self._param(p, "output") for p in outputs.children)
        if not outs:
            raise ShapeError(
                f"`{name}` has no output", span=span_of(name), hint="write `-> (y: f32[N])`"
            )
        wheres = tuple(fit(self.expr(c), bool_, "a constraint") for c in constraints.children)
        return str(name), found, ins, outs, wheres

    def kernel(self, tree: Node) -> Kernel:
        name, dims, inputs, outputs, constraints = self.signature(tree)
        body = self.block(tree.children[5:])
        return Kernel(
            name, dims, inputs, outputs, constraints, body, span=span_of(tree.children[0])
        )

    def _dim(self, tree: Node) -> Dim:
        default = int(tree.children[1]) if len(tree.children) > 1 else None
        return Dim(self.scope.declare(tree.children[0], None), default, span=span_of(tree))

    def _param(self, tree: Node, role: str) -> Param:
        dtype, shape = self.type(tree.children[1])
        name = self.scope.declare(tree.children[0], Tensor(dtype, shape, role))
        return Param(name, dtype, shape, span=span_of(tree))

    def type(self, tree: Node) -> tuple[DType, tuple[Expr, ...]]:
        dtype = self.dtype(tree.children[0])
        dims = tree.children[1].children if len(tree.children) > 1 else []
        return dtype, tuple(self.index(d, "an extent") for d in dims)

    def dtype(self, token: Token) -> DType:
        if str(token) not in DTYPES:
            near = difflib.get_close_matches(str(token), DTYPES, 2)
            raise UnknownNameError(
                f"there is no dtype `{token}`",
                span=span_of(token),
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else "dtypes: " + " ".join(DTYPES),
            )
        return DTYPES[str(token)]

    # --- statements

    def block(self, trees: Iterable[Node]) -> tuple[Stmt, ...]:
        trees = list(trees)
        self._declare_recurrences(trees)
        return tuple(s for tree in trees for s in self.stmt(tree))

    def _declare_recurrences(self, trees: list[Node]) -> None:
        """Make `h` of `h[t, j: H] = ...` known before its definition: earlier slices may be read
        anywhere in the loop's body."""
        for tree in trees:
            if tree.data != "assign" or not _places(tree):
                continue
            token, places = tree.children[0], tree.children[1].children
            loops = [str(p.children[0]) for p in places if p.data == "name"]
            if not loops or any(n not in self.scope.loops() for n in loops):
                continue
            if not self.scope.find(str(token))[0]:
                home = min((self.scope.outside_of(n) for n in loops), key=lambda s: s.depth)
                blank = tuple(Const(0, i64) for _ in places)
                home.declare(token, Tensor(None, blank, "definition"))

    def stmt(self, tree: Node) -> tuple[Stmt, ...]:
        handlers: dict[str, Callable[[Node], Stmt]] = {
            "assign": self._assign,
            "buffer": self._buffer,
            "loop": self._loop,
            "guard": self._guard,
        }
        return (handlers[tree.data](tree),)

    def _assign(self, tree: Node) -> Stmt:
        token = tree.children[0]
        places = _places(tree)
        binds = any(p.data == "axis" for p in places)
        assign, value = tree.children[-2], tree.children[-1]
        update = str(assign)[:-1]
        known, tensor = self.scope.find(str(token))
        if known and tensor is None:
            raise ScopeError(f"`{token}` is an index or a dim, not a tensor", span=span_of(token))
        new = not known or (tensor is not None and tensor.dtype is None)
        if not update and (new or binds):
            return self._define(tree, token, places, value)
        if tensor is None:
            raise self.scope.unknown(token, "tensor")
        if tensor.role in ("input", "definition"):
            raise ScopeError(
                f"`{token}` is {_article(tensor.role)} and cannot be stored to",
                span=span_of(token),
                hint="only outputs and buffers change; declare `buffer "
                f"{token}_: {tensor.dtype}[...] in local`",
            )
        assert tensor.dtype is not None
        if binds:
            raise ParseError("an update binds no index: loop around it", span=span_of(tree))
        indices = self._indices(token, tensor, places)
        stored = fit(self.expr(value), tensor.dtype, f"`{token}`")
        op = _UPDATES.get(update, update) or None
        if op in ("and", "or") and not tensor.dtype.is_bool:
            raise DTypeError(f"`{op}=` needs a bool tensor", span=span_of(tree))
        if op in ("add", "mul", "max", "min") and tensor.dtype.is_bool:
            raise DTypeError(
                f"`{update}=` is not defined on bool",
                span=span_of(tree),
                hint="use `and=` or `or=`",
            )
        return Store(str(token), indices, stored, op, span=span_of(tree))

    def _define(self, tree: Node, token: Token, places: list[Node], value: Node) -> Define:
        outer = self.scope
        known, tensor = outer.find(str(token))
        if known and tensor is not None and tensor.role not in ("output",) and tensor.dtype:
            raise DuplicateNameError(
                f"`{token}` is already defined", span=span_of(token), hint="choose another name"
            )
        self.scope = Scope(outer)
        dims = tuple(self._place(p) for p in places)
        result = self.expr(value)
        self.scope = outer
        if tensor is not None and tensor.role == "output":
            assert tensor.dtype is not None
            if len(dims) != len(tensor.shape):
                raise ShapeError(
                    f"`{token}` has {len(tensor.shape)} dims, and {len(dims)} are given",
                    span=span_of(tree.children[0]),
                )
            result = fit(result, tensor.dtype, f"`{token}`")
        else:
            result = settle(result)
            shape = tuple(d.extent if isinstance(d, Axis) else Const(0, i64) for d in dims)
            self._declare_definition(token, Tensor(result.dtype, shape, "definition"), result)
        return Define(str(token), dims, result, span=span_of(tree))

    def _declare_definition(self, token: Token, meaning: Tensor, value: Expr) -> None:
        """Enter a definition's dtype; a recurrence's own reads assumed one from their fills."""
        scope: Scope | None = self.scope
        while scope is not None and str(token) not in scope.names:
            scope = scope.parent
        if scope is None:
            self.scope.declare(token, meaning)
            return
        scope.names[str(token)] = meaning
        for assumed in self.assumed.pop(str(token), []):
            if assumed.dtype != meaning.dtype:
                raise DTypeError(
                    f"`{token}` is {meaning.dtype}, and was read as {assumed.dtype} (its fill)",
                    span=assumed.span,
                    hint="make the fill and the definition the same dtype",
                )

    def _place(self, tree: Node) -> Axis | Var:
        if tree.data == "axis":
            return self.axis(tree)
        name = str(tree.children[0]) if tree.data == "name" else ""
        if name not in self.scope.loops():
            raise ShapeError(
                "the left side of a definition holds new indices (`i: N`) and indices of "
                "loops around it",
                span=span_of(tree),
                hint="write `name: extent`",
            )
        return Var(name, span=span_of(tree))

    def _buffer(self, tree: Node) -> Buffer:
        token, type_tree, space = tree.children[:3]
        if str(space) not in SPACES:
            raise UnknownNameError(
                f"there is no memory space `{space}`",
                span=span_of(space),
                hint="spaces: " + ", ".join(SPACES),
            )
        dtype, shape = self.type(type_tree)
        init = None
        if len(tree.children) > 3:
            init = fit(self.expr(tree.children[3]), dtype, f"`{token}`")
        name = self.scope.declare(token, Tensor(dtype, shape, "buffer"))
        return Buffer(name, dtype, shape, cast(Space, str(space)), init, span=span_of(tree))

    def _loop(self, tree: Node) -> Loop:
        kind, axes, where = tree.children[:3]
        rest = tree.children[3:]
        hints: tuple[tuple[str, int], ...] = ()
        if rest and rest[0].data == "hint":
            hints = tuple((str(p.children[0]), int(p.children[1])) for p in rest[0].children)
            rest = rest[1:]
        outer = self.scope
        found: list[Axis] = []
        for axis_tree in axes.children:
            extent = self.index(axis_tree.children[1], "an extent")
            self.scope = Scope(self.scope, str(axis_tree.children[0]))
            name = self.scope.declare(axis_tree.children[0], None)
            found.append(Axis(name, extent, span=span_of(axis_tree)))
        conditions = self._where(where)
        body = self.block(rest)
        self.scope = outer
        loop_kind = cast(LoopKind, str(kind))
        loop = Loop(loop_kind, found[-1], conditions, body, span=span_of(tree))
        for axis in reversed(found[:-1]):
            loop = Loop(loop_kind, axis, (), (loop,), span=span_of(tree))
        return replace(loop, hints=hints)

    def _guard(self, tree: Node) -> If:
        condition = fit(self.expr(tree.children[0]), bool_, "a guard")
        outer, self.scope = self.scope, Scope(self.scope)
        body = self.block(tree.children[1:])
        self.scope = outer
        return If(condition, body, span=span_of(tree))

    # --- expressions

    def axis(self, tree: Node) -> Axis:
        extent = self.index(tree.children[1], "an extent")
        return Axis(self.scope.declare(tree.children[0], None), extent, span=span_of(tree))

    def _where(self, tree: Node) -> tuple[Expr, ...]:
        return tuple(fit(self.expr(c), bool_, "a `where` condition") for c in tree.children)

    def index(self, tree: Node, what: str = "an index") -> Expr:
        e = coerce(self.expr(tree), i64)
        if not e.dtype.is_integer or e.dtype == u64:
            raise DTypeError(
                f"{what} is an integer, not {e.dtype}",
                span=span_of(tree),
                hint="cast it: `i64(...)`",
            )
        return widen(e, i64)

    def _indices(self, token: Token, tensor: Tensor, places: Sequence[Node]) -> tuple[Expr, ...]:
        if len(places) != len(tensor.shape):
            rank = len(tensor.shape)
            raise ShapeError(
                f"`{token}` has {rank} dim{'s' * (rank != 1)}, and {len(places)} indices are given",
                span=span_of(token),
            )
        return tuple(self.index(p) for p in places)

    def expr(self, tree: Node) -> Expr:
        handler: Callable[[Node], Expr] = getattr(self, f"_e_{tree.data}")
        return handler(tree)

    def _e_integer(self, tree: Node) -> Expr:
        return Const(int(str(tree.children[0]), 0 if "x" in tree.children[0] else 10), WEAK_INT,
                     span=span_of(tree))  # fmt: skip

    def _e_real(self, tree: Node) -> Expr:
        value = float(tree.children[0])
        if math.isinf(value):
            raise DTypeError(f"{tree.children[0]} overflows every dtype", span=span_of(tree))
        return Const(value, WEAK_FLOAT, span=span_of(tree))

    def _e_parenthesized(self, tree: Node) -> Expr:
        return self.expr(tree.children[0])

    def _e_name(self, tree: Node) -> Expr:
        token, span = tree.children[0], span_of(tree)
        if str(token) in LITERALS:
            value = LITERALS[str(token)]
            return Const(value, bool_ if isinstance(value, bool) else WEAK_FLOAT, span=span)
        known, tensor = self.scope.find(str(token))
        if not known:
            raise self.scope.unknown(token)
        if tensor is None:
            return Var(str(token), span=span)
        return self._read(token, [], None, span)

    def _e_read(self, tree: Node) -> Expr:
        return self._read(tree.children[0], tree.children[1].children, None, span_of(tree))

    def _e_padded(self, tree: Node) -> Expr:
        read, fill = tree.children
        return self._read(
            read.children[0], read.children[1].children, self.expr(fill), span_of(tree)
        )

    def _read(
        self, token: Token, places: Sequence[Node], fill: Expr | None, span: Span | None
    ) -> Read:
        known, tensor = self.scope.find(str(token))
        if not known:
            raise self.scope.unknown(token, "tensor")
        if tensor is None:
            raise ScopeError(f"`{token}` is an index or a dim, not a tensor", span=span)
        indices = self._indices(token, tensor, places)
        dtype = tensor.dtype
        if dtype is None:
            if fill is None:
                raise ScopeError(
                    f"`{token}` is read before it is defined",
                    span=span,
                    hint="a recurrence reads earlier slices with a fill: "
                    f"`{token}[t - 1, ...] else f32(0.0)`",
                )
            dtype = settle(fill).dtype
        if fill is not None:
            fill = fit(fill, dtype, f"`{token}`")
        read = Read(str(token), indices, dtype, fill, span=span)
        if tensor.dtype is None:
            self.assumed.setdefault(str(token), []).append(read)
        return read

    def _e_unary(self, tree: Node) -> Expr:
        symbol, operand = tree.children
        span = span_of(tree)
        value = self.expr(operand)
        if str(symbol) == "+":
            return value
        if str(symbol) == "-" and isinstance(value, Const) and value.dtype in WEAK and (
            operand.data in ("integer", "real", "name")):  # fmt: skip
            return Const(-value.value, value.type, span=span)
        return apply(_UNARY[str(symbol)], [value], span)

    def _e_binary(self, tree: Node) -> Expr:
        left, symbol, right = tree.children
        return apply(_BINARY[str(symbol)], [self.expr(left), self.expr(right)], span_of(tree))

    def _e_call_function(self, tree: Node) -> Expr:
        token, span = tree.children[0], span_of(tree)
        name, args = str(token), tree.children[-1].children
        brackets = tree.children[1].children if len(tree.children) == 3 else None
        if name == "bitcast":
            return self._bitcast(brackets, args, span)
        if brackets is not None:
            raise ParseError(f"`{name}[...](...)` has no meaning here", span=span)
        if name in DTYPES:
            return self._cast(DTYPES[name], args, span)
        if name not in FUNCTIONS:
            known = FUNCTIONS | set(DTYPES)
            near = difflib.get_close_matches(name, known, 3)
            hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else None
            if name in REDUCTIONS or name in ARG_REDUCTIONS:
                hint = f"a reduction names its indices: `{name}(j: N) x[j]`"
            raise UnknownNameError(f"there is no function `{name}`", span=span_of(token), hint=hint)
        return apply(name, [self.expr(a) for a in args], span)

    def _cast(self, dtype: DType, args: Sequence[Node], span: Span | None) -> Expr:
        if len(args) != 1:
            raise DTypeError(f"a cast takes one value, not {len(args)}", span=span)
        value = self.expr(args[0])
        if value.dtype in WEAK:
            return replace(coerce(value, dtype), span=span)
        return Cast(value, dtype, span=span)

    def _bitcast(
        self, brackets: Sequence[Node] | None, args: Sequence[Node], span: Span | None
    ) -> Expr:
        if not brackets or len(brackets) != 1 or brackets[0].data != "name" or len(args) != 1:
            raise ParseError("a bitcast is written `bitcast[f32](x)`", span=span)
        dtype = self.dtype(brackets[0].children[0])
        value = self.expr(args[0])
        value = (
            coerce(value, DTYPES[f"u{dtype.bits}"]) if value.dtype == WEAK_INT else settle(value)
        )
        if value.dtype.bits != dtype.bits or bool_ in (value.dtype, dtype):
            raise DTypeError(
                f"a bitcast keeps the width: {value.dtype} is not {dtype.bits} bits wide", span=span
            )
        return Bitcast(value, dtype, span=span)

    def _e_reduction(self, tree: Node) -> Expr:
        token, axes_tree, where_tree, body_tree = (tree.children[0], *tree.children[-3:])
        name, span = str(token), span_of(tree)
        if name not in REDUCTIONS and name not in ARG_REDUCTIONS:
            raise UnknownNameError(
                f"there is no reduction `{name}`",
                span=span_of(token),
                hint="reductions: " + ", ".join([*REDUCTIONS, *ARG_REDUCTIONS]),
            )
        outer, self.scope = self.scope, Scope(self.scope)
        axes = tuple(self.axis(a) for a in axes_tree.children)
        where = self._where(where_tree)
        body = settle(self.expr(body_tree))
        self.scope = outer
        if len(tree.children) == 5:
            body = self._accumulate(tree.children[1], body)
        elif name in ("sum", "prod") and body.dtype in NARROW_FLOATS:
            body = Cast(body, DTYPES["f32"], span=body.span)
        if name in ARG_REDUCTIONS and len(axes) != 1:
            raise ShapeError(f"`{name}` takes one index", span=span)
        wants_bool = name in ("any", "all")
        if wants_bool != body.dtype.is_bool:
            raise DTypeError(
                f"`{name}` reduces {'bools' if wants_bool else 'numbers'}, not {body.dtype}",
                span=span,
            )
        return Reduce(name, axes, where, body, span=span)

    def _accumulate(self, tree: Node, body: Expr) -> Expr:
        if len(tree.children) != 1 or tree.children[0].data != "name":
            raise ParseError("the accumulation type is written `sum[f32](...)`", span=span_of(tree))
        dtype = self.dtype(tree.children[0].children[0])
        return body if body.dtype == dtype else Cast(body, dtype, span=body.span)


def _places(assign: Node) -> list[Node]:
    """The trees between the brackets on the left of an assignment."""
    left = assign.children[1]
    return list(left.children) if isinstance(left, Tree) and left.data == "places" else []


def _article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"


# --- graphs and schedules --------------------------------------------------------------------


def _graph(tree: Node, kernels: dict[str, Kernel]) -> Graph:
    walker = _Kernel()
    name, dims, inputs, outputs, constraints = walker.signature(tree)
    tensors = {p.name: (p.type, len(p.shape)) for p in inputs}
    wanted = {p.name: (p.type, len(p.shape)) for p in outputs}
    calls = []
    for call_tree in tree.children[5:]:
        call = _call(call_tree, walker)
        kernel = kernels.get(call.kernel)
        if kernel is None:
            near = difflib.get_close_matches(call.kernel, kernels, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else "define it in the same file"
            raise UnknownNameError(f"there is no kernel `{call.kernel}`", span=call.span, hint=hint)
        _check_call(call, kernel, tensors, wanted)
        calls.append(call)
    for output in outputs:
        if output.name not in tensors:
            raise ScopeError(f"output `{output.name}` is never computed", span=output.span)
    return Graph(
        name, dims, inputs, outputs, constraints, tuple(calls), span=span_of(tree.children[0])
    )


def _call(tree: Node, walker: _Kernel) -> Call:
    results, kernel, args = tree.children[0], tree.children[1], tree.children[-1]
    dims: tuple[tuple[str, Expr], ...] = ()
    if len(tree.children) == 4:
        dims = tuple(
            (str(b.children[0]), walker.index(b.children[1], "a dim"))
            for b in tree.children[2].children
        )
    return Call(tuple(map(str, results.children)), str(kernel), dims, tuple(map(str, args.children)),
                span=span_of(tree))  # fmt: skip


Known = dict[str, tuple[DType, int]]


def _check_call(call: Call, kernel: Kernel, tensors: Known, outputs: Known) -> None:
    counts = ((call.args, kernel.inputs, "inputs"), (call.results, kernel.outputs, "outputs"))
    for given, params, what in counts:
        if len(given) != len(params):
            raise ShapeError(
                f"`{kernel.name}` has {len(params)} {what}, and {len(given)} are given",
                span=call.span,
            )
    names = {d.name for d in kernel.dims}
    for dim, _ in call.dims:
        if dim not in names:
            raise UnknownNameError(
                f"`{kernel.name}` has no dim `{dim}`", span=call.span, hint=", ".join(sorted(names))
            )
    for arg, param in zip(call.args, kernel.inputs):
        if arg not in tensors:
            near = difflib.get_close_matches(arg, tensors, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else None
            raise UnknownNameError(f"there is no tensor `{arg}` yet", span=call.span, hint=hint)
        _same_type(call, arg, tensors[arg], param)
    for result, param in zip(call.results, kernel.outputs):
        if result in tensors:
            raise DuplicateNameError(f"`{result}` is already computed", span=call.span)
        if result in outputs:
            _same_type(call, result, outputs[result], param)
        tensors[result] = (param.type, len(param.shape))


def _same_type(call: Call, name: str, known: tuple[DType, int], param: Param) -> None:
    dtype, rank = known
    if dtype != param.type:
        raise DTypeError(f"`{name}` is {dtype}, and `{param.name}` is {param.type}", span=call.span)
    if rank != len(param.shape):
        raise ShapeError(
            f"`{name}` has {rank} dims, and `{param.name}` has {len(param.shape)}", span=call.span
        )


def _schedule(tree: Node) -> Schedule:
    name, kernel, *steps = tree.children
    return Schedule(str(name), str(kernel), tuple(_step(s) for s in steps), span=span_of(name))


def _step(tree: Node) -> Step:
    name, *rest = tree.children
    args = tuple(_argument(a) for a in rest if a.data != "option")
    options = tuple(
        (str(o.children[0]), _argument(o.children[1])) for o in rest if o.data == "option"
    )
    return Step(str(name), args, options, span=span_of(tree))


def _argument(tree: Node) -> StepArg:
    if tree.data == "group":
        return tuple(_argument(a) for a in tree.children)
    token = str(tree.children[0])
    if tree.data == "word":
        return token
    return int(token) if tree.data == "integer" else float(token)
