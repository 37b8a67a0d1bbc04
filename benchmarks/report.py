"""The kernels' results as rows, Markdown and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from rich.table import Table
from rich.text import Text

from .cases import REFERENCE, Case
from .counting import Work
from .environment import Environment
from .race import Summary
from .records import Record, markdown_table
from .rows import Row, Target, target

__all__ = ["Environment", "Report"]

KIND = "kernels"
SCHEMA = 2


@dataclass
class Report:
    """All rows of a run, and who was left out of which case and why.

    Attributes:
        cache: ``hot`` or ``cold``: whether a call finds its predictions in the last-level cache, where they fit.
    """

    environment: Environment
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    cache: str = "hot"

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{KIND}-{self.environment.name}" + "-cold" * (self.cache == "cold")

    def add(
        self,
        case: Case,
        metric: str,
        summaries: Mapping[str, Summary],
        errors: Mapping[str, float],
        works: Mapping[str, Work] | None = None,
        copy: float | None = None,
    ) -> None:
        """Rows of a race.

        Args:
            works: what a call of each does; copy: milliseconds of a copy of ``case.least`` bytes.
        """
        for name, summary in summaries.items():
            work = (works or {}).get(name)
            row = Row(
                case.contest.name,
                name,
                metric,
                case.shape,
                case.dtype_name,
                error=errors[name],
                launches=work.launches if work else None,
                moved=work.moved if work else None,
                least=case.least,
                copy=copy,
                **asdict(summary),
            )
            self.rows.append(row)

    def pairs(self) -> Iterator[tuple[Row, Row]]:
        """Each row of another contestant with fastcfg's of the same case."""
        own = {(r.rule, r.metric, r.shape, r.dtype): r for r in self.rows if r.provider == REFERENCE}
        for row in self.rows:
            if row.provider != REFERENCE:
                yield own[row.rule, row.metric, row.shape, row.dtype], row

    def targets(self) -> list[Target]:
        """Return what fastcfg promises, for the cases that were run."""
        found = (target(row, self.environment.device) for _, row in self.pairs())
        return [t for t in found if t is not None]

    def record(self) -> Record:
        """The rows, each with all that identifies it, and who was left out."""
        where = {**asdict(self.environment), "cache": self.cache}
        left_out = [{"case": case, "provider": who, "reason": why} for case, who, why in self.left_out]
        more = {"schema": SCHEMA, "unit": "ms", "cache": self.cache, "left_out": left_out}
        rows = [{**row.to_dict(), **where} for row in self.rows]
        return Record(KIND, self.name, self.environment, rows, self.to_markdown(), more)

    def _lines(self) -> Iterator[tuple[str, ...]]:
        return (_line(own, peer) for own, peer in self.pairs())

    def to_markdown(self) -> str:
        """Environment, targets, where a peer is faster, and every pair; no row is dropped for its result."""
        env = self.environment
        parts = [
            f"# Guidance on {env.label} ({env.device}, {self.cache} cache)",
            env.origin,
            "Contestants take turns in one process; milliseconds are medians, and a ratio is the median over rounds of "
            "the peer's time ÷ fastcfg's: above 1 fastcfg is faster. Of each pair, fastcfg / peer: the kernels of a "
            "call; the megabytes that these read and write, from memory or a cache; what they move in a second as a "
            "share of what a plain copy as large as the case moves in the same rounds; and the root mean square error "
            "against float64 in roundings of the dtype.",
            "A hot call finds what it reads in the cache, where it fits there; a cold one reads copies that have left "
            "it.",
        ]
        if targets := self.targets():
            rows = [
                (t.what, t.row.size, t.row.dtype, f"≥ {t.least:.2f}", f"{t.row.ratio:.2f}", _yes(t.met))
                for t in targets
            ]
            parts += ["## Targets", markdown_table(("target", "shape", "dtype", "ratio asked", "ratio", "met"), rows)]
        lost = sorted((pair for pair in self.pairs() if pair[1].ratio < 1), key=lambda pair: pair[1].ratio)
        parts += ["## Where fastcfg is slower"]
        parts += [markdown_table(HEADER, (_line(*pair) for pair in lost)) if lost else "Nowhere, of these cases."]
        parts += ["## All", markdown_table(HEADER, self._lines())]
        if self.left_out:
            parts += ["## Left out", markdown_table(("case", "contestant", "why"), self.left_out)]
        return "\n\n".join(parts) + "\n"

    def table(self) -> Table:
        """For a terminal: a line for each peer of a rule, a column for each case."""
        columns = list(dict.fromkeys((row.size, row.dtype, row.metric) for _, row in self.pairs()))
        lines: dict[tuple[str, str], dict[tuple[str, str, str], float]] = {}
        for _, peer in self.pairs():
            lines.setdefault((peer.rule, peer.provider), {})[peer.size, peer.dtype, peer.metric] = peer.ratio
        several = len({metric for *_, metric in columns}) > 1
        names = [f"{size}\n{dtype}" + f" {metric}" * several for size, dtype, metric in columns]
        table = Table("rule", "peer", title=f"{self.environment.label}, {self.cache} cache")
        for name in names:
            table.add_column(name, justify="right")
        for (rule, provider), ratios in lines.items():
            cells = [_ratio(ratios.get(column)) for column in columns]
            table.add_row(rule, provider, *cells)
        table.caption = "The peer's time ÷ fastcfg's; yellow where the peer is faster."
        return table


HEADER = (
    "rule", "shape", "dtype", "metric", "fastcfg ms", "peer", "peer ms", "peer ÷ fastcfg",
    "kernels", "MB", "% of copy", "error",
)  # fmt: skip


def _line(own: Row, peer: Row) -> tuple[str, ...]:
    """A pair under :data:`HEADER`."""

    def both(value: Callable[[Row], float | None], form: str, scale: float = 1) -> str:
        return " / ".join("–" if (v := value(row)) is None else format(v * scale, form) for row in (own, peer))

    return (
        own.rule,
        own.size,
        own.dtype,
        own.metric,
        _ms(own.p50),
        peer.provider,
        _ms(peer.p50),
        f"{peer.ratio:.2f}",
        both(lambda row: row.launches, "d"),
        both(lambda row: row.moved, ".3g", 1e-6),
        both(lambda row: row.share, ".0f", 100),
        both(lambda row: row.error, ".2f"),
    )


def _ratio(value: float | None) -> Text:
    return Text("–" if value is None else f"{value:.2f}", "yellow" if value is not None and value < 1 else "")


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
