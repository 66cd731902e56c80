"""Evaluation of one candidate: in a child process that cannot take the search down with it.

The child (`python -m kir.agent.worker`) has its own process group, session and folder, limits on
memory, CPU time and file size that it sets on itself before it loads anything, a wall-clock limit
that is kept from here, and an environment of a few named variables. Request and reply are JSON
files; a reply is checked field by field, and anything else the child does is a failure with
fitness 0. There is no network sandbox and no file sandbox here: KIR programs can do neither.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import kir.errors

STATUSES = ("ok", "wrong", "refused", "crashed", "timeout", "memory")
"""What became of a candidate: verified and measured; verified and found wrong; refused by the
checker, a rewrite or the backend; and what stopped the child otherwise."""
MAX_REPLY = 1 << 20
_TAIL = 2000
_KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Problem:
    """What is tuned: the spec's module as text, the kernel in it, its dims and the target.

    `baseline` is the default schedule's derivation as text; `seed` makes the inputs.
    """

    source: str
    kernel: str
    dims: Mapping[str, int]
    target: str
    via: str | None
    arch: str
    baseline: str
    seed: int


@dataclass(frozen=True)
class Limits:
    """Of one evaluation. `seconds` is wall clock, `memory` bytes of address space, `cpu_seconds`
    over all threads, `file` bytes of the largest file it may write."""

    seconds: float = 60.0
    memory: int = 16 << 30
    cpu_seconds: int = 240
    file: int = 4 << 30


@dataclass(frozen=True)
class Verdict:
    """`seconds` and `baseline_seconds` are medians of interleaved runs, None unless `ok`."""

    status: str
    fitness: float = 0.0
    seconds: float | None = None
    baseline_seconds: float | None = None
    error: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Judges a derivation (as text) of one problem."""

    def evaluate(self, derivation: str) -> Verdict:
        """Never raises for what the candidate does."""


class ChildEvaluator:
    """Evaluates in one fresh child process after the other.

    `prepare` computes what is expected once, in a child too; its folder lives until `close`.
    `command` is the worker's; tests give a worker that misbehaves.
    """

    def __init__(
        self,
        problem: Problem,
        limits: Limits | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "kir.agent.worker"),
        repeats: int = 15,
    ) -> None:
        self._problem = problem
        self._limits = limits or Limits()
        self._command = command
        self._repeats = repeats
        self._folder = Path(tempfile.mkdtemp(prefix="kir-tune-"))
        self._prepared = False

    def __enter__(self) -> ChildEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def evaluate(self, derivation: str) -> Verdict:
        if not self._prepared:
            verdict = self._run("prepare", "")
            if verdict.status != "ok":
                return verdict
            self._prepared = True
        return self._run("evaluate", derivation)

    def _run(self, action: str, derivation: str) -> Verdict:
        private = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))
        request, reply = private / "request.json", private / "reply.json"
        request.write_text(
            json.dumps(
                {
                    "action": action,
                    "problem": asdict(self._problem),
                    "derivation": derivation,
                    "expected": str(self._folder / "expected.npz"),
                    "repeats": self._repeats,
                    "limits": asdict(self._limits),
                }
            ),
            encoding="utf-8",
        )
        try:
            code, tail = self._supervise([*self._command, str(request), str(reply)], private)
            return _judge(code, tail, reply, self._limits)
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _supervise(self, command: list[str], private: Path) -> tuple[int | None, str]:
        """Run the child to its end; gives its exit code (None: out of time) and its last words."""
        log = private / "log"
        with log.open("wb") as sink:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=private,
                env=_environment(private, self._folder),
                start_new_session=True,
            )
            try:
                code: int | None = child.wait(self._limits.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # on Ctrl-C too; and what the child itself started goes with it
                _kill_group(child.pid)
                child.wait()
        with log.open("rb") as source:
            source.seek(max(0, log.stat().st_size - _TAIL))
            return code, source.read().decode("utf-8", "replace").strip()


def _environment(private: Path, shared: Path) -> dict[str, str]:
    """Nothing secret, nothing of the user's configuration; compiled objects are shared."""
    root = Path(kir.errors.__file__).resolve().parent.parent
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(private),
        "TMPDIR": str(private),
        "XDG_CACHE_HOME": str(shared / "cache"),
    }


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and everything in its group
        os.killpg(pid, signal.SIGKILL)


def _judge(code: int | None, tail: str, reply: Path, limits: Limits) -> Verdict:
    if code is None:
        return Verdict("timeout", error=f"not done after {limits.seconds:g} s")
    if code == -signal.SIGXCPU:
        return Verdict("timeout", error=f"used more than {limits.cpu_seconds} s of CPU time")
    if code != 0:
        lowered = tail.lower()
        if any(w in lowered for w in ("out of memory", "memoryerror", "bad_alloc")):
            return Verdict("memory", error=f"needs more than {limits.memory} bytes")
        how = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Verdict("crashed", error=f"{how}: {tail}" if tail else how)
    try:
        if reply.stat().st_size > MAX_REPLY:
            return Verdict("crashed", error="the reply is too long")
        return _read_verdict(json.loads(reply.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        return Verdict("crashed", error=f"no valid reply: {error}")


def _read_verdict(data: object) -> Verdict:
    """A reply as a Verdict; ValueError unless it is one, to the letter."""
    if not isinstance(data, dict) or data.get("status") not in STATUSES:
        raise ValueError("it is not a verdict")
    error, report = data.get("error", ""), data.get("report", {})
    if not isinstance(error, str) or not isinstance(report, dict):
        raise ValueError("it is not a verdict")
    if data["status"] != "ok":
        return Verdict(data["status"], error=error, report=report)
    seconds, baseline = _duration(data.get("seconds")), _duration(data.get("baseline_seconds"))
    fitness = baseline / seconds if seconds and baseline else 0.0
    return Verdict("ok", fitness, seconds, baseline, error, report)


def _duration(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a time is not a number")
    if not math.isfinite(value) or value <= 0:
        raise ValueError("a time is not positive")
    return float(value)
