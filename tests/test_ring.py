"""The ring: the laws it keeps, every op of the table, and what it tells apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kir.dtypes import DTYPES, bf16, bool_, f16, f32, f64, i32, i64, u64
from kir.interpret import difference, field, levels_of, run, run_ring
from kir.interpret.codes import KIND, LOST, MINUS, NAN, PLUS, order
from kir.interpret.domain import Value
from kir.interpret.elements import EXPONENTIALS, HASHED
from kir.interpret.ring import EXACT_TESTS, LAWFUL, Ring
from kir.ir import Kernel, Step
from kir.ops import OPS, compute, result_dtype
from kir.rewrites import apply_step
from kir.syntax import parse_kernel

Array = np.ndarray[Any, Any]
RING = Ring(3, seed=1)


def element(*shape: int, seed: int = 0, ring: Ring = RING) -> Value:
    return ring.draw(np.zeros(shape, np.float32), f32, seed, f"x{seed}")


def apply(name: str, *args: Value, ring: Ring = RING) -> Value:
    return ring.op(name, args, [f32] * len(args), f32)


def known(value: float) -> Value:
    return RING.stored(RING.constant(value, f64), f64)


def same(a: Value, b: Value, fields: int = 3) -> bool:
    """Whether two floats are equal in the first fields, and of one kind."""
    kinds = [np.broadcast_to(v[-1], v[0].shape) & np.uint8(KIND) for v in (a, b)]
    planes = zip([*a[:fields], kinds[0]], [*b[:fields], kinds[1]], strict=True)
    return all(np.array_equal(x, y) for x, y in planes)


# --- the fields --------------------------------------------------------------------------------


def is_prime(n: int) -> bool:
    """Miller-Rabin with the first twelve primes: certain below 3.3e24 (Sorenson, Webster 2015)."""
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for a in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(s - 1)):
            return False
    return True


def test_primes_form_a_tower() -> None:
    q0, q1, q2 = field.PRIMES
    assert all(is_prime(q) and q % 4 == 3 for q in field.PRIMES)
    assert q0 < 2**32  # so that products fit in 64 bits
    assert (q0 - 1) % q1 == (q1 - 1) % q2 == 0
    assert pow(2, q1, q0) == pow(2, q2, q1) == 1


@pytest.mark.parametrize("q", field.PRIMES)
@pytest.mark.parametrize("n", [0, 1, 24, 25, 49, 1000])
def test_inverse(q: int, n: int) -> None:
    x = np.random.default_rng(n).integers(1, q, n, np.uint64)
    x[::7] = 0
    assert np.array_equal(x * field.inverse(x, q) % np.uint64(q), (x != 0).astype(np.uint64))


@pytest.mark.parametrize("q", field.PRIMES)
def test_product_and_power_agree_with_python(q: int) -> None:
    x = np.random.default_rng(3).integers(1, q, (7, 5), np.uint64)
    wanted = [math.prod(int(v) for v in column) % q for column in x.T]
    assert field.product(x, q).tolist() == wanted
    assert field.power(x[0], 77, q).tolist() == [pow(int(v), 77, q) for v in x[0]]


@pytest.mark.parametrize("level", [0, 1])
def test_power_of_two(level: int) -> None:
    q, below = field.PRIMES[level], field.PRIMES[level + 1]
    x = np.random.default_rng(4).integers(0, below, 9, np.uint64)
    assert field.power_of_two(x, level).tolist() == [pow(2, int(v), q) for v in x]


def test_machine_floats_are_the_fractions_that_they_are() -> None:
    q = field.PRIMES[0]
    values = [0.0, 1.0, -1.0, 0.5, 3.75, 0.1, -1e300, 5e-324, 1.7976931348623157e308]
    for v in values:
        top, bottom = v.as_integer_ratio()
        assert int(field.of_floats(np.asarray(v), q)) == top * pow(bottom, -1, q) % q


# --- laws --------------------------------------------------------------------------------------

LAWS: dict[str, Callable[[Value, Value, Value], tuple[Value, Value]]] = {
    "a + (b + c) = (a + b) + c": lambda a, b, c: (
        apply("add", a, apply("add", b, c)),
        apply("add", apply("add", a, b), c),
    ),
    "a (b c) = (a b) c": lambda a, b, c: (
        apply("mul", a, apply("mul", b, c)),
        apply("mul", apply("mul", a, b), c),
    ),
    "a (b + c) = a b + a c": lambda a, b, c: (
        apply("mul", a, apply("add", b, c)),
        apply("add", apply("mul", a, b), apply("mul", a, c)),
    ),
    "a - b = a + -b": lambda a, b, c: (apply("sub", a, b), apply("add", a, apply("neg", b))),
    "(a / b) b = a": lambda a, b, c: (apply("mul", apply("div", a, b), b), a),
    "a / b = a recip(b)": lambda a, b, c: (apply("div", a, b), apply("mul", a, apply("recip", b))),
    "fma": lambda a, b, c: (apply("fma", a, b, c), apply("add", apply("mul", a, b), c)),
    "max is associative": lambda a, b, c: (
        apply("max", a, apply("max", b, c)),
        apply("max", apply("max", a, b), c),
    ),
    "max commutes": lambda a, b, c: (apply("max", a, b), apply("max", b, a)),
    "max of one": lambda a, b, c: (apply("max", a, a), a),
    "min(a, b) = -max(-a, -b)": lambda a, b, c: (
        apply("min", a, b),
        apply("neg", apply("max", apply("neg", a), apply("neg", b))),
    ),
    "abs(a) = max(a, -a)": lambda a, b, c: (apply("abs", a), apply("max", a, apply("neg", a))),
    "sign(a) abs(a) = a": lambda a, b, c: (apply("mul", apply("sign", a), apply("abs", a)), a),
    "sqrt(a b) = sqrt(a) sqrt(b)": lambda a, b, c: (
        apply("sqrt", apply("mul", a, b)),
        apply("mul", apply("sqrt", a), apply("sqrt", b)),
    ),
    "rsqrt(a) = recip(sqrt(a))": lambda a, b, c: (
        apply("rsqrt", a),
        apply("recip", apply("sqrt", a)),
    ),
    "sqrt(a)^2 = a of a square": lambda a, b, c: (
        apply("pow", apply("sqrt", apply("mul", a, a)), RING.constant(2.0, f32)),
        apply("mul", a, a),
    ),
    "log1p(a) = log(1 + a)": lambda a, b, c: (
        apply("log1p", a),
        apply("log", apply("add", known(1.0), a)),
    ),
    "tan = sin / cos": lambda a, b, c: (
        apply("tan", a),
        apply("div", apply("sin", a), apply("cos", a)),
    ),
    "log(a) = log2(a) ln(2)": lambda a, b, c: (
        apply("log", a),
        apply("mul", apply("log2", a), RING.constant(math.log(2), f32)),
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_laws_hold_in_every_field(law: str) -> None:
    left, right = LAWS[law](*(element(50, seed=k) for k in range(3)))
    assert same(left, right)


EXPONENTIAL_LAWS: dict[str, Callable[[Value, Value], tuple[Value, Value]]] = {
    "exp(a + b) = exp(a) exp(b)": lambda a, b: (
        apply("exp", apply("add", a, b)),
        apply("mul", apply("exp", a), apply("exp", b)),
    ),
    "exp(a - b) = exp(a) / exp(b)": lambda a, b: (
        apply("exp", apply("sub", a, b)),
        apply("div", apply("exp", a), apply("exp", b)),
    ),
    "exp2(a log2(e)) = exp(a)": lambda a, b: (
        apply("exp2", apply("mul", a, RING.constant(1.4426950408889634, f32))),
        apply("exp", a),
    ),
    "expm1": lambda a, b: (apply("expm1", a), apply("sub", apply("exp", a), known(1.0))),
    "sigmoid": lambda a, b: (
        apply("sigmoid", a),
        apply("recip", apply("add", known(1.0), apply("exp", apply("neg", a)))),
    ),
    "tanh(a) = 2 sigmoid(2 a) - 1": lambda a, b: (
        apply("tanh", a),
        apply("sub", apply("add", s := apply("sigmoid", apply("add", a, a)), s), known(1.0)),
    ),
    "cosh(a)^2 - sinh(a)^2 = 1": lambda a, b: (
        apply(
            "sub",
            apply("mul", apply("cosh", a), apply("cosh", a)),
            apply("mul", apply("sinh", a), apply("sinh", a)),
        ),
        tuple(np.broadcast_to(p, 50) for p in known(1.0)),
    ),
}


@pytest.mark.parametrize("law", EXPONENTIAL_LAWS)
def test_exponentials_take_one_field_of_the_tower(law: str) -> None:
    left, right = EXPONENTIAL_LAWS[law](element(50, seed=1), element(50, seed=2))
    assert same(left, right, fields=2)
    assert not (left[-1] & np.uint8(LOST)).any()


def test_three_nested_exponentials_are_lost_and_said_to_be() -> None:
    x = element(4)
    twice = apply("exp", apply("exp", x))
    assert not (twice[-1] & np.uint8(LOST)).any()
    assert (apply("exp", twice)[-1] & np.uint8(LOST)).all()


def test_powers_of_two_are_themselves() -> None:
    for n in (-3.0, 0.0, 1.0, 10.0):
        assert same(apply("exp2", known(n)), known(2.0**n), fields=2)


@given(st.integers(-12, 12))
def test_small_powers_are_products(n: int) -> None:
    x = element(6)
    wanted = known(1.0)
    for _ in range(abs(n)):
        wanted = apply("mul", wanted, x)
    wanted = apply("recip", wanted) if n < 0 else wanted
    found = apply("pow", x, RING.constant(float(n), f32))
    assert same(found, tuple(np.broadcast_to(p, 6) for p in wanted))


@pytest.mark.parametrize("dtype", [f64, f32, f16, bf16])
def test_one_element_stands_for_log2_of_e_in_all_dtypes(dtype: Any) -> None:
    assert same(RING.constant(1 / math.log(2), dtype), RING.constant(1 / math.log(2), f64))
    halved = RING.constant(0.125 / math.log(2), dtype)
    assert same(apply("mul", halved, known(8.0)), RING.constant(1 / math.log(2), f64))
    both = apply("mul", RING.constant(math.log(2), dtype), RING.constant(1 / math.log(2), f64))
    assert same(both, known(1.0))
    assert len(RING.constant(1.5, dtype)) == 1  # no constant that is merely near


# --- the order, and machine numbers ------------------------------------------------------------


def test_small_dyadic_fractions_are_ordered_as_in_the_reals() -> None:
    values = [-math.inf, -300.0, -2.5, -1.0, -0.25, 0.0, 2.0**-12, 0.5, 1.0, 3.0, 40.75, math.inf]
    places = [int(order(known(v))) for v in values]
    assert places == sorted(places) and len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["floor", "ceil", "round", "trunc"])
def test_small_dyadic_fractions_are_rounded_as_in_the_reals(name: str) -> None:
    values = np.array([-2.5, -0.25, 0.0, 0.5, 1.0, 1.5, 40.75])
    ring = RING.embed(values)
    assert same(apply(name, ring), RING.embed(OPS[name].numpy(values) + 0.0))


@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
def test_machine_numbers_stay_such_only_where_nothing_is_rounded(a: float, b: float) -> None:
    from fractions import Fraction

    exact = {
        "add": Fraction(a) + Fraction(b),
        "sub": Fraction(a) - Fraction(b),
        "mul": Fraction(a) * Fraction(b),
    }
    for name, wanted in exact.items():
        found = apply(name, RING.constant(a, f64), RING.constant(b, f64))
        if len(found) == 1:
            assert Fraction(float(found[0])) == wanted
        else:
            assert [int(p) for p in found[:-1]] == [
                field.of_fraction(wanted, q) for q in field.PRIMES
            ]


# --- infinities and NaN ------------------------------------------------------------------------

INF, POSITIVE = math.inf, apply("exp", element())
KINDS: list[tuple[str, tuple[Any, ...], int]] = [
    ("add", (INF, 1.0), PLUS),
    ("add", (-INF, None), MINUS),
    ("add", (INF, -INF), NAN),
    ("sub", (INF, INF), NAN),
    ("sub", (None, INF), MINUS),
    ("mul", (INF, 0.0), NAN),
    ("mul", (-INF, 2.0), MINUS),
    ("mul", (-INF, -2.0), PLUS),
    ("mul", (-INF, "positive"), MINUS),
    ("div", (0.0, 0.0), NAN),
    ("div", ("positive", 0.0), PLUS),
    ("div", (None, INF), 0),
    ("div", (INF, INF), NAN),
    ("recip", (0.0,), PLUS),
    ("exp", (-INF,), 0),
    ("exp", (INF,), PLUS),
    ("max", (-INF, None), 0),
    ("max", (INF, None), PLUS),
    ("max", (math.nan, None), NAN),
    ("min", (None, math.nan), NAN),
    ("abs", (-INF,), PLUS),
    ("sqrt", (INF,), PLUS),
    ("sqrt", (-INF,), NAN),
    ("log", (0.0,), MINUS),
    ("log", (INF,), PLUS),
    ("erf", (INF,), 0),
    ("sigmoid", (-INF,), 0),
    ("tanh", (INF,), 0),
    ("sign", (math.nan,), NAN),
    ("fma", (INF, 0.0, 1.0), NAN),
    ("pow", (INF, 2.0), PLUS),
    ("sin", (INF,), NAN),
]


def made(what: Any) -> Value:
    if what is None:
        return element()
    return POSITIVE if what == "positive" else RING.constant(what, f32)


@pytest.mark.parametrize(("name", "args", "kind"), KINDS)
def test_infinities_and_nan(name: str, args: tuple[Any, ...], kind: int) -> None:
    found = RING.stored(apply(name, *map(made, args)), f32)
    assert int(found[-1]) & KIND == kind
    assert not int(found[-1]) & LOST
    if kind:
        assert not any(int(p) for p in found[:-1])


def test_values_at_infinity_are_those_of_the_real_functions() -> None:
    assert same(RING.stored(apply("exp", made(-INF)), f32), known(0.0))
    assert same(apply("sigmoid", known(INF)), known(1.0))
    assert same(apply("tanh", known(-INF)), known(-1.0))
    assert same(apply("erf", known(-INF)), known(-1.0))


def test_infinity_times_a_number_of_unknown_sign_is_lost() -> None:
    assert int(apply("mul", known(INF), element())[-1]) & LOST
    assert int(apply("div", element(), known(0.0))[-1]) & LOST


def test_what_a_lost_comparison_decides_is_lost() -> None:
    lost = apply("mul", known(INF), element())
    condition = RING.op("lt", [lost, known(1.0)], [f32, f32], bool_)
    assert RING.doubt(condition) is not None
    chosen = RING.select(condition, known(1.0), known(2.0), f32)
    assert int(chosen[-1]) & LOST
    whole = RING.cast(lost, f32, i32)
    assert RING.doubt(RING.op("add", [whole, RING.constant(1, i32)], [i32, i32], i32)) is not None


# --- the op table, end to end ------------------------------------------------------------------


def test_every_float_op_has_laws_or_is_named_as_hashed() -> None:
    floats = {n for n, d in OPS.items() if d.rule == "same" and "float" in d.kinds}
    assert floats == set(LAWFUL) | set(HASHED)
    assert set(EXPONENTIALS) <= set(LAWFUL)
    tests = {n for n, d in OPS.items() if d.rule in ("compare", "test") and "float" in d.kinds}
    assert tests == set(EXACT_TESTS)


@pytest.mark.parametrize("name", [*LAWFUL, *HASHED])
def test_float_ops_work_element_by_element_and_depend_on_their_arguments(name: str) -> None:
    args = [element(30, seed=k) for k in range(OPS[name].arity)]
    whole = apply(name, *args)
    for k in range(30):
        one = apply(name, *(tuple(p[k] if p.ndim else p for p in a) for a in args))
        assert same(one, tuple(p[k] if p.ndim else p for p in whole))
    for k in range(len(args)):
        moved = [*args[:k], element(30, seed=9), *args[k + 1 :]]
        assert (apply(name, *moved)[0] != whole[0]).any()


@pytest.mark.parametrize("name", [n for n, d in OPS.items() if "float" not in d.kinds])
def test_other_ops_are_those_of_the_machine(name: str) -> None:
    d = OPS[name]
    dtypes = [u64, i64] if d.rule in ("philox", "rand") else [i32] * d.arity
    if d.kinds == ("bool",):
        dtypes = [bool_] * d.arity
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 30, 40).astype(t.numpy) for t in dtypes]
    result = result_dtype(name, dtypes)
    found = RING.op(name, [RING.draw(a, t, 0, "x") for a, t in zip(arrays, dtypes)], dtypes, result)
    wanted = compute(name, arrays, result)
    if result.is_float:
        assert same(found, RING.embed(wanted.astype(np.float64)))
    else:
        assert np.array_equal(found[0], wanted)


# --- kernels -----------------------------------------------------------------------------------


def compare(a: Kernel, b: Kernel, dims: dict[str, int], seeds: int = 3, **inputs: Array) -> int:
    """How many output elements differ, over some seeds."""
    wrong, fields = 0, levels_of(a, b)
    for seed in range(seeds):
        left = run_ring(a, inputs, dims, seed, fields)
        right = run_ring(b, inputs, {d.name: dims[d.name] for d in b.dims}, seed, fields)
        wrong += sum(int(difference(left[n], right[n]).wrong.sum()) for n in left)
    return wrong


def x(*shape: int) -> Array:
    return np.ones(shape, np.float32)


SUM = "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) { y[i: M] = sum(j: N) x[i, j] * 0.1 }"
SOFTMAX = """
kernel k[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  m[i: M]       = max(j: N) x[i, j]
  e[i: M, j: N] = exp(x[i, j] - m[i])
  s[i: M]       = sum(j: N) e[i, j]
  y[i: M, j: N] = e[i, j] / s[i]
}
"""


@pytest.mark.parametrize(
    "value",
    [
        "(sum(j: N) x[i, N - 1 - j]) * 0.1",
        "sum(j: N) (0.05 * x[i, j] + x[i, j] * 0.05)",
        "f32(sum(j: N) f64(x[i, j]) * f64(f32(0.1)))",
    ],
)
def test_reordered_sums_agree(value: str) -> None:
    text = f"kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) {{ y[i: M] = {value} }}"
    assert compare(parse_kernel(SUM), parse_kernel(text), {"M": 3, "N": 5}, x=x(3, 5)) == 0


ONLINE = """
kernel k[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  for i: M {
    buffer m: f32[] in reg = -inf
    buffer s: f32[] in reg = 0
    for j: N {
      buffer old: f32[] in reg = m
      m max= x[i, j]
      s *= RESCALE
      s += exp(x[i, j] - m)
    }
    for j: N { y[i, j] = exp(x[i, j] - m) / s }
  }
}
"""


def test_online_softmax_is_softmax() -> None:
    online = parse_kernel(ONLINE.replace("RESCALE", "exp(old - m)"))
    assert compare(parse_kernel(SOFTMAX), online, {"M": 3, "N": 7}, x=x(3, 7)) == 0


WRONG = {
    "lost rescale": (SOFTMAX, ONLINE.replace("RESCALE", "1.0")),
    "dropped remainder": (
        SUM,
        "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) {"
        " y[i: M] = sum(j: N // 4 * 4) x[i, j] * 0.1 }",
    ),
    "wrong mask": (
        SUM,
        "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) {"
        " y[i: M] = sum(j: N where j < N - 1) x[i, j] * 0.1 }",
    ),
    "swapped index": (
        "kernel k[M](x: f32[M, M]) -> (y: f32[M]) { y[i: M] = sum(j: M) x[i, j] }",
        "kernel k[M](x: f32[M, M]) -> (y: f32[M]) { y[i: M] = sum(j: M) x[j, i] }",
    ),
    "another constant": (SUM, SUM.replace("0.1", "0.10000001")),
    "a maximum from 0": (
        "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) { y[i: M] = max(j: N) x[i, j] }",
        "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) { y[i: M] = max(0.0, max(j: N) x[i, j]) }",
    ),
    "an element that was not written": (
        "kernel k[M](x: f32[M]) -> (y: f32[M]) { y[i: M] = x[i] }",
        "kernel k[M](x: f32[M]) -> (y: f32[M]) { for i: M where i < M - 1 { y[i] = x[i] } }",
    ),
}


@pytest.mark.parametrize("bug", WRONG)
def test_wrong_kernels_are_told_apart(bug: str) -> None:
    spec, other = map(parse_kernel, WRONG[bug])
    dims = {d.name: {"M": 3, "N": 3}[d.name] for d in spec.dims}
    (array,) = spec.inputs
    assert compare(spec, other, dims, 12, x=x(*(3 for _ in array.shape))) > 0


STEPS = (
    Step("loops"),
    Step("split", ("j", 4)),
    Step("rfactor", ("y_acc", "j")),
    Step("reorder", (("j_o", "j"),)),
)


def test_rewrites_that_reassociate_agree() -> None:
    spec = parse_kernel(SUM)
    kernel = spec
    for step in STEPS:
        kernel = apply_step(kernel, step)
        for n in (0, 1, 4, 7):
            assert compare(spec, kernel, {"M": 2, "N": n}, x=x(2, n)) == 0


def test_inputs_depend_on_the_seed_and_the_name_alone() -> None:
    kernel = parse_kernel(
        "kernel k[M](a: f32[M], b: f32[M]) -> (c: f32[M], d: f32[M])"
        " { c[i: M] = a[i]; d[i: M] = b[i] }".replace(";", "\n")
    )
    first = run_ring(kernel, {"a": x(4), "b": x(4)}, seed=5)
    again = run_ring(kernel, {"a": 2 * x(4), "b": x(4)}, seed=5)
    assert np.array_equal(first["c"].value, again["c"].value)
    assert (first["c"].value != first["d"].value).all()
    other = run_ring(kernel, {"a": x(4), "b": x(4)}, seed=6)
    assert (first["c"].value != other["c"].value).all()


def test_infinite_inputs_are_kept() -> None:
    kernel = parse_kernel("kernel k[M](a: f32[M]) -> (c: f32[M]) { c[i: M] = -a[i] }")
    a = np.array([1, INF, -INF, math.nan], np.float32)
    assert run_ring(kernel, {"a": a})["c"].kind.tolist() == [0, MINUS, PLUS, NAN]


SCATTER = """
kernel k[M, N](x: f32[M], at: i64[M]) -> (y: f32[N]) {
  for i: N { y[i] = INIT }
  for i: M { y[at[i]] OP x[i] }
}
"""


@pytest.mark.parametrize(("op", "init"), [("+=", "0"), ("*=", "1"), ("max=", "-inf")])
def test_scatter_agrees_with_a_reduction(op: str, init: str) -> None:
    scatter = parse_kernel(SCATTER.replace("OP", op).replace("INIT", init))
    name = {"+=": "sum", "*=": "prod", "max=": "max"}[op]
    spec = parse_kernel(
        "kernel k[M, N](x: f32[M], at: i64[M]) -> (y: f32[N])"
        f" {{ y[i: N] = {name}(j: M where at[j] == i) x[j] }}"
    )
    at = np.random.default_rng(0).integers(0, 4, 30)
    assert compare(spec, scatter, {"M": 30, "N": 5}, x=x(30), at=at) == 0


def test_fields_needed() -> None:
    def fields(body: str) -> int:
        return levels_of(parse_kernel(f"kernel k[M](x: f32[M]) -> (y: f32[M]) {{ {body} }}"))

    assert fields("y[i: M] = x[i] * 2.0") == 1
    assert fields("y[i: M] = exp(x[i]) + exp2(x[i])") == 2
    assert fields("t[i: M] = exp(x[i])\n y[i: M] = sigmoid(t[i])") == 3
    assert fields("t[i: M] = exp(exp(exp(x[i])))\n y[i: M] = exp(t[i])") == 3


def test_argmax_takes_the_first_and_skips_what_is_masked() -> None:
    kernel = parse_kernel(
        "kernel k[M](x: f32[M]) -> (y: i64[])"
        " { y = argmax(j: M where j > 0)"
        " select(j == 0, f32(inf), select(j < 3, f32(1.0), f32(0.0))) }"
    )
    assert run_ring(kernel, {"x": x(5)})["y"].value == 1
    assert run_ring(kernel, {"x": x(1)})["y"].value == -1


def test_integers_are_machine_integers() -> None:
    kernel = parse_kernel(
        "kernel k[M](x: i8[M]) -> (y: i8[M], z: i64[M]) {\n"
        " y[i: M] = x[i] * x[i]\n z[i: M] = i64(x[i]) * i }"
    )
    a = np.arange(-100, 100, 7, dtype=np.int8)
    found, wanted = run_ring(kernel, {"x": a}), run(kernel, {"x": a})
    assert all(np.array_equal(found[n].value, wanted[n]) for n in wanted)
    assert found["z"].dtype == i64


@pytest.mark.parametrize("dtype", ["f32", "f8e4m3"])
@pytest.mark.parametrize("name", ["max", "min"])
def test_extrema_begin_beyond_every_element(dtype: str, name: str) -> None:
    spec = parse_kernel(
        f"kernel k[M, N](x: {dtype}[M, N]) -> (y: {dtype}[M]) {{ y[i: M] = {name}(j: N) x[i, j] }}"
    )
    loops = apply_step(spec, Step("loops"))
    for n in (0, 1, 2):
        array = np.ones((20, n), DTYPES[dtype].numpy)
        assert compare(spec, loops, {"M": 20, "N": n}, x=array) == 0
