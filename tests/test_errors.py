"""What bad input gets: golden messages. Each tests/errors/*.kir is an invalid program, or opens
with the command (`# kir ...`) that must fail; the .txt beside it holds the exit code and stderr.
`make goldens` rewrites them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kir import errors
from kir.check import check_kernel
from kir.cli import main
from kir.dtypes import f32
from kir.errors import KirError
from kir.ir import Axis, Kernel, Loop, Param, Read, Store, Var, const

FOLDER = Path(__file__).parent / "errors"
CASES = sorted(FOLDER.glob("*.kir"))


def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    """Run the command in this process; the exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["kir", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    update_goldens: bool,
) -> None:
    monkeypatch.chdir(FOLDER)
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    command = first[len("# kir ") :] if first.startswith("# kir ") else "check {file}"
    args = [word.replace("{file}", path.name) for word in command.split()]
    code, _, err = invoke(monkeypatch, capsys, *args)
    assert code in (1, 2)
    assert "Traceback" not in err and "internal error" not in err
    found = f"exit code {code}\n{err.rstrip()}\n"
    golden = path.with_suffix(".txt")
    if update_goldens:
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


def test_there_are_enough_and_each_says_how_to_mend_it() -> None:
    assert len(CASES) >= 40
    without = [p.stem for p in CASES if "= hint:" not in p.with_suffix(".txt").read_text()]
    assert not without


def titles() -> dict[str, str]:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, KirError)]
    return {k.title: k.__name__ for k in kinds if k is not KirError}


# raised where no command line can lead to them on every machine; the tests that raise them
ELSEWHERE = {
    "EvaluationError": "test_interpret",
    "VerificationError": "test_verify",
    "CompileError": "test_errors",
    "MissingExtraError": "test_errors",
    "InputDataError": "test_errors",
}


def test_every_exception_class_is_shown_by_some_case() -> None:
    shown = {p.with_suffix(".txt").read_text().split("\n")[1].split(":")[0] for p in CASES}
    missing = {name for title, name in titles().items() if title not in shown} - set(ELSEWHERE)
    assert not missing
    for name, module in ELSEWHERE.items():
        texts = [p.read_text(encoding="utf-8") for p in FOLDER.parent.glob(f"{module}*.py")]
        assert any(name in text for text in texts), f"{name} is not tested in {module}"


def test_input_of_the_wrong_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(16, np.float64))
    case = str(FOLDER / "constraint_broken.kir")
    code, _, err = invoke(monkeypatch, capsys, "run", case, "--input", f"x={tmp_path / 'x.npy'}")
    assert code == 2 and err.startswith(errors.InputDataError.title) and "f32" in err


def test_a_pickle_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    case = str(FOLDER / "constraint_broken.kir")
    code, _, err = invoke(monkeypatch, capsys, "run", case, "--input", f"x={tmp_path / 'x.npy'}")
    assert code == 2 and "pickle" in err


@pytest.mark.parametrize(
    ("data", "word"), [(b"\xff\xfe kernel", "UTF-8"), (b"#" * (1 << 21), "limit")]
)
def test_files_that_are_no_text(
    data: bytes,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.kir"
    path.write_bytes(data)
    code, _, err = invoke(monkeypatch, capsys, "check", str(path))
    assert code == 2 and word in err and len(err) < 1000


def test_a_missing_extra_is_named() -> None:
    """The command in an environment where triton cannot be imported."""
    script = (
        "import sys; sys.modules['triton'] = None; sys.argv = sys.argv[1:]\n"
        "from kir.cli import main; main()"
    )
    case = str(FOLDER / "race_same_element.kir").replace("race_same_element", "constraint_broken")
    done = subprocess.run(
        [sys.executable, "-c", script, "kir", "lower", case, "--target", "amd", "--emit", "hsaco",
         "-o", os.devnull],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(errors.MissingExtraError.title) and "kir[triton]" in done.stderr


def test_a_compiler_that_fails_is_a_compile_error(tmp_path: Path) -> None:
    """`--emit so` with a C compiler that does not work."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "kir", "lower", str(FOLDER / "constraint_broken.kir"),
         "--emit", "so", "-o", str(tmp_path / "k.so")],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CC": str(compiler)},
    )  # fmt: skip
    assert done.returncode == errors.CompileError.exit_code, done.stderr
    assert done.stderr.startswith(errors.CompileError.title) and "broken" in done.stderr
    assert not (tmp_path / "k.so").exists()


def test_json_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case = str(FOLDER / "schedule_unknown.kir")
    args = ("lower", case, "--schedule", "fast", "--json")
    code, out, err = invoke(monkeypatch, capsys, *args)
    assert code == 2 and out == ""
    assert re.search(r'"error": "ScheduleError"', err)


def test_an_error_about_ir_that_does_not_parse_is_shown() -> None:
    """Made by code, not by the parser: its text is none that could be read back."""
    n = const(4)
    store = Store("y", (Var("i"),), Read("nowhere", (Var("i"),), f32))
    loop = Loop("for", Axis("i", n), (), (store,))
    kernel = Kernel("k", (), (Param("x", f32, (n,)),), (Param("y", f32, (n,)),), (), (loop,))
    with pytest.raises(KirError) as found:
        check_kernel(kernel)
    assert "there is no tensor `nowhere`" in str(found.value)
    assert "kernel k(x: f32[4])" in str(found.value)
