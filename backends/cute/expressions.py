"""Expressions as CuTe DSL text, and the helpers that the generated source carries.

Each op has a handler from operand texts to text. Narrow floats are widened, computed in f32 and
rounded once, as `kir.ops.compute` does. A handler may name helpers (keys of HELPERS); the
generator prints those that were used at the head of the source, so it stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kir.dtypes import DType, bf16, bool_, f16, f32, i32, i64
from kir.errors import UnsupportedError
from kir.ir import Bitcast, Cast, Const, Expr, Op, Read, Reduce, Var

SCALARS: Mapping[DType, str] = {
    f32: "Float32",
    f16: "Float16",
    bf16: "BFloat16",
    i32: "Int32",
    i64: "Int64",
    bool_: "Boolean",
}
"""The DSL's name of each dtype this backend has."""
STORAGE: Mapping[DType, str] = {**SCALARS, bool_: "Uint8"}
"""The same in memory: a bool is one byte."""
NARROW = (f16, bf16)

HELPERS: Mapping[str, str] = {
    "_select": """def _select(condition, a, b):  # the DSL's own gives an untyped value
    return type(a)(cutlass.select_(condition, a, b))
""",
    "_mul": """def _mul(a, b):  # rounded by itself: never contracted into an fma
    return cute.math.mul(a, b, rounding=cute.math.RoundingMode.NEAREST_EVEN)
""",
    "_add": """def _add(a, b):
    return a + b
""",
    "_max": """def _max(a, b):  # NaN if either is
    return cute.math.max(a, b, propagate_nan=True)
""",
    "_min": """def _min(a, b):  # NaN if either is
    return cute.math.min(a, b, propagate_nan=True)
""",
    "_imul": """def _imul(a, b):
    return a * b
""",
    "_imax": """def _imax(a, b):
    return _select(a < b, b, a)
""",
    "_imin": """def _imin(a, b):
    return _select(b < a, b, a)
""",
    "_iabs": """def _iabs(a):
    return _select(a < 0, -a, a)
""",
    "_sign": """def _sign(a):  # a itself where that is 0 or NaN
    one = type(a)(1)
    sign = _select(a > 0, one, -one)
    return _select((a > 0) | (a < 0), sign, a)
""",
    "_sigmoid": """def _sigmoid(a):
    return Float32(1.0) / (Float32(1.0) + cute.math.exp(-a))
""",
    "_floordiv": """def _floordiv(a, b):  # x // 0 is 0
    one = type(b)(1)
    return _select(b == 0, type(a)(0), a // _select(b == 0, one, b))
""",
    "_mod": """def _mod(a, b):  # sign of the divisor; x % 0 is 0
    return _select(b == 0, type(a)(0), a - _floordiv(a, b) * b)
""",
    "_cdiv": """def _cdiv(a, b):  # rounds up; cdiv(x, 0) is 0
    q = _floordiv(a, b)
    return _select((b != 0) & (q * b != a), q + 1, q)
""",
    "_trem": """def _trem(a, b):  # sign of the dividend; trem(x, 0) is 0
    m = _mod(a, b)
    return _select((m != 0) & ((a < 0) != (b < 0)), m - b, m)
""",
    "_to_int": """def _to_int(kind, a):  # truncates, saturates; NaN gives 0
    return _select(a != a, kind(0), kind(a))
""",
    "_byte": """def _byte(a):  # a bool as it lies in memory
    return Uint8(_select(a, Int32(1), Int32(0)))
""",
    "_padded": """@cute.jit
def _padded(tensor, index, inside, fill):  # touches memory only where `inside` holds
    value = fill
    if inside:
        value = tensor[index]
    return value
""",
    "_and": """def _and(a, b):  # of bools held as bytes
    return a & b
""",
    "_or": """def _or(a, b):  # of bools held as bytes
    return a | b
""",
    "_block_reduce": """def _block_reduce(op, value, scratch, tid, warps):
    # every thread gets `op` over the values of all: shuffles in a warp, then shared memory
    for offset in (16, 8, 4, 2, 1):
        value = op(value, cute.arch.shuffle_sync_bfly(value, offset))
    if warps > 1:
        cute.arch.sync_threads()
        scratch[tid // 32] = value
        cute.arch.sync_threads()
        value = scratch[0]
        for warp in range(1, warps):
            value = op(value, scratch[warp])
    return value
""",
}
NEEDS: Mapping[str, tuple[str, ...]] = {
    name: tuple(other for other in HELPERS if other + "(" in text and other != name)
    for name, text in HELPERS.items()
}
"""Helpers that call others."""

