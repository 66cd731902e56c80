"""Flash attention, derived from naive causal attention: the acceptance of online reductions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from example_cases import EXAMPLES, Array, Dims

from kir.backends.triton import BACKEND
from kir.check import check_kernel
from kir.derivation import effect_of, replay
from kir.interpret import difference, levels_of, oracle, run, run_ring
from kir.ir import Const, If, Kernel, Loop, Op, Step, Store, transform, walk
from kir.pipeline import Target
from kir.rewrites.base import buffers_of
from kir.specialise import specialise
from kir.syntax import load, parse
from kir.testing import make_inputs

FILE = EXAMPLES / "papers" / "flash_attention.kir"
SCHEDULES = ("flash", "flash_cpu")
MODULE = parse(load(FILE))
SIZES = ((1, 1, 1), (2, 1, 63), (1, 2, 64), (1, 1, 130))


def spec() -> Kernel:
    return specialise(MODULE.kernels()["flash_attention"])


def steps(name: str) -> tuple[Step, ...]:
    return MODULE.schedules()[name].steps


@cache
def derived(name: str) -> Kernel:
    return replay(spec(), steps(name))[-1][1]


def dims_of(size: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("BHL", size, strict=True))


EACH = pytest.mark.parametrize("name", SCHEDULES)
EACH_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))


@EACH
def test_is_short_and_safe(name: str) -> None:
    assert len(steps(name)) <= 25
    check_kernel(derived(name))
    assert effect_of(spec(), replay(spec(), steps(name))) == "approximates"


@EACH
def test_leaves_nothing_of_the_size_of_the_sequence(name: str) -> None:
    """Not even one L x 1: all that is kept are blocks of constant extents, in registers."""
    buffers = list(buffers_of(derived(name).body))
    assert buffers
    for b in buffers:
        assert b.space == "reg"
        assert all(isinstance(e, Const) for e in b.shape)


@EACH
def test_passes_the_keys_once(name: str) -> None:
    """One loop over the keys' blocks, in which both products are."""
    loops = [n for n in walk(derived(name)) if isinstance(n, Loop) and n.kind == "for"]
    (blocks,) = [x for x in loops if not isinstance(x.axis.extent, Const)]
    products = [n for n in walk(blocks) if isinstance(n, Store) and n.op == "add"]
    assert sum(isinstance(s.value, Op) and s.value.name == "mul" for s in products) == 2


@EACH
@pytest.mark.parametrize("size", SIZES[1:], ids=lambda s: "x".join(map(str, s)))
def test_equals_the_spec_in_the_ring(name: str, size: tuple[int, ...]) -> None:
    dims = dims_of(size)
    levels = levels_of(spec(), derived(name))
    inputs = make_inputs(spec(), dims, "integers")
    want = run_ring(spec(), inputs, dims, 1, levels)
    got = run_ring(derived(name), inputs, dims, 1, levels)
    found = difference(want["o"], got["o"])
    assert not found.wrong.any() and not found.unsure.any()


@EACH
def test_a_lost_rescale_shows_in_the_ring(name: str) -> None:
    dims = dims_of((1, 1, 130))
    levels = levels_of(spec(), derived(name))
    inputs = make_inputs(spec(), dims, "integers")
    want = run_ring(spec(), inputs, dims, 1, levels)
    late = {id(n) for s in walk(derived(name)) if isinstance(s, If) for n in walk(s)}
    lost = [n for n in walk(derived(name)) if isinstance(n, Store) and n.op == "mul"]
    lost = [n for n in lost if id(n) not in late]
    assert len(lost) == 2
    for store in lost:
        kept = Store(store.target, store.indices, Const(1.0, store.value.dtype), "mul")
        got = run_ring(exchanged(derived(name), store, kept), inputs, dims, 1, levels)
        wrong = difference(want["o"], got["o"]).wrong[0, 0]
        assert not wrong[:64].any() and wrong[64:].any()


