"""What a built-in tool is: a definition that clients see, and a coroutine that carries a call out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    from ..call import Call, Ran, Version


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """What `tools/list` says of a tool; names as in MCP, annotations in wire spelling."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    annotations: dict[str, bool]

    def to_wire(self) -> dict[str, Any]:
        """A `Tool` of the specification."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": self.input_schema,
            "outputSchema": self.output_schema,
            "annotations": self.annotations,
        }


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A built-in tool. `run` is called only for arguments that fit its input schema."""

    definition: ToolDefinition
    run: Callable[[Call, Version], Awaitable[Ran]]

    @cached_property
    def validator(self) -> jsonschema.Draft202012Validator:
        """Checks arguments against the input schema."""
        return jsonschema.Draft202012Validator(self.definition.input_schema)


def string(description: str, **more: Any) -> dict[str, Any]:
    """A schema of a text."""
    return {"type": "string", "description": description, **more}


def integer(description: str, minimum: int = 0) -> dict[str, Any]:
    """A schema of a whole number."""
    return {"type": "integer", "minimum": minimum, "description": description}


def flag(description: str) -> dict[str, Any]:
    """A schema of true or false."""
    return {"type": "boolean", "description": description}


def array(items: dict[str, Any]) -> dict[str, Any]:
    """A schema of a list."""
    return {"type": "array", "items": items}


def closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A schema of an object that has no other keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def outputs(**properties: dict[str, Any]) -> dict[str, Any]:
    """A schema of an object that always has these keys."""
    return {"type": "object", "properties": properties, "required": list(properties)}


READS = {"readOnlyHint": True, "openWorldHint": False}


def writes(*, destructive: bool = True, idempotent: bool = False) -> dict[str, bool]:
    """Annotations of a tool that changes the workspace."""
    return {
        "readOnlyHint": False,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": False,
    }
