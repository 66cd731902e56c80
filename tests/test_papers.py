"""The kernels from papers: each is right as a spec, and its derivation does what its page says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import test_examples as examples
from example_cases import EXAMPLES, Case, Dims
from paper_cases import PAPERS

from kir.backends.triton import BACKEND as TRITON
from kir.check import check_kernel
from kir.derivation import derive, from_json, kernel_hash
from kir.interpret import run
from kir.ir import Const, Kernel, Step
from kir.pipeline import Target, compile, expand, schedule
from kir.rewrites.base import buffers_of
from kir.simplify import simplify
from kir.specialise import specialise
from kir.syntax import format_module, parse
from kir.testing import assert_ring_equal
from kir.verify import verify

EACH = pytest.mark.parametrize("case", PAPERS, ids=lambda c: c.name)
EACH_SIZE = examples.each([(c, d) for c in PAPERS for d in c.sizes])
FIRST = examples.each([(c, c.sizes[0]) for c in PAPERS])


def spec(case: Case) -> Kernel:
    found = examples.item(case)
    assert isinstance(found, Kernel)
    return found


def test_the_table_covers_the_folder() -> None:
    there = {p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.glob("papers/*.kir")}
    assert {c.path for c in PAPERS} == there


@EACH
def test_opens_with_what_it_is_and_cites_the_paper(case: Case) -> None:
    comment = [s for s in case.file.read_text(encoding="utf-8").splitlines() if s.startswith("#")]
    assert comment[0].endswith((".", ",", ":")) or len(comment) > 1
    text = " ".join(comment)
    assert '"' in text and any(str(year) in text for year in range(2010, 2027))


@EACH
def test_round_trips(case: Case) -> None:
    module = examples.load(case)
    assert parse(format_module(module)) == module


@EACH
def test_is_safe_for_all_shapes(case: Case) -> None:
    check_kernel(specialise(spec(case)))


@EACH_SIZE
def test_on_the_interpreter(case: Case, dims: Dims) -> None:
    inputs = examples.inputs_of(case, dims)
    examples.assert_right(run(spec(case), inputs, dims), case, inputs, dims)


@EACH_SIZE
def test_the_oracle_agrees_with_the_reference(case: Case, dims: Dims) -> None:
    """In f64; but where a spec rounds to bf16 on the way, to as many digits as that leaves."""
    inputs = examples.inputs_of(case, dims)
    want = examples.expected(case, inputs, dims)
    for name, found in examples.bounded(case, inputs, dims).items():
        assert np.isfinite(found.bound).mean() > 0.9
        np.testing.assert_allclose(found.value, want[name], rtol=1e-6, atol=1e-6)


@EACH_SIZE
def test_on_the_cpu_by_the_default_schedule(case: Case, dims: Dims) -> None:
    inputs = examples.inputs_of(case, dims)
    fixed = examples.parameters(spec(case), dims)
    outputs = compile(spec(case), "cpu", dict(fixed))(inputs, dims)
    examples.assert_right(outputs, case, inputs, dims)


@pytest.mark.triton
@FIRST
def test_on_tritons_interpreter_by_the_default_schedule(case: Case, dims: Dims) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    inputs = examples.inputs_of(case, dims)
    outputs = examples.on_triton(spec(case), examples.parameters(spec(case), dims))(inputs, dims)
    examples.assert_right(outputs, case, inputs, dims)


# --- the derivations -------------------------------------------------------------------------


@dataclass(frozen=True)
class Derived:
    """A schedule of a file: the temporaries it leaves in global memory, and where it runs."""

    paper: str
    schedule: str
    remaining: frozenset[str]
    targets: tuple[str, ...]
    size: int = 1
    """Which of the case's sizes to run it on. The second: blocks are cut, and parameters are powers
    of two, as tiles on a GPU must be."""

    @property
    def case(self) -> Case:
        (found,) = (c for c in PAPERS if c.name == self.paper)
        return found

    @property
    def dims(self) -> Dims:
        return self.case.sizes[self.size]

    def steps(self) -> tuple[Step, ...]:
        schedules = examples.load(self.case).schedules()
        return expand(schedules[self.schedule], schedules)

    def kernel(self, fixed: examples.Fixed = ()) -> Kernel:
        return schedule(specialise(spec(self.case), dict(fixed)), self.steps())


def derived(
    paper: str, name: str, remaining: str = "", targets: str = "cpu nvidia", size: int = 1
) -> Derived:
    return Derived(paper, name, frozenset(remaining.split()), tuple(targets.split()), size)


DERIVED = (
    derived("flash_attention", "flash", targets="nvidia"),
    derived("flash_attention", "flash_cpu", targets="cpu"),
    derived("online_softmax", "online", targets="nvidia"),
    derived("online_softmax", "online_cpu", targets="cpu"),
    derived("flash_attention_backward", "flash", "delta dq_acc"),
    derived("flash_sigmoid", "flash"),
    derived("moba", "flash", "mean gate seen", "nvidia"),
    derived("moba", "sparse", "mean gate seen", size=0),
    derived("blockffn", "sparse", "r rms active act", "nvidia"),
    derived("blockffn", "sparse_cpu", "r rms active act", "cpu"),
    derived("gqa_paged", "paged", targets="nvidia"),
    derived("gqa_paged", "paged_cpu", targets="cpu"),
    derived("rmsnorm_linear", "fused"),
    derived("fused_cross_entropy", "online"),
    derived("factorisation_machine", "regrouped"),
    derived("jagged_truncate", "blocks"),
    derived("selective_scan", "scan"),
)
EACH_DERIVED = pytest.mark.parametrize("one", DERIVED, ids=lambda d: f"{d.paper}-{d.schedule}")


def test_every_schedule_is_tried() -> None:
    """But for those that others are made of."""
    for case in PAPERS:
        schedules = examples.load(case).schedules()
        used = {s.args[0] for x in schedules.values() for s in x.steps if s.rewrite == "use"}
        tried = {d.schedule for d in DERIVED if d.paper == case.name}
        assert tried == set(schedules) - used, case.name


@EACH_DERIVED
def test_what_is_left_in_memory(one: Derived) -> None:
    """In global memory the temporaries named; on chip, blocks of constant size."""
    buffers = list(buffers_of(one.kernel().body))
    assert {b.name for b in buffers if b.space == "global"} == one.remaining
    for b in buffers:
        if b.space != "global":
            assert all(isinstance(simplify(e), Const) for e in b.shape), b.name


@EACH_DERIVED
def test_the_derived_kernel_is_safe_for_all_shapes(one: Derived) -> None:
    check_kernel(one.kernel())


@EACH_DERIVED
def test_replays_alike_from_text_and_json(one: Derived) -> None:
    kernel = specialise(spec(one.case))
    made = derive(kernel, one.steps(), one.schedule)
    assert made.result == kernel_hash(one.kernel())
    (again,) = parse(made.text()).schedules().values()
    assert derive(kernel, again.steps).result == made.result
    assert kernel_hash(from_json(made.json()).replay(kernel)[-1][1]) == made.result


@EACH_DERIVED
def test_the_derived_kernel_in_the_ring(one: Derived) -> None:
    """Bit for bit, whatever order it computes in."""
    fixed = examples.parameters(spec(one.case), one.dims)
    plain = specialise(spec(one.case), dict(fixed))
    assert_ring_equal(plain, one.kernel(fixed), tries=3)


@EACH_DERIVED
def test_the_derived_kernel_on_the_interpreter(one: Derived) -> None:
    for dims in one.case.sizes:
        inputs = examples.inputs_of(one.case, dims)
        kernel = one.kernel(examples.parameters(spec(one.case), dims))
        left = {d.name: dims[d.name] for d in kernel.dims}
        examples.assert_right(run(kernel, inputs, left), one.case, inputs, dims)


@pytest.mark.parametrize(
    "one", [d for d in DERIVED if "cpu" in d.targets], ids=lambda d: f"{d.paper}-{d.schedule}"
)
def test_the_derived_kernel_on_the_cpu(one: Derived) -> None:
    dims = one.dims
    kernel = one.kernel(examples.parameters(spec(one.case), dims))
    goal = Target("cpu")
    executable = goal.backend.load(goal.backend.lower(kernel, "cpu", goal.chip))
    inputs = examples.inputs_of(one.case, dims)
    left = {d.name: dims[d.name] for d in kernel.dims}
    examples.assert_right(executable(inputs, left), one.case, inputs, dims)


@pytest.mark.triton
@pytest.mark.parametrize(
    "one", [d for d in DERIVED if "nvidia" in d.targets], ids=lambda d: f"{d.paper}-{d.schedule}"
)
def test_the_derived_kernel_on_tritons_interpreter(one: Derived) -> None:
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    dims = one.dims
    kernel = one.kernel(examples.parameters(spec(one.case), dims))
    chip = Target("nvidia").chip
    executable = TRITON.load(TRITON.lower(kernel, "nvidia", chip, "source"), interpret=True)
    inputs = examples.inputs_of(one.case, dims)
    left = {d.name: dims[d.name] for d in kernel.dims}
    examples.assert_right(executable(inputs, left), one.case, inputs, dims)


def test_a_derivation_that_reassociates_is_verified() -> None:
    """With parameters bound: the bound is looser where the reals agree and the roundings do not."""
    (one,) = (d for d in DERIVED if d.paper == "factorisation_machine")
    module = examples.load(one.case)
    report = verify(spec(one.case), module=module, schedule=one.schedule, examples=6)
    assert {r.name for r in report.rungs} >= {"static", "ring", "spec", "schedule"}


def test_the_page_counts_the_steps() -> None:
    """`docs/papers.md` has a row for each derivation, with the number of its steps."""
    page = (EXAMPLES.parent / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = [[c.strip() for c in s.split("|")] for s in page.splitlines() if s.startswith("| `")]
    listed = {(row[1].strip("`"), row[2].strip("`")): int(row[4]) for row in rows}
    assert listed == {(d.paper, d.schedule): len(d.steps()) for d in DERIVED}
