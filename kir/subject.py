"""What is verified: a kernel or graph, its derivations, and the ways to compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kir.backend import Executable
from kir.cost import statements_run
from kir.errors import MissingHardwareError
from kir.graphs import ResolvedCall, resolve
from kir.interpret import Bounded, difference, oracle, oracle_graph, run, run_graph_ring
from kir.interpret.domain import poisoned
from kir.ir import Graph, Kernel, Module, Step
from kir.pipeline import Target, choose_steps, chosen_graph, expand
from kir.rewrites import Effect
from kir.specialise import bind_defaults, infer_dims, output_shapes, specialise
from kir.staged import Staged, finite, loosened, stage
from kir.testing import Example, describe_residues, make_inputs

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Item = Kernel | Graph
Runner = Callable[[Kernel, Arrays, Mapping[str, int]], dict[str, Array]]
"""Runs one kernel of the spec by some road."""
Key = tuple[str, tuple[tuple[str, int], ...]]
"""A kernel and the values of its parameters."""
INTERPRETED_STATEMENTS = 1000
"""Statements run at most on one example by Triton's interpreter: a second or two."""


@dataclass
class Subject:
    """`item`, for a target (None: the interpreter) and under a schedule by name or file."""

    item: Item
    module: Module | None
    goal: Target | None = None
    choice: str | None = None
    given: Mapping[str, Sequence[Step]] | None = None
    """Derivations by kernel, in the place of the chosen ones."""
    staged: dict[Key, Staged] = field(default_factory=dict)
    loaded: dict[Key, Executable] = field(default_factory=dict)

    @cached_property
    def rewritten(self) -> Subject:
        """What runs in the place of a graph for which a schedule of the graph itself was chosen;
        else this."""
        if isinstance(self.item, Kernel) or self.choice is None:
            return self
        assert self.module is not None
        module, graph, choice = chosen_graph(self.module, self.item, self.choice)
        if graph is self.item:
            return self
        return Subject(graph, module, self.goal, choice if self.goal else "none")

    @cached_property
    def graph_effect(self) -> Effect:
        """What the steps of the graph's own schedule may change."""
        if self.rewritten is self:
            return "exact"
        from kir.graph_derivation import graph_effect, replay_graph

        assert self.module is not None and self.choice is not None
        schedules = self.module.schedules()
        steps = expand(schedules[self.choice], schedules)
        made = replay_graph(self.module, self.item.name, steps)
        return graph_effect(self.module, self.item.name, made)

    def graph_in_ring(self, inputs: Arrays, dims: Mapping[str, int], seed: int) -> str | None:
        """How the graph as written and as rewritten differ in the ring, in words; None where they
        agree."""
        made = self.rewritten
        assert isinstance(self.item, Graph) and isinstance(made.item, Graph)
        assert self.module is not None and made.module is not None
        if self.graph_effect != "exact":  # laws of the reals: of finite inputs
            inputs = {n: finite(a) for n, a in inputs.items()}
        wanted = run_graph_ring(self.module, self.item, inputs, dims, seed)
        got = run_graph_ring(made.module, made.item, inputs, dims, seed)
        for name, residues in wanted.items():
            found = difference(residues, got[name])
            if found.wrong.any():
                shown = describe_residues(residues, got[name], found)
                taken = ", ".join(f"{n}={v}" for n, v in dims.items())
                return f"`{name}` of `{self.item.name}`, with {taken}\n{shown}"
        return None

    def kernels(self) -> list[Kernel]:
        """The kernels involved, parameters still open."""
        if isinstance(self.item, Kernel):
            return [self.item]
        assert self.module is not None
        named = self.module.kernels()
        return [named[n] for n in dict.fromkeys(c.kernel for c in self.item.calls)]

    def derives(self) -> bool:
        """Whether a derivation was asked for: a target's, a schedule's or a given one."""
        return self.goal is not None or self.choice is not None or self.given is not None

    def stage(self, kernel: Kernel, dims: Mapping[str, int]) -> Staged:
        """The kernel with its derivation, its parameters bound and all other dims symbolic."""
        from kir.check import check_kernel

        key = _key(kernel, dims)
        if key not in self.staged:
            special = specialise(kernel, dict(key[1]))
            goal = self.goal or Target("cpu")
            if self.given is not None and kernel.name in self.given:
                steps: Sequence[Step] = self.given[kernel.name]
            else:
                steps = choose_steps(special, goal, self.choice, self.module)
            found = stage(special, steps)
            check_kernel(found.kernel)
            self.staged[key] = found
        return self.staged[key]

    def scheduled(self, kernel: Kernel, dims: Mapping[str, int]) -> Kernel:
        return self.stage(kernel, dims).kernel

    def executable(self, kernel: Kernel, dims: Mapping[str, int]) -> Executable:
        key = _key(kernel, dims)
        if key not in self.loaded:
            self.loaded[key] = self.load(self.scheduled(kernel, dims))
        return self.loaded[key]

    def load(self, scheduled: Kernel) -> Executable:
        """The scheduled kernel compiled for the target; Triton's is interpreted."""
        assert self.goal is not None
        backend = self.goal.backend
        if self.interpreted:
            artifact = backend.lower(scheduled, self.goal.name, self.goal.chip, "source")
            loader: Any = backend
            loaded: Executable = loader.load(artifact, interpret=True)
            return loaded
        return backend.load(backend.lower(scheduled, self.goal.name, self.goal.chip))

    @property
    def interpreted(self) -> bool:
        """Whether the target runs in Triton's interpreter."""
        return self.goal is not None and self.goal.backend.manifest.name == "triton"

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

    def calls(self, dims: Mapping[str, int]) -> Sequence[ResolvedCall]:
        assert isinstance(self.item, Graph) and self.module is not None
        return resolve(self.module, self.item, dims)

    # --- running it ---------------------------------------------------------------------------

    def walk(self, inputs: Arrays, dims: Mapping[str, int], runner: Runner) -> dict[str, Array]:
        """The outputs of the item by a runner, call by call for a graph."""
        if isinstance(self.item, Kernel):
            return runner(self.item, inputs, dims)
        known: dict[str, Array] = dict(inputs)
        for step in self.calls(dims):
            names = (p.name for p in step.kernel.inputs)
            given = {n: known[a] for n, a in zip(names, step.call.args, strict=True)}
            made = runner(step.kernel, given, step.dims)
            for p, result in zip(step.kernel.outputs, step.call.results, strict=True):
                known[result] = made[p.name]
        return {p.name: known[p.name] for p in self.item.outputs}

    def run_scheduled(
        self, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int]
    ) -> dict[str, Array]:
        staged = self.scheduled(kernel, dims)
        return run(staged, inputs, {d.name: dims[d.name] for d in staged.dims})

    def run_target(
        self, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int]
    ) -> dict[str, Array]:
        program = self.executable(kernel, dims)
        left = {d.name: dims[d.name] for d in self.scheduled(kernel, dims).dims}
        shapes = output_shapes(kernel, dims)
        outputs = {p.name: poisoned(shapes[p.name], p.type) for p in kernel.outputs}
        return dict(program({n: a.copy() for n, a in inputs.items()}, left, outputs))

    def apart(
        self, example: Example, inputs: Arrays, dims: Mapping[str, int]
    ) -> list[tuple[Kernel, Arrays, Mapping[str, int]]]:
        """The kernels of the item, each with inputs and dims of its own."""
        if isinstance(self.item, Kernel):
            return [(self.item, inputs, dims)]
        found: list[tuple[Kernel, Arrays, Mapping[str, int]]] = []
        for call in self.calls(dims):
            own = make_inputs(call.kernel, call.dims, example.profile, example.seed)
            found.append((call.kernel, own, call.dims))
        return found

    def oracle(
        self, inputs: Arrays, dims: Mapping[str, int], contraction: bool = False
    ) -> dict[str, Bounded]:
        if isinstance(self.item, Kernel):
            return oracle(self.item, inputs, dims, contraction)
        assert self.module is not None
        return oracle_graph(self.module, self.item, inputs, dims, contraction)

    def allowed(
        self, inputs: Arrays, dims: Mapping[str, int], profile: str, fused: bool
    ) -> dict[str, Bounded] | None:
        """What derivations that are not exact may give, as `Staged.allowed` says; for a graph, what
        the oracle allows it with its scheduled kernels, or the one it was rewritten to."""
        if isinstance(self.item, Kernel):
            return self.stage(self.item, dims).allowed(inputs, dims, profile, fused)
        made = self.rewritten
        assert isinstance(made.item, Graph) and made.module is not None
        used = [made.stage(call.kernel, call.dims) for call in made.calls(dims)]
        if made is self and not any(s.loosens for s in used):
            return None
        fused = fused or any(s.effect == "approximates" for s in used)
        wanted = self.oracle(inputs, dims, fused)
        own = oracle_graph(made.module, made.item, inputs, dims, fused, made.scheduled)
        overflows = any(s.overflows(profile) for s in used)
        return {n: loosened(w, own[n], overflows) for n, w in wanted.items()}

    def affordable(self, dims: Mapping[str, int]) -> bool:
        """Whether Triton's interpreter, at a millisecond or so a statement, has it soon."""
        bound = infer_dims(self.item, {}, dims)
        if isinstance(self.item, Kernel):
            uses = [(self.item, bound)]
        else:
            uses = [(c.kernel, dict(c.dims)) for c in self.calls(bound)]
        total = sum(statements_run(self.scheduled(k, d).body, d) for k, d in uses)
        return total <= INTERPRETED_STATEMENTS


def _key(kernel: Kernel, dims: Mapping[str, int]) -> Key:
    fixed = {d.name: dims[d.name] for d in kernel.dims if d.default is not None}
    return kernel.name, tuple(fixed.items())
