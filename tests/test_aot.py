"""Ahead of time: shared libraries and headers that C and C++ programs use without Python, and code
for chips that are not here."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kir.backends.cpu.archs import NAMED, host_features
from kir.cli import app
from kir.dtypes import DTYPES
from kir.errors import MissingExtraError, MissingHardwareError
from kir.inputs import random_inputs
from kir.interpret import run as interpret
from kir.ir import Kernel
from kir.pipeline import Target, choose_steps, lower
from kir.pipeline import compile as compile_item
from kir.specialise import output_shapes, specialise
from kir.syntax import load, parse, parse_kernel

ROOT = Path(__file__).resolve().parent.parent
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
DIALECTS = {"c99": ("gcc", "-std=c99"), "c++17": ("g++", "-std=c++17", "-x", "c++")}
X86_HERE = ["native"] + [
    name
    for name, arch in NAMED.items()
    if arch.triple.startswith("x86") and set(arch.needed) <= host_features()
]

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", str(tmp_path / "cache"))


def kir_lower(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["lower", *map(str, args)])


def built(folder: Path, program: Path, library: str, dialect: str = "c99") -> Path:
    """The program linked to the library in `folder`, all warnings being errors."""
    compiler, *options = DIALECTS[dialect]
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    made = folder / "program"
    done = subprocess.run(
        [compiler, *options, *STRICT, "-O1", str(program), "-x", "none", f"-I{folder}",
         f"-L{folder}", f"-l{library}", "-lm", f"-Wl,-rpath,{folder}", "-o", str(made)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


@needs_gcc
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_example_in_c(tmp_path: Path, dialect: str) -> None:
    out = tmp_path / "libsoftmax.so"
    arch = "x86-64-v3" if "x86-64-v3" in X86_HERE else "native"
    done = kir_lower(ROOT / "examples" / "softmax.kir", "--emit", "so", "--arch", arch, "-o", out)
    assert done.exit_code == 0, done.output
    program = built(tmp_path, ROOT / "examples" / "c" / "softmax.c", "softmax", dialect)
    for arguments in (["3", "17"], ["300", "1000", "1"], ["300", "1000", "2"], ["0", "5"], []):
        run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stdout
    info = json.loads(run.stdout.splitlines()[0])
    assert info["kernel"] == "softmax" and info["dims"] == ["M", "N"]
    assert info["inputs"] == {"x": "f32[M, N]"} and info["interface"] == "KIR_1"


@needs_gcc
def test_a_graph_in_c(tmp_path: Path) -> None:
    done = kir_lower(ROOT / "examples" / "mlp.kir", "--emit", "so", "-o", tmp_path / "libmlp.so")
    assert done.exit_code == 0, done.output
    (tmp_path / "main.c").write_text("""#include <stdio.h>
