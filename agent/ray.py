"""Evaluation on a Ray cluster: an actor for each worker, replaced where it is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from kir.agent.evaluate import ChildEvaluator, Limits, Problem, Verdict
from kir.errors import MissingExtraError, UsageError

TRIES = 3
"""How often a candidate is tried whose worker was lost; then the candidate is at fault."""


class RayExecutor:
    """`workers` actors on the cluster at `address` (None: one is started here), a core each. An
    actor evaluates like any worker, in confined children of its own."""

    def __init__(
        self, problem: Problem, limits: Limits | None, workers: int, address: str | None = None
    ) -> None:
        if workers < 1:
            raise UsageError(f"{workers} workers are too few", hint="one is the least")
        self._ray = _ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            try:
                self._ray.init(
                    address=address, log_to_driver=False, include_dashboard=False,
                    configure_logging=False, **({} if address else {"num_cpus": workers}),
                )  # fmt: skip
            except (ConnectionError, ValueError) as error:
                raise UsageError(
                    f"there is no Ray cluster at `{address}`: {error}",
                    hint="start one with `ray start --head`, or leave out --address",
                ) from None
        self.workers = workers
        self._given = (problem, limits)
        self._actor = self._ray.remote(num_cpus=1)(ChildEvaluator)
        self._lock = threading.Lock()
        self._idle = [self._new() for _ in range(workers)]
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ray")

    def _new(self) -> Any:
        return self._actor.remote(*self._given)

    def submit(
        self, derivation: str, seed: int | None = None, incumbent: float = 0.0
    ) -> Future[Verdict]:
        return self._pool.submit(self._evaluate, derivation, seed, incumbent)

    def _evaluate(self, derivation: str, seed: int | None, incumbent: float) -> Verdict:
        found = self._call("evaluate", derivation, seed, incumbent)
        return found if isinstance(found, Verdict) else Verdict("crashed", error=str(found))

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        found = self._call("contest", list(derivations), seed)
        return found if isinstance(found, list) else [None] * len(derivations)

    def _call(self, method: str, *args: Any) -> Any:
        """What an idle actor's method gives; a text that says why where the actors are lost."""
        with self._lock:
            actor = self._idle.pop()
        try:
            for _ in range(TRIES):
                try:
                    return self._ray.get(getattr(actor, method).remote(*args))
                except (
                    self._ray.exceptions.RayActorError,
                    self._ray.exceptions.WorkerCrashedError,
                ):
                    actor = self._new()
            return f"its worker was lost {TRIES} times"
        finally:
            with self._lock:
                self._idle.append(actor)

    def kill_one(self) -> None:
        """Kill an idle actor: for tests of what happens then."""
        self._ray.kill(self._idle[-1])

    def close(self) -> None:
        for actor in self._idle:
            self._ray.kill(actor)
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._started:
            self._ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "the executor `ray` needs Ray, which is not installed",
            hint="pip install 'kir[ray]'; the executor `local` needs nothing",
        ) from error
    return ray
