"""Pictures of a folder as data URIs."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from .content import Picture

__all__ = ["read_picture"]

LARGEST = 1600
"""Pixels of a side; larger pictures are made smaller."""
LARGE = 100_000
"""Bytes; a picture that is larger without loss is encoded with a loss that is hardly seen."""


def read_picture(folder: Path, name: str, title: str, alt: str) -> Picture:
    """A picture beside the results, encoded anew, so that nothing but its pixels reaches the page.

    Raises:
        ValueError: if it is not a picture in that folder.
    """
    if Path(name).name != name:
        raise ValueError(f"file: expected the name of a picture beside the results, got {name!r}")
    try:
        with Image.open(folder / name, formats=("PNG", "JPEG", "WEBP")) as image:
            pixels = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"file: {name!r} is not a readable picture: {error}") from None
    pixels.thumbnail((LARGEST, LARGEST))
    content = _encoded(pixels, lossless=True, quality=60)
    if len(content) > LARGE:
        content = _encoded(pixels, lossless=False, quality=88)
    uri = "data:image/webp;base64," + base64.b64encode(content).decode()
    return Picture(title, alt, uri, pixels.width, pixels.height)


def _encoded(pixels: Image.Image, *, lossless: bool, quality: int) -> bytes:
    file = BytesIO()
    pixels.save(file, "WEBP", lossless=lossless, quality=quality, method=4)
    return file.getvalue()
