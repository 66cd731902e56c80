"""Cross-compiling generated Triton: no GPU and no driver are needed.

Each function is compiled by `triton.compile` with an explicit target. Several functions of one
kernel are joined into one module: their assembly is concatenated and assembled again by the same
backend, so that every stage is one text or one binary.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kir.backends.triton.host import Generated
from kir.errors import CompileError, MissingExtraError

STAGES = {
    "nvidia": ("source", "ttir", "ttgir", "llir", "ptx", "cubin"),
    "amd": ("source", "ttir", "ttgir", "llir", "amdgcn", "hsaco"),
}
ARCHS = {
    "nvidia": ("sm_90", "sm_80", "sm_100"),
    "amd": ("gfx942", "gfx950", "gfx1100"),
}
SHARED_BYTES = {
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
    "gfx950": 163840,
    "gfx1100": 65536,
}
"""What one program may use of a chip's on-chip memory."""
ASSEMBLY = {"nvidia": "ptx", "amd": "amdgcn"}
BINARY = {"nvidia": "cubin", "amd": "hsaco"}


@dataclass(frozen=True)
class Compiled:
    """All stages, the functions' launch data as compiled, and what the compilers reported."""

    stages: Mapping[str, str | bytes]
    functions: Mapping[str, Mapping[str, Any]]
    report: Mapping[str, Any]


def import_triton() -> ModuleType:
    """Triton; MissingExtraError where it is not installed."""
    try:
        import triton
    except ImportError as error:
        raise MissingExtraError(
            "the package `triton` is not installed", hint="pip install 'kir[triton]'"
        ) from error
    module: ModuleType = triton
    return module


def load_module(source: str, folder: Path) -> ModuleType:
    """Import generated source. Triton reads a function's text from its file, so there is one, in
    a private folder."""
    path = folder / "kernel.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("kir_generated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpu_target(target: str, arch: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if target == "nvidia":
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 32 if arch.startswith(("gfx10", "gfx11", "gfx12")) else 64)


def options(launch: Mapping[str, Any]) -> dict[str, Any]:
    """Float semantics are pinned: no fusion of products and sums, subnormals kept."""
    return {
        "num_warps": launch["num_warps"],
        "num_stages": launch["num_stages"],
        "enable_fp_fusion": False,
        "sanitize_overflow": False,
        "enable_reflect_ftz": False,
        "allow_flush_denorm": False,
    }


def ast_source(module: ModuleType, name: str, launch: Mapping[str, Any]) -> Any:
    """What to compile: the function with its signature. The launcher aligns every pointer."""
    from triton.compiler import ASTSource

    arguments = launch["arguments"]
    signature = {a["parameter"]: a["type"] for a in arguments}
    aligned = {
        (k,): [["tt.divisibility", 16]] for k, a in enumerate(arguments) if a["type"][0] == "*"
    }
    return ASTSource(getattr(module, name), signature, {}, aligned)


def compile_all(generated: Generated, target: str, arch: str) -> Compiled:
    """Compile every function of a kernel to the last stage; CompileError where Triton refuses."""
    triton = import_triton()
    from triton.compiler.errors import TritonError

    known = (TritonError, RuntimeError, ValueError, TypeError, AssertionError, OSError)
    parts: dict[str, Any] = {}
    functions: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="kir-triton-") as folder, _no_line_info(triton):
        module = load_module(generated.source, Path(folder))
        for name, launch in generated.plan["functions"].items():
            try:
                parts[name], functions[name] = _compile_one(module, name, launch, target, arch)
            except known as error:
                raise CompileError(
                    f"Triton could not compile `{name}` for {arch}: {_first(error)}",
                    hint="`--emit source` shows what it was given",
                ) from error
    stages = _stages(generated, parts, target, arch)
    report = {name: _report(part, target) for name, part in parts.items()}
    for name, launch in functions.items():
        report[name]["num_stages"] = launch["num_stages"]
    return Compiled(stages, functions, {"triton": triton.__version__, "functions": report})


def _compile_one(
    module: ModuleType, name: str, launch: Mapping[str, Any], target: str, arch: str
) -> tuple[Any, Mapping[str, Any]]:
    """One function. `num_stages` is a hint: where the chip's shared memory is too small for so
    many, fewer are taken, as the report says."""
    import triton

    for stages in range(launch["num_stages"], 0, -1):
        taken = {**launch, "num_stages": stages}
        part = triton.compile(
            ast_source(module, name, taken), target=gpu_target(target, arch), options=options(taken)
        )
        if part.metadata.shared <= SHARED_BYTES[arch]:
            break
    return part, taken


