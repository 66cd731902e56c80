"""Evaluation of one candidate: in a child process that cannot take the search down with it.

A server process (`python -m kir.agent.worker`, started when first needed) has everything imported
and forks one job per candidate; it never runs a candidate itself. A job has its own process group
and folder, limits on memory, CPU time and file size that it sets on itself first, a wall-clock
limit that is kept from here, an environment of a few named variables, and what confinement the
system offers (`sandbox.py`). Requests and replies are JSON; a reply is checked field by field, and
whatever else a job does is a failure with fitness 0.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import kir.errors
from kir.agent.measure import lock_path

STATUSES = ("ok", "wrong", "refused", "crashed", "timeout", "memory")
"""What became of a candidate: verified and measured; verified and found wrong; refused by the
checker, a rewrite or the backend; and what stopped the child otherwise."""
MODELLED = ("nvidia", "amd")
"""Targets whose fitness is modelled from the compiled artifact, not measured."""
REQUEST, REPLY, LOG = "request.json", "reply.json", "log"
"""What a job's folder holds."""
MAX_REPLY = 1 << 20
START_SECONDS = 300.0
"""How long a server may take to import everything, on a loaded machine."""
_TAIL = 2000
_KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


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
    """`seconds` and `baseline_seconds` are medians of interleaved runs, None unless `ok`; on
    targets in `MODELLED`, what the model says. `report["rungs"]` tells what was verified.

    `fitness` is the median of the ratios of neighbouring runs, baseline over candidate: on a
    busy machine it is steadier than the ratio of the medians.
    """

    status: str
    fitness: float = 0.0
    seconds: float | None = None
    baseline_seconds: float | None = None
    error: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""


class Evaluator(Protocol):
    """Judges derivations (as text) of one problem."""

    def evaluate(self, derivation: str, seed: int | None = None, incumbent: float = 0.0) -> Verdict:
        """The verdict on the problem's inputs, or on those of another seed. What is far slower
        than the fitness `incumbent` is timed less. Never raises for what a candidate does."""

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        """Their fitness, measured against one another on inputs of a seed; None for what fails."""


class ChildEvaluator:
    """Evaluates in one fresh child process after the other.

    What is expected is computed once, in a child too, and kept in `folder`: one of our own until
    `close`, or one given, which others use as well. `command` is the worker's; tests give a worker
    that misbehaves.
    """

    def __init__(
        self,
        problem: Problem,
        limits: Limits | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "kir.agent.worker"),
        repeats: int = 15,
        folder: Path | None = None,
    ) -> None:
        self._problem = problem
        self._limits = limits or Limits()
        self._command = command
        self._repeats = repeats
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kir-tune-"))
        self._server: _Server | None = None
        lock_path().touch()

    def __enter__(self) -> ChildEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop()
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def evaluate(self, derivation: str, seed: int | None = None, incumbent: float = 0.0) -> Verdict:
        problem = self._problem if seed is None else replace(self._problem, seed=seed)
        failure = self._prepare(problem)
        if failure is not None:
            return failure
        return self._run("evaluate", problem, derivation=derivation, incumbent=incumbent)

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        problem = replace(self._problem, seed=seed)
        nothing: list[float | None] = [None] * len(derivations)
        if self._prepare(problem) is not None:
            return nothing
        given = list(derivations)
        found = self._run("contest", problem, times=len(given), derivations=given)
        ratios = found.report.get("ratios")
        if found.status != "ok" or not isinstance(ratios, list) or len(ratios) != len(given):
            # one of them took the others down: each by itself then
            return [self.evaluate(d, seed).fitness or None for d in given]
        return [_positive(r) for r in ratios]

    def _prepare(self, problem: Problem) -> Verdict | None:
        """Have what is expected computed; the verdict where that failed."""
        if self._expected(problem).exists():
            return None
        verdict = self._run("prepare", problem, writable=[str(self.folder)])
        return None if verdict.status == "ok" else verdict

    def _expected(self, problem: Problem) -> Path:
        return self.folder / f"expected-{problem.seed}.npz"

    def _run(self, action: str, problem: Problem, times: int = 1, **more: Any) -> Verdict:
        """Have a job done, in `times` the time of an evaluation."""
        private = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        limits = self._limits
        limits = replace(
            limits, seconds=limits.seconds * times, cpu_seconds=limits.cpu_seconds * times
        )
        request = {
            "action": action,
            "problem": asdict(problem),
            "expected": str(self._expected(problem)),
            "repeats": self._repeats,
            "limits": asdict(limits),
            "lock": str(lock_path()),
            "readable": [str(self.folder), str(lock_path())],
            **more,
        }
        (private / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            if self._server is None:
                self._server = _Server(self._command, self.folder, self._problem.target)
            code = self._server.run({"folder": str(private)}, limits.seconds)
            log = _tail(private / LOG)
            return replace(_judge(code, log, private / REPLY, limits), log=log)
        except _ServerEnded as error:
            self._stop()
            return Verdict("crashed", error=f"the worker ended: {error}")
        finally:
            shutil.rmtree(private, ignore_errors=True)


class _Server:
    """The forking process, and the conversation with it: one JSON value per line."""

    def __init__(self, command: tuple[str, ...], folder: Path, target: str) -> None:
        self._log = Path(tempfile.mkstemp(prefix="server-", suffix=".log", dir=folder)[1])
        self._partial = b""
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*command, target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )

    def stop(self) -> None:
        _kill_group(self._process.pid)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def run(self, job: dict[str, str], seconds: float) -> int | None:
        """Run one job to its end; gives its exit code, None where it ran out of time.

        Raises _ServerEnded where the server did not live to tell.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _ServerEnded(_tail(self._log)) from error
        pid = self._answer(START_SECONDS)
        if pid is None:
            raise _ServerEnded("it does not answer")
        try:
            return self._answer(seconds)
        finally:  # out of time, Ctrl-C; and what the job itself started goes with it
            _kill_group(pid)
            if self._waiting:
                self._answer(START_SECONDS)

    def _answer(self, seconds: float) -> int | None:
        """The integer on the next line, None where there is none in time."""
        assert self._process.stdout is not None
        self._waiting = True
        deadline = time.monotonic() + seconds
        while b"\n" not in self._partial:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                raise _ServerEnded(_tail(self._log))
            self._partial += data
        line, _, self._partial = self._partial.partition(b"\n")
        self._waiting = False
        return int(line)


class _ServerEnded(Exception):
    """The server died, with its last words."""


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _TAIL))
        return source.read().decode("utf-8", "replace").strip()


def _environment(folder: Path) -> dict[str, str]:
    """Nothing secret, nothing of the user's configuration; jobs share their compiled objects."""
    root = Path(kir.errors.__file__).resolve().parent.parent
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    steady = {"OMP_WAIT_POLICY": "passive"}  # threads that spin are slow beside other programs
    return (
        steady
        | kept
        | {
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",  # the server must have one thread when it forks
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
    )


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
    used = data.get("resources", {})
    if not (isinstance(error, str) and isinstance(report, dict) and isinstance(used, dict)):
        raise ValueError("it is not a verdict")
    if data["status"] != "ok":
        return Verdict(data["status"], error=error, report=report, resources=used)
    seconds, baseline = _positive(data.get("seconds")), _positive(data.get("baseline_seconds"))
    ratio = _positive(data.get("ratio"))
    return Verdict("ok", ratio or 0.0, seconds, baseline, error, report, used)


def _positive(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a time or ratio is not a number")
    if not math.isfinite(value) or value <= 0:
        raise ValueError("a time or ratio is not positive")
    return float(value)
