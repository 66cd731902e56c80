"""`kir import`: a model as a KIR file and its weights, and what is said of one that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")
pytest.importorskip("safetensors", reason="safetensors is not installed (kir[safetensors])")

import kir  # noqa: E402
from kir.errors import FileError, KirError, UnsupportedError, UsageError  # noqa: E402
from kir.frontends.torch.importer import example, import_model, load_model  # noqa: E402
from kir.syntax import parse  # noqa: E402
from kir.tensors import read  # noqa: E402

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.max = nn.Linear(4, 3)

    def forward(self, x):
        return self.max(self.norm(self.conv(x)).relu().mean((2, 3))).softmax(-1)

class Views(nn.Module):
    def forward(self, x, mask):
        return x, x.t(), (x * 2).view(3, 2, 2), x * mask.any(), x.t()

class Inverse(nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.linalg.inv(y)

def broken():
    return 1 / 0

number = 3
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return path


def _kir(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kir", *map(str, args)], capture_output=True,
                          text=True, check=False)  # fmt: skip


def test_a_network_by_the_command(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.kir"
    made = _kir("import", f"{model_file}:Net", "--input", "f32[2, 1, 6, 6]", "-o", out, "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["inputs"] == ["x"]
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    weights = tmp_path / "net.safetensors"
    run = _kir(
        "run", out, "--weights", weights, "-i", f"x={tmp_path / 'x.npy'}", "--save", tmp_path
    )
    assert run.returncode == 0, run.stderr
    net = load_model(f"{model_file}:Net").eval()
    held = {name: torch.from_numpy(a.copy()) for name, a in read(weights).items()}
    net.load_state_dict({n: held[n.replace(".", "_")] for n in net.state_dict()
                         if "tracked" not in n}, strict=False)  # fmt: skip
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-6)
    kernel = next(iter(parse(out.read_text()).kernels()))
    wrong = _kir("run", out, "--kernel", kernel, "--weights", weights)
    assert wrong.returncode == 2 and f"is no input of `{kernel}`" in wrong.stderr


def test_views_and_inputs_as_outputs(model_file: Path) -> None:
    model = load_model(f"{model_file}:Views")
    inputs = [torch.arange(12.0).view(3, 4), torch.tensor([[True, False]] * 3)]
    made = import_model(model, inputs)
    assert made.inputs == ("x", "mask") and not made.weights
    results = kir.compile(made.text, "model")(*(t.numpy() for t in inputs))
    for found, wanted in zip(results, model(*inputs), strict=True):
        assert np.array_equal(found, wanted.numpy())


def test_what_is_written_parses(model_file: Path) -> None:
    made = import_model(load_model(f"{model_file}:Net"), [example("f32[1, 1, 4, 4]")])
    graph = parse(made.text).graphs()["model"]
    assert {p.name for p in graph.inputs} == {"x", *made.weights}
    assert all(
        [int(e.value) for e in p.shape] == list(made.weights[p.name].shape)
        for p in graph.inputs if p.name in made.weights
    )  # fmt: skip


@pytest.mark.parametrize("reference, error, said", [
    ("net.py", UsageError, "names no model"),
    ("no.py:Net", FileError, "there is no file"),
    ("net.py:Nat", UsageError, "is not there"),
    ("net.py:number", UsageError, "is no model"),
    ("net.py:broken", UsageError, "line 24: failed: ZeroDivisionError"),
])  # fmt: skip
def test_a_wrong_reference(
    reference: str, error: type[KirError], said: str, model_file: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(model_file.parent)
    with pytest.raises(error, match=said):
        load_model(reference)


def test_an_operator_that_is_not_compiled_is_named_with_its_line(model_file: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"linalg_inv_ex.*float32.*net.py., line 21"):
        import_model(load_model(f"{model_file}:Inverse"), [example("f32[3, 3]")])


def test_inputs_that_the_model_cannot_take(model_file: Path) -> None:
    with pytest.raises(UsageError, match="does not trace it"):
        import_model(load_model(f"{model_file}:Net"), [example("f32[4]")])


@pytest.mark.parametrize("text", ["q32[2]", "f32[x]", "f32(2)", ""])
def test_a_wrong_type(text: str) -> None:
    with pytest.raises(UsageError, match="no type of a tensor"):
        example(text)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(FileError, match="no safetensors file"):
        read(path)
    with pytest.raises(FileError, match="No such file"):
        read(tmp_path / "none")
