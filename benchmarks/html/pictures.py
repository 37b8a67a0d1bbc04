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


def read_picture(folder: Path, name: str, title: str, alt: str) -> Picture:
    """A picture beside the results, encoded anew without loss, so that nothing but its pixels reaches the page.

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
    file = BytesIO()
    pixels.save(file, "WEBP", lossless=True, quality=60, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(title, alt, uri, pixels.width, pixels.height)
