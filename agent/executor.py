"""Where candidates are evaluated: a pool of children of this process, or a Ray cluster."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from kir.agent.evaluate import ChildEvaluator, Evaluator, Limits, Problem, Verdict
from kir.errors import UsageError


class Executor(Protocol):
    """Evaluates several derivations at a time, `workers` at most."""

    workers: int

    def submit(
        self, derivation: str, seed: int | None = None, incumbent: float = 0.0
    ) -> Future[Verdict]:
        """As `Evaluator.evaluate`, later. A worker that is lost gives a verdict too."""

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        """As `Evaluator.contest`, on one worker."""

    def close(self) -> None:
        """End all workers, whatever they are at."""


class LocalExecutor:
    """`workers` evaluators, each with its server process, fed by as many threads. What is expected
    is computed once for all."""

    def __init__(
        self,
        problem: Problem,
        limits: Limits | None = None,
        workers: int = 1,
        make: Callable[..., Evaluator] = ChildEvaluator,
    ) -> None:
        if workers < 1:
            raise UsageError(f"{workers} workers are too few", hint="one is the least")
        self.workers = workers
        self._folder = Path(tempfile.mkdtemp(prefix="kir-tune-"))
        self._idle = [make(problem, limits, folder=self._folder) for _ in range(workers)]
        self._all = list(self._idle)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluate")

    def submit(
        self, derivation: str, seed: int | None = None, incumbent: float = 0.0
    ) -> Future[Verdict]:
        return self._pool.submit(self._evaluate, derivation, seed, incumbent)

    def _evaluate(self, derivation: str, seed: int | None, incumbent: float) -> Verdict:
        with self._lock:
            evaluator = self._idle.pop()
        try:
            return evaluator.evaluate(derivation, seed, incumbent)
        finally:
            with self._lock:
                self._idle.append(evaluator)

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        return self._all[0].contest(derivations, seed)

    def close(self) -> None:
        for evaluator in self._all:
            if isinstance(evaluator, ChildEvaluator):
                evaluator.close()  # a thread that waits for it gets a verdict then
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)
