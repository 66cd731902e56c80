"""The knowledge: its pages are well formed and true to the code, and the right ones are found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from kir.agent.knowledge import (
    DIAGNOSES,
    FEATURES,
    KINDS,
    TARGETS,
    Finding,
    Knowledge,
    Page,
    draft_page,
    kernel_features,
    load_pages,
    parse_page,
    write_draft,
)
from kir.check import check_module
from kir.cli import app
from kir.errors import FileError, KirError, LimitError, ParseError, Source, UsageError
from kir.ir import Kernel, Schedule
from kir.ops import OPS
from kir.pipeline import expand, schedule
from kir.rewrites import REWRITES
from kir.specialise import specialise
from kir.syntax import format_module, load, parse

ROOT = Path(__file__).parent.parent
PAGES = load_pages()
BLOCK = re.compile(r"^```kir([^\n]*)\n(.*?)^```", re.M | re.S)
BLOCKS = [
    pytest.param(match[2], id=f"{page.id}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.body))
]
WORDS = {"cdiv", "fuse_kernels", "hint", "where"}
"""Words that a code span may begin with, beside rewrites and ops."""


# --- the pages -------------------------------------------------------------------------------


def test_there_are_pages_of_every_kind_and_for_every_target() -> None:
    assert len(PAGES) >= 45
    assert {p.kind for p in PAGES} == set(KINDS)
    assert {t for p in PAGES for t in p.targets} == set(TARGETS)
    assert {d for p in PAGES for d in p.diagnoses} == set(DIAGNOSES)
    unused = set(FEATURES) - {f for p in PAGES for f in p.features}
    assert not unused, "a feature that no page is about finds nothing"


def test_titles_differ() -> None:
    titles = [p.title for p in PAGES]
    assert sorted(titles) == sorted(set(titles))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.id)
def test_page(page: Page) -> None:
    folder = page.id.split("/")
    kinds = {"constraints": "constraint", "guidance": "guidance", "hardware": "hardware"}
    assert page.kind == kinds[folder[0]]
    if page.kind == "hardware":
        assert page.targets == (folder[1],)
    text = (ROOT / "agent" / "knowledge" / f"{page.id}.md").read_text(encoding="utf-8")
    assert 15 <= len(text.splitlines()) <= 60
    assert max(map(len, page.body.splitlines())) <= 110, "prose is wrapped"
    assert not page.draft
    for source in page.sources:
        path = re.match(r"(?:docs|kir|backends|frontends|examples|agent)/[\w./-]+", source)
        if path is not None:
            assert (ROOT / path[0]).exists(), source
        else:
            assert len(source) > 20, "a source says who, what and where"
    for name in page.rewrites:
        assert re.search(rf"\b{name}\b", page.body), f"`{name}` is named, and not told of"
    without_blocks = re.sub(r"^```.*?^```", "", page.body, flags=re.M | re.S)
    for span in re.findall(r"`([a-z_]+)\(", without_blocks):
        assert span in {*REWRITES, *OPS, *WORDS}, f"there is no `{span}(...)`"


@pytest.mark.parametrize("text", BLOCKS)
def test_block_of_a_page(text: str) -> None:
    module = parse(text)
    assert parse(format_module(module)) == module
    for error in check_module(module):
        raise error
    kernels = module.kernels()
    for item in module.items:
        if isinstance(item, Schedule):
            schedule(kernels[item.kernel], expand(item, module.schedules()))


# --- parsing ---------------------------------------------------------------------------------

GOOD = """+++
title = "A page"
kind = "guidance"
targets = ["any"]
features = ["sum"]
diagnoses = ["latency"]
rewrites = ["rfactor"]
sources = ["a source"]
+++

