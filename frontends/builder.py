"""Index notation in Python: a decorator that traces a function into a kernel.

    from kir.frontends import kernel

    @kernel("[M, N](x: f32[M, N]) -> (y: f32[M, N])")
    def softmax(k, M, N, x, y):
        i, j = k.indices("i", "j")
        k.m[i:M] = k.max[j:N](x[i, j])
        k.e[i:M, j:N] = k.exp(x[i, j] - k.m[i])
        k.s[i:M] = k.sum[j:N](k.e[i, j])
        y[i:M, j:N] = k.e[i, j] / k.s[i]

`softmax` is then a `kir.ir.Kernel`, the same as its text gives: the function runs once, writes that
text, and the text is parsed. So an error is one of the language, shown on it, each line with the
place in Python that wrote it. `kir.compile(softmax)` makes it callable.

The signature is written as in the language. The function takes the builder `k`, then, by name,
what it uses of the dims, inputs and outputs. What Python has no words for are methods of the
builder: `k.loop`, `k.when`, `k.buffer`. Python's operators are KIR's, with `&`, `|` and `~` of
comparisons for `and`, `or` and `not`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kir.dtypes import DTYPES
from kir.errors import Source, UsageError
from kir.ir import ARG_REDUCTIONS, LOOP_KINDS, REDUCTIONS, Kernel
from kir.ops import OPS
from kir.syntax import parse_kernel
from kir.syntax.scope import RESERVED


class Expression:
    """A part of the text, of any dtype: a tensor, an element, an index, a number, or what is made
    of them. (One class for all: Python swaps comparisons with an instance of a subclass.)"""

    __slots__ = ("builder", "is_element", "is_test", "text")
    __hash__ = None  # type: ignore[assignment]  # `==` makes a comparison

    def __init__(
        self,
        text: str,
        is_test: bool = False,
        is_element: bool = False,
        builder: Builder | None = None,
    ) -> None:
        self.text, self.is_test, self.is_element = text, is_test, is_element
        self.builder = builder

    def __getitem__(self, indices: Any) -> Expression:
        listed = ", ".join(map(_text, _indices(indices)))
        return Expression(f"{self.text}[{listed}]", is_element=True)

    def __setitem__(self, indices: Any, value: Any) -> None:
        if self.builder is None:
            raise UsageError(f"`{self.text}` is no tensor", hint="nothing is assigned to it")
        places = ", ".join(map(_place, _indices(indices)))
        self.builder._assign(f"{self.text}[{places}]", value)

    def __iadd__(self, other: Operand) -> Any:
        """`t[i] += e` updates the tensor; of other values it is Python's own."""
        return _Update("+=", _text(other)) if self.is_element else self + other

    def __imul__(self, other: Operand) -> Any:
        """`t[i] *= e` updates the tensor; of other values it is Python's own."""
        return _Update("*=", _text(other)) if self.is_element else self * other

    def max(self, other: Operand) -> _Update:
        """`t[i] = t[i].max(e)` is the update `t[i] max= e`."""
        return _Update("max=", _text(other))

    def min(self, other: Operand) -> _Update:
        """`t[i] = t[i].min(e)` is the update `t[i] min= e`."""
        return _Update("min=", _text(other))

    def otherwise(self, fill: Operand) -> Expression:
        """`x[i - 1] else fill`: what a read finds beyond its tensor's bounds."""
        return Expression(f"({self.text} else {_text(fill)})")

    def __bool__(self) -> bool:
        raise UsageError(
            f"`{self.text}` has no value while a kernel is traced",
            hint="`k.select(condition, a, b)` chooses element by element, `k.when(condition)` "
            "guards statements; join comparisons by `&` and `|`",
        )

    def __iter__(self) -> Iterator[Any]:
        raise UsageError(
            f"`{self.text}` cannot be iterated over",
            hint="`with k.loop(i=N) as i:` is a loop of the kernel",
        )

    def _with(self, sign: str, other: Operand, is_test: bool = False) -> Expression:
        return Expression(f"({self.text} {sign} {_text(other)})", is_test)

    def _behind(self, sign: str, other: Operand) -> Expression:
        return Expression(f"({_text(other)} {sign} {self.text})")

    def __add__(self, other: Operand) -> Expression:
        return self._with("+", other)

    def __radd__(self, other: Operand) -> Expression:
        return self._behind("+", other)

    def __sub__(self, other: Operand) -> Expression:
        return self._with("-", other)

    def __rsub__(self, other: Operand) -> Expression:
        return self._behind("-", other)

    def __mul__(self, other: Operand) -> Expression:
        return self._with("*", other)

    def __rmul__(self, other: Operand) -> Expression:
        return self._behind("*", other)

    def __truediv__(self, other: Operand) -> Expression:
        return self._with("/", other)

    def __rtruediv__(self, other: Operand) -> Expression:
        return self._behind("/", other)

    def __floordiv__(self, other: Operand) -> Expression:
        return self._with("//", other)

    def __rfloordiv__(self, other: Operand) -> Expression:
        return self._behind("//", other)

    def __mod__(self, other: Operand) -> Expression:
        return self._with("%", other)

    def __rmod__(self, other: Operand) -> Expression:
        return self._behind("%", other)

    def __lshift__(self, other: Operand) -> Expression:
        return self._with("<<", other)

    def __rlshift__(self, other: Operand) -> Expression:
        return self._behind("<<", other)

    def __rshift__(self, other: Operand) -> Expression:
        return self._with(">>", other)

    def __rrshift__(self, other: Operand) -> Expression:
        return self._behind(">>", other)

    def __xor__(self, other: Operand) -> Expression:
        return self._with("^", other)

    def __rxor__(self, other: Operand) -> Expression:
        return self._behind("^", other)

    def __eq__(self, other: Operand) -> Expression:  # type: ignore[override]
        return self._with("==", other, True)

    def __ne__(self, other: Operand) -> Expression:  # type: ignore[override]
        return self._with("!=", other, True)

    def __lt__(self, other: Operand) -> Expression:
        return self._with("<", other, True)

    def __le__(self, other: Operand) -> Expression:
        return self._with("<=", other, True)

    def __gt__(self, other: Operand) -> Expression:
        return self._with(">", other, True)

    def __ge__(self, other: Operand) -> Expression:
        return self._with(">=", other, True)

    def __neg__(self) -> Expression:
        return Expression(f"(-{self.text})")

    def __invert__(self) -> Expression:
        word = "not " if self.is_test else "~"
        return Expression(f"({word}{self.text})", self.is_test)

    def __and__(self, other: Operand) -> Expression:
        return _logical(self, "and", "&", other)

    def __or__(self, other: Operand) -> Expression:
        return _logical(self, "or", "|", other)


