"""A campaign: kernels by their numbers, over several processes, until a time, a count or a failure.

Workers are processes of their own: one that dies or hangs is a finding, not the end. They are told
what to do, and answer, in JSON over pipes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kir.errors import KirError
from kir.fuzz.cases import INTERPRETER, Case, Failure, from_case_record, read_case
from kir.fuzz.coverage import Coverage
from kir.fuzz.kernels import generate
from kir.fuzz.session import Session, judge_case, located
from kir.fuzz.shrink import shrink

FOLDER = Path(".kir") / "fuzz"
HANGS = 180.0
"""Seconds after which a worker is given up."""
MEMORY = 8 << 30
"""Bytes of address space of a worker."""
LOCATED = 12
"""Failures of one kind that are looked at closely; more are only counted."""
DIED = "died"
"""The kind of what took a worker with it: not shrunk, for it would take more."""
Message = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run. Without `count` and `minutes` it runs until it is stopped."""

    targets: tuple[str, ...] = (INTERPRETER,)
    seed: int = 0
    count: int | None = None
    """Pairs for each target."""
    minutes: float | None = None
    jobs: int = 2
    keep_going: bool = False
    first: int = 0
    """The number of the first kernel."""
    regressions: Path = FOLDER


@dataclass
class Found:
    """One distinct failure."""

    key: str
    case: Case
    failure: Failure
    number: int
    times: int = 1
    path: Path | None = None

    def record(self, seed: int) -> Message:
        return {
            **self.case.record(),
            "failure": {"kind": self.failure.kind, "message": self.failure.message,
                        "step": self.failure.step},
            "found": {"seed": seed, "kernel": self.number},
        }  # fmt: skip

    def text(self) -> str:
        """For a person: what failed, on what, and the command that shows it again."""
        lines = [f"{self.key} ({self.times} times)", self.failure.message, self.case.text()]
        if self.path is not None:
            lines.append(f"to see it again: kir fuzz --replay {self.path}")
        return "\n".join(lines)


@dataclass
class Summary:
    """What a campaign did and found."""

    plan: Plan
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By target: pairs, kernels, rejected, ..."""
    coverage: Coverage = field(default_factory=Coverage)
    refused: Counter[str] = field(default_factory=Counter)
    found: dict[str, Found] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    regressions: int = 0
    seconds: float = 0.0
    ended: str = ""

    @property
    def pairs(self) -> int:
        return sum(c["pairs"] for c in self.counts.values())

    def lines(self) -> list[str]:
        """The summary as text, failures aside."""
        found = []
        for target, c in self.counts.items():
            rate = c["pairs"] / self.seconds if self.seconds else 0.0
            others = ", ".join(
                f"{c[name]} {name}" for name in ("rejected", "vacuous", "unsupported", "too large")
                if c[name]
            )  # fmt: skip
            found.append(
                f"{target}: {c['pairs']} pairs of {c['kernels']} kernels and "
                f"{c['steps']} steps, {rate:.1f} pairs/s" + (f"; {others}" if others else "")
            )
        found += self.coverage.lines()
        if self.regressions:
            found.append(f"{self.regressions} regressions replayed first")
        distinct = len(self.found)
        found.append(
            f"{self.ended} after {self.seconds:.0f} s, seed {self.plan.seed}: "
            + (f"{distinct} distinct failures" if distinct else "no failure")
        )
        return found

    def record(self) -> Message:
        return {
            "seed": self.plan.seed,
            "seconds": round(self.seconds, 1),
            "ended": self.ended,
            "targets": {t: dict(c) for t, c in self.counts.items()},
            "coverage": self.coverage.summary(),
            "applied": dict(self.coverage.rewrites),
            "refused": dict(self.refused),
            "regressions": self.regressions,
            "failures": [
                {"key": f.key, "times": f.times, **f.record(self.plan.seed)}
                for f in self.found.values()
            ],
        }


# --- workers -------------------------------------------------------------------------------------


def _work(pipe: Connection) -> None:
    """A worker: answers each request with a JSON record until the pipe closes."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["KIR_CACHE_DIR"] = ""
    os.environ["OMP_NUM_THREADS"] = "2"
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(json.dumps(_answer(request)).encode())


