"""The learned cost model: how much slower than the analytic model says a kernel runs, from its
features, by gradient boosting; fitted anew to the store's nodes while a search goes on.

It is kept in the store as what it was fitted to: the features and times of nodes. From those it is
fitted again, always to the same trees, so nothing has to be unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kir.agent.store import NodeRow, Store
from kir.errors import MissingExtraError

LEAST = 12
"""Samples below which the analytic model alone decides."""
MOST = 4000
EVERY = 8
"""Nodes after which it is fitted again."""
Sample = tuple[Mapping[str, float], float]
"""Features (`kir.agent.features`) and measured seconds."""


class CostModel:
    """Predicts the logarithm of seconds, up to a constant."""

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        known = [(f, t) for f, t in samples if "cycles" in f and t > 0][-MOST:]
        self.samples = len(known)
        self._names = sorted({name for f, _ in known for name in f})
        self._trees: Any = None
        if self.samples >= LEAST:
            rest = [math.log(t) - _cycles(f) for f, t in known]
            trees = _boosted()
            with _one_thread():  # after the import: it holds for what is loaded
                self._trees = trees.fit([self._row(f) for f, _ in known], rest)

    def predict(self, features: Mapping[str, float]) -> float:
        return self.predict_all([features])[0]

    def predict_all(self, many: Sequence[Mapping[str, float]]) -> list[float]:
        base = [_cycles(f) for f in many]
        if self._trees is None or not many:
            return base
        with _one_thread():
            found = self._trees.predict([self._row(f) for f in many])
        return [b + float(r) for b, r in zip(base, found, strict=True)]

    def _row(self, features: Mapping[str, float]) -> list[float]:
        return [features.get(name, 0.0) for name in self._names]


def _cycles(features: Mapping[str, float]) -> float:
    return features.get("cycles", 0.0) * math.log(2)


def _boosted() -> Any:
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as error:
        raise MissingExtraError(
            "the learned cost model needs scikit-learn, which is not installed",
            hint="pip install 'kir[agent]'",
        ) from error
    return HistGradientBoostingRegressor(
        max_iter=60, max_leaf_nodes=8, min_samples_leaf=3, learning_rate=0.15,
        early_stopping=False, random_state=0,
    )  # fmt: skip


def _one_thread() -> Any:
    """Few samples: threads that wait for one another, beside children that are timed, cost a
    thousand times what they save."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def samples_of(nodes: Iterable[NodeRow]) -> list[Sample]:
    """What can be learned from nodes: those that were verified and measured."""
    return [(n.features, n.seconds) for n in nodes if n.status == "ok" and n.seconds]


def earlier(store: Store, run: int) -> list[Sample]:
    """What runs before this one on the same target and chip measured."""
    this = store.run(run)
    like = [r for r in store.runs()
            if r.id < run and (r.target, r.arch) == (this.target, this.arch)]  # fmt: skip
    return [s for r in like for s in samples_of(store.nodes(r.id))]
