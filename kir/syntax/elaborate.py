"""Parse tree to typed IR: names, dtypes, ranks. One walk; `Scope` says what each name means."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import cast

from lark import Token, Tree

from kir.dtypes import DTYPES, NARROW_FLOATS, DType, bool_, i64, u64
from kir.errors import (
    DTypeError,
    DuplicateNameError,
    ParseError,
    ScopeError,
    ShapeError,
    UnknownNameError,
)
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    SPACES,
    Axis,
    Bitcast,
    Buffer,
    Cast,
    Const,
    Define,
    Dim,
    Expr,
    If,
    Kernel,
    Loop,
    LoopKind,
    Param,
    Read,
    Reduce,
    Space,
    Span,
    Stmt,
    Store,
    Var,
)
from kir.ops import OPS
from kir.syntax.literals import WEAK, WEAK_FLOAT, WEAK_INT, apply, coerce, fit, settle, widen
from kir.syntax.scope import FUNCTIONS, KEYWORDS, LITERALS, Node, Scope, Tensor, span_of

_BINARY = {d.infix: d.name for d in OPS.values() if d.infix and d.arity == 2}
_UNARY = {"-": "neg", "~": "bit_not", "not": "not"}
_UPDATES = {"+": "add", "*": "mul"}


# --- kernels ---------------------------------------------------------------------------------


class KernelElaborator:
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
            raise ParseError(
                f"`{name}` is a word of the language",
                span=span_of(name),
                hint=f"call it `{name}_` or something better",
            )
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
        buffers = {str(tree.children[0]) for tree in trees if tree.data == "buffer"}
        for tree in trees:
            if tree.data != "assign" or not _places(tree) or str(tree.children[0]) in buffers:
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
            raise _not_a_tensor(token)
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
            raise ParseError(
                "an update binds no index",
                span=span_of(tree),
                hint=f"loop around it: `for i: N {{ {token}[i] {assign} ... }}`",
            )
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
            indices = ", ".join("ijklmnpq"[d % 8] for d in range(rank))
            raise ShapeError(
                f"`{token}` has {rank} dim{'s' * (rank != 1)}, and {len(places)} indices are given",
                span=span_of(token),
                hint=f"write `{token}[{indices}]`" if rank else f"write `{token}` alone",
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
            raise _not_a_tensor(token)
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
            raise ParseError(
                "a bitcast names a dtype and takes one value",
                span=span,
                hint="write `bitcast[f32](x)`",
            )
        dtype = self.dtype(brackets[0].children[0])
        value = self.expr(args[0])
        value = (
            coerce(value, DTYPES[f"u{dtype.bits}"]) if value.dtype == WEAK_INT else settle(value)
        )
        if value.dtype.bits != dtype.bits or bool_ in (value.dtype, dtype):
            raise DTypeError(
                f"a bitcast keeps the width: {value.dtype} is not {dtype.bits} bits wide",
                span=span,
                hint="cast to a type of that width first",
            )
        return Bitcast(value, dtype, span=span)

    def _e_reduction(self, tree: Node) -> Expr:
        token = tree.children[0]
        axes_tree, where_tree, body_tree = tree.children[-3:]
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
            raise ShapeError(
                f"`{name}` takes one index",
                span=span,
                hint="reduce one axis at a time, or reshape into one axis",
            )
        wants_bool = name in ("any", "all")
        if wants_bool != body.dtype.is_bool:
            raise DTypeError(
                f"`{name}` reduces {'bools' if wants_bool else 'numbers'}, not {body.dtype}",
                span=span,
                hint="compare: `x[j] != 0`" if wants_bool else "cast with `i32(...)`, or use `any`",
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


def _not_a_tensor(token: Token) -> ScopeError:
    return ScopeError(
        f"`{token}` is an index or a dim, not a tensor",
        span=span_of(token),
        hint=f"its value is `{token}` alone",
    )


def _article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"
