"""Parser, printer and formatter: round trips, literals, precedence, limits, comments."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kir.dtypes import DTYPES, FLOATS, INTEGERS, bf16, f32, i64
from kir.errors import DTypeError, KirError, LimitError, ParseError, Source
from kir.ir import Const, Define, Expr, Kernel, Loop, Op, Read, Reduce, Store, Var, walk
from kir.ops import OPS, op
from kir.syntax import (
    format_expr,
    format_kernel,
    format_module,
    format_source,
    load,
    parse,
    parse_kernel,
    parse_steps,
)
from kir.syntax.literals import round_literal

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").rglob("*.kir"))


def value_of(text: str, inputs: str = "x: f32[N]", output: str = "f32") -> Expr:
    """The expression `text`, as the value of a definition over i: N."""
    kernel = parse_kernel(f"kernel k[N]({inputs}) -> (y: {output}[N]) {{ y[i: N] = {text} }}")
    statement = kernel.body[-1]
    assert isinstance(statement, Define)
    return statement.value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_round_trip_and_format(path: Path) -> None:
    source = load(path)
    module = parse(source)
    assert parse(format_module(module)) == module
    formatted = format_source(source)
    assert parse(formatted) == module
    assert format_source(Source("again", formatted)) == formatted
    assert comments(formatted) == comments(source.text)
    assert formatted == source.text, "examples are kept in canonical form: `kir fmt` them"


def comments(text: str) -> list[str]:
    return [line[line.index("#") :].strip() for line in text.split("\n") if "#" in line]


def test_precedence() -> None:
    assert value_of("x[i] - x[i] - x[i]") == value_of("(x[i] - x[i]) - x[i]")
    assert value_of("x[i] + x[i] * x[i]") == value_of("x[i] + (x[i] * x[i])")
    assert value_of("-x[i] * x[i]") == value_of("(-x[i]) * x[i]")
    text = "not i < 1 and i > 2 or i == 3"
    grouped = "((not (i < 1)) and (i > 2)) or (i == 3)"
    assert value_of(text, output="bool") == value_of(grouped, output="bool")
    assert value_of("1 << i + 1", output="i64") == value_of("1 << (i + 1)", output="i64")
    assert value_of("i & 3 == 1", output="bool") == value_of("(i & 3) == 1", output="bool")
    body = value_of("sum(j: N) x[j] / 2")
    assert isinstance(body, Reduce) and isinstance(body.body, Op) and body.body.name == "div"


def test_literals_take_the_dtype_of_their_neighbour() -> None:
    product = value_of("x[i] * 2", "x: bf16[N]", "bf16")
    assert isinstance(product, Op) and product.args[1] == Const(2.0, bf16)
    assert value_of("2 * 3 + x[i]") == op(
        "add", op("mul", Const(2.0, f32), Const(3.0, f32)), Read("x", (Var("i"),), f32)
    )
    assert value_of("f32(0.5)") == Const(0.5, f32)
    assert value_of("-1") == Const(-1.0, f32)
    assert value_of("i + 1", output="i64") == op("add", Var("i"), Const(1, i64))
    assert value_of("-inf") == Const(-math.inf, f32)


@pytest.mark.parametrize(
    ("text", "output"),
    [("300", "i8"), ("-1", "u8"), ("70000.0", "f16"), ("0.5", "i32"), ("inf", "f8e4m3"),
     ("1", "bool"), ("1e400", "f64"), ("x[i] + 0x10000000000000000 + i64(0)", "i64")],
)  # fmt: skip
def test_a_literal_that_does_not_fit(text: str, output: str) -> None:
    with pytest.raises(DTypeError):
        value_of(text, output=output)


def test_narrow_sums_accumulate_in_f32_visibly() -> None:
    kernel = parse_kernel("kernel k[N](x: bf16[N]) -> (y: f32) { y = sum(j: N) x[j] }")
    assert "sum(j: N) f32(x[j])" in format_kernel(kernel)
    narrow = parse_kernel("kernel k[N](x: bf16[N]) -> (y: bf16) { y = sum[bf16](j: N) x[j] }")
    assert "sum[bf16](j: N) x[j]" in format_kernel(narrow)


def test_integers_widen_to_i64_beside_an_index_and_nowhere_else() -> None:
    assert value_of("i + a[i]", "a: i32[N]", "i64").dtype == i64
    with pytest.raises(DTypeError):
        value_of("a[i] + b[i]", "a: i32[N], b: i16[N]", "i32")
    with pytest.raises(DTypeError):
        value_of("i + a[i]", "a: u64[N]", "i64")


def test_a_loop_header_joins_and_parts() -> None:
    text = """kernel k[N](x: f32[N]) -> (y: f32[N, N]) {
      for i: N, j: N where i < j hint(a = 1) { y[i, j] = x[i] }
    }"""
    kernel = parse_kernel(text)
    outer = kernel.body[0]
    assert isinstance(outer, Loop) and outer.hints == (("a", 1),) and outer.where == ()
    inner = outer.body[0]
    assert isinstance(inner, Loop) and len(inner.where) == 1 and inner.hints == ()
    assert parse_kernel(format_kernel(kernel)) == kernel


def test_a_recurrence_reads_itself_and_lives_on() -> None:
    kernel = parse_kernel(
        "kernel k[T](x: f32[T]) -> (y: f32) where T >= 1 {"
        " for t: T { h[t] = (h[t - 1] else f32(0)) + x[t] } y = h[T - 1] }"
    )
    assert parse_kernel(format_kernel(kernel)) == kernel
    assert isinstance(kernel.body[1], Store)


def test_steps_round_trip() -> None:
    text = (
        "schedule s of k {\n  split(j, 1024, tail = mask)\n"
        "  reorder((i,))\n  f(-3, 1.5, (a, (b, 2)))\n}\n"
    )
    module = parse(text)
    assert format_module(module) == text
    assert parse_steps("split(j, 1024, tail = mask)")[0] == module.schedules()["s"].steps[0]


@given(st.sampled_from(FLOATS), st.floats(allow_nan=False, allow_infinity=False))
def test_float_literals_round_trip(dtype: object, value: float) -> None:
    assert dtype in FLOATS
    try:
        rounded = round_literal(value, dtype)  # type: ignore[arg-type]
    except DTypeError:
        return
    constant = Const(rounded, dtype)  # type: ignore[arg-type]
    kernel = parse_kernel(f"kernel k() -> (y: {dtype}) {{ y = {format_expr(constant)} }}")
    assert kernel.body[0].value == constant  # type: ignore[attr-defined]


def expressions() -> st.SearchStrategy[Expr]:
    """Well-typed expressions over f32 and i64 leaves, all ops that have these types."""
    leaves: st.SearchStrategy[Expr] = st.one_of(
        st.sampled_from([Var("i"), Var("N")]),
        st.integers(-5, 2**62).map(lambda v: Const(v, i64)),
        st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda v: Const(v, f32)),
        st.just(Read("x", (Var("i"),), f32)),
        st.just(Read("x", (op("sub", Var("i"), Const(1, i64)),), f32, Const(0.5, f32))),
        st.booleans().map(lambda b: Const(b, DTYPES["bool"])),
    )

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        def build(name: str, args: list[Expr]) -> Expr:
            try:
                return op(name, *args[: OPS[name].arity])
            except DTypeError:
                return args[0]

        return st.builds(
            build, st.sampled_from(sorted(OPS)), st.lists(inner, min_size=3, max_size=3)
        )

    return st.recursive(leaves, grow, max_leaves=12)


@given(expressions())
def test_any_expression_round_trips(e: Expr) -> None:
    definition = Define("y", (), e)
    base = parse_kernel("kernel k[N](x: f32[N]) -> (z: f32) { for i: N { z = x[i] } }")
    loop = base.body[0]
    assert isinstance(loop, Loop)
    kernel = Kernel(
        base.name, base.dims, base.inputs, base.outputs, (),
        (Loop("for", loop.axis, (), (definition, *loop.body)),),
    )  # fmt: skip
    assert parse_kernel(format_kernel(kernel)) == kernel


HOSTILE = {
    "parentheses": "kernel k(x: f32) -> (y: f32) { y = " + "(" * 100_000,
    "minus signs": "kernel k(x: f32) -> (y: f32) { y = " + "-" * 100_000 + "x }",
    "a long sum": "kernel k(x: f32) -> (y: f32) { y = " + "x + " * 50_000 + "x }",
    "braces": "kernel k(x: f32) -> (y: f32) { " + "if true { " * 50_000,
    "a long name": "kernel " + "k" * 500_000,
    "a long number": "kernel k() -> (y: i64) { y = " + "9" * 500_000 + " }",
    "two megabytes": "# " + "x" * 2_000_000,
    "a NUL": "kernel k\0() -> (y: f32) { y = f32(1) }",
    "a lone surrogate's place": "kernel k() -> (y: f32) { y = \u2028 }",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_ends_in_a_message(name: str) -> None:
    with pytest.raises((LimitError, ParseError)) as caught:
        parse(HOSTILE[name])
    assert len(str(caught.value)) < 2000


def test_keywords_of_other_languages_are_names() -> None:
    text = """kernel lambda[def](class: f32[def]) -> (return: f32[def]) {
      return[define: def] = class[define]
    }"""
    assert parse(format_module(parse(text))) == parse(text)


def test_comments_survive_anywhere() -> None:
    text = """# top
