"""Random sequences of rewrites keep the meaning, bit for bit on integers, and the text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.check import check_kernel
from kir.derivation import replay
from kir.errors import RewriteError
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Buffer, Define, Kernel, Loop, Step, StepArg
from kir.rewrites import apply_step
from kir.rewrites.base import Block, buffers_of, loops_of, map_blocks
from kir.syntax import format_kernel, parse_kernel

SPECS = {
    "rows": """kernel rows[M, N](x: i32[M, N]) -> (y: i32[M, N], at: i64[M]) {
      m[i: M] = max(j: N) x[i, j]
      e[i: M, j: N] = (x[i, j] - m[i]) * 3
      s[i: M] = sum(j: N) e[i, j]
      at[i: M] = argmin(j: N) e[i, j]
      y[i: M, j: N] = e[i, j] + s[i]
    }""",
    "product": """kernel product[M, N, K](a: i32[M, K], b: i32[K, N]) -> (c: i32[M, N]) {
      d[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
      c[i: M, j: N] = max(d[i, j] - 7, 0)
    }""",
    "stencil": """kernel stencil[N](x: i32[N, N]) -> (y: i32[N, N]) {
      t[i: N, j: N] = (x[i - 1, j] else 0) + x[i, j]
      y[i: N, j: N] = sum(r: 3) (t[i, j + r - 1] else 1) * 2
    }""",
    "recurrence": """kernel recurrence[T, N](x: i32[T, N], w: i32[N, N]) -> (y: i32[T, N]) {
      for t: T {
        g[i: N] = x[t, i] + (sum(k: N) w[i, k] * (h[t - 1, k] else i32(1)))
        h[t, i: N] = g[i] * 2
        y[t, i: N] = h[t, i] - g[i]
      }
    }""",
    "scatter": """kernel scatter[M, N](x: i32[M, N], w: i32[N]) -> (y: i32[N], z: i32[N]) {
      y[j: N] = w[j]
      z[j: N] = 0
      for i: M, j: N where i + j > 0 {
        y[(i + j) % N] += x[i, j]
        z[j] max= x[i, j]
      }
    }""",
    "scan": """kernel scan[M, N](x: i32[M, N]) -> (y: i32[M, N], z: i32[M, N]) {
      for j: N { y[i: M, j] = x[i, j] + (y[i, j - 1] else 0) }
      for i: M { for k: N { z[i, k] = x[i, k] * 2 + (z[i - 1, k + 1] else 1) } }
    }""",
    "mix": """kernel mix[M, N](x: i32[M, N], w: i32[N]) -> (y: i32[M, N], z: i32[M]) {
      a[i: M, j: N] = x[i, j] * w[j]
      b[i: M] = sum(j: N where j <= i) a[i, j]
      c[i: M, j: N] = a[i, j] + b[i]
      y[i: M, j: N] = c[i, N - 1 - j] + (c[i - 1, j] else b[i])
      z[i: M] = max(k: N) (c[i, k] - (sum(l: k) w[l]))
    }""",
    "guard": """kernel guard[M, N](x: i32[M, N], w: i32[N]) -> (y: i32[M, N]) {
      y[i: M, j: N] = 0
      s[j: N] = w[j] * 2
      for i: M where i > 0 {
        t[j: N] = x[i, j] + s[j]
        if (sum(j: N) t[j]) > 0 {
          for j: N where t[j] > 1 {
            y[i, j] += t[j]
            y[i - 1, j] max= 3
          }
        }
      }
    }""",
}
KINDS = [
    *("split", "split", "reorder", "fuse", "fuse", "fission", "bind", "unroll"),
    *("contract", "contract", "stage", "rfactor", "unmask", "set_space"),
]
Chooser = Callable[[st.SearchStrategy[StepArg]], StepArg]


def candidate(kernel: Kernel, draw: Chooser) -> Step:
    """A step that may or may not be legal."""
    loops = [x.axis.name for x in loops_of(kernel.body)]
    buffers = [b.name for b in buffers_of(kernel.body)] or ["none"]
    tensors = [p.name for p in kernel.inputs] + buffers
    loop, buffer = st.sampled_from(loops or ["none"]), st.sampled_from(buffers)
    spaces = st.sampled_from(["local", "reg", "global"])
    kind = draw(st.sampled_from(KINDS))
    match kind:
        case "split":
            return Step("split", (draw(loop), draw(st.sampled_from([1, 2, 3, 4]))))
        case "reorder":
            outer = draw(loop)
            nest = next((x for x in loops_of(kernel.body) if x.axis.name == outer), None)
            below = [x.axis.name for x in loops_of((nest,))] if isinstance(nest, Loop) else loops
            order = draw(st.permutations(below[:4]).map(tuple))
            return Step("reorder", (order,))
        case "fuse":
            pairs = siblings(kernel) or [("none", "none")]
            pair = draw(st.sampled_from(pairs))
            return Step("fuse", pair if isinstance(pair, tuple) else (pair,))
        case "bind":
            return Step("bind", (draw(loop), draw(st.sampled_from(["grid", "tile", "for"]))))
        case "contract" | "set_space":
            return Step(str(kind), (draw(buffer), draw(spaces)))
        case "stage":
            return Step("stage", (draw(st.sampled_from(tensors)), draw(loop), draw(spaces)))
        case "rfactor":
            return Step("rfactor", (draw(buffer), draw(loop)))
    return Step(str(kind), (draw(loop),))


def first_steps(spec: Kernel, draw: Chooser) -> list[Step]:
    """Inline some definitions, and make loops, most of the time."""
    defined = [s.name for s in spec.body if isinstance(s, Define)]
    inlined = [Step("inline", (name,)) for name in defined if draw(st.booleans())]
    return [*inlined, Step("loops")] if draw(st.integers(0, 3)) else inlined


def siblings(kernel: Kernel) -> list[tuple[StepArg, ...]]:
    """Pairs of loops that follow each other in a block."""
    found: list[tuple[StepArg, ...]] = []

    def visit(block: Block) -> Block:
        names = [s.axis.name for s in block if isinstance(s, Loop)]
        found.extend(pairwise(names))
        return block

    map_blocks(kernel.body, visit)
    return found


def sizes(kernel: Kernel, data: st.DataObject) -> dict[str, int]:
    return {d.name: data.draw(st.sampled_from([0, 1, 2, 3, 5, 6])) for d in kernel.dims}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=12)
@given(data=st.data())
def test_random_rewrites_keep_the_meaning(name: str, data: st.DataObject) -> None:
    spec = parse_kernel(SPECS[name])
    steps: list[Step] = []
    kernel = spec
    for asked in first_steps(spec, data.draw):
        try:
            kernel = apply_step(kernel, asked)
        except RewriteError:
            continue
        steps.append(asked)
    for _ in range(data.draw(st.integers(1, 12))):
        asked = candidate(kernel, data.draw)
        try:
            kernel = apply_step(kernel, asked)
        except RewriteError as refusal:
            assert refusal.render()
            continue
        steps.append(asked)
        assert parse_kernel(format_kernel(kernel)) == kernel, format_kernel(kernel)
        names = [n.axis.name if isinstance(n, Loop) else n.name for n in _named(kernel)]
        assert len(names) == len(set(names)), format_kernel(kernel)
    assert [k for _, k in replay(spec, steps)][-1:] == ([kernel] if steps else [])
    check_kernel(kernel)
    for seed in range(2):
        dims = sizes(spec, data)
        inputs = random_inputs(spec, dims, seed)
        want, got = run(spec, inputs, dims), run(kernel, inputs, dims)
        for output in want:
            np.testing.assert_array_equal(got[output], want[output], format_kernel(kernel))


def _named(kernel: Kernel) -> list[Loop | Buffer]:
    return [*loops_of(kernel.body), *buffers_of(kernel.body)]
