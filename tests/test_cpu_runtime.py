"""The cpu's run time: teams of threads, calls from Python, machine code in memory, the cache, and
`kir.compile` on top of them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kir
from kir.backends.cpu import BACKEND, cache
from kir.backends.cpu.archs import machine_of
from kir.backends.cpu.image import Image
from kir.backends.cpu.link import is_linkable, link
from kir.backends.cpu.native import load_code, load_image
from kir.backends.llvm.compile import compile_object
from kir.errors import (
    CompileError,
    ConstraintError,
    EvaluationError,
    FileError,
    InputDataError,
    ParseError,
    UsageError,
)
from kir.syntax import parse_kernel

ROOT = Path(__file__).resolve().parent.parent
SCALE = "kernel scale[M, N](x: f32[M, N]) -> (y: f32[M, N]) { y[i: M, j: N] = 3.0 * x[i, j] }"
MATMUL = """kernel matmul[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
  c[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
}"""
TWO = """kernel two[N, k = 2](x: f32[N]) -> (y: f32[N], s: f32[]) where N >= 1 {
  y[i: N] = f32(k) * x[i]
  s = sum(i: N) x[i]
}"""


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KIR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


# --- teams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, -1, -2, -3, -7])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 6, 7, 100, 1001])
def test_a_team_runs_every_iteration_once(threads: int, n: int) -> None:
    kernel = parse_kernel("""kernel k[N](x: i32[N]) -> (y: i32[N], total: i32[]) {
      total = 0
      grid z: N { y[z] = 0 }
      grid i: N { y[i] += x[i]
                  total += 1 }
      grid j: N { y[j] += 1 }
    }""")
    run = BACKEND.with_threads(BACKEND.lower(kernel, "cpu", "native"), threads)
    x = np.arange(n, dtype=np.int32)
    got = run({"x": x})
    np.testing.assert_array_equal(got["y"], x + 1)
    assert got["total"] == n


def test_ranges_of_unequal_work_are_shared_out() -> None:
    """The last rows of a triangle cost most: whoever is done takes from the others."""
    kernel = parse_kernel("""kernel k[N](x: f32[N]) -> (y: f32[N]) {
      grid i: N { buffer a: f32 in reg = 0.0
                  for j: i + 1 { a += x[j] }
                  y[i] = a }
    }""")
    artifact = BACKEND.lower(kernel, "cpu", "native")
    for threads in (-2, -4, 0):
        got = BACKEND.with_threads(artifact, threads)({"x": ones(3000)})["y"]
        np.testing.assert_array_equal(got, np.arange(1, 3001, dtype=np.float32))


def test_only_work_that_is_worth_it_makes_a_team() -> None:
    """With the work as code: a small grid runs on the calling thread, a large one on a team."""
    code = f"""
import ctypes, os, numpy as np
from kir.syntax import parse_kernel
from kir.backends.cpu import BACKEND
from kir.plan.cpu import plan
from kir.pipeline import schedule
k = parse_kernel('''{SCALE}''')
run = BACKEND.with_threads(BACKEND.lower(schedule(k, plan(k)), 'cpu', 'native'), 2)
count = lambda: len(os.listdir('/proc/self/task'))
before = count()
run({{'x': np.ones((16, 16), np.float32)}})
small = count()
run({{'x': np.ones((2000, 2000), np.float32)}})
print(small - before, count() - before)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})  # fmt: skip
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("threads", [True, 1.5, "2", 100_000])
def test_a_number_of_threads_that_is_none(threads: Any) -> None:
    with pytest.raises(UsageError):
        kir.compile(SCALE, threads=threads)(ones(2, 2))


# --- calls -----------------------------------------------------------------------------------


def test_a_call_again_meets_the_same_checks() -> None:
    """The built-in function of the third call refuses what the first call refused."""
    run = BACKEND.load(BACKEND.lower(parse_kernel(LOOP), "cpu", "native"))
    x = ones(4, 6)
    for _ in range(3):
        np.testing.assert_array_equal(run({"x": x})["y"], 3 * x)
    frozen = ones(4, 6)
    frozen.setflags(write=False)
    wrong: list[tuple[Any, Any, str]] = [
        (None, None, "is not given"),
        ([1.0], None, "is a list"),
        (x.astype(np.float64), None, "float64"),
        (np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6)), None, "contiguous"),
        (x, {"y": x}, "shares memory"),
        (x, {"y": frozen}, "read-only"),
        (x, {"y": ones(4, 5)}, "shape"),
        (x, {"z": ones(4, 6)}, "is not given"),
        (x, {"y": x.astype(np.float64)}, "float64"),
    ]
    for a, out, message in wrong:
        with pytest.raises(InputDataError, match=message):
            run({"x": a} if a is not None else {}, None, out)
    y = ones(4, 6)
    assert run({"x": frozen}, None, {"y": y})["y"] is y and (y == 3).all()
    np.testing.assert_array_equal(run({"x": ones(2, 3)})["y"], 3 * ones(2, 3))
    swapped = x.astype(">f4")
    with pytest.raises(InputDataError):
        run({"x": swapped})


