"""Ahead of time: a shared library and a C header."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from kir.backends.llvm import symbol_of
from kir.dtypes import DType
from kir.errors import CompileError, MissingExtraError
from kir.ir import Kernel
from kir.syntax import format_expr

C_TYPES = {"f64": "double", "f32": "float", "bool": "uint8_t"}
"""Narrow floats are passed as their bits: `uint16_t`, `uint8_t`."""


def c_type(t: DType) -> str:
    if t.is_integer:
        return f"{'u' if t.kind == 'uint' else ''}int{t.bits}_t"
    return C_TYPES.get(t.name, f"uint{t.bits}_t")


def header(kernel: Kernel) -> str:
    """The declaration of the entry in C, with what each argument is."""
    guard = f"KIR_{kernel.name.upper()}_H"
    arguments, comments = [], []
    for p in kernel.params:
        const = "const " if p in kernel.inputs else ""
        arguments.append(f"{const}{c_type(p.type)} *restrict {p.name}_")
        shape = ", ".join(format_expr(e) for e in p.shape)
        comments.append(f"   {p.name}_: {p.type}[{shape}], row-major")
    arguments += [f"int64_t {d.name}_dim" for d in kernel.dims] + ["int32_t threads"]
    comments.append("   threads: 0 for OpenMP's default. Returns 0.")
    head = [
        "#include <stdint.h>",
        "#ifdef __cplusplus",
        "#define restrict",
        'extern "C" {',
        "#endif",
    ]
    what = [f"/* {kernel.name}", *comments, "*/"]
    entry = f"int32_t {symbol_of(kernel)}({', '.join(arguments)});"
    tail = ["#ifdef __cplusplus", "}", "#undef restrict", "#endif", "#endif", ""]
    return "\n".join([f"#ifndef {guard}", f"#define {guard}", *head, *what, entry, *tail])


def shared_library(obj: bytes, parallel: bool) -> bytes:
    """The object linked by the system's C compiler; MissingExtraError where there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise MissingExtraError(
            "a shared library needs a C compiler (cc) to link it",
            hint="install gcc or clang, or use `--emit obj`",
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        source.write_bytes(obj)
        libraries = ["-lm", *(["-l:libgomp.so.1"] if parallel else [])]
        done = subprocess.run(
            [compiler, "-shared", "-o", str(target), str(source), *libraries],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise CompileError(f"{compiler} could not link: {done.stderr.strip()[-500:]}")
        return target.read_bytes()
