"""What the planners share: it finds what is there, and what it does keeps the meaning."""

from __future__ import annotations

import numpy as np
import pytest

from kir.check import check_kernel
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Kernel, Read
from kir.plan.common import (
    Draft,
    chain,
    contiguous_score,
    contract_temporaries,
    contraction_in,
    contractions,
    depth_axis,
    fuse_nests,
    inline_pointwise,
    innermost_loops,
    is_parallel,
    nests,
    parallel_prefix,
    step,
    tile_contraction,
    vectorise,
)
from kir.rewrites.base import buffers_of, loops_of
from kir.syntax import parse_kernel

ROWS = """kernel rows[M, N](x: i32[M, N]) -> (y: i32[M, N]) {
  m[i: M] = max(j: N) x[i, j]
  e[i: M, j: N] = (x[i, j] - m[i]) * 3
  s[i: M] = sum(j: N) e[i, j]
  y[i: M, j: N] = e[i, j] + s[i]
}"""
PRODUCT = """kernel product[B, M, N, K](a: i32[B, M, K], b: i32[B, K, N], w: i32[N]) -> (c: i32[B, M, N]) {
  d[h: B, i: M, j: N] = sum(k: K) a[h, i, k] * b[h, k, j]
  t[h: B, i: M, j: N] = d[h, i, j] + w[j]
  c[h: B, i: M, j: N] = max(t[h, i, j], 0)
}"""  # noqa: E501
CONV = """kernel conv[N, C, O, H](x: i32[N, C, H, H], w: i32[O, C, 3, 3]) -> (y: i32[N, O, H, H]) {
  y[n: N, o: O, p: H, q: H] = sum(r: 3, s: 3, c: C) (x[n, c, p + r - 1, q + s - 1] else 0) * w[o, c, r, s]
}"""  # noqa: E501
EXP = """kernel soft[N](x: f32[N]) -> (y: f32[N], z: f32[N]) {
  e[i: N] = exp(x[i])
  y[i: N] = e[i] * 2
  z[i: N] = e[i] + 1
}"""


def draft(text: str) -> Draft:
    made = Draft(parse_kernel(text))
    inline_pointwise(made)
    made.take("loops")
    fuse_nests(made)
    contract_temporaries(made, "local")
    return made


def same(before: Kernel, after: Kernel, dims: dict[str, int]) -> None:
    inputs = random_inputs(before, dims, 3)
    want, got = run(before, inputs, dims), run(after, inputs, dims)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_draft_keeps_only_what_was_accepted() -> None:
    made = Draft(parse_kernel(ROWS))
    assert not made.attempt("split", "i", 8)
    assert made.steps == []
    made.take("loops")
    before = made.kernel
    assert not made.attempt_all([step("split", "i", 8), step("bind", "i_o", "tile")])
    assert made.kernel is before
    assert made.attempt_all([step("split", "i", 8), step("bind", "i", "tile")])
    assert [s.rewrite for s in made.steps] == ["loops", "split", "bind"]
    other = made.fork()
    other.take("bind", "i_o", "grid")
    assert made.loop("i_o").kind == "for"
    made.adopt(other)
    assert made.loop("i_o").kind == "grid"


def test_rows_stay_together() -> None:
    made = draft(ROWS)
    (row,) = nests(made.kernel)
    assert row.axis.name == "i"
    spaces = {b.name: (b.space, len(b.shape)) for b in buffers_of(made.kernel.body)}
    assert spaces["m"] == spaces["s"] == ("reg", 0)
    assert all(space != "global" for space, _ in spaces.values())
    check_kernel(made.kernel)
    same(parse_kernel(ROWS), made.kernel, {"M": 3, "N": 7})


def test_heavy_work_is_repeated_only_on_demand() -> None:
    kept, inlined = Draft(parse_kernel(EXP)), Draft(parse_kernel(EXP))
    inline_pointwise(kept)
    assert kept.steps == []
    inline_pointwise(inlined, recompute_heavy=True)
    assert inlined.steps == [step("inline", "e")]


def test_vectorised_rows() -> None:
    made = draft(ROWS)
    for loop in innermost_loops(nests(made.kernel)[0]):
        lanes = vectorise(made, loop.axis.name, 4)
        assert lanes is not None
        assert made.loop(lanes.lanes).kind == "tile"
        assert all(made.loop(name).kind == "tile" for name in lanes.combines)
        assert made.loop(lanes.outer).kind == "for"
    assert made.attempt("bind", "i", "grid")
    check_kernel(made.kernel)
    for dims in ({"M": 3, "N": 9}, {"M": 1, "N": 4}, {"M": 2, "N": 1}):
        same(parse_kernel(ROWS), made.kernel, dims)


def test_vectorise_refuses_a_recurrence() -> None:
    text = "for i: N { y[i] = x[i] + (y[i - 1] else 0) }"
    made = Draft(parse_kernel(f"kernel scan[N](x: i32[N]) -> (y: i32[N]) {{ {text} }}"))
    assert vectorise(made, "i", 4) is None
    assert made.steps == []


