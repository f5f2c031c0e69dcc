"""What the headers of a modern request say of its body must be true (2026-07-28, "Streamable HTTP").

Something between client and gateway may have routed, filtered or logged by the headers alone.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .client import VERSION
from .jsonrpc import Message, is_object, list_of, object_of

NAMED = {
    "tools/call": "name", "prompts/get": "name", "resources/read": "uri",
    "tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId",  # SEP-2663
}  # fmt: skip
_ROUTING = ("mcp-protocol-version", "mcp-method", "mcp-name")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_DECIMAL = re.compile(r"-?[0-9]{1,100}(\.0*)?")
_APPLICATORS = frozenset({
    "items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "not", "if",
    "unevaluatedProperties", "then", "else", "contentSchema",
})  # fmt: skip

Headers = Sequence[tuple[bytes, bytes]]
# Path of a property, header's name in lower case, type of the property.
Annotation = tuple[tuple[str, ...], str, str]


def header(headers: Headers, name: str) -> str | None:
    """The first value of a header, named in lower case."""
    for key, value in headers:
        if key == name.encode():
            return value.decode("latin-1")
    return None


def disagreement(headers: Headers, message: Message) -> str:
    """What of version, method and name differs between headers and body; "" when nothing does."""
    for name in _ROUTING:
        if _count(headers, name) > 1:
            return f"{name} is there twice"
    params = object_of(message.get("params"))
    version = object_of(params.get("_meta")).get(VERSION)
    if version is not None and header(headers, "mcp-protocol-version") != version:
        return "MCP-Protocol-Version differs from the envelope's"
    method = message.get("method")
    if header(headers, "mcp-method") != method:
        return "Mcp-Method differs from the method"
    key = NAMED.get(str(method))
    if key == "taskId" and header(headers, "mcp-name") is None:
        return ""  # an extension's, and not of all who speak it
    if key and params.get(key) is not None and decoded(header(headers, "mcp-name")) != params[key]:
        return f"Mcp-Name differs from {key}"
    return ""


def annotated_by(schema: Any) -> list[Annotation]:
    """The properties of a tool's input schema that `x-mcp-header` has repeated in a header.

    None for a schema that annotates against the specification: clients do not use such a tool.
    """
    found: list[Annotation] = []
    for path, node in _positions(schema):
        if "x-mcp-header" not in node:
            continue
        name, kind = node["x-mcp-header"], node.get("type")
        if not path or not isinstance(name, str) or not _TOKEN.fullmatch(name):
            return []
        if kind not in ("string", "integer", "boolean"):
            return []
        found.append((path, f"mcp-param-{name.lower()}", kind))
    return found if len({name for _, name, _ in found}) == len(found) else []


def parameter_disagreement(
    headers: Headers, annotated: Sequence[Annotation], arguments: Message
) -> str:
    """What of the annotated arguments differs from its header; "" when nothing does."""
    for path, name, kind in annotated:
        value: Any = arguments
        for key in path:
            value = object_of(value).get(key)
        given, where = header(headers, name), ".".join(path)
        if _count(headers, name) > 1:
            return f"{name} is there twice"
        wanted = _rendered(value)
        if wanted is None:
            if given is not None:
                return f"{name} is there, but the argument {where} is not"
            continue
        if given is None:
            return f"{name} is missing, but the argument {where} is there"
        said = decoded(given)
        if said == wanted:
            continue
        if kind == "integer" and said is not None and _DECIMAL.fullmatch(said):
            whole = type(value) is int or (type(value) is float and value.is_integer())
            if whole and int(said.partition(".")[0]) == int(value):
                continue
        return f"{name} differs from the argument {where}"
    return ""


def request_headers(message: Message, schema: Any) -> dict[str, str]:
    """The headers of a modern request; {} for a message of the other era.

    Args:
        message: The request.
        schema: The input schema of the tool that it calls; None where it calls none, or unknown.
    """
    params = object_of(message.get("params"))
    version, method = object_of(params.get("_meta")).get(VERSION), message.get("method")
    if not isinstance(version, str) or not isinstance(method, str):
        return {}
    headers = {"MCP-Protocol-Version": version, "Mcp-Method": _encoded(method)}
    name = params.get(NAMED.get(method, ""))
    if isinstance(name, str):
        headers["Mcp-Name"] = _encoded(name)
    for path, parameter, _ in annotated_by(schema):
        value: Any = params.get("arguments")
        for key in path:
            value = object_of(value).get(key)
        text = _rendered(value)
        if text is not None:
            headers[parameter] = _encoded(text)
    return headers


def _encoded(value: str) -> str:
    """As a header holds it: wrapped in base64 where it could not be read back otherwise."""
    plain = re.fullmatch(r"[\x20-\x7e]*", value) and value == value.strip()
    if plain and not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'surrogatepass')).decode()}?="


def decoded(value: str | None) -> str | None:
    """A header's value, also where it is wrapped in base64; None where that is malformed."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    inside = value[9:-2]
    try:
        data = base64.b64decode(inside, validate=True)
        return data.decode() if base64.b64encode(data).decode() == inside else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _rendered(value: Any) -> str | None:
    """An argument as a client writes it into a header; None where it writes none."""
    if type(value) is bool:
        return "true" if value else "false"
    try:
        return str(value) if type(value) in (str, int, float) else None
    except ValueError:  # an integer of more digits than Python writes
        return None


def _positions(schema: Any) -> Iterator[tuple[tuple[str, ...], Message]]:
    """Each schema within a schema, with its path of properties; () where that is none."""
    stack: list[tuple[tuple[str, ...] | None, Any]] = [((), schema)]
    while stack:
        path, node = stack.pop()
        if not is_object(node):
            continue
        yield path or (), node
        for key, value in node.items():
            if key == "properties":
                for name, inner in object_of(value).items():
                    stack.append((None if path is None else (*path, name), inner))
            elif key in _APPLICATORS:
                stack.append((None, value))
            elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
                stack += [(None, inner) for inner in list_of(value)]
            elif key in ("patternProperties", "dependentSchemas", "$defs", "definitions"):
                stack += [(None, inner) for inner in object_of(value).values()]


def _count(headers: Headers, name: str) -> int:
    return sum(key == name.encode() for key, _ in headers)