kernel k[N](  # dims
  x: f32[N]  # input
) -> (y: f32[N]) {  # open
  # before

  y[i: N] =  # equals
    x[i]  # value
  # last
}  # close
# end
"""
    formatted = format_source(Source("t", text))
    assert sorted(comments(formatted)) == sorted(comments(text))
    assert format_source(Source("t", formatted)) == formatted
    assert parse(formatted) == parse(text)


def test_the_span_of_every_node_lies_in_the_text() -> None:
    source = load(EXAMPLES[0])
    lines = source.text.split("\n")
    for item in parse(source).items:
        for node in walk(item):
            if node.span:
                assert 1 <= node.span.line <= node.span.end_line <= len(lines)


def test_errors_point_at_the_place() -> None:
    with pytest.raises(KirError) as caught:
        parse("kernel k[N](x: f32[N]) -> (y: f32[N]) {\n  y[i: N] = x[j]\n}")
    assert caught.value.span is not None
    assert (caught.value.span.line, caught.value.span.column) == (2, 15)
    assert "^" in str(caught.value)


def test_every_dtype_is_a_cast() -> None:
    for dtype in DTYPES.values():
        assert value_of(f"{dtype}(x[i])", output=str(dtype)).dtype == dtype
    for dtype in INTEGERS:
        assert np.iinfo(dtype.numpy).bits == dtype.bits


def test_a_buffer_is_stored_to_by_the_indices_of_loops_around_it() -> None:
    """`t[j] = ...` beside the buffer `t` is a store, no slice of a recurrence."""
    kernel = parse_kernel(
        """kernel k[N](x: f32[N]) -> (y: f32[N]) {
             for j: N {
               buffer t: f32[N] in local = 1.0
               t[j] = x[j]
               t[j] *= 2.0
               y[j] = t[j]
             }
           }"""
    )
    assert parse_kernel(format_kernel(kernel)) == kernel
    (loop,) = kernel.body
    assert isinstance(loop, Loop)
    assert [type(s).__name__ for s in loop.body] == ["Buffer", "Store", "Store", "Store"]
