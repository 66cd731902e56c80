"""Rewrites of precision: the stated bounds hold, over the whole range, and are what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kir.derivation import approximations, effect_of, replay
from kir.dtypes import DTYPES, DType, f32, f64
from kir.errors import VerificationError
from kir.interpret import oracle, run
from kir.interpret.bounded import float_limits
from kir.interpret.rules import OpError
from kir.ir import Kernel, Step
from kir.ops import compute
from kir.pipeline import compile
from kir.rewrites import make_rewrite
from kir.rewrites.fast import FORMS, Form
from kir.syntax import parse_kernel, parse_steps
from kir.testing import assert_equivalent

Array = np.ndarray[Any, Any]
ALL = [f for forms in FORMS.values() for f in forms.values()]
CASES = [(f, t) for f in ALL for t in f.dtypes]


def whole_range(dtype: DType) -> Array:
    """Numbers of every exponent and both signs, dense from 2^-12 to 2^8, subnormals and what is
    not finite among them."""
    rng = np.random.default_rng(0)
    limits = np.finfo(dtype.numpy)
    exponents = np.arange(int(limits.minexp) - 24, int(limits.maxexp))
    dense = np.repeat(np.arange(-12.0, 8.0), 4000)
    powers = np.concatenate([np.repeat(exponents, 32), dense])
    with np.errstate(all="ignore"):
        sizes = (np.exp2(powers) * rng.uniform(1, 2, powers.shape)).astype(dtype.numpy)
    edges = np.array([0.0, np.inf, np.nan, 1.0, limits.max, limits.tiny], dtype.numpy)
    found = np.concatenate([sizes, edges])
    return np.concatenate([found, -found])


def rewritten(form: Form, dtype: DType) -> Kernel:
    """`y = function(x0, ...)` with the function in this form."""
    two = form.function == "div"
    inputs = ", ".join(f"x{k}: {dtype}[N]" for k in range(1 + two))
    call = "x0[i] / x1[i]" if two else f"{form.function}(x0[i])"
    spec = parse_kernel(f"kernel f[N]({inputs}) -> (y: {dtype}[N]) {{ y[i: N] = {call} }}")
    step = Step("fast", (form.function, "y"), (("form", form.name),))
    return make_rewrite(step).apply(spec)


def exact(form: Form, operands: list[Array]) -> Array:
    wide = [a.astype(np.longdouble if a.dtype == np.float64 else np.float64) for a in operands]
    with np.errstate(all="ignore"):
        if form.function in ("sigmoid", "erf", "rsqrt") and wide[0].dtype != np.float64:
            x = wide[0]
            if form.function == "rsqrt":
                return np.asarray(1 / np.sqrt(x))
            if form.function == "sigmoid":
                e = np.exp(-np.abs(x))
                return np.asarray(np.where(np.asarray(x) >= 0, 1 / (1 + e), e / (1 + e)))
            return np.asarray(compute("erf", [operands[0]], f64))
        functions = {"div": np.divide, "exp": np.exp, "log": np.log, "tanh": np.tanh}
        if form.function in functions:
            return np.asarray(functions[form.function](*wide))
        if form.function == "sqrt":
            return np.asarray(np.sqrt(wide[0]))
        return np.asarray(compute(form.function, wide, f64))


def allowed(error: OpError, x: Array, want: Array, dtype: DType) -> Array:
    greatest, _, subnormal = float_limits(dtype)
    unit = dtype.unit_roundoff
    with np.errstate(all="ignore"):
        size = np.minimum(np.abs(x.astype(np.float64)), 2000.0)
        bound = (error.roundoffs + error.argument * size) * unit * np.abs(want)
        overflows = np.abs(want) + bound > greatest
    return np.asarray(np.where(overflows, np.inf, bound + error.absolute + subnormal))


FORM_IDS = [f"{f.function}-{f.name}-{t}" for f, t in CASES]


def domain(form: Form, dtype: DType) -> list[Array]:
    """Operands for which the form's bound is stated."""
    x = whole_range(dtype)
    if form.function != "div":
        return [x]
    tiny = np.finfo(dtype.numpy).tiny
    operands = [x, np.random.default_rng(1).permutation(x)]
    size = np.abs(operands[1])
    keep = (size >= tiny) & (size <= 1 / tiny) & np.isfinite(size)
    return [a[keep] for a in operands]


def assert_within(form: Form, dtype: DType, operands: list[Array], got: Array) -> None:
    want = exact(form, operands)
    with np.errstate(all="ignore"):
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        error = np.abs(got.astype(want.dtype) - want)
        limit = allowed(form.error(dtype), operands[0], want, dtype)
        bad = ~(same | (error <= limit))
    assert not bad.any(), [
        (a[bad][:4], got[bad][:4], want[bad][:4], limit[bad][:4]) for a in operands
    ]


@pytest.mark.parametrize(("form", "dtype"), CASES, ids=FORM_IDS)
def test_a_fast_form_keeps_its_bound_over_the_whole_range(form: Form, dtype: DType) -> None:
    operands = domain(form, dtype)
    got = run(rewritten(form, dtype), {f"x{k}": a for k, a in enumerate(operands)})["y"]
    assert_within(form, dtype, operands, got)


@pytest.mark.parametrize(("form", "dtype"), CASES, ids=FORM_IDS)
def test_a_fast_form_keeps_its_bound_on_the_cpu(form: Form, dtype: DType) -> None:
    operands = domain(form, dtype)
    program = compile(rewritten(form, dtype), "cpu")
    got = program({f"x{k}": a for k, a in enumerate(operands)})["y"]
    assert_within(form, dtype, operands, got)


