"""The analysis against brute force: generated loop nests are walked element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.analysis import (
    fission_legal,
    fusion_legal,
    model_of,
    parallel,
    reorder_legal,
)
from kir.check import Report, find_errors
from kir.dtypes import f32
from kir.errors import BoundsError, ScopeError, UnknownNameError, UnwrittenError
from kir.ir import (
    Axis,
    Const,
    Dim,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Param,
    Read,
    Stmt,
    Store,
    Var,
    const,
)
from kir.ops import compute, op
from kir.simplify import simplify
from kir.syntax import parse_kernel

# --- brute force ---------------------------------------------------------------------------------

Event = tuple[str, str, tuple[int, ...], tuple[tuple[str, int], ...]]
"""(kind or update op, tensor, element, iteration)."""


@dataclass
class Walk:
    """Runs a kernel of loops, guards and stores on nothing, and notes what it touches."""

    dims: dict[str, int]
    events: list[Event] = field(default_factory=list)

    def value(self, e: Expr, env: dict[str, int]) -> int:
        if isinstance(e, Const):
            return int(e.value)
        if isinstance(e, Var):
            return env[e.name]
        assert isinstance(e, Op)
        return int(compute(e.name, [np.int64(self.value(a, env)) for a in e.args], e.dtype))

    def run(self, body: tuple[Stmt, ...], env: dict[str, int], at: dict[str, int]) -> None:
        for s in body:
            match s:
                case Loop():
                    for n in range(self.value(s.axis.extent, env)):
                        inner = {**env, s.axis.name: n}
                        if all(self.value(c, inner) for c in s.where):
                            self.run(s.body, inner, {**at, s.axis.name: n})
                case If():
                    if self.value(s.condition, env):
                        self.run(s.body, env, at)
                case Store():
                    self.reads(s.value, env, at)
                    self.note(s.op or "write", s.target, s.indices, env, at)

    def reads(self, e: Expr, env: dict[str, int], at: dict[str, int]) -> None:
        if isinstance(e, Read):
            self.note("read", e.tensor, e.indices, env, at)
        elif isinstance(e, Op):
            for a in e.args:
                self.reads(a, env, at)

    def note(
        self, kind: str, name: str, idx: tuple[Expr, ...], env: dict[str, int], at: dict[str, int]
    ) -> None:
        element = tuple(self.value(i, env) for i in idx)
        self.events.append((kind, name, element, tuple(at.items())))


def walk_kernel(kernel: Kernel, dims: dict[str, int]) -> list[Event]:
    walk = Walk(dims)
    walk.run(kernel.body, dict(dims), {})
    return walk.events


def clash(a: Event, b: Event) -> bool:
    same = a[1:3] == b[1:3] and (a[0], b[0]) != ("read", "read")
    return same and not (a[0] == b[0] != "write")


def in_bounds(events: list[Event], size: int) -> bool:
    return all(0 <= i < size for e in events for i in e[2])


# --- generated programs --------------------------------------------------------------------------

SIZE = 12  # of the tensors y (stored to) and x
LOOPS = ("i", "j")
SMALL = st.integers(-2, 2)


@st.composite
def indices(draw: st.DrawFn, names: tuple[str, ...]) -> Expr:
    """An affine index, or one with a division, a remainder, a minimum."""
    e: Expr = const(draw(st.integers(0, 3)))
    for n in names:
        c = draw(SMALL)
        if c:
            e = op("add", e, op("mul", Var(n), const(c)))
    shape = draw(st.sampled_from(["plain", "plain", "plain", "floordiv", "mod", "min", "cdiv"]))
    if shape != "plain":
        e = op(shape, e, const(draw(st.integers(2, 3))))
    return e


@st.composite
def stores(draw: st.DrawFn, names: tuple[str, ...]) -> Stmt:
    read = Read(draw(st.sampled_from("xy")), (draw(indices(names)),), f32)
    update = draw(st.sampled_from([None, None, "add", "max"]))
    store: Stmt = Store("y", (draw(indices(names)),), read, update)
    if draw(st.booleans()):
        compare = draw(st.sampled_from(["lt", "ge", "eq", "ne"]))
        store = If(
            op(compare, Var(draw(st.sampled_from(names))), const(draw(st.integers(0, 2)))), (store,)
        )
    return store


def loop(name: str, extent: Expr, *body: Stmt, where: tuple[Expr, ...] = ()) -> Loop:
    return Loop("for", Axis(name, extent), where, body)


def kernel(*body: Stmt) -> Kernel:
    shape = (const(SIZE),)
    return Kernel("k", (Dim("N"),), (Param("x", f32, shape),), (Param("y", f32, shape),), (), body)


def extents(outer: str | None) -> st.SearchStrategy[Expr]:
    choices: list[Expr] = [Var("N"), const(3), const(2), op("cdiv", Var("N"), const(2))]
    if outer:
        choices.append(op("add", Var(outer), const(1)))
    return st.sampled_from(choices)


@st.composite
def nests(draw: st.DrawFn) -> Kernel:
    body = tuple(draw(st.lists(stores(LOOPS), min_size=1, max_size=2)))
    return kernel(loop("i", draw(extents(None)), loop("j", draw(extents("i")), *body)))


DIMS = [{"N": n} for n in range(5)]
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60)


def carried(events: list[Event], name: str) -> set[tuple[int, int]]:
    """The pairs of iterations of loop `name` that depend on each other, those around it equal."""
    found = set()
    for a, b in product(events, events):
        here, there = dict(a[3]), dict(b[3])
        around = list(here)[: list(here).index(name)]
        if here[name] != there[name] and all(here[n] == there[n] for n in around) and clash(a, b):
            found.add((here[name], there[name]))
    return found


@EXAMPLES
@given(nests())
def test_parallel_is_what_brute_force_finds(k: Kernel) -> None:
    for name in LOOPS:
        verdict = parallel(k, name)
        runs = [events for d in DIMS if in_bounds(events := walk_kernel(k, d), SIZE)]
        if verdict:
            assert not any(carried(events, name) for events in runs)
        else:
            check_example(k, name, verdict.conflict)


def check_example(k: Kernel, name: str, conflict: Any) -> None:
    """The refusal's example is a real dependence (its dims may be too large to walk)."""
    dims = {"N": 0, **conflict.example}
    [(loop_name, one, two)] = conflict.iterations
    assert conflict.decided and loop_name == name and one != two
    if dims["N"] <= 8:
        assert (one, two) in carried(walk_kernel(k, dims), name)


