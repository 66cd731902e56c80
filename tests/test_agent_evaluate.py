"""Containment: whatever a job does, the evaluator says what became of it, and goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kir.agent.evaluate import ChildEvaluator, Limits, Problem, Verdict
from kir.agent.sandbox import Confinement, available

PROBLEM = Problem(
    source="", kernel="k", dims={}, target="cpu", via=None, arch="native", baseline="", seed=0
)
LIMITS = Limits(seconds=20.0, memory=1 << 30, cpu_seconds=20, file=4 << 20)
CONFINED = available()
HOSTILE = (sys.executable, str(Path(__file__).with_name("hostile_worker.py")))


@pytest.fixture(scope="module")
def evaluator() -> Iterator[ChildEvaluator]:
    """One for all tests, so that each also shows that the ones before it did no harm."""
    os.environ["MY_API_KEY"] = "secret"
    with ChildEvaluator(PROBLEM, LIMITS, HOSTILE) as made:
        yield made
    del os.environ["MY_API_KEY"]


def within(limits: Limits, derivation: str) -> Verdict:
    with ChildEvaluator(PROBLEM, limits, HOSTILE) as made:
        return made.evaluate(derivation)


def test_a_good_reply_gives_the_ratio_as_fitness(evaluator: ChildEvaluator) -> None:
    found = evaluator.evaluate("good")
    assert (found.status, found.fitness, found.seconds, found.baseline_seconds) == (
        "ok", 1.5, 2.0, 3.0,
    )  # fmt: skip
    assert found.resources["cpu_s"] >= 0 and found.resources["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("deed", "status", "words"),
    [
        ("wrong", "wrong", "off by one"),
        ("segfault", "crashed", "signal 11"),
        ("abort", "crashed", "signal 6"),
        ("exit", "crashed", "SystemExit: 3"),
        ("raise", "crashed", "IndexError"),
        ("allocate", "memory", "bytes"),
        ("out of memory", "memory", "bytes"),
        ("big file", "crashed", ""),
        ("no reply", "crashed", "no valid reply"),
        ("half a reply", "crashed", "no valid reply"),
        ("deep reply", "crashed", "no valid reply"),
        ("huge reply", "crashed", "too long"),
        ("binary reply", "crashed", "no valid reply"),
        ("list reply", "crashed", "not a verdict"),
        ("unknown status", "crashed", "not a verdict"),
        ("nan time", "crashed", "positive"),
        ("no time", "crashed", "positive"),
        ("bool time", "crashed", "not a number"),
        ("text time", "crashed", "not a number"),
        ("grow", "memory", "bytes"),
    ],
)
def test_failures_are_named_and_score_nothing(
    deed: str, status: str, words: str, evaluator: ChildEvaluator
) -> None:
    found = evaluator.evaluate(deed)
    assert (found.status, found.fitness, found.seconds) == (status, 0.0, None)
    assert words in found.error
    assert evaluator.evaluate("good").status == "ok"


@pytest.mark.parametrize("deed", ["hang", "fork bomb"])
def test_a_hang_ends_with_everything_it_started(deed: str) -> None:
    with ChildEvaluator(PROBLEM, replace(LIMITS, seconds=2.0), HOSTILE) as made:
        assert made.evaluate(deed).status == "timeout"
        assert none_is_left(made.folder)
        assert made.evaluate("good").status == "ok"


def test_a_busy_loop_is_stopped_by_its_cpu_time() -> None:
    found = within(replace(LIMITS, cpu_seconds=1), "spin")
    assert found.status == "timeout"
    assert "CPU time" in found.error


def test_a_job_sees_no_secrets_and_its_folder_is_gone(evaluator: ChildEvaluator) -> None:
    environment, folder = evaluator.evaluate("tell").error.rsplit("|", 1)
    assert "PATH" in environment and "secret" not in environment
    assert Path(folder).parent == evaluator.folder and not Path(folder).exists()


@pytest.mark.skipif(not CONFINED.files, reason="no Landlock here")
@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("write outside", "wrote in []"),
        ("tamper", "Permission denied"),
        ("read others", "Permission denied"),
    ],
)
def test_a_job_keeps_to_its_folder(deed: str, words: str, evaluator: ChildEvaluator) -> None:
    assert words in evaluator.evaluate(deed).error
    assert evaluator.evaluate("good").status == "ok"


@pytest.mark.skipif(not CONFINED.network, reason="no namespaces here")
def test_a_job_has_no_network_and_leaves_no_process(evaluator: ChildEvaluator) -> None:
    assert "unreachable" in evaluator.evaluate("call home").error
    assert evaluator.evaluate("daemon").status == "ok"
    assert none_is_left(evaluator.folder)


def test_a_job_cannot_end_the_search(evaluator: ChildEvaluator) -> None:
    assert evaluator.evaluate("kill server").status == "crashed"
    assert evaluator.evaluate("good").status == "ok"


def test_what_confines_is_said() -> None:
    assert Confinement(True, True, True, 7).text().count("NOT") == 0
    assert "NOT files (Landlock), network" in Confinement(False, False, True, 0).text()


def test_finalists_that_crash_one_another_are_judged_singly(evaluator: ChildEvaluator) -> None:
    assert evaluator.contest(["good", "segfault", "good"], 1) == [1.5, None, 1.5]


def test_everything_is_gone_after_closing() -> None:
    with ChildEvaluator(PROBLEM, LIMITS, HOSTILE) as made:
        made.evaluate("good")
        assert made.folder.exists()
    assert not made.folder.exists()


def test_a_worker_that_does_not_start_is_the_verdict() -> None:
    with ChildEvaluator(PROBLEM, LIMITS, (sys.executable, "-c", "raise OSError('no')")) as made:
        found = made.evaluate("good")
    assert found.status == "crashed"
    assert "OSError: no" in found.error


def none_is_left(folder: Path) -> bool:
    """Whether all processes of jobs in `folder` are gone within a few seconds."""
    for _ in range(50):
        if not any(_works_in(p, f"{folder}/job-") for p in Path("/proc").iterdir()):
            return True
        time.sleep(0.1)
    return False


def _works_in(process: Path, place: str) -> bool:
    try:
        return process.name.isdecimal() and str((process / "cwd").readlink()).startswith(place)
    except OSError:
        return False
