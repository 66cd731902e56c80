"""The verifier: property-based evidence that a kernel, its schedule and a target agree.

    verify(item, module=m, target="cpu") -> Report        VerificationError on the first failure

The judge is the oracle: the spec in f64, each element with a bound on what a right computation may
give. Each rung of the report says what it shows, and only that: what ran is `verified`, what ran in
place of the hardware is `interpreted` or `simulated`, what was only compiled is `compiled`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kir.backend import Executable
from kir.cost import statements_run
from kir.errors import (
    EvaluationError,
    KirError,
    MissingHardwareError,
    UsageError,
    VerificationError,
)
from kir.graphs import resolve
from kir.interpret import Bounded, oracle, oracle_graph, run
from kir.interpret.domain import poisoned
from kir.ir import Graph, Kernel, Module
from kir.pipeline import Target, choose_steps
from kir.pipeline import schedule as apply_steps
from kir.rewrites import REWRITES
from kir.specialise import bind_defaults, infer_dims, output_shapes, specialise
from kir.syntax import format_kernel, format_module
from kir.testing import Example, describe_difference, examples, make_inputs, same_bits

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Item = Kernel | Graph
Runner = Callable[[Kernel, Arrays, Mapping[str, int]], dict[str, Array]]
"""Runs one kernel of the spec by some road."""

SHRINKING = 30.0
"""Seconds spent at most on making a failure small."""
INTERPRETED_STATEMENTS = 1000
"""Statements run at most on one example by Triton's interpreter: a second or two."""
SHOWN = 12
"""Inputs of at most so many elements are printed whole."""


@dataclass
class Rung:
    """One piece of evidence: `verdict` is proven, verified, interpreted, simulated or compiled."""

    name: str
    verdict: str
    shows: str
    runs: int = 0
    worst: float = 0.0
    """The greatest error seen, as a multiple of what the oracle allows."""
    note: str = ""

    def text(self) -> str:
        figures = f", {self.runs} runs, worst error {self.worst:.2f} of its bound" * bool(self.runs)
        note = f" ({self.note})" if self.note else ""
        return f"{self.verdict:>12}  {self.name}: {self.shows}{figures}{note}"


@dataclass
class Report:
    """What was shown about one kernel or graph."""

    name: str
    target: str | None
    seed: int
    rungs: list[Rung] = field(default_factory=list)
    shapes: list[dict[str, int]] = field(default_factory=list)
    elements: int = 0
    unbounded: int = 0
    """Of `elements` compared, those about which the oracle can say nothing."""
    rejected: int = 0
    """Examples that were no valid input: an index out of range."""
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
        if self.elements:
            share = 100 * self.unbounded / self.elements
            lines.append(
                f"  {self.elements} elements compared; for {share:.1f}% of them no bound can be "
                "given (overflow, or a decision within rounding)"
            )
        if self.rejected:
            lines.append(f"  {self.rejected} examples left out: an index was out of range")
        lines += [f"  degenerate: {d}" for d in self.degenerate]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass
class _Road:
    """A way to compute the item, and the rung that it is evidence for."""

    rung: Rung
    run: Callable[[Arrays, Mapping[str, int]], dict[str, Array]]
    repeat: bool = False
    """Whether to run twice, at new addresses."""
    contracts: bool = False
    """Whether products may go unrounded into sums: `fma`, or a matrix unit."""


def verify(
    item: Item,
    *,
    module: Module | None = None,
    target: str | None = None,
    via: str | None = None,
    arch: str | None = None,
    schedule: str | None = None,
    examples: int = 20,
    seed: int = 0,
    path: str | None = None,
) -> Report:
    """Check statically, then run by every road on drawn shapes and values against the oracle.

    Roads: the spec as written; the scheduled kernel, where a target or a schedule is named; the
    target itself (Triton's interpreter for GPUs, the simulator for accelerators). Raises
    VerificationError with the smallest example found, and the errors of the road itself.
    """
    if isinstance(item, Graph) and module is None:
        raise UsageError("a graph is verified with the module that holds its kernels")
    if (via or arch) and target is None:
        raise UsageError("`via` and `arch` belong to a target", hint="name it: --target nvidia")
    goal = Target(target, via, arch) if target else None
    report = Report(item.name, target, seed)
    run = _Run(
        item, module, goal, schedule, seed, _command(item, path, goal, schedule, examples, seed)
    )
    report.rungs.append(run.static())
    roads = run.roads()
    report.rungs += [r.rung for r in roads]
    run.search(roads, report, examples)
    if goal is not None:
        run.compiled(report)
    return report


