"""The content of a report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .content import Finding, Section, Table, Tone

__all__ = ["Missing", "Page", "asset", "render"]

MARKS = {"gain": "▲", "even": "＝", "loss": "▼"}
TILES = 5


@dataclass(frozen=True)
class Missing:
    """A part that the report has not got, and what would make it."""

    title: str
    why: str
    command: str = ""


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: str
    sections: Sequence[Section]
    environment: Table
    missing: Sequence[Missing]
    footer: str


def render(page: Page) -> str:
    """HTML with its style, script and pictures inside. Everything but our own SVG is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script = asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    findings = _merged(finding for section in page.sections for finding in section.findings)
    tiles = sorted((tile for section in page.sections for tile in section.tiles), key=lambda tile: tile.rank)
    return environment.from_string(asset("page.html.j2")).render(
        title=page.title,
        lead=page.lead,
        tiles=tiles[:TILES],
        sections=page.sections,
        gains=[finding for finding in findings if finding.tone == "gain"],
        losses=[finding for finding in findings if finding.tone == "loss"],
        environment=page.environment,
        missing=page.missing,
        footer=page.footer,
        marks=MARKS,
        style=Markup(asset("style.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that say the same of several machines as one."""
    places: dict[tuple[Tone, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.tone, finding.text), []).append(finding.where)
    return [
        Finding(tone, text, "; ".join(dict.fromkeys(filter(None, where)))) for (tone, text), where in places.items()
    ]


def asset(name: str) -> str:
    """A file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
