"""PyTorch's own operator database (OpInfo) through `torch.compile(backend="kir")`.

    python -m benchmarks.opinfo --dtypes float32 bfloat16 --json benchmarks/results/opinfo.json \\
        --markdown docs/torch-operators.md

Every operator of `op_db` is compiled under `strict` and as one graph, for each sample apart, and
called twice, the second time with other values; both results are compared with eager's. An operator
counts for a dtype when all samples that were tried pass. What a sample is held to:

- values, by `torch.testing.assert_close`; a result that fails it passes where it is no farther from
  eager in float64 than eager itself is. Operators that draw random numbers (`DRAWN`), or whose
  memory nobody wrote, are held to shapes and dtypes alone, and are counted apart;
- work: the second call is profiled, and no ATen operator runs in it but those of `MOVES`;
- time: samples run in child processes, which a limit of processor time ends.

Samples are chosen without chance: some spread evenly over OpInfo's, then the first that has an
empty tensor, the first whose tensors are broadcast, and the first again with gaps in its memory.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.machine import description
from benchmarks.opinfo_table import Outcome, Results, missing, record, summary, table

DTYPES = ("float32", "bfloat16", "int64", "bool")
MOVES = frozenset((
    "empty", "empty_strided", "empty_like", "as_strided", "view", "_unsafe_view", "reshape",
    "_reshape_alias", "permute", "transpose", "t", "expand", "slice", "select", "squeeze",
    "unsqueeze", "alias", "detach", "detach_", "contiguous", "clone", "copy_", "diagonal",
    "lift_fresh", "resolve_conj", "resolve_neg", "set_", "numpy_T", "unfold", "resize_", "unbind",
    "view_as", "expand_as", "narrow", "split", "split_with_sizes", "chunk", "is_nonzero",
    "mT", "mH", "matrix_H", "adjoint", "result_type", "to", "_to_copy",
    "random_", "item", "_local_scalar_dense", "lift",
))  # fmt: skip
"""What PyTorch may run around a compiled call: memory, views, copies of inputs whose strides are
not those compiled for and of results into what the caller mutated, the seed of random numbers."""
DRAWN = re.compile(
    r"rand|bernoulli|multinomial|^normal|dropout(?!_back)|cauchy|^exponential|geometric|log_normal|uniform|"
    r"rrelu|^empty|new_empty|resize_|fractional|lowrank"
)
"""Operators whose values are not compared, besides those whose results a seed decides."""
SEEDS = (1, 2, 3)
REFUSED = (
    RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError,
)  # fmt: skip
"""What eager raises where it does not take a sample: it is none then."""
ORDERED = {
    "sort": ("dim", "descending"), "argsort": ("dim", "descending"),
    "topk": ("k", "dim", "largest", "sorted"),
}  # fmt: skip
"""Operators whose indices are of equal elements in an order of their own, and their arguments."""


def operators() -> dict[str, Any]:
    """OpInfo's entries by name and variant."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {name_of(op): op for op in op_db}


_NAMES: dict[str, str] = {}


def operator_of(name: str) -> str:
    """The name without the variant."""
    if not _NAMES:
        _NAMES.update((k, op.name) for k, op in operators().items())
    return _NAMES[name]


def name_of(op: Any) -> str:
    variant = f".{op.variant_test_name}" if op.variant_test_name else ""
    return f"{op.name}{variant}"


