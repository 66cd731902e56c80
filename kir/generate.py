"""Random well-typed kernels, as a Hypothesis strategy: small, over all constructs and dtypes.

A kernel has dims M and N, a few inputs and one to four statements, each of one *construct*
(`CONSTRUCTS`) around a random typed expression. The last statements are the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from kir.dtypes import DTYPES, NARROW_FLOATS, DType, bool_, f32, i64, u64
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    Axis,
    Bitcast,
    Buffer,
    Cast,
    Const,
    Define,
    Dim,
    Expr,
    Kernel,
    Loop,
    Param,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    const,
)
from kir.ops import op

CONSTRUCTS = ("map", "reduce", "argument", "pad", "gather", "recurrence", "scatter", "random")
FLOAT_OPS = ("add", "sub", "mul", "div", "max", "min", "neg", "abs", "fma", "exp", "sqrt", "tanh",
             "sigmoid", "log", "floor", "round", "sin", "cos", "rsqrt", "recip", "erf", "pow",
             "expm1", "log1p", "exp2", "log2", "ceil", "trunc", "sign", "tan", "asin", "acos",
             "atan", "atan2", "sinh", "cosh")  # fmt: skip
"""Common ones first: examples shrink, and small kernels lean, towards them."""
INTEGER_OPS = ("add", "sub", "mul", "max", "min", "neg", "abs", "floordiv", "mod", "bit_and",
               "bit_or", "bit_xor", "bit_not", "shl", "shr", "tdiv", "trem", "cdiv",
               "sign")  # fmt: skip
ARITY = {"fma": 3, **dict.fromkeys(("neg", "abs", "bit_not", "sign"), 1)}
BINARY = {"add", "sub", "mul", "div", "max", "min", "pow", "atan2", "floordiv", "mod", "bit_and",
          "bit_or", "bit_xor", "shl", "shr", "tdiv", "trem", "cdiv"}  # fmt: skip
SIMPLE = 9
"""How many ops of the tables `kernels(functions=False)` uses."""
M, N, ROW, COLUMN = Var("M"), Var("N"), Var("i"), Var("j")
EXTENT: dict[str, Expr] = {"i": M, "j": N}


@dataclass
class _Maker:
    draw: st.DrawFn
    dtypes: Sequence[DType]
    functions: bool
    inputs: dict[str, Param] = field(default_factory=dict)
    defined: dict[str, Param] = field(default_factory=dict)
    body: list[Stmt] = field(default_factory=list)

    def pick(self, options: Sequence[str]) -> str:
        return self.draw(st.sampled_from(list(options)))

    def chance(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) >= 100 - percent

    def dtype(self) -> DType:
        return self.draw(st.sampled_from(list(self.dtypes)))

    # --- expressions -------------------------------------------------------------------------

    def constant(self, dtype: DType) -> Expr:
        n = self.draw(st.integers(0, 4))
        if dtype.is_bool:
            return Const(n % 2 == 1, dtype)
        return Const(n / 2 if dtype.is_float else n, dtype)

    def leaf(self, dtype: DType, scope: Sequence[str]) -> Expr:
        """A read whose indices are in scope, an index, or a constant."""
        axes: dict[Expr, Expr] = {EXTENT[s]: Var(s) for s in scope}
        fitting = [
            p
            for p in (*self.inputs.values(), *self.defined.values())
            if p.name not in ("k", "seed") and all(e in axes for e in p.shape)
        ]
        exact = [p for p in fitting if p.type == dtype]
        choice = self.draw(st.integers(0, 9))
        if choice >= 8 or not fitting:
            if scope and choice == 9 and dtype != bool_:
                return self.convert(Var(scope[0]), dtype)
            return self.constant(dtype)
        param = self.draw(st.sampled_from(exact or fitting))
        read = Read(param.name, tuple(axes[e] for e in param.shape), param.type)
        return self.convert(read, dtype)

    def convert(self, expr: Expr, dtype: DType) -> Expr:
        return expr if expr.dtype == dtype else Cast(expr, dtype)

    def expr(self, dtype: DType, scope: Sequence[str], depth: int) -> Expr:
        if depth <= 0:
            return self.leaf(dtype, scope)
        choice = self.draw(st.integers(0, 11))
        if choice < 3:
            return self.leaf(dtype, scope)
        if choice == 9:
            parts = [self.expr(t, scope, depth - 1) for t in (bool_, dtype, dtype)]
            return op("select", *parts)
        if choice == 10:
            return self.convert(self.expr(self.dtype(), scope, depth - 1), dtype)
        if choice == 11 and not dtype.is_bool:
            same = [t for t in self.dtypes if t.bits == dtype.bits and not t.is_bool]
            other = self.draw(st.sampled_from(same or [dtype]))
            if other != dtype and self.functions:
                return Bitcast(self.expr(other, scope, depth - 1), dtype)
        return self.operation(dtype, scope, depth)

    def operation(self, dtype: DType, scope: Sequence[str], depth: int) -> Expr:
        if dtype.is_bool:
            return self.condition(scope, depth)
        table = FLOAT_OPS if dtype.is_float else INTEGER_OPS
        name = self.pick(table if self.functions else table[:SIMPLE])
        arity = 2 if name in BINARY else ARITY.get(name, 1)
        return op(name, *(self.expr(dtype, scope, depth - 1) for _ in range(arity)))

    def condition(self, scope: Sequence[str], depth: int) -> Expr:
        name = self.pick(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "isnan", "isinf"))
        if name in ("and", "or", "not"):
            count = 1 if name == "not" else 2
            return op(name, *(self.expr(bool_, scope, depth - 1) for _ in range(count)))
        dtype = self.dtype()
        if name in ("isnan", "isinf"):
            dtype = dtype if dtype.is_float else f32
            return op(name, self.expr(dtype, scope, depth - 1))
        dtype = f32 if dtype.is_bool else dtype
        return op(name, *(self.expr(dtype, scope, depth - 1) for _ in range(2)))

    def reduction(self, scope: Sequence[str], axes: Sequence[str]) -> Reduce:
        inner = (*scope, *axes)
        name = self.pick(tuple(REDUCTIONS))
        dtype = self.dtype()
        if name in ("all", "any"):
            dtype = bool_
        elif dtype.is_bool:
            dtype = f32
        body = self.expr(dtype, inner, 2)
        if dtype in NARROW_FLOATS and name in ("sum", "prod") and not self.chance(20):
            body = Cast(body, f32)
        where = (self.condition(inner, 1),) if self.chance(30) else ()
        return Reduce(name, tuple(Axis(a, EXTENT[a]) for a in axes), where, body)

    # --- statements --------------------------------------------------------------------------

    def statement(self, construct: str, name: str) -> None:
        dtype = self.dtype()
        if construct == "reduce":
            scope, axes = self.draw(st.sampled_from([("i", "j"), ("j", "i"), ("", "ij")]))
            self.define(name, scope, self.reduction(tuple(scope), tuple(axes)))
        elif construct == "argument":
            dtype = f32 if dtype.is_bool else dtype
            kind = self.pick(tuple(ARG_REDUCTIONS))
            where = (self.condition("ij", 1),) if self.chance(30) else ()
            body = self.expr(dtype, "ij", 2)
            self.define(name, "i", Reduce(kind, (Axis("j", N),), where, body))
        elif construct == "recurrence":
            before = Read(name, (op("sub", ROW, const(1)), COLUMN), dtype, self.constant(dtype))
            if dtype.is_bool:
                value: Expr = op("or", before, self.expr(dtype, "ij", 1))
            else:
                value = op(self.pick(("add", "max")), before, self.expr(dtype, "ij", 1))
            inside = Define(name, (ROW, Axis("j", N)), value)
            self.body.append(Loop("for", Axis("i", M), (), (inside,)))
            self.defined[name] = Param(name, dtype, (M, N))
        elif construct == "scatter":
            self.scatter(name, f32 if dtype.is_bool else dtype)
        else:
            self.define(name, "ij", self.special(construct, dtype))

    def special(self, construct: str, dtype: DType) -> Expr:
        """The body of a definition over i, j."""
        if construct == "pad":
            x = self.inputs["x"]
            away = self.draw(st.integers(0, 4)) - 2
            index = op("add", COLUMN, const(away)) if away >= 0 else op("sub", COLUMN, const(-away))
            return Read("x", (ROW, index), x.type, self.constant(x.type))
        if construct == "gather":
            self.need_indices()
            x = self.inputs["x"]
            return Read("x", (Read("k", (ROW,), i64), COLUMN), x.type)
        if construct == "random":
            self.inputs.setdefault("seed", Param("seed", u64, ()))
            place = op("add", op("mul", ROW, N), COLUMN)
            drawn = op("rand", Read("seed", (), u64), place)
            keep = op("lt", drawn, Const(0.5, f32))
            return op("select", keep, self.expr(dtype, "ij", 1), self.constant(dtype))
        return self.expr(dtype, "ij", 3)

    def need_indices(self) -> None:
        self.inputs.setdefault("k", Param("k", i64, (M,)))

    def define(self, name: str, scope: str, value: Expr) -> None:
        axes = tuple(Axis(s, EXTENT[s]) for s in scope)
        self.body.append(Define(name, axes, value))
        self.defined[name] = Param(name, value.dtype, tuple(EXTENT[s] for s in scope))

    def scatter(self, name: str, dtype: DType) -> None:
        """A zeroed tensor, and updates at indices read from an input."""
        self.need_indices()
        update = self.pick(("add", "max", "min"))
        value = self.expr(dtype, "ij", 1)
        self.defined[name] = Param(name, dtype, (M, N))
        start = Const(0.0 if dtype.is_float else 0, dtype)

        def nest(*body: Stmt) -> Stmt:
            return Loop("for", Axis("i", M), (), (Loop("for", Axis("j", N), (), body),))

        place = (Read("k", (ROW,), i64), COLUMN)
        self.body.append(Buffer(name, dtype, (M, N), "global"))
        self.body.append(nest(Store(name, (ROW, COLUMN), start)))
        self.body.append(nest(Store(name, place, value, update)))


ALL_DTYPES = tuple(DTYPES.values())


@st.composite
def kernels(
    draw: st.DrawFn,
    dtypes: Sequence[DType] = ALL_DTYPES,
    constructs: Sequence[str] = CONSTRUCTS,
    functions: bool = True,
    statements: int = 4,
) -> Kernel:
    """A random kernel: `dtypes` among which it mixes, `constructs` of CONSTRUCTS that it may use;
    without `functions` only arithmetic, comparisons, `select` and casts."""
    maker = _Maker(draw, dtypes, functions)
    main = maker.dtype()
    maker.inputs["x"] = Param("x", main, (M, N))
    for name, shape in (("u", (M,)), ("v", (N,)), ("w", (M, N)), ("z", ())):
        if maker.chance(50):
            maker.inputs[name] = Param(name, maker.dtype(), shape)
    count = draw(st.integers(1, statements))
    for n in range(count):
        maker.statement(maker.pick(constructs), f"t{n}")
    kept = draw(st.integers(1, count))
    outputs = [maker.defined[f"t{n}"] for n in range(count - kept, count)]
    names = {p.name for p in outputs}
    body = tuple(
        Store(s.name, (), s.value)
        if isinstance(s, Define) and s.name in names and not s.dims
        else s
        for s in maker.body
        if not (isinstance(s, Buffer) and s.name in names)
    )
    return Kernel(
        "random_kernel",
        (Dim("M"), Dim("N")),
        tuple(maker.inputs.values()),
        tuple(outputs),
        (),
        body,
    )