def _first(error: BaseException) -> str:
    lines = [x for x in str(error).splitlines() if x.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _no_line_info:
    """Line tables name a temporary file, and keep assembly texts from being joined."""

    def __init__(self, triton: ModuleType) -> None:
        self.compilation = triton.knobs.compilation

    def __enter__(self) -> None:
        self.before = self.compilation.disable_line_info
        self.compilation.disable_line_info = True

    def __exit__(self, *exc: object) -> None:
        self.compilation.disable_line_info = self.before


def _stages(
    generated: Generated, parts: Mapping[str, Any], target: str, arch: str
) -> dict[str, str | bytes]:
    stages: dict[str, str | bytes] = {"source": generated.source}
    texts = STAGES[target][1:-1]
    mark = {"ttir": "//", "ttgir": "//", "llir": ";", "ptx": "//", "amdgcn": ";"}
    for stage in texts:
        pieces = {name: str(part.asm[stage]) for name, part in parts.items()}
        if len(pieces) == 1 or stage != ASSEMBLY[target]:
            stages[stage] = "\n".join(
                (f"{mark[stage]} {name}\n" if len(pieces) > 1 else "") + text
                for name, text in pieces.items()
            )
        else:
            stages[stage] = join_ptx(pieces) if target == "nvidia" else join_amdgcn(pieces)
    if len(parts) == 1:
        (part,) = parts.values()
        stages[BINARY[target]] = bytes(part.asm[BINARY[target]])
    elif parts:
        stages[BINARY[target]] = assemble(str(stages[ASSEMBLY[target]]), parts, target, arch)
    return stages


def assemble(text: str, parts: Mapping[str, Any], target: str, arch: str) -> bytes:
    """The binary of a joined module, by the last stage of Triton's own pipeline."""
    from triton._C.libtriton import llvm
    from triton.backends.compiler import Language
    from triton.compiler.compiler import make_backend

    llvm.init_targets()  # not done yet where the functions came from Triton's cache
    first = next(iter(parts.values()))
    backend = make_backend(gpu_target(target, arch))
    parsed = backend.parse_options(
        {"num_warps": first.metadata.num_warps, "enable_fp_fusion": False}
    )
    pipeline: dict[str, Any] = {}
    backend.add_stages(pipeline, parsed, Language.TRITON)
    try:
        return bytes(pipeline[BINARY[target]](text, dict(first.metadata._asdict())))
    except RuntimeError as error:
        raise CompileError(f"the joined module could not be assembled: {_first(error)}") from error


def join_ptx(pieces: Mapping[str, str]) -> str:
    """One PTX module of several: one header, the shared declarations once."""
    header: list[str] = []
    bodies: list[str] = []
    seen: set[str] = set()
    for place, (name, text) in enumerate(pieces.items()):
        body: list[str] = []
        for line in text.splitlines():
            if re.match(r"\.(version|target|address_size)\b", line):
                if place == 0:
                    header.append(line)
            elif re.match(r"\.(extern|global|const|visible \.global)\b", line):
                if line not in seen:
                    seen.add(line)
                    header.append(line)
            else:
                body.append(line)
        bodies.append(f"// {name}\n" + "\n".join(body))
    return "\n".join([*header, *bodies]) + "\n"


def join_amdgcn(pieces: Mapping[str, str]) -> str:
    """One assembly text of several: local labels made distinct, the notes merged."""
    heads: list[str] = []
    kernels: list[str] = []
    rest = ""
    for place, (name, text) in enumerate(pieces.items()):
        text = re.sub(r"\.L(?=[A-Za-z_])", f".L{place}_", text)
        text = re.sub(r"\b__hip_cuid_\w*", "", text)
        body, _, note = text.partition("\t.amdgpu_metadata\n")
        yaml, _, _ = note.partition("\t.end_amdgpu_metadata\n")
        listed = re.search(r"^amdhsa\.kernels:\n((?:(?:  | *-).*\n)*)", yaml, re.MULTILINE)
        assert listed is not None
        kernels.append(listed.group(1))
        rest = yaml[listed.end() :]
        if place:
            body = re.sub(
                r"^\s*\.(amdgcn_target|amdhsa_code_object_version)\b.*\n", "", body, flags=re.M
            )
        heads.append(f"; {name}\n{body}")
    merged = "\t.amdgpu_metadata\n---\namdhsa.kernels:\n" + "".join(kernels) + rest
    return "\n".join(heads) + merged + "\t.end_amdgpu_metadata\n"


def _report(part: Any, target: str) -> dict[str, Any]:
    """Registers, spills and shared memory of one function, where the tools tell."""
    found: dict[str, Any] = {
        "shared_bytes": part.metadata.shared,
        "num_warps": part.metadata.num_warps,
    }
    if target == "amd":
        text = str(part.asm["amdgcn"])
        for key in ("vgpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count",
                    "agpr_count", "private_segment_fixed_size"):  # fmt: skip
            match = re.search(rf"\.{key}:\s+(\d+)", text)
            if match:
                found[key] = int(match.group(1))
        return found
    return {**found, **_cuobjdump(bytes(part.asm["cubin"]))}


def _cuobjdump(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=False,
        )
    names = {"REG": "registers", "STACK": "stack_bytes", "LOCAL": "local_bytes"}
    return {
        names[key]: int(value)
        for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)
    }
