"""The verifier's ladder: what each rung may be asked, tolerances, kept failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.errors import InputDataError, KirError, RewriteError, VerificationError
from kir.interpret import run
from kir.ir import Kernel, Module, Schedule, Step
from kir.regressions import Regression, from_data, read, read_all
from kir.rewrites import REWRITES, Effect
from kir.rewrites.base import Rewrite
from kir.shrink import shrink
from kir.staged import Staged, stage
from kir.subject import Subject
from kir.syntax import format_kernel, parse, parse_kernel
from kir.testing import (
    Example,
    assert_derivation,
    assert_equivalent,
    assert_ring_equal,
    derivations,
    make_inputs,
    wide_kernels,
)
from kir.verify import replay, verify

SUM = "kernel total[M, N](x: f32[M, N]) -> (y: f32[M]) { y[i: M] = sum(j: N) x[i, j] * 0.1 }"
WRONG: dict[str, str] = {
    "last": SUM.replace("j: N", "j: N - 1"),
    "doubled": SUM.replace("0.1", "0.2"),
    "by": SUM.replace("x[i, j] * 0.1", "f32(f16(x[i, j])) * 3.0"),
    "half": SUM.replace("x[i, j] * 0.1", "f32(f16(x[i, j] * 0.1))"),
}


@dataclass(frozen=True)
class Exact(Rewrite):
    """`swap_exact(which)`: another kernel in the place of this one, said to be equal."""

    name: ClassVar[str] = "swap_exact"
    effect: ClassVar[Effect] = "exact"
    which: str

    def edit(self, kernel: Kernel) -> Kernel:
        return parse_kernel(WRONG[self.which])

    def bound(self) -> str:
        return "half a unit" if self.effect == "approximates" else ""


class Regroups(Exact):
    name: ClassVar[str] = "swap_regroups"
    effect: ClassVar[Effect] = "reassociates"


class Near(Exact):
    name: ClassVar[str] = "swap_near"
    effect: ClassVar[Effect] = "approximates"

    def in_ring(self, kernel: Kernel) -> bool:
        return self.which != "doubled"


@pytest.fixture(autouse=True)
def _swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (Exact, Regroups, Near):
        monkeypatch.setitem(REWRITES, made.name, made)


def module_of(*steps: Step, text: str = SUM) -> tuple[Kernel, Module]:
    spec = parse_kernel(text)
    return spec, Module((spec, Schedule("s", spec.name, steps)))


LOOPS = (Step("loops"), Step("split", ("j", 4)), Step("rfactor", ("y_acc", "j")))


# --- the ring rung -----------------------------------------------------------------------------


def test_a_derivation_that_reassociates_is_proven() -> None:
    spec, module = module_of(*LOOPS)
    report = verify(spec, module=module, schedule="s", examples=10)
    ring = report.rungs[1]
    assert (ring.name, ring.verdict, ring.runs, ring.skipped) == ("ring", "proven", 10, [])
    assert "bit for bit in a field" in report.text()
    assert sum(report.profiles.values()) == 10 and "values: " in report.text()


def test_a_wrong_value_is_caught_in_the_ring() -> None:
    for name in ("swap_exact", "swap_regroups"):
        spec, module = module_of(Step(name, ("doubled",)), Step("loops"))
        with pytest.raises(VerificationError, match="wrong on the rung `ring`"):
            verify(spec, module=module, schedule="s", examples=10)


def test_what_is_not_exact_in_the_reals_is_skipped_and_named() -> None:
    spec, module = module_of(*LOOPS[:1], Step("swap_near", ("half",)), *LOOPS[:2])
    report = verify(spec, module=module, schedule="s", examples=10)
    assert not report.rungs[1].skipped  # a cast is exact in the reals
    assert report.approximations == ["step 2, `swap_near(half)`: half a unit"]
    assert "approximates: step 2" in report.text()


def test_an_approximation_by_laws_of_the_reals_must_agree_in_the_ring() -> None:
    spec, module = module_of(Step("loops"), Step("swap_near", ("last",)))
    with pytest.raises(VerificationError, match="wrong on the rung `ring`"):
        verify(spec, module=module, schedule="s", examples=10)


def test_an_approximation_beyond_the_ring_is_skipped_but_not_the_steps_around_it() -> None:
    made = stage(parse_kernel(SUM), (Step("loops"), Step("swap_near", ("doubled",)), *LOOPS))
    dims = {"M": 2, "N": 7}
    inputs = make_inputs(made.spec, dims)
    found = made.in_ring(inputs, dims, 0)
    assert found.wrong is None and made.excused == {1}
    assert list(made.segments()) == [(0, 1), (2, 5)]
    late = stage(made.spec, (Step("swap_near", ("doubled",)), Step("swap_exact", ("last",))))
    found = late.in_ring(inputs, dims, 0)
    assert found.wrong is not None and found.step == 1 and late.excused == {0}


def test_laws_that_a_field_has_no_order_for_are_skipped_and_named() -> None:
    text = """kernel k[N](x: f32[N], c: f32[N]) -> (y: f32[N]) {
      y[i: N] = max(x[i] + c[i], 0.5 + c[i])
    }"""
    spec, module = module_of(Step("rule", ("y", "max_of_adds")), text=text)
    report = verify(spec, module=module, schedule="s", examples=10)
    (line,) = report.rungs[1].skipped
    assert (report.rungs[1].verdict, report.rungs[1].runs) == ("skipped", 0)
    assert "step 1 of `k`, `rule(y, max_of_adds)`: it approximates" in line
    assert line in report.text()


# --- tolerances --------------------------------------------------------------------------------


def test_a_narrowed_type_is_caught_unless_a_step_says_that_it_approximates() -> None:
    """Nothing is rounded in the ring, so the numbers must tell."""
    for name, fails in (("swap_exact", True), ("swap_regroups", True), ("swap_near", False)):
        spec, module = module_of(Step(name, ("half",)), Step("loops"))
        if fails:
            with pytest.raises(VerificationError, match="wrong on the rung `schedule`"):
                verify(spec, module=module, schedule="s", examples=20)
            continue
        report = verify(spec, module=module, schedule="s", examples=20)
        assert report.loosened > 0
        assert "beyond the spec's own bound" in report.text()
        assert (report.rungs[-1].worst or 0) <= 1


def test_laws_of_the_reals_may_use_the_bound_of_what_they_make() -> None:
    text = """kernel k[N](a: f32[N], b: f32[N], c: f32[N]) -> (y: f32[N]) {
      y[i: N] = (a[i] + b[i]) * c[i]
    }"""
    steps = (Step("rule", ("y", "mul_commute")), Step("rule", ("y", "expand")))
    made = stage(parse_kernel(text), steps)
    assert made.effect == "reassociates" and made.loosens and not made.narrows
    n = np.float32
    inputs = {"a": np.array([1.1], n), "b": np.array([-1.1 + 1e-7], n), "c": np.array([3.3], n)}
    loose = made.allowed(inputs, {"N": 1}, "tame")
    assert loose is not None
    assert loose["y"].bound[0] > 1e-8
    report = verify(made.spec, module=module_of(*steps, text=text)[1], schedule="s", examples=30)
    assert not report.rungs[1].skipped


def test_parameters_are_bound_before_a_derivation() -> None:
    text = SUM.replace("[M, N](", "[M, N, by = 3](").replace("0.1", "f32(by)")
    spec, module = module_of(Step("swap_near", ("by",)), Step("loops"), text=text)
    report = verify(spec, module=module, schedule="s", examples=20)
    assert report.loosened > 0


def test_exact_derivations_get_the_bound_of_the_spec_alone() -> None:
    made = stage(parse_kernel(SUM), LOOPS[:2])
    assert made.effect == "exact" and not made.loosens
    assert made.allowed(make_inputs(made.spec, {"M": 1, "N": 3}), {"M": 1, "N": 3}, False) is None


# --- derivations made small --------------------------------------------------------------------


def test_shrinking_drops_what_is_not_needed_and_keeps_what_is() -> None:
    steps = (*LOOPS, Step("hint", ("i", "num_warps", 4)), Step("unroll", ("j",)))
    spec = parse_kernel(SUM)

    def fails(made: Staged) -> bool:
        return any(s.rewrite == "rfactor" for s in made.steps)

    culprit = shrink(spec, steps, fails)
    assert (culprit.number, culprit.step) == (3, steps[2])
    assert [s.rewrite for s in culprit.steps] == ["loops", "split", "rfactor"]


# --- kept failures -----------------------------------------------------------------------------


def failing(tmp_path: Path) -> tuple[Kernel, Module, Path]:
    spec, module = module_of(LOOPS[0], Step("swap_exact", ("last",)), Step("loops"))
    folder = tmp_path / "kept"
    with pytest.raises(VerificationError) as e:
        verify(spec, module=module, schedule="s", examples=10, regressions=folder)
    (path,) = folder.iterdir()
    assert f"kir verify {path}" in (e.value.hint or "")
    return spec, module, path


def test_a_failure_is_kept_cut_down_and_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, module, path = failing(tmp_path)
    kept = read(path)
    assert kept.steps == (Step("swap_exact", ("last",)),) and kept.rung == "ring"
    with pytest.raises(VerificationError, match="wrong on the rung `ring`"):
        replay(kept)
    with pytest.raises(VerificationError, match="that was kept is there still"):
        verify(spec, module=module, schedule="none", examples=1, regressions=path.parent)
    monkeypatch.setitem(WRONG, "last", SUM)  # the rewrite is mended
    spec, kept = replace(spec), read(path)  # the results of rewrites are kept on a kernel
    report = verify(spec, module=module, schedule="s", examples=5, regressions=path.parent)
    assert report.replayed == [f"{path.name}: right now"]
    assert sum(report.profiles.values()) == 6  # its example, too
    assert replay(kept).rungs[-1].runs == 1


def test_a_kept_failure_whose_derivation_is_refused_now_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, module, path = failing(tmp_path)

    def refuse(self: Exact, kernel: Kernel) -> Kernel:
        raise RewriteError("no more", kernel=kernel)

    monkeypatch.setattr(Exact, "edit", refuse)
    report = verify(spec, module=module, schedule="none", examples=1, regressions=path.parent)
    (line,) = report.replayed
    assert "does not apply any more: step 1" in line and line in report.text()


def test_the_same_failure_is_kept_once(tmp_path: Path) -> None:
    _, _, path = failing(tmp_path)
    again = read(path)
    assert again.save(path.parent) == path
    assert replace(again, rung="schedule").save(path.parent) != path
    assert len(list(path.parent.iterdir())) == 2


def test_a_graph_is_kept_with_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = parse(SUM + "\ngraph net[M, N](x: f32[M, N]) -> (z: f32[M]) { z = total(x) }")
    monkeypatch.setattr(Subject, "run_scheduled", wrong_run)
    with pytest.raises(VerificationError, match="`net` is wrong on the rung `schedule`"):
        verify(module.graphs()["net"], module=module, schedule="none", examples=5,
               regressions=tmp_path)  # fmt: skip
    (path,) = tmp_path.iterdir()
    with pytest.raises(VerificationError, match="`net` is wrong on the rung `schedule`"):
        replay(read(path))
    monkeypatch.undo()
    assert replay(read(path)).name == "net"


def wrong_run(
    self: object, kernel: Kernel, inputs: Mapping[str, Any], dims: Mapping[str, int]
) -> dict[str, Any]:
    return {name: array + 1 for name, array in run(kernel, inputs, dims).items()}


GOOD = Regression(
    Module((parse_kernel(SUM),)), "total", "ring", "it differs",
    Example((("M", 2), ("N", 3)), "tame", 5), (Step("loops"),),
)  # fmt: skip


def test_a_kept_failure_reads_back() -> None:
    assert from_data(json.loads(json.dumps(GOOD.record()))) == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no kept failure"),
        ({"program": "kernel"}, "no list of lines"),
        ({"program": ["kernel k("]}, "ends too early"),
        ({"item": "nothing"}, "no kernel or graph"),
        ({"rung": 3}, "no text"),
        ({"target": ["cpu"]}, "no text"),
        ({"derivation": {"format": "kir-derivation-1"}}, "no list"),
        ({"derivation": 7}, "no JSON object"),
        ({"example": None}, "no sizes"),
        ({"example": {"dims": {"M": -1}}}, "no sizes"),
        ({"example": {"dims": {"M": 10**9}}}, "no sizes"),
        ({"example": {"dims": {"M": 10**5, "N": 10**5}, "profile": "tame", "seed": 1}}, "none"),
        ({"example": {"dims": {}, "profile": "odd", "seed": 1}}, "none"),
        ({"example": {"dims": {}, "profile": "tame", "seed": "1"}}, "none"),
    ],
)
def test_a_malformed_file_is_refused_and_left_out(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = {**GOOD.record(), **change}
    with pytest.raises(KirError, match=message):
        from_data(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    ((path, found),) = read_all(tmp_path)
    assert isinstance(found, KirError)
    spec = parse_kernel(SUM)
    report = verify(spec, schedule="none", examples=1, regressions=tmp_path)
    assert report.replayed[0].startswith(f"{path.name}: left out: ")


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, "[]", "null", "\xff"])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(InputDataError):
        read(path)
    path.write_text(" " * (1 << 20) + "{}")
    with pytest.raises(InputDataError, match="larger"):
        read(path)


def test_a_folder_that_cannot_be_written_does_not_hide_the_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    spec, module = module_of(Step("swap_exact", ("last",)))
    with pytest.raises(VerificationError, match="wrong on the rung `ring`") as e:
        verify(spec, module=module, schedule="s", examples=10, regressions=blocked / "kept")
    assert "could not be kept" in (e.value.hint or "")


# --- assert_ring_equal -------------------------------------------------------------------------


def test_assert_ring_equal() -> None:
    spec = parse_kernel(SUM)
    assert assert_ring_equal(spec, stage(spec, LOOPS).kernel) == 0
    with pytest.raises(VerificationError, match="differs from `total` in the ring"):
        assert_ring_equal(spec, parse_kernel(WRONG["last"]))
    assert assert_ring_equal(spec, parse_kernel(WRONG["half"])) == 0
    with pytest.raises(VerificationError):
        assert_equivalent(spec, parse_kernel(WRONG["half"]))


def test_assert_derivation() -> None:
    spec = parse_kernel(SUM)
    assert assert_derivation(spec, LOOPS).excused == set()
    assert assert_derivation(spec, (Step("swap_near", ("half",)), *LOOPS)).excused == set()
    with pytest.raises(VerificationError, match="in the ring after step 2, `swap_exact"):
        assert_derivation(spec, (LOOPS[0], Step("swap_exact", ("last",)), LOOPS[0]))
    with pytest.raises(VerificationError, match="wrong after its derivation"):
        assert_derivation(spec, (Step("swap_exact", ("half",)),))


@settings(max_examples=8)
@given(st.data())
def test_random_derivations_of_softmax_keep_its_meaning(data: st.DataObject) -> None:
    spec = parse_kernel(SOFTMAX)
    names = [n for n in REWRITES if not n.startswith("swap_")]
    steps = data.draw(derivations(spec, most=5, names=names, start=[Step("loops")]))
    assert steps[0] == Step("loops") and len(steps) <= 6
    assert_derivation(spec, steps, tries=3)


SOFTMAX = """
kernel softmax[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  m[i: M]       = max(j: N) x[i, j]
  e[i: M, j: N] = exp(x[i, j] - m[i])
  s[i: M]       = sum(j: N) e[i, j]
  y[i: M, j: N] = e[i, j] / s[i]
}
"""


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kir.cli import main

    def kir(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kir", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    path = tmp_path / "total.kir"
    path.write_text(SUM + "\nschedule bad of total { loops() swap_exact(last) }\n")
    code, shown = kir("verify", str(path), "--schedule", "bad", "--examples", "5")
    assert code == 1 and "wrong on the rung `ring`" in shown
    (kept,) = (tmp_path / ".kir" / "regressions").iterdir()
    assert f"kir verify {kept}" in shown.replace("\n", "")
    code, shown = kir("verify", str(kept))
    assert code == 1 and "wrong on the rung `ring`" in shown
    code, shown = kir("verify", str(path), "--schedule", "none", "--examples", "5")
    assert code == 1 and "kept is there still" in shown
    code, shown = kir("verify", str(path), "--schedule", "none", "--examples", "5",
                      "--regressions", str(tmp_path / "other"))  # fmt: skip
    assert code == 0 and "values: " in shown


@settings(max_examples=5)
@given(wide_kernels())
def test_wide_kernels_are_well_typed(kernel: Kernel) -> None:
    assert parse_kernel(format_kernel(kernel)) == kernel
