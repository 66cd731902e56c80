"""Each rewrite: before and after, what it refuses, and that the meaning stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from kir.check import check_kernel
from kir.derivation import replay
from kir.errors import RewriteError, ScheduleError
from kir.inputs import random_inputs
from kir.interpret import run
from kir.ir import Kernel, Schedule, Step, StepArg
from kir.rewrites import REWRITES, apply_step, make_rewrite
from kir.syntax import format_kernel, parse, parse_kernel


def step(name: str, *args: StepArg, **options: StepArg) -> Step:
    return Step(name, args, tuple(options.items()))


def kernel(signature: str, body: str) -> Kernel:
    return parse_kernel(f"kernel t{signature} {{\n{body}\n}}")


@dataclass(frozen=True)
class Example:
    """A step on the body of a kernel of signature `signature`, and the body expected after it."""

    name: str
    step: Step
    signature: str
    before: str
    after: str
    dims: tuple[dict[str, int], ...] = ()


VECTOR = "[N](x: i32[N]) -> (y: i32[N])"
MATRIX = "[M, N](x: i32[M, N]) -> (y: i32[M, N])"
ROWS = "[M, N](x: i32[M, N]) -> (y: i32[M])"
V = ({"N": 0}, {"N": 1}, {"N": 8}, {"N": 13})
MN = ({"M": 0, "N": 3}, {"M": 1, "N": 1}, {"M": 5, "N": 11}, {"M": 8, "N": 4})
COPY = "for i: N { y[i] = x[i] }"
ACCUMULATE = """
for i: M {
  buffer acc: i32 in reg = 0
  for j: N { acc += x[i, j] }
  y[i] = acc
}
"""

EXAMPLES = (
    Example("inline", step("inline", "e"), VECTOR,
        "e[i: N] = x[i] * 3\ny[i: N] = e[i] + e[N - 1 - i]",
        "y[i: N] = x[i] * 3 + x[N - 1 - i] * 3", V),
    Example("inline-padded", step("inline", "e"), VECTOR,
        "e[i: N] = x[i] * 3 + 1\ny[i: N] = e[i - 1] else 7",
        "y[i: N] = select(i - 1 >= 0, (x[i - 1] else 0) * 3 + 1, 7)", V),
    Example("inline-reduction", step("inline", "s"), MATRIX,
        "s[i: M] = sum(j: N) x[i, j]\ny[i: M, j: N] = x[i, j] - s[i]",
        "y[i: M, j: N] = x[i, j] - (sum(j_2: N) x[i, j_2])", MN),
    Example("inline-recurrence", step("inline", "g"), "[T, N](x: i32[T, N]) -> (y: i32[T, N])",
        "for t: T {\n g[t, i: N] = x[t, i] * 2\n y[t, i: N] = g[t, i] + (y[t - 1, i] else 1)\n}",
        "for t: T { y[t, i: N] = x[t, i] * 2 + (y[t - 1, i] else 1) }",
        ({"T": 0, "N": 2}, {"T": 4, "N": 3})),
    Example("loops", step("loops"), ROWS,
        "s[i: M] = sum(j: N) x[i, j]\ny[i: M] = s[i] * 2",
        """buffer s: i32[M] in global
        for i: M { buffer s_acc: i32 in reg = 0  for j: N { s_acc += x[i, j] }  s[i] = s_acc }
        for i_2: M { y[i_2] = s[i_2] * 2 }""", MN),
    Example("loops-hoists", step("loops"), MATRIX,
        "y[i: M, j: N] = x[i, j] * (max(k: N) x[i, k])",
        """for i: M {
          buffer y_acc: i32 in reg = -2147483648
          for k: N { y_acc max= x[i, k] }
          for j: N { y[i, j] = x[i, j] * y_acc }
        }""", MN),
    Example("loops-keeps-bounds", step("loops"), MATRIX,
        "y[i: M, j: N] = x[i, j] + (sum(k: M) x[k, N - 1])",
        """for i: M { for j: N {
          buffer y_acc: i32 in reg = 0
          for k: M { y_acc += x[k, N - 1] }
          y[i, j] = x[i, j] + y_acc
        } }""", MN),
    Example("loops-nested", step("loops"), ROWS,
        "y[i: M] = sum(j: N where j > i) x[i, j] * (min(k: N where k <= j) x[i, k])",
        """for i: M {
          buffer y_acc: i32 in reg = 0
          for j: N where j > i {
            buffer y_acc_acc: i32 in reg = 2147483647
            for k: N where k <= j { y_acc_acc min= x[i, k] }
            y_acc += x[i, j] * y_acc_acc
          }
          y[i] = y_acc
        }""", MN),
    Example("loops-guards", step("loops"), "[N](x: i32[N, N]) -> (y: i32[N])",
        """y[i: N] = 0
        for i: N where (sum(j: N) x[i, j]) > 0 { y[i] += x[i, 0] }""",
        """for i: N { y[i] = 0 }
        for i_2: N {
          buffer i_2_acc: i32 in reg = 0
          for j: N { i_2_acc += x[i_2, j] }
          if i_2_acc > 0 { y[i_2] += x[i_2, 0] }
        }""", V),
    Example("loops-recurrence", step("loops"), "[T, N](x: i32[T, N]) -> (y: i32[T])",
        """for t: T {
          h[t, i: N] = x[t, i] + (h[t - 1, i] else i32(1))
          y[t] = sum(i: N) h[t, i]
        }""",
        """buffer h: i32[T, N] in global
        for t: T {
          for i: N { h[t, i] = x[t, i] + (h[t - 1, i] else 1) }
          buffer y_acc: i32 in reg = 0
          for i_2: N { y_acc += h[t, i_2] }
          y[t] = y_acc
        }""", ({"T": 0, "N": 2}, {"T": 4, "N": 3})),
    Example("loops-argmax", step("loops"), "[M, N](x: f32[M, N]) -> (y: i64[M])",
        "y[i: M] = argmax(j: N) x[i, j]",
        """for i: M {
          buffer y_best: f32 in reg = -inf
          for j: N { y_best max= x[i, j] }
          buffer y_at: i64 in reg = 9223372036854775807
          for j_2: N {
            y_at min= select(x[i, j_2] == y_best or isnan(x[i, j_2]) and isnan(y_best), j_2,
              9223372036854775807)
          }
          y[i] = select(y_at == 9223372036854775807, -1, y_at)
        }""", ({"M": 2, "N": 0}, {"M": 3, "N": 7})),
    Example("split", step("split", "i", 8), VECTOR, COPY,
        "for i_o: cdiv(N, 8) { for i: 8 where i_o*8 + i < N { y[i_o*8 + i] = x[i_o*8 + i] } }", V),
    Example("split-named", step("split", "i", 4, outer="a", inner="b"), VECTOR, COPY,
        "for a: cdiv(N, 4) { for b: 4 where a*4 + b < N { y[a*4 + b] = x[a*4 + b] } }", V),
    Example("split-divides", step("split", "i", 8), f"{VECTOR} where N % 16 == 0",
        COPY, "for i_o: cdiv(N, 8) { for i: 8 { y[i_o*8 + i] = x[i_o*8 + i] } }", ({"N": 32},)),
    Example("split-masked", step("split", "i", 2), VECTOR,
        "for a: N { y[a] = 0 }\nfor i: N where i > 2 { y[i] = x[i - 1] }",
        """for a: N { y[a] = 0 }
        for i_o: cdiv(N, 2) { for i: 2 where i_o*2 + i < N, i_o*2 + i > 2 {
          y[i_o*2 + i] = x[i_o*2 + i - 1]
        } }""", V),
    Example("split-data-mask", step("split", "i", 2), VECTOR,
        "for a: N { y[a] = 0 }\nfor i: N where x[i] > 0 { y[i] = x[i] }",
        """for a: N { y[a] = 0 }
        for i_o: cdiv(N, 2) { for i: 2 where i_o*2 + i < N {
          if x[i_o*2 + i] > 0 { y[i_o*2 + i] = x[i_o*2 + i] }
        } }""", V),
    Example("reorder", step("reorder", ("j", "i")), MATRIX,
        "for i: M { for j: N { y[i, j] = x[i, j] } }",
        "for j: N { for i: M { y[i, j] = x[i, j] } }", MN),
    Example("reorder-masks", step("reorder", ("i_o", "j", "i")), MATRIX,
        """for i_o: cdiv(M, 4) { for i: 4 where i_o*4 + i < M { for j: N {
          y[i_o*4 + i, j] = x[i_o*4 + i, j] } } }""",
        """for i_o: cdiv(M, 4) { for j: N { for i: 4 where i_o*4 + i < M {
          y[i_o*4 + i, j] = x[i_o*4 + i, j] } } }""", MN),
    Example("reorder-data-mask", step("reorder", ("j", "i")), "[N](x: i32[N, N]) -> (y: i32[N])",
        """for a: N { y[a] = 0 }
        for i: N where i > 2 { for j: N where x[i - 3, j] > 0 { y[i - 3] += x[i, j] } }""",
        """for a: N { y[a] = 0 }
        for j: N { for i: N where i > 2 { if x[i - 3, j] > 0 { y[i - 3] += x[i, j] } } }""",
        ({"N": 5},)),
    Example("reorder-recurrence", step("reorder", ("i", "t")),
        "[T, N](x: i32[T, N]) -> (y: i32[T, N])",
        "for t: T { for i: N { y[t, i] = x[t, i] + (y[t - 1, i] else 0) } }",
        "for i: N { for t: T { y[t, i] = x[t, i] + (y[t - 1, i] else 0) } }",
        ({"T": 4, "N": 3},)),
    Example("fuse", step("fuse", "i", "j"), VECTOR,
        """buffer a: i32[N] in global
        for i: N { a[i] = x[i] * 2 }
        for j: N { y[j] = a[j] + (a[j - 1] else 0) }""",
        """buffer a: i32[N] in global
        for i: N { a[i] = x[i] * 2  y[i] = a[i] + (a[i - 1] else 0) }""", V),
    Example("fuse-moves", step("fuse", "i", "j"), "[M](x: i32[M, 2]) -> (y: i32[M])",
        """buffer a: i32[M] in global
        for i: M { a[i] = x[i, 0] }
        buffer b: i32[M] in global
        for k: M { y[k] = a[k] }
        for j: M { b[j] = 1 }""",
        """buffer a: i32[M] in global
        buffer b: i32[M] in global
        for i: M { a[i] = x[i, 0]  b[i] = 1 }
        for k: M { y[k] = a[k] }""", ({"M": 3},)),
    Example("fuse-masks", step("fuse", "i", "j"), VECTOR,
        "for i: N { y[i] = x[i] }\nfor j: N where j > 1 { y[j] += 1 }",
        "for i: N { y[i] = x[i]  if i > 1 { y[i] += 1 } }", V),
    Example("fuse-stored-mask", step("fuse", "i", "j"), "[N](x: i32[N]) -> (y: i32[N], c: i32[N])",
        """for a: N { y[a] = 0  c[a] = x[a] }
        for i: N where c[i] > 0 { c[i] = 0 }
        for j: N where c[j] > 0 { y[j] = 1 }""",
        """for a: N { y[a] = 0  c[a] = x[a] }
        for i: N { if c[i] > 0 { c[i] = 0 }  if c[i] > 0 { y[i] = 1 } }""", V),
    Example("fission", step("fission", "i"), "(x: i32[8, 5]) -> (y: i32[8])",
        ACCUMULATE.replace("M", "8").replace("N", "5"),
        """buffer acc: i32[8] in reg = 0
        for i: 8 { for j: 5 { acc[i] += x[i, j] } }
        for i_2: 8 { y[i_2] = acc[i_2] }""", ({},)),
    Example("fission-after", step("fission", "i", after="j"), "(x: i32[8, 5]) -> (y: i32[8])",
        """for i: 8 {
          buffer acc: i32 in reg = 0
          for j: 5 { acc += x[i, j] }
          buffer b: i32 in reg
          b = acc * 2
          y[i] = b
        }""",
        """buffer acc: i32[8] in reg = 0
        for i: 8 { for j: 5 { acc[i] += x[i, j] } }
        for i_2: 8 { buffer b: i32 in reg  b = acc[i_2] * 2  y[i_2] = b }""", ({},)),
    Example("fission-init", step("fission", "i"), "(x: i32[8, 5]) -> (y: i32[8])",
        """for i: 8 where i != 3 {
          buffer acc: i32 in reg = x[i, 4]
          for j: 5 { acc += x[i, j] }
          y[i] = acc
        }
        y[3] = 0""",
        """buffer acc: i32[8] in reg
        for i: 8 where i != 3 { acc[i] = x[i, 4] }
        for i_2: 8 where i_2 != 3 { for j: 5 { acc[i_2] += x[i_2, j] } }
        for i_3: 8 where i_3 != 3 { y[i_3] = acc[i_3] }
        y[3] = 0""", ({},)),
    Example("bind-grid", step("bind", "i", "grid"), ROWS, ACCUMULATE,
        ACCUMULATE.replace("for i", "grid i"), MN),
    Example("bind-tile-reduction", step("bind", "j", "tile"), "[M](x: i32[M, 4]) -> (y: i32[M])",
        ACCUMULATE.replace("N", "4"), ACCUMULATE.replace("N", "4").replace("for j", "tile j"),
        ({"M": 3},)),
    Example("unroll", step("unroll", "j"), "[M](x: i32[M, 2]) -> (y: i32[M])",
        """for i: M {
          y[i] = 0
          for j: 2 where j < M { for k: 2 { y[i] += x[i, j] * x[i, k] } }
        }""",
        """for i: M {
          y[i] = 0
          for k: 2 { y[i] += x[i, 0] * x[i, k] }
          if 1 < M { for k_2: 2 { y[i] += x[i, 1] * x[i, k_2] } }
        }""", ({"M": 1}, {"M": 3})),
    Example("hint", step("hint", "i", "num_warps", 8), VECTOR, COPY,
        "for i: N hint(num_warps = 8) { y[i] = x[i] }", V),
    Example("contract", step("contract", "m", "reg"), "[M](x: i32[M, 2]) -> (y: i32[M])",
        "buffer m: i32[M] in global\nfor i: M { m[i] = x[i, 0]  y[i] = m[i] * m[i] }",
        "for i: M { buffer m: i32 in reg  m = x[i, 0]  y[i] = m * m }", ({"M": 3},)),
    Example("contract-row", step("contract", "e", "local"), MATRIX,
        """buffer e: i32[M, N] in global
        for i: M { for j: N { e[i, j] = x[i, j] * 2 }  for k: N { y[i, k] = e[i, N - 1 - k] } }""",
        """for i: M {
          buffer e: i32[N] in local
          for j: N { e[j] = x[i, j] * 2 }
          for k: N { y[i, k] = e[N - 1 - k] }
        }""", MN),
    Example("contract-reused", step("contract", "e", "local"), MATRIX,
        """buffer e: i32[N] in global
        for i: M { for j: N { e[j] = x[i, j] * 2 }  for k: N { y[i, k] = e[k] } }""",
        """for i: M {
          buffer e: i32[N] in local
          for j: N { e[j] = x[i, j] * 2 }
          for k: N { y[i, k] = e[k] }
        }""", MN),
    Example("contract-split", step("contract", "e", "reg"), VECTOR,
        """buffer e: i32[N] in global
        for a: cdiv(N, 4) { for b: 4 where a*4 + b < N {
          e[a*4 + b] = x[a*4 + b]
          y[a*4 + b] = e[a*4 + b]
        } }""",
        """for a: cdiv(N, 4) { for b: 4 where a*4 + b < N {
          buffer e: i32 in reg
          e = x[a*4 + b]
          y[a*4 + b] = e
        } }""", V),
    Example("contract-padded", step("contract", "e", "reg"), VECTOR,
        "buffer e: i32[N] in global\nfor i: N { e[i] = x[i]  y[i] = e[i] else 3 }",
        "for i: N { buffer e: i32 in reg  e = x[i]  y[i] = e }", V),
    Example("set_space", step("set_space", "e", "local"), VECTOR,
        "buffer e: i32[N] in global\nfor i: N { e[i] = x[i] }\nfor j: N { y[j] = e[j] }",
        "buffer e: i32[N] in local\nfor i: N { e[i] = x[i] }\nfor j: N { y[j] = e[j] }", V),
    Example("stage", step("stage", "x", "i_o", "local"), VECTOR,
        "for i_o: cdiv(N, 4) { for i: 4 where i_o*4 + i < N { y[i_o*4 + i] = x[i_o*4 + i] } }",
        """for i_o: cdiv(N, 4) {
          buffer x_local: i32[4] in local
          for x_local_0: 4 { x_local[x_local_0] = x[i_o*4 + x_local_0] else 0 }
          for i: 4 where i_o*4 + i < N { y[i_o*4 + i] = x_local[i] }
        }""", V),
    Example("stage-order", step("stage", "x", "i", "local", order=(1, 0), buffer="p"),
        "[M](x: i32[M, 3]) -> (y: i32[3])",
        """for a: 3 { y[a] = 0 }
        for i: 1 { for j: M { for k: 3 { y[k] += x[j, k] } } }""",
        """for a: 3 { y[a] = 0 }
        for i: 1 {
          buffer p: i32[3, M] in local
          for p_0: M { for p_1: 3 { p[p_1, p_0] = x[p_0, p_1] } }
          for j: M { for k: 3 { y[k] += p[k, j] } }
        }""", ({"M": 0}, {"M": 5})),
    Example("stage-halo", step("stage", "x", "i_o", "local"), VECTOR,
        """for i_o: cdiv(N, 4) { for i: 4 where i_o*4 + i < N {
          y[i_o*4 + i] = (x[i_o*4 + i - 1] else 5) + (x[i_o*4 + i + 1] else 5)
        } }""",
        """for i_o: cdiv(N, 4) {
          buffer x_local: i32[6] in local
          for x_local_0: 6 { x_local[x_local_0] = x[i_o*4 - 1 + x_local_0] else 5 }
          for i: 4 where i_o*4 + i < N { y[i_o*4 + i] = x_local[i] + x_local[i + 2] }
        }""", V),
    Example("stage-steps", step("stage", "x", "i", "local"), "[N](x: i32[3*N]) -> (y: i32)",
        "y = 0\nfor i: 3 { for k: N { y += x[k*3 + i] } }",
        """y = 0
        for i: 3 {
          buffer x_local: i32[N*3] in local
          for x_local_0: N*3 { x_local[x_local_0] = x[i + x_local_0] else 0 }
          for k: N { y += x_local[k*3] }
        }""", V),
    Example("rfactor", step("rfactor", "acc", "j"), "[M, N](x: i32[M, N]) -> (y: i32[M])",
        """for i: M {
          buffer acc: i32 in reg = 0
          for j_o: cdiv(N, 4) { for j: 4 where j_o*4 + j < N { acc += x[i, j_o*4 + j] } }
          y[i] = acc
        }""",
        """for i: M {
          buffer acc: i32 in reg = 0
          buffer acc_j: i32[4] in reg = 0
          for j_o: cdiv(N, 4) { for j: 4 where j_o*4 + j < N { acc_j[j] += x[i, j_o*4 + j] } }
          for j_2: 4 { acc += acc_j[j_2] }
          y[i] = acc
        }""", MN),
    Example("contract_fma", step("contract_fma"), "[N](x: f32[N]) -> (y: f32[N])",
        """grid i: N {
          buffer acc: f32[2] in reg = 0.0
          for k: 2 { acc[k] += x[i] * x[i] }
          buffer sum_: f32 in reg = 0.0
          tile t: 2 { sum_ += acc[t] * 0.5 }
          y[i] = sum_
        }""",
        """grid i: N {
          buffer acc: f32[2] in reg = 0.0
          for k: 2 { acc[k] = fma(x[i], x[i], acc[k]) }
          buffer sum_: f32 in reg = 0.0
          tile t: 2 { sum_ += acc[t] * 0.5 }
          y[i] = sum_
        }"""),
    Example("unmask", step("unmask", "i"), VECTOR,
        """for i_o: cdiv(N, 4) {
          buffer a: i32[4] in reg = 1
          for i: 4 where i_o*4 + i < N { a[i] += x[i_o*4 + i] else 0 }
          for i_2: 4 where i_o*4 + i_2 < N { y[i_o*4 + i_2] = a[i_2] }
        }""",
        """for i_o: cdiv(N, 4) {
          buffer a: i32[4] in reg = 1
          for i: 4 { a[i] += x[i_o*4 + i] else 0 }
          for i_2: 4 where i_o*4 + i_2 < N { y[i_o*4 + i_2] = a[i_2] }
        }""", V),
)  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_before_and_after(example: Example) -> None:
    before = kernel(example.signature, example.before)
    after = apply_step(before, example.step)
    assert after == kernel(example.signature, example.after), format_kernel(after)
    assert parse_kernel(format_kernel(after)) == after
    check_kernel(after)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_the_meaning_stays(example: Example) -> None:
    before = kernel(example.signature, example.before)
    after = apply_step(before, example.step)
    for seed, dims in enumerate(example.dims):
        inputs = random_inputs(before, dims, seed)
        want, got = run(before, inputs, dims), run(after, inputs, dims)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("name", REWRITES)
def test_every_rewrite_says_what_it_does(name: str) -> None:
    rewrite = REWRITES[name]
    assert rewrite.name == name
    assert rewrite.effect in ("exact", "reassociates", "approximates")
    doc = rewrite.__doc__ or ""
    assert "Before::" in doc and "After" in doc and f"`{name}" in doc


@pytest.mark.parametrize("best", ["argmax", "argmin"])
def test_argmax_counts_nan_and_the_first_of_equals(best: str) -> None:
    spec = kernel("[M, N](x: f32[M, N]) -> (y: i64[M])", f"y[i: M] = {best}(j: N) x[i, j]")
    nan, inf = np.nan, np.inf
    x = np.array([[1, 2, 2, 0], [0, nan, 9, nan], [-inf] * 4, [inf] * 4, [3, 1, 1, 3]], np.float32)
    want = run(spec, {"x": x})["y"]
    np.testing.assert_array_equal(run(apply_step(spec, step("loops")), {"x": x})["y"], want)
    assert want[1] == 1 and want[2] == 0 and want[3] == 0


# --- refusals ----------------------------------------------------------------------------------

REFUSALS = (
    (step("split", "q", 8), VECTOR, COPY, "has no loop `q`"),
    (step("split", "i", 0), VECTOR, COPY, "cannot be split by 0"),
    (step("split", "i", 4, outer="x"), VECTOR, COPY, "the name `x` is taken"),
    (step("split", "i", 4, outer="i"), VECTOR, COPY, "cannot have one name"),
    (step("split", "t", 2), VECTOR,
     "for t: N {\n h[t] = x[t] + (h[t - 1] else i32(0))\n y[t] = h[t]\n}", "not in loops yet"),
    (step("inline", "y"), VECTOR, "y[i: N] = x[i]", "is an output"),
    (step("inline", "e"), VECTOR, "y[i: N] = x[i]", "no definition `e`"),
    (step("inline", "s"), MATRIX,
     "s[i: M] = sum(j: N) x[i, j]\ny[i: M, j: N] = x[i, j] * s[i] - s[i]", "is read 2 times"),
    (step("inline", "s"), ROWS,
     "s[i: M] = sum(j: N) x[i, j]\ny[i: M] = sum(k: M) s[k]", "reduced again in every step"),
    (step("inline", "h"), VECTOR,
     "for t: N {\n h[t] = x[t] + (h[t - 1] else i32(0))\n y[t] = h[t]\n}", "its own earlier"),
    (step("inline", "h"), VECTOR,
     "for t: N {\n h[t] = x[t]\n y[t] = h[t] + (h[t - 1] else 0)\n}", "another iteration of `t`"),
    (step("inline", "e"), VECTOR,
     "buffer b: i32[N] in global\nfor i: N { b[i] = x[i] }\ne[i: N] = b[i]\n"
     "for j: N { b[j] = 0 }\ny[i: N] = e[i]", "is stored to"),
    (step("reorder", ("i",)), VECTOR, COPY, "two or more"),
    (step("reorder", ("j", "i")), ROWS, ACCUMULATE, "not perfectly nested"),
    (step("reorder", ("j", "i")), MATRIX,
     "for i: M { for j: i + 1 where j < N { y[i, j] = x[i, j] } }", "depends on `i`"),
    (step("reorder", ("j", "i")), MATRIX,
     "for i: M { for j: N { y[i, j] = x[i, j] + (y[i - 1, j + 1] else 0) } }",
     "cannot change places"),
    (step("fuse", "i", "j"), VECTOR,
     "buffer a: i32[N] in global\nfor i: N { a[i] = x[i] }\nfor j: N { y[j] = a[j + 1] else 0 }",
     "must wait for"),
    (step("fuse", "i", "j"), MATRIX.replace("y: i32[M, N]", "y: i32[M], z: i32[N]"),
     "for i: M { y[i] = 0 }\nfor j: N { z[j] = 0 }", "extents"),
    (step("fuse", "i", "j"), VECTOR,
     "for i: N { for j: N { y[i] = x[j] } }", "does not follow"),
    (step("fuse", "i", "i"), VECTOR, COPY, "the same loop"),
    (step("fuse", "i", "j"), VECTOR,
     "grid i: N { y[i] = 0 }\nfor j: N { y[j] = 1 }", "different kinds"),
    (step("fuse", "i", "j"), VECTOR,
     "buffer a: i32[N] in global\nfor i: N { a[i] = x[i] }\n"
     "buffer s: i32 in reg = 0\nfor k: N { s += a[k] }\nfor j: N { y[j] = s }",
     "stands between"),
    (step("fission", "i"), VECTOR, COPY, "one piece already"),
    (step("fission", "i", after="k"), ROWS, ACCUMULATE, "no loop `k`"),
    (step("fission", "i"), ROWS, ACCUMULATE, "not constant"),
    (step("fission", "i"), VECTOR,
     "for a: N { y[a] = x[a] }\nfor i: N where y[i] > 0 { y[i] = 0  y[i] += 2 }",
     "the mask of `i` reads"),
    (step("reorder", ("j", "i")), MATRIX.replace("y: i32[M, N]", "y: i32[M]"),
     "for a: M { y[a] = 1 }\nfor i: M where y[i] > 0 { for j: N { y[i] = 0 } }", "a mask reads"),
    (step("fission", "i"), VECTOR,
     "buffer s: i32 in reg = 0\nfor i: N {\n y[i] = s\n s += x[i]\n}", "hangs together"),
    (step("bind", "i", "warp"), VECTOR, COPY, "no kind of loop"),
    (step("bind", "i", "tile"), VECTOR, COPY, "not constant"),
    (step("bind", "i", "grid"), VECTOR,
     "for i: N { y[i] = x[i] + (y[i - 1] else 0) }", "carries a dependence"),
    (step("bind", "j", "grid"), ROWS, ACCUMULATE, "outside of the grid"),
    (step("bind", "j", "grid"), "(x: i32[4, 4]) -> (y: i32[4, 4])",
     "tile i: 4 { for j: 4 { y[i, j] = x[i, j] } }", "inside a tile"),
    (step("bind", "i", "grid"), VECTOR,
     "buffer s: i32 in reg = 3\nfor i: N { y[i] = s }", "outside of the grid"),
    (step("unroll", "i"), VECTOR, COPY, "not constant"),
    (step("unroll", "i"), "(x: i32[9999]) -> (y: i32[9999])", COPY.replace("N", "9999"),
     "9999 statements"),
    (step("contract", "a", "global"), VECTOR,
     "buffer a: i32[N] in global\nfor i: N { a[i] = x[i] }\nfor j: N { y[j] = a[j] }",
     "no loop holds all its uses"),
    (step("contract", "a", "l1"), VECTOR,
     "buffer a: i32[N] in global\nfor i: N { a[i] = x[i] }\nfor j: N { y[j] = a[j] }",
     "no memory space"),
    (step("contract", "a", "reg"), VECTOR, COPY, "no buffer `a`"),
    (step("set_space", "a", "local"), VECTOR,
     "buffer a: i32[N] in global\ngrid i: N { a[i] = x[i] }\nfor j: N { y[j] = a[j] }",
     "inside the grid"),
    (step("stage", "z", "i"), VECTOR, COPY, "no tensor `z`"),
    (step("stage", "y", "i"), VECTOR, COPY, "written inside"),
    (step("stage", "x", "i", order=(1, 0)), VECTOR, COPY, "no permutation"),
    (step("stage", "x", "i"), "[N](x: i32[N], k: i64[N]) -> (y: i32[N])",
     "for i: 1 { for j: N { y[j] = x[k[j]] } }", "has no window"),
    (step("stage", "x", "i"), VECTOR,
     "for i: N { y[i] = (x[i + 1] else 0) + (x[i - 1] else 1) }", "different fills"),
    (step("rfactor", "acc", "j"), ROWS, ACCUMULATE, "not constant"),
    (step("rfactor", "acc", "i"), "(x: i32[4, 4]) -> (y: i32[4])",
     ACCUMULATE.replace("M", "4").replace("N", "4"), "not in the scope"),
    (step("rfactor", "acc", "j"), "[M](x: i32[M, 4]) -> (y: i32[M])",
     "for i: M {\n buffer acc: i32 in reg = 0\n for j: 4 { acc += acc * x[i, j] }\n y[i] = acc\n}",
     "not only accumulated"),
    (step("contract_fma"), VECTOR, COPY, "no `acc += a * b`"),
    (step("unmask", "i"), VECTOR, COPY, "has no mask"),
    (step("unmask", "i"), VECTOR, "for i: N where i > 0 { y[i] = x[i] }", "is an output"),
    (step("unmask", "i"), VECTOR,
     "for i_o: cdiv(N, 4) {\n buffer a: i32[4] in reg = 1\n"
     "for i: 4 where i_o*4 + i < N { a[i] += x[i_o*4 + i] else 0 }\n"
     "for i_2: N { y[i_2] = a[0] }\n}", "may be read"),
    (step("unmask", "i"), VECTOR,
     "for i_o: cdiv(N, 4) {\n buffer a: i32[4] in reg = 1\n"
     "for i: 4 where i_o*4 + i < N { a[i] += x[i_o*4 + i] }\n"
     "for i_2: 4 where i_o*4 + i_2 < N { y[i_o*4 + i_2] = a[i_2] }\n}", "only under the mask"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "signature", "body", "message"),
    REFUSALS,
    ids=lambda x: x.rewrite if isinstance(x, Step) else "",
)
def test_refusals_say_why(asked: Step, signature: str, body: str, message: str) -> None:
    k = kernel(signature, body)
    with pytest.raises(RewriteError) as caught:
        apply_step(k, asked)
    assert message in caught.value.message
    shown = caught.value.render()
    assert message in shown
    assert "->" in shown or caught.value.node is None


def test_a_near_name_is_offered() -> None:
    with pytest.raises(RewriteError) as caught:
        apply_step(kernel(VECTOR, "for index: N { y[index] = x[index] }"), step("split", "indx", 4))
    assert caught.value.hint == "did you mean `index`?"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (step("spilt", "i", 8), "no rewrite `spilt`"),
        (step("split"), "needs the argument `loop`"),
        (step("split", "i"), "needs the argument `factor`"),
        (step("split", "i", "eight"), "takes a whole number as `factor`"),
        (step("split", "i", 2.5), "takes a whole number as `factor`"),
        (step("split", 8, 8), "takes a name as `loop`"),
        (step("split", "i", 8, rest="mask"), "no argument `rest`"),
        (step("split", "i", 8, loop="j"), "`loop` twice"),
        (step("loops", "i"), "at most 0 arguments"),
        (step("reorder", "i", "j"), "at most 1"),
        (step("reorder", ("i", 2)), "a group of names"),
        (step("stage", "x", "i", order=("a",)), "a group of whole numbers"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_steps(asked: Step, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        apply_step(kernel(VECTOR, COPY), asked)
    assert message in caught.value.message
    assert caught.value.hint


def test_steps_come_from_text() -> None:
    module = parse(f"""
        kernel copy{VECTOR} {{ y[i: N] = x[i] }}
        schedule fast of copy {{
          loops()
          split(i, 8, outer = block)
          reorder((i, block))
          hint(i, unroll, 2)
        }}
    """)
    schedule = module.schedules()["fast"]
    assert isinstance(schedule, Schedule)
    done = replay(module.kernels()["copy"], schedule.steps)
    assert [s.rewrite for s, _ in done] == ["loops", "split", "reorder", "hint"]
    assert make_rewrite(schedule.steps[2]).name == "reorder"
    x = np.arange(13, dtype=np.int32)
    for _, k in done:
        np.testing.assert_array_equal(run(k, {"x": x})["y"], x)
