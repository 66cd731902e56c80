"""Sums of products that the oracle contracts: values and bounds as if done term by term."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kir.dtypes import DTYPES, FLOATS, DType, bf16, f16, f32, f64
from kir.interpret import oracle, run, run_in, updates
from kir.interpret.bounded import WithBounds
from kir.interpret.contract import contract, product, significand
from kir.interpret.domain import Domain, Value
from kir.ir import Kernel, Reduce, walk
from kir.specialise import input_shapes, specialise
from kir.syntax import parse_kernel
from kir.testing import PROFILES, dims_choices, kernels, make_inputs

Array = np.ndarray[Any, Any]
CASES = {
    "matrix": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K) U(a[i, k]) * U(b[k, j]) }",
    "transposed": "kernel p[M, N, K](a: T[K, M], b: T[N, K]) -> (c: S[N, M]) {"
    " c[j: N, i: M] = sum(k: K) U(b[j, k]) * U(a[k, i]) }",
    "batched": "kernel p[M, N, K](a: T[M, N, K], b: T[M, K, N]) -> (c: S[M, N, N]) {"
    " c[g: M, i: N, j: N] = sum(k: K) U(a[g, i, k]) * U(b[g, k, j]) }",
    "masked": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K where k <= i) U(a[i, k]) * U(b[k, j]) }",
    "masked by both": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K where (k <= i) and (k != j)) U(a[i, k]) * U(b[k, j]) }",
    "masked by values": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K where a[i, k] * a[i, k] < a[i, k]) U(a[i, k]) * U(b[k, j]) }",
    "ragged": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: min(i, K)) U(a[i, k]) * U(b[k, j]) }",
    "computed": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K) U(a[i, k] * a[i, k] + a[i, k]) * U(exp(b[k, j])) }",
    "one computed": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K) U(tanh(a[i, k])) * U(b[k, j]) }",
    "padded": "kernel p[M, N, K](a: T[M, K], b: T[N, K]) -> (c: S[M, N, K]) {"
    " c[i: M, o: N, q: K] = sum(r: K) U(a[i, q + r - 1] else T(0.0)) * U(b[o, r]) }",
    "many axes": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K, l: N, m: M, o: 3) U(a[i, k] + a[m, k]) * U(b[k, j] - b[k, l]) }",
    "outer": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[]) {"
    " c = sum(i: M, j: N) U(a[i, 0]) * U(b[0, j]) }",
    "rounded first": "kernel p[M, N, K](a: T[M, K], b: T[K, N]) -> (c: S[M, N]) {"
    " c[i: M, j: N] = sum(k: K) U(a[i, k] * b[k, j]) }",
}
WHOLE = ("masked by both",)
"""Cases that no contraction can do, but with the whole product."""
INEXACT = ("many axes", "masked by values", "rounded first")
"""Cases where single products are exact by chance, which a contraction does not see."""
DTYPES_OF = [(f64, f64), (f32, f32), (f32, f64), (f16, f16), (f16, f32), (bf16, bf16), (bf16, f32)]


class TermByTerm(WithBounds):
    contracts: ClassVar[bool] = False


class Contracting(WithBounds):
    """Counts the contractions that came about."""

    found: ClassVar[list[bool]] = []

    def contract(
        self,
        a: Value,
        b: Value,
        lead: tuple[int, ...],
        count: int,
        made: DType,
        dtype: DType,
        start: Value | None = None,
    ) -> Value | None:
        result = super().contract(a, b, lead, count, made, dtype, start)
        self.found.append(result is not None)
        return result


def written(case: str, operand: DType, total: DType) -> Kernel:
    text = CASES[case]
    for old, new in (("T", operand), ("S", total)):
        text = text.replace(f": {old}[", f": {new}[").replace(f"{old}(0.0)", f"{new}(0.0)")
    text = text.replace("sum(", f"sum[{total}](")
    return parse_kernel(text.replace("U(", "(" if operand == total else f"{total}("))


def drawn(kernel: Kernel, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = input_shapes(kernel, {"M": 4, "N": 3, "K": 5})
    found = {}
    for p in kernel.inputs:
        values = rng.standard_normal(shapes[p.name])
        values[rng.random(values.shape) < 0.1] = 0.0
        found[p.name] = values.astype(p.type.numpy)
    return found


def both_ways(kernel: Kernel, inputs: dict[str, Array], **dims: int) -> tuple[Value, Value]:
    (name,) = (p.name for p in kernel.outputs)
    fast = run_in(Contracting(), kernel, inputs, dims)[name]
    return fast, run_in(TermByTerm(), kernel, inputs, dims)[name]


def agree(fast: Value, slow: Value, tight: bool = True) -> None:
    (v, e), (w, f) = (tuple(np.broadcast_to(p, x[0].shape) for p in x) for x in (fast, slow))
    same = (v == w) | (np.isnan(v) & np.isnan(w))
    noise = 1e-13 * np.where(np.isfinite(f), f, 0.0)
    with np.errstate(invalid="ignore"):
        close = np.abs(v - w) <= 1e-12 * np.abs(w).max(initial=0.0) + noise
    assert (same | close).all()
    assert ((e >= f - noise) | (e >= f)).all()
    if tight:
        assert ((e <= 1.01 * f + 1e-300) | (e == f)).all()


# --- against the general path ------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES_OF, ids=lambda d: f"{d[0]}-{d[1]}")
@pytest.mark.parametrize("case", CASES)
def test_contracting_gives_what_term_by_term_does(case: str, dtypes: tuple[DType, DType]) -> None:
    kernel = written(case, *dtypes)
    for seed in range(4):
        Contracting.found.clear()
        inputs = drawn(kernel, seed)
        fast, slow = both_ways(kernel, inputs)
        assert all(Contracting.found) and bool(Contracting.found) == (case not in WHOLE)
        agree(fast, slow, tight=dtypes[1].bits >= 32 and case not in INEXACT)
        (name,) = (p.name for p in kernel.outputs)
        assert oracle(kernel, inputs)[name].accepts(run(kernel, inputs)[name]).all()


@pytest.mark.parametrize("budget", [1, 7, 40, 1000])
@pytest.mark.parametrize("case", [c for c in CASES if c != "ragged"])
def test_any_chunks_do(case: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = written(case, f32, f32)
    inputs = drawn(kernel, 5)
    _, slow = both_ways(kernel, inputs)
    monkeypatch.setattr(Domain, "budget", budget)
    fast, _ = both_ways(kernel, inputs)
    agree(fast, slow, tight=False)


@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(kernels(), st.integers(0, 999), st.sampled_from(PROFILES))
def test_random_kernels_get_bounds_no_smaller(kernel: Kernel, seed: int, profile: str) -> None:
    choices = [d for d in dims_choices(kernel) if d["M"] * d["N"] <= 150]
    dims = choices[seed % len(choices)]
    inputs = make_inputs(kernel, dims, profile, seed)
    fast = run_in(WithBounds(), kernel, inputs, dims)
    slow = run_in(TermByTerm(), kernel, inputs, dims)
    for p in kernel.outputs:
        if p.type.is_float:
            agree(fast[p.name], slow[p.name], tight=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_done_term_by_term(bad: float) -> None:
    kernel = written("matrix", f32, f32)
    inputs = drawn(kernel, 1)
    inputs["a"][1, 2] = bad
    inputs["b"][2] = [2.0, -8.0, 0.0]
    Contracting.found.clear()
    fast, slow = both_ways(kernel, inputs)
    assert Contracting.found and not any(Contracting.found)
    agree(fast, slow)


def test_sums_that_overflow_are_left_open() -> None:
    kernel = written("matrix", f16, f16)
    a, b = np.full((2, 4), 200.0, np.float16), np.full((4, 2), 200.0, np.float16)
    b[:, 1] = [1.0, 2.0, -3.0, 1.0]
    Contracting.found.clear()
    fast, slow = both_ways(kernel, {"a": a, "b": b})
    assert Contracting.found == [True]
    agree(fast, slow, tight=False)
    assert fast[0][0, 0] == np.inf and np.isfinite(fast[1][0, 1])


def test_products_of_short_significands_add_no_error() -> None:
    kernel = written("matrix", bf16, f32)
    (one,) = (oracle(kernel, {"a": np.full((1, 1), x, bf16.numpy), "b": np.full((1, 1), x,
              bf16.numpy)})["c"] for x in (1.7,))  # fmt: skip
    assert one.bound.item() == 0.0
    wide = written("matrix", f32, f32)
    x = np.full((1, 1), 1.7, np.float32)
    assert oracle(wide, {"a": x, "b": x})["c"].bound.item() > 0.0


def test_fused_products_stay_within_the_bound() -> None:
    kernel = written("matrix", f32, f32)
    inputs = drawn(kernel, 7)
    got = oracle(kernel, inputs, contraction=True)["c"]
    fused = (inputs["a"].astype(np.float64) @ inputs["b"].astype(np.float64)).astype(np.float32)
    assert got.accepts(fused).all()
    assert not got.accepts(fused + np.float32(1e-4)).any()


# --- the parts ---------------------------------------------------------------------------------


def reduction(body: str) -> Reduce:
    kernel = parse_kernel(
        "kernel r[M, N](a: f32[M, N], b: f32[N], n: i32[M]) -> (c: f32[M]) {"
        f" c[i: M] = f32({body}) }}"
    )
    special = specialise(kernel, {"M": 4, "N": 5})
    return next(n for n in walk(special) if isinstance(n, Reduce))


@pytest.mark.parametrize(
    "body",
    [
        "sum(j: N) a[i, j] * a[i, j]",
        "sum(j: N) a[i, j] * b[j]",
        "sum(j: N) a[i, j] + b[j]",
        "max(j: N) a[i, 0] * b[j]",
        "prod(j: N) a[i, 0] * b[j]",
        "sum(j: N) n[i] * i32(j)",
        "sum(j: N where a[i, j] > 0.0) a[i, j] * b[j]",
    ],
)
def test_other_reductions_are_not_products(body: str) -> None:
    assert product(reduction(body)) is None


def test_a_product_knows_its_factors_and_its_dtype() -> None:
    found = product(reduction("sum[f64](j: N where j < i) f64(a[i, 0] * b[j])"))
    assert found is not None and found.made == f32
    assert found.names == (frozenset("i"), frozenset("j"), frozenset("ij"))


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_contract_is_a_sum_of_products(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=5))
    shapes = [[data.draw(st.sampled_from((1, n))) for n in sizes] for _ in "ab"]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    a, b = (rng.integers(-9, 9, s).astype(np.float64) for s in shapes)
    added = data.draw(st.integers(0, len(sizes)))
    lead = tuple(sizes[:added])
    kept = np.broadcast_shapes(a.shape, b.shape)[added:]
    whole = np.broadcast_to(a * b, lead + kept)
    np.testing.assert_array_equal(contract(a, b, lead), whole.sum(axis=tuple(range(added))))


def test_significands() -> None:
    assert significand(np.array([1.0, -3.0, 0.0])) == (2, -1)
    assert significand(np.array([0.1])) == (52, -55)
    assert significand(np.array([0.0]))[0] == 1
    assert significand(np.array([5e-324, 1.0])) == (53, -1074)
    for dtype in FLOATS:
        values = np.random.default_rng(0).standard_normal(99).astype(dtype.numpy)
        assert significand(values.astype(np.float64))[0] <= DTYPES[str(dtype)].mantissa


# --- updates -----------------------------------------------------------------------------------

UPDATES = {
    "k last": """for i: M { for j: N { buffer acc: f32 in reg = START
      for k: K { acc += f32(x[i, k]) * f32(w[k, j]) } y[i, j] = acc } }""",
    "k first": """for i: M { for j: N { y[i, j] = START } }
      for k: K { for i: M { for j: N { y[i, j] += f32(x[i, k]) * f32(w[k, j]) } } }""",
    "k masked": """for i: M { for j: N { y[i, j] = START } }
      for i: M { for k: K where k > 3 { for j: N { y[i, j] += f32(x[i, k]) * f32(w[k, j]) } } }""",
}


@pytest.mark.parametrize("form", UPDATES)
@pytest.mark.parametrize("start", ["0.0", "1000.5"])
@pytest.mark.parametrize("profile", ["tame", "integers", "special"])
def test_updates_by_products_are_contracted_with_the_same_bounds(
    form: str, start: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = parse_kernel(
        "kernel k[M, N, K](x: f16[M, K], w: f16[K, N]) -> (y: f32[M, N]) {"
        + UPDATES[form].replace("START", start)
        + "}"
    )
    dims = {"M": 20, "N": 15, "K": 31}
    inputs = make_inputs(kernel, dims, profile, 3)
    calls: list[Any] = []
    contract_ = WithBounds.contract

    def counted(self: WithBounds, *args: Any) -> Value | None:
        found = contract_(self, *args)
        calls.append(found)
        return found

    monkeypatch.setattr(WithBounds, "contract", counted)
    monkeypatch.setattr(updates, "WORTH", 1 << 60)
    plain = oracle(kernel, inputs, dims)["y"]
    assert not calls
    monkeypatch.setattr(updates, "WORTH", 1)
    fast = oracle(kernel, inputs, dims)["y"]
    assert calls and (profile == "special" or all(c is not None for c in calls))
    assert np.array_equal(np.isfinite(plain.bound), np.isfinite(fast.bound))
    assert np.allclose(plain.value, fast.value, rtol=1e-12, equal_nan=True)
    finite = np.isfinite(plain.bound)
    assert (fast.bound[finite] >= plain.bound[finite] * (1 - 1e-9)).all()
    assert (fast.bound[finite] <= plain.bound[finite] * 1.001 + 1e-12).all()
    assert fast.accepts(run(kernel, inputs, dims)["y"]).all()