_MATH = {
    "abs", "floor", "ceil", "trunc", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt",
    "rsqrt", "pow", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh",
    "erf", "fma",
}  # fmt: skip
"""Float ops that `cute.math` has under the same name."""
_INFIX = {
    "add": "+", "sub": "-", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "bit_and": "&", "bit_or": "|", "bit_xor": "^",
}  # fmt: skip
_FLOAT = {
    "mul": "_mul({}, {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "max": "_max({}, {})",
    "min": "_min({}, {})",
    "sign": "_sign({})",
    "round": "cute.math.roundeven({})",
    "recip": "(Float32(1.0) / {})",
    "sigmoid": "_sigmoid({})",
    "isnan": "cute.math.isnan({})",
    "isinf": "cute.math.isinf({})",
}
_INTEGER = {
    "mul": "({} * {})",
    "neg": "(-{})",
    "max": "_imax({}, {})",
    "min": "_imin({}, {})",
    "abs": "_iabs({})",
    "sign": "_sign({})",
    "mod": "_mod({}, {})",
    "floordiv": "_floordiv({}, {})",
    "cdiv": "_cdiv({}, {})",
    "tdiv": "_floordiv({0} - _trem({0}, {1}), {1})",
    "trem": "_trem({}, {})",
    "bit_not": "(~{})",
}
_BOOL = {"and": "({} & {})", "or": "({} | {})", "not": "cutlass.not_({})"}

REDUCERS: Mapping[tuple[str, str], str] = {
    ("add", "float"): "_add", ("mul", "float"): "_mul",
    ("max", "float"): "_max", ("min", "float"): "_min",
    ("add", "int"): "_add", ("mul", "int"): "_imul",
    ("max", "int"): "_imax", ("min", "int"): "_imin",
    ("and", "bool"): "_and", ("or", "bool"): "_or",
}  # fmt: skip
"""Update op and dtype kind -> the helper that combines two values across threads."""


def template(op: str, kind: str) -> str | None:
    """The text of `op` on operands of a dtype kind, with `{}` for each operand."""
    if op in _INFIX:
        return f"({{}} {_INFIX[op]} {{}})"
    if kind == "float" and op in _MATH:
        return f"cute.math.{op}({', '.join(['{}'] * {'pow': 2, 'atan2': 2, 'fma': 3}.get(op, 1))})"
    return {"float": _FLOAT, "int": _INTEGER, "bool": _BOOL}.get(kind, {}).get(op)


def constant(value: int | float | bool, dtype: DType) -> str:
    if dtype.is_float and (value != value or value in (float("inf"), float("-inf"))):
        return f'{SCALARS[dtype]}(float("{value}"))'
    return f"{SCALARS[dtype]}({value!r})"


def bare(text: str) -> str:
    """Without the parentheses around the whole, where there are any."""
    if not text.startswith("(") or not text.endswith(")"):
        return text
    depth = 0
    for at, c in enumerate(text):
        depth += {"(": 1, ")": -1}.get(c, 0)
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1]