def order_kept(before: list[Event], key: Callable[[Event], Any]) -> bool:
    """Whether every two clashing events come in the same order when sorted by `key`."""
    ranked = [(key(e), n) for n, e in enumerate(before)]
    return not any(
        ranked[b] < ranked[a] and clash(before[a], before[b])
        for a in range(len(before))
        for b in range(a + 1, len(before))
    )


@EXAMPLES
@given(nests())
def test_reorder_is_what_brute_force_finds(k: Kernel) -> None:
    reason = reorder_legal(k, ["i", "j"], ["j", "i"])
    runs = [events for d in DIMS if in_bounds(events := walk_kernel(k, d), SIZE)]
    kept = [order_kept(e, lambda e: (dict(e[3])["j"], dict(e[3])["i"])) for e in runs]
    if reason is None:
        assert all(kept)
    elif "depends on `i`" not in reason and len(runs) == len(DIMS):
        assert not all(kept) or "N = " in reason


@EXAMPLES
@given(st.lists(stores(("i",)), min_size=2, max_size=3), st.data())
def test_fission_is_what_brute_force_finds(body: list[Stmt], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(body) - 1))
    k = kernel(loop("i", Var("N"), *body))
    pieces = [kernel(loop("i", Var("N"), *part)) for part in (body[:at], body[at:])]
    reason = fission_legal(k, "i", at)
    for d in DIMS:
        whole = walk_kernel(k, d)
        if not in_bounds(whole, SIZE):
            continue
        apart = [e for p in pieces for e in walk_kernel(p, d)]
        if reason is None:
            assert same_history(whole, apart)


