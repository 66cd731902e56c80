"""The server of an evaluator and its jobs: `python -m kir.agent.worker TARGET`.

The server imports everything, then forks a job for each line of its standard input (JSON: the
job's folder), and answers with the job's process id, and when it has ended, with its exit code. A
job limits itself, reads its request, compiles, verifies against the oracle, measures, and writes a
verdict. It may die at any point; `evaluate.py` judges that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kir.agent.evaluate import LOG, REPLY, REQUEST, Problem

if TYPE_CHECKING:
    from kir.backend import Executable
    from kir.interpret import Bounded
    from kir.ir import Kernel, Step

Request = dict[str, Any]
Reply = dict[str, Any]

WARM_UPS = 2
HOPELESS = 5.0
"""A candidate this many times slower than the baseline in its first run is not timed further."""
MIN_SAMPLE_SECONDS = 2e-4
"""Calls are timed in batches at least this long, to stay above the clock's noise."""
PR_SET_PDEATHSIG = 1


Handler = Callable[[Request], Reply]


def main(target: str) -> int:
    preload(target)
    serve(handle)
    return 0


def preload(target: str) -> None:
    """Import and build what every job needs."""
    import kir.interpret
    import kir.pipeline
    from kir.agent.variant import parse_derivation

    parse_derivation("schedule s of k { loops() }")  # builds the parser
    kir.pipeline.Target(target).backend  # noqa: B018  (imports it)


def serve(handler: Handler) -> None:
    """Fork a job for each request, one after the other, until standard input ends."""
    die_with(os.getppid())
    for line in sys.stdin:
        folder = Path(json.loads(line)["folder"])
        sys.stdout.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                job(handler, folder, server)
                code = 0
            finally:  # a forked process must not return into the server's stack
                if code:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        with contextlib.suppress(OSError):  # the job does the same; who is first, wins
            os.setpgid(pid, pid)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def job(handler: Handler, folder: Path, server: int) -> None:
    """In the forked process: handle the request in `folder`."""
    os.setpgid(0, 0)
    die_with(server)
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ |= {"HOME": str(folder), "TMPDIR": str(folder)}
    request: Request = json.loads(Path(REQUEST).read_text(encoding="utf-8"))
    confine(request["limits"])
    unfinished = Path(REPLY + ".part")
    unfinished.write_text(json.dumps(handler(request)), encoding="utf-8")
    unfinished.replace(REPLY)


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)


def confine(limits: Mapping[str, Any]) -> None:
    """Limit this process's memory, CPU time and files."""
    bounds = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_CORE: 0,
    }
    for which, value in bounds.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # the kernel names the limit on CPU time (SIGXCPU) only below the hard one
        grace = 1 if which == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(which, (value, value + grace))


def handle(request: Request) -> Reply:
    from kir.errors import KirError

    problem = Problem(**request["problem"])
    try:
        if request["action"] == "prepare":
            return prepare(problem, Path(request["expected"]))
        return evaluate(problem, request["derivation"], request["expected"], request["repeats"])
    except KirError as error:
        return {"status": "refused", "error": error.render()}


def prepare(problem: Problem, path: Path) -> Reply:
    """Compute the expected outputs with their error bounds, once for all candidates."""
    import numpy as np

    from kir.agent.variant import specialised
    from kir.inputs import random_inputs
    from kir.interpret import oracle

    spec = specialised(problem)
    expected = oracle(spec, random_inputs(spec, {}, problem.seed), {})
    arrays: dict[str, Any] = {}
    for name, bounded in expected.items():
        arrays[f"value:{name}"], arrays[f"bound:{name}"] = bounded.value, bounded.bound
    unfinished = path.with_name("part-" + path.name)
    np.savez(unfinished, **arrays)
    unfinished.replace(path)
    return {"status": "ok"}


