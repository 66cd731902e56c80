"""Loop rewrites beyond one example each: effects, names, memory, pipelines of more stages, and that
what is kept on nodes never changes a result."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kir.check import check_kernel
from kir.derivation import kernel_hash, replay
from kir.ir import LOOP_KINDS, If, Kernel, Loop, Node, Step, const, rebuild
from kir.pipeline import Target, choose_steps
from kir.rewrites import REWRITES, apply_step, make_rewrite, refusal
from kir.rewrites.base import buffers_of, loops_of, names_in
from kir.rewrites.split import TAILS
from kir.simplify import simplify
from kir.syntax import format_kernel, load, parse, parse_kernel, parse_steps
from kir.testing import assert_equivalent

ATTENTION = "examples/attention.kir"


def attention() -> Kernel:
    return parse(load(ATTENTION)).kernels()["attention"]


def after(kernel: Kernel, text: str) -> Kernel:
    for step in parse_steps(text):
        kernel = apply_step(kernel, step)
    return kernel


def anew(kernel: Kernel) -> Kernel:
    """A copy of which nothing is known yet."""

    def copied(node: Node) -> Node:
        return replace(rebuild(node, copied))

    done = copied(kernel)
    assert isinstance(done, Kernel)
    return done


# --- merge -----------------------------------------------------------------------------------


def test_attention_merges_into_one_nest() -> None:
    merged = after(attention(), "loops()  merge(b, 3)")
    tops = [s for s in merged.body if isinstance(s, Loop)]
    assert [x.axis.name for x in tops] == ["b"]
    (h,) = tops[0].body
    assert isinstance(h, Loop) and h.axis.name == "h"
    (i,) = h.body
    assert isinstance(i, Loop) and i.axis.name == "i"
    assert sum(isinstance(s, Loop) for s in i.body) == 7
    assert_equivalent(attention(), merged)


def test_fusion_renames_what_would_shadow() -> None:
    kernel = parse_kernel(
        """kernel k[N](x: i32[N, N]) -> (y: i32[N], z: i32[N]) {
          for i: N { buffer t: i32 in reg = 1  y[i] = x[i, i] + t }
          for j: N { buffer t: i32 in reg = 2  z[j] = t + (sum(i: N) x[i, j]) }
        }"""
    )
    fused = after(kernel, "fuse(i, j)")
    check_kernel(fused)
    assert_equivalent(kernel, fused)


# --- effects and names -----------------------------------------------------------------------

SUMS = """kernel k[M, N](x: f32[M, N], w: i32[M, N]) -> (y: f32[M], z: f32, c: i32) {
  z = 0.0
  c = 0
  for a: M { y[a] = 0.0 }
  for i: M { for j: N { y[i] += x[i, j] } }
  for p: M { for q: N { z += x[p, q] } }
  for r: M { z += y[r] }
  for u: M { for v: N { c += w[u, v] } }
  for f: M { y[f] *= 2.0  for g: 4 { y[f] += f32(g) } }
}"""


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("reorder((j, i))", "exact"),
        ("reorder((q, p))", "reassociates"),
        ("reorder((v, u))", "exact"),
        ("bind(i, grid)", "exact"),
        ("bind(p, grid)", "reassociates"),
        ("bind(u, grid)", "exact"),
        ("bind(q, for)", "exact"),
        ("vectorise(j, 4)", "reassociates"),
        ("vectorise(v, 4)", "exact"),
        ("fuse(p, r)", "reassociates"),
        ("fuse(a, i)", "exact"),
        ("merge(a, until = i)", "exact"),
        ("merge(p, until = r)", "reassociates"),
        ("fission(f)", "exact"),
        ("split(q, 4)", "exact"),
        ("unroll(g)", "exact"),
    ],
)
def test_the_effect_here(text: str, effect: str) -> None:
    kernel = parse_kernel(SUMS)
    (step,) = parse_steps(text)
    assert make_rewrite(step).effect_on(kernel) == effect
    assert_equivalent(kernel, apply_step(kernel, step), exact=effect == "exact")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("split(j, 4)", {"j": ("j", "j_o")}),
        ("split(j, 4, tail = peel, inner = s)", {"j": ("s", "j_o", "j")}),
        ("split(i, 4, tail = peel)", {"i": ("i", "i_o", "i_2"), "j": ("j", "j_2")}),
        ("vectorise(j, 4)", {"j": ("j", "j_o")}),
        ("fuse(p, r)", {"r": ("p",)}),
        ("merge(p, 2, until = u)", {"u": ("p",), "v": ("q",)}),
        ("fission(f)", {"f": ("f", "f_2")}),
        ("unroll(g)", {"g": ()}),
        ("reorder((j, i))", {}),
        ("bind(i, grid)", {}),
    ],
)
def test_where_names_go(text: str, names: dict[str, tuple[str, ...]]) -> None:
    kernel = parse_kernel(SUMS.replace("for r: M { z += y[r] }", "") if "until" in text else SUMS)
    (step,) = parse_steps(text)
    done = apply_step(kernel, step)
    assert make_rewrite(step).forward(kernel, done) == names
    present = names_in(done)
    assert {n for now in names.values() for n in now} <= present
    assert names_in(kernel) - present <= set(names)


# --- refusals that protect a value ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        # what a buffer is set to changes between its place and its use
        ("for i: N { buffer t: i32 in reg = y[i]  y[i] = 0  z[i] = t }", "fission(i)"),
        # one buffer is set from another
        ("for i: N { buffer s: i32 in reg = x[i]  buffer t: i32 in reg = s  y[i] = t  z[i] = t }",
         "fission(i)"),
        # the extent is read again in every mask
        ("for i: i64(n[0]) where i < N { n[0] = i32(i)  y[i] = x[i] }", "split(i, 4)"),
        # the copy of an iteration needs what an earlier one stored
        ("for i: N { buffer t: i32[1] in local  t[0] = (y[i - 1] else 0)  y[i] = t[0] + x[i] }",
         "pipeline(i, t)"),
        # it is used before it is complete
        ("for i: N { buffer t: i32[2] in local  t[0] = x[i]  y[i] = t[0]  t[1] = x[i] "
         " z[i] = t[1] }", "pipeline(i, t)"),
        # and what fills it stores elsewhere too
        ("for i: N { buffer t: i32[2] in local  for c: 2 { t[c] = x[i]  y[i] = x[i] } "
         " z[i] = t[1] }", "pipeline(i, t)"),
    ],
)  # fmt: skip
def test_what_would_change_a_value_is_refused(body: str, text: str) -> None:
    kernel = parse_kernel(
        "kernel k[N](x: i32[N]) -> (y: i32[N], z: i32[N], n: i32[1]) {\n"
        f"n[0] = 1\nfor a: N {{ y[a] = 7  z[a] = 8 }}\n{body}\n}}"
    )
    (step,) = parse_steps(text)
    refused = refusal(kernel, step)
    assert refused is not None
    assert "in the current IR" in refused.render()


# --- candidates ------------------------------------------------------------------------------


def every_step(kernel: Kernel) -> list[Step]:
    """All steps by brute force, with small values for numbers."""
    loops = [x.axis.name for x in loops_of(kernel.body)]
    buffers = [b.name for b in buffers_of(kernel.body)]
    found = [Step("unroll", (i,)) for i in loops]
    found += [Step("unmask", (i,)) for i in loops]
    kinds = {x.axis.name: x.kind for x in loops_of(kernel.body)}
    found += [Step("bind", (i, k)) for i in loops for k in LOOP_KINDS if k != kinds[i]]
    found += [Step("pipeline", (i, b)) for i in loops for b in buffers]
    found += [Step("split", (i, 2), (("tail", t),)) for i in loops for t in TAILS]
    found += [Step("vectorise", (i, 2), (("tail", t),)) for i in loops for t in TAILS]
    for i, j in itertools.permutations(loops, 2):
        found += [
            Step("fuse", (i, j)),
            Step("reorder", ((i, j),)),
            Step("swizzle", (i, j, 2)),
            Step("fission", (i,), (("after", j),)),
            *(Step("merge", (i,), (("depth", d), ("until", j))) for d in (1, 2, 3)),
        ]
    return found


MIXED = """kernel k[M, N](x: f32[M, N]) -> (y: f32[M, N], s: f32[M]) {
  grid a: M, b: N { y[a, b] = 0.0 }
  for c: M { for d: 4 where d < N { y[c, d] += 1.0 } }
  for i: M {
    s[i] = 0.0
    for j: N {
      buffer t: f32[4] in local
      for e: 4 { t[e] = x[i, j] }
      for f: 4 { s[i] += t[f] }
    }
    for h: N { y[i, h] = s[i] }
  }
  for p: M { for q: N { y[p, q] *= 2.0 } }
}"""


def test_every_legal_step_is_offered() -> None:
    """Up to what a move leaves open, and to what neighbours' exchanges make up."""
    kernel = parse_kernel(MIXED)
    offered = set()
    for name in ("unroll", "unmask", "bind", "pipeline", "split", "vectorise", "fuse", "swizzle",
                 "reorder", "fission", "merge"):  # fmt: skip
        for move in REWRITES[name].candidates(kernel):
            for step in move.steps():
                offered.add((name, apply_step(kernel, step) if not refusal(kernel, step) else None))
    shapes = {(n, format_kernel(k)) for n, k in offered if k is not None}
    legal = [s for s in every_step(kernel) if refusal(kernel, s) is None]
    legal = [s for s in legal if apply_step(kernel, s) != simplify(kernel)]
    assert len(legal) > 60
    by_value = {"split", "vectorise", "swizzle"}
    for step in legal:
        if step.rewrite in by_value:  # the tries are other numbers: the move is what counts
            continue
        assert (step.rewrite, format_kernel(apply_step(kernel, step))) in shapes, step
    moves = {
        (m.rewrite, dict(m.fixed).get("loop", dict(m.fixed).get("rows")), dict(m.fixed).get("tail"))
        for name in by_value
        for m in REWRITES[name].candidates(kernel)
    }
    for step in legal:
        if step.rewrite in by_value:
            tail = dict(step.options).get("tail")
            wanted = (step.rewrite, step.args[0], tail if tail == "peel" else None)
            assert wanted in moves, step


# --- what is kept on nodes --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "nvidia"])
def test_memory_changes_no_result(target: str) -> None:
    """A derivation gives the same kernel whether each step starts from what earlier ones left
    known, or from nodes of which nothing is known."""
    kernel = attention()
    steps = choose_steps(kernel, Target(target))
    with_memory = replay(kernel, steps)[-1][1]
    bare = kernel
    for step in steps:
        bare = apply_step(anew(bare), step)
    assert kernel_hash(bare) == kernel_hash(with_memory)
    assert bare == with_memory


def test_simplification_heeds_the_context() -> None:
    """One statement object in two places, where other things are known of its index."""
    kernel = parse_kernel(
        "kernel k[N](x: i32[N]) -> (y: i32[N]) { for i: 4 { if i < 6 { y[i % N] = x[i % N] } } }"
    )
    loop = kernel.body[0]
    assert isinstance(loop, Loop)
    longer = replace(loop, axis=replace(loop.axis, extent=const(8)))
    done = simplify(replace(kernel, body=(loop, longer)))
    first, second = done.body
    assert isinstance(first, Loop) and isinstance(second, Loop)
    assert not isinstance(first.body[0], If)
    assert isinstance(second.body[0], If)
