"""The server of an evaluator and its jobs: `python -m kir.agent.worker TARGET`.

The server imports everything, then forks a job for each line of its standard input (JSON: the
job's folder), and answers with the job's process id, and when it has ended, with its exit code. A
job confines itself (`sandbox.py`), reads its request, compiles, verifies against the oracle,
measures, and writes a verdict. It may die at any point; `evaluate.py` judges that.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kir.agent import sandbox
from kir.agent.evaluate import LOG, MODELLED, REPLY, REQUEST, Problem
from kir.agent.measure import alone, alternate, halve, ratio

if TYPE_CHECKING:
    from kir.agent.modelled import Modelled
    from kir.backend import Executable
    from kir.interpret import Bounded
    from kir.ir import Kernel, Step

Request = dict[str, Any]
Reply = dict[str, Any]
Handler = Callable[[Request], Reply]


def main(target: str) -> int:
    preload(target)
    serve(handle, keep_baseline)
    return 0


def preload(target: str) -> None:
    """Import and build what every job needs."""
    import kir.interpret
    import kir.pipeline
    from kir.agent.variant import parse_derivation

    parse_derivation("schedule s of k { loops() }")  # builds the parser
    kir.pipeline.Target(target).backend  # noqa: B018  (imports it)
    if target in MODELLED:
        from kir.backends.triton.compile import import_triton

        import_triton()


_baselines: dict[str, Executable] = {}
"""Loaded default schedules, by problem: jobs inherit them."""


def keep_baseline(request: Request) -> None:
    """In the server: compile and load the default schedule, once for all jobs. It is not a
    candidate, but what the search trusts to be timed against; it is not run here."""
    from kir.agent.variant import parse_derivation, specialised
    from kir.errors import KirError

    problem = Problem(**request["problem"])
    if problem.target not in MODELLED and problem.baseline not in _baselines:
        with contextlib.suppress(KirError):  # the first root will say so
            steps = parse_derivation(problem.baseline)
            _baselines[problem.baseline] = compiled(problem, specialised(problem), steps)


def serve(handler: Handler, before: Callable[[Request], None] | None = None) -> None:
    """Fork a job for each request, one after the other, until standard input ends. `before` sees
    each request first, in this process."""
    sandbox.die_with(os.getppid())
    for line in sys.stdin:
        folder = Path(json.loads(line)["folder"])
        if before is not None:
            before(json.loads((folder / REQUEST).read_text(encoding="utf-8")))
        sys.stdout.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _leave(partial(guard, handler, folder, server))
        with contextlib.suppress(OSError):  # the job does the same; who is first, wins
            os.setpgid(pid, pid)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _leave(work: Callable[[], int]) -> None:
    """Do a forked process's work and end with its code: it must not return into its parent's
    stack."""
    code = 1
    try:
        code = work()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def guard(handler: Handler, folder: Path, server: int) -> int:
    """In the forked process: redirect and limit it, and run the job below it, first of its own
    processes where the system has such namespaces; end as the job ends."""
    os.setpgid(0, 0)
    sandbox.die_with(server)
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ |= {"HOME": str(folder), "TMPDIR": str(folder), "TRITON_CACHE_DIR": str(folder)}
    tempfile.tempdir = None  # the server's, which was looked up before
    request: Request = json.loads(Path(REQUEST).read_text(encoding="utf-8"))
    sandbox.limit(request["limits"])
    if not sandbox.enter_namespaces():
        return job(handler, folder, request)
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        _leave(lambda: _first(lambda: job(handler, folder, request), writer))
    os.close(writer)
    said = os.read(reader, 4)
    os.waitpid(first, 0)
    code = struct.unpack("i", said)[0] if len(said) == 4 else -signal.SIGKILL
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return int(code)


def _first(work: Callable[[], int], writer: int) -> int:
    """The first process of a namespace: it is immune to signals from inside, so the job is run in
    one below it, and its exit code told. When this one ends, all inside do."""
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        _leave(work)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            os.write(writer, struct.pack("i", os.waitstatus_to_exitcode(status)))
            return 0


def job(handler: Handler, folder: Path, request: Request) -> int:
    """Handle the request, seeing and writing no more than it has to."""
    shared = [*request["readable"]] if "readable" in request else []
    writable = [folder, *request.get("writable", ())]
    sandbox.lock_files([*sandbox.runtime_paths(), *shared, *writable], writable)
    started = time.monotonic()
    reply = handler(request)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resources = {
        "wall_s": round(time.monotonic() - started, 4),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 4),
        "peak_bytes": usage.ru_maxrss * 1024,
        **reply.pop("stages", {}),
    }
    unfinished = Path(REPLY + ".part")
    unfinished.write_text(json.dumps({**reply, "resources": resources}), encoding="utf-8")
    unfinished.replace(REPLY)
    return 0


def handle(request: Request) -> Reply:
    from kir.errors import KirError

    problem = Problem(**request["problem"])
    try:
        if problem.target in MODELLED:
            return handle_modelled(problem, request)
        if request["action"] == "prepare":
            return prepare(problem, Path(request["expected"]))
        if request["action"] == "contest":
            return contest(problem, request)
        return evaluate(problem, request)
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


def evaluate(problem: Problem, request: Request) -> Reply:
    """Compile, verify, time in turns with the baseline, verify again; what is faster than all
    before it climbs the ring too."""
    from kir.agent import rungs
    from kir.agent.variant import parse_derivation, specialised
    from kir.inputs import random_inputs

    clock = _Stages()
    spec, steps = specialised(problem), parse_derivation(request["derivation"])
    candidate = compiled(problem, spec, steps)
    clock.note("compile_s")
    inputs = random_inputs(spec, {}, problem.seed)
    outputs = poisoned(spec)
    expected = request["expected"]
    mistake = run_and_compare(candidate, spec, inputs, outputs, expected)
    clock.note("verify_s")
    if mistake:
        return {"status": "wrong", "error": mistake, "stages": clock.taken}
    baseline = baseline_of(problem, spec)
    clock.note("baseline_s")
    with alone(request.get("lock")):
        clock.note("waited_s")
        times = alternate(
            lambda: candidate(inputs, {}, outputs),
            lambda: baseline(inputs, {}, outputs),
            request["repeats"],
            request.get("incumbent", 0.0),
        )
    clock.note("measure_s")
    mistake = run_and_compare(candidate, spec, inputs, outputs, expected)
    if mistake:
        return {"status": "wrong", "error": f"after timing: {mistake}", "stages": clock.taken}
    climbed = ["static", "target"]
    if ratio(*times) > request.get("incumbent", 0.0):
        try:
            climbed.append(rungs.ring(problem, steps))
        except rungs.Refuted as error:
            return {"status": "wrong", "error": error.message, "stages": clock.taken}
        clock.note("ring_s")
    return {
        "status": "ok",
        "seconds": statistics.median(times[0]),
        "baseline_seconds": statistics.median(times[1]),
        "ratio": ratio(*times),
        "report": {"samples": [list(times[0]), list(times[1])], "rungs": [*filter(None, climbed)]},
        "stages": clock.taken,
    }


def contest(problem: Problem, request: Request) -> Reply:
    """Verify several derivations and time those that are right against one another."""
    from kir.agent.variant import parse_derivation, specialised
    from kir.errors import KirError
    from kir.inputs import random_inputs

    spec = specialised(problem)
    inputs, outputs = random_inputs(spec, {}, problem.seed), poisoned(spec)
    baseline = baseline_of(problem, spec)
    right: dict[int, Executable] = {}
    for k, derivation in enumerate(request["derivations"]):
        with contextlib.suppress(KirError):  # it has no ratio then
            candidate = compiled(problem, spec, parse_derivation(derivation))
            if not run_and_compare(candidate, spec, inputs, outputs, request["expected"]):
                right[k] = candidate
    with alone(request.get("lock")):
        rounds = halve(
            [lambda c=c: c(inputs, {}, outputs) for c in right.values()],  # type: ignore[misc]
            lambda: baseline(inputs, {}, outputs),
            request["repeats"],
        )
    ratios: list[float | None] = [None] * len(request["derivations"])
    for k, found in zip(right, rounds, strict=True):
        ratios[k] = statistics.median(found)
    return {"status": "ok", "seconds": 1.0, "baseline_seconds": 1.0, "ratio": 1.0,
            "report": {"ratios": ratios}}  # fmt: skip


def handle_modelled(problem: Problem, request: Request) -> Reply:
    """Compile for hardware that is not here, and model the time. What the model likes better than
    all before it is verified: in Triton's interpreter and in the ring."""
    from kir.agent import rungs
    from kir.agent.variant import parse_derivation

    baseline = Path(request["expected"]).with_suffix(".json")
    if request["action"] == "prepare":
        seconds = model_of(problem, problem.baseline).seconds
        unfinished = baseline.with_name("part-" + baseline.name)
        unfinished.write_text(json.dumps(seconds), encoding="utf-8")
        unfinished.replace(baseline)
        Path(request["expected"]).touch()
        return {"status": "ok"}
    known = float(json.loads(baseline.read_text(encoding="utf-8")))
    if request["action"] == "contest":
        return contest_modelled(problem, request["derivations"], known)
    clock = _Stages()
    found = model_of(problem, request["derivation"])
    clock.note("compile_s")
    climbed = ["static"]
    if known / found.seconds > request.get("incumbent", 0.0):
        steps = parse_derivation(request["derivation"])
        try:
            climbed += [rungs.interpreted(problem, steps), rungs.ring(problem, steps)]
        except rungs.Refuted as error:
            return {"status": "wrong", "error": error.message, "stages": clock.taken}
        clock.note("verify_s")
    return {
        "status": "ok",
        "seconds": found.seconds,
        "baseline_seconds": known,
        "ratio": known / found.seconds,
        "report": {
            "modelled": {name: float(f"{t:.4g}") for name, t in found.parts.items()},
            "bottleneck": found.bottleneck,
            "facts": dict(found.facts),
            "rungs": [*filter(None, climbed)],
        },
        "stages": clock.taken,
    }