def same_history(one: list[Event], two: list[Event]) -> bool:
    """Whether every element sees the same writes, reads and updates, updates in any order."""

    def history(events: list[Event]) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        for kind, name, element, at in events:
            past = found.setdefault((name, element), [])
            if past and past[-1][0] == kind != "write":
                past[-1][1].append(at)
                past[-1][1].sort()
            else:
                past.append((kind, [at]))
        return found

    return history(one) == history(two)


@EXAMPLES
@given(stores(("i",)), stores(("j",)), extents(None), extents(None))
def test_fusion_is_what_brute_force_finds(a: Stmt, b: Stmt, one: Expr, two: Expr) -> None:
    k = kernel(loop("i", one, a), loop("j", two, b))
    reason = fusion_legal(k, "i", "j")
    if one != two:
        assert reason is not None and "extents" in reason
        return
    runs = [events for d in DIMS if in_bounds(events := walk_kernel(k, d), SIZE)]
    kept = [order_kept(e, lambda e: (e[3][0][1], e[3][0][0])) for e in runs]
    assert all(kept) if reason is None else True
    if reason is not None and len(runs) == len(DIMS):
        assert not all(kept) or "N = " in reason


@EXAMPLES
@given(nests())
def test_bounds_are_what_brute_force_finds(k: Kernel) -> None:
    faults = [e for e in find_errors(k, Report()) if isinstance(e, BoundsError)]
    runs = [walk_kernel(k, d) for d in DIMS]
    if not faults:
        assert all(in_bounds(events, SIZE) for events in runs)
    for fault in faults:
        assert "takes the value" in fault.message  # nothing here is beyond the sets


@EXAMPLES
@given(st.lists(stores(("i",)), min_size=1, max_size=3), st.integers(1, 5), st.integers(3, 14))
def test_coverage_and_early_reads_are_what_brute_force_finds(
    body: list[Stmt], size: int, extent: int
) -> None:
    shape = (const(size),)
    k = Kernel("k", (), (Param("x", f32, (const(64),)),), (Param("y", f32, shape),), (),
               (loop("i", const(extent), *body),))  # fmt: skip
    events = walk_kernel(k, {})
    if not in_bounds([e for e in events if e[1] == "y"], size):
        return
    found = [type(e) for e in find_errors(k, Report())]
    written: set[tuple[int, ...]] = set()
    early = False
    for kind, name, element, _ in events:
        if name == "y" and kind != "write":
            early = early or element not in written
        if kind == "write":
            written.add(element)
    assert (UnwrittenError in found) == (len(written) < size)
    assert (ScopeError in found) == early


@st.composite
def quotients(draw: st.DrawFn) -> Expr:
    """An index expression over i, j and N, with quotients by constants and by N."""
    leaf = st.sampled_from([Var("i"), Var("j"), Var("N"), const(1), const(2), const(3)])
    pair = st.sampled_from(
        ["add", "sub", "mul", "floordiv", "mod", "cdiv", "min", "max", "add", "mul"]
    )
    tree = st.recursive(leaf, lambda e: st.builds(op, pair, e, e), max_leaves=6)
    return draw(st.one_of(tree, st.sampled_from(FUSED)))


FLAT = op("add", op("mul", Var("i"), Var("N")), Var("j"))
FUSED = [op(name, FLAT, Var("N")) for name in ("floordiv", "mod", "cdiv")]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.data())
def test_simplify_keeps_what_a_program_touches(data: st.DataObject) -> None:
    """Loops, masks and guards with symbolic extents: the same iterations touch the same things."""
    extent = st.one_of(extents(None), st.just(op("mul", Var("N"), const(2))))
    compare = st.sampled_from(["lt", "le", "ge", "eq", "ne"])
    conditions = [
        op(data.draw(compare), data.draw(quotients()), data.draw(quotients())) for _ in range(3)
    ]
    where = tuple(conditions[: data.draw(st.integers(0, 2))])
    store = Store("y", (data.draw(quotients()), data.draw(quotients())), Const(1.0, f32))
    guarded = If(data.draw(st.sampled_from(conditions)), (store,))
    inner = loop("j", data.draw(st.one_of(extent, extents("i"))), guarded, store, where=where)
    k = kernel(loop("i", data.draw(extent), inner))
    done = simplify(k)
    for dims in DIMS:
        assert walk_kernel(done, dims) == walk_kernel(k, dims)