Operand = Expression | int | float | bool


def _logical(left: Expression, word: str, sign: str, right: Operand) -> Expression:
    test = left.is_test
    return Expression(f"({left.text} {word if test else sign} {_text(right)})", test)


def _text(value: Any) -> str:
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value)) if value >= 0 else f"({int(value)})"
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return "nan"
        text = "inf" if math.isinf(number) else repr(abs(number))
        return text if number > 0 or str(number) == "0.0" else f"(-{text})"
    raise UsageError(
        f"a {type(value).__name__} has no place in a kernel",
        hint="numbers, indices, dims and elements `x[i]` do",
    )


def _indices(given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def _place(item: Any) -> str:
    """`i: N` of a slice, else an expression."""
    if not isinstance(item, slice):
        return _text(item)
    if not isinstance(item.start, Expression) or item.stop is None or item.step is not None:
        raise UsageError(
            "an index and its extent are written `i:N`",
            hint='where `i` is of `i, j = k.indices("i", "j")`',
        )
    return f"{item.start.text}: {_text(item.stop)}"


@dataclass(frozen=True)
class _Update:
    """What `t[i] += e` makes of `t[i]`, on its way back to `t`."""

    op: str
    value: str


@dataclass(frozen=True)
class TensorType:
    """A dtype and a shape, of a buffer: `f32[4, 64]`."""

    dtype: str
    shape: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.dtype}[{', '.join(self.shape)}]" if self.shape else self.dtype


@dataclass(frozen=True)
class Type:
    """A dtype: `f32[4, 64]` is the type of a buffer, `f32(x[i])` a cast."""

    name: str

    def __getitem__(self, shape: Any) -> TensorType:
        return TensorType(self.name, tuple(map(_text, _indices(shape))))

    def __call__(self, value: Operand) -> Expression:
        return Expression(f"{self.name}({_text(value)})")


TYPES = {name: Type(name) for name in DTYPES}


