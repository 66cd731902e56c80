"""`tune` and `replay`: the search as the command line and Python users call it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kir
from kir.agent import rules, sandbox
from kir.agent.evaluate import MODELLED, STATUSES, ChildEvaluator, Limits, Problem, Verdict
from kir.agent.executor import Executor, LocalExecutor
from kir.agent.gpu_features import analyser
from kir.agent.graph import Variant
from kir.agent.graph.policy import make_policy
from kir.agent.model import earlier
from kir.agent.proposer import Derivation, Proposer
from kir.agent.search import Budget, Clock, Event, Search
from kir.agent.search import drafts as as_drafts
from kir.agent.store import NodeRow, RunRow, Store
from kir.agent.variant import derivation_text, parse_derivation, specialised
from kir.derivation import kernel_hash
from kir.errors import KirError, StoreError, UsageError, VerificationError
from kir.ir import Kernel, Module
from kir.pipeline import LOOPS, Target, choose_steps, is_scheduled, schedule
from kir.specialise import infer_dims, specialise
from kir.syntax import format_module

if TYPE_CHECKING:
    from kir.agent.chat import Settings

DEFAULT_STORE = "sqlite:///kir-tune.db"
FINALISTS = 8
"""How many of the fittest variants compete at the end."""
WARM = 4
"""How many derivations of earlier searches for a kernel of this name are tried first."""
PROPOSERS = ("rules", "openai")
EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Result:
    """What a search found. `seconds` and `baseline_seconds` of the best variant are re-timed after
    the search on inputs that the search never saw; `speedup` is the median of baseline over best
    in neighbouring runs, `spread` their quartiles. `statuses` counts the nodes by verdict,
    `proposals` the proposals that did not apply (`inapplicable`) or gave IR that was seen before
    (`duplicate`); `spent` is what the proposer used. Where `modelled`, seconds are what a model
    says of a target that nothing is measured on, and have no spread. `rungs` says what of the best
    variant was verified, `dims` for which shape it is."""

    run: int
    node: int
    derivation: str
    seconds: float
    baseline_seconds: float
    speedup: float
    spread: tuple[float, float]
    statuses: Mapping[str, int]
    proposals: Mapping[str, int]
    evaluations: int
    elapsed: float
    interrupted: bool
    spent: Mapping[str, float]
    modelled: bool = False
    rungs: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Replayed:
    """A stored variant, rebuilt: its IR is that of the search, and its verdict is new."""

    node: NodeRow
    run: RunRow
    kernel: Kernel
    verdict: Verdict


def tune(kernel: Kernel, dims: Mapping[str, int], target: str = "cpu", **options: Any) -> Result:
    """`tune_shapes` for one shape: the same options and errors."""
    return tune_shapes(kernel, [dims], target, **options)[0]


def tune_shapes(
    kernel: Kernel,
    shapes: Sequence[Mapping[str, int]],
    target: str = "cpu",
    *,
    via: str | None = None,
    arch: str | None = None,
    budget_s: float | None = 60.0,
    evaluations: int | None = None,
    store: str = DEFAULT_STORE,
    seed: int = 0,
    resume: bool = False,
    start: str = "default",
    policy: str = "mcts",
    proposer: str = "rules",
    workers: int = 1,
    executor: str = "local",
    address: str | None = None,
    stall: int | None = None,
    fitness: float | None = None,
    model: Settings | None = None,
    limits: Limits | None = None,
    on_event: Callable[[Event], None] | None = None,
    clock: Clock = time.monotonic,
) -> list[Result]:
    """Search for schedules of `kernel` that are faster than the target's default, each shape (its
    dims) for itself: what is fast at one is not at another. They take turns, and what was best at
    one is tried at the others; the store then dispatches by shape (`dispatch.py`).

    `start` is where the search begins: `default` schedule or canonical `loops`; the yardstick is
    the default schedule either way. From the default schedule, the best derivations that the store
    holds for a kernel of this name are tried too. It ends after `budget_s` seconds or so many
    `evaluations`, shared by all shapes; for one shape sooner, after `stall` evaluations without a
    new best, or at a `fitness`. `executor` is `local` or `ray` (with the `address` of a cluster),
    with so many `workers`; `model` says which model the proposer `openai` asks, and what it may
    cost in all. With `resume`, the latest run in the store that asked for the same search goes on
    (UsageError where there is none). Raises VerificationError where the default schedule itself
    fails, StoreError where the store does.
    """
    if start not in ("default", "loops"):
        raise UsageError(f"a search starts from `default` or `loops`, not `{start}`")
    problems = _problems(kernel, shapes, Target(target, via, arch), seed)
    settings = {"start": start, "policy": policy, "proposer": proposer, "via": via}
    with contextlib.ExitStack() as stack:
        database = Store(store)
        stack.callback(database.close)
        sessions: list[_Session] = []
        shared: Proposer | None = None
        for problem in problems:
            run = _open_run(database, problem, settings, resume)
            helper = make_executor(executor, problem, limits, workers, address)
            stack.callback(helper.close)
            shared = shared if proposer == "openai" else None  # its budget is of all shapes
            shared = shared or make_proposer(proposer, database, run.id, target, model)
            spec = specialised(problem)
            baseline = parse_derivation(problem.baseline)
            search = Search(
                run=run.id,
                spec=spec,
                store=database,
                executor=helper,
                policy=make_policy(policy),
                proposer=shared,
                seed=seed,
                baseline_hash=kernel_hash(schedule(spec, baseline)),
                provenance=provenance(),
                analyse=analyser(target, problem.arch),
                shape=problem.dims if len(problems) > 1 else {},
                clock=clock,
                on_event=on_event,
            )
            roots = _roots(database, spec, baseline, start, target, problem.arch)
            sessions.append(_Session(search, helper, problem, roots))
        _take_turns(sessions, Budget(budget_s, evaluations, stall, fitness))
        reached = [s for s in sessions if s.search.graph.variants]  # Ctrl-C may leave some out
        return [session.finish(database) for session in reached or sessions]


TURNS = 3
"""How often each of several shapes has its turn."""


@dataclass
class _Session:
    """The search for one shape."""

    search: Search
    executor: Executor
    problem: Problem
    roots: tuple[Derivation, ...]

    def finish(self, database: Store) -> Result:
        """Re-time what is best, and close the run."""
        found = replace(_best(self.search, self.executor), dims=self.problem.dims)
        status = "interrupted" if found.interrupted else "done"
        database.finish_run(found.run, status, _summary(found))
        return found


def _problems(
    kernel: Kernel, shapes: Sequence[Mapping[str, int]], goal: Target, seed: int
) -> list[Problem]:
    """What is tuned: a problem for each shape, given twice or not."""
    if not shapes:
        raise UsageError("a search needs a shape", hint="name it: --shape M=4096,N=4096")
    found: dict[tuple[tuple[str, int], ...], Problem] = {}
    for dims in shapes:
        bound = infer_dims(kernel, {}, dims)
        key = tuple(sorted(bound.items()))
        if key in found:
            continue
        found[key] = Problem(
            source=format_module(Module((kernel,))),
            kernel=kernel.name,
            dims=bound,
            target=goal.name,
            via=goal.via,
            arch=goal.chip,
            baseline=derivation_text(kernel.name, choose_steps(specialise(kernel, bound), goal)),
            seed=seed,
        )
    return list(found.values())


def _take_turns(sessions: Sequence[_Session], budget: Budget) -> None:
    """Spend the budget; of several shapes each in its turn, and then with what was best at the
    others."""
    turns = 1 if len(sessions) == 1 else TURNS
    for turn in range(1, turns + 1):
        share = turn / turns / len(sessions)
        part = replace(
            budget,
            seconds=None if budget.seconds is None else budget.seconds * share,
            evaluations=None
            if budget.evaluations is None
            else max(1, math.ceil(budget.evaluations * share)),
        )
        for session in sessions:
            bests = [s.search.graph.best() for s in sessions if s is not session]
            others = tuple(v.steps for v in bests if v is not None)
            session.search.go(as_drafts((*session.roots[:1], *others, *session.roots[1:])), part)
            if session.search.interrupted:
                return


def make_proposer(
    name: str, store: Store, run: int, target: str = "cpu", model: Settings | None = None
) -> Proposer:
    """UsageError for an unknown one."""
    if name == "rules":
        return rules.Rules(
            earlier(store, run),
            target=target,
            expressible=_form(target),
            analyse=analyser(target, store.run(run).arch),
        )
    if name == "openai":
        from kir.agent.chat import Model

        return Model(store, target, model)
    raise UsageError(f"unknown proposer `{name}`", hint=f"there are: {', '.join(PROPOSERS)}")


def _form(target: str) -> Callable[[Kernel], object] | None:
    """What raises a KirError where a modelled target has no form for scheduled IR."""
    if target not in MODELLED:
        return None
    from kir.backends.triton.host import generate

    return generate


def _has_form(target: str, spec: Kernel, steps: Derivation) -> bool:
    form = _form(target)
    try:
        if form is not None:
            form(schedule(spec, steps))
    except KirError:
        return False
    return True


def make_executor(
    name: str, problem: Problem, limits: Limits | None, workers: int, address: str | None
) -> Executor:
    """UsageError for an unknown one."""
    if name == "local":
        return LocalExecutor(problem, limits, workers)
    if name == "ray":
        from kir.agent.ray import RayExecutor

        return RayExecutor(problem, limits, workers, address)
    raise UsageError(f"unknown executor `{name}`", hint=f"there are: {', '.join(EXECUTORS)}")


def _roots(
    database: Store, spec: Kernel, baseline: Derivation, start: str, target: str, arch: str
) -> tuple[Derivation, ...]:
    """Where the search begins: the default schedule's derivation, or that of canonical loops; then
    the drafts: what did well before, and what the analytic model likes."""
    likes = analyser(target, arch)
    own = [
        d for d in rules.drafts(spec, analyse=likes, target=target) if _has_form(target, spec, d)
    ]
    if start == "loops":
        return (() if is_scheduled(spec) else LOOPS, *own)
    earlier = [parse_derivation(node.derivation)
               for _, node in database.best_nodes(spec.name, target, WARM)]  # fmt: skip
    return tuple(dict.fromkeys((baseline, *earlier, *own)))


def _open_run(
    database: Store, problem: Problem, settings: Mapping[str, object], resume: bool
) -> RunRow:
    key = json.dumps([asdict(problem), dict(settings)], sort_keys=True)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    if resume:
        found = database.find_run(fingerprint)
        if found is None:
            raise UsageError(
                f"the store `{database.url}` holds no such search to resume",
                hint="kernel, dims, target, seed, start and policy must be the same",
            )
        database.finish_run(found.id, "running", found.result)
        return found
    row = RunRow(
        id=0,
        fingerprint=fingerprint,
        kernel=problem.kernel,
        source=problem.source,
        dims=problem.dims,
        target=problem.target,
        arch=problem.arch,
        baseline=problem.baseline,
        seed=problem.seed,
        status="running",
        settings=settings,
        provenance=provenance(),
        result={},
    )
    return replace(row, id=database.add_run(row))


def _best(search: Search, executor: Executor) -> Result:
    """The best of the fittest variants and the root, by new timings on inputs that are new.

    The fittest of many noisy timings is partly the luckiest, so the finalists compete again, and
    the one that wins is timed once more for the figures that are reported. Where that denies that
    it is faster than the default, the search's start is what was found.
    """
    good = list(search.graph.good())
    if not good:
        raise VerificationError(f"no schedule of `{search.spec.name}` holds", kernel=search.spec)
    ranked = sorted(good, key=lambda v: (-v.fitness, v.id))
    finalists = list(dict.fromkeys([*ranked[:FINALISTS], good[0]]))
    texts = {v: derivation_text(search.spec.name, v.steps) for v in finalists}
    again = dict(
        zip(finalists, executor.contest(list(texts.values()), search.seed + 1), strict=True)
    )

    def place(v: Variant) -> tuple[float, int]:
        fitness = 1.0 if v.ir_hash == search.baseline_hash else again[v] or 0.0
        return fitness, -v.id

    best = max(finalists, key=place)
    for variant in dict.fromkeys([best, good[0]]):
        verdict = executor.submit(texts[variant], search.seed + 2).result()
        if verdict.status == "ok" and variant.ir_hash == search.baseline_hash:
            verdict = replace(verdict, fitness=1.0, baseline_seconds=verdict.seconds)
        if verdict.seconds is None or verdict.baseline_seconds is None:
            continue
        if verdict.fitness < 1 and variant is not good[0] and place(good[0])[0] > verdict.fitness:
            continue
        return Result(
            run=search.run,
            node=variant.id,
            derivation=texts[variant],
            seconds=verdict.seconds,
            baseline_seconds=verdict.baseline_seconds,
            speedup=verdict.fitness,
            spread=_spread(verdict),
            statuses={k: n for k, n in search.counts.items() if k in STATUSES},
            proposals={k: n for k, n in search.counts.items() if k not in STATUSES},
            evaluations=len(search.graph.variants),
            elapsed=search.elapsed,
            interrupted=search.interrupted,
            spent=dict(search.proposer.spent()),
            modelled="modelled" in verdict.report,
            rungs=tuple(str(r) for r in verdict.report.get("rungs", ())),
        )
    raise VerificationError(
        f"no schedule of `{search.spec.name}` holds on fresh inputs", kernel=search.spec
    )


def _spread(verdict: Verdict) -> tuple[float, float]:
    """The quartiles of the ratios that a verdict's samples give."""
    samples = verdict.report.get("samples")
    if not isinstance(samples, list) or len(samples) != 2 or len(samples[0]) < 2:
        return verdict.fitness, verdict.fitness
    quartiles = statistics.quantiles([b / a for a, b in zip(*samples, strict=True)], n=4)
    return quartiles[0], quartiles[2]


