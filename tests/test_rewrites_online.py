"""Online reductions: exact on rows of infinities and NaN, and nothing of them is superfluous."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kir.derivation import replay
from kir.errors import RewriteError, VerificationError
from kir.interpret import run
from kir.ir import Const, If, Kernel, Module, Op, Read, Store, transform, walk
from kir.rewrites import apply_step, legal_moves, make_rewrite
from kir.rewrites.online import Online
from kir.syntax import load, parse, parse_kernel, parse_steps
from kir.testing import assert_ring_equal

FOLDER = Path(__file__).parent / "rewrites"
FILES = ("online", "online_attention", "online_factors", "online_masks", "online_variance")


def module(name: str) -> Module:
    return parse(load(FOLDER / f"{name}.kir"))


def cases() -> list[tuple[str, str]]:
    return [(f, s) for f in FILES for s in module(f).schedules() if s.startswith("good")]


def derived(file: str, name: str) -> tuple[Kernel, Kernel]:
    m = module(file)
    (kernel,) = m.kernels().values()
    return kernel, replay(kernel, m.schedules()[name].steps)[-1][1]


def after(kernel: Kernel, steps: str) -> Kernel:
    return replay(kernel, parse_steps(steps))[-1][1]


EACH = pytest.mark.parametrize(("file", "name"), cases(), ids=lambda x: x)


@EACH
def test_equal_by_the_laws_of_the_reals(file: str, name: str) -> None:
    spec, made = derived(file, name)
    assert assert_ring_equal(spec, made) == 0
    assert_ring_equal(spec, made, special=True)


@EACH
def test_every_correction_is_needed(file: str, name: str) -> None:
    """Without any one of the corrections, some result is another."""
    spec, made = derived(file, name)
    late = {id(n) for s in walk(made) if isinstance(s, If) for n in walk(s)}
    corrections = [n for n in walk(made) if isinstance(n, Store) and is_correction(n)]
    corrections = [c for c in corrections if id(c) not in late or "factors" in file]
    assert corrections
    for correction in corrections:
        broken = without(made, correction)
        with pytest.raises(VerificationError):
            assert_ring_equal(spec, broken, tries=12)


def is_correction(s: Store) -> bool:
    divided = isinstance(s.value, Op) and s.value.name == "div" and s.target.endswith("_acc")
    steps = [n for n in walk(s.value) if isinstance(n, Read) and n.tensor.endswith("_step")]
    return s.op == "mul" or (divided and s.op is None) or (bool(steps) and s.op == "add")


def without(kernel: Kernel, correction: Store) -> Kernel:
    """The kernel with a multiplication by 1 in the place of a correction."""
    one = Const(1.0, correction.value.dtype)
    new = Store(correction.target, correction.indices, one, "mul")
    return transform(kernel, lambda n: new if n == correction else None)


# --- infinities and NaN ------------------------------------------------------------------------

ROW = """
kernel row[N, D](x: f32[N], w: f32[N, D], n: i64) -> (m: f32, s: f32, o: f32[D], b: f32) {
  m = max(j: N where j < n) x[j]
  s = sum(j: N where j < n) exp(x[j] - m)
  o[d: D] = sum(j: N where j < n) exp(x[j] - m) * w[j, d]
  b = sum(j: N where j < n) exp2(0.25 * (x[j] - m))
}
"""
ORDERS = (
    "loops() online(j, j_2)",
    "loops() split((j, j_2), 4) online(j_o, j_2_o)",
    "loops() split((j, j_4), 3) online(j_o, j_4_o)",
    "loops() set_space(o_acc, local) fission(d) reorder((j_3, d)) online(j, j_3)",
    "loops() online(j, j_2) online(j, j_4)",
)
VALUES = st.one_of(
    st.sampled_from([-math.inf, -math.inf, math.inf, math.nan, 0.0, -0.0, 3e38, -3e38, 1e-40]),
    st.floats(-40.0, 40.0, width=32),
)


@pytest.mark.parametrize("steps", ORDERS)
@given(rows=st.lists(VALUES, max_size=9), n=st.integers(-1, 11), seed=st.integers(0, 99))
def test_special_rows_come_out_as_written(steps: str, rows: list[float], n: int, seed: int) -> None:
    spec = parse_kernel(ROW)
    made = after(spec, steps)
    rng = np.random.default_rng(seed)
    w = rng.uniform(0.5, 2.0, (len(rows), 2)).astype(np.float32)
    inputs = {"x": np.array(rows, np.float32), "w": w, "n": np.array(n)}
    dims = {"N": len(rows), "D": 2}
    want, got = run(spec, inputs, dims), run(made, inputs, dims)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=3e-5, atol=1e-30, err_msg=name)


@pytest.mark.parametrize("steps", ORDERS)
@pytest.mark.parametrize("fill", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_of_one_special_value(steps: str, fill: float, rows: int) -> None:
    spec = parse_kernel(ROW)
    made = after(spec, steps)
    inputs = {
        "x": np.full(rows, fill, np.float32),
        "w": np.ones((rows, 2), np.float32),
        "n": np.array(rows),
    }
    dims = {"N": rows, "D": 2}
    want, got = run(spec, inputs, dims), run(made, inputs, dims)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected)


def test_sums_over_nothing_finite_need_the_last_correction() -> None:
    spec = parse_kernel(ROW)
    made = after(spec, "loops() online(j, j_2)")
    (last,) = [n for s in walk(made) if isinstance(s, If) for n in s.body if isinstance(n, Store)]
    inputs = {"x": np.full(3, -np.inf, np.float32), "w": np.ones((3, 1), np.float32),
              "n": np.array(3)}  # fmt: skip
    assert np.isnan(run(made, inputs, {"N": 3, "D": 1})["s"])
    assert not np.isnan(run(without(made, last), inputs, {"N": 3, "D": 1})["s"])


def test_a_block_of_nothing_but_minus_infinity_leaves_no_trace() -> None:
    """The sums of the first block are relative to 0 until a finite value comes."""
    spec = parse_kernel(ROW)
    made = after(spec, "loops() split((j, j_2), 4) online(j_o, j_2_o)")
    x = np.array([-np.inf] * 4 + [3.0, -1.0], np.float32)
    inputs = {"x": x, "w": np.ones((6, 1), np.float32), "n": np.array(6)}
    got = run(made, inputs, {"N": 6, "D": 1})
    assert got["m"] == 3.0
    np.testing.assert_allclose(got["s"], 1 + math.exp(-4.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["good_variance", "good_blocks"])
def test_a_variance_far_from_0_keeps_its_digits(name: str) -> None:
    """The sum of squares minus the square of the sum would lose them all."""
    _, made = derived("online_variance", name)
    x = (4096.0 + np.random.default_rng(1).normal(size=(2, 101))).astype(np.float32)
    got = run(made, {"x": x, "y": x}, {"M": 2, "N": 101})["var"]
    np.testing.assert_allclose(got, x.astype(np.float64).var(axis=1), rtol=1e-3)


# --- what it says of itself --------------------------------------------------------------------


def test_effects() -> None:
    kernel = after(module("online_factors").kernels()["shares"], "loops() merge(i)")
    assert Online("j", "j_2").effect_on(kernel) == "reassociates"
    kernel = after(module("online").kernels()["softmax"], "inline(e) loops() merge(i)")
    online = Online("j", "j_2")
    assert online.effect_on(kernel) == "approximates"
    assert "2^-24" in online.bound()
    assert online.forward(kernel, online.apply(kernel)) == {"j_2": ("j",)}


def test_moves_are_the_pairs_that_are_legal() -> None:
    kernel = after(module("online").kernels()["softmax"], "inline(e) loops() merge(i)")
    moves = [dict(m.fixed) for m in legal_moves(kernel, ["online"])]
    assert moves == [{"first": "j", "second": "j_2"}]


def test_lanes_do_not_wait_for_one_another() -> None:
    kernel = parse_kernel("""
    kernel row(x: f32[16]) -> (y: f32) {
      buffer m: f32 in reg = -inf
      tile j: 16 { m max= x[j] }
      buffer s: f32 in reg = 0.0
      tile k: 16 { s += exp(x[k] - m) }
      y = s
    }""")
    with pytest.raises(RewriteError, match="tile"):
        Online("j", "k").apply(kernel)
    assert not legal_moves(kernel, ["online"])
    Online("j", "k").apply(replay(kernel, parse_steps("bind(j, for) bind(k, for)"))[-1][1])


def test_sums_stay_correct_in_a_second_application() -> None:
    """The sum of the first is a divisor in the second, and itself corrected as it goes."""
    kernel = parse_kernel("""
    kernel row[N](x: f32[N], w: f32[N]) -> (o: f32) where N >= 1 {
      m = max(j: N) x[j]
      s = sum(j: N) exp(x[j] - m)
      o = sum(j: N) exp(x[j] - m) / s * w[j]
    }""")
    made = after(kernel, "loops() online(j, j_2) online(j, j_3)")
    assert sum(isinstance(n, Store) and n.op == "max" for n in walk(made)) == 1
    assert assert_ring_equal(kernel, made) == 0


def test_the_same_twice() -> None:
    kernel = after(module("online").kernels()["softmax"], "inline(e) loops() merge(i)")
    (step,) = parse_steps("online(j, j_2)")
    assert apply_step(kernel, step) == make_rewrite(step).apply(kernel)


@pytest.mark.parametrize("steps", ORDERS)
@pytest.mark.parametrize("low", [-100.0, -1e4, -3e38])
def test_rows_far_below_zero_do_not_overflow(steps: str, low: float) -> None:
    """The first correction would be exp(0 - low): of sums still 0, so it must not count."""
    spec = parse_kernel(ROW)
    x = np.array([low, low, low * 0.999, low], np.float32)
    inputs = {"x": x, "w": np.ones((4, 2), np.float32), "n": np.array(4)}
    want, got = (run(k, inputs, {"N": 4, "D": 2}) for k in (spec, after(spec, steps)))
    for name, expected in want.items():
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(got[name], expected, rtol=3e-5, err_msg=name)