class _Reduction:
    """`k.sum[j:N, ...](body, where=condition)`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, axes: Any) -> Callable[..., Expression]:
        listed = ", ".join(map(_place, _indices(axes)))

        def reduce(body: Operand, where: Operand | None = None) -> Expression:
            condition = "" if where is None else f" where {_text(where)}"
            return Expression(f"({self._name}({listed}{condition}) {_text(body)})")

        return reduce

    def __call__(self, *args: Operand) -> Expression:
        """`k.max(a, b)` and `k.min(a, b)` of two numbers."""
        return Expression(f"{self._name}({', '.join(map(_text, args))})")


class Builder:
    """Writes a kernel's statements as the traced function goes along.

    `k.name[...]` is a tensor, `k.exp` and the like are functions, `k.sum[j:N](...)` reductions.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 1

    def indices(self, *names: str) -> tuple[Expression, ...]:
        """New indices, to be bound on the left of definitions and in reductions."""
        return tuple(self._named(n) for n in names)

    def _named(self, name: str) -> Expression:
        return Expression(_name_of(name), builder=self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in REDUCTIONS or name in ARG_REDUCTIONS:
            return _Reduction(name)
        if name in OPS:
            return lambda *args: Expression(f"{name}({', '.join(map(_text, args))})")
        return self._named(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_lines", "_depth"):
            object.__setattr__(self, name, value)
        else:
            self._assign(_name_of(name), value)

    def bitcast(self, dtype: Type, value: Operand) -> Expression:
        """The same bits as another dtype of the same width."""
        return Expression(f"bitcast[{dtype.name}]({_text(value)})")

    def buffer(
        self, name: str, type: TensorType | Type, space: str = "local", init: Operand | None = None
    ) -> Expression:
        """Memory to the end of the block, in `global`, `local` or `reg`."""
        kind = type.name if isinstance(type, Type) else type.text
        start = "" if init is None else f" = {_text(init)}"
        self._write(f"buffer {_name_of(name)}: {kind} in {_name_of(space)}{start}")
        return self._named(name)

    @contextmanager
    def loop(
        self, *, kind: str = "for", where: Operand | None = None, **axes: Operand
    ) -> Iterator[Any]:
        """`with k.loop(i=M, j=N) as (i, j):` is `for i: M, j: N { ... }`."""
        if kind not in LOOP_KINDS or not axes:
            raise UsageError(
                f"`{kind}` is no kind of loop" if axes else "a loop needs an index",
                hint="`k.loop(i=N)` with a kind of " + ", ".join(LOOP_KINDS),
            )
        listed = ", ".join(f"{_name_of(n)}: {_text(e)}" for n, e in axes.items())
        condition = "" if where is None else f" where {_text(where)}"
        found = self.indices(*axes)
        with self._block(f"{kind} {listed}{condition}"):
            yield found if len(found) > 1 else found[0]

    @contextmanager
    def when(self, condition: Operand) -> Iterator[None]:
        """`with k.when(i < j):` is `if i < j { ... }`."""
        with self._block(f"if {_text(condition)}"):
            yield

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        self._write(f"{head} {{")
        self._depth += 1
        yield
        self._depth -= 1
        self._lines.append("  " * self._depth + "}")

    def _assign(self, target: str, value: Any) -> None:
        if isinstance(value, _Update):
            self._write(f"{target} {value.op} {value.value}")
        else:
            self._write(f"{target} = {_text(value)}")

    def _write(self, line: str) -> None:
        """A line of the kernel, and which line of Python it is of."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename in (__file__, _CONTEXTLIB):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self._lines.append(f"{'  ' * self._depth}{line}  # {place}")


_CONTEXTLIB = contextmanager.__code__.co_filename


def _name_of(name: str) -> str:
    """A name that may stand in the text; the parser says the rest."""
    if not name.isidentifier() or not name.isascii() or name in RESERVED:
        raise UsageError(f"`{name}` is no name for a tensor or an index")
    return name


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """The kernel of this signature whose statements a function writes; see this module.

    UsageError where Python does what the language cannot; the language's own errors where the
    text that is written is wrong.
    """

    def trace(function: Callable[..., Any]) -> Kernel:
        builder, code = Builder(), function.__code__
        _, *names = inspect.signature(function).parameters
        function(builder, *(builder._named(n) for n in names))
        head = f"kernel {_name_of(function.__name__)}{signature} {{"
        place = f"{function.__name__} of {Path(code.co_filename).name}"
        text = "\n".join([head, *builder._lines, "}", ""])
        return parse_kernel(Source(f"<{place}>", text))

    return trace