def chosen(op: Any, dtype: Any, most: int) -> list[tuple[Any, Any]]:
    """Samples, each with a like one of other values."""
    import torch

    def made(seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return list(op.sample_inputs("cpu", dtype, requires_grad=False))

    found, again = made(0), made(1)
    picked = sorted({k * len(found) // most for k in range(most)} if found else set())
    for test in (_is_empty, _is_broadcast):
        picked += [k for k, s in enumerate(found) if test(s) and k not in picked][:1]
    pairs = [(found[k], again[k]) for k in picked if k < len(again)]
    if found and again:
        pairs.append((found[0].noncontiguous(), again[0].noncontiguous()))
    return pairs


def _tensors(sample: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [x for x in leaves if isinstance(x, torch.Tensor)]


def _is_empty(sample: Any) -> bool:
    return any(t.numel() == 0 for t in _tensors(sample))


def _is_broadcast(sample: Any) -> bool:
    return len({tuple(t.shape) for t in _tensors(sample)}) > 1


def examine(op: Any, dtype: Any, most: int) -> Iterator[Outcome]:
    """The outcome of each sample that eager itself takes."""
    for first, second in chosen(op, dtype, most):
        begun = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _sample(op, first, second)
        if found is not None:
            yield replace(found, seconds=round(time.process_time() - begun, 3))


def _sample(op: Any, first: Any, second: Any) -> Outcome | None:
    import torch
    from torch._dynamo.exc import TorchDynamoException

    from kir.errors import KirError
    from kir.frontends.torch import backend

    counted = 0

    def counting(module: Any, inputs: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        return backend(module, inputs, **options)

    operator = _function(op)

    def f(*args: Any, **kwargs: Any) -> Any:
        return operator(*args, **kwargs)

    torch._dynamo.reset()
    function = torch.compile(
        f, backend=counting, options={"strict": True}, dynamic=False, fullgraph=True
    )
    draws = DRAWN.search(op.name) is not None
    for sample in (first, second):
        try:
            wanted = [_called(f, sample, seed) for seed in SEEDS]
        except REFUSED:
            return None
        want = wanted[0]
        draws |= any(_differ(want, other) for other in wanted[1:])
        try:
            got, ran = _profiled(function, sample, sample is second)
            _compare(op, sample, got, want, draws)
        except AssertionError as error:
            return Outcome(False, "wrong: " + str(error).strip().split("\n")[0][:100])
        except (
            TorchDynamoException, KirError, RuntimeError, ValueError, TypeError, KeyError,
            IndexError, NotImplementedError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            return Outcome(False, _reason(error))
        if ran - MOVES:
            return Outcome(False, "PyTorch ran " + ", ".join(sorted(ran - MOVES)))
    return Outcome(True, compiled=counted > 0, drawn=draws)


def _called(f: Callable[..., Any], sample: Any, seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    return f(_copied(sample.input), *_copied(sample.args), **_copied(sample.kwargs))


def _differ(one: Any, other: Any) -> bool:
    """Whether a tensor of the results has other elements."""
    import torch
    from torch.utils import _pytree

    leaves = zip(_pytree.tree_leaves(one), _pytree.tree_leaves(other), strict=True)
    return any(
        isinstance(a, torch.Tensor) and a.layout == torch.strided and not _alike(a, b)
        for a, b in leaves
    )


def _alike(a: Any, b: Any) -> bool:
    import torch

    return a.shape == b.shape and bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def _function(op: Any) -> Any:
    """What is called: of operators that draw, OpInfo's own form sets the seed, which is no part of
    a graph, so torch's function itself."""
    import torch

    names = getattr(getattr(op.op, "__code__", None), "co_names", ())
    if not (DRAWN.search(op.name) or "wrapper_set_seed" in names) or "lowrank" in op.name:
        return op.op
    found: Any = torch
    for part in op.name.split("."):
        found = getattr(found, part, None)
    in_place = getattr(torch.Tensor, f"{op.name}_", None)
    if in_place and (found is None or op.variant_test_name == "in_place"):
        return lambda x, *args, **kwargs: in_place(x.clone(), *args, **kwargs)
    return found or op.op


def _copied(x: Any) -> Any:
    """With tensors of its own: some operators write to their operands."""
    import torch
    from torch.utils import _pytree

    def one(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or t.layout != torch.strided or t.is_nested:
            return t
        memory = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
        return memory.copy_(t)

    return _pytree.tree_map(one, x)


def _profiled(function: Any, sample: Any, profile: bool) -> tuple[Any, set[str]]:
    import torch

    args = (_copied(sample.input), *_copied(sample.args))
    kwargs = _copied(sample.kwargs)
    if not profile:
        return function(*args, **kwargs), set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        got = function(*args, **kwargs)
    ran = {e.name.removeprefix("aten::") for e in seen.events() if e.name.startswith("aten::")}
    return got, ran


def _compare(op: Any, sample: Any, got: Any, want: Any, draws: bool) -> None:
    import torch
    from torch.utils import _pytree

    mine, theirs = _pytree.tree_leaves(got), _pytree.tree_leaves(want)
    assert len(mine) == len(theirs), "another number of results"
    exact: list[Any] | None = None
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if isinstance(b, torch.Tensor):
            assert a.shape == b.shape and a.dtype == b.dtype, "another shape or dtype"
        if draws:
            continue
        try:
            torch.testing.assert_close(a, b, equal_nan=True)
        except AssertionError:
            if op.name in ORDERED and _same_order(op, sample, a, b):
                continue
            if exact is None:
                exact = _exact(op, sample)
            if exact is None or not _as_near(a, b, exact[k]):
                raise


def _same_order(op: Any, sample: Any, got: Any, want: Any) -> bool:
    """Whether indices put the input in the order that eager's do: which of equal elements comes
    first is unspecified where `stable` is not asked for."""
    import torch

    given = dict(zip(ORDERED[op.name], sample.args, strict=False)) | sample.kwargs
    if got.dtype != torch.int64 or given.get("stable"):
        return False
    x, axis = sample.input, given.get("dim", -1)
    if not all(int(v.min()) >= 0 and int(v.max()) < x.shape[axis] for v in (got, want)):
        return False
    mine, theirs = (torch.take_along_dim(x, v, axis) for v in (got, want))
    places = got.sort(dim=axis).values
    distinct = bool((places.diff(dim=axis) > 0).all())
    return distinct and bool(torch.isclose(mine, theirs, rtol=0, atol=0, equal_nan=True).all())


def _exact(op: Any, sample: Any) -> list[Any] | None:
    """Eager's results in float64."""
    import torch
    from torch.utils import _pytree

    def wide(t: Any) -> Any:
        floats = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.double() if floats else t

    args = _pytree.tree_map(wide, (_copied(sample.input), *_copied(sample.args)))
    kwargs = _pytree.tree_map(wide, _copied(sample.kwargs))
    try:
        leaves: list[Any] = _pytree.tree_leaves(op.op(*args, **kwargs))
        return leaves
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None


def _as_near(got: Any, want: Any, exact: Any) -> bool:
    """Whether `got` is no farther from `exact` than eager, element by element's greatest."""
    import torch

    if not isinstance(want, torch.Tensor) or not want.is_floating_point():
        return False
    if exact.shape != want.shape or not exact.is_floating_point():
        return False
    mine, theirs = (v.double() - exact for v in (got, want))
    same = torch.isfinite(got) == torch.isfinite(want)
    finite = torch.isfinite(exact) & torch.isfinite(want)
    if not bool(same.all()) or not bool(torch.isfinite(exact[finite]).all()):
        return False
    return bool(mine[finite].abs().max() <= theirs[finite].abs().max()) if finite.any() else True


def _reason(error: BaseException) -> str:
    """One line: what KIR does not compile, or the first of what went wrong."""
    inner: BaseException = error
    while inner.__cause__ is not None or getattr(inner, "inner_exception", None) is not None:
        inner = getattr(inner, "inner_exception", None) or inner.__cause__ or inner
    text = str(getattr(inner, "message", None) or inner or error)
    whole = str(getattr(error, "message", None) or error)  # a KIR error's text draws its kernel
    missing = re.search(r"KIR does not compile `([\w.]+)`", whole)
    if missing:
        return f"no row for {missing.group(1)}"
    if re.search(r"dynamic shape operator|Data.dependent|GuardOnDataDependent", text):
        return "the shape of the result depends on data"
    line = next((x.strip() for x in text.splitlines() if x.strip()), "")
    line = re.sub(r',? File ".*', "", line)
    return f"{type(inner).__name__}: {line[:160]}"


# --- in child processes ----------------------------------------------------------------------


def _child(pipe: Connection, most: int, limit: float) -> None:
    import logging

    import torch

    faulthandler.enable()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 1000
    table = operators()
    pipe.send(("ready", None))
    unlimited = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while (task := pipe.recv()) is not None:
        name, dtype = task
        try:
            _limit(limit, unlimited)
            for outcome in examine(table[name], getattr(torch, dtype), most):
                pipe.send(("sample", outcome))
                _limit(limit, unlimited)
        except (*REFUSED, AttributeError) as error:
            pipe.send(("sample", Outcome(False, f"samples: {error}".split("\n")[0][:120])))
        pipe.send(("done", None))


def _limit(seconds: float, hard: int) -> None:
    """End this process after so much more processor time."""
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))


class _Worker:
    """A child and the task that it has; it is started anew when a limit ends it."""

    def __init__(self, most: int, limit: float) -> None:
        self.most, self.limit = most, limit
        self.task: tuple[str, str] | None = None
        self.count = 0
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_child, args=(theirs, self.most, self.limit), daemon=True
        )
        self.process.start()
        theirs.close()
        self.is_ready, self.count = False, 0
        self.deadline = time.monotonic() + 120

    def restart(self) -> None:
        if self.process.pid and self.process.is_alive() and self.task:
            os.kill(self.process.pid, signal.SIGABRT)
            time.sleep(1)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.start()

    def give(self, task: tuple[str, str]) -> None:
        self.task, self.deadline = task, time.monotonic() + STILL * self.limit
        self.count += 1
        self.pipe.send(task)


TASKS = 150
"""How many a child is given before it is replaced: PyTorch keeps what it compiled."""
STILL = 4
"""A sample that takes this many times its limit on the clock is stuck."""

Tell = Callable[[tuple[str, str], list[Outcome]], None]


def survey(
    tasks: Sequence[tuple[str, str]], most: int, jobs: int, limit: float, tell: Tell
) -> Results:
    """The outcomes of each (operator, dtype); `limit` seconds for each sample. `tell` is called
    with those of each as soon as they are known."""
    left, results = list(reversed(tasks)), Results()
    workers = [_Worker(most, limit) for _ in range(min(jobs, max(len(tasks), 1)))]
    while left or any(w.task for w in workers):
        wait([w.pipe for w in workers], timeout=1)
        for worker in workers:
            _serve(worker, left, results, limit, tell)
    for worker in workers:
        worker.process.kill()
    return results


def _serve(
    worker: _Worker, left: list[tuple[str, str]], results: Results, limit: float, tell: Tell
) -> None:
    """Take what a child has to say; give it a task where it has none."""
    try:
        while worker.pipe.poll():
            kind, outcome = worker.pipe.recv()
            worker.is_ready = True
            worker.deadline = time.monotonic() + STILL * limit
            if kind == "sample" and worker.task:
                results.setdefault(worker.task, []).append(outcome)
            elif kind == "done" and worker.task:
                _close(worker, results, tell)
        late = worker.task is not None and time.monotonic() > worker.deadline
        why = "no answer" if late else ""
    except (EOFError, ConnectionResetError):
        worker.process.join()
        ended = worker.process.exitcode == -signal.SIGXCPU
        why = "out of time" if ended else f"the process died ({worker.process.exitcode})"
    if why or (worker.count >= TASKS and not worker.task):
        worker.restart()
    if why and worker.task:
        results.setdefault(worker.task, []).append(Outcome(False, why))
        _close(worker, results, tell)
    if worker.is_ready and worker.task is None and left:
        worker.give(left.pop())


def _close(worker: _Worker, results: Results, tell: Tell) -> None:
    assert worker.task is not None
    found = results.setdefault(worker.task, [])
    status, reason, passed = summary(found)
    print(f"{worker.task[0]} {worker.task[1]}: {status} {passed}/{len(found)} {reason}", flush=True)
    tell(worker.task, found)
    worker.task = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--only", nargs="+", help="parts of names")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds of processor time for a sample"
    )
    parser.add_argument("--log", type=Path, help="outcomes, a line each; what it has is not run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    import torch

    tasks = [
        (name, dtype)
        for name, op in operators().items()
        for dtype in given.dtypes
        if getattr(torch, dtype) in op.dtypes
        and (not given.only or any(part in name for part in given.only))
    ]
    started = time.monotonic()
    commit = description()["commit"]
    results, commits = read_log(given.log) if given.log else (Results(), set[str]())
    commits.add(commit)

    def tell(task: tuple[str, str], found: list[Outcome]) -> None:
        if given.log:
            with given.log.open("a") as log:
                log.write(json.dumps([*task, [asdict(o) for o in found], commit]) + "\n")

    left = [task for task in tasks if task not in results]
    results |= survey(left, given.samples, given.jobs, given.limit, tell)
    kept = {task: found for task, found in results.items() if task[1] in given.dtypes}
    made = record(kept, given.dtypes, given.samples, sorted(commits), operator_of)
    print(json.dumps(made["operators"], indent=1))
    print(missing(results), f"\n{time.monotonic() - started:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(made, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(table(made))


def read_log(path: Path) -> tuple[Results, set[str]]:
    """What `--log` wrote, and at which commits. A line that was cut short is taken out."""
    found, commits = Results(), set[str]()
    if not path.exists():
        return found, commits
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole))
    for line in whole:
        name, dtype, outcomes, commit = json.loads(line)
        found[name, dtype] = [Outcome(**o) for o in outcomes]
        commits.add(commit)
    return found, commits


if __name__ == "__main__":
    main()