LOOP = """kernel loop[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  grid i: M { for j: N { y[i, j] = 3.0 * x[i, j] } } }"""


def test_large_outputs_are_aligned() -> None:
    f = kir.compile(SCALE)
    for _ in range(4):
        y = f(ones(123, 457))
        assert isinstance(y, np.ndarray) and y.ctypes.data % 64 == 0
        np.testing.assert_array_equal(y, 3 * ones(123, 457))


def test_calls_from_many_threads() -> None:
    f, wrong = kir.compile(MATMUL, dynamic=True), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            m, n, k = rng.integers(1, 40, 3)
            a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
            if not np.allclose(f(a, b), a @ b, atol=1e-4):
                wrong.append((m, n, k))

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_the_interpreter_runs_on_while_a_kernel_does() -> None:
    kernel = parse_kernel("""kernel k[N](x: f32[N]) -> (y: f32[]) {
      y = 0.0
      for t: 40 { for i: N { y = sin(y) + x[i] } }
    }""")
    run = BACKEND.load(BACKEND.lower(kernel, "cpu", "native"))
    x = ones(100)
    run({"x": x})
    run({"x": x})
    large, ticks, done = ones(200_000), [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0)

    other = threading.Thread(target=tick)
    other.start()
    run({"x": large})
    seen = ticks[0]
    run({"x": large})
    done.set()
    other.join()
    assert ticks[0] > seen


# --- machine code in memory ------------------------------------------------------------------

MODULE = """
declare double @sin(double)
@table = constant [2 x ptr] [ptr @one, ptr @sin]
@state = global i64 5
@zeros = global [1000 x i64] zeroinitializer
define double @one(double %x) { ret double %x }
define double @apply(i64 %k, double %x) {
  %at = getelementptr ptr, ptr @table, i64 %k
  %f = load ptr, ptr %at
  %y = call double %f(double %x)
  ret double %y
}
define i64 @count() {
  %last = getelementptr i64, ptr @zeros, i64 999
  %a = load volatile i64, ptr @state
  %b = load volatile i64, ptr %last
  %c = add i64 %a, %b
  store volatile i64 %c, ptr %last
  ret i64 %c
}
define double @direct(double %x) { %y = call double @sin(double %x)
  ret double %y }
"""


def test_an_image_has_tables_state_and_zeros() -> None:
    obj = compile_object(MODULE, machine_of("native"))
    if not is_linkable(obj):
        pytest.skip("not x86-64")
    image = link(obj)
    for made in (image, Image.decode(image.encode())):
        code = load_image(made)
        kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_double)
        apply = kind(code.address("apply"))
        assert apply(0, 2.5) == 2.5 and apply(1, 2.5) == pytest.approx(np.sin(2.5))
        count = ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("count"))
        assert [count() for _ in range(3)] == [5, 10, 15]
        one = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(code.address("direct"))
        assert one(1.0) == pytest.approx(np.sin(1.0))


def test_code_that_lacks_a_function() -> None:
    obj = compile_object(
        "declare void @kir_nowhere()\ndefine void @f() { call void @kir_nowhere()\nret void }",
        machine_of("native"),
    )
    with pytest.raises(CompileError, match="kir_nowhere"):
        load_code(obj)
    fine = load_code(compile_object("define void @f() { ret void }", machine_of("native")))
    with pytest.raises(CompileError, match="no function `g`"):
        fine.address("g")


# --- the cache -------------------------------------------------------------------------------


def entries(place: Path) -> list[Path]:
    return [p for p in place.rglob("*") if p.is_file()]


def test_an_entry_round_trips_and_damage_is_seen(private_cache: Path) -> None:
    key = cache.key_of({"a": 1})
    assert cache.load(key) is None
    cache.save(key, {"x": b"one", "y": b""})
    assert cache.load(key) == {"x": b"one", "y": b""}
    (path,) = entries(private_cache)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], whole[:-1] + b"?", b"\n" * 200):
        path.write_bytes(damaged)
        assert cache.load(key) is None
    other = cache.key_of({"a": 2})
    cache.save(other, {"x": b"two"})
    path.write_bytes((private_cache / "cpu" / other[:2] / other).read_bytes())
    assert cache.load(key) is None  # whole, but of another key
    cache.save(key, {"x": b"three"})
    assert cache.load(key) == {"x": b"three"}
    assert (private_cache / "cpu").stat().st_mode & 0o077 == 0


