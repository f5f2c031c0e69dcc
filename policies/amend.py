"""Add an approved call to a policy's file: comments and spelling stay, or nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from . import atomic, trust
from .errors import PolicyError
from .load import PolicySource, place_in

_MOST_BYTES = 4096  # of an entry: what a person can read


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """A change to one file, not written yet.

    Attributes:
        path: The file.
        before: What it holds now; None when it is not there.
        after: What it would hold.
        added: The YAML that is added, exactly.
        place: What a project's file is accepted as: where it was, it stays so. None of all others.
    """

    path: Path
    before: str | None
    after: str
    added: str
    place: Path | None = None

    def write(self) -> None:
        """Replace the file in one step.

        Raises:
            PolicyError: it has changed since, or cannot be written; nothing has changed then.
        """
        path = self.path.resolve()  # a link stays one
        try:
            try:
                now, mode = path.read_bytes().decode(), path.stat().st_mode & 0o777
            except FileNotFoundError:
                now, mode = None, 0o600
            if now != self.before:
                raise PolicyError("it has changed meanwhile; nothing was written", file=str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace(path, self.after.encode(), mode)
        except OSError as error:
            raise PolicyError(f"cannot be written: {error.strerror}", file=str(path)) from None
        if self.place is not None and self.before is not None:
            trust.renew(self.place, self.before.encode(), self.after.encode())


def approve_always(
    source: PolicySource, tool: str, server: str, arguments: Mapping[str, Any]
) -> Amendment:
    """What allows exactly this call from now on, where a rule would ask.

    It goes into the file that `source` stands for; for a shipped profile, into a new one of the
    user's, of the same name, that extends it.

    Raises:
        PolicyError: it cannot be added without changing what else is there; says what to do.
    """
    entry: dict[str, Any] = {"tool": tool, "arguments": dict(arguments)}
    if server:
        entry["server"] = server
    added = _yaml(entry)
    path, origin = source.locate()
    if len(added) > _MOST_BYTES:
        raise PolicyError(f"the call has over {_MOST_BYTES} bytes", file=str(path))
    if origin == "shipped":
        path, before = source.new_file(), None
        name = path.stem
        after = f"name: {name}\nextends: {name}\ntools:\n  approved:\n    - {added}\n"
        fields: Any = {"name": name, "extends": name}
    else:
        try:
            before = path.read_bytes().decode()
            fields = yaml.safe_load(before)
            after = _insert(before, added)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise PolicyError(f"cannot be added to: {error}", file=str(path)) from None
    tools = dict(fields.get("tools") or {})
    old = [*tools.get("approved", [])]
    try:
        found = _spelled(yaml.safe_load(after))
    except yaml.YAMLError:
        found = ""
    if found not in [
        _spelled({**fields, "tools": {**tools, "approved": approved}})
        for approved in ([entry, *old], [*old, entry])
    ]:
        raise PolicyError(
            f"cannot be added to by a program; add under tools.approved yourself: - {added}",
            file=str(path),
        )
    place = None
    if origin == "project" and source.project is not None:
        place = place_in(source.project, path.name)
    return Amendment(path=path, before=before, after=after, added=added, place=place)


def _insert(text: str, entry: str) -> str:
    """`text` with `entry` as an item more of `tools.approved`."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("it is no mapping")
    tools = _member(root, "tools")
    if tools is None and not root.flow_style:
        return text.rstrip("\n") + f"\ntools:\n  approved:\n    - {entry}\n"
    if tools is None:
        return _into(text, root, f"tools: {{approved: [{entry}]}}")
    if not isinstance(tools, yaml.MappingNode):
        raise ValueError("its tools are no mapping")
    approved = _member(tools, "approved")
    if approved is None:
        column = " " * tools.start_mark.column
        item = f" [{entry}]" if tools.flow_style else f"\n{column}  - {entry}"
        return _into(text, tools, f"approved:{item}")
    if not isinstance(approved, yaml.SequenceNode):
        raise ValueError("its tools.approved is no list")
    return _into(text, approved, entry if approved.flow_style else f"- {entry}")


def _into(text: str, node: yaml.CollectionNode, item: str) -> str:
    """`text` with a member more of `node`: first in a block, last between brackets."""
    if node.flow_style:
        at = node.end_mark.index - 1
        return text[:at] + (", " if node.value else "") + item + text[at:]
    at = node.start_mark.index
    return text[:at] + item + "\n" + " " * node.start_mark.column + text[at:]


def _member(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _yaml(value: object) -> str:
    """JSON, which is YAML, in ASCII: no character hides in a policy's file."""
    text = json.dumps(value, ensure_ascii=False)
    # Not `ensure_ascii`: YAML's \\u is one code point, JSON's may be half of one.
    return "".join(
        c if c.isascii() and c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 1 << 16
        else f"\\U{ord(c):08x}"
        for c in text
    )  # fmt: skip


def _spelled(value: object) -> str:
    return json.dumps(cast("dict[str, Any]", value), sort_keys=True, default=str)
