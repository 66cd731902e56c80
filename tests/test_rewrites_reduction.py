"""Reductions in parts: exact in the ring, on the cpu and on Triton; trees, blocks, argmax."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kir.check import check_kernel
from kir.derivation import effect_of, replay
from kir.dtypes import f32
from kir.errors import RewriteError
from kir.interpret import oracle, run
from kir.ir import Buffer, Kernel, Loop, Module, Store
from kir.pipeline import Target, choose_steps, compile, schedule
from kir.rewrites import legal_moves, make_rewrite
from kir.rewrites.base import loops_of, statements
from kir.syntax import format_kernel, load, parse, parse_kernel, parse_steps
from kir.testing import assert_equivalent, assert_ring_equal

FILE = Path(__file__).parent.parent / "examples/scheduled/split_k.kir"
NAMES = ("gpu_partials", "gpu_updates", "cpu")
SIZES = [(3, 5, 7), (17, 65, 300), (1, 1, 1), (4, 4, 0), (0, 3, 5), (16, 64, 256)]
triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the extra `triton` is not installed"
)


def product() -> tuple[Module, Kernel]:
    module = parse(load(FILE))
    return module, module.kernels()["split_k"]


def scheduled(name: str, target: str = "cpu") -> Kernel:
    module, kernel = product()
    return schedule(kernel, choose_steps(kernel, Target(target), name, module))


def operands(kernel: Kernel, m: int, n: int, k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(m + n + k)
    shapes = {"a": (m, k), "b": (k, n)}
    types = {p.name: p.type.numpy for p in kernel.inputs}
    return {x: rng.uniform(-1, 1, s).astype(types[x]) for x, s in shapes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_split_k_equals_the_product(name: str) -> None:
    _, spec = product()
    after = scheduled(name)
    check_kernel(after)
    assert_equivalent(spec, after, approximates=name == "cpu", reals=True)
    assert_ring_equal(spec, after)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_split_k_on_the_cpu(size: tuple[int, int, int]) -> None:
    module, spec = product()
    x = operands(spec, *size)
    got = compile(spec, "cpu", choice="cpu", module=module)(x)["c"]
    assert oracle(spec, x, contraction=True)["c"].accepts(got).all()


@triton
@pytest.mark.parametrize("name", NAMES[:2])
def test_split_k_in_tritons_interpreter(name: str) -> None:
    from kir.backends.triton import BACKEND

    _, spec = product()
    staged, goal = scheduled(name, "nvidia"), Target("nvidia")
    program = BACKEND.load(BACKEND.lower(staged, "nvidia", goal.chip, "source"), interpret=True)
    for m, n, k in SIZES[:2]:
        x = operands(spec, m, n, k)
        out = {"c": np.full((m, n), np.nan, np.float32)}
        got = program(x, {"M": m, "N": n, "K": k}, out)["c"]
        assert oracle(spec, x, contraction=True)["c"].accepts(got).all()


@triton
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize(
    ("target", "arch", "stage", "instruction"),
    [("nvidia", "sm_90", "ptx", "mma"), ("amd", "gfx942", "amdgcn", "v_mfma")],
)
def test_split_k_compiles_to_matrix_instructions(
    name: str, target: str, arch: str, stage: str, instruction: str
) -> None:
    from kir.backends.triton import BACKEND

    artifact = BACKEND.lower(scheduled(name, target), target, arch)
    assert instruction in str(artifact.stages[stage])
    assert len(artifact.launch["functions"]) == 2


# --- what falls out of the rewrites together ------------------------------------------------------


DOT = """kernel dot[N](a: f32[N], b: f32[N]) -> (y: f32) {
  y = sum(i: N) a[i] * b[i]
}"""
BLOCKED = """loops() split(i, 64) rfactor(y_acc, i_o, space = local) fuse(i_o, i_o_2)
contract(y_acc_i_o, reg) accumulate_in(y_acc, f64)"""


def test_blocked_accumulation_is_more_exact_than_one_sum() -> None:
    spec = parse_kernel(DOT)
    stages = replay(spec, parse_steps(BLOCKED))
    after = stages[-1][1]
    assert effect_of(spec, stages) == "approximates"
    types = {b.name: b.type.name for b in statements(after.body) if isinstance(b, Buffer)}
    assert types == {"y_acc": "f64", "y_acc_i_o": "f32"}
    assert_equivalent(spec, after, approximates=True, reals=True)
    assert_ring_equal(spec, after)
    x = np.full(1 << 16, np.float32(0.1))
    one = np.ones_like(x)
    exact = float(np.float64(np.float32(0.1)) * x.size)
    errors = [abs(float(run(k, {"a": x, "b": one})["y"]) - exact) for k in (spec, after)]
    canonical = schedule(spec, parse_steps("loops()"))
    plain = abs(float(run(canonical, {"a": x, "b": one})["y"]) - exact)
    assert errors[1] < plain / 10


def test_a_tree_has_the_depth_of_the_logarithm() -> None:
    spec = parse_kernel(DOT)
    steps = "loops() split(i, 64) bind(i, tile) parallel_reduce(i)"
    after = replay(spec, parse_steps(steps))[-1][1]
    halves = [x for x in loops_of(after.body) if x.kind == "tile"]
    assert [int(getattr(x.axis.extent, "value", 0)) for x in halves] == [64, 32, 16, 8, 4, 2]
    assert_ring_equal(spec, after)
    got = compile(after, "cpu")({"a": np.ones(1000, np.float32), "b": np.ones(1000, np.float32)})
    assert float(got["y"]) == 1000.0


ARGMAX = """kernel best[M, N](x: f32[M, N]) -> (y: i64[M]) { y[i: M] = argmax(j: N) x[i, j] }"""


def test_an_argmax_is_split_after_loops() -> None:
    """Both of its passes are reductions: of values, and of the least index that has the best."""
    spec = parse_kernel(ARGMAX)
    steps = "loops() split((j, j_2), 4) rfactor(y_best, j) rfactor(y_at, j_2)"
    stages = replay(spec, parse_steps(steps))
    assert effect_of(spec, stages) == "exact"
    assert_equivalent(spec, stages[-1][1], exact=True)


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["f32", "i32", "bf16"])
def test_every_reduction_splits(name: str, dtype: str) -> None:
    spec = parse_kernel(
        f"kernel r[M, N](x: {dtype}[M, N]) -> (y: {dtype}[M]) "
        f"{{ y[i: M] = {dtype}({name}(j: N where j != i) x[i, j]) }}"
    )
    stages = replay(spec, parse_steps("split_reduction(y, j, 3)"))
    check_kernel(stages[-1][1])
    rounds = dtype != "i32" and name in ("sum", "prod")
    assert (effect_of(spec, stages) == "exact") is not rounds
    assert_equivalent(spec, stages[-1][1], exact=not rounds, reals=rounds)


@pytest.mark.parametrize("name", ["all", "any"])
def test_logic_splits(name: str) -> None:
    spec = parse_kernel(
        f"kernel r[M, N](x: i32[M, N]) -> (y: bool[M]) {{ y[i: M] = {name}(j: N) x[i, j] > 0 }}"
    )
    after = replay(spec, parse_steps("split_reduction(y, j, 3) loops()"))[-1][1]
    check_kernel(after)
    assert_equivalent(spec, after, exact=True)


def test_partial_results_keep_an_index_whose_loop_keeps_a_read_in_bounds() -> None:
    """`x[N - 1]` may be read only where `i: N` has an element; so its partial sums have `i` too."""
    spec = parse_kernel(
        """kernel r[N, K](x: f32[N], w: f32[K]) -> (y: f32[N]) {
          y[i: N] = (sum(k: K) w[k] * x[N - 1]) + x[i]
        }"""
    )
    after = replay(spec, parse_steps("split_reduction(y, k, 4)"))[-1][1]
    check_kernel(after)
    check_kernel(replay(after, parse_steps("loops()"))[-1][1])
    assert_equivalent(spec, after, reals=True)


# --- the variants of split_k ---------------------------------------------------------------------


NESTS = """kernel rows[M, K](a: f32[M, K], w: f32[M]) -> (y: f32[M], z: f32[M]) {
  for i: M {
    buffer acc: f32 in reg = 0.0
    acc += w[i]
    for k: K where k <= i { acc += a[i, k] * w[i] }
    y[i] = acc
  }
  for p: M where p % 2 == 0 {
    buffer top: f32 in reg = -inf
    for q: K { top max= a[p, q] }
    z[p] = top
  }
  for r: M where r % 2 == 1 { z[r] = 0.0 }
}"""


@pytest.mark.parametrize(
    ("steps", "effect"),
    [
        ("split_k(acc, k, 3)", "reassociates"),
        ("split_k(top, q, 3)", "exact"),
        ("split_k(top, q, 3, by = updates)", "exact"),
        ("split_k(top, q, 1)", "exact"),
    ],
)
def test_split_k_under_masks_and_first_values(steps: str, effect: str) -> None:
    from kir.specialise import specialise

    spec = parse_kernel(NESTS)
    for kernel in (spec, specialise(spec, {"M": 5, "K": 7})):
        stages = replay(kernel, parse_steps(steps))
        assert effect_of(kernel, stages) == effect
        assert_equivalent(kernel, stages[-1][1], reals=effect != "exact")
        assert_ring_equal(kernel, stages[-1][1])
        assert parse_kernel(format_kernel(stages[-1][1])) == stages[-1][1]


def test_split_k_says_what_became_of_the_loops() -> None:
    spec = parse_kernel(NESTS)
    (step,) = parse_steps("split_k(top, q, 3, by = updates)")
    rewrite = make_rewrite(step)
    after = rewrite.apply(spec)
    names = rewrite.forward(spec, after)
    assert names["top"] == ("top_part",) and names["p"] == ("p", "p_2")
    known = {x.axis.name for x in loops_of(after.body)}
    assert {"p", "p_2"} <= known


def test_updates_are_refused_where_iterations_share_an_element() -> None:
    spec = parse_kernel(
        """kernel f[M, K](a: f32[M, K]) -> (y: f32[2]) where M >= 2 {
          y[i: 2] = 0.0
          for i: M {
            buffer acc: f32 in reg = 0.0
            for k: K { acc += a[i, k] }
            y[i % 2] = acc
          }
        }"""
    )
    with pytest.raises(RewriteError, match="may store to one element"):
        replay(spec, parse_steps("split_k(acc, k, 2, by = updates)"))


def test_a_part_of_the_loop_is_a_program_of_the_grid() -> None:
    after = scheduled("gpu_updates")
    grids = [s for s in after.body if isinstance(s, Loop)]
    assert [g.kind for g in grids] == ["grid", "grid"]
    updates = [s for s in statements(after.body) if isinstance(s, Store) and s.target == "c"]
    assert [s.op for s in updates] == [None, "add"]
    partial = next(b for b in statements(after.body) if isinstance(b, Buffer))
    assert partial.type == f32


@pytest.mark.parametrize("rewrite", ["rfactor", "parallel_reduce", "split_k", "split_reduction"])
def test_all_moves_offered_keep_the_meaning(rewrite: str) -> None:
    """On nests as other rewrites leave them."""
    texts = (NESTS, DOT, ARGMAX)
    for text in texts:
        spec = parse_kernel(text)
        for steps in ("", "loops()", "loops() split(i, 3)"):
            if "split" in steps and text == NESTS:
                steps = "split(k, 3) split(q, 4)"
            kernel = replay(spec, parse_steps(steps))[-1][1] if steps else spec
            for move in legal_moves(kernel, [rewrite]):
                for step in list(move.steps())[:2]:
                    after = make_rewrite(step).apply(kernel)
                    check_kernel(after)
                    assert_equivalent(spec, after, tries=4, reals=True)
                    assert_ring_equal(spec, after, tries=2)
