"""The road in one place: spec -> derivation -> scheduled IR -> artifact -> executable."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Backend, Executable, get_backend
from kir.derivation import from_json, replay
from kir.errors import ScheduleError, UnsupportedError, UsageError
from kir.graph_plan import plan_graph
from kir.graphs import resolve
from kir.ir import Define, Graph, Kernel, Module, Reduce, Schedule, Step, walk
from kir.specialise import infer_dims, specialise
from kir.syntax import load, parse

LOOPS = (Step("loops"),)


@dataclass(frozen=True)
class Target:
    """Where a kernel is to run: a target, the road to it, the chip; and whether indices that are
    read from tensors are checked while it runs."""

    name: str
    via: str | None = None
    arch: str | None = None
    debug: bool = False

    @property
    def backend(self) -> Backend:
        found = get_backend(self.name, self.via)
        return found.debug() if self.debug else found

    @property
    def chip(self) -> str:
        """The arch asked for (checked against the manifest), or the backend's default."""
        archs = self.backend.manifest.archs[self.name]
        if self.arch is None:
            return archs[0]
        is_file = self.arch.endswith(".toml")
        if self.arch not in archs and not is_file:
            raise UsageError(
                f"target `{self.name}` has no arch `{self.arch}`",
                hint="it has: " + ", ".join(archs),
            )
        return self.arch


def is_scheduled(kernel: Kernel) -> bool:
    """Whether a kernel is ready for a backend: no definition and no reduction is left."""
    return not any(isinstance(n, Define | Reduce) for n in walk(kernel))


def choose_steps(
    kernel: Kernel, target: Target, choice: str | None = None, module: Module | None = None
) -> tuple[Step, ...]:
    """The derivation to use: the target's default, `none` (canonical loops), the name of a
    `schedule` in the module, or a file that holds a schedule of this kernel."""
    if choice == "none":
        return () if is_scheduled(kernel) else LOOPS
    if choice is None:
        if is_scheduled(kernel):
            return ()
        return target.backend.default_schedule(kernel, target.name, target.chip)
    schedules = module.schedules() if module else {}
    if choice in schedules:
        return expand(schedules[choice], schedules)
    if not Path(choice).exists():
        known = ", ".join(schedules) or "none in this file"
        raise ScheduleError(
            f"there is no schedule or file `{choice}`", hint=f"schedules here: {known}"
        )
    if choice.endswith(".json"):
        derivation = from_json(load(choice).text)
        if derivation.kernel != kernel.name:
            raise ScheduleError(f"{choice} derives `{derivation.kernel}`, not `{kernel.name}`")
        return derivation.steps
    own = parse(load(choice)).schedules()
    found = [s for s in own.values() if s.kernel == kernel.name]
    if len(found) != 1:
        raise ScheduleError(f"{choice} holds {len(found)} schedules of `{kernel.name}`, not one")
    return expand(found[0], {**schedules, **own})


def expand(schedule: Schedule, known: Mapping[str, Schedule]) -> tuple[Step, ...]:
    """The steps of a schedule, each `use(other)` replaced by the steps of `other`.

    Raises ScheduleError for an unknown one, one of another kernel, or one that uses itself.
    """
    return tuple(_expanded(schedule, known, ()))


def _expanded(
    schedule: Schedule, known: Mapping[str, Schedule], around: tuple[str, ...]
) -> Iterator[Step]:
    for step in schedule.steps:
        if step.rewrite != "use":
            yield step
            continue
        name = step.args[0] if len(step.args) == 1 and not step.options else None
        if not isinstance(name, str):
            raise ScheduleError("`use` takes the name of a schedule", span=step.span,
                                hint="its form is `use(name)`")  # fmt: skip
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)
            raise ScheduleError(f"there is no schedule `{name}`", span=step.span,
                                hint="there is: " + ", ".join(near))  # fmt: skip
        if name in (*around, schedule.name):
            raise ScheduleError(f"`{name}` uses itself", span=step.span,
                                hint="write its steps out once")  # fmt: skip
        if known[name].kernel != schedule.kernel:
            raise ScheduleError(
                f"`{name}` is a schedule of `{known[name].kernel}`, not of `{schedule.kernel}`",
                span=step.span,
                hint="both are of one kernel",
            )
        yield from _expanded(known[name], known, (*around, schedule.name))


def chosen_graph(
    module: Module, graph: Graph, choice: str | None
) -> tuple[Module, Graph, str | None]:
    """The graph that a choice of schedule makes, with its module, and the choice left for its
    kernels. Where `choice` names a schedule of the graph itself, it is replayed, and each kernel
    gets its target's default, if a step has not scheduled it."""
    schedules = module.schedules()
    if choice not in schedules or schedules[choice].kernel != graph.name:
        return module, graph, choice
    from kir.graph_derivation import replay_graph  # the rewrites load only where they are used

    stages = replay_graph(module, graph.name, expand(schedules[choice], schedules))
    last = stages[-1][1] if stages else module
    return last, next(g for g in last.graphs().values() if g.name == graph.name), None


