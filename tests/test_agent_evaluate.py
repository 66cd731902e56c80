"""Containment: whatever a child does, the evaluator says what became of it, and goes on."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kir.agent.evaluate import ChildEvaluator, Limits, Problem, Verdict

PROBLEM = Problem(
    source="", kernel="k", dims={}, target="cpu", via=None, arch="host", baseline="", seed=0
)
QUICK = Limits(seconds=20.0, memory=1 << 30, cpu_seconds=20, file=1 << 20)

CONFINED = """
import json, os, sys, time
request = json.load(open(sys.argv[1]))
def reply(**data):
    with open(sys.argv[2], "w") as out:
        json.dump(data, out)
    sys.exit(0)
if request["action"] == "prepare":
    reply(status="ok")
def confine():
    from kir.agent.worker import confine
    confine(request["limits"])
"""


def verdict_of(body: str, tmp_path: Path, limits: Limits = QUICK) -> Verdict:
    """The verdict on a worker that, asked to evaluate, runs `body`."""
    script = tmp_path / "worker.py"
    script.write_text(CONFINED + textwrap.dedent(body))
    with ChildEvaluator(PROBLEM, limits, (sys.executable, str(script))) as evaluator:
        return evaluator.evaluate("")


def test_a_good_reply_gives_the_ratio_as_fitness(tmp_path: Path) -> None:
    found = verdict_of("reply(status='ok', seconds=2.0, baseline_seconds=3.0)", tmp_path)
    assert found == Verdict("ok", 1.5, 2.0, 3.0)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("reply(status='wrong', error='off by one')", "wrong", "off by one"),
        ("os.kill(os.getpid(), 11)", "crashed", "signal 11"),
        ("os.abort()", "crashed", "signal 6"),
        ("sys.exit(3)", "crashed", "exit code 3"),
        ("raise ValueError('boom')", "crashed", "boom"),
        ("confine(); x = bytearray(4 << 30)", "memory", "bytes"),
        ("sys.stderr.write('LLVM ERROR: out of memory\\n'); os.abort()", "memory", "bytes"),
        ("confine(); open('big', 'wb').write(bytes(8 << 20))", "crashed", ""),
        ("sys.exit(0)", "crashed", "no valid reply"),
        ("open(sys.argv[2], 'w').write('{')", "crashed", "no valid reply"),
        ("open(sys.argv[2], 'w').write('[' * 100000)", "crashed", "no valid reply"),
        ("open(sys.argv[2], 'wb').write(bytes([255]))", "crashed", "no valid reply"),
        ("reply(status='splendid')", "crashed", "not a verdict"),
        ("reply(status='ok', seconds=float('nan'), baseline_seconds=1.0)", "crashed", "positive"),
        ("reply(status='ok', seconds=0, baseline_seconds=1.0)", "crashed", "positive"),
        ("reply(status='ok', seconds=True, baseline_seconds=1.0)", "crashed", "not a number"),
        ("reply(status='ok', seconds='fast', baseline_seconds=1.0)", "crashed", "not a number"),
    ],
    ids=lambda x: x if len(x) < 24 else x[:24],
)
def test_failures_are_named_and_score_nothing(
    body: str, status: str, words: str, tmp_path: Path
) -> None:
    found = verdict_of(body, tmp_path)
    assert (found.status, found.fitness, found.seconds) == (status, 0.0, None)
    assert words in found.error


def test_a_hang_ends_with_everything_it_started(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    body = f"""
    if os.fork() == 0:
        open({str(marker)!r}, "w").write(str(os.getpid()))
    while True:
        time.sleep(1)
    """
    found = verdict_of(body, tmp_path, Limits(seconds=2.0))
    assert found.status == "timeout"
    assert ended(int(marker.read_text()))


def test_a_busy_loop_is_stopped_by_its_cpu_time(tmp_path: Path) -> None:
    found = verdict_of("confine()\nwhile True: pass", tmp_path, Limits(seconds=30.0, cpu_seconds=1))
    assert found.status == "timeout"


def test_the_child_sees_no_secrets_and_its_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    leak = tmp_path / "leak"
    body = (
        f"open({str(leak)!r}, 'w').write(repr(dict(os.environ)) + '|' + os.getcwd()); sys.exit(1)"
    )
    verdict_of(body, tmp_path)
    environment, folder = leak.read_text().rsplit("|", 1)
    assert "secret" not in environment
    assert "kir-tune-" in folder and not Path(folder).exists()


def test_a_failed_preparation_is_the_verdict(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import os; os.abort()")
    with ChildEvaluator(PROBLEM, QUICK, (sys.executable, str(script))) as evaluator:
        assert evaluator.evaluate("").status == "crashed"


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
