"""Turn the cross-references of docstrings into links: MkDocs knows no Sphinx roles."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|data|mod|attr):`(~?)([\w.]+)`")


def _link(found: re.Match[str]) -> str:
    shortened, path = found.groups()
    label = path.rsplit(".", 1)[-1] if shortened else path
    # Optional: a name whose page is not there stays code.
    return f'<autoref identifier="{path}" optional><code>{label}</code></autoref>'


class Roles(griffe.Extension):
    """Replace roles in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that has been loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)