def test_the_cache_is_bounded(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_LIMIT", "1")
    keys = [cache.key_of({"k": k}) for k in range(12)]
    for age, key in enumerate(keys):
        cache.save(key, {"x": bytes(200_000)})
        path = private_cache / "cpu" / key[:2] / key
        if path.exists():
            os.utime(path, (1000 + age, 1000 + age))
    left = private_cache / "cpu" / "00" / ".new-left"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    cache.load(keys[0])  # used now, so the youngest
    cache.sweep(private_cache / "cpu", cache.limit())
    sizes = sum(p.stat().st_size for p in entries(private_cache))
    assert sizes <= 1 << 20 and not left.exists()
    assert cache.load(keys[0]) is not None and cache.load(keys[-1]) is not None
    assert cache.load(keys[1]) is None
    monkeypatch.setenv("KIR_CACHE_LIMIT", "many")
    with pytest.raises(UsageError, match="KIR_CACHE_LIMIT"):
        cache.save(keys[1], {"x": b""})


def test_a_folder_that_others_can_write_to(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, place = cache.key_of({"a": 1}), private_cache / "cpu"
    cache.save(key, {"x": b"one"})
    for path, mode in ((place, 0o770), (place, 0o707), (private_cache, 0o707)):
        kept = path.stat().st_mode
        path.chmod(mode)
        for use in (lambda: cache.load(key), lambda: cache.save(key, {"x": b"two"})):
            with pytest.raises(UsageError, match=r"others.*would run here") as caught:
                use()
            assert "KIR_CACHE_DIR" in (caught.value.hint or "")
        path.chmod(kept)
    private_cache.chmod(0o1777)  # as /tmp is: nobody can rename what is not his
    assert cache.load(key) == {"x": b"one"}
    mine = os.geteuid()
    if place.stat().st_uid == 0:  # root's folders are trusted by all
        os.chown(place, mine + 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: mine + 2)
    with pytest.raises(UsageError, match="another user"):
        cache.load(key)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KIR_CACHE_DIR", str(tmp_path / "file"))
    np.testing.assert_array_equal(kir.compile(SCALE)(ones(2, 3)), 3 * ones(2, 3))


FIRST = """
import sys, numpy as np, kir
f = kir.compile(sys.argv[1])
for n in (5, 70):
    x = np.ones((n, 40), np.float32)
    assert (f(x) == 3 * x).all()
print(int(bool({"llvmlite", "islpy", "lark", "kir.ir", "kir.syntax"} & set(sys.modules))))
"""


def started(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *args], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE)  # fmt: skip


def test_processes_share_what_one_compiled(tmp_path: Path, private_cache: Path) -> None:
    """Several at once on an empty cache, then one that needs no compiler."""
    file = tmp_path / "scale.kir"
    file.write_text(SCALE)
    first = [started(FIRST, str(file)) for _ in range(3)]
    assert [(p.communicate()[0].split(), p.returncode) for p in first] == [(["1"], 0)] * 3
    assert not [p for p in entries(private_cache) if p.name.startswith(".new-")]
    assert started(FIRST, str(file)).communicate()[0].split() == ["0"]
    for path in entries(private_cache):
        path.write_bytes(path.read_bytes()[:-3])  # damage everything
    assert started(FIRST, str(file)).communicate()[0].split() == ["1"]
    assert started(FIRST, str(file)).communicate()[0].split() == ["0"]


STUCK = """
import os, sys, time
from pathlib import Path
from kir.backends.cpu import cache
def stop(self, target):
    print("stuck", flush=True)
    time.sleep(60)
Path.replace = stop
cache.save(cache.key_of({"a": 1}), {"x": b"data"})
"""


def test_a_writer_killed_in_the_middle_harms_nobody(private_cache: Path) -> None:
    writer = started(STUCK)
    assert writer.stdout is not None and writer.stdout.readline().strip() == "stuck"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (left,) = entries(private_cache)
    assert left.name.startswith(".new-")
    key = cache.key_of({"a": 1})
    assert cache.load(key) is None
    cache.save(key, {"x": b"again"})
    assert cache.load(key) == {"x": b"again"}
    os.utime(left, (1000, 1000))
    cache.sweep(private_cache / "cpu", 1 << 30)
    assert not left.exists() and cache.load(key) == {"x": b"again"}


# --- kir.compile -----------------------------------------------------------------------------


def test_arguments_by_place_and_by_name() -> None:
    f = kir.compile(MATMUL)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 5)).astype("f4"), rng.standard_normal((5, 9)).astype("f4")
    c = np.empty((7, 9), np.float32)
    for made in (f(a, b), f(a, b=b), f(b=b, a=a), f(a, b, out=c), f(a, b, out=[c])):
        np.testing.assert_allclose(made, a @ b, rtol=1e-5, atol=1e-5)
    assert f(a, b, out=c) is c
    assert repr(f) == "<kir function matmul(a: float32, b: float32) -> (c)>"
    for wrong in (lambda: f(a), lambda: f(a, b, b), lambda: f(a, b, a=a), lambda: f(a, b, q=1),
                  lambda: f(a, [1.0]), lambda: f(a, a), lambda: f(a, b.astype("f8")),
                  lambda: f(a, b, out=[c, c]), lambda: f(a, b, out=c.T), lambda: f(a, b, out=a),
                  lambda: f(a.T.copy().T, b), lambda: f(a, b, M=3)):  # fmt: skip
        with pytest.raises(InputDataError):
            wrong()


