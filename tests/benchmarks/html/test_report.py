"""The report as a file: what stands in it, what is left out, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from html_results import HOSTILE, results
from typer.testing import CliRunner

from benchmarks.html import write_report
from benchmarks.html.__main__ import app
from benchmarks.html.report import KINDS

VOID = frozenset(["meta", "link", "img", "br", "hr", "input"])
"""Elements of HTML without an end."""


class Page(HTMLParser):
    """The elements and texts of a page, and that they are closed in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open[-1:] == ["script"] else self.texts).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def kinds(page: Page) -> set[str]:
    """Of the sections."""
    return {re.sub(r"-\d+$", "", a["id"]) for a in page.all("section")} - {"summary", "missing", "changes"}


def test_every_kind_has_its_section(report: Path) -> None:
    page = Page(report)
    assert kinds(page) == KINDS.keys() and "missing" not in {a["id"] for a in page.all("section")}


def test_it_needs_nothing_else(report: Path) -> None:
    page = Page(report)
    assert not page.all("img") and not [a for a in page.all("link") if a["href"] != "data:,"]
    assert all(a["href"].startswith("#") for a in page.all("a"))
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert report.stat().st_size < 1e6
    assert [path.name for path in report.parent.iterdir()] == ["report.html"], "and no file half written"


def test_texts_of_files_are_texts(report: Path, attacked: Path) -> None:
    plain, page = Page(report), Page(attacked)
    assert page.scripts == plain.scripts, "one script, ours"
    assert not page.all("img") and len(page.all("title")) == 1
    assert kinds(page) == kinds(plain), "and no section is lost"
    assert page.source.count("&lt;script&gt;alert(1)") > 150 and HOSTILE not in page.source
    assert f"CFG{HOSTILE}" in page.text


def test_structure(report: Path) -> None:
    page = Page(report)
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(identifiers)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identifiers
    drawings = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert len(drawings) > 12 and len(set(drawings)) == len(drawings)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_summary_has_gains_and_losses(report: Path) -> None:
    text = Page(report).text
    summary = text[text.index("Every contestant's time") :]
    assert "diffusers ClassifierFreeGuidance ▲ 4.00 Guidance against its peers 8 4.00 … 4.00" in summary
    assert "torch.compile ▼ 0.80 Guidance against its peers 8 0.80 … 0.80" in summary
    assert "by hand ▼ 0.95 A guided step 1" in summary


def test_what_is_missing_may_be_recorded(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.json").write_text(json.dumps(results()["kernels"]))
    alone = Page(write_report(here, tmp_path / "alone.html"))
    whole = Page(write_report(here, tmp_path / "whole.html", recorded=folder))
    assert kinds(alone) == {"kernels"} and kinds(whole) == KINDS.keys()
    assert "mine.json" in whole.text and "kernels.json" not in whole.text
    for name, kind in KINDS.items():
        assert (f"{kind.title} no results: {kind.command}" in alone.text) == (name != "kernels")


def test_colours_and_fonts_are_the_page_s(report: Path) -> None:
    drawn = re.sub(r"<style>.*?</style>", "", report.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"(?:fill|stroke|color): ?#[0-9a-f]{3,8}", drawn)
    assert "font-family" not in drawn and "DejaVu" not in drawn, "and so are the fonts"
    assert {"--series-1", "--series-2", "--ink"} <= set(re.findall(r"var\((--[\w-]+)\)", drawn))


@pytest.mark.parametrize("kind", sorted(results()))
def test_a_result_of_another_form_costs_its_part_alone(kind: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"kind": kind}))
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert kinds(page) == set() and f"one.json has not the form of {kind}: has no '" in page.text


def test_an_empty_folder_and_files_that_are_none(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert "This folder holds no results yet." in page.text
    for name, content in (("a", "{"), ("b", "[1]"), ("c", '{"kind": "another"}')):
        (tmp_path / f"{name}.json").write_text(content)
    text = Page(write_report(tmp_path, tmp_path / "report.html")).text
    assert "a.json is not readable JSON" in text and "b.json its kind is not known: None" in text
    assert "c.json its kind is not known: 'another'" in text


def test_a_change_is_found(folder: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = results()["kernels"]
    for row in data["rows"]:
        if row["rule"] == "APG" and row["provider"] != "fastcfg":
            for name in ("ratio", "ratio_p20", "ratio_p80"):
                row[name] /= 2
    (tmp_path / "kernels.json").write_text(json.dumps(data))
    page = Page(write_report(tmp_path, tmp_path / "report.html", (folder, tmp_path)))
    assert "8 cases: 4 worse, 0 better" in page.text
    assert page.text.count("▼ worse") == 12
    with pytest.raises(ValueError, match=r"^compare: .* have no result file with peers in common"):
        write_report(tmp_path, tmp_path / "report.html", (folder, tmp_path.parent))


def test_command(tmp_path: Path) -> None:
    (tmp_path / "gating.json").write_text(json.dumps(results()["gating"]))
    for name, arguments in {"report.html": [], "out.html": ["-o", str(tmp_path / "out.html")]}.items():
        run = CliRunner().invoke(app, [str(tmp_path), *arguments])
        assert run.exit_code == 0 and f"wrote {tmp_path / name}" in run.output
        assert kinds(Page(tmp_path / name)) == {"gating"}
    run = CliRunner().invoke(app, [str(tmp_path / "nowhere")])
    assert run.exit_code == 2 and "folder: expected a folder of results" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["--compare", str(tmp_path), str(tmp_path)])
    assert run.exit_code == 2 and "no result file with peers in common" in " ".join(
        run.output.replace("│", " ").split()
    )
