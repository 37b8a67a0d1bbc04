"""ComfyUI node pack: guidance nodes for fastcfg's rules.

``fastcfg comfyui install DIR`` puts it into an installation. The nodes patch a MODEL with ComfyUI's own hooks, or are
GUIDERs; chained nodes become one rule where they work in one space. Rules see clean samples in float32, as ComfyUI has
them, and turn them in the same launch into what they work on. Nothing here imports ComfyUI before a node runs.
"""

from __future__ import annotations

from typing import Any

from .guider_nodes import GUIDER_NODES
from .modifier_nodes import MODIFIER_NODES
from .result_nodes import RESULT_NODES
from .rule_nodes import RULE_NODES
from .spec import v1, v3

__all__ = ["NODES", "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]

NODES = (*RULE_NODES, *MODIFIER_NODES, *RESULT_NODES, *GUIDER_NODES)
"""Every node, as it is described for both interfaces."""

NODE_CLASS_MAPPINGS: dict[str, type] = {node.name: v1(node) for node in NODES}
"""ComfyUI's first interface."""

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.name: node.title for node in NODES}


async def comfy_entrypoint() -> Any:
    """ComfyUI's third interface: an extension with the same nodes.

    Raises:
        ImportError: outside of ComfyUI, or in one without ``comfy_api.latest``.
    """
    try:
        from comfy_api.latest import ComfyExtension, io
    except ImportError as error:
        raise ImportError(
            f"fastcfg.adapters.comfyui: the V3 nodes need ComfyUI's comfy_api.latest ({error})"
        ) from error

    class Extension(ComfyExtension):  # type: ignore[misc]
        """The pack."""

        async def get_node_list(self) -> list[type]:
            return [v3(node, io) for node in NODES]

    return Extension()