def _summary(found: Result) -> dict[str, object]:
    return {
        "node": found.node,
        "seconds": found.seconds,
        "baseline_seconds": found.baseline_seconds,
        "speedup": found.speedup,
        "spread": list(found.spread),
        "evaluations": found.evaluations,
        "statuses": dict(found.statuses),
        "elapsed": found.elapsed,
        "spent": dict(found.spent),
        "modelled": found.modelled,
        "rungs": list(found.rungs),
    }


def replay(store: str, node: int, *, limits: Limits | None = None, seed: int = 1) -> Replayed:
    """Rebuild a stored variant from its derivation, and verify and measure it on fresh inputs.

    StoreError where the store lacks the node, or where the derivation no longer gives the same
    IR; what the verdict is, the caller looks at.
    """
    database = Store(store, create=False)
    try:
        row = database.node(node)
        run = database.run(row.run)
    finally:
        database.close()
    via = run.settings.get("via")
    problem = Problem(
        run.source, run.kernel, run.dims, run.target, via, run.arch, run.baseline, run.seed + seed
    )
    kernel = schedule(specialised(problem), parse_derivation(row.derivation))
    if kernel_hash(kernel) != row.ir_hash:
        raise StoreError(
            f"the derivation of node {node} no longer gives the IR that was stored",
            hint="its rewrites have changed since; tune again",
            kernel=kernel,
        )
    with ChildEvaluator(problem, limits) as evaluator:
        return Replayed(row, run, kernel, evaluator.evaluate(row.derivation))


def provenance() -> dict[str, object]:
    """The machine and the versions that a measurement depends on."""
    packages = {}
    for name in ("numpy", "llvmlite", "islpy", "triton", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "kir": kir.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": packages,
        "confinement": sandbox.available().text(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
