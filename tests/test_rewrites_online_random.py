"""Random sums that wait for random reductions: whatever `online` accepts is right."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from kir.check import check_kernel
from kir.derivation import replay
from kir.errors import KirError, RewriteError
from kir.interpret import difference, levels_of, run_ring
from kir.ir import Kernel
from kir.rewrites import apply_step, legal_moves
from kir.syntax import parse_kernel, parse_steps
from kir.testing import make_inputs

MASKS = ("", " where j < n", " where j % 2 == 0", " where z[j] > 0.0", " where j >= 1")
ATOMS = ("x[j]", "w[j]", "z[j]", "m", "s", "t", "c", "mean", "f32(2.0)", "f32(j)", "low")


@st.composite
def exponents(draw: st.DrawFn) -> str:
    r = draw(st.sampled_from(["m", "m", "m", "low", "s"]))
    u = draw(st.sampled_from(["x[j]", "x[j]", "x[j]", "w[j]", "(x[j] * c)"]))
    times = draw(st.sampled_from(["", "", " * c", " * 0.5", " * -0.5", " / c", " / 2.0"]))
    forms = (f"({u} - {r})", f"({r} - {u})", f"(w[j] + {u} - {r})", f"({u} - 2.0 * {r})")
    return f"({draw(st.sampled_from(['(-' + r + ' + ' + u + ')', forms[0], *forms]))}{times})"


@st.composite
def factors(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 5))
    if kind <= 1:
        return f"{draw(st.sampled_from(['exp', 'exp', 'exp2']))}({draw(exponents())})"
    if kind == 2:
        x = draw(st.sampled_from(["x[j]", "z[j]"]))
        mean = draw(st.sampled_from(["mean", "mean2"]))
        return draw(st.sampled_from([f"({x} - {mean})", f"({mean} - {x})"]))
    atom = draw(st.sampled_from(ATOMS))
    return f"f32(bf16({atom}))" if kind == 3 else atom


@st.composite
def terms(draw: st.DrawFn) -> str:
    e, *rest = draw(st.lists(factors(), min_size=1, max_size=3))
    for f in rest:
        e = f"{e} {draw(st.sampled_from(['*', '*', '*', '/']))} {f}"
    if draw(st.integers(0, 6)) == 0:
        e = f"({e} + {draw(factors())})"
    if draw(st.integers(0, 8)) == 0:
        e = f"select(j < 3, {e}, {draw(st.sampled_from(['0.0', e]))})"
    return e


@st.composite
def programs(draw: st.DrawFn) -> Kernel:
    mask, other = draw(st.sampled_from(MASKS)), draw(st.sampled_from(MASKS))
    masks = st.sampled_from([mask, mask, mask, other])
    greatest = draw(st.sampled_from(["x[j]", "x[j]", "x[j] * c"]))
    added = draw(st.sampled_from(["x[j]", "x[j]", "z[j]", "exp(x[j] - m)", "f32(1.0)"]))
    text = f"""
    kernel r[N](x: f32[N], w: f32[N], z: f32[N], v: f32[N, 3], c: f32, n: i64) -> (
      o: f32, p: f32[3]
    ) where N >= 1 {{
      m = max(j: N{mask}) {greatest}
      low = min(j: N{draw(masks)}) x[j]
      s = sum(j: N{draw(masks)}) {added}
      t = s * {draw(st.sampled_from(["2.0", "m", "c"]))}
      mean = s / f32(N)
      s2 = sum(j: N) x[j]
      mean2 = s2 / f32(N)
      o = sum(j: N{draw(masks)}) {draw(terms())}
      p[d: 3] = sum(j: N{draw(masks)}) {draw(terms())} * v[j, d]
    }}"""
    try:
        return parse_kernel(text)
    except KirError:  # a literal without a dtype
        assume(False)
        raise


def attempted(kernel: Kernel, text: str) -> Kernel:
    """The kernel after steps, or as it is where one of them is refused."""
    try:
        return replay(kernel, parse_steps(text))[-1][1]
    except RewriteError:
        return kernel


@given(
    spec=programs(), block=st.sampled_from([0, 0, 3]), outside=st.booleans(), seed=st.integers(0)
)
def test_what_is_accepted_is_right(spec: Kernel, block: int, outside: bool, seed: int) -> None:
    kernel = attempted(spec, "loops()")
    if outside:
        kernel = attempted(kernel, "fission(d) reorder((j_6, d))")
    for name in ("j", "j_2", "j_3", "j_4", "j_5", "j_6") if block else ():
        kernel = attempted(kernel, f"split({name}, {block})")
    chosen = random.Random(seed)
    for _ in range(3):
        moves = legal_moves(kernel, ["online"])
        if moves:
            kernel = apply_step(kernel, chosen.choice(moves).step())
    check_kernel(kernel)
    for size in (1, 2, 7):
        assert_equal_where_finite(spec, kernel, size, seed % 1000)


def assert_equal_where_finite(spec: Kernel, made: Kernel, size: int, seed: int) -> None:
    """In the ring. Where an infinity times 0 is in the sum as written, and not once it left the
    sum, the laws of the reals do not hold."""
    dims, levels = {"N": size}, levels_of(spec, made)
    inputs = {**make_inputs(spec, dims, "integers", seed), "n": np.array(size // 2)}
    want, got = (run_ring(k, inputs, dims, seed, levels) for k in (spec, made))
    for name in want:
        found = difference(want[name], got[name])
        assert not (found.wrong & (want[name].kind == 0)).any(), name
