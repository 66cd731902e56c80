"""The fuzzer: its kernels are well made; it finds, shrinks and keeps what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kir.check import check_kernel
from kir.errors import KirError, RewriteError
from kir.fuzz.campaign import Campaign, Plan, _Worker
from kir.fuzz.cases import Case, Failure, from_case_record, read_case
from kir.fuzz.coverage import Coverage
from kir.fuzz.kernels import generate
from kir.fuzz.session import Outcome, Session, judge_case, located
from kir.fuzz.shrink import shrink
from kir.ir import Kernel, Loop, Step, walk
from kir.ops import OPS
from kir.rewrites.base import extent_of
from kir.rewrites.split import Split
from kir.specialise import specialise
from kir.syntax import format_kernel, parse_kernel, parse_steps
from kir.testing import Example

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


# --- what it found -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REGRESSIONS, ids=[p.stem for p in REGRESSIONS])
def test_what_it_found_stays_mended(path: Path) -> None:
    """A case that failed once holds now, or its step is refused."""
    case = read_case(path)
    try:
        failure = judge_case(case)
    except RewriteError as refusal:
        assert refusal.render()
        return
    assert failure is None, f"{failure.message}\n{case.text()}"


def test_a_select_of_literals_under_an_operator_parses() -> None:
    kernel = parse_kernel(
        "kernel k[N](c: bool[N]) -> (y: f32[N]) { y[i: N] = abs(select(c[i], 1.0, 2.0)) }"
    )
    assert parse_kernel(format_kernel(kernel)) == kernel


# --- the kernels ---------------------------------------------------------------------------------


def test_a_seed_names_a_kernel_whatever_the_hash_seed() -> None:
    program = (
        "from kir.fuzz.kernels import generate; from kir.syntax import format_kernel;"
        "print(*(format_kernel(generate(s)) for s in range(40)))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert texts == {" ".join(format_kernel(generate(s)) for s in range(40)) + "\n"}


def test_generated_kernels_check_and_cover_the_language() -> None:
    coverage, rejected = Coverage(), 0
    for number in range(400):
        kernel = generate(number)
        coverage.see(kernel)
        assert parse_kernel(format_kernel(kernel)) == kernel
        if number < 150:
            try:
                check_kernel(specialise(kernel))
            except KirError:
                rejected += 1
    assert rejected <= 5
    assert len(coverage.ops) >= 0.9 * len(OPS)
    missing = coverage.missing()
    assert not missing["constructs"] and not missing["dtypes"], missing


# --- a session -----------------------------------------------------------------------------------


def test_a_session_repeats_itself() -> None:
    def text() -> str:
        found = Session(5).kernel(3)
        return json.dumps([found.counts, found.coverage.record(), found.refused], sort_keys=True)

    assert text() == text()


def test_derivations_of_generated_kernels_hold() -> None:
    for number in range(4):
        outcome = Session(11, derivations=5).kernel(number)
        assert not outcome.failures, outcome.failures[0][1].message


def test_compiled_derivations_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")
    pairs = 0
    for number in range(4):
        outcome = Session(11, "cpu", derivations=2).kernel(number)
        assert not outcome.failures, outcome.failures[0][1].message
        pairs += outcome.counts["pairs"]
    assert pairs >= 3


# --- planted bugs --------------------------------------------------------------------------------


def lose_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """`split` forgets that the last piece is short."""
    right = Split.edit

    def wrong(self: Split, kernel: Kernel) -> Kernel:
        def bare(loop: Loop) -> Loop:
            body = tuple(bare(s) if isinstance(s, Loop) else s for s in loop.body)
            return replace(loop, where=() if extent_of(loop) == self.factor else loop.where,
                           body=body)  # fmt: skip

        made = right(self, kernel)
        return replace(made, body=tuple(bare(s) if isinstance(s, Loop) else s for s in made.body))

    monkeypatch.setattr(Split, "edit", wrong)


def first_failure(session: Session, numbers: range) -> tuple[Case, Failure]:
    for number in numbers:
        outcome: Outcome = session.kernel(number)
        if outcome.failures:
            return outcome.failures[0]
    raise AssertionError("nothing was found")


def test_a_lost_mask_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_mask(monkeypatch)
    case, failure = first_failure(Session(0, names=("loops", "split", "reorder")), range(20))
    cut, found = located(case)
    assert found is not None and found.step == "split"
    small, how = shrink(judge_case, cut, found, seconds=20)
    assert how.kind == found.kind
    assert small.steps[-1].rewrite == "split" and len(small.steps) <= 2
    assert len(list(walk(small.kernel))) <= 25, small.text()
    again = from_case_record(json.loads(json.dumps(small.record())))
    assert again == small
    assert judge_case(again) == how
    monkeypatch.undo()
    mended = from_case_record(small.record())  # results of rewrites are kept on a kernel
    assert judge_case(mended) is None
    assert failure.message


def test_a_wrong_value_is_found_in_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding would hide is seen there: a sum whose terms are scaled by 1 + 2^-24."""
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32) { y = sum(i: N) x[i] * 1.0 }")
    other = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32) { y = sum(i: N) x[i] * 1.0000001 }")
    monkeypatch.setattr(Split, "edit", lambda self, k: other)
    case = Case(kernel, parse_steps("loops() split(i, 2)"), Example((("N", 9),), "tame", 0))
    failure = judge_case(case)
    assert failure is not None and failure.kind == "ring"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("kernel k[N](x: f32[N]) -> (y: f32[N]) { for i: N { y[i] = x[i] * 2.0 } }", "value"),
        ("kernel k[N](x: f32[N]) -> (y: f32[N]) { for i: N { y[i] = x[i + 1] } }", "check"),
        ("kernel k[N](x: f32[N]) -> (y: f32[N]) { for i: N - 1 { y[i] = x[i] } }", "check"),
    ],
)
def test_each_property_can_fail(monkeypatch: pytest.MonkeyPatch, made: str, kind: str) -> None:
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    wrong = parse_kernel(made)
    monkeypatch.setattr(Split, "edit", lambda self, k: wrong)
    case = Case(kernel, parse_steps("loops() split(i, 2)"), Example((("N", 3),), "tame", 1))
    failure = judge_case(case)
    assert failure is not None and failure.kind.startswith(kind)
    assert failure.step == "split"


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(self: Split, kernel: Kernel) -> Kernel:
        table: dict[str, Kernel] = {}
        return table[self.loop]

    monkeypatch.setattr(Split, "edit", fall)
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    failure = judge_case(Case(kernel, parse_steps("loops() split(i, 2)")))
    assert failure is not None and failure.key == "crash: KeyError after split"


