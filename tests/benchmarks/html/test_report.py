"""The report as a file: what stands in it, what is left out, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from html_results import HOSTILE, results
from PIL import Image
from typer.testing import CliRunner

from benchmarks.html import write_report
from benchmarks.html.__main__ import app
from benchmarks.html.sections import PARTS

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


def titles(page: Page) -> set[str]:
    return {a["id"] for a in page.all("section")} - {"summary", "missing", "comparison"}


def test_every_kind_has_its_section(report: Path) -> None:
    page = Page(report)
    assert titles(page) == {
        "kernels", "samplers", "guided-step", "parallel", "scaling", "quality", "gating", "distillation", "export",
        "graph-steps",
    }  # fmt: skip
    assert "missing" not in {attributes["id"] for attributes in page.all("section")}
    assert len(page.all("img")) == 3 and all(img["alt"] and img["width"] for img in page.all("img"))


@pytest.mark.parametrize("which", ["report", "attacked"])
def test_nothing_is_loaded(which: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(which))
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action", "formaction"):
            assert re.match(r"#|data:image/webp;base64,|data:,$", attributes.get(name, "#"))
        assert re.fullmatch(r"(?:[^u]|u(?!rl\()|url\(#)*", attributes.get("style", ""))
        assert not any(name.startswith("on") for name in attributes)
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_texts_of_files_are_texts(report: Path, attacked: Path) -> None:
    plain, page = Page(report), Page(attacked)
    assert page.scripts == plain.scripts, "one script, ours"
    assert len(page.all("img")) == len(plain.all("img")) and len(page.all("title")) == len(plain.all("title"))
    assert titles(page) == titles(plain), "and no section is lost"
    shown = page.source.count("&lt;script&gt;alert(1)")
    assert shown > 200 and HOSTILE not in page.source
    assert f"CFG{HOSTILE}" in page.text


def test_structure(report: Path) -> None:
    page = Page(report)
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(identifiers)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identifiers
    drawings = [a for _, a in page.elements if a.get("role") == "img"]
    assert len(drawings) > 30 and all(a["aria-label"] and a["aria-describedby"] for a in drawings)
    assert len({a["aria-label"] for a in drawings}) == len(drawings)
    assert len(page.all("figure")) <= len(page.all("details")) + len(page.all("img"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_both_sides_of_the_summary(report: Path) -> None:
    text = Page(report).text
    gains, losses = text.split("Where it does not")[0], text.split("Where it does not")[1].split("Where it was")[0]
    assert "diffusers' guider median 4.00×, 8 cases" in gains
    assert "CFG against torch.compile of the formula, 0.80× to 0.80×, 4 cases" in losses
    assert "passes on 4 ranks, 1.10×" in losses
    assert "outside of what is allowed: unet" in losses
    assert "for latency: split 0.90×" in losses
    assert "a smaller Fréchet distance than CFG's beyond the noise: near (-1.0)." in gains
    assert "a larger Fréchet distance than CFG's beyond the noise: far (+2.0)." in losses


def test_few_scales_are_no_curve(report: Path) -> None:
    page = Page(report)
    assert "Judged beside all but red, at few scales" in page.text
    assert not any("all but red" in drawing.get("aria-label", "") for _, drawing in page.elements)


def test_what_is_missing_may_be_recorded(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(next(folder.glob("kernels*.json")), here / "mine.json")
    alone = Page(write_report(here, tmp_path / "alone.html"))
    whole = Page(write_report(here, tmp_path / "whole.html", recorded=folder))
    assert titles(alone) == {"kernels"} and len(titles(whole)) > 5
    assert "mine.json" in whole.text and not any(path.name in whole.text for path in folder.glob("kernels*.json"))


def test_colours_and_fonts_are_the_pages(report: Path) -> None:
    source = report.read_text(encoding="utf-8")
    drawn = re.sub(r"<style>.*?</style>", "", source, flags=re.DOTALL)
    assert not re.search(r"(?:fill|stroke|color): ?#[0-9a-f]{3,8}", drawn)
    assert "font-family" not in drawn and "DejaVu" not in drawn, "and so are the fonts"
    assert {f"--series-{index}" for index in range(1, 6)} <= set(re.findall(r"var\((--[\w-]+)\)", drawn))


@pytest.mark.parametrize("kind", sorted(results()))
def test_a_part_without_results_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"kind": kind}))
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert titles(page) == set()
    (broken,) = (part for part in PARTS if kind in part.kinds)
    assert f"{broken.title} one.json has not the form that is expected: has no '" in page.text
    for part in PARTS:
        assert part.command in page.text
        assert part is broken or f"{part.title} No results. {part.command}" in page.text


def test_an_empty_folder_and_files_that_are_none(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert "This folder holds no results yet." in page.text
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "c.json").write_text('{"kind": "another"}')
    text = Page(write_report(tmp_path, tmp_path / "report.html")).text
    assert "a.json Is not readable JSON" in text
    assert "b.json Does not say its kind" in text
    assert "c.json Has a kind that is not known: another" in text


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "missing.png", "text.png", "drawing.svg"])
def test_pictures_come_from_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    data = results()["quality"]
    data["grids"][0]["file"] = name
    data["curves"] = data["geometry"] = []
    (folder / "quality.json").write_text(json.dumps(data))
    page = Page(write_report(folder, tmp_path / "report.html"))
    assert page.all("img") == [] and "Samples: file: " in page.text


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


def test_small(report: Path) -> None:
    assert report.stat().st_size < 1e6
    assert [path.name for path in report.parent.iterdir()] == ["report.html"], "and no file half written"


def test_command(tmp_path: Path) -> None:
    (tmp_path / "gating.json").write_text(json.dumps(results()["gating"]))
    for name, arguments in {"report.html": [], "out.html": ["-o", str(tmp_path / "out.html")]}.items():
        run = CliRunner().invoke(app, [str(tmp_path), *arguments])
        assert run.exit_code == 0 and f"wrote {tmp_path / name}" in run.output
        assert titles(Page(tmp_path / name)) == {"gating"}
    run = CliRunner().invoke(app, [str(tmp_path / "nowhere")])
    assert run.exit_code == 2 and "folder: expected a folder of results" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["--compare", str(tmp_path), str(tmp_path)])
    assert run.exit_code == 2 and "no result file with peers in common" in " ".join(
        run.output.replace("│", " ").split()
    )
