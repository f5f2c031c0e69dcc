"""A gateway's workspace as agent frameworks want it: commands and files, as bytes.

Each operation is a call like any other: judged by the rules of the built-in tool that does the same
(`shell`, `read_file`, `write_file`, `list_directory`, `delete`), carried out in a sandbox of its own,
and recorded. What one command starts does not outlive it, and /tmp is new each time.
"""

from __future__ import annotations

import base64
import errno
import json
import posixpath
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gateway.calls import Call, Outcome, Ran, Version, text_result
from ..gateway.reasons import Reason
from ..gateway.tools.notes import moved_aside
from ..isolation import IsolationError, OperationError
from .bridge import AnyGateway, Bridge

MAX_FILE_BYTES = 32 << 20


class Refused(PermissionError):
    """A call that was refused, or whose sandbox could not be built; begins with the reason code."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(errno.EPERM, f"[{outcome.reason}] {outcome.text}")
        self.reason: Reason = outcome.reason
        self.outcome = outcome


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a command ended.

    Attributes:
        exit_code: 128 + N when signal N ended it.
        stdout, stderr: UTF-8, what is not replaced.
        truncated: Whether more was written than kept (`resources.output_limit`).
        timed_out: Whether the time limit ended it.
        notes: What the sandbox stopped, by which rule.
        text: All of it as the model reads it.
    """

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    notes: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or directory, links followed."""

    name: str
    is_directory: bool
    size_bytes: int
    modified: float


class WorkspaceAccess:
    """The workspace of one gateway; every method has an asynchronous twin (`a…`).

    Args:
        gateway: Entered by the time of the first call.
        client: Who asks, for rules and the record.
        session: Of that client.

    Methods on files take a path (relative ones begin in the workspace) and raise what the kernel said
    as an `OSError` of its class, `Refused` where the policy did.
    """

    def __init__(self, gateway: AnyGateway, *, client: str, session: str = "") -> None:
        self.bridge = Bridge(gateway)
        self.client = client
        self.session = session

    @property
    def root(self) -> str:
        """The workspace's directory, absolute, links followed."""
        return str(self.bridge.gateway.workspace.resolve())

    def run(
        self, command: str, *, timeout_seconds: float | None = None, cwd: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Finished:  # fmt: skip
        """Run a command line. Raises `Refused`."""
        arguments = _command(command, timeout_seconds, cwd, env)
        return finished(self.bridge.call("shell", arguments, **self._who()))

    async def arun(
        self, command: str, *, timeout_seconds: float | None = None, cwd: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Finished:  # fmt: skip
        """As `run`."""
        arguments = _command(command, timeout_seconds, cwd, env)
        return finished(await self.bridge.acall("shell", arguments, **self._who()))

    def read(self, path: str) -> bytes:
        """All of a file, at most 32 MiB, for the model: text as the screens leave it."""
        return _bytes(self._do(_reads(path)))

    async def aread(self, path: str) -> bytes:
        """As `read`."""
        return _bytes(await self._ado(_reads(path)))

    def download(self, path: str) -> bytes:
        """All of a file, at most 32 MiB, for the program around the agent: each byte as it is."""
        return _bytes(self._do(_reads(path, verbatim=True)))

    async def adownload(self, path: str) -> bytes:
        """As `download`."""
        return _bytes(await self._ado(_reads(path, verbatim=True)))

    def write(self, path: str, data: bytes) -> None:
        """Replace or create a file; missing directories are made."""
        self._do(_writes(path, data))

    async def awrite(self, path: str, data: bytes) -> None:
        """As `write`."""
        await self._ado(_writes(path, data))

    async def alook(self, path: str) -> Entry:
        """What a path is."""
        found = await self._ado(_Operation("list_directory", path, "look", {}))
        return _entry({"name": posixpath.basename(path.rstrip("/")), **found})

    def list_directory(self, path: str) -> list[Entry]:
        """What is in a directory, by name."""
        return [_entry(e) for e in self._do(_lists(path))["entries"]]

    async def alist_directory(self, path: str) -> list[Entry]:
        """As `list_directory`."""
        return [_entry(e) for e in (await self._ado(_lists(path)))["entries"]]

    async def amake_directory(self, path: str) -> None:
        """With those above it."""
        await self._ado(_Operation("write_file", path, "make_directory", {}))

    def delete(self, path: str) -> None:
        """A file, a link (never its target), or a directory with all it holds."""
        self._do(_deletes(path))

    async def adelete(self, path: str) -> None:
        """As `delete`."""
        await self._ado(_deletes(path))

    async def areal_path(self, path: str) -> str:
        """The path with every link followed."""
        found = await self._ado(_Operation("list_directory", path, "real_path", {}, exact=True))
        return str(found["path"])

    def edit(self, path: str, old: str, new: str, *, replace_all: bool = False) -> int:
        """Replace a text; how often. Raises `OSError` with EINVAL: it is not there, or not once."""
        return int(self._do(_edits(path, old, new, replace_all))["replacements"])

    async def aedit(self, path: str, old: str, new: str, *, replace_all: bool = False) -> int:
        """As `edit`."""
        return int((await self._ado(_edits(path, old, new, replace_all)))["replacements"])

    def _do(self, operation: _Operation) -> dict[str, Any]:
        return operation.answer(self.bridge.carry(operation.call(self), operation.run))

    async def _ado(self, operation: _Operation) -> dict[str, Any]:
        return operation.answer(await self.bridge.acarry(operation.call(self), operation.run))

    def _who(self) -> dict[str, str]:
        return {"client": self.client, "session": self.session}


def _command(
    command: str, timeout_seconds: float | None, cwd: str, env: Mapping[str, str] | None
) -> dict[str, Any]:
    if env:
        # The tool has no argument for it: rules and the record see the whole line.
        names = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
        command = f"export {names}\n{command}"
    arguments: dict[str, Any] = {"command": command}
    if timeout_seconds is not None:
        arguments["timeout_seconds"] = timeout_seconds
    if cwd:
        arguments["cwd"] = cwd
    return arguments


def finished(outcome: Outcome) -> Finished:
    """How the command of a `shell` call ended. Raises `Refused`."""
    content = outcome.content
    if content is None:
        if outcome.is_error:
            raise Refused(outcome)
        content = {}  # a screen has withheld the structured form
    code, signal = content.get("exit_code", 0), content.get("signal")
    return Finished(
        exit_code=code if code is not None else 128 + int(signal or 9),
        stdout=content.get("stdout", outcome.text), stderr=content.get("stderr", ""),
        truncated=bool(content.get("truncated")), timed_out=outcome.reason is Reason.TIMED_OUT,
        notes=tuple(content.get("notes", ())), text=outcome.text,
    )  # fmt: skip


class _Operation:
    """One operation on files: the call that is judged, what is done inside, and what comes of it.

    Args:
        tool: The built-in tool whose rules judge it.
        path: What it is about.
        name: In isolation/fileops.py.
        more: Its arguments beside the path.
        judged: The call's arguments beside the path.
        exact: The path goes in as it is written, not as it is judged, and what leads there is looked
            at: the call keeps all of the policy.
        verbatim: Stages see how long the data is, not the data, so that no screen changes it.
    """

    def __init__(
        self, tool: str, path: str, name: str, more: dict[str, Any], *,
        judged: dict[str, Any] | None = None, exact: bool = False, verbatim: bool = False,
    ) -> None:  # fmt: skip
        self.tool, self.path, self.name, self.more = tool, path, name, more
        self.judged, self.exact, self.verbatim = judged or {}, exact, verbatim
        self.value: dict[str, Any] = {}
        self.error: OperationError | None = None
        self.told: dict[str, Any] = {}

    def call(self, access: WorkspaceAccess) -> Call:
        return Call(
            tool=self.tool, arguments={"path": self.path, **self.judged}, client=access.client,
            session=access.session,
        )  # fmt: skip

    async def run(self, call: Call, version: Version) -> Ran:
        path = self.path if self.exact else version.rules.place.shown(call.arguments["path"])
        try:
            grant = None if self.exact else call.grant
            result = await version.engine.call(self.name, {"path": path, **self.more}, grant=grant)
        except OperationError as error:
            self.error = error
            text = f"{self.tool} failed ({error.code}): {error}"
            self.told = text_result(text, is_error=True)
            return Ran(result=self.told, reason=Reason.OPERATION_FAILED)
        except IsolationError as error:
            refused = text_result(f"Not run: {error}", is_error=True)
            return Ran(result=refused, reason=Reason.SANDBOX_UNAVAILABLE)
        if undone := moved_aside(result, version.policy):
            refused = text_result("\n".join(undone), is_error=True)
            return Ran(result=refused, reason=Reason.POLICY_DENIED, facts=result.facts())
        self.value = result.value
        self.told = text_result(_shown(self.value, verbatim=self.verbatim))
        return Ran(result=self.told, facts=result.facts())

    def answer(self, outcome: Outcome) -> dict[str, Any]:
        if self.error is not None and outcome.result == self.told:
            number = getattr(errno, self.error.code, errno.EIO)
            raise OSError(number, str(self.error), self.path)
        if outcome.is_error:
            raise Refused(outcome)
        if outcome.result != self.told and "data" in self.value:  # a screen has changed the text
            return {"data": base64.b64encode(outcome.text.encode()).decode()}
        return self.value


def _reads(path: str, *, verbatim: bool = False) -> _Operation:
    most = {"max_bytes": MAX_FILE_BYTES}
    return _Operation("read_file", path, "read_bytes", most, verbatim=verbatim)


def _writes(path: str, data: bytes) -> _Operation:
    judged = {"content": data.decode("utf-8", "replace")}
    encoded = {"data": base64.b64encode(data).decode()}
    return _Operation("write_file", path, "write_bytes", encoded, judged=judged)


def _lists(path: str) -> _Operation:
    return _Operation("list_directory", path, "look", {"entries": True})


def _deletes(path: str) -> _Operation:
    more = {"recursive": True}
    return _Operation("delete", path, "delete", more, judged=more)


def _edits(path: str, old: str, new: str, replace_all: bool) -> _Operation:
    more = {"old_text": old, "new_text": new, "replace_all": replace_all}
    return _Operation("edit_file", path, "edit_file", more, judged=more)


def _bytes(value: dict[str, Any]) -> bytes:
    return base64.b64decode(value["data"])


def _entry(found: dict[str, Any]) -> Entry:
    return Entry(
        name=found["name"], is_directory=found["is_directory"], size_bytes=found["size_bytes"],
        modified=found["modified"],
    )  # fmt: skip


def _shown(value: dict[str, Any], *, verbatim: bool) -> str:
    """What stages see of an answer: a file's text, or the JSON."""
    if "data" not in value:
        return json.dumps(value, ensure_ascii=False)
    data = _bytes(value)
    if not verbatim:
        try:
            return data.decode()
        except UnicodeDecodeError:  # nothing that a screen could read, or may change
            pass
    return f"{len(data)} bytes"
