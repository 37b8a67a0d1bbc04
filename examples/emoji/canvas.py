"""A picture of rows of small pictures: titles, captions above columns, labels beside rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_INK, _GREY, _MARK = "#1c1c1e", "#6b6b70", "#c2410c"


class Canvas:
    """Grows downwards, row by row.

    Args:
        columns: pictures in a row.
        scale: of a picture: pixels of the canvas for each of its own.
        left: width of the labels.
    """

    def __init__(self, columns: int, *, scale: float = 2.0, left: int = 210, cell: int = 40) -> None:
        self.columns, self.left = columns, left
        self.size, self.gap = round(cell * scale), 8
        self.width = left + columns * (self.size + self.gap) + 16
        self._image = Image.new("RGB", (self.width, 4000), "white")
        self._draw = ImageDraw.Draw(self._image)
        self.y = 14

    def title(self, text: str, note: str = "") -> None:
        """Write a section's heading, and a line under it."""
        self.y += 10
        self._text((16, self.y), text, 19, bold=True)
        self.y += 27
        for line in note.split("\n") if note else ():
            self._text((16, self.y), line, 13, colour=_GREY)
            self.y += 18
        self.y += 3

    def row(
        self,
        pictures: Tensor,
        label: str,
        note: str = "",
        *,
        captions: Sequence[str] = (),
        marked: Sequence[bool] = (),
    ) -> None:
        """Add pictures ``[N, 3, h, w]`` in [-1, 1], with a label, a smaller note, and captions above them.

        Args:
            marked: which captions get a star and another colour.
        """
        if captions:
            wrapped = [_wrap(text, 13) for text in captions]
            most = max(len(words) for words in wrapped)
            for column, words in enumerate(wrapped):
                star = bool(marked) and marked[column]
                for index, line in enumerate(words):
                    x = self._x(column) + self.size / 2
                    y = self.y + (most - len(words) + index) * 15
                    text = f"★ {line}" if star and index == 0 else line
                    self._text((x, y), text, 12, colour=_MARK if star else _INK, anchor="ma")
            self.y += most * 15 + 5
        lines = [(text, 14, _INK) for text in label.split("\n")] + [(t, 12, _GREY) for t in note.split("\n") if t]
        top = self.y + self.size / 2 - 9 * len(lines)
        for index, (text, points, colour) in enumerate(lines):
            self._text((self.left - 14, top + 18 * index), text, points, colour=colour, anchor="ra")
        for column, picture in enumerate(pictures):
            pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            cell = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.LANCZOS)
            self._image.paste(cell, (self._x(column), self.y))
            corner = (self._x(column), self.y)
            self._draw.rectangle(
                (*corner, corner[0] + self.size - 1, corner[1] + self.size - 1), outline="#e4e4e7", width=1
            )
        self.y += self.size + self.gap

    def image(self) -> Image.Image:
        """Return the picture so far."""
        return self._image.crop((0, 0, self.width, self.y + 8))

    def png(self) -> bytes:
        """Return the picture as a PNG file, in 256 colours."""
        few = self.image().quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        few.save(buffer, "png", optimize=True)
        return buffer.getvalue()

    def _x(self, column: int) -> int:
        return self.left + column * (self.size + self.gap)

    def _text(
        self,
        at: tuple[float, float],
        text: str,
        points: int,
        *,
        bold: bool = False,
        colour: str = _INK,
        anchor: str = "la",
    ) -> None:
        font = ImageFont.truetype(_FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), points)
        self._draw.text(at, text, font=font, fill=colour, anchor=anchor)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