def _answer(request: Message) -> Message:
    if request["do"] == "shrink":
        case, failure = from_case_record(request["case"]), Failure(*request["failure"])
        small, how = shrink(judge_case, case, failure)
        return {"case": small.record(), "failure": _plain(how)}
    session = Session(request["seed"], request["target"])
    outcome = session.kernel(request["number"])
    return {
        "counts": dict(outcome.counts),
        "coverage": outcome.coverage.record(),
        "refused": dict(outcome.refused),
        "failures": [
            _located(case, failure, request["known"]) for case, failure in outcome.failures
        ],
    }


def _located(case: Case, failure: Failure, known: Mapping[str, int]) -> Message:
    """A failure with the shortest beginning of its derivation that has it."""
    if known.get(failure.kind, 0) < LOCATED:
        cut, found = located(case)
        if found is not None:
            case, failure = cut, found
    return {"case": case.record(), "failure": _plain(failure)}


def _plain(failure: Failure) -> list[str]:
    return [failure.kind, failure.message, failure.step]


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    request: Message = field(default_factory=dict)
    since: float = 0.0

    @staticmethod
    def start() -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def ask(self, request: Message) -> None:
        self.request, self.since = request, time.monotonic()
        self.pipe.send_bytes(json.dumps(request).encode())

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


# --- the campaign --------------------------------------------------------------------------------


