"""Rewrites of memory where tests/rewrites/ does not reach: what only integer sets decide, windows
against brute force, planted bugs, and random sequences of moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.check import check_kernel
from kir.derivation import replay
from kir.errors import KirError, RewriteError, VerificationError
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Axis, Expr, Kernel, Loop, Step, Stmt, Store, Var, const, substitute
from kir.ops import op
from kir.pipeline import compile as compile_kernel
from kir.rewrites import apply_step, legal_moves
from kir.rewrites.base import buffers_of, loops_of
from kir.rewrites.stage import Stage, StageOut
from kir.rewrites.window import NoWindow, Window, disjoint, uses_of, window
from kir.simplify import simplify
from kir.syntax import format_kernel, parse, parse_kernel
from kir.testing import assert_equivalent


def kernel(signature: str, body: str) -> Kernel:
    return parse_kernel(f"kernel t{signature} {{\n{body}\n}}")


def step(name: str, *args: str | int) -> Step:
    return Step(name, args)


def refusal(k: Kernel, asked: Step) -> str:
    with pytest.raises(RewriteError) as caught:
        apply_step(k, asked)
    return caught.value.render()


MATRIX = "[M, N](x: i32[M, N]) -> (y: i32[M, N])"

# --- contract ----------------------------------------------------------------------------------


def test_what_is_read_ahead_of_the_stores_stays_outside() -> None:
    k = kernel(
        MATRIX,
        """buffer t: i32[N] in global = 0
        for s: M { for i: N {
          t[i] = x[s, i]
          y[s, i] = t[i + 1] else 0
        } }""",
    )
    assert "the read `t[i + 1]` may use what another iteration stored" in refusal(
        k, step("contract", "t", "local")
    )


@pytest.mark.parametrize(("gap", "moves"), [(0, True), (1, False)])
def test_integer_sets_see_that_pieces_fill_a_row(gap: int, moves: bool) -> None:
    k = kernel(
        MATRIX,
        f"""buffer t: i32[N] in global = 0
        for s: M {{
          for i: N where i <= s {{ t[i] = x[s, i] }}
          for j: N where j > s + {gap} {{ t[j] = x[s, j] * 2 }}
          for k: N {{ y[s, k] = t[N - 1 - k] }}
        }}""",
    )
    asked = step("contract", "t", "local")
    if not moves:
        assert "`t[N - 1 - k]` may use" in refusal(k, asked)
        return
    after = apply_step(k, asked)
    (row,) = [s for s in after.body if isinstance(s, Loop)]
    assert list(buffers_of(row.body))
    assert_equivalent(k, after, exact=True)


def test_a_guard_around_all_uses_is_no_obstacle() -> None:
    k = kernel(
        MATRIX,
        """buffer t: i32[N] in global
        for a: M { for b: N { y[a, b] = 0 } }
        for s: M {
          if (x[s, 0] else 0) > 0 {
            for i: N { t[i] = x[s, i] }
            for j: N where j + 1 < N { y[s, j] = t[j + 1] - t[j] }
          }
        }""",
    )
    after = apply_step(k, step("contract", "t", "local"))
    assert [b.name for s in after.body if isinstance(s, Loop) for b in buffers_of(s.body)] == ["t"]
    assert_equivalent(k, after, exact=True)


def test_different_fills_keep_the_dim_they_pass() -> None:
    k = kernel(
        MATRIX,
        """buffer t: i32[M, N] in global
        for s: M { for j_o: cdiv(N, 4) {
          for i: 6 where j_o*4 + i - 1 >= 0 and j_o*4 + i - 1 < N {
            t[s, j_o*4 + i - 1] = x[s, j_o*4 + i - 1]
          }
          for j: 4 where j_o*4 + j < N {
            y[s, j_o*4 + j] = (t[s, j_o*4 + j - 1] else 3) + (t[s, j_o*4 + j + 1] else 4)
          }
        } }""",
    )
    after = apply_step(k, step("contract", "t", "local"))
    (moved,) = buffers_of(after.body)
    assert moved.shape == (Var("N"),)
    assert_equivalent(k, after, exact=True)


# --- windows, against brute force ----------------------------------------------------------------

INNER = (("i", const(3)), ("j", Var("N")), ("k", op("cdiv", Var("N"), const(2))))


@st.composite
def indices(draw: st.DrawFn) -> Expr:
    """An affine index over the loops i, j, k inside, p outside and the dim N."""
    e: Expr = const(draw(st.integers(-3, 3)))
    for name in ("i", "j", "k", "p", "N"):
        c = draw(st.sampled_from([0, 0, 1, -1, 2, -3, 4]))
        e = op("add", e, op("mul", Var(name), const(c)))
    return e


def value(e: Expr, names: dict[str, int]) -> int:
    here: dict[str, Expr] = {n: const(v) for n, v in names.items()}
    done = simplify(substitute(e, here))
    return int(done.value)  # type: ignore[attr-defined]


def nest(targets: list[Expr]) -> Loop:
    body: tuple[Stmt, ...] = tuple(Store("t", (e,), const(0)) for e in targets)
    for name, extent in reversed(INNER):
        body = (Loop("for", Axis(name, extent), (), body),)
    (loop,) = body
    assert isinstance(loop, Loop)
    return loop


@settings(max_examples=60)
@given(targets=st.lists(indices(), min_size=1, max_size=2))
def test_a_window_holds_every_index(targets: list[Expr]) -> None:
    found = window(uses_of("t", (nest(targets),)), 0)
    if isinstance(found, NoWindow):
        assert len(targets) > 1, found.reason  # alone, an affine index has one
        return
    for n, p in itertools.product((0, 1, 4), (0, 5)):
        outside = {"N": n, "p": p}
        base, size = value(found.base, outside), value(found.size, outside)
        assert size >= 0
        for i, j, k in itertools.product(range(3), range(n), range(-(-n // 2))):
            for e in targets:
                assert base <= value(e, {**outside, "i": i, "j": j, "k": k}) < base + size


def test_a_window_is_no_larger_than_it_must_be() -> None:
    def size(index: str) -> Expr:
        k = kernel(
            "[N](x: i32[9*N + 99]) -> (y: i32[N])",
            f"for z: N {{ for o: cdiv(N, 4) {{ for i: 4 {{ y[z] = x[{index}] }} }} }}",
        )
        (z,) = [s for s in k.body if isinstance(s, Loop)]
        found = window(uses_of("x", z.body), 0)
        assert isinstance(found, Window)
        return simplify(found.size)

    assert size("z + i*2") == const(7)
    assert size("o*4 + i") == simplify(op("mul", op("cdiv", Var("N"), const(4)), const(4)))
    assert size("N - 1 - o") == op("cdiv", Var("N"), const(4))
    assert size("min(i, 2) + z") == const(3)


@settings(max_examples=80)
@given(
    coefficients=st.lists(st.sampled_from([0, 1, 2, 4, 8, -4, 12]), min_size=2, max_size=2),
    sizes=st.sampled_from([1, 2, 4, 5]),
    extents=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_disjoint_windows_share_nothing(
    coefficients: list[int], sizes: int, extents: tuple[int, int]
) -> None:
    loops = [Loop("for", Axis(n, const(e)), (), ()) for n, e in zip("pq", extents, strict=True)]
    base: Expr = const(0)
    for n, c in zip("pq", coefficients, strict=True):
        base = op("add", base, op("mul", Var(n), const(c)))
    boxes = [
        set(range(b, b + sizes))
        for p in range(extents[0])
        for q in range(extents[1])
        for b in [value(base, {"p": p, "q": q})]
    ]
    apart = all(a.isdisjoint(b) for a, b in itertools.combinations(boxes, 2))
    claimed = disjoint([Window(base, const(sizes))], loops)
    assert apart or not claimed
    simple = coefficients[1] == sizes and coefficients[0] == sizes * extents[1]
    assert claimed or not simple  # the plain split is seen


# --- stage, compute_at ---------------------------------------------------------------------------

STENCIL = kernel(
    "[N](x: f32[N]) -> (y: f32[N])",
    """for i_o: cdiv(N, 8) { for i: 8 where i_o*8 + i < N {
      y[i_o*8 + i] = (x[i_o*8 + i - 1] else 5.0) * x[i_o*8 + i]
    } }""",
)


def test_a_stage_that_drops_the_fill_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = step("stage", "x", "i_o", "local")
    assert_equivalent(STENCIL, apply_step(STENCIL, asked), exact=True)
    monkeypatch.setattr(Stage, "_fill", lambda *_: None)
    again = replace(STENCIL)  # what was applied to a kernel is kept on it
    with pytest.raises(VerificationError):
        assert_equivalent(again, apply_step(again, asked), exact=True)


def test_an_index_known_under_a_mask_only_is_not_read_beyond() -> None:
    k = kernel(
        "[P, N](page: i64[P], x: i32[N, 4]) -> (y: i32[2*P])",
        """for z: 2*P { y[z] = 0 }
        for p: 2*P {
          for i: 4 where p < P {
            if page[p] >= 0 { if page[p] < N { y[p] += x[page[p], i] } }
          }
        }""",
    )
    after = apply_step(k, step("stage", "x", "p", "local"))
    assert [b.name for b in buffers_of(after.body)] == ["x_local"]
    dims = {"P": 3, "N": 2}
    inputs: dict[str, np.ndarray[Any, Any]] = {
        "page": np.array([1, 7, -2], np.int64),
        "x": np.arange(8, dtype=np.int32).reshape(2, 4),
    }
    np.testing.assert_array_equal(run(after, inputs, dims)["y"], run(k, inputs, dims)["y"])


def test_names_of_a_moved_producer_are_its_own() -> None:
    k = kernel(
        "[N](x: i32[N]) -> (y: i32[N])",
        """buffer t: i32[N] in global
        for i: N { for r: 3 { t[i] = x[i] * i32(r) } }
        for j: N { for r: 2 { y[j] = t[j] + i32(r) } }""",
    )
    after = apply_step(k, step("compute_at", "t", "j"))
    names = [loop.axis.name for loop in loops_of(after.body)]
    assert len(names) == len(set(names))
    assert_equivalent(k, after, exact=True)


def test_a_product_over_packed_panels_runs_on_the_cpu() -> None:
    module = parse(
        """kernel product[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
          c[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
        }
        schedule packed of product {
          loops()
          split(j, 16)
          split(i, 4)
          split(j_o, 4, outer = j_b)
          fission(j)
          reorder((k, j))
          reorder((j_b, i_o, i, j_o))
          stage(b, j_b, local, pack = (1, 16))
          stage(a, i_o, local, order = (1, 0), pad = (1,))
          bind((j, j_2), tile)
          unmask(j)
          bind(j_b, grid)
        }"""
    )
    spec = module.kernels()["product"]
    done = replay(spec, module.schedules()["packed"].steps)[-1][1]
    check_kernel(done)
    panels, rows = (b for b in buffers_of(done.body) if b.space == "local")
    assert panels.shape == (const(4), Var("K"), const(16))
    assert rows.shape == (Var("K"), const(5))
    assert "b_local[j_o, k, j]" in format_kernel(done)  # a panel is read whole, unmasked
    inputs: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(9 * 5, dtype=np.float32).reshape(9, 5) % 7,
        "b": np.arange(5 * 71, dtype=np.float32).reshape(5, 71) % 5,
    }
    got = compile_kernel(done, "cpu")(inputs)["c"]
    np.testing.assert_array_equal(got, inputs["a"] @ inputs["b"])


def test_staging_updates_is_exact_where_their_order_is() -> None:
    for dtype, update, effect in (
        ("i32", "+", "exact"),
        ("i32", "max", "exact"),
        ("f32", "+", "reassociates"),
        ("f32", "max", "reassociates"),  # the sign of a zero
    ):
        spaced = f" {update}"
        k = kernel(
            f"[N](x: {dtype}[N]) -> (y: {dtype}[N])",
            f"""for i: N {{ y[i] = x[i] }}
            for j: 4 {{ for k: N {{ y[k]{spaced}= x[k] }} }}""",
        )
        assert StageOut("y", "j").effect_on(k) == effect
        assert_equivalent(k, apply_step(k, step("stage_out", "y", "j")))


# --- reuse, fold ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "legal"), [("for", True), ("tile", False)])
def test_lanes_do_not_take_what_other_lanes_still_read(kind: str, legal: bool) -> None:
    k = kernel(
        "(x: i32[8]) -> (y: i32[8])",
        f"""buffer a: i32[9] in local = 0
        buffer b: i32[9] in local
        for i: 8 {{ a[i] = x[i] }}
        {kind} j: 8 {{ b[j] = a[j + 1] * 2 }}
        for l: 8 {{ y[l] = b[l] }}""",
    )
    asked = step("reuse", "b", "a")
    if legal:
        assert_equivalent(k, apply_step(k, asked), exact=True)
    else:
        assert "the write `b[j]` may come before the read `a[j + 1]`" in refusal(k, asked)


@pytest.mark.parametrize(("size", "legal"), [(8, True), (6, False)])
def test_lanes_do_not_fold_onto_each_other(size: int, legal: bool) -> None:
    k = kernel(
        "[T](x: i32[4*T]) -> (y: i32[4*T])",
        """buffer h: i32[4*T] in local
        tile j: 4 { for t: T {
          h[t*4 + j] = x[t*4 + j] * 3
          y[t*4 + j] = h[t*4 + j]
        } }""",
    )
    asked = step("fold", "h", 0, size)
    if legal:
        after = apply_step(k, asked)
        check_kernel(after)
        assert_equivalent(k, after, exact=True)
    else:
        assert "take its place" in refusal(k, asked)


# --- all together --------------------------------------------------------------------------------

SPECS = (
    """kernel rows[M, N](x: i32[M, N]) -> (y: i32[M, N]) {
      m[i: M] = max(j: N) x[i, j]
      e[i: M, j: N] = (x[i, j] - m[i]) * 3
      s[i: M] = sum(j: N) e[i, j]
      y[i: M, j: N] = e[i, j] + s[i]
    }""",
    """kernel stencil[N](x: i32[N, N]) -> (y: i32[N, N]) {
      t[i: N, j: N] = (x[i - 1, j] else 0) + x[i, j]
      u[i: N, j: N] = (t[i, j - 1] else 2) - (t[i + 1, j] else 3)
      y[i: N, j: N] = sum(r: 3) (u[i, j + r - 1] else 1) * 2
    }""",
    """kernel recurrence[T, N](x: i32[T, N], w: i32[N, N]) -> (y: i32[T, N]) {
      for t: T {
        g[i: N] = x[t, i] + (sum(k: N) w[i, k] * (h[t - 1, k] else i32(1)))
        h[t, i: N] = g[i] * 2
        y[t, i: N] = h[t, i] - g[i]
      }
    }""",
)
MOVES = (
    "contract",
    "stage",
    "stage_out",
    "compute_at",
    "layout",
    "reuse",
    "fold",
    "lift",
    "split",
    "fuse",
)


@pytest.mark.parametrize("spec", [parse_kernel(s) for s in SPECS], ids=lambda k: k.name)
@settings(max_examples=8)
@given(data=st.data())
def test_random_moves_keep_every_bit(spec: Kernel, data: st.DataObject) -> None:
    dims = {d.name: data.draw(st.sampled_from([0, 1, 3, 5])) for d in spec.dims}
    inputs = random_inputs(spec, dims, 1)
    want = run(spec, inputs, dims)
    steps = [Step("loops")]
    for _ in range(data.draw(st.integers(1, 5))):
        now = replay(spec, steps)[-1][1]
        offered = list(offers(now, data.draw(st.sampled_from(MOVES))))
        if offered:
            steps.append(data.draw(st.sampled_from(offered)))
    done = replay(spec, steps)[-1][1]
    assert parse_kernel(format_kernel(done)) == done
    try:
        check_kernel(done)
    except KirError as error:
        raise AssertionError(f"{error.render()}\n{format_kernel(done)}") from error
    got = run(done, inputs, dims)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, format_kernel(done))


def offers(k: Kernel, name: str) -> Iterator[Step]:
    """The legal steps of one rewrite, with small factors; a few of them, spread evenly."""
    moves = legal_moves(k, [name])
    for move in moves[:: max(1, len(moves) // 5)]:
        if any(n == "factor" for n, _ in move.domains):
            yield move.step(factor=2)
        else:
            yield from itertools.islice(move.steps(), 3)