# --- by hand -------------------------------------------------------------------------------------

MATMUL = """
kernel mm[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
  for i: M { for j: N {
    buffer acc: f32 in reg = 0.0
    for k: K { acc += a[i, k] * b[k, j] }
    c[i, j] = acc
  } }
}
"""


def test_reductions_are_named() -> None:
    k = parse_kernel(MATMUL)
    assert parallel(k, "i") and parallel(k, "j")
    assert parallel(k, "i").reductions == ()
    found = parallel(k, "k")
    assert found and [a.decl.name for a in found.reductions] == ["acc"]
    assert not parallel(k, "k", ordered=True)


def test_buffers_of_the_body_are_private() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) {{ {} for i: N {{ {} t = x[i] y[i] = t }} }}"
    declared = "buffer t: f32 in reg = 0.0"
    assert parallel(parse_kernel(text.format("", declared)), "i")
    outside = parallel(parse_kernel(text.format(declared, "")), "i")
    assert not outside and outside.reason is not None and "`t`" in outside.reason


def test_every_order_of_a_tile_is_free() -> None:
    text = """
    kernel mm[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
      for z: M { for w: N { c[z, w] = 0.0 } }
      for i: M { for j: N { for k: K { c[i, j] += a[i, k] * b[k, j] } } }
    }"""
    k = parse_kernel(text)
    for order in permutations("ijk"):
        assert reorder_legal(k, list("ijk"), list(order)) is None
        assert reorder_legal(k, list("ijk"), list(order), ordered=True) is None


def test_a_wavefront_may_not_be_turned() -> None:
    text = """
    kernel w[N](x: f32[N, N]) -> (y: f32[N, N]) {
      for p: N { for q: N { y[p, q] = x[p, q] } }
      for i: N { for j: N where i >= 1, j + 1 < N { y[i, j] = y[i - 1, j + 1] } }
    }"""
    reason = reorder_legal(parse_kernel(text), ["i", "j"], ["j", "i"])
    assert reason is not None and "`y[i - 1, j + 1]`" in reason and "`y[i, j]`" in reason
    assert reorder_legal(parse_kernel(text.replace("j + 1]", "j]")), ["i", "j"], ["j", "i"]) is None


def test_a_triangular_nest_may_not_be_turned() -> None:
    text = "kernel t[N](x: f32[N]) -> (y: f32[N, N]) { for i: N { for j: i { y[i, j] = x[j] } } }"
    reason = reorder_legal(parse_kernel(text), ["i", "j"], ["j", "i"])
    assert reason == "the extent of `j` depends on `i`"


def test_indices_read_from_tensors_may_meet_anywhere() -> None:
    text = "kernel s[N](x: f32[N], p: i64[N]) -> (y: f32[N]) { for i: N { y[p[i]] = x[i] } }"
    assert not parallel(parse_kernel(text), "i")
    whole = text.replace("y: f32[N]", "y: f32[N, N]").replace("y[p[i]]", "y[i, p[i]]")
    assert parallel(parse_kernel(whole), "i")
    update = parallel(parse_kernel(text.replace("] = x", "] += x")), "i")
    assert update and len(update.reductions) == 1
    halves = text.replace("y[p[i]] = x[i]", "y[p[i] % 4 + 4*i] = x[i]")
    assert parallel(parse_kernel(halves), "i")


def test_products_of_dims_keep_what_can_be_known() -> None:
    body = "for i: M { for j: N { y[i*N + j] = x[i*N + j] } }"
    text = f"kernel k[M, N](x: f32[M*N]) -> (y: f32[M*N]) {{ {body} }}"
    found = [e for e in find_errors(parse_kernel(text), Report()) if isinstance(e, BoundsError)]
    assert found == []
    assert parallel(parse_kernel(text), "j")


