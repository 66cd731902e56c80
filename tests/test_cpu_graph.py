"""Graphs as one function on the cpu: calls in order, temporaries in one block, symbolic dims."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kir
from kir.backends.cpu.executable import CpuExecutable
from kir.errors import ConstraintError, InputDataError
from kir.graph_plan import ALIGN, GraphPlan, plan_graph
from kir.ir import Const, Kernel
from kir.pipeline import GraphExecutable, Target
from kir.pipeline import compile as compile_item
from kir.specialise import evaluate
from kir.syntax import load, parse

ROOT = Path(__file__).resolve().parent.parent
CHAIN = """
kernel scale[N, k = 2](x: f32[N]) -> (y: f32[N]) { y[i: N] = f32(k) * x[i] }
kernel add[N](a: f32[N], b: f32[N]) -> (y: f32[N]) { y[i: N] = a[i] + b[i] }
kernel both[N](x: f32[N]) -> (up: f32[N], down: f32[N]) {
  up[i: N] = x[i] + 1.0
  down[i: N] = x[i] - 1.0
}
graph chain[N](x: f32[N]) -> (z: f32[N], extra: f32[N]) where N >= 1 {
  a = scale(x)
  b = scale[k = 3](a)
  c, extra = both(b)
  d = add(c, a)
  e = add(d, d)
  z = add(e, extra)
}
"""


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", str(tmp_path / "cache"))


def chain(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    a = 2 * x
    b = 3 * a
    return 2 * (b + 1 + a) + b - 1, b - 1


def planned(text: str, name: str, dims: dict[str, int]) -> GraphPlan:
    module = parse(text)
    return plan_graph(module, module.graphs()[name], dims, lambda k: k)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_chain_of_calls(dynamic: bool) -> None:
    f = kir.compile(CHAIN, "chain", dynamic=dynamic)
    for n in (1, 5, 1000, 5, 100_000, 7, 7, 7):
        x = np.random.default_rng(n).integers(-9, 9, n).astype(np.float32)
        z, extra = f(x)
        np.testing.assert_array_equal(z, chain(x)[0])
        np.testing.assert_array_equal(extra, chain(x)[1])
    out = [np.empty(7, np.float32) for _ in range(2)]
    assert f(x, out=out)[0] is out[0]
    np.testing.assert_array_equal(out[0], chain(x)[0])
    with pytest.raises(ConstraintError):
        f(x[:0])
    with pytest.raises(InputDataError):
        f(x.astype(np.float64))
    with pytest.raises(InputDataError):
        f(x, out=[x, out[1]])


def test_a_graph_is_one_executable() -> None:
    module = parse(CHAIN)
    graph = module.graphs()["chain"]
    for dims in ({}, {"N": 64}):
        assert isinstance(compile_item(graph, "cpu", dims, None, module), CpuExecutable)
    debug = compile_item(graph, Target("cpu", debug=True), {}, None, module)
    assert isinstance(debug, GraphExecutable)
    x = np.ones(64, np.float32)
    np.testing.assert_array_equal(debug({"x": x})["z"], chain(x)[0])
    assert len(planned(CHAIN, "chain", {"N": 64}).kernels) == 4  # `scale` twice, of two factors
    assert len(planned(CHAIN, "chain", {}).kernels) == 4


def test_temporaries_share_memory() -> None:
    plan = planned(CHAIN, "chain", {"N": 1000})
    assert [t.param.name for t in plan.temporaries] == ["a", "b", "c", "d", "e"]
    assert plan.size == Const(3 * 4032, plan.size.dtype)  # a, b, c live at once
    symbolic = planned(CHAIN, "chain", {})
    assert evaluate(symbolic.size, {"N": 1000}) == 3 * 4032
    assert evaluate(symbolic.size, {"N": 1}) == 3 * ALIGN


@given(st.data())
def test_no_two_that_live_together_overlap(data: st.DataObject) -> None:
    """Random graphs of `add` on vectors of several lengths, fixed and symbolic."""
    sizes = {"N": 40, "M": 7, "K": 300}
    tensors: dict[str, list[str]] = {n: [f"x{n}"] for n in sizes}
    calls = []
    for k in range(data.draw(st.integers(1, 12))):
        n = data.draw(st.sampled_from("NMK"))
        a, b = (data.draw(st.sampled_from(tensors[n])) for _ in range(2))
        calls.append(f"t{k} = add({a}, {b})")
        tensors[n].append(f"t{k}")
    last = tensors[n][-1]
    inputs = ", ".join(f"x{n}: f32[{n}]" for n in sizes)
    text = f"""kernel add[L](a: f32[L], b: f32[L]) -> (y: f32[L]) {{ y[i: L] = a[i] + b[i] }}
    graph g[N, M, K]({inputs}) -> (y: f32[{n}]) {{
      {"; ".join(calls).replace("; ", chr(10))}
      y = add({last}, {last})
    }}"""
    for dims in (sizes, {}, {"M": 7}):
        plan = planned(text, "g", dims)
        total = int(evaluate(plan.size, sizes))
        spans = {
            t.param.name: (int(evaluate(t.offset, sizes)), int(evaluate(t.size, sizes)))
            for t in plan.temporaries
        }
        for t in plan.temporaries:
            start, size = spans[t.param.name]
            assert start % ALIGN == 0 and start + size <= total
            assert size >= 4 * sizes[str(t.param.shape[0].name)] if not dims else True  # type: ignore[attr-defined]
        for s, t in itertools.combinations(plan.temporaries, 2):
            if s.first <= t.last and t.first <= s.last:
                (a0, an), (b0, bn) = spans[s.param.name], spans[t.param.name]
                assert a0 + an <= b0 or b0 + bn <= a0


def test_calls_at_the_same_time_have_blocks_of_their_own() -> None:
    f, wrong = kir.compile(CHAIN, "chain", dynamic=True), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            x = rng.integers(-9, 9, rng.integers(1, 30_000)).astype(np.float32)
            if not np.array_equal(f(x)[0], chain(x)[0]):
                wrong.append(len(x))

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_dims_that_only_known_shapes_tell() -> None:
    """`x: f32[2 * H]` gives H by solving, which a symbolic call cannot: it goes call by call."""
    text = """
    kernel half[H](x: f32[2 * H]) -> (y: f32[H]) { y[i: H] = x[2 * i] + x[2 * i + 1] }
    graph g[N](x: f32[N]) -> (y: f32[N // 4]) {
      a = half(x)
      y = half(a)
    }"""
    x = np.arange(16, dtype=np.float32)
    for dynamic in (False, True):
        f = kir.compile(text, "g", dynamic=dynamic)
        np.testing.assert_array_equal(f(x), x.reshape(4, 4).sum(1))
    module = parse(text)
    graph = module.graphs()["g"]
    assert isinstance(compile_item(graph, "cpu", {"N": 16}, None, module), CpuExecutable)
    assert isinstance(compile_item(graph, "cpu", {}, None, module), GraphExecutable)


def test_a_graph_without_temporaries_and_one_with_empty_ones() -> None:
    text = """kernel id[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }
    graph one[N](x: f32[N]) -> (y: f32[N]) { y = id(x) }
    graph two[N](x: f32[N]) -> (y: f32[N]) { t = id(x)
                                             y = id(t) }"""
    for name in ("one", "two"):
        for dynamic in (False, True):
            f = kir.compile(text, name, dynamic=dynamic)
            for n in (0, 3, 0):
                x = np.arange(n, dtype=np.float32)
                np.testing.assert_array_equal(f(x), x)


def test_the_mlp_on_odd_shapes() -> None:
    module = parse(load(ROOT / "examples" / "mlp.kir"))
    graph = module.graphs()["mlp"]
    rng = np.random.default_rng(0)
    for dims in ({"B": 1, "I": 1, "H": 1, "O": 1}, {"B": 13, "I": 33, "H": 70, "O": 5}):
        shapes = {"x": "BI", "w1": "HI", "b1": "H", "w2": "OH", "b2": "O"}
        arrays = {
            n: rng.standard_normal([dims[c] for c in s]).astype(np.float32)
            for n, s in shapes.items()
        }
        plain = GraphExecutable(module, graph, Target("cpu"), "none")(arrays)["y"]
        for given_dims in ({}, dims, {"B": dims["B"]}):
            run = compile_item(graph, "cpu", given_dims, None, module)
            assert isinstance(run, CpuExecutable) and isinstance(run.item, Kernel)
            np.testing.assert_allclose(run(arrays)["y"], plain, rtol=1e-4, atol=1e-5)
