"""The oracle: bounds that hold, and that are tight enough to see a bug."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kir.dtypes import DTYPES, FLOATS, bf16, f8e4m3, f16, f32, f64
from kir.errors import EvaluationError
from kir.generate import CONSTRUCTS
from kir.interpret import oracle, oracle_graph, run
from kir.interpret.bounded import float_limits
from kir.interpret.domain import cast_array
from kir.interpret.rules import ROUNDINGS
from kir.ir import Kernel
from kir.ops import OPS
from kir.syntax import format_kernel, parse, parse_kernel
from kir.testing import PROFILES, dims_choices, kernels, make_array, make_inputs

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)
EXAMPLES = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def judged(text: str, **inputs: Array) -> tuple[Any, Array]:
    kernel = parse_kernel(text)
    (name,) = (p.name for p in kernel.outputs)
    return oracle(kernel, inputs)[name], run(kernel, inputs)[name]


def small_call(kernel: Kernel, seed: int, profile: str) -> tuple[dict[str, int], dict[str, Array]]:
    choices = [d for d in dims_choices(kernel) if d["M"] * d["N"] <= 150]
    dims = choices[seed % len(choices)]
    return dims, make_inputs(kernel, dims, profile, seed)


# --- what is written never exceeds the bound ---------------------------------------------------


@EXAMPLES
@given(kernels(), st.integers(0, 999), st.sampled_from(PROFILES))
def test_the_interpreter_stays_within_the_bound(kernel: Kernel, seed: int, profile: str) -> None:
    dims, inputs = small_call(kernel, seed, profile)
    got = run(kernel, inputs, dims)
    for name, bounded in oracle(kernel, inputs, dims).items():
        assert bounded.bound.shape == got[name].shape
        assert (bounded.bound >= 0).all()
        assert bounded.accepts(got[name]).all(), format_kernel(kernel)


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_each_construct_stays_within_the_bound(construct: str) -> None:
    @settings(EXAMPLES, max_examples=12)
    @given(kernels(constructs=(construct,)), st.integers(0, 999), st.sampled_from(PROFILES))
    def check(kernel: Kernel, seed: int, profile: str) -> None:
        dims, inputs = small_call(kernel, seed, profile)
        got = run(kernel, inputs, dims)
        for name, bounded in oracle(kernel, inputs, dims).items():
            assert bounded.accepts(got[name]).all(), format_kernel(kernel)

    check()


@pytest.mark.parametrize("op", sorted(ROUNDINGS))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_op_stays_within_the_bound(op: str, dtype: Any) -> None:
    names = "abc"[: OPS[op].arity]
    params = ", ".join(f"{n}: {dtype}[N]" for n in names)
    # the operands carry an error of their own, so that the rule for it is tried too
    args = ", ".join(f"({n}[i] * {n}[i] + {n}[i])" for n in names)
    call = f"{op}({args})"
    if (infix := OPS[op].infix) is not None:
        parts = args.split(", ")
        call = f" {infix} ".join(parts) if len(parts) == 2 else f"{infix}{parts[0]}"
    text = f"kernel k[N]({params}) -> (y: {dtype}[N]) {{ y[i: N] = {call} }}"
    kernel = parse_kernel(text)
    for seed, profile in enumerate(PROFILES * 2):
        inputs = make_inputs(kernel, {"N": 200}, profile, seed)
        got, want = run(kernel, inputs)["y"], oracle(kernel, inputs)["y"]
        assert want.accepts(got).all()


@pytest.mark.parametrize("dtype", [f32, bf16, f16], ids=str)
def test_sums_in_any_order_stay_within_the_bound(dtype: Any) -> None:
    x = (RNG.standard_normal(3000) * np.exp(RNG.standard_normal(3000) * 3)).astype(dtype.numpy)
    kernel = parse_kernel(
        f"kernel s[N](x: {dtype}[N]) -> (y: {dtype}[]) {{ y = sum[{dtype}](i: N) x[i] }}"
    )
    bounded = oracle(kernel, {"x": x})["y"]
    for _ in range(5):
        RNG.shuffle(x)
        assert bounded.accepts(np.add.accumulate(x)[-1])
    pairs = x
    while len(pairs) > 1:
        odd = pairs[-1:] if len(pairs) % 2 else pairs[:0]
        half = len(pairs) // 2
        pairs = np.concatenate([pairs[:half] + pairs[half : 2 * half], odd])
    assert bounded.accepts(pairs[0])


# --- and a bug does ----------------------------------------------------------------------------

DOT = "kernel d[M, K](x: {t}[M, K], w: {t}[K]) -> (y: f32[M]) {{ y[i: M] = sum(k: K) {body} }}"


def test_a_narrow_accumulator_is_caught() -> None:
    x, w = RNG.random((8, 4096)).astype(np.float16), RNG.random(4096).astype(np.float16)
    spec = parse_kernel(DOT.format(t="f16", body="f32(x[i, k]) * f32(w[k])"))
    bounded = oracle(spec, {"x": x, "w": w})["y"]
    assert bounded.accepts(run(spec, {"x": x, "w": w})["y"]).all()
    narrow = np.add.accumulate(x * w, axis=1)[:, -1].astype(np.float32)
    assert not bounded.accepts(narrow).any()
    few = oracle(spec, {"x": x[:, :32], "w": w[:32]})["y"]
    products = (x[:, :32] * w[:32]).astype(np.float32).sum(1)  # rounded before they are added
    assert not few.accepts(products).any()


def test_dropping_one_term_is_caught() -> None:
    x, w = RNG.uniform(0.5, 1, (8, 512)).astype(np.float32), np.ones(512, np.float32)
    spec = parse_kernel(DOT.format(t="f32", body="x[i, k] * w[k]"))
    bounded = oracle(spec, {"x": x, "w": w})["y"]
    assert not bounded.accepts(x[:, :-1] @ w[:-1]).any()
    assert bounded.accepts(x @ w).all()


def test_a_missing_rounding_to_bf16_is_allowed_and_a_coarser_type_is_not() -> None:
    x = RNG.standard_normal(500).astype(bf16.numpy)
    bounded, got = judged(
        "kernel k[N](x: bf16[N]) -> (y: bf16[N]) { y[i: N] = x[i] * x[i] + 0.5 }", x=x
    )
    assert bounded.accepts(got).all()
    wide = x.astype(np.float32) ** 2 + np.float32(0.5)
    assert bounded.accepts(wide.astype(bf16.numpy)).all()
    coarse = wide.astype(DTYPES["f8e5m2"].numpy).astype(bf16.numpy)
    assert not bounded.accepts(coarse).all()


def test_wrong_class_is_caught() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = log(x[i]) }"
    bounded, got = judged(text, x=np.array([-1, 0, 1, np.inf, np.nan], np.float32))
    assert bounded.accepts(got).all()
    assert not bounded.accepts(np.zeros(5, np.float32))[[0, 1, 3, 4]].any()
    assert not bounded.accepts(np.full(5, np.nan, np.float32))[[1, 2, 3]].any()


# --- decisions ---------------------------------------------------------------------------------


def test_a_comparison_within_rounding_is_left_open() -> None:
    text = """kernel k[N](x: f32[N], y: f32[N]) -> (z: f32[N]) {
      z[i: N] = select(x[i] * 3.0 > y[i], 1.0, -1.0)
    }"""
    x = np.array([0.1, 0.1, 1.0], np.float32)
    y = np.array([np.float32(0.1) * np.float32(3), 5, 3], np.float32)
    bounded, got = judged(text, x=x, y=y)
    assert bounded.accepts(got).all()
    # 0.1f * 3 is rounded, and so near to y; 1 * 3 is exact, so `3 > 3` is settled
    assert bounded.bound.tolist() == [2.0, 0.0, 0.0]


def test_argmax_is_open_only_among_near_values() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: i64[]) { y = argmax(i: N) x[i] * 1.1 }"
    x = np.array([1, 7, np.nextafter(np.float32(7), np.float32(0)), 3], np.float32)
    bounded, _ = judged(text, x=x)
    assert bounded.value == 1
    assert bounded.bound == 1.0  # the neighbour at distance 1 may win, those further off may not
    exact, _ = judged(text.replace(" * 1.1", ""), x=x)
    assert exact.bound == 0


def test_floor_next_to_an_integer_is_open() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N], z: i32[N]) { y[i: N] = floor(x[i] / 0.1) " \
           "z[i: N] = i32(x[i] / 0.1) }"  # fmt: skip
    x = np.array([0.3, 0.25], np.float32)
    got = oracle(parse_kernel(text), {"x": x})
    assert (got["y"].bound[0], got["y"].bound[1]) == (1.0, 0.0)
    assert (got["z"].bound[0], got["z"].bound[1]) == (1.0, 0.0)


def test_an_uncertain_index_says_nothing() -> None:
    text = """kernel k[N](x: f32[N]) -> (y: f32[N]) {
      y[i: N] = x[i64(f32(i) * 0.1 / 0.1)] else 0.0
    }"""
    bounded, _ = judged(text, x=np.arange(8, dtype=np.float32))
    assert np.isinf(bounded.bound).any()


def test_a_condition_in_doubt_widens_a_sum_by_its_terms() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[]) { y = sum(i: N where x[i] * 3.0 > 0.3) x[i] }"
    x = np.array([0.1, 100.0], np.float32)
    bounded, _ = judged(text, x=x)
    assert 0.1 < bounded.bound < 0.11


def test_a_divisor_that_may_be_zero_says_nothing() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = 1.0 / (x[i] * 3.0 - 0.3) }"
    bounded, _ = judged(text, x=np.array([0.1, 5.0], np.float32))
    assert np.isinf(bounded.bound[0]) and bounded.bound[1] < 1e-5


# --- range -------------------------------------------------------------------------------------


def test_overflow_is_settled_or_left_open() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * 2.0 }"
    big = float_limits(f32)[0]
    x = np.array([big, big / 2, np.float32(big) * 0.50000006, 1], np.float32)
    bounded, got = judged(text, x=x)
    assert bounded.accepts(got).all()
    assert np.isposinf(bounded.value[0]) and bounded.bound[0] == 0
    assert bounded.value[1] == big


def test_underflow_adds_a_subnormal() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * 0.3 }"
    tiny = float_limits(f32)[2]
    bounded, got = judged(text, x=np.array([tiny, 3 * tiny], np.float32))
    assert bounded.accepts(got).all()
    assert (bounded.bound <= 2 * tiny).all()


def test_f8e4m3_overflows_to_nan() -> None:
    text = "kernel k[N](x: f8e4m3[N]) -> (y: f8e4m3[N]) { y[i: N] = x[i] * 4.0 }"
    bounded, got = judged(text, x=np.array([448, 100, -448], f8e4m3.numpy))
    assert np.isnan(bounded.value).tolist() == [True, False, True]
    assert bounded.accepts(got).all()


def test_float_limits() -> None:
    assert float_limits(f8e4m3) == (448.0, 464.0, 2.0**-9)
    assert float_limits(bf16)[0] == (2 - 2**-7) * 2.0**127
    assert float_limits(f64)[2] == 5e-324


# --- the rest ----------------------------------------------------------------------------------


def test_integers_are_exact() -> None:
    x = np.array([2**31 - 1, -5, 7], np.int32)
    text = "kernel k[N](x: i32[N]) -> (y: i32[N]) { y[i: N] = x[i] * x[i] + 1 }"
    bounded, got = judged(text, x=x)
    assert (bounded.bound == 0).all() and (bounded.value == got).all()
    assert not bounded.accepts(got + 1).any()


def test_what_was_never_written_has_no_bound() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { for i: N { if i > 0 { y[i] = x[i] } } }"
    bounded, _ = judged(text, x=np.ones(3, np.float32))
    assert np.isinf(bounded.bound).tolist() == [True, False, False]


def test_scatter_bounds_count_the_updates_of_each_target() -> None:
    text = """kernel c[T](k: i64[T], x: f32[T]) -> (y: f32[4]) {
      for v: 4 { y[v] = 0.0 }
      for t: T { y[k[t]] += x[t] }
    }"""
    k = np.concatenate([np.zeros(500, np.int64), [1]])
    x = np.concatenate([RNG.random(500), [0.3]]).astype(np.float32)
    bounded, got = judged(text, k=k, x=x)
    assert bounded.accepts(got).all()
    assert bounded.bound[0] > 1e-3 > 1e-6 > bounded.bound[1]
    assert (bounded.bound[2:] < 1e-30).all()


def test_ratio_of_error_to_bound() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] + 1.0 }"
    bounded, got = judged(text, x=np.array([0.1, 0.2], np.float32))
    off = (got.astype(np.float64) + 3 * bounded.bound).astype(np.float32)
    assert bounded.worst(got) <= 1 < bounded.worst(off) < 6
    assert bounded.worst(np.zeros(2, np.float32)) > 1e6


def test_graph_bounds_pass_through_the_calls() -> None:
    module = parse("""
    kernel cube[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * x[i] * x[i] }
    graph two[N](x: f32[N]) -> (y: f32[N]) { t = cube(x)  y = cube(t) }""")
    x = RNG.standard_normal(50).astype(np.float32)
    bounded = oracle_graph(module, module.graphs()["two"], {"x": x})["y"]
    assert bounded.accepts((x * x * x) ** 3).all()
    np.testing.assert_allclose(bounded.value, x.astype(np.float64) ** 9, rtol=1e-12)
    assert (bounded.bound <= 30 * f32.unit_roundoff * np.abs(bounded.value) + 1e-40).all()


def test_errors_are_those_of_a_run() -> None:
    text = "kernel g[N](x: f32[N], k: i64[N]) -> (y: f32[N]) { y[i: N] = x[k[i]] }"
    with pytest.raises(EvaluationError):
        oracle(parse_kernel(text), {"x": np.ones(2, np.float32), "k": np.array([0, 2])})


def test_what_underflows_may_be_zero_and_zero_times_infinity_nan() -> None:
    """In f32 the factor is -0, and its product with infinity NaN: the oracle must not say inf."""
    text = """kernel k[M](q: f64[M], x: f64[M]) -> (y: f32[M], z: f32) {
      y[i: M] = f32(q[i]) * f32(x[i])
      z = sum(i: M) f32(q[i]) * f32(x[i])
    }"""
    kernel = parse_kernel(text)
    inputs = {"q": np.array([-4.9e-324, 1.0]), "x": np.array([-1.7e308, 1.0])}
    wanted, got = oracle(kernel, inputs), run(kernel, inputs)
    assert np.isnan(got["y"][0]) and np.isnan(got["z"])
    for name, bounded in wanted.items():
        assert bounded.accepts(got[name]).all()
        assert np.isinf(bounded.bound.reshape(-1)[0])


@pytest.mark.parametrize("factors", [[1e-30, 1e-30, np.inf], [3e38, 3e38, 0.0], [0.0, 3e38, 3e38]])
def test_products_that_leave_the_range_on_their_way(factors: list[float]) -> None:
    kernel = parse_kernel("kernel k[M](x: f32[M]) -> (u: f32) { u = prod(i: M) x[i] }")
    inputs = {"x": np.array(factors, np.float32)}
    bounded = oracle(kernel, inputs)["u"]
    for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1]):
        shuffled = {"x": inputs["x"][order]}
        assert bounded.accepts(run(kernel, shuffled)["u"]).all()


def test_a_known_number_has_one_nearest() -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-40, -1 - 2.0**-8 - 2.0**-40], np.float64)
    bounded, got = judged("kernel k[N](x: f64[N]) -> (y: bf16[N]) { y[i: N] = bf16(x[i]) }", x=x)
    assert got.tolist() == [1 + 2.0**-7, -1 - 2.0**-7]
    assert bounded.accepts(got).all()
    wrong = np.array([1, -1], bf16.numpy)  # rounded to f32 between
    assert not bounded.accepts(wrong).any()


def test_ties_lie_beside_the_middle_of_two_narrower_numbers() -> None:
    x = make_array(DTYPES["f64"], (500,), "ties", np.random.default_rng(0))
    once, twice = cast_array(x, f64, bf16), x.astype(np.float32).astype(bf16.numpy)
    assert (once != twice).sum() > 20