def test_a_derivation_that_changes_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each application gives another name."""
    right, count = Split.edit, iter(range(100))

    def fickle(self: Split, kernel: Kernel) -> Kernel:
        return replace(right(self, kernel), name=f"k{next(count)}")

    monkeypatch.setattr(Split, "edit", fickle)
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    failure = judge_case(Case(kernel, parse_steps("loops() split(i, 2)")))
    assert failure is not None and failure.kind == "replay"


# --- a campaign ----------------------------------------------------------------------------------


def test_a_campaign_reports_what_it_met(tmp_path: Path) -> None:
    plan = Plan(count=8, jobs=1, seed=3, keep_going=True, regressions=tmp_path)
    summary = Campaign(plan).run()
    assert summary.ended == "done" and summary.counts["interpreter"]["pairs"] >= 8
    record = json.loads(json.dumps(summary.record()))
    assert record["coverage"]["ops"]["of"] == len(OPS)
    assert any(line.startswith("rewrites ") and " of " in line for line in summary.lines())


def test_a_worker_that_dies_is_a_finding(tmp_path: Path) -> None:
    campaign = Campaign(Plan(regressions=tmp_path))
    worker = _Worker.start()
    campaign.workers = [worker]
    worker.ask({"do": "kernel", "seed": 0, "target": "interpreter", "number": 1, "known": {}})
    worker.process.kill()
    worker.process.join()
    campaign.receive(worker)
    try:
        (found,) = campaign.summary.found.values()
        assert found.failure.kind == "died" and "--first 1" in found.failure.message
        assert found.path is not None and read_case(found.path) == found.case
        assert campaign.workers[0] is not worker
    finally:
        campaign.workers[0].stop()


def test_a_regression_is_replayed_first_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] }")
    case = Case(kernel, parse_steps("loops() split(i, 2)"), Example((("N", 3),), "integers", 1))
    (tmp_path / "one.json").write_text(json.dumps(case.record()))
    assert judge_case(case) is None
    lose_the_mask(monkeypatch)
    summary = Campaign(Plan(count=8, jobs=1, regressions=tmp_path)).run()
    assert list(summary.found) == ["regression one.json"]
    assert summary.ended == "stopped by a regression" and summary.pairs == 0


def test_failures_are_counted_once_and_saved(tmp_path: Path) -> None:
    campaign = Campaign(Plan(keep_going=True, regressions=tmp_path))
    case = Case(parse_kernel("kernel k() -> (y: f32) { y = f32(1.0) }"), (Step("loops"),))
    for number in range(3):
        campaign.failed("cpu", number, {"case": case.record(), "failure": ["cpu", "no", "loops"]})
    (found,) = campaign.summary.found.values()
    assert found.times == 3 and found.key == "cpu: cpu after loops"
    assert found.path is not None and "kir fuzz --replay" in found.text()
    assert [p.name for p in tmp_path.iterdir()] == ["cpu-cpu-after-loops.json"]


# --- the command ---------------------------------------------------------------------------------


def kir(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "kir", *words], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_the_command_runs_and_prints_coverage(tmp_path: Path) -> None:
    done = kir("fuzz", "--count", "4", "--jobs", "1", "--seed", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["targets"]["interpreter"]["pairs"] >= 4
    assert set(record["coverage"]) == {"ops", "constructs", "dtypes", "rewrites"}


def test_the_command_replays_files_and_refuses_others(tmp_path: Path) -> None:
    kernel = parse_kernel("kernel k() -> (y: f32) { y = f32(1.0) }")
    (tmp_path / "a.json").write_text(json.dumps(Case(kernel, (Step("loops"),)).record()))
    (tmp_path / "b.json").write_text("{}")
    done = kir("fuzz", "--replay", "a.json", cwd=tmp_path)
    assert done.returncode == 0 and "holds" in done.stdout
    for bad in ("b.json", "c.json"):
        done = kir("fuzz", "--replay", bad, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