@dataclass
class Campaign:
    """Runs a plan; `report` is called with the summary so far, some times a second."""

    plan: Plan
    report: Callable[[Summary], None] = lambda summary: None
    summary: Summary = field(init=False)
    workers: list[_Worker] = field(default_factory=list)
    next: Counter[str] = field(default_factory=Counter)
    waiting: list[tuple[str, Message]] = field(default_factory=list)
    """New failures that are still to be shrunk, with the target."""
    began: float = 0.0

    def __post_init__(self) -> None:
        self.summary = Summary(self.plan, {t: Counter() for t in self.plan.targets})

    def run(self) -> Summary:
        """Regressions first, then kernels; what was found is in the summary in any case."""
        self.began = time.monotonic()
        try:
            if self.regressions():
                self.summary.ended = "stopped by a regression"
            else:
                self.workers = [_Worker.start() for _ in range(self.plan.jobs)]
                self.loop()
        except KeyboardInterrupt:
            self.summary.ended = "interrupted"
        finally:
            for worker in self.workers:
                worker.stop()
            self.summary.seconds = time.monotonic() - self.began
        return self.summary

    def regressions(self) -> bool:
        """Replay what failed before; whether that ends the campaign."""
        for path in sorted(self.plan.regressions.glob("*.json")):
            case = read_case(path)
            self.summary.regressions += 1
            try:
                failure = judge_case(case)
            except KirError:
                continue  # a step that is refused now cannot be wrong
            if failure is not None:
                key = f"regression {path.name}"
                self.summary.found[key] = Found(key, case, failure, -1, path=path)
                if not self.plan.keep_going:
                    return True
        return False

    def loop(self) -> None:
        idle = list(self.workers)
        while True:
            for worker in idle:
                request = self.task()
                if request is not None:
                    worker.ask(request)
            busy = [w for w in self.workers if w.request]
            if not busy:
                return
            ready = wait([w.pipe for w in busy], timeout=0.2)
            for worker in busy:
                if worker.pipe in ready:
                    self.receive(worker)
                elif time.monotonic() - worker.since > HANGS:
                    self.lost(worker, f"it took more than {HANGS:.0f} s")
            idle = [w for w in self.workers if not w.request]
            self.summary.seconds = time.monotonic() - self.began
            self.report(self.summary)

    def task(self) -> Message | None:
        """What to do next; None where there is nothing left."""
        if self.waiting:
            target, raw = self.waiting.pop()
            return {"do": "shrink", "target": target, **raw}
        if self.over():
            return None
        open_targets = [t for t in self.plan.targets if not self.enough(t)]
        if not open_targets:
            self.summary.ended = "done"
            return None
        target = min(open_targets, key=lambda t: self.next[t])
        self.next[target] += 1
        return {
            "do": "kernel",
            "seed": self.plan.seed,
            "target": target,
            "number": self.plan.first + self.next[target] - 1,
            "known": dict(self.summary.kinds),
        }

    def over(self) -> bool:
        plan = self.plan
        if self.summary.found and not plan.keep_going:
            self.summary.ended = "stopped by a failure"
            return True
        if plan.minutes is not None and time.monotonic() - self.began > 60 * plan.minutes:
            self.summary.ended = "out of time"
            return True
        return False

    def enough(self, target: str) -> bool:
        count = self.plan.count
        return count is not None and self.summary.counts[target]["pairs"] >= count

    # --- answers -----------------------------------------------------------------------------

    def receive(self, worker: _Worker) -> None:
        try:
            answer = json.loads(worker.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            worker.process.join()
            self.lost(worker, f"the process died, exit code {worker.process.exitcode}")
            return
        request, worker.request = worker.request, {}
        if request["do"] == "shrink":
            self.shrunk(request, answer)
            return
        target = request["target"]
        self.summary.counts[target].update(answer["counts"])
        self.summary.coverage.add(answer["coverage"])
        self.summary.refused.update(answer["refused"])
        for raw in answer["failures"]:
            self.failed(target, request["number"], raw)

    def failed(self, target: str, number: int, raw: Message) -> None:
        """Count a failure; a new one is kept, saved, and put up to be shrunk."""
        failure = Failure(*raw["failure"])
        self.summary.kinds[failure.kind] += 1
        key = failure.key if target == INTERPRETER else f"{target}: {failure.key}"
        if key in self.summary.found:
            self.summary.found[key].times += 1
            return
        if self.summary.kinds[failure.kind] > LOCATED:
            return  # it was not located, so its key says nothing
        found = Found(key, from_case_record(raw["case"]), failure, number)
        self.summary.found[key] = found
        self.save(found)
        if failure.kind != DIED:
            raw = {"key": key, "case": raw["case"], "failure": raw["failure"]}
            self.waiting.append((target, raw))

    def shrunk(self, request: Message, answer: Message) -> None:
        found = self.summary.found[request["key"]]
        found.case = from_case_record(answer["case"])
        found.failure = Failure(*answer["failure"])
        self.save(found)

    def lost(self, worker: _Worker, why: str) -> None:
        """A worker that died or hangs: what it was at is a failure; another takes its place."""
        request = worker.request
        worker.stop()
        self.workers[self.workers.index(worker)] = _Worker.start()
        if request["do"] == "shrink":
            return  # the case as it was found stays
        number, target = request["number"], request["target"]
        case = Case(generate(f"{self.plan.seed}/{number}"), (), None, target)
        again = f"kir fuzz --seed {self.plan.seed} --first {number} --count 1 --target {target}"
        failure = [DIED, f"{why}; {again}", ""]
        self.failed(target, number, {"case": case.record(), "failure": failure})

    def save(self, found: Found) -> None:
        """Write the case to the regression folder."""
        folder = self.plan.regressions
        folder.mkdir(parents=True, exist_ok=True)
        if found.path is None:
            words = "".join(c if c.isalnum() else "-" for c in found.key.lower())
            found.path = folder / f"{'-'.join(w for w in words.split('-') if w)}.json"
        text = json.dumps(found.record(self.plan.seed), indent=2) + "\n"
        found.path.write_text(text)


def replays(paths: Iterator[Path]) -> Iterator[tuple[Path, Case, Failure | None]]:
    """Each saved case with what is wrong with it now."""
    for path in paths:
        case = read_case(path)
        yield path, case, judge_case(case)
