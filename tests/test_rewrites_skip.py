"""`skip`: what it takes for an iteration to do nothing."""

from __future__ import annotations

import pytest

from kir.check import check_kernel
from kir.derivation import replay
from kir.errors import RewriteError
from kir.ir import Kernel
from kir.rewrites.skip import Skip
from kir.syntax import parse_kernel, parse_steps
from kir.testing import assert_equivalent, assert_ring_equal


def body(text: str) -> Kernel:
    """A kernel with a loop `j` over 12 blocks of 4, in a loop over rows."""
    return parse_kernel(f"""
    kernel f[M](x: f32[M, 48], w: f32[48]) -> (y: f32[M]) {{
      for i: M {{
        buffer acc: f32 in reg = 0.0
        for j: 12 {{ {text} }}
        y[i] = acc
      }}
    }}""")


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("for k: 4 where j*4 + k < i { acc += x[i, j*4 + k] }", "exact"),
        ("for k: 4 { if i > j*4 + k { acc += x[i, j*4 + k] } }", "exact"),
        ("for k: 4 { acc += select(j*4 + k < i, x[i, j*4 + k], 0.0) * w[k] }", "reassociates"),
        ("for k: 4 { acc += exp(select(j*4 + k < i, x[i, k], -inf) - w[k]) }", "reassociates"),
        ("for k: 4 { acc = select(j*4 + k < i, x[i, k], acc) }", "exact"),
        ("buffer t: f32[4] in reg for k: 4 { t[k] = select(j*4 - k < i, x[i, k], 0.0) } "
         "for l: 4 { acc += t[l] }", "reassociates"),
        ("for k: 4 { acc max= select(j*4 + k < i, x[i, k], -inf) }", "exact"),
    ],
)  # fmt: skip
def test_left_out(text: str, effect: str) -> None:
    kernel = body(text)
    made = Skip("j").apply(kernel)
    assert made != kernel
    assert Skip("j").effect_on(kernel) == effect
    check_kernel(made)
    assert_ring_equal(kernel, made)
    assert_equivalent(kernel, made, exact=effect == "exact", reals=effect != "exact")


@pytest.mark.parametrize(
    "text",
    [
        "for k: 4 { acc += select(j*4 + k < i, x[i, k], 1.0) }",
        "for k: 4 { acc *= select(j*4 + k < i, x[i, k], 0.0) }",
        "for k: 4 { acc += select(j*4 + k >= i, x[i, k], 0.0) }",
        "for k: 4 where j*4 + k < i { acc += x[i, k] } acc += w[j]",
        # in the second iteration of k, t is 1: what the first one left behind
        "buffer t: f32 in reg = 0.0 buffer u: f32 in reg = 0.0 for k: 4 { "
        "acc += select(j*4 + k < i, w[k], t) t = u u = 1.0 }",
        "buffer t: f32 in reg = 0.0 for k: 4 where j*4 + k < i { t += w[k] } t += w[j] acc += t",
    ],
)
def test_refused_where_something_is_left(text: str) -> None:
    with pytest.raises(RewriteError):
        Skip("j").apply(body(text))


def test_a_bound_on_two_indices_becomes_the_blocks_own() -> None:
    kernel = body("for k: 4 where j*4 + k <= i { acc += x[i, j*4 + k] }")
    made = replay(kernel, parse_steps("skip(j) split(i, 8)"))[-1][1]
    assert_equivalent(kernel, made, exact=True)
    from kir.ir import Loop, walk

    (loop,) = [n for n in walk(made) if isinstance(n, Loop) and n.axis.name == "j"]
    assert "i_o" in {v.name for v in walk(loop.axis.extent) if hasattr(v, "name")}