def test_fusion_needs_one_block_and_equal_extents() -> None:
    text = """
    kernel k[M, N](x: f32[N]) -> (y: f32[N], z: f32[M]) where M == N {
      for i: N { y[i] = x[i] }
      for j: M { z[j] = y[j] for l: 1 { z[j] = 0.0 } }
    }"""
    k = parse_kernel(text)
    assert fusion_legal(k, "i", "j") is None
    assert fusion_legal(k, "i", "l") == "`i` and `l` stand in different blocks"
    free = parse_kernel(text.replace("where M == N", ""))
    assert fusion_legal(free, "i", "j") is not None


def test_loops_steered_by_what_they_write_stay() -> None:
    text = """
    kernel k[N](x: f32[N]) -> (y: f32[N], z: f32[N]) {
      for a: N { y[a] = x[a] z[a] = x[a] }
      for i: N where y[i] > 0.0 { y[i] = 0.0  z[i] = y[i] }
      for j: N { for l: N where y[j] > 0.0 { y[l] = 0.0 } }
    }"""
    k = parse_kernel(text)
    reason = fission_legal(k, "i", 1)
    assert reason is not None and "the read `y[i]` steers the loop" in reason
    assert fission_legal(parse_kernel(text.replace("where y[i]", "where x[i]")), "i", 1) is None
    assert reorder_legal(k, ["j", "l"], ["l", "j"]) is not None


def test_a_guard_on_data_holds_until_the_data_change() -> None:
    text = """
    kernel k[N](x: i64[N]) -> (y: f32[N]) {
      buffer p: i64 in reg = 0
      for i: N { y[i] = 0.0 }
      for j: N { p = x[j]  if p >= 0 and p < N { %s y[p] = 1.0 } }
    }"""
    report = Report()
    assert list(find_errors(parse_kernel(text % "p = 100"), report)) == []
    assert [a.decl.name for a in report.runtime_checked] == ["y"]
    direct = text.replace("if p >= 0 and p < N", "if x[j] >= 0 and x[j] < N").replace(
        "y[p]", "y[x[j]]"
    )
    report = Report()
    assert list(find_errors(parse_kernel(direct % ""), report)) == []
    assert report.runtime_checked == []


def test_an_unknown_loop_is_an_error() -> None:
    with pytest.raises(UnknownNameError):
        parallel(parse_kernel(MATMUL), "nowhere")


def test_the_model_knows_guards_and_roles() -> None:
    k = parse_kernel(
        "kernel k[N](x: f32[N]) -> (y: f32[N]) { e[i: N] = sum(j: N where j <= i) x[j]"
        "  for t: N { if t >= 1 { y[t] = e[t] } } }"
    )
    model = model_of(k)
    assert model_of(k) is model
    assert {d.name: d.role for d in model.decls} == {"x": "input", "y": "output", "e": "definition"}
    kinds = [(a.decl.name, a.kind, len(a.frames)) for a in model.accesses]
    assert kinds == [("x", "read", 3), ("e", "write", 1), ("e", "read", 2), ("y", "write", 2)]


@pytest.mark.parametrize("write, read, meet", [
    ("2*i + j", "2*i", True),
    ("2*i + 2 - j", "2*i", True),
    ("2*i + j", "2*i + 2", True),
    ("2*i + j", "2*i + 4", True),
    ("3*i + j", "3*i", False),
    ("3*i + j", "3*i + 3", True),
    ("3*i + j", "3*i + 2", False),
    ("3*i + j", "3*(N - 1 - i) + 2", True),
])  # fmt: skip
def test_tiles_meet_where_they_overlap(write: str, read: str, meet: bool) -> None:
    k = parse_kernel(f"""
    kernel k[N](x: f32[N]) -> (y: f32[N]) {{
      buffer t: f32[4*N + 8] in global = 0.0
      buffer u: f32[4*N + 8] in global = 0.0
      for i: N {{ for j: 3 {{ t[{write}] += x[i] }} y[i] = t[{read}] }}
      for ii: N {{ for jj: 3 {{ u[4*ii + jj] = x[ii] }} }}
    }}""")
    assert bool(parallel(k, "i")) is not meet
    assert parallel(k, "ii")