class Printer:
    """Prints expressions; `names` maps KIR names in scope to Python text, `access` prints the
    element of a tensor. `helpers` collects what the text relies on."""

    def __init__(
        self,
        names: Mapping[str, str],
        access: Callable[[str, tuple[Expr, ...], Printer], str],
        shapes: Mapping[str, tuple[Expr, ...]],
        helpers: set[str],
    ) -> None:
        self.names, self.access, self.shapes, self.helpers = names, access, shapes, helpers

    def use(self, text: str) -> str:
        """Note the helpers that a piece of text names."""
        for name in HELPERS:
            if name + "(" in text or name == text:
                self._need(name)
        return text

    def _need(self, name: str) -> None:
        if name not in self.helpers:
            self.helpers.add(name)
            for other in NEEDS[name]:
                self._need(other)

    def __call__(self, e: Expr) -> str:
        """Text of a value of the DSL's type for `e.dtype`; UnsupportedError names what it lacks."""
        if e.dtype not in SCALARS:
            raise UnsupportedError(
                f"target `nvidia` via `cute` has no {e.dtype}",
                hint=f"it has {', '.join(t.name for t in SCALARS)}; via `triton` has more",
                node=e,
            )
        match e:
            case Const(value, dtype):
                return constant(value, dtype)
            case Var(name):
                return self.names[name]
            case Read():
                return self._read(e)
            case Op():
                return self._op(e)
            case Cast():
                return self._cast(e)
            case Bitcast() | Reduce():
                raise unsupported(e, f"`{type(e).__name__.lower()}`")
        raise unsupported(e, type(e).__name__)

    def _read(self, e: Read) -> str:
        if e.fill is None:
            text = self.access(e.tensor, e.indices, self)
            return f"({text} != 0)" if e.dtype == bool_ else text
        inside = " & ".join(
            f"({self(i)} >= 0) & ({self(i)} < {self(n)})"
            for i, n in zip(e.indices, self.shapes[e.tensor], strict=True)
        )
        element = self.access(e.tensor, e.indices, self)
        tensor, index = element.split("[", 1)
        fill = self.stored(self(e.fill), e.dtype)
        text = self.use(f"_padded({tensor}, ({index[:-1]},), {inside}, {fill})")
        return f"({text} != 0)" if e.dtype == bool_ else text

    def _op(self, e: Op) -> str:
        if e.name == "select":
            condition, a, b = (self(x) for x in e.args)
            if e.dtype == bool_:
                return f"(({condition} & {a}) | (cutlass.not_({condition}) & {b}))"
            return self.use(f"_select({condition}, {a}, {b})")
        operand = e.args[0].dtype
        kind = "bool" if operand.is_bool else operand.kind
        text = template(e.name, kind)
        if text is None or operand not in SCALARS:
            raise unsupported(e, f"`{e.name}` on {operand}")
        divisor = e.args[1] if e.name in ("floordiv", "mod", "cdiv") else None
        if isinstance(divisor, Const) and divisor.value > 0 and operand == i64:  # needs no guard
            text = {
                "floordiv": "({0} // {1})",
                "mod": "({0} - {0} // {1} * {1})",
                "cdiv": f"(({{0}} + {divisor.value - 1}) // {{1}})",
            }[e.name]
        narrow = operand in NARROW
        args = [f"Float32({self(x)})" if narrow else self._operand(e, x) for x in e.args]
        result = self.use(text.format(*args))
        return f"{SCALARS[operand]}({result})" if narrow and e.dtype == operand else result

    def _operand(self, parent: Op, e: Expr) -> str:
        """An operand; an i64 literal beside a variable is printed bare, for readability."""
        bare = parent.name in _INFIX or parent.name in ("mul", "floordiv", "mod", "cdiv")
        others = any(not isinstance(x, Const) for x in parent.args)
        if isinstance(e, Const) and e.type == i64 and bare and others:
            return str(e.value)
        return self(e)

    def _cast(self, e: Cast) -> str:
        source, target, text = e.value.dtype, e.type, self(e.value)
        if source == target:
            return text
        if target == bool_:
            return f"({text} != 0)"
        if source == bool_:
            return self.use(f"_select({text}, {constant(1, target)}, {constant(0, target)})")
        if source in NARROW and target != f32:
            text, source = f"Float32({text})", f32
        if source.is_float and target.is_integer:
            return self.use(f"_to_int({SCALARS[target]}, {text})")
        if source.is_integer and target in NARROW:
            raise unsupported(e, f"a cast of {source} to {target} (it would round twice)")
        return f"{SCALARS[target]}({text})"

    def stored(self, text: str, dtype: DType) -> str:
        """A value as it lies in memory."""
        return self.use(f"_byte({text})") if dtype == bool_ else text

    def all(self, conditions: Sequence[Expr]) -> str:
        texts = [self(c) for c in conditions]
        return bare(texts[0]) if len(texts) == 1 else " & ".join(texts)


def unsupported(node: Expr, what: str, hint: str | None = None) -> UnsupportedError:
    return UnsupportedError(
        f"target `nvidia` via `cute` does not have {what}",
        hint=hint or "`--via triton` covers the whole language",
        node=node,
    )
