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

PROBLEM = Problem(
    source="", kernel="k", dims={}, target="cpu", via=None, arch="native", baseline="", seed=0
)
LIMITS = Limits(seconds=20.0, memory=4 << 30, cpu_seconds=20, file=4 << 20)
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
    assert evaluator.evaluate("good") == Verdict("ok", 1.5, 2.0, 3.0)


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
        ("kill server", "crashed", "the worker ended"),
    ],
)
def test_failures_are_named_and_score_nothing(
    deed: str, status: str, words: str, evaluator: ChildEvaluator
) -> None:
    found = evaluator.evaluate(deed)
    assert (found.status, found.fitness, found.seconds) == (status, 0.0, None)
    assert words in found.error
    assert evaluator.evaluate("good").status == "ok"


def test_a_hang_ends_with_everything_it_started() -> None:
    with ChildEvaluator(PROBLEM, replace(LIMITS, seconds=2.0), HOSTILE) as made:
        assert made.evaluate("hang").status == "timeout"
        assert ended(int((made.folder / "grandchild").read_text()))
        assert made.evaluate("good").status == "ok"


def test_a_busy_loop_is_stopped_by_its_cpu_time() -> None:
    found = within(replace(LIMITS, cpu_seconds=1), "spin")
    assert found.status == "timeout"
    assert "CPU time" in found.error


def test_a_job_sees_no_secrets_and_its_folder_is_gone(evaluator: ChildEvaluator) -> None:
    evaluator.evaluate("tell")
    environment, folder = (evaluator.folder / "told").read_text().rsplit("|", 1)
    assert "PATH" in environment and "secret" not in environment
    assert Path(folder).parent == evaluator.folder and not Path(folder).exists()


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


def ended(pid: int) -> bool:
    """Whether a process is gone (a zombie counts) within a few seconds."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False