def exchanged(kernel: Kernel, old: Store, new: Store) -> Kernel:
    return transform(kernel, lambda n: new if n == old else None)


def assert_right(outputs: dict[str, Array], inputs: dict[str, Array], dims: Dims) -> None:
    """Within what the oracle allows of the spec or, around its value, of neither's roundings."""
    expected = oracle(spec(), inputs, dims)["o"]
    own = oracle(derived("flash"), inputs, dims)["o"]
    got = outputs["o"].astype(np.float64)
    allowed = np.maximum(expected.bound, own.bound)
    assert np.isfinite(allowed).mean() > 0.99
    assert (np.abs(got - expected.value) <= allowed).all()


@EACH
@EACH_SIZE
def test_on_the_interpreter(name: str, size: tuple[int, ...]) -> None:
    dims = dims_of(size)
    inputs = make_inputs(spec(), dims, "tame", 3)
    assert_right(run(derived(name), inputs, dims), inputs, dims)


@EACH_SIZE
def test_on_the_cpu(size: tuple[int, ...]) -> None:
    dims = dims_of(size)
    inputs = make_inputs(spec(), dims, "tame", 4)
    goal = Target("cpu")
    program = goal.backend.load(goal.backend.lower(derived("flash_cpu"), "cpu", goal.chip))
    assert_right(dict(program(inputs, dims)), inputs, dims)


@EACH
def test_a_row_with_nan_or_infinity_is_what_the_spec_makes_of_it(name: str) -> None:
    """Keys and queries that make scores infinite, of both signs, or NaN, in either block."""
    dims = dims_of((1, 1, 70))
    for seed, value in enumerate((np.nan, np.inf, -np.inf)):
        for place in (0, 3, 66):
            inputs = make_inputs(spec(), dims, "tame", seed)
            inputs["k"][0, 0, place] = value
            inputs["q"][0, 0, :, 1:] = np.abs(inputs["q"][0, 0, :, 1:])
            want, got = (run(k, inputs, dims)["o"] for k in (spec(), derived(name)))
            np.testing.assert_array_equal(
                np.isnan(want.astype(np.float32)), np.isnan(got.astype(np.float32))
            )


@pytest.mark.triton
@pytest.mark.parametrize("size", [(1, 1, 3), (1, 1, 130)], ids=lambda s: "x".join(map(str, s)))
def test_on_tritons_interpreter(size: tuple[int, ...]) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    dims = dims_of(size)
    inputs = make_inputs(spec(), dims, "tame", 5)
    artifact = BACKEND.lower(derived("flash"), "nvidia", "sm_90", "source")
    outputs = BACKEND.load(artifact, interpret=True)(inputs, dims)
    assert_right(dict(outputs), inputs, dims)


@pytest.mark.triton
def test_both_products_are_on_the_tensor_cores() -> None:
    """A block of 64 x 64 by 64 takes 4 instructions of 64 x 64 x 16."""
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    stages = BACKEND.lower(derived("flash"), "nvidia", "sm_90").stages
    assert len(products(stages["ttir"], "tt.dot ")) == 2
    assert len(products(stages["ttgir"], "ttng.warp_group_dot ")) == 2
    assert len(products(stages["ptx"], "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16")) == 8


@pytest.mark.triton
def test_both_products_are_on_the_matrix_cores() -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    stages = BACKEND.lower(derived("flash"), "amd", "gfx942").stages
    assert len(products(stages["ttir"], "tt.dot ")) == 2
    dots = products(stages["ttgir"], "tt.dot ")
    assert len(dots) >= 2 and all("parent = #mma" in line for line in dots)
    assert len(products(stages["amdgcn"], "v_mfma_f32_32x32x8_bf16")) >= 16


def products(stage: str | bytes, instruction: str) -> list[str]:
    assert isinstance(stage, str)
    return [line for line in stage.splitlines() if instruction in line]
