"""Processes in the background: started by one call, spoken to by others, ended with their session.

Theory of operation
    A process belongs to the session of the client that started it; to others its id names nothing. It
    has a task that lives as long: it takes what the process writes into a `Tail`, of which calls take
    what is new, and leaves a record of its own (tool `process`), begun before it starts and ended with
    what it used. It runs under the version that it was started under, and is ended when that is
    replaced: what a policy no longer grants, nobody keeps.
"""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..isolation import CommandNotFound, IsolationError, Result
from ..policies import Decision
from .audit import spans
from .audit.record import recorded_arguments
from .reasons import Reason

if TYPE_CHECKING:
    from ..isolation import Process
    from .audit import AuditLog
    from .calls import Call, Version

MOST = 64  # of all sessions together; those that have ended make room, the longest ended first
_MOST_ENDED = 8  # of a session
_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_FLOOD_SECONDS = 0.01  # for 64 KiB that nobody will see: a flood must not keep the gateway busy
_MOST_HELD = 4096  # characters of a line that has not ended
_LEAST_HELD = 4  # as in screens.progress
_REASONS = {"timed_out": Reason.TIMED_OUT, "out_of_memory": Reason.OUT_OF_MEMORY}


class Tail:
    """The last `most_bytes` of what was added since it was last taken."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._data = bytearray()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._data)

    @property
    def is_over(self) -> bool:
        """Whether something has been dropped."""
        return self._dropped > 0

    def add(self, data: bytes) -> None:
        """Append; what is too much is dropped from the beginning."""
        self._data += data
        if (over := len(self._data) - self._most) > 0:
            del self._data[:over]
            self._dropped += over

    def take(self) -> tuple[bytes, int]:
        """What there is, and how many bytes before it were dropped."""
        taken = bytes(self._data), self._dropped
        self._data.clear()
        self._dropped = 0
        return taken


class Background:
    """One of them. Made by `Processes.start`.

    Attributes:
        id: For its session.
        command: What it executes.
        version: What it runs under.
        shown: The command, or as much of it as the policy lets be recorded.
        since: When it was started, in seconds since the epoch.
        result: How it ended; None while it runs, and when it could not be executed.
        error: Why it could not be executed; None otherwise.
        stopped_by: Who ended it, before it did so itself; "" for nobody.
    """

    def __init__(self, id: str, command: str, version: Version, process: Process) -> None:
        self.id, self.command, self.version = id, command, version
        self.result: Result | None = None
        self.error: IsolationError | None = None
        self.stopped_by = ""
        self._process = process
        self.shown = ""
        self.since = time.time()
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._tail = Tail(version.policy.resources.output_bytes)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._news = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def wall_seconds(self) -> float:
        """For how long it has run."""
        return self._seconds if self._seconds is not None else time.monotonic() - self._began

    @property
    def order_of_end(self) -> float:
        """Less for what ended earlier."""
        return self._began + self.wall_seconds

    @property
    def unread_bytes(self) -> int:
        """How much of its output nobody has taken; about as many as it is in UTF-8."""
        return len(self._tail) + len(self._rest)

    async def live(self) -> None:
        """Take what it writes until it ends."""
        try:
            async for data in self._process.stdout:
                self._tail.add(data)
                self._news.set()
                if self._tail.is_over:
                    await asyncio.sleep(_FLOOD_SECONDS)
            self.result = await self._process.wait()
        except IsolationError as error:
            self.error = error
        finally:
            await self._process.aclose()
            self._seconds = time.monotonic() - self._began
            self.ended.set()
            self._news.set()

    async def read(self, wait_seconds: float) -> str:
        """Its new output, once there is a line of it, it has ended, or the time is over."""
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while not (text := self._take(whole=False)) and not self.ended.is_set():
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return self._take(whole=True)
        return text

    async def write(self, data: bytes, *, close: bool) -> None:
        """Give it input; raises as `SendPipe.send`."""
        if data:
            await self._process.stdin.send(data)
        if close:
            await self._process.stdin.aclose()

    async def stop(self, by: str, *, at_once: bool = False) -> None:
        """Ask it to end, and end it if it does not; returns when nothing of it is left."""
        if not self.ended.is_set():
            self.stopped_by = self.stopped_by or by
        if not at_once:
            self._process.terminate()
            try:
                async with asyncio.timeout(_GRACE_SECONDS):
                    await self.ended.wait()
            except TimeoutError:
                pass
        self._process.kill()
        await self.ended.wait()

    def _take(self, *, whole: bool) -> str:
        """New output; a line that has not ended waits unless `whole`, and what could be the start of a
        known secret waits always: so that screens see either in one piece."""
        data, dropped = self._tail.take()
        if dropped:
            self._rest += f"\n[{dropped} bytes left out]\n"
            self._decoder.reset()
        ended = self.ended.is_set()
        text = self._rest + self._decoder.decode(data, final=ended)
        cut = len(text)
        if not ended:
            if not whole:
                line = max(text.rfind("\n"), text.rfind("\r")) + 1
                cut = line if cut - line <= _MOST_HELD else cut
            if known := self.version.screen.known:
                cut -= known.begins(text[:cut], _LEAST_HELD)
        self._rest = text[cut:]
        return text[:cut]


@dataclass
class _Owned:
    """What one session has: by id, the oldest first; how many are being started; whether it is over."""

    held: dict[str, Background] = field(default_factory=dict[str, Background])
    starting: int = 0
    is_over: bool = False

    @property
    def running(self) -> int:
        return self.starting + sum(not one.ended.is_set() for one in self.held.values())


class Processes:
    """Those of all sessions of a gateway.

    Args:
        log: Where each leaves its record.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._owned: dict[tuple[str, str], _Owned] = {}  # by client and session
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self, call: Call, version: Version, *, cwd: str, wall_seconds: float | None
    ) -> Background | None:
        """Start the command of a call that may run; None when its session has as many as it may, or all
        sessions together have.

        Raises:
            CommandNotFound, SetupError: as `Engine.start`.
            OSError: the record cannot be written; nothing has run.
        """
        owned = self._owned.setdefault((call.client, call.session), _Owned())
        if owned.running >= version.policy.resources.background or not self._make_room(owned):
            return None
        owned.starting += 1
        id, command = f"p-{secrets.token_hex(4)}", str(call.arguments["command"])
        recorded = _recorded(dict(call.arguments), version)
        record = self._begin(call, version, id, recorded)
        try:
            process = await version.engine.start(
                ["/bin/sh", "-c", command], cwd=cwd, stderr="stdout", wall_seconds=wall_seconds,
                session=(call.client, call.session), name=f"process {id}",
            )  # fmt: skip
        except BaseException as error:
            said = {"error": str(error)} if isinstance(error, IsolationError) else {}
            self._log.end(record, {"reason": str(_reason(error)), **said})
            raise
        finally:
            owned.starting -= 1
        background = owned.held[id] = Background(id, command, version, process)
        background.shown = _shown(recorded)
        # Nobody cancels it: it ends with its process.
        task = asyncio.create_task(self._live(background, call, record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if owned.is_over:
            await background.stop("session", at_once=True)
        return background

    def status(self) -> list[dict[str, Any]]:
        """What `purple ps` shows of each, the oldest first; its command as the policy lets it be recorded."""
        found = [
            {
                "process_id": one.id, "command": one.shown, "client": client, "session": session,
                "policy": one.version.policy.name, "since": one.since, "running": not one.ended.is_set(),
                "wall_seconds": round(one.wall_seconds, 1), "unread_bytes": one.unread_bytes,
            }
            for (client, session), owned in self._owned.items() for one in owned.held.values()
        ]  # fmt: skip
        return sorted(found, key=lambda one: one["since"])

    def of(self, call: Call) -> list[Background]:
        """Those of the session that calls, the oldest first."""
        owned = self._owned.get((call.client, call.session))
        return list(owned.held.values()) if owned is not None else []

    def find(self, call: Call) -> Background | None:
        """The one that the call's `process_id` names, if it is its session's."""
        owned = self._owned.get((call.client, call.session))
        return owned.held.get(str(call.arguments["process_id"])) if owned is not None else None

    def forget(self, call: Call, background: Background) -> None:
        """Drop one that has ended and whose output has been taken."""
        if owned := self._owned.get((call.client, call.session)):
            owned.held.pop(background.id, None)

    async def end_session(self, session: str) -> None:
        """End all of a session that is over."""
        for key in [key for key in self._owned if key[1] == session]:
            owned = self._owned.pop(key)
            owned.is_over = True
            await self._end("session", owned.held.values())

    async def end_version(self, version: Version) -> None:
        """End all that run under a version that has been replaced; how they ended can be asked still."""
        held = [one for owned in self._owned.values() for one in owned.held.values()]
        await self._end("policy", [one for one in held if one.version is version])

    async def aclose(self) -> None:
        """End all; returns when their records are written."""
        for owned in self._owned.values():
            await self._end("gateway", owned.held.values())
        self._owned.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _end(self, by: str, some: Iterable[Background]) -> None:
        running = [one for one in some if not one.ended.is_set()]
        await asyncio.gather(*(one.stop(by, at_once=True) for one in running))

    def _make_room(self, owned: _Owned) -> bool:
        """Forget the oldest of those of a session that have ended, and whichever session's ended first
        where all together are too many; False where all of them run."""
        for one in [one for one in owned.held.values() if one.ended.is_set()][:-_MOST_ENDED]:
            del owned.held[one.id]
        while sum(len(one.held) + one.starting for one in self._owned.values()) >= MOST:
            held = [(one, has.held) for has in self._owned.values() for one in has.held.values()]
            held = [(one, where) for one, where in held if one.ended.is_set()]
            if not held:
                return False
            first, where = min(held, key=lambda pair: pair[0].order_of_end)
            del where[first.id]
        return True

    def _begin(self, call: Call, version: Version, id: str, recorded: Any) -> str:
        policy = version.policy
        return self._log.begin({
            "tool": "process", "client": call.client, "session": call.session,
            "policy": policy.name, "policy_version": policy.digest, "effect": "allow",
            "rule": "process_start", "decision_reason": f"started by call {call.call_id}",
            "process_id": id, "started_by": call.call_id,
            "arguments": recorded,
            "enforcement": version.engine.enforcement.to_json(), **spans.identity(),
        })  # fmt: skip

    async def _live(self, background: Background, call: Call, record: str) -> None:
        version = background.version
        decision = Decision(effect="allow", reason="", rule="process_start")
        with spans.process(background.id):
            spans.begun(record, version.policy, decision, version.engine.enforcement)
            end: dict[str, Any] = {"reason": str(Reason.CANCELLED)}
            try:
                await background.live()
                result, error = background.result, background.error
                reason = _reason(error)
                if result is not None:
                    end = version.screen.recorded(result.facts())
                    reason = _REASONS.get(result.reason, Reason.COMPLETED)
                elif error is not None:
                    end["error"] = str(error)
                if background.stopped_by:
                    end["stopped_by"] = background.stopped_by
                    if background.stopped_by != "process_stop":
                        reason = Reason.CANCELLED
                end["reason"] = str(reason)
            finally:
                end["wall_seconds"] = round(background.wall_seconds, 4)
                self._log.end(record, end)
                spans.ended(end, is_error=end["reason"] != Reason.COMPLETED)


def _recorded(arguments: dict[str, Any], version: Version) -> Any:
    """Arguments as the policy lets them be recorded."""
    audit = version.policy.audit
    kept = version.screen.recorded(arguments) if audit.arguments == "full" else arguments
    return recorded_arguments(kept, audit.arguments, audit.redact)


def _shown(recorded: Any) -> str:
    """The command for a person; a digest or nothing where the policy records no more."""
    kept: dict[str, Any] = recorded or {}
    return str(kept.get("command") or (f"sha256 {kept['sha256']}" if "sha256" in kept else ""))


def _reason(error: BaseException | None) -> Reason:
    """Of a process that has not run."""
    if isinstance(error, CommandNotFound):
        return Reason.COMMAND_NOT_FOUND
    return Reason.SANDBOX_UNAVAILABLE if isinstance(error, IsolationError) else Reason.CANCELLED
