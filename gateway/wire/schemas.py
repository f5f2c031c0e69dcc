"""Schemas of tools that a client had better not be given: huge, deep, or with a part elsewhere."""

from __future__ import annotations

import re
import sys
from typing import Any

from . import jsonrpc
from .jsonrpc import Message, is_object, list_of, too_deep

_MOST_SCHEMA_BYTES, _MOST_SCHEMA_DEPTH = 256 << 10, 64
# A scheme (RFC 3986, 3.1), or none with an authority. Who validates would fetch it.
_ELSEWHERE = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*:|//|\\\\)")


def unsafe_schema(item: Message) -> str:
    """Why a tool's schemas are not handed on; "" where they are."""
    for key in ("inputSchema", "outputSchema"):
        schema = item.get(key)
        if schema is None:
            continue
        if too_deep(schema, _MOST_SCHEMA_DEPTH):
            return f"its {key} is nested deeper than {_MOST_SCHEMA_DEPTH}"
        if len(jsonrpc.encode({"schema": schema})) > _MOST_SCHEMA_BYTES:
            return f"its {key} is over {_MOST_SCHEMA_BYTES >> 10} KiB"
        level: list[Any] = [schema]
        while level:
            node = level.pop()
            if is_object(node):
                for name in ("$ref", "$dynamicRef"):
                    reference = node.get(name)
                    if isinstance(reference, str) and _ELSEWHERE.match(reference):
                        return f"its {key} refers to the network"
                level += node.values()
            elif isinstance(node, list):
                level += list_of(node)
    return ""


def safe(server: str, result: Any) -> Any:
    """A `tools/list` result without tools whose schemas are not handed on; each is said on stderr."""
    if not is_object(result):
        return result
    kept: list[Any] = []
    for tool in list_of(result.get("tools")):
        if is_object(tool) and (why := unsafe_schema(tool)):
            text = f"server {server}: {str(tool.get('name'))[:200]} is left out: {why}"
            clean = "".join(c if c.isprintable() else "�" for c in text)
            print(f"purple: {clean}", file=sys.stderr)
        else:
            kept.append(tool)
    return result if len(kept) == len(list_of(result.get("tools"))) else {**result, "tools": kept}