def test_a_product_is_recognised() -> None:
    made = draft(PRODUCT)
    ((nest, found),) = contractions(made.kernel)
    assert found.batch == ("h",) and found.rows == ("i",) and found.columns == ("j",)
    assert found.reduction == ("k",)
    assert [x.axis.name for x in chain(nest)] == ["h", "i", "j"]
    assert isinstance(found.left, Read) and found.left.tensor == "a"


def test_the_right_operand_has_the_contiguous_axis() -> None:
    made = draft(PRODUCT.replace("a[h, i, k] * b[h, k, j]", "b[h, k, j] * a[h, i, k]"))
    ((_, found),) = contractions(made.kernel)
    assert found.rows == ("i",) and found.columns == ("j",)


def test_a_convolution_is_a_product() -> None:
    made = draft(CONV)
    ((_, found),) = contractions(made.kernel)
    assert found.rows == ("o",) and found.columns == ("n", "p", "q")
    assert depth_axis(made, found) == "c"


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        "kernel dot[M, N](x: i32[M, N], w: i32[N]) -> (y: i32[M]) {"
        " y[i: M] = sum(j: N) x[i, j] * w[j] }",
        "kernel squares[M, N](x: i32[M, N]) -> (y: i32[M]) {"
        " y[i: M] = sum(j: N) x[i, j] * x[i, j] }",
    ],
)
def test_what_is_no_product_is_not_called_one(text: str) -> None:
    assert contractions(draft(text).kernel) == []


@pytest.mark.parametrize("depth", [None, 2, 4])
def test_a_tiled_product(depth: int | None) -> None:
    made = draft(PRODUCT)
    ((_, found),) = contractions(made.kernel)
    tiled = tile_contraction(made, found, 3, 4, depth)
    assert tiled is not None
    assert tiled.grid == ("h", "i_o", "j_o")
    assert tiled.epilogue == (("i_2", "j_2"),)
    for name in tiled.grid:
        made.take("bind", name, "grid")
    for name in (tiled.rows, tiled.columns, *tiled.epilogue[0]):
        made.take("bind", name, "tile")
    acc = next(b for b in buffers_of(made.kernel.body) if b.name == tiled.acc)
    assert acc.space == "reg" and len(acc.shape) == 2
    check_kernel(made.kernel)
    for dims in ({"B": 2, "M": 5, "N": 6, "K": 7}, {"B": 1, "M": 3, "N": 4, "K": 4}):
        same(parse_kernel(PRODUCT), made.kernel, dims)


def test_a_tiled_convolution() -> None:
    made = draft(CONV)
    ((_, found),) = contractions(made.kernel)
    tiled = tile_contraction(made, found, 2, 4, 2)
    assert tiled is not None
    assert tiled.steps == ("r", "s", "c_o") and tiled.depth == "c"
    check_kernel(made.kernel)
    same(parse_kernel(CONV), made.kernel, {"N": 2, "C": 3, "O": 3, "H": 5})


def test_products_are_not_fused_into_rows() -> None:
    text = """kernel two[M, N, K](a: i32[M, K], b: i32[K, N], c: i32[N, K]) -> (y: i32[M, K]) {
      d[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
      y[i: M, l: K] = sum(j: N) d[i, j] * c[j, l]
    }"""
    made = draft(text)
    assert len(contractions(made.kernel)) == 2
    rows = Draft(parse_kernel(text))
    rows.take("loops")
    fuse_nests(rows, contractions=True)
    assert len(nests(rows.kernel)) == 1
    same(parse_kernel(text), rows.kernel, {"M": 3, "N": 4, "K": 5})


def test_time_is_no_nest() -> None:
    made = draft("""kernel rec[T, N](x: i32[T, N]) -> (h: i32[T, N]) {
      for t: T { h[t, i: N] = x[t, i] + (sum(k: N) (h[t - 1, k] else 0) * x[i % T, k]) }
    }""")
    (nest,) = nests(made.kernel)
    assert nest.axis.name == "i" and is_parallel(nest)
    assert not is_parallel(made.loop("t"))
    assert [x.axis.name for x in parallel_prefix(nest)] == ["i"]
    assert contraction_in(nest) is None


def test_contiguous_axes() -> None:
    made = draft("kernel t[M, N](x: i32[N, M]) -> (y: i32[M, N]) { y[i: M, j: N] = x[j, i] * 2 }")
    assert contiguous_score(made.loop("j")) == 0
    assert contiguous_score(made.loop("i")) == 0
    rows = draft("kernel t[M, N](x: i32[M, N]) -> (y: i32[M, N]) { y[i: M, j: N] = x[i, j] * 2 }")
    scores = {x.axis.name: contiguous_score(x) for x in loops_of(rows.kernel.body)}
    assert scores == {"i": -2, "j": 2}
