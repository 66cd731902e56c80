"""The package as users meet it: what an import loads, the wheel, the layout's one-way imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "triton", "hypothesis", "llvmlite", "cutlass", "sqlalchemy", "islpy")


@pytest.mark.parametrize(
    "code",
    ["import kir", "import sys; sys.argv = ['kir', '--help']; import kir.cli as c; c.main()"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.split("\n")}
    assert "kir" in loaded and not loaded & set(HEAVY)


ALLOWED = {
    "kir": {"kir"},
    "frontends": {"kir", "kir.frontends"},
    "backends": {"kir", "kir.backends"},
    "agent": {"kir", "kir.frontends", "kir.backends", "kir.agent"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        relative = path.relative_to(ROOT / package)
        if package == "kir" and relative.parts[0] in ("cli", "frontends", "backends", "agent"):
            continue  # the links are checked as themselves; the command line may import all, lazily
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                parts = name.split(".")
                assert parts[0] not in ("frontends", "backends", "agent"), f"{path}: {name}"
                if (
                    parts[0] == "kir"
                    and len(parts) > 1
                    and parts[1] in ("frontends", "backends", "agent")
                ):
                    assert f"kir.{parts[1]}" in ALLOWED[package], f"{path} imports {name}"


def test_the_wheel_works_in_another_folder(tmp_path: Path) -> None:
    """Built from a clean copy of the tracked files, used from a folder without the sources."""
    source = tmp_path / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(
        ["tar", "--null", "--no-recursion", "-T", "-", "-cf", str(tmp_path / "s.tar")],
        cwd=ROOT, input=listed, check=True,
    )  # fmt: skip
    subprocess.run(["tar", "-xf", str(tmp_path / "s.tar"), "-C", str(source)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), "."],
        cwd=source, capture_output=True, check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False, system_site_packages=False)
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    (site / "dependencies.pth").write_text(
        "\n".join(p for p in sys.path if p.endswith("site-packages"))
    )
    names = {p.name for p in site.iterdir()}
    assert {n for n in names if not n.endswith((".dist-info", ".pth"))} == {"kir"}
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "double.kir").write_text(
        "kernel double[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = 2 * x[i] }\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for command in (
        ("check", "double.kir"),
        ("run", "double.kir", "--shape", "N=1000"),
        ("targets",),
        ("knowledge", "guidance/online-softmax"),
    ):
        done = subprocess.run(
            [str(tmp_path / "env" / "bin" / "python"), "-m", "kir", *command],
            cwd=other, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
