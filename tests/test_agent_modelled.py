"""The modelled fitness: what it counts in Triton's GPU IR, what it says, and a search by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from example_cases import EXAMPLES

from kir.agent.chips import GPUS, gpu
from kir.agent.evaluate import Problem
from kir.agent.gpu_features import analyser
from kir.agent.modelled import Modelled, modelled, occupancy
from kir.agent.rules import drafts
from kir.agent.rungs import Refuted, interpreted, ring
from kir.agent.store import Store
from kir.agent.ttgir import count
from kir.agent.tune import tune
from kir.agent.variant import derivation_text, parse_derivation
from kir.backend import Artifact
from kir.backends.triton.host import generate
from kir.check import check_kernel
from kir.errors import UnsupportedError
from kir.ir import Kernel, Step
from kir.pipeline import LOOPS, Target, choose_steps, lower, schedule
from kir.plan.gpu import plan
from kir.specialise import specialise
from kir.subject import Array, Arrays, Subject
from kir.syntax import parse_kernel

TEXT = """
#blocked = #ttg.blocked<{sizePerThread = [4], threadsPerWarp = [32], warpsPerCTA = [4]}>
module attributes {"ttg.num-warps" = 4 : i32} {
  tt.func public @f(%x: !tt.ptr<f32> loc("x"), %y: !tt.ptr<f32> loc("y")) attributes {} {
    %c0 = arith.constant 0 : i32 loc(#loc)
    %c1 = arith.constant 1 : i32 loc(#loc)
    %c8 = arith.constant 8 : i32 loc(#loc)
    %c512 = arith.constant dense<512> : tensor<512xi32, #blocked> loc(#loc)
    %0 = tt.make_range {end = 512 : i32, start = 0 : i32} : tensor<512xi32, #blocked> loc(#loc)
    %p = tt.splat %x : !tt.ptr<f32> -> tensor<512x!tt.ptr<f32>, #blocked> loc(#loc)
    %q = tt.splat %y : !tt.ptr<f32> -> tensor<512x!tt.ptr<f32>, #blocked> loc(#loc)
    scf.for %i = %c0 to %c8 step %c1  : i32 {
      %1 = tt.splat %i : i32 -> tensor<512xi32, #blocked> loc(#loc)
      %2 = arith.muli %1, %c512 : tensor<512xi32, #blocked> loc(#loc)
      %3 = arith.addi %2, %0 : tensor<512xi32, #blocked> loc(#loc)
      %4 = tt.addptr %p, %3 : tensor<512x!tt.ptr<f32>, #blocked>, tensor<512xi32, #blocked>
      %5 = tt.load %4 : tensor<512x!tt.ptr<f32>, #blocked> loc(#loc)
      %6 = arith.addf %5, %5 : tensor<512xf32, #blocked> loc(#loc)
      %7 = arith.muli %0, %STRIDE : tensor<512xi32, #blocked> loc(#loc)
      %8 = tt.addptr %q, %7 : tensor<512x!tt.ptr<f32>, #blocked>, tensor<512xi32, #blocked>
      tt.store %8, %6 : tensor<512x!tt.ptr<f32>, #blocked> loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""


def example(name: str) -> Kernel:
    return parse_kernel((EXAMPLES / f"{name}.kir").read_text(encoding="utf-8"))


def test_bytes_are_counted_in_sectors_and_by_iteration() -> None:
    apart = count(TEXT.replace("%STRIDE", "%c512"), 16, 32)["f"]
    assert apart.moved["x"] == 8 * 512 * 4  # neighbours: no byte is wasted
    assert apart.moved["y"] == 8 * 512 * 32  # far apart: a sector for each element
    assert apart.waits == 8 and apart.ahead == 0 and apart.inner == 8
    assert apart.vector > 8 * 512 / 32 and not apart.matrix


def test_what_is_not_known_is_no_error() -> None:
    found = count(TEXT.replace("%STRIDE", "%unknown"), 16, 32)["f"]
    assert found.moved["y"] if "y" in found.moved else found.moved["?"]
    assert count("nothing here", 1, 32) == {}


def test_occupancy_is_the_least_that_each_resource_allows() -> None:
    chip = gpu("sm_90")
    free = {"registers": 32, "shared_bytes": 0}
    assert occupancy(chip, "nvidia", 4, free) == 16  # 64 warps
    assert occupancy(chip, "nvidia", 4, {**free, "registers": 128}) == 4
    assert occupancy(chip, "nvidia", 4, {**free, "shared_bytes": 100 << 10}) == 2
    assert occupancy(chip, "nvidia", 4, {**free, "shared_bytes": 1 << 30}) == 1
    assert occupancy(gpu("gfx942"), "amd", 4, {"vgpr_count": 256, "shared_bytes": 0}) == 2


def test_a_chip_that_is_not_known_and_other_roads_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no model"):
        gpu("sm_70")
    bare = Artifact(example("softmax"), "nvidia", "sm_90", {})
    with pytest.raises(UnsupportedError, match="Triton"):
        modelled(bare)


@pytest.mark.parametrize("target", ["nvidia", "amd"])
def test_matrix_units_pipelines_and_tiles_count(target: str) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    spec = specialise(example("matmul_bf16"), {"M": 256, "N": 256, "K": 256})
    goal = Target(target)
    steps = choose_steps(spec, goal)

    def time(steps: tuple[Step, ...]) -> Modelled:
        return modelled(lower(spec, goal, steps))

    default = time(steps)
    assert default.facts["matrix_operations"] == 2 * 256**3
    assert default.facts["memory_bytes"] == 3 * 256 * 256 * 2
    assert 0 < default.facts["occupancy"] <= 1 and default.seconds > GPUS[goal.chip].launch
    scalars = time(plan(spec, goal.chip, "plain"))
    assert not scalars.facts["matrix_operations"] and scalars.seconds > 5 * default.seconds


def test_proposals_are_ranked_before_anything_is_compiled() -> None:
    spec = specialise(example("matmul_bf16"), {"M": 1024, "N": 1024, "K": 1024})
    steps = choose_steps(spec, Target("nvidia"))
    analyse = analyser("nvidia", "sm_90")
    few = tuple(replace(s, args=(s.args[0], 16)) if s.rewrite == "split" else s for s in steps)
    assert analyse(schedule(spec, steps)).total < analyse(schedule(spec, few)).total
    assert analyser("cpu", "native")(schedule(spec, steps)).total > 0


def test_recipes_for_gpus_have_a_form_in_triton() -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    analyse = analyser("nvidia", "sm_90")
    for name, dims in (("matmul", {"M": 100, "N": 70, "K": 50}), ("softmax", {"M": 9, "N": 300})):
        spec = specialise(example(name), dims)
        found = drafts(spec, 3, analyse, "nvidia")
        assert len(found) == 3
        best = schedule(spec, found[0])
        check_kernel(best)
        assert "tl.dot" in generate(best).source or name == "softmax"
        assert analyse(best).total < analyse(schedule(spec, LOOPS)).total / 10


def problem(name: str, dims: dict[str, int], target: str = "nvidia") -> Problem:
    source = (EXAMPLES / f"{name}.kir").read_text(encoding="utf-8")
    return Problem(source, name, dims, target, None, Target(target).chip, "", 0)


def test_the_ring_is_climbed_with_dims_that_are_small_enough() -> None:
    asked = problem("matmul", {"M": 512, "N": 512, "K": 512})
    spec = specialise(example("matmul"), asked.dims)
    assert ring(asked, choose_steps(spec, Target("nvidia"))) == "ring, M=32, N=32, K=32"


def test_a_wrong_kernel_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem("softmax", {"M": 8, "N": 16})
    spec = specialise(example("softmax"), asked.dims)
    steps = choose_steps(spec, Target("nvidia"))
    other = specialise(example("log_softmax"), asked.dims)

    from kir.agent import rungs
    from kir.staged import Staged, stage

    def swapped(kernel: Kernel, steps: tuple[Step, ...]) -> Staged:
        found = stage(kernel, steps)
        wrong = replace(stage(other, choose_steps(other, Target("nvidia"))).kernel, name="softmax")
        return replace(found, stages=[*found.stages[:-1], (found.stages[-1][0], wrong)])

    monkeypatch.setattr(rungs, "stage", swapped)
    with pytest.raises(Refuted, match="in the ring"):
        ring(asked, steps)
    monkeypatch.undo()

    def zeros(self: Subject, kernel: Kernel, inputs: Arrays, dims: object) -> dict[str, Array]:
        return {"y": np.zeros((8, 16), np.float32)}

    monkeypatch.setattr(Subject, "run_target", zeros)
    with pytest.raises(Refuted, match="Triton's interpreter"):
        interpreted(asked, steps)


def test_a_search_for_absent_hardware_models_and_verifies(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    url = f"sqlite:///{tmp_path}/t.db"
    dims = {"M": 64, "N": 64, "K": 64}
    found = tune(example("matmul"), dims, "amd", budget_s=None, evaluations=2, store=url)
    assert found.modelled and found.speedup >= 1 and found.evaluations == 2
    assert any("Triton's interpreter" in r for r in found.rungs)
    assert any(r.startswith("ring") for r in found.rungs)
    store = Store(url, create=False)
    report = store.node(found.node).provenance["report"]
    assert set(report["modelled"]) >= {"matrix", "memory", "latency", "launch"}
    assert store.run(found.run).result["modelled"] is True
    store.close()
    steps = parse_derivation(found.derivation)
    assert derivation_text("matmul", steps) == found.derivation
