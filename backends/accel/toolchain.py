"""LLVM by way of llvmlite: from IR text to assembly and objects of a machine, or host code."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from kir.backends.accel.elf import read_object
from kir.backends.accel.machine import Core, Machine
from kir.errors import CompileError, UnsupportedError, UsageError

RUNTIME = Path(__file__).parent / "runtime"
_ENGINES = ("kir_dma_load", "kir_dma_store", "kir_dma_wait", "kir_matrix_mma")
RUN_TIME_SYMBOLS = frozenset((*_ENGINES, "memcpy", "memmove", "memset"))
"""All that a kernel's object may need from outside: the run-time interface (kir_accel.h)."""


@lru_cache(maxsize=1)
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@lru_cache(maxsize=8)
def target_machine(core: Core) -> Any:
    """LLVM's target machine of a core; UsageError where LLVM lacks it or KIR cannot use it."""
    _initialize()
    try:
        target = llvm.Target.from_triple(core.triple)
    except RuntimeError as error:
        raise UsageError(f"LLVM does not know the triple `{core.triple}`: {error}") from None
    machine = target.create_target_machine(
        cpu=core.cpu,
        features=",".join(core.features),
        opt=3,
        reloc="static",
        codemodel=core.code_model,
        abiname=core.abi,
    )
    layout = str(machine.target_data)
    if not layout.startswith("e") or re.search(r"-p:(?!64)", layout):
        raise UsageError(
            f"`{core.triple}` is no 64-bit little-endian machine", hint="KIR needs one"
        )
    _check_features(core, machine)
    return machine


def _check_features(core: Core, machine: Any) -> None:
    """LLVM only warns of an unknown RISC-V extension: see that each one took effect."""
    if not core.triple.startswith("riscv"):
        return
    asm = machine.emit_assembly(llvm.parse_assembly("define void @f() { ret void }"))
    found = re.search(r'\.attribute\s+5,\s*"rv64([^"]*)"', asm)
    extensions = found[1].split("_") if found else []
    present = {re.sub(r"[0-9]+p[0-9]+$", "", x) for x in extensions}
    for feature in core.features:
        name = feature[1:]
        extension = re.fullmatch(r"[a-z]|z[a-z0-9]+", name)
        if feature[0] == "+" and extension and name not in present | {"e", "i"}:
            raise UsageError(
                f"LLVM does not know the RISC-V feature `{feature}` of `{core.cpu}`",
                hint="see the list of extensions in LLVM's RISC-V user guide",
            )


def parse(text: str) -> Any:
    """A verified LLVM module; CompileError where LLVM refuses the text."""
    _initialize()
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM refuses the generated code: {error}") from None
    return module


def optimize(module: Any, machine: Any) -> None:
    """LLVM's standard pipeline at -O2 for this machine, loop and SLP vectorization included."""
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = True
    options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def compiled(text: str, machine: Machine) -> tuple[str, str, bytes]:
    """LLVM IR as optimized, assembly and object of a kernel; raises as `target_machine`, `parse`.

    UnsupportedError where the object needs a symbol that the run-time interface does not have.
    """
    target = target_machine(machine.core)
    module = parse(text)
    module.triple = machine.core.triple
    module.data_layout = str(target.target_data)
    optimize(module, target)
    obj = bytes(target.emit_object(module))
    check_symbols(obj, machine)
    return str(module), str(target.emit_assembly(module)), obj


def check_symbols(obj: bytes, machine: Machine) -> None:
    """UnsupportedError where the object calls what the run-time interface does not give."""
    if obj[:4] != b"\x7fELF":
        return
    missing = sorted(set(read_object(obj).undefined()) - RUN_TIME_SYMBOLS)
    if missing:
        raise UnsupportedError(
            f"the code for `{machine.core.triple}` calls {', '.join(f'`{x}`' for x in missing)},"
            " which the run-time interface does not have",
            hint="a feature of the core, such as +d or +zfh, may replace the call",
        )


def runtime_text() -> str:
    """The reference implementation of the run-time interface, in LLVM IR."""
    return (RUNTIME / "kir_accel.ll").read_text(encoding="utf-8")


def waves_text() -> str:
    """sin and cos of large f32 values, in LLVM IR: part of a kernel that needs them."""
    return (RUNTIME / "waves.ll").read_text(encoding="utf-8")


def start_text(pe_bytes: int) -> str:
    """The program around a kernel for QEMU, in LLVM IR."""
    text = (RUNTIME / "start.ll").read_text(encoding="utf-8")
    return text.replace("KIR_PE_BYTES", str(pe_bytes))


def linked(*texts: str) -> Any:
    """One module of several texts."""
    whole = parse(texts[0])
    for text in texts[1:]:
        whole.link_in(parse(text))
    return whole


def host_machine() -> Any:
    """A target machine for this computer, with its CPU's features."""
    _initialize()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=features,
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )
