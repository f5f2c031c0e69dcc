"""How `purple approvals` reaches the gateways of its user: a socket each, in a private directory.

Theory of operation
    A gateway listens on `gateway-PID-….sock` in the runtime directory (mode 0700). It answers one
    line of JSON per connection with one line, and only a process that has the same user id (the
    kernel's word, SO_PEERCRED) *and* lives in the gateway's own user, pid and mount namespaces: a
    sandboxed command of an ordinary user has that user's id, too, but never these namespaces. That it
    does not see the directory in the first place is the policy's doing; this holds where a policy or
    a workspace grants too much. A program that runs as the user outside of any sandbox can answer
    like the user: nothing between processes of one user could tell them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import stat
import struct
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

from .board import Board
from .question import CHOICES

_MAX_LINE_BYTES = 4 << 20
_CLIENT_SECONDS = 15.0
_NAMESPACES = ("user", "pid", "mnt")


class ChannelError(Exception):
    """The directory cannot be used, or a gateway does not answer; the text says what to do."""


def runtime_directory() -> Path:
    """`$XDG_RUNTIME_DIR/purple`, else `/run/user/UID/purple`, else `~/.local/state/purple/run`."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        return Path(named) / "purple"
    usual = Path(f"/run/user/{os.geteuid()}")
    with contextlib.suppress(OSError):
        if usual.stat().st_uid == os.geteuid():
            return usual / "purple"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "purple" / "run"


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    """A descriptor of the directory, once it is known to be private."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ChannelError(f"{path}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ChannelError(f"{path} is not private to you; chmod 700 it, or remove it")
        yield fd
    finally:
        os.close(fd)


class Channel:
    """A board's listener. Use as an async context manager.

    Args:
        board: Whose questions are served.
        status: What `purple ps` is told of the gateway, as JSON.
        directory: None is `runtime_directory()`.

    Raises:
        ChannelError: on entering, the directory is not private to this user.
        OSError: on entering, it cannot be made or written to.
    """

    def __init__(
        self, board: Board, directory: Path | None = None, *,
        status: Callable[[], dict[str, Any]] = dict,
    ) -> None:  # fmt: skip
        self._board = board
        self._status = status
        self._directory = directory or runtime_directory()
        self._server: asyncio.Server | None = None
        self.path = self._directory / f"gateway-{os.getpid()}-{secrets.token_hex(4)}.sock"

    async def __aenter__(self) -> Channel:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _opened(self._directory) as fd:
                # unix(7): a path has 107 bytes at the most; by the descriptor any directory will do.
                # It has its name once it listens: one that refuses is a dead gateway's.
                name = f"/proc/self/fd/{fd}/{self.path.stem}"
                listener.bind(name)
                listener.listen()
                os.rename(name, name + self.path.suffix)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=_MAX_LINE_BYTES
            )
        except BaseException:
            listener.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            why = stranger(writer.get_extra_info("socket"))
            async with asyncio.timeout(_CLIENT_SECONDS):
                line = await reader.readline()
            reply = {"error": f"refused: {why}"} if why else self._reply(json.loads(line))
            writer.write(json.dumps(reply).encode() + b"\n")
            async with asyncio.timeout(_CLIENT_SECONDS):
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # a client that says nothing, or nonsense, gets no answer
        finally:
            writer.close()

    def _reply(self, request: object) -> dict[str, Any]:
        fields = cast("dict[str, object]", request) if isinstance(request, dict) else {}
        if fields.get("op") == "list":
            return {"questions": self._board.questions()}
        if fields.get("op") == "status":
            return {"status": {**self._status(), "pid": os.getpid()}}
        id, choice, binding = (fields.get(key) for key in ("id", "choice", "binding"))
        if fields.get("op") == "answer" and isinstance(id, str) and isinstance(binding, str):
            for known in CHOICES:
                if known == choice:
                    why = self._board.answer(id, known, binding)
                    return {"error": why} if why else {"taken": id}
        return {"error": "ops are list, status and answer (id, choice, binding)"}


def stranger(peer: socket.socket) -> str:
    """Why the process at the other end of a unix socket may not answer; "" when it may."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", data)
    if uid != os.geteuid():
        return f"user {uid} is not the gateway's"
    for name in _NAMESPACES:
        try:
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                return f"process {pid} is in another {name} namespace (a sandbox, or a container)"
        except OSError as error:  # pid 0, hidden or gone: it cannot be told from a sandboxed one
            return f"process {pid} cannot be looked at: {error.strerror}"
    return ""


def questions(directory: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every open question of every gateway of this user: socket name and question.

    Raises:
        ChannelError: the directory is not private, or a gateway refuses.
    """
    for name, reply in _ask_all({"op": "list"}, directory):
        found: list[dict[str, Any]] = reply.get("questions", [])
        for question in found:
            yield name, question


def statuses(directory: Path | None = None) -> Iterator[dict[str, Any]]:
    """The status of every gateway of this user, with its `pid`. Raises as `questions`."""
    for _, reply in _ask_all({"op": "status"}, directory):
        yield reply["status"]


def _ask_all(
    request: dict[str, Any], directory: Path | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    path = directory or runtime_directory()
    if not path.is_dir():
        return
    with _opened(path) as fd:
        for name in sorted(os.listdir(f"/proc/self/fd/{fd}")):
            if name.startswith("gateway-") and name.endswith(".sock"):
                reply = _ask(fd, name, request)
                if reply is not None:
                    yield name, reply


def answer(name: str, question: dict[str, Any], choice: str, directory: Path | None = None) -> None:
    """Answer a question that `questions` gave. Raises `ChannelError`: it was not taken."""
    request = {
        "op": "answer", "id": question["id"], "choice": choice, "binding": question["binding"],
    }  # fmt: skip
    with _opened(directory or runtime_directory()) as fd:
        if _ask(fd, name, request) is None:
            raise ChannelError("the gateway that asked has gone")


def _ask(directory: int, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """One line there and one back; None when nobody listens any more (the socket is then removed)."""
    path = f"/proc/self/fd/{directory}/{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
        peer.settimeout(_CLIENT_SECONDS)
        try:
            peer.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            # A killed gateway leaves its socket; a listening one never refuses.
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        except OSError as error:
            raise ChannelError(f"{name}: {error.strerror or error}") from None
        try:
            peer.sendall(json.dumps(request).encode() + b"\n")
            with peer.makefile("rb") as lines:
                line = lines.readline(64 << 20)
            reply: object = json.loads(line)
        except (OSError, ValueError) as error:
            raise ChannelError(f"{name} does not answer: {error}") from None
    if not isinstance(reply, dict):
        raise ChannelError(f"{name} answers no object")
    fields = cast("dict[str, Any]", reply)
    if "error" in fields:
        raise ChannelError(str(fields["error"]))
    return fields
