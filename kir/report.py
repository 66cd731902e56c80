"""What a verification showed: rungs, each with its verdict and what it is evidence for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kir.interpret import Bounded
from kir.ir import Graph, Kernel

Array = np.ndarray[Any, Any]


@dataclass
class Rung:
    """One piece of evidence: `verdict` is proven, verified, interpreted, simulated or compiled; or
    skipped, where it can say nothing."""

    name: str
    verdict: str
    shows: str
    runs: int = 0
    worst: float | None = None
    """The greatest error seen, as a multiple of what the oracle allows; None where bit for bit."""
    note: str = ""
    skipped: list[str] = field(default_factory=list)
    """Steps that this rung says nothing about, and why."""

    def text(self) -> str:
        figures = f", {self.runs} runs" * bool(self.runs)
        if self.runs and self.worst is not None:
            figures += f", worst error {self.worst:.2f} of its bound"
        note = f" ({self.note})" if self.note else ""
        lines = [f"{self.verdict:>12}  {self.name}: {self.shows}{figures}{note}"]
        lines += [f"{'skipped':>12}  {self.name}: {s}" for s in self.skipped]
        return "\n".join(lines)


@dataclass
class Report:
    """What was shown about one kernel or graph."""

    name: str
    target: str | None
    seed: int
    rungs: list[Rung] = field(default_factory=list)
    shapes: list[dict[str, int]] = field(default_factory=list)
    profiles: dict[str, int] = field(default_factory=dict)
    """How many examples there were of each kind of values."""
    elements: int = 0
    unbounded: int = 0
    """Of `elements` compared, those about which the oracle can say nothing."""
    rejected: int = 0
    """Examples that were no valid input: an index out of range."""
    approximations: list[str] = field(default_factory=list)
    """Steps of the derivation that approximate, each with the bound that it states."""
    loosened: int = 0
    """Runs judged by what the oracle allows for the scheduled kernel itself, as for a derivation
    that is not exact, since they were not within what it allows for the spec."""
    replayed: list[str] = field(default_factory=list)
    """Failures kept from earlier runs, and what became of them."""
    degenerate: list[str] = field(default_factory=list)
    """Outputs that a constant, zeros or an input would pass for on every example tried."""

    def text(self) -> str:
        where = f" on {self.target}" if self.target else ""
        lines = [f"{self.name}{where}: no difference found, seed {self.seed}"]
        lines += [r.text() for r in self.rungs]
        shapes = ", ".join(
            "x".join(map(str, s.values())) or "-"
            for s in self.shapes[:: max(1, len(self.shapes) // 8)]
        )
        lines.append(f"  {len(self.shapes)} shapes: {shapes}")
        if self.profiles:
            drawn = ", ".join(f"{n} {name}" for name, n in sorted(self.profiles.items()))
            lines.append(f"  values: {drawn}")
        if self.elements:
            share = 100 * self.unbounded / self.elements
            lines.append(
                f"  {self.elements} elements compared; for {share:.1f}% of them no bound can be "
                "given (overflow, or a decision within rounding)"
            )
        if self.rejected:
            lines.append(f"  {self.rejected} examples left out: an index was out of range")
        lines += [f"  approximates: {a}" for a in self.approximations]
        if self.loosened:
            lines.append(
                f"  {self.loosened} runs were beyond the spec's own bound, and within that of the "
                "scheduled kernel"
            )
        lines += [f"  kept failure {r}" for r in self.replayed]
        lines += [f"  degenerate: {d}" for d in self.degenerate]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass
class Passing:
    """Which trivial answers would have passed for each output, on all examples so far."""

    item: Kernel | Graph
    left: dict[tuple[str, str], bool] = field(default_factory=dict)

    def see(self, inputs: Mapping[str, Array], wanted: Mapping[str, Bounded]) -> None:
        for name, bounded in wanted.items():
            value = bounded.value
            if not value.size:
                continue
            for kind, answer in self._answers(inputs, bounded):
                passes = bool(bounded.accepts(answer).all())
                self.left[name, kind] = self.left.get((name, kind), True) and passes

    def _answers(
        self, inputs: Mapping[str, Array], bounded: Bounded
    ) -> Sequence[tuple[str, Array]]:
        value, dtype = bounded.value, bounded.dtype.numpy
        answers = [("zeros", np.zeros(value.shape, dtype))]
        if value.size > 1:
            with np.errstate(all="ignore"):
                first = value.reshape(-1)[0].astype(dtype)
            answers.append(("one value everywhere", np.full(value.shape, first)))
        for p in self.item.inputs:
            array = inputs[p.name]
            if array.shape == value.shape and array.dtype == dtype:
                answers.append((f"the input `{p.name}`", array))
        return answers

    def names(self) -> list[str]:
        return [f"{kind} would pass for `{name}`" for (name, kind), ok in self.left.items() if ok]