def schedule(kernel: Kernel, steps: tuple[Step, ...]) -> Kernel:
    """The kernel after all steps."""
    stages = replay(kernel, steps)
    return stages[-1][1] if stages else kernel


def lower(
    kernel: Kernel, target: Target, steps: tuple[Step, ...], stage: str | None = None
) -> Artifact:
    """Check the scheduled kernel and compile it, up to `stage` where given."""
    from kir.check import check_kernel  # islpy loads only where something is compiled

    scheduled = schedule(kernel, steps)
    check_kernel(scheduled)
    return target.backend.lower(scheduled, target.name, target.chip, stage)


def lower_graph(
    module: Module,
    graph: Graph,
    target: Target,
    dims: Mapping[str, int] | None = None,
    choice: str | None = None,
    stage: str | None = None,
) -> Artifact:
    """A graph as one artifact, on a target that makes such (`Manifest.graphs`).

    UnsupportedError where dims are left symbolic on which the kernels' depend in ways that only
    known dims can tell.
    """
    from kir.check import check_kernel

    def prepare(kernel: Kernel) -> Kernel:
        scheduled = schedule(kernel, choose_steps(kernel, target, choice, module))
        check_kernel(scheduled)
        return scheduled

    module, graph, choice = chosen_graph(module, graph, choice)
    plan = plan_graph(module, graph, dims or {}, prepare)
    return target.backend.lower_graph(plan, target.name, target.chip, stage)


def compile(
    item: Kernel | Graph,
    target: Target | str = "cpu",
    dims: Mapping[str, int] | None = None,
    choice: str | None = None,
    module: Module | None = None,
    threads: int = 0,
) -> Executable:
    """An executable for `item`. Dims that are not given stay symbolic (one compilation for all).

    `threads` = 0 leaves their number to the environment; UsageError where the target has no say.
    """
    goal = Target(target) if isinstance(target, str) else target
    if isinstance(item, Graph):
        if module is None:
            raise UsageError("a graph is compiled with the module that holds its kernels")
        return _compile_graph(module, item, goal, dims or {}, choice, threads)
    kernel = specialise(item, dims or {})
    steps = choose_steps(kernel, goal, choice, module)
    artifact = lower(kernel, goal, steps)
    return goal.backend.with_threads(artifact, threads) if threads else goal.backend.load(artifact)


def _compile_graph(
    module: Module, graph: Graph, goal: Target, dims: Mapping[str, int], choice: str | None,
    threads: int,
) -> Executable:  # fmt: skip
    """One function for all calls, where the target makes such and, of symbolic dims, what each
    kernel gets can be told; else call by call. Debug builds too go call by call."""
    if goal.backend.manifest.graphs and not goal.debug:
        try:
            artifact = lower_graph(module, graph, goal, dims, choice)
        except UnsupportedError:
            if all(d.name in dims or d.default is not None for d in graph.dims):
                raise
        else:
            backend = goal.backend
            return backend.with_threads(artifact, threads) if threads else backend.load(artifact)
    return GraphExecutable(module, graph, goal, choice, bool(dims), threads)


@dataclass
class GraphExecutable(Executable):
    """Runs a graph call by call. Kernels are compiled when their dims are first seen."""

    module: Module
    graph: Graph
    target: Target
    choice: str | None = None
    specialised: bool = True
    threads: int = 0
    compiled: dict[tuple[str, tuple[tuple[str, int], ...]], Executable] = field(
        default_factory=dict
    )

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        bound = infer_dims(self.graph, {n: a.shape for n, a in inputs.items()}, dims)
        tensors: dict[str, np.ndarray[Any, Any]] = dict(inputs)
        wanted = {p.name for p in self.graph.outputs}
        for step in resolve(self.module, self.graph, bound):
            args = {p.name: tensors[a] for p, a in zip(step.kernel.inputs, step.call.args)}
            results = dict(zip((p.name for p in step.kernel.outputs), step.call.results))
            given = None
            if outputs is not None and set(results.values()) <= wanted:
                given = {mine: outputs[theirs] for mine, theirs in results.items()}
            made = self._kernel(step.kernel, step.dims)(args, step.dims, given)
            tensors |= {results[mine]: array for mine, array in made.items()}
        return {name: tensors[name] for name in wanted}

    def _kernel(self, kernel: Kernel, dims: Mapping[str, int]) -> Executable:
        fixed = {d.name for d in kernel.dims if self.specialised or d.default is not None}
        chosen = {name: value for name, value in dims.items() if name in fixed}
        key = (kernel.name, tuple(sorted(chosen.items())))
        if key not in self.compiled:
            self.compiled[key] = compile(
                kernel, self.target, chosen, self.choice, self.module, self.threads
            )
        return self.compiled[key]
