"""LLVM's parser, optimiser and code generator, through llvmlite."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from kir.backends.llvm.machine import Machine
from kir.errors import CompileError

_lock = threading.Lock()


@lru_cache(maxsize=1)
def _initialise() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def versions() -> dict[str, str]:
    """Of what makes the code: part of every cache key."""
    return {"llvmlite": llvmlite.__version__, "llvm": ".".join(map(str, llvm.llvm_version_info))}


def host() -> tuple[str, str, str]:
    """(triple, cpu, features) of this machine."""
    _initialise()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.get_default_triple(), llvm.get_host_cpu_name(), features


@dataclass(frozen=True)
class Compiled:
    """The optimised IR and the code of one module; `asm` is empty where it was not asked for."""

    llvm: str
    asm: str
    obj: bytes


def target_machine(machine: Machine) -> Any:
    _initialise()
    try:
        target = llvm.Target.from_triple(machine.triple)
    except RuntimeError as error:
        raise CompileError(f"LLVM has no target {machine.triple}: {error}") from None
    return target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="small"
    )


def optimise(text: str, machine: Machine) -> Any:
    """The verified and optimised module of LLVM IR text; CompileError where LLVM refuses it."""
    tm = target_machine(machine)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise CompileError(
            f"LLVM refused the generated code: {error}", hint="this is a bug of KIR: report it"
        ) from None
    module.triple = machine.triple
    module.data_layout = str(tm.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # but where the emitter asks for it
    builder = llvm.create_pass_builder(tm, options)
    builder.getModulePassManager().run(module, builder)
    return module


def compile_text(text: str, machine: Machine, asm: bool = True) -> Compiled:
    """The stages of one module. LLVM's global state is not safe to enter from two threads."""
    with _lock:
        tm = target_machine(machine)
        module = optimise(text, machine)
        assembly = tm.emit_assembly(module) if asm else ""
        return Compiled(str(module), assembly, tm.emit_object(module))


def compile_object(text: str, machine: Machine) -> bytes:
    with _lock:
        obj: bytes = target_machine(machine).emit_object(optimise(text, machine))
        return obj