def contest_modelled(problem: Problem, derivations: list[str], known: float) -> Reply:
    from kir.errors import KirError

    ratios: list[float | None] = []
    for derivation in derivations:
        try:
            ratios.append(known / model_of(problem, derivation).seconds)
        except KirError:  # it has no ratio then
            ratios.append(None)
    return {"status": "ok", "seconds": 1.0, "baseline_seconds": 1.0, "ratio": 1.0,
            "report": {"ratios": ratios}}  # fmt: skip


def model_of(problem: Problem, derivation: str) -> Modelled:
    """The modelled time of a variant; KirError where it is refused."""
    from kir.agent.modelled import modelled
    from kir.agent.variant import parse_derivation, specialised
    from kir.pipeline import Target, lower

    target = Target(problem.target, problem.via, problem.arch)
    return modelled(lower(specialised(problem), target, parse_derivation(derivation)))


def baseline_of(problem: Problem, spec: Kernel) -> Executable:
    from kir.agent.variant import parse_derivation

    known = _baselines.get(problem.baseline)
    return known or compiled(problem, spec, parse_derivation(problem.baseline))


class _Stages:
    """Seconds that each part of an evaluation took."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self._last = time.monotonic()

    def note(self, stage: str) -> None:
        now = time.monotonic()
        self.taken[stage], self._last = round(now - self._last, 4), now


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