Some text.
"""


def test_a_page_is_read() -> None:
    page = parse_page(Source("a.md", GOOD), "x/a")
    assert (page.id, page.title, page.kind) == ("x/a", "A page", "guidance")
    assert (page.features, page.rewrites, page.body) == (("sum",), ("rfactor",), "Some text.\n")


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ("+++\ntitle", "title", "begins with front matter", 1),
        ("]\n+++\n", "]\n", "no end", 1),
        ('title = "A page"', "title = A page", "bad front matter", 2),
        ('title = "A page"\n', "", "no `title`", 1),
        ('kind = "guidance"', 'kind = "hint"', "no kind `hint`", 3),
        ('"any"', '"tpu"', "`tpu` is none of the targets", 4),
        ('["any"]', "[]", "no target", 4),
        ('["sum"]', '"sum"', "no list of strings", 5),
        ('["sum"]', '["summ"]', "`summ` is none of the features", 5),
        ('"latency"', '"slow"', "`slow` is none of the diagnoses", 6),
        ('"rfactor"', '"refactor"', "`refactor` is none of the rewrites", 7),
        ('["a source"]', "[]", "no source", 8),
        ('["a source"]', '["a source"]\ncolour = 3', "no key `colour`", 9),
        ('["a source"]', '["a source"]\ndraft = 1', "`draft` is no bool", 9),
        ("Some text.", "", "empty", 9),
    ],
)
def test_a_bad_page_is_refused_with_its_line(old: str, new: str, message: str, line: int) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(ParseError, match=re.escape(message)) as caught:
        parse_page(Source("a.md", text), "a")
    assert caught.value.hint
    assert caught.value.span is not None and caught.value.span.line == line
    assert "a.md" in str(caught.value)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        load_pages([tmp_path / "none"])
    (tmp_path / "mine.md").write_text(GOOD, encoding="utf-8")
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance" / "roofline.md").write_text(GOOD, encoding="utf-8")
    (tmp_path / "new.md").write_text(GOOD.replace("\n+++\n\n", "\ndraft = true\n+++\n\n"))
    pages = {p.id: p for p in load_pages([tmp_path])}
    assert len(pages) == len(PAGES) + 1, "a draft is left out, a page of the same id replaced"
    assert pages["guidance/roofline"].title == "A page"
    assert "new" in {p.id for p in load_pages([tmp_path], drafts=True)}
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="not UTF-8"):
        load_pages([tmp_path])
    (tmp_path / "bad.md").write_text("x" * 100_000)
    with pytest.raises(LimitError):
        load_pages([tmp_path])


# --- retrieval -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return Knowledge()


def _found(knowledge: Knowledge, kernel: str, target: str, diagnosis: str, n: int = 6) -> list[str]:
    features = kernel_features(_kernel(kernel))
    return [h.page.id for h in knowledge.retrieve(features, target, diagnosis, n)]


@pytest.mark.parametrize(
    ("kernel", "target", "diagnosis", "page"),
    [
        ("matmul", "cpu", "vector", "hardware/cpu/register-blocking"),
        ("matmul_bf16", "nvidia", "matrix", "hardware/nvidia/wgmma"),
        ("matmul_bf16", "amd", "matrix", "hardware/amd/mfma"),
        ("matmul_bf16", "accel", "matrix", "hardware/accel/matrix-engine"),
        ("softmax", "cpu", "memory", "guidance/online-softmax"),
        ("cumsum", "cpu", "latency", "guidance/scans"),
        ("scatter_add", "nvidia", "wrong", "constraints/scatter"),
        ("argmax", "cpu", "latency", "guidance/argmax"),
        ("conv2d", "cpu", "vector", "guidance/convolutions"),
    ],
)
def test_the_page_that_one_wants_is_among_the_first(
    knowledge: Knowledge, kernel: str, target: str, diagnosis: str, page: str
) -> None:
    assert page in _found(knowledge, kernel, target, diagnosis)


def test_retrieval_is_deterministic_and_keeps_to_the_target(knowledge: Knowledge) -> None:
    features = ["bf16", "contraction", "symbolic"]
    one = knowledge.retrieve(features, "amd", "occupancy", 50)
    assert one == Knowledge().retrieve(features, "amd", "occupancy", 50)
    assert len(one) > 5
    assert all({"amd", "any"} & set(h.page.targets) for h in one)
    assert [h.answers for h in one] == sorted((h.answers for h in one), reverse=True)
    for half in (True, False):
        likeness = [h.likeness for h in one if h.answers is half]
        assert likeness == sorted(likeness, reverse=True)
    constraints = knowledge.retrieve(features, "amd", limit=50, kinds=("constraint",))
    assert constraints and all(h.page.kind == "constraint" for h in constraints)


def test_queries(knowledge: Knowledge) -> None:
    (first, *_) = knowledge.retrieve(query="bank conflicts", target="nvidia", limit=3)
    assert first.page.id == "hardware/nvidia/bank-conflicts"
    assert knowledge.retrieve(query="xyzzy") == ()
    assert len(knowledge.retrieve(limit=1000)) == len(PAGES)
    for hostile in ('"', "a AND", "NEAR(", "title:", "* OR 1", "'; DROP TABLE pages; --", "\x00"):
        knowledge.retrieve(query=hostile)
    assert knowledge.retrieve(limit=0) == ()
    with pytest.raises(UsageError, match="`fast` is none of the features"):
        knowledge.retrieve(["fast"])
    with pytest.raises(UsageError, match="`memory` is none of the targets"):
        knowledge.retrieve(target="memory")
    assert knowledge.page("guidance/roofline").kind == "guidance"
    with pytest.raises(UsageError, match="no page"):
        knowledge.page("guidance/nothing")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        typer.main.get_command(app)(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    (tmp_path / "mine.md").write_text(GOOD, encoding="utf-8")
    assert "A page" in run("knowledge", "--knowledge", str(tmp_path))
    assert len(run("knowledge").splitlines()) > len(PAGES)
    softmax = str(ROOT / "examples" / "softmax.kir")
    asked = ("--for", softmax, "--target", "cpu", "--diagnosis", "memory", "--json")
    found = json.loads(run("knowledge", *asked, "--shape", "M=64,N=64"))
    assert {"softmax", "small"} <= set(found["features"])
    assert found["pages"][0]["page"]["id"] == "guidance/online-softmax"
    assert "Sources:" in run("knowledge", "guidance/argmax")
    assert json.loads(run("knowledge", "guidance/argmax", "--json"))["kind"] == "guidance"


# --- features --------------------------------------------------------------------------------


def _kernel(name: str) -> Kernel:
    module = parse(load(ROOT / "examples" / f"{name}.kir"))
    return next(iter(module.kernels().values()))


@pytest.mark.parametrize(
    ("kernel", "wanted", "unwanted"),
    [
        ("matmul", "contraction f32 symbolic", "sum matvec elementwise window"),
        ("matmul_int8", "contraction i8 casts", "recurrence"),
        ("add", "elementwise", "sum contraction functions"),
        ("gelu", "elementwise functions", "sum"),
        ("softmax", "softmax extremum sum functions chain", "recurrence contraction elementwise"),
        ("layer_norm", "normalisation sum division", "softmax"),
        ("conv2d", "contraction window padded", "matvec"),
        ("depthwise_conv", "window padded", "contraction matvec"),
        ("max_pool", "window extremum", "contraction sum"),
        ("argmax", "argextremum", "extremum"),
        ("cumsum", "recurrence padded", "contraction sum"),
        ("lstm", "recurrence contraction", "scatter"),
        ("scatter_add", "scatter", "gather recurrence"),
        ("embedding", "gather", "scatter elementwise"),
        ("attention", "softmax contraction triangular bf16", "recurrence"),
        ("dropout", "random elementwise", "functions"),
    ],
)
def test_features(kernel: str, wanted: str, unwanted: str) -> None:
    found = kernel_features(_kernel(kernel))
    assert found <= set(FEATURES)
    assert set(wanted.split()) <= found
    assert not set(unwanted.split()) & found


def test_features_of_scheduled_kernels() -> None:
    module = parse(load(ROOT / "examples" / "scheduled" / "matmul_tiled.kir"))
    found = kernel_features(module.kernels()["matmul_tiled"])
    assert {"contraction", "masked", "bf16", "casts"} <= found
    assert not {"window", "recurrence", "transposed"} & found


def test_features_of_every_kernel_of_the_tests() -> None:
    for path in sorted((ROOT / "tests" / "rewrites").glob("*.kir")):
        for kernel in parse(load(path)).kernels().values():
            dims = {d.name: 12 for d in kernel.dims if d.default is None}
            assert kernel_features(kernel, dims) <= set(FEATURES), kernel.name


def test_features_of_sizes_and_layouts() -> None:
    text = """
    kernel turned[M, N](x: f64[N, M]) -> (y: f64[M, N]) { y[i: M, j: N] = x[j, i] }
    kernel mv[M, N](a: f16[M, N], x: f16[N]) -> (y: f32[M]) {
      y[i: M] = sum(j: N) f32(a[i, j]) * f32(x[j])
    }
    kernel wrapped[N](x: f8e4m3[N]) -> (y: f8e4m3[N]) where N >= 7 { y[i: N] = x[i % 7] }
    """
    module = parse(text).kernels()
    assert {"transposed", "f64", "elementwise"} <= kernel_features(module["turned"])
    assert {"matvec", "f16"} <= kernel_features(module["mv"])
    assert {"integer_division", "f8"} <= kernel_features(module["wrapped"])
    small = kernel_features(module["turned"], {"M": 8, "N": 8})
    assert {"small", "low_intensity"} <= small and "large" not in small
    matmul = kernel_features(_kernel("matmul"), {"M": 4096, "N": 4096, "K": 4096})
    assert {"large", "high_intensity"} <= matmul and "small" not in matmul
    fixed = specialise(_kernel("matmul"), {"M": 64, "N": 64, "K": 64})
    assert "small" in kernel_features(fixed) and "symbolic" not in kernel_features(fixed)
    assert not {"small", "large"} & kernel_features(_kernel("matmul"), {"M": 4})


# --- drafts ----------------------------------------------------------------------------------


def _finding() -> Finding:
    module = parse(load(ROOT / "examples" / "scheduled" / "split_k.kir"))
    schedules = module.schedules()
    return Finding(
        kernel=module.kernels()["split_k"],
        dims=(("M", 64), ("N", 64), ("K", 4096)),
        target="nvidia",
        machine="a machine\nwith `two` lines",
        before=expand(schedules["blocks"], schedules),
        after=expand(schedules["gpu_partials"], schedules),
        speedup=1.5,
        spread=(1.4, 1.6),
        evaluations=100,
        source="sqlite:///t.db run 1 node 7",
        diagnosis="launch",
        failed=(("split_k(c_acc, k_o, 512)", "refused:\n```\nnot so"),),
    )


def test_a_draft_is_a_page_and_not_used_before_it_is_reviewed(tmp_path: Path) -> None:
    found = _finding()
    path, page = write_draft(tmp_path / "drafts", found)
    assert path.read_text(encoding="utf-8") == draft_page(found)
    assert page.draft and page.targets == ("nvidia",) and page.diagnoses == ("launch",)
    assert {"contraction", "bf16"} <= set(page.features)
    assert "split_k" in page.rewrites and "+split_k(c_acc, k_o, 4" in page.body
    assert page.sources == ("sqlite:///t.db run 1 node 7",)
    assert page.body.count("```") == 2, "what comes from logs ends no block"
    again, _ = write_draft(tmp_path / "drafts", found)
    assert again != path, "drafts of other searches stay"
    assert len(Knowledge([tmp_path]).pages) == len(PAGES)
    reviewed = re.sub(r"^draft = .*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    path.write_text(reviewed, encoding="utf-8")
    assert path.stem in {p.id.split("/")[-1] for p in Knowledge([tmp_path]).pages}


def test_a_draft_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no diagnosis"):
        draft_page(replace(_finding(), diagnosis="gremlins"))
    (tmp_path / "file").write_text("")
    with pytest.raises(KirError, match="file"):
        write_draft(tmp_path / "file" / "x", _finding())