@pytest.mark.parametrize("form", ALL, ids=[f"{f.function}-{f.name}" for f in ALL])
def test_the_bounds_are_not_vacuous(form: Form) -> None:
    """A thousandth more than the truth is no right result by any form but the coarse one."""
    if (form.function, form.name) == ("erf", "tanh"):
        pytest.skip("its bound is of that size")
    x = np.array([0.5, 0.9, 1.5, 3.0], np.float32)
    operands = [x, x] if form.function == "div" else [x]
    want = exact(form, operands)
    assert (np.abs(want) * 1e-3 > allowed(form.error(f32), x, want, f32)).all()


GELU = """kernel gelu[N](x: f32[N]) -> (y: f32[N]) {
  y[i: N] = 0.5 * x[i] * (1.0 + erf(x[i] * 0.70710677))
}"""


def test_what_is_no_law_of_the_reals_is_allowed_by_its_stated_error_alone() -> None:
    spec = parse_kernel(GELU)
    stages = replay(spec, parse_steps("fast(erf, y, form = tanh)"))
    after = stages[-1][1]
    found = approximations(spec, stages)
    assert [(k, set(e)) for k, e in found] == [(spec, {"erf"})]
    assert_equivalent(spec, after, approximates=True, reals=True, approximations=found)
    with pytest.raises(VerificationError):
        assert_equivalent(spec, after, approximates=True, reals=True)


def test_errors_of_steps_add_up() -> None:
    spec = parse_kernel(GELU)
    stages = replay(spec, parse_steps("fast(erf, y, form = tanh) fast(tanh, y, form = rational)"))
    found = approximations(spec, stages)
    assert [set(e) for _, e in found] == [{"erf"}, {"tanh"}]
    group = replay(spec, parse_steps("fast((erf, tanh), y)"))
    assert [set(e) for _, e in approximations(spec, group)] == [{"erf"}, {"tanh"}]
    assert_equivalent(spec, stages[-1][1], approximates=True, reals=True, approximations=found)


def test_the_oracle_widens_by_the_error_and_passes_it_on() -> None:
    spec = parse_kernel("kernel f[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = 3.0 * tanh(x[i]) }")
    x = {"x": np.array([0.25, 4.0], np.float32)}
    plain, wide = oracle(spec, x)["y"], oracle(spec, x, errors={"tanh": OpError(absolute=0.5)})["y"]
    assert (wide.value == plain.value).all()
    assert wide.bound - plain.bound == pytest.approx(1.5, rel=1e-3)


def dot(dtype: str) -> tuple[Kernel, Kernel]:
    spec = parse_kernel(
        "kernel dot[N](a: f32[N], b: f32[N]) -> (y: f32) { y = sum(i: N) a[i] * b[i] }"
    )
    return spec, replay(spec, parse_steps(f"accumulate_in(y, {dtype})"))[-1][1]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
def test_sums_in_another_type_keep_the_stated_bound(dtype: str) -> None:
    spec, after = dot(dtype)
    rng = np.random.default_rng(3)
    a, b = (rng.uniform(-1, 1, 200).astype(np.float32) for _ in range(2))
    got = float(run(after, {"a": a, "b": b})["y"])
    products = (a * b).astype(np.float64)
    unit = DTYPES[dtype].unit_roundoff
    bound = ((1 + unit) ** 200 - 1) * np.abs(products).sum() * (1 + unit)
    bound += 2.0**-24 * abs(products.sum())
    error = abs(got - products.sum())
    assert error <= bound
    if dtype == "f64":
        narrow = float(run(spec, {"a": a, "b": b})["y"])
        assert error <= abs(narrow - products.sum())
    else:
        assert error > 1e-5  # it does accumulate in the narrow type


def test_a_narrow_temporary_holds_what_was_rounded() -> None:
    spec = parse_kernel(
        "kernel f[N](x: f32[N]) -> (y: f32[N]) { t[i: N] = exp(x[i])\n y[i: N] = t[i] - 1.0 }"
    )
    after = replay(spec, parse_steps("narrow_storage(t, bf16)"))[-1][1]
    x = np.linspace(-2, 2, 100).astype(np.float32)
    stored = np.exp(x.astype(np.float64)).astype(np.float32).astype(DTYPES["bf16"].numpy)
    assert (run(after, {"x": x})["y"] == stored.astype(np.float32) - np.float32(1)).all()


@pytest.mark.parametrize(
    ("steps", "effect"),
    [
        ("narrow_storage(t, bf16)", "exact"),
        ("narrow_storage(t, f16)", "approximates"),
        ("narrow_storage(u, bf16)", "approximates"),
        ("accumulate_in(m, f64)", "exact"),
        ("accumulate_in(m, bf16)", "approximates"),
        ("accumulate_in(s, f64)", "approximates"),
        ("accumulate_in(n, i64)", "exact"),
        ("split_reduction(s, i, 4)", "reassociates"),
        ("split_reduction(m, i, 4)", "exact"),
        ("split_reduction(n, i, 4)", "exact"),
    ],
)
def test_each_application_says_what_it_does(steps: str, effect: str) -> None:
    spec = parse_kernel(
        """kernel f[N](x: bf16[N], k: i32[N]) -> (y: f32, c: i32) {
          t[i: N] = f32(x[i])
          u[i: N] = t[i] * t[i]
          m = max(i: N) t[i]
          s = sum(i: N) u[i]
          n = sum(i: N) k[i]
          y = m + s
          c = n
        }"""
    )
    assert effect_of(spec, replay(spec, parse_steps(steps))) == effect