#include "libmlp.h"
int main(void) {
  static float x[2 * 3], w1[4 * 3], b1[4], w2[5 * 4], b2[5], y[2 * 5];
  for (int i = 0; i < 6; i++) x[i] = (float)i;
  for (int i = 0; i < 12; i++) w1[i] = 0.25f;
  for (int i = 0; i < 20; i++) w2[i] = 1.0f;
  for (int i = 0; i < 5; i++) b2[i] = (float)i;
  for (int k = 0; k < 3; k++)
    if (kir_mlp(x, w1, b1, w2, b2, y, 2, 3, 4, 5, 0)) return 1;
  for (int i = 0; i < 10; i++) printf("%.6f ", y[i]);
  return 0;
}
""")
    run = subprocess.run([built(tmp_path, tmp_path / "main.c", "mlp")], capture_output=True,
                         text=True, check=True)  # fmt: skip
    gelu = [4 * 0.75 * 0.7733726, 4 * 3.0 * 0.9986501]
    wanted = [gelu[i] + j for i in range(2) for j in range(5)]
    np.testing.assert_allclose(list(map(float, run.stdout.split())), wanted, rtol=1e-5)


@needs_gcc
@pytest.mark.parametrize("arch", X86_HERE)
@pytest.mark.parametrize("name", ["matmul_bf16", "argmax", "dropout", "lstm", "mlp"])
def test_a_library_computes_what_the_interpreter_does(tmp_path: Path, name: str, arch: str) -> None:
    """Called by ctypes, as another language would: pointers, dims, threads."""
    module = parse(load(ROOT / "examples" / f"{name}.kir"))
    item: Any = next(iter(module.graphs().values()), None) or next(iter(module.kernels().values()))
    dims = {d.name: 3 + 2 * k for k, d in enumerate(item.dims) if d.default is None}
    shape = ",".join(f"{n}={v}" for n, v in dims.items())
    out = tmp_path / "libk.so"
    done = kir_lower(ROOT / "examples" / f"{name}.kir", "--emit", "so", "--arch", arch, "-o", out)
    assert done.exit_code == 0, f"{shape}: {done.output}"
    arrays = random_inputs(item, dims, 0, module)
    want = (
        interpret(item, arrays, dims) if isinstance(item, Kernel)
        else compile_item(item, "cpu", {}, "none", module)(arrays, dims)
    )  # fmt: skip
    shapes = output_shapes(item, dims)
    for threads in (0, 1, -2):
        got = {p.name: np.empty(shapes[p.name], p.type.numpy) for p in item.outputs}
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays.values(), *got.values())]
        sizes = [ctypes.c_int64(v) for v in dims.values()]
        entry = getattr(ctypes.CDLL(str(out)), f"kir_{item.name}")
        assert entry(*pointers, *sizes, ctypes.c_int32(threads)) == 0
        for p in item.outputs:
            exact = want[p.name].astype(np.float64)
            np.testing.assert_allclose(got[p.name].astype(np.float64), exact, rtol=2e-2, atol=1e-5)


@needs_gcc
def test_dims_that_a_library_refuses(tmp_path: Path) -> None:
    file, out = tmp_path / "k.kir", tmp_path / "k.so"
    file.write_text("""kernel k[N, M](x: f32[N]) -> (y: f32[N]) where N % 4 == 0, M >= N {
      y[i: N] = x[i] + f32(M) }""")
    assert kir_lower(file, "--emit", "so", "-o", out).exit_code == 0
    assert "N % 4 == 0" in (tmp_path / "k.h").read_text()
    entry = ctypes.CDLL(str(out)).kir_k
    x, y = (np.zeros(8, np.float32) for _ in range(2))

    def call(n: int, m: int) -> int:
        places = [ctypes.c_void_p(a.ctypes.data) for a in (x, y)]
        result: int = entry(*places, ctypes.c_int64(n), ctypes.c_int64(m), ctypes.c_int32(0))
        return result

    assert [call(*d) for d in ((-4, 9), (3, 9), (8, 7), (8, -8))] == [1] * 4 and not y.any()
    assert call(8, 9) == 0 and (y == 9).all() and call(0, 0) == 0


@needs_gcc
def test_what_a_library_exports(tmp_path: Path) -> None:
    out = tmp_path / "libadd.so"
    assert kir_lower(ROOT / "examples" / "add.kir", "--emit", "so", "-o", out).exit_code == 0
    listed = subprocess.run(["nm", "-D", "--defined-only", out], capture_output=True, text=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names == {"kir_add@@KIR_1", "kir_add_info@@KIR_1", "KIR_1"}


@needs_gcc
def test_headers_of_every_dtype_in_c_and_in_c_plus_plus(tmp_path: Path) -> None:
    """Names that are words of C are no hindrance."""
    inputs = ", ".join(f"t{k}: {t}[int]" for k, t in enumerate(DTYPES))
    text = f"""kernel register[int, N = 3]({inputs}) -> (double: f32[int, N]) where int >= 1 {{
      for i: int {{ for j: N {{ double[i, j] = f32(t0[0]) }} }} }}"""
    file = tmp_path / "k.kir"
    file.write_text(text)
    done = kir_lower(file, "--emit", "header", "--schedule", "none", "-o", tmp_path / "k.h")
    assert done.exit_code == 0, done.output
    source = tmp_path / "k.c"
    source.write_text('#include "k.h"\n#include "k.h"\nint main(void) { return 0; }\n')
    for compiler, *options in DIALECTS.values():
        if shutil.which(compiler):
            subprocess.run([compiler, *options, *STRICT, "-c", source, "-o", tmp_path / "k.o"],
                           check=True)  # fmt: skip


def test_libraries_for_chips_that_cannot_be_linked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = parse_kernel("kernel k[N](x: f32[N]) -> (y: f32[N]) { for i: N { y[i] = x[i] } }")
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda n: None if "aarch64" in n else real(n))
    with pytest.raises(MissingExtraError, match="aarch64-linux-gnu-gcc"):
        lower(kernel, Target("cpu", arch="aarch64"), (), "so")
    monkeypatch.setattr(shutil, "which", lambda n: None)
    with pytest.raises(MissingExtraError, match="C compiler"):
        lower(kernel, Target("cpu"), (), "so")
    with pytest.raises(MissingHardwareError, match="aarch64"):
        compile_item(kernel, Target("cpu", arch="aarch64"))


# --- AArch64: compiled, not run --------------------------------------------------------------

EXAMPLES = sorted((ROOT / "examples").glob("*.kir"))
NEON = re.compile(r"\bv\d+\.(16b|8h|4s|2d|8b|4h|2s)\b|\bq\d+\b")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_every_example_compiles_for_aarch64(file: Path) -> None:
    module = parse(load(file))
    for kernel in module.kernels().values():
        spec = specialise(kernel, {})
        goal = Target("cpu", arch="neoverse-v1" if "bf16" in file.stem else "aarch64")
        steps = choose_steps(spec, goal, None, module)
        artifact = lower(spec, goal, steps, "asm")
        asm, obj = artifact.stages["asm"], artifact.stages["obj"]
        assert isinstance(asm, str) and isinstance(obj, bytes)
        assert obj[:5] == b"\x7fELF\x02" and int.from_bytes(obj[18:20], "little") == 183
        assert NEON.search(asm), f"no vectors in {kernel.name}"
        assert f"kir_{kernel.name}:" in asm


def test_a_product_on_aarch64_multiplies_vectors() -> None:
    kernel = parse(load(ROOT / "examples" / "matmul.kir")).kernels()["matmul"]
    spec = specialise(kernel, {"M": 96, "N": 96, "K": 96})
    goal = Target("cpu", arch="aarch64")
    asm = lower(spec, goal, choose_steps(spec, goal), "asm").stages["asm"]
    assert isinstance(asm, str) and len(re.findall(r"\bfmla\s+v\d+\.4s", asm)) >= 8