def evaluate(problem: Problem, derivation: str, expected: str, repeats: int) -> Reply:
    from kir.agent.variant import parse_derivation, specialised
    from kir.inputs import random_inputs

    spec = specialised(problem)
    candidate = compiled(problem, spec, parse_derivation(derivation))
    inputs = random_inputs(spec, {}, problem.seed)
    outputs = poisoned(spec)
    mistake = run_and_compare(candidate, spec, inputs, outputs, expected)
    if mistake:
        return {"status": "wrong", "error": mistake}
    baseline = compiled(problem, spec, parse_derivation(problem.baseline))
    times = alternate(candidate, baseline, inputs, outputs, repeats)
    mistake = run_and_compare(candidate, spec, inputs, outputs, expected)
    if mistake:
        return {"status": "wrong", "error": f"after timing: {mistake}"}
    return {
        "status": "ok",
        "seconds": statistics.median(times[0]),
        "baseline_seconds": statistics.median(times[1]),
        "ratio": statistics.median(b / a for a, b in zip(*times, strict=True)),
        "report": {"samples": [list(times[0]), list(times[1])]},
    }


def compiled(problem: Problem, spec: Kernel, steps: tuple[Step, ...]) -> Executable:
    """The variant, checked and loaded; KirError where the checker or the backend refuses it."""
    from kir.pipeline import Target, lower

    target = Target(problem.target, problem.via, problem.arch)
    return target.backend.load(lower(spec, target, steps))


def poisoned(spec: Kernel) -> dict[str, Any]:
    """Output arrays full of values that no kernel should leave: NaN, or a pattern of bits."""
    import numpy as np

    from kir.specialise import output_shapes

    arrays = {}
    for param in spec.outputs:
        array = np.empty(output_shapes(spec, {})[param.name], param.type.numpy)
        poison(array)
        arrays[param.name] = array
    return arrays


def poison(array: Any) -> None:
    import numpy as np

    from kir.dtypes import from_numpy

    if from_numpy(array.dtype).is_float:
        array[...] = np.nan
    else:
        array.view(np.uint8)[...] = 0x01 if array.dtype == np.bool_ else 0xA5


def run_and_compare(
    candidate: Executable, spec: Kernel, inputs: Mapping[str, Any], outputs: Any, expected: str
) -> str:
    """What is wrong with the candidate's outputs or with what it did to its inputs; "" if right."""
    import numpy as np

    from kir.interpret import Bounded

    before = {name: array.copy() for name, array in inputs.items()}
    for array in outputs.values():
        poison(array)
    candidate(inputs, {}, outputs)
    for name, array in inputs.items():
        if array.tobytes() != before[name].tobytes():
            return f"it wrote to its input `{name}`"
    with np.load(expected, allow_pickle=False) as file:
        for p in spec.outputs:
            wanted = Bounded(file[f"value:{p.name}"], file[f"bound:{p.name}"], p.type)
            mistake = mismatch(wanted, outputs[p.name])
            if mistake:
                return f"`{p.name}` {mistake}"
    return ""


def mismatch(wanted: Bounded, got: Any) -> str:
    """Where an output is further from the oracle's value than its bound, in words; "" if nowhere.

    An infinite bound excuses its element, but not all of them: that would verify nothing.
    """
    import numpy as np

    wrong = ~wanted.accepts(got)
    if wrong.any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        return (
            f"is wrong in {int(wrong.sum())} of {wrong.size} elements: at {list(at)} it is "
            f"{got[at]}, not {wanted.value[at]} within {wanted.bound[at]:.3g}"
        )
    if got.size and np.isinf(wanted.bound).all():
        return "cannot be verified: the oracle bounds none of its elements"
    return ""


def alternate(
    candidate: Executable, baseline: Executable, inputs: Any, outputs: Any, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds per call of each, measured in turn (A B A B) after a warm-up."""

    def timed(run: Executable, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            run(inputs, {}, outputs)
        return (time.perf_counter() - start) / count

    for _ in range(WARM_UPS):
        ours, theirs = timed(candidate, 1), timed(baseline, 1)
    if ours > HOPELESS * theirs:
        return [ours], [theirs]
    count = max(1, int(MIN_SAMPLE_SECONDS / max(min(ours, theirs), 1e-9)))
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        samples[0].append(timed(candidate, count))
        samples[1].append(timed(baseline, count))
    return samples


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