def test_outputs_dims_and_parameters() -> None:
    x = np.arange(5, dtype=np.float32)
    f = kir.compile(TWO)
    y, s = f(x)
    np.testing.assert_array_equal(y, 2 * x)
    assert s == 10
    assert f(x, k=3)[0][1] == 3 and kir.compile(TWO, dims={"k": 4})(x)[0][1] == 4
    assert f(x)[0][1] == 2 and kir.compile(TWO, dynamic=True)(x, k=7)[0][1] == 7
    with pytest.raises(ConstraintError):
        f(x[:0])
    for options in ({"dims": {"Q": 1}}, {"dynamic": ("Q",)}, {"dynamic": "k"}):
        with pytest.raises(UsageError):
            kir.compile(TWO, **options)  # type: ignore[arg-type]


def test_what_is_specialised_and_what_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from kir.backends.cpu import backend

    texts: list[str] = []
    real = backend.compile_text
    monkeypatch.setattr(
        backend, "compile_text", lambda t, *rest: (texts.append(t), real(t, *rest))[1]
    )

    def compiled(f: kir.Function, *shapes: tuple[int, int, int]) -> int:
        before = len(texts)
        for m, n, k in shapes:
            np.testing.assert_allclose(f(ones(m, k), ones(k, n)), k * ones(m, n))
        return len(texts) - before

    shapes = (4, 8, 3), (5, 8, 3), (6, 8, 3), (4, 8, 3)
    assert compiled(kir.compile(MATMUL), *shapes) == 3
    assert compiled(kir.compile(MATMUL), *shapes) == 0  # from disk
    assert compiled(kir.compile(MATMUL, dynamic=("M",)), *shapes) == 1
    assert compiled(kir.compile(MATMUL, dynamic="M"), *shapes, (4, 9, 3)) == 1
    assert compiled(kir.compile(MATMUL, dynamic=True), *shapes, (4, 9, 3), (1, 1, 1)) == 1
    monkeypatch.setenv("KIR_CACHE_DIR", "")
    few = kir.compile(MATMUL, keep=2)
    assert compiled(few, *shapes) == 4  # the first was forgotten
    assert compiled(few, shapes[0], shapes[2]) == 0


def test_sources_of_all_kinds(tmp_path: Path) -> None:
    file = tmp_path / "scale.kir"
    file.write_text(SCALE + "\n" + TWO)
    x = ones(2, 3)
    for source in (file, str(file), kir.load(file), kir.parse(SCALE + TWO)):
        np.testing.assert_array_equal(kir.compile(source, "scale")(x), 3 * x)
    np.testing.assert_array_equal(kir.compile(parse_kernel(SCALE))(x), 3 * x)
    plain = kir.compile(file, "scale", schedule="none")
    np.testing.assert_array_equal(plain(x), 3 * x)
    for wrong in (lambda: kir.compile(file), lambda: kir.compile(file, "other"),
                  lambda: kir.compile(5), lambda: kir.compile(SCALE, target="toaster")):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(FileError):
        kir.compile(tmp_path / "none.kir")
    with pytest.raises(ParseError):
        kir.compile("kernel {")


def test_a_changed_file_is_compiled_anew(tmp_path: Path) -> None:
    file = tmp_path / "scale.kir"
    for factor in ("3.0", "5.0", "3.0"):
        file.write_text(SCALE.replace("3.0", factor))
        np.testing.assert_array_equal(kir.compile(file)(ones(2, 3)), float(factor) * ones(2, 3))


def test_debug_builds_check_indices() -> None:
    f = kir.compile("""kernel pick[N, M](x: f32[N], index: i64[M]) -> (y: f32[M]) {
      y[i: M] = x[index[i]]
    }""", debug=True)  # fmt: skip
    x = np.arange(4, dtype=np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(f(x, np.array([3, 0])), [3, 0])
        with pytest.raises(EvaluationError, match="out of range"):
            f(x, np.array([3, 4]))
