"""The verifier: evidence, rung by rung, that a kernel, its derivation and a target agree.

    verify(item, module=m, target="cpu") -> Report        VerificationError on the first failure

1. static: types, bounds, races, coverage of the spec and of the scheduled kernel, on all shapes.
2. ring: spec and scheduled kernel bit for bit over finite fields (`kir.interpret.ring`).
3. numerical: the interpreter, on the spec and on the scheduled kernel, against the oracle: the spec
   in f64, each element with a bound on what a right computation may give.
4. the target: compiled code against the same.

Each rung of the report says what it shows, and only that: what ran is `verified`, what ran in
place of the hardware is `interpreted` or `simulated`, what was only compiled is `compiled`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kir.errors import (
    EvaluationError,
    KirError,
    OutputError,
    UsageError,
    VerificationError,
)
from kir.interpret import Bounded, run
from kir.ir import Graph, Kernel, Module, Schedule
from kir.pipeline import Target
from kir.regressions import Regression, read_all
from kir.report import Passing, Report, Rung
from kir.shrink import Culprit, shrink
from kir.specialise import infer_dims, specialise
from kir.staged import Staged, stage
from kir.subject import Array, Arrays, Item, Subject
from kir.syntax import format_kernel, format_module, format_step
from kir.testing import (
    Example,
    describe_difference,
    describe_residues,
    dims_choices,
    examples,
    make_inputs,
    same_bits,
)

SHRINKING = 30.0
"""Seconds spent at most on making a failing example small."""
SHOWN = 12
"""Inputs of at most so many elements are printed whole."""
RING_POINTS = 1 << 15
"""The greatest product of all dims of an example in the ring."""
PROVEN = "bit for bit in a field of 2^32 elements, up to a chance of about 2^-32 for each"


@dataclass
class _Case:
    """One example with its inputs, and what the oracle wants of it."""

    run: _Run
    example: Example
    inputs: dict[str, Array]
    dims: dict[str, int]
    wanted: Mapping[str, Bounded]

    @cached_property
    def fused(self) -> Mapping[str, Bounded]:
        """What is wanted where products may go unrounded into sums."""
        return self.run.oracle(self.inputs, self.dims, contraction=True)


@dataclass
class _Road:
    """A way to look for a difference, and the rung that it is evidence for. `check` says what is
    wrong, or None."""

    rung: Rung
    check: Callable[[_Case, _Road], str | None]
    derived: bool = True
    """Whether the derivation has a part in it."""
    fused: bool = False
    """Whether products may go unrounded into sums: `fma`, or a matrix unit."""


@dataclass(frozen=True)
class _Failure:
    case: _Case
    road: _Road
    inputs: Arrays
    """As they were before the run."""
    what: str


class _Stop(Exception):
    """A difference was found; it is `_Run.failure`."""


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
    regressions: Path | None = None,
) -> Report:
    """Check statically, then by every road on drawn shapes and values.

    Roads: the ring and the scheduled kernel, where a target or a schedule is named; the spec as
    written; the target itself (Triton's interpreter for GPUs, the simulator for accelerators). The
    failures kept in the folder `regressions` are tried first, and a new one is kept there. Raises
    VerificationError with the smallest example and derivation found, and the errors of the road
    itself.
    """
    if isinstance(item, Graph) and module is None:
        raise UsageError("a graph is verified with the module that holds its kernels")
    if (via or arch) and target is None:
        raise UsageError("`via` and `arch` belong to a target", hint="name it: --target nvidia")
    goal = Target(target, via, arch) if target else None
    report = Report(item.name, target, seed)
    command = _command(item, path, goal, schedule, examples, seed)
    run = _Run(item, module, goal, schedule, seed=seed, command=command, folder=regressions)
    kept = run.replay_kept(report)
    report.rungs.append(run.static())
    roads = run.roads()
    report.rungs += [r.rung for r in roads]
    report.approximations = run.stated()
    run.search(roads, report, examples, kept)
    if goal is not None:
        run.compiled(report)
    return report


def replay(regression: Regression) -> Report:
    """Try one kept failure again: VerificationError where it is still there, and RewriteError or
    ScheduleError where its derivation does not apply any more."""
    r = regression
    goal = Target(r.target, r.via, r.arch) if r.target else None
    choice = None if goal or r.rung == "spec" else "none"
    given = None if r.steps is None else {r.item: r.steps}
    report = Report(r.item, r.target, r.example.seed)
    run = _Run(r.program, r.module, goal, choice, given)
    report.rungs.append(run.static())
    roads = run.roads()
    report.rungs += [r.rung for r in roads]
    report.approximations = run.stated()
    try:
        run.one(regression.example, roads, report, None)
    except _Stop:
        raise run.told() from None
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
class _Run(Subject):
    seed: int = 0
    command: str = ""
    folder: Path | None = None
    """Where failures are kept."""
    failure: _Failure | None = None
    started: float = 0.0
    loosened: int = 0

    def static(self) -> Rung:
        """Types, bounds of every access, races and promises, on symbolic shapes."""
        from kir.check import check_kernel

        made = self.rewritten
        for kernel in dict.fromkeys((*self.kernels(), *made.kernels())):
            check_kernel(specialise(kernel))
        shows = "types, accesses in bounds, no races, every output written, for all shapes"
        if self.derives():
            for kernel, dims in made.uses():
                made.stage(kernel, dims)
            shows += ", of the spec and of the scheduled kernel"
        return Rung("static", "proven", shows)

    def stated(self) -> list[str]:
        """The steps that approximate, with their bounds."""
        found = [s for staged in self.rewritten.staged.values() for s in staged.stated()]
        return list(dict.fromkeys(found))

    # --- the roads ---------------------------------------------------------------------------

    def roads(self) -> list[_Road]:
        written = Rung("spec", "verified", "the interpreter, in the dtypes as written", worst=0.0)
        spec = _Road(
            written, lambda c, r: self.judge(c, r, lambda: self.walk(c.inputs, c.dims, run)), False
        )
        if not self.derives():
            return [spec]
        roads = [spec]
        if self.rewritten is not self or any(s.stages for s in self.staged.values()):
            ring = Rung("ring", "proven", f"spec and schedule {PROVEN}")
            if self.graph_effect == "approximates":
                ring.skipped.append("the steps of the graph: one of them approximates")
            roads.insert(0, _Road(ring, self.ring))
        what = "kernel" if self.rewritten is self else "graph"
        steps = Rung("schedule", "verified", f"the scheduled {what} in the interpreter", worst=0.0)
        roads.append(_Road(steps, self.check_scheduled))
        if self.goal is None or not self.rewritten.runs_here():
            return roads
        if self.interpreted:
            shows, verdict = "generated Triton in Triton's own interpreter", "interpreted"
        elif self.goal.name == "accel":
            shows, verdict = "compiled code on the accelerator's simulator", "simulated"
        else:
            shows, verdict = f"compiled code on this machine ({self.goal.chip})", "verified"
        rung = Rung(f"target {self.goal.name}", verdict, shows, worst=0.0)
        rung.note = "run twice at new addresses, outputs poisoned before, inputs compared after"
        roads.append(_Road(rung, self.check_target, fused=self.goal.name != "cpu"))
        return roads

    def check_spec(self, case: _Case, road: _Road) -> str | None:
        return self.judge(case, road, lambda: self.walk(case.inputs, case.dims, run))

    def check_scheduled(self, case: _Case, road: _Road) -> str | None:
        made = self.rewritten
        return self.judge(case, road, lambda: made.walk(case.inputs, case.dims, made.run_scheduled))

    def check_target(self, case: _Case, road: _Road) -> str | None:
        """Twice, at new addresses: what is read before it is written differs."""
        made = self.rewritten
        for _ in range(2):
            wrong = self.judge(
                case, road, lambda: made.walk(case.inputs, case.dims, made.run_target)
            )
            if wrong is not None:
                return wrong
        return None

    # --- the ring ----------------------------------------------------------------------------

    def ring(self, case: _Case, road: _Road) -> str | None:
        """Each kernel with its derivation; those of a graph on inputs of their own."""
        made = self.rewritten
        if made is not self and self.graph_effect != "approximates":
            inputs, dims = self.smaller_graph(case)
            apart = self.graph_in_ring(inputs, dims, case.example.seed)
            if apart is not None:
                return apart
            road.rung.runs += self.failure is None
        for kernel, inputs, dims in made.apart(case.example, case.inputs, case.dims):
            inputs, dims = self.smaller(kernel, inputs, dims, case.example)
            staged = made.stage(kernel, dims)
            try:
                found = staged.in_ring(inputs, dims, case.example.seed)
            except EvaluationError as error:
                return f"it stopped: {error.message}"
            if found.wrong is not None:
                name, wrong = next((n, d) for n, d in found.wrong.items() if d.wrong.any())
                shown = describe_residues(found.wanted[name], found.got[name], wrong)
                taken = ", ".join(f"{n}={v}" for n, v in dims.items())
                return f"`{name}` of `{kernel.name}`, with {taken}\n{shown}"
            if self.failure is None:
                road.rung.runs += bool(staged.segments())
                self.tell(road.rung, kernel, staged, found.unsure)
        return None

    def smaller(
        self, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int], example: Example
    ) -> tuple[Arrays, Mapping[str, int]]:
        """An example for the ring: another one, drawn with the same seed, where it is too large."""
        if _points({d.name: dims[d.name] for d in kernel.dims}) <= RING_POINTS:
            return inputs, dims
        staged = self.rewritten.stage(kernel, dims)
        choices = dims_choices(staged.spec, (staged.kernel,))
        fixed = {n: v for n, v in dims.items() if n not in {d.name for d in staged.spec.dims}}
        small = [c for c in choices if _points({**fixed, **c}) <= RING_POINTS] or choices[:1]
        chosen = {**fixed, **small[example.seed % len(small)]}
        return make_inputs(kernel, chosen, example.profile, example.seed), chosen

    def smaller_graph(self, case: _Case) -> tuple[Arrays, Mapping[str, int]]:
        """The example for the ring, as `smaller` has it, of the whole graph."""
        if _points(case.dims) <= RING_POINTS:
            return case.inputs, case.dims
        choices = dims_choices(self.item, module=self.module)
        small = [c for c in choices if _points(c) <= RING_POINTS] or choices[:1]
        dims = small[case.example.seed % len(small)]
        seed, profile = case.example.seed, case.example.profile
        return make_inputs(self.item, dims, profile, seed, self.module), dims

    def tell(self, rung: Rung, kernel: Kernel, staged: Staged, unsure: int) -> None:
        """Say in the report what the ring left out."""
        if unsure and not rung.note:
            rung.note = (
                "elements that hang on a third nested exp, or on a sign beside an infinity, "
            )
            rung.note += "were left out where they differ"
        for n in sorted(staged.excused):
            step = format_step(staged.stages[n][0])
            line = (
                f"step {n + 1} of `{kernel.name}`, `{step}`: it approximates, and is not exact in "
            )
            line += "the ring; the steps before it and after it are proven apart"
            if line not in rung.skipped:
                rung.skipped.append(line)

    # --- the search for a difference ---------------------------------------------------------

    def search(
        self, roads: Sequence[_Road], report: Report, count: int, kept: Sequence[Example]
    ) -> None:
        """Draw examples, run all roads on each; VerificationError with a small failing one."""
        import hypothesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis.errors import HypothesisException

        made = self.rewritten
        stages = [made.scheduled(k, d) for k, d in made.uses()] if self.derives() else []
        passing = Passing(self.item)
        quick = made.affordable if self.interpreted and self.goal else None

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
            for example in kept:
                self.one(example, roads, report, passing)
            try_one()
        except (_Stop, HypothesisException):
            if self.failure is None:
                raise
            raise self.told() from None
        if not report.elements and not report.rejected:
            report.degenerate.append("no example had an output element")
        if report.elements and report.unbounded == report.elements:
            raise VerificationError(
                f"`{self.item.name}`: no output element has a bound, so nothing is shown",
                hint="the kernel divides by, or decides on, what rounding leaves open",
                kernel=self.item,
            )
        report.degenerate += passing.names()
        for road in roads:
            if road.rung.name == "ring" and not road.rung.runs:
                road.rung.verdict = "skipped"

    def one(
        self, example: Example, roads: Sequence[_Road], report: Report, passing: Passing | None
    ) -> None:
        inputs = make_inputs(
            self.item, dict(example.dims), example.profile, example.seed, self.module
        )
        dims = infer_dims(self.item, {n: a.shape for n, a in inputs.items()}, dict(example.dims))
        try:
            case = _Case(self, example, inputs, dims, self.oracle(inputs, dims))
        except EvaluationError:
            report.rejected += 1
            return
        if self.failure is None:
            self.count(case, report)
            if passing is not None:
                passing.see(inputs, case.wanted)
        before = {n: a.copy() for n, a in inputs.items()}
        for road in roads:
            wrong = road.check(case, road)
            for name, array in before.items():
                if wrong is None and not same_bits(array, inputs[name]).all():
                    wrong = f"the input `{name}` was changed"
            if wrong is not None:
                if self.failure is None:
                    self.started = time.monotonic()
                self.failure = _Failure(case, road, before, wrong)
                raise _Stop
        report.loosened = self.loosened

    def count(self, case: _Case, report: Report) -> None:
        open_dims = {d.name for d in self.item.dims if d.default is None}
        shape = {n: v for n, v in case.dims.items() if n in open_dims}
        if shape not in report.shapes:
            report.shapes.append(shape)
        profile = case.example.profile
        report.profiles[profile] = report.profiles.get(profile, 0) + 1
        report.elements += sum(b.bound.size for b in case.wanted.values())
        report.unbounded += sum(int(np.isinf(b.bound).sum()) for b in case.wanted.values())

    def judge(
        self, case: _Case, road: _Road, compute: Callable[[], Mapping[str, Array]]
    ) -> str | None:
        """What is wrong with the outputs that a road gives, in words."""
        try:
            got = compute()
        except EvaluationError as error:
            return f"it stopped: {error.message}"
        wanted = case.fused if road.fused else case.wanted
        wrong, worst = _compare(got, wanted)
        if wrong is not None and road.derived:
            looser = self.allowed(case.inputs, case.dims, case.example.profile, road.fused)
            if looser is not None:
                wrong, worst = _compare(got, looser)
                self.loosened += wrong is None and self.failure is None
        if wrong is None and self.failure is None:
            road.rung.worst = max(road.rung.worst or 0.0, worst)
            road.rung.runs += 1
        return wrong

    # --- a failure ---------------------------------------------------------------------------

    def told(self) -> VerificationError:
        """The failure that was found, in full: where it comes from, how to see it again."""
        failure = self.failure
        assert failure is not None
        rung, case = failure.road.rung, failure.case
        given = "\n".join(
            f"  {name} = {array.tolist() if array.size <= SHOWN else _outline(array)}"
            for name, array in failure.inputs.items()
        )
        culprit = self.culprit(failure)
        return VerificationError(
            f"`{self.item.name}` is wrong on the rung `{rung.name}` ({rung.shows}): "
            f"{failure.what}\nfor {case.example}\n{given}\n"
            f"{self.program(failure.road, culprit)}",
            hint=f"to see it again: {self.command}{self.keep(failure, culprit)}",
        )

    def culprit(self, failure: _Failure) -> Culprit | None:
        """Which step of the derivation it is, for a kernel that has one."""
        if not isinstance(self.item, Kernel) or not failure.road.derived:
            return None
        case, name = failure.case, failure.road.rung.name
        staged = self.stage(self.item, case.dims)
        goal = self.goal if name.startswith("target") else None

        def fails(made: Staged) -> bool:
            staged = dict.fromkeys(self.staged, made)
            other = _Run(self.item, self.module, goal, "none", staged=staged)
            again = _Case(other, case.example, dict(failure.inputs), case.dims, case.wanted)
            roads = (r for r in other.roads() if r.rung.name == name)
            return any(road.check(again, road) is not None for road in roads)

        return shrink(staged.spec, staged.steps, fails) if staged.stages else None

    def program(self, road: _Road, culprit: Culprit | None) -> str:
        """What is wrong, as text: the derivation cut down to what it takes, and its result."""
        if not road.derived:
            text = "in\n" + "\n\n".join(map(format_kernel, self.kernels()))
        elif culprit is None:
            scheduled = [s.kernel for s in self.rewritten.staged.values()]
            text = "in\n" + "\n\n".join(map(format_kernel, scheduled))
        else:
            assert isinstance(self.item, Kernel)
            (spec,) = {s.spec for s in self.staged.values()}
            least = stage(spec, culprit.steps)
            schedule = Schedule("least", self.item.name, culprit.steps)
            step = format_step(culprit.step)
            text = f"first wrong after step {culprit.number}, `{step}`; it takes\n"
            text += format_module(Module((schedule,))) + "\nwhich makes\n"
            text += f"{format_kernel(least.kernel)}\nof\n{format_kernel(spec)}"
        if isinstance(self.rewritten.item, Graph):
            text = format_module(Module((self.rewritten.item,))) + "\n\n" + text
        return text

    def keep(self, failure: _Failure, culprit: Culprit | None) -> str:
        """Write the failure to the folder; words for the hint."""
        if self.folder is None:
            return ""
        if self.rewritten is not self:
            return " (failures of a graph's own schedule are not kept)"
        road, goal = failure.road, self.goal
        if not road.rung.name.startswith("target") and isinstance(self.item, Kernel):
            goal = None
        made = Regression(
            Module((*self.kernels(), *((self.item,) if isinstance(self.item, Graph) else ()))),
            self.item.name,
            road.rung.name,
            failure.what.splitlines()[0],
            failure.case.example,
            culprit.steps if culprit else None,
            goal.name if goal else None,
            goal.via if goal else None,
            goal.arch if goal else None,
        )
        try:
            path = made.save(self.folder)
        except OutputError as error:
            return f" (it could not be kept: {error.message})"
        return f", or, cut down: kir verify {path}"

    def replay_kept(self, report: Report) -> list[Example]:
        """Try the failures of this item that are kept; VerificationError where one is there still.
        Gives their examples, as far as they are examples for the item as it is now."""
        found: list[Example] = []
        for path, kept in read_all(self.folder) if self.folder else ():
            if isinstance(kept, KirError):
                report.replayed.append(f"{path.name}: left out: {kept.message}")
                continue
            if kept.item != self.item.name:
                continue
            try:
                replay(kept)
                report.replayed.append(f"{path.name}: right now")
            except VerificationError as error:
                error.message = f"a failure that was kept is there still: {error.message}"
                error.hint = f"to see it again: kir verify {path}"
                raise
            except KirError as error:
                report.replayed.append(f"{path.name}: does not apply any more: {error.message}")
            if self.fits(kept.example):
                found.append(kept.example)
        return found

    def fits(self, example: Example) -> bool:
        """Whether an example is one for this item, its constraints included."""
        try:
            make_inputs(self.item, dict(example.dims), example.profile, example.seed, self.module)
        except KirError:
            return False
        return True

    # --- what is compiled only ---------------------------------------------------------------

    def compiled(self, report: Report) -> None:
        """Compile for the target's chip, where that is more than what ran."""
        goal = self.goal
        assert goal is not None
        if not self.interpreted and any(r.name.startswith("target") for r in report.rungs):
            return
        made = self.rewritten
        for kernel, dims in made.uses():
            scheduled = made.scheduled(kernel, dims)
            try:
                goal.backend.lower(scheduled, goal.name, goal.chip)
            except KirError as error:
                raise error.at(kernel=scheduled) from None
        report.rungs.append(
            Rung(f"{goal.name} {goal.chip}", "compiled", "by the target's compiler; not run on it")
        )


def _points(dims: Mapping[str, int]) -> int:
    return math.prod(max(v, 1) for v in dims.values())


def _outline(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}, drawn from the seed"


def _compare(got: Mapping[str, Array], wanted: Mapping[str, Bounded]) -> tuple[str | None, float]:
    """What is wrong with outputs, or None; and the worst error as a multiple of its bound."""
    worst = 0.0
    for name, bounded in wanted.items():
        array = np.asarray(got[name])
        if array.shape != bounded.value.shape or array.dtype != bounded.dtype.numpy:
            made = f"{array.dtype}{list(array.shape)}"
            due = f"{bounded.dtype.numpy}{list(bounded.value.shape)}"
            return f"`{name}` came out as {made}, not {due}", math.inf
        errors = bounded.errors(array)
        worst = max(worst, float(errors.max(initial=0.0)))
        if worst > 1:
            return f"`{name}`\n" + describe_difference(bounded, array, errors), worst
    return None, worst
