"""Ahead of time: a shared library and a C header."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from kir import __version__
from kir.backends.llvm import Machine, symbol_of
from kir.dtypes import DType
from kir.errors import CompileError, MissingExtraError
from kir.ir import Kernel, Param
from kir.syntax import format_expr

C_TYPES = {"f64": "double", "f32": "float", "bool": "uint8_t"}
"""Narrow floats are passed as their bits: `uint16_t`, `uint8_t`."""
INTERFACE = "KIR_1"
"""The symbols' version: it changes with the way in which arguments are passed."""


def c_type(t: DType) -> str:
    if t.is_integer:
        return f"{'u' if t.kind == 'uint' else ''}int{t.bits}_t"
    return C_TYPES.get(t.name, f"uint{t.bits}_t")


def symbols_of(kernel: Kernel) -> tuple[str, str]:
    """What a library exports: the entry, and a text about it."""
    return symbol_of(kernel), f"{symbol_of(kernel)}_info"


def header(kernel: Kernel, machine: Machine) -> str:
    """The declarations in C (C99 or C++), with what each argument is."""
    guard = f"KIR_{kernel.name.upper()}_H"
    entry, info = symbols_of(kernel)
    arguments, comments = [], []
    for p in kernel.params:
        const = "const " if p in kernel.inputs else ""
        arguments.append(f"{const}{c_type(p.type)} *KIR_RESTRICT {p.name}_")
        role = "input" if p in kernel.inputs else "output"
        comments.append(f"   {p.name}_: {role} {_shown(p)}, row-major")
    for d in kernel.dims:
        arguments.append(f"int64_t {d.name}_dim")
        comments.append(f"   {d.name}_dim: at least 0")
    if kernel.constraints:
        wanted = ", ".join(format_expr(c) for c in kernel.constraints)
        comments.append(f"   {wanted}")
    arguments.append("int32_t threads")
    comments += [
        "   threads: at most so many; 0 leaves it to OMP_NUM_THREADS",
        "   An output shares no memory with another argument. Returns 0; 1, having done nothing,",
        "   where the dims are not as said. May be called from several threads at a time.",
    ]
    lines = [
        f"/* {kernel.name}, made by KIR {__version__} for {machine.cpu}.", "", *comments, "*/",
        f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>", "",
        "#ifndef KIR_RESTRICT", "#ifdef __cplusplus", "#define KIR_RESTRICT __restrict", "#else",
        "#define KIR_RESTRICT restrict", "#endif", "#endif", "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"int32_t {entry}(", *(f"    {a}," for a in arguments[:-1]), f"    {arguments[-1]});", "",
        "/* A JSON text: the kernel, its arguments, the version and chip that it was made for. */",
        f"extern const char {info}[];", "",
        "#ifdef __cplusplus", "}", "#endif", "", "#endif", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _shown(p: Param) -> str:
    return f"{p.type}[{', '.join(format_expr(e) for e in p.shape)}]"


def information(kernel: Kernel, machine: Machine) -> str:
    """LLVM IR of the text about a kernel."""
    record = {
        "kernel": kernel.name,
        "inputs": {p.name: _shown(p) for p in kernel.inputs},
        "outputs": {p.name: _shown(p) for p in kernel.outputs},
        "dims": [d.name for d in kernel.dims],
        "version": __version__, "interface": INTERFACE,
        "triple": machine.triple, "cpu": machine.cpu,
    }  # fmt: skip
    data = json.dumps(record).encode() + b"\0"
    text = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:02X}" for c in data)
    return f'@{symbols_of(kernel)[1]} = constant [{len(data)} x i8] c"{text}"\n'


def linker_for(machine: Machine) -> str:
    """The C compiler that links for a machine; MissingExtraError where there is none."""
    processor = machine.triple.split("-")[0]
    if processor != _own_processor():
        cross = f"{processor}-linux-gnu-gcc"
        found = shutil.which(cross)
        if found is None:
            raise MissingExtraError(
                f"a shared library for {processor} needs a cross compiler ({cross}) to link it",
                hint="install it, or use `--emit obj` and link where the library is to run",
            )
        return found
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise MissingExtraError(
            "a shared library needs a C compiler (cc) to link it",
            hint="install gcc or clang, or use `--emit obj`",
        )
    return found


def _own_processor() -> str:
    import platform

    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def shared_library(obj: bytes, kernel: Kernel, machine: Machine, parallel: bool) -> bytes:
    """The object linked by a C compiler, exporting the entry and its text under the version of the
    interface. MissingExtraError where there is no compiler, CompileError where it fails."""
    compiler = linker_for(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target, script = folder / "kernel.o", folder / "kernel.so", folder / "symbols"
        source.write_bytes(obj)
        exported = " ".join(f"{s};" for s in symbols_of(kernel))
        script.write_text(f"{INTERFACE} {{ global: {exported} local: *; }};\n", encoding="ascii")
        libraries = ["-lm", *(["-l:libgomp.so.1"] if parallel else [])]
        options = [f"-Wl,--version-script={script}", "-Wl,--no-undefined", "-Wl,-z,relro,-z,now"]
        done = subprocess.run(
            [compiler, "-shared", "-o", str(target), str(source), *options, *libraries],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise CompileError(f"{compiler} could not link: {done.stderr.strip()[-500:]}")
        return target.read_bytes()