def _command(
    item: Item, path: str | None, goal: Target | None, schedule: str | None, count: int, seed: int
) -> str:
    words = ["kir", "verify", path or "FILE", "--kernel", item.name]
    if goal is not None:
        words += ["--target", goal.name]
        words += ["--via", goal.via] if goal.via else []
        words += ["--arch", goal.arch] if goal.arch else []
    words += ["--schedule", schedule] if schedule else []
    return " ".join([*words, "--examples", str(count), "--seed", str(seed)])


@dataclass
class _Run:
    item: Item
    module: Module | None
    goal: Target | None
    choice: str | None
    seed: int
    command: str
    scheduled: dict[tuple[str, tuple[tuple[str, int], ...]], Kernel] = field(default_factory=dict)
    loaded: dict[tuple[str, tuple[tuple[str, int], ...]], Executable] = field(default_factory=dict)
    failure: VerificationError | None = None
    started: float = 0.0

    # --- what there is -----------------------------------------------------------------------

    def kernels(self) -> list[Kernel]:
        """The kernels involved, parameters bound to what each use gives them."""
        if isinstance(self.item, Kernel):
            return [self.item]
        assert self.module is not None
        named = self.module.kernels()
        return [named[n] for n in dict.fromkeys(c.kernel for c in self.item.calls)]

    def static(self) -> Rung:
        """Types, bounds of every access, races and promises, on symbolic shapes."""
        from kir.check import check_kernel

        for kernel in self.kernels():
            check_kernel(specialise(kernel))
        return Rung("static check", "proven", "accesses in bounds, no races, for all shapes")

    def stage(self, kernel: Kernel, dims: Mapping[str, int]) -> Kernel:
        """The kernel as scheduled, its parameters bound and all other dims symbolic."""
        from kir.check import check_kernel

        fixed = {d.name: dims[d.name] for d in kernel.dims if d.default is not None}
        key = (kernel.name, tuple(fixed.items()))
        if key not in self.scheduled:
            special = specialise(kernel, fixed)
            goal = self.goal or Target("cpu")
            found = apply_steps(special, choose_steps(special, goal, self.choice, self.module))
            check_kernel(found)
            self.scheduled[key] = found
        return self.scheduled[key]

    def executable(self, kernel: Kernel, dims: Mapping[str, int]) -> Executable:
        fixed = {d.name: dims[d.name] for d in kernel.dims if d.default is not None}
        key = (kernel.name, tuple(fixed.items()))
        if key not in self.loaded:
            assert self.goal is not None
            staged, backend = self.stage(kernel, dims), self.goal.backend
            if self.interpreted:
                artifact = backend.lower(staged, self.goal.name, self.goal.chip, "source")
                loader: Any = backend
                self.loaded[key] = loader.load(artifact, interpret=True)
            else:
                artifact = backend.lower(staged, self.goal.name, self.goal.chip)
                self.loaded[key] = backend.load(artifact)
        return self.loaded[key]

    @property
    def interpreted(self) -> bool:
        """Whether the target runs in Triton's interpreter."""
        return self.goal is not None and self.goal.backend.manifest.name == "triton"

    # --- the roads ---------------------------------------------------------------------------

    def roads(self) -> list[_Road]:
        written = Rung("spec", "verified", "the interpreter, in the dtypes as written")
        roads = [_Road(written, lambda x, d: self.walk(x, d, run))]
        if self.goal is None and self.choice is None:
            return roads
        steps = Rung("schedule", "verified", "the scheduled kernel in the interpreter")
        fused = self.contracts()
        roads.append(_Road(steps, lambda x, d: self.walk(x, d, self.run_scheduled), False, fused))
        if self.goal is None or not self.runs_here():
            return roads
        if self.interpreted:
            shows, verdict = "generated Triton in Triton's own interpreter", "interpreted"
        elif self.goal.name == "accel":
            shows, verdict = "compiled code on the accelerator's simulator", "simulated"
        else:
            shows, verdict = f"compiled code on this machine ({self.goal.chip})", "verified"
        rung = Rung(f"target {self.goal.name}", verdict, shows)
        rung.note = "run twice at new addresses, outputs poisoned before, inputs compared after"
        fused = fused or self.goal.name != "cpu"
        roads.append(_Road(rung, lambda x, d: self.walk(x, d, self.run_target), True, fused))
        return roads

    def contracts(self) -> bool:
        """Whether a step of the derivations used is one that changes roundings."""
        goal = self.goal or Target("cpu")
        for kernel, dims in self.uses():
            fixed = {d.name: dims[d.name] for d in kernel.dims if d.default is not None}
            steps = choose_steps(specialise(kernel, fixed), goal, self.choice, self.module)
            if any(REWRITES[s.rewrite].effect == "approximates" for s in steps):
                return True
        return False

    def runs_here(self) -> bool:
        """Whether the target can run at all; if not, `compiled` is all there will be."""
        if self.interpreted:
            return True
        try:
            for kernel, dims in self.uses():
                self.executable(kernel, dims)
        except MissingHardwareError:
            return False
        return True

    def uses(self) -> list[tuple[Kernel, dict[str, int]]]:
        """Each kernel with values for its parameters, those of its calls in a graph."""
        if isinstance(self.item, Kernel):
            return [(self.item, bind_defaults(self.item))]
        assert self.module is not None
        named = self.module.kernels()
        found = []
        for call in self.item.calls:
            kernel = named[call.kernel]
            given = {n: int(e.value) for n, e in call.dims if hasattr(e, "value")}
            found.append((kernel, bind_defaults(kernel, given)))
        return found

    def walk(self, inputs: Arrays, dims: Mapping[str, int], runner: Runner) -> dict[str, Array]:
        """The outputs of the item by a runner, call by call for a graph."""
        if isinstance(self.item, Kernel):
            return runner(self.item, inputs, dims)
        assert self.module is not None
        known = dict(inputs)
        for step in resolve(self.module, self.item, dims):
            names = (p.name for p in step.kernel.inputs)
            given = {n: known[a] for n, a in zip(names, step.call.args, strict=True)}
            made = runner(step.kernel, given, step.dims)
            for p, result in zip(step.kernel.outputs, step.call.results, strict=True):
                known[result] = made[p.name]
        return {p.name: known[p.name] for p in self.item.outputs}

    def run_scheduled(
        self, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int]
    ) -> dict[str, Array]:
        staged = self.stage(kernel, dims)
        return run(staged, inputs, {d.name: dims[d.name] for d in staged.dims})

    def run_target(
        self, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int]
    ) -> dict[str, Array]:
        program = self.executable(kernel, dims)
        left = {d.name: dims[d.name] for d in self.stage(kernel, dims).dims}
        shapes = output_shapes(kernel, dims)
        outputs = {p.name: poisoned(shapes[p.name], p.type) for p in kernel.outputs}
        return dict(program({n: a.copy() for n, a in inputs.items()}, left, outputs))

    # --- the search for a difference ---------------------------------------------------------

    def search(self, roads: Sequence[_Road], report: Report, count: int) -> None:
        """Draw examples, run all roads on each; VerificationError with a small failing one."""
        import hypothesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis.errors import HypothesisException

        stages = [self.stage(k, d) for k, d in self.uses()] if len(roads) > 1 else []
        passing = _Passing(self.item)
        quick = self.affordable if self.interpreted and len(roads) > 2 else None

        @hypothesis.seed(self.seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(examples(self.item, stages, self.module, affordable=quick))
        def try_one(example: Example) -> None:
            late = self.failure is not None and time.monotonic() - self.started > SHRINKING
            if not late:  # else let the shrinker run out: the smallest failure is kept
                self.one(example, roads, report, passing)

        try:
            try_one()
        except (VerificationError, HypothesisException):
            if self.failure is None:
                raise
            raise self.failure from None
        if not report.elements and not report.rejected:
            report.degenerate.append("no example had an output element")
        if report.elements and report.unbounded == report.elements:
            raise VerificationError(
                f"`{self.item.name}`: no output element has a bound, so nothing is shown",
                hint="the kernel divides by, or decides on, what rounding leaves open",
                kernel=self.item,
            )
        report.degenerate += passing.names()

    def one(
        self, example: Example, roads: Sequence[_Road], report: Report, passing: _Passing
    ) -> None:
        inputs = make_inputs(
            self.item, dict(example.dims), example.profile, example.seed, self.module
        )
        dims = infer_dims(self.item, {n: a.shape for n, a in inputs.items()}, dict(example.dims))
        try:
            wanted = self.oracle(inputs, dims)
            fused = wanted
            if any(r.contracts for r in roads):
                fused = self.oracle(inputs, dims, contraction=True)
        except EvaluationError:
            report.rejected += 1
            return
        if self.failure is None:
            shape = {n: v for n, v in dims.items() if n in self.open_dims()}
            if shape not in report.shapes:
                report.shapes.append(shape)
            report.elements += sum(b.bound.size for b in wanted.values())
            report.unbounded += sum(int(np.isinf(b.bound).sum()) for b in wanted.values())
            passing.see(inputs, wanted)
        before = {n: a.copy() for n, a in inputs.items()}
        for road in roads:
            for _ in range(2 if road.repeat else 1):
                self.judge(example, road, inputs, dims, fused if road.contracts else wanted)
            for name, array in before.items():
                if not same_bits(array, inputs[name]).all():
                    self.fail(example, road, inputs, f"the input `{name}` was changed")

    def affordable(self, dims: Mapping[str, int]) -> bool:
        """Whether Triton's interpreter, at a millisecond or so a statement, has it soon."""
        bound = infer_dims(self.item, {}, dims)
        if isinstance(self.item, Kernel):
            uses = [(self.item, bound)]
        else:
            assert self.module is not None
            uses = [(c.kernel, dict(c.dims)) for c in resolve(self.module, self.item, bound)]
        total = sum(statements_run(self.stage(k, d).body, d) for k, d in uses)
        return total <= INTERPRETED_STATEMENTS

    def open_dims(self) -> set[str]:
        return {d.name for d in self.item.dims if d.default is None}

    def oracle(
        self, inputs: Arrays, dims: Mapping[str, int], contraction: bool = False
    ) -> dict[str, Bounded]:
        if isinstance(self.item, Kernel):
            return oracle(self.item, inputs, dims, contraction)
        assert self.module is not None
        return oracle_graph(self.module, self.item, inputs, dims, contraction)

    def judge(
        self,
        example: Example,
        road: _Road,
        inputs: Arrays,
        dims: Mapping[str, int],
        wanted: Mapping[str, Bounded],
    ) -> None:
        try:
            got = road.run(inputs, dims)
        except EvaluationError as error:
            self.fail(example, road, inputs, f"it stopped: {error.message}")
        for name, bounded in wanted.items():
            array = np.asarray(got[name])
            if array.shape != bounded.value.shape or array.dtype != bounded.dtype.numpy:
                self.fail(
                    example,
                    road,
                    inputs,
                    f"`{name}` came out as {array.dtype}{list(array.shape)}, not "
                    f"{bounded.dtype.numpy}{list(bounded.value.shape)}",
                )
            errors = bounded.errors(array)
            worst = float(errors.max(initial=0.0))
            if worst > 1:
                self.fail(
                    example,
                    road,
                    inputs,
                    f"`{name}`\n" + describe_difference(bounded, array, errors),
                )
            if self.failure is None:
                road.rung.worst = max(road.rung.worst, worst)
        if self.failure is None:
            road.rung.runs += 1

    def fail(self, example: Example, road: _Road, inputs: Arrays, what: str) -> None:
        if self.failure is None:
            self.started = time.monotonic()
        given = "\n".join(
            f"  {name} = {array.tolist() if array.size <= SHOWN else _outline(array)}"
            for name, array in inputs.items()
        )
        programs = list(self.scheduled.values()) if road.rung.name != "spec" else self.kernels()
        text = "\n\n".join(map(format_kernel, programs))
        if isinstance(self.item, Graph):
            text = format_module(Module((self.item,))) + "\n\n" + text
        self.failure = VerificationError(
            f"`{self.item.name}` is wrong on the rung `{road.rung.name}` "
            f"({road.rung.shows}): {what}\n"
            f"for {example}\n{given}\nin\n{text}",
            hint=f"to see it again: {self.command}",
        )
        raise self.failure

    # --- what is compiled only ---------------------------------------------------------------

    def compiled(self, report: Report) -> None:
        """Compile for the target's chip, where that is more than what ran."""
        goal = self.goal
        assert goal is not None
        if not self.interpreted and any(r.name.startswith("target") for r in report.rungs):
            return
        for kernel, dims in self.uses():
            staged = self.stage(kernel, dims)
            try:
                goal.backend.lower(staged, goal.name, goal.chip)
            except KirError as error:
                raise error.at(kernel=staged) from None
        report.rungs.append(
            Rung(f"{goal.name} {goal.chip}", "compiled", "by the target's compiler; not run on it")
        )


def _outline(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}, drawn from the seed"


@dataclass
class _Passing:
    """Which trivial answers would have passed for each output, on all examples so far."""

    item: Item
    left: dict[tuple[str, str], bool] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def see(self, inputs: Arrays, wanted: Mapping[str, Bounded]) -> None:
        for name, bounded in wanted.items():
            value = bounded.value
            if not value.size:
                continue
            answers = {"zeros": np.zeros(value.shape, bounded.dtype.numpy)}
            if value.size > 1:
                with np.errstate(all="ignore"):
                    first = value.reshape(-1)[0].astype(bounded.dtype.numpy)
                answers["one value everywhere"] = np.full(value.shape, first)
            for p in self.item.inputs:
                array = inputs[p.name]
                if array.shape == value.shape and array.dtype == bounded.dtype.numpy:
                    answers[f"the input `{p.name}`"] = array
            for kind, answer in answers.items():
                passes = bool(bounded.accepts(answer).all())
                self.left[name, kind] = self.left.get((name, kind), True) and passes
            self.seen.add(name)

    def names(self) -> list[str]:
        return [f"{kind} would pass for `{name}`" for (name, kind), ok in self.left.items() if ok]
