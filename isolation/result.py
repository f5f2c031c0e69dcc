"""What a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .enforcement import Enforcement
from .usage import Limit, Usage

if TYPE_CHECKING:
    from .egress.connections import Connection

Reason = Literal["exited", "signaled", "timed_out", "out_of_memory", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of one sandbox.

    Attributes:
        exit_code: 0–255 when the payload exited by itself; None otherwise.
        signal: The signal's number when one ended the payload; None otherwise.
        stdout: What was kept: the first `resources.output_limit` bytes.
        stdout_bytes: What was written, kept or not. The same for stderr.
        reason: Why it ended; "timed_out" and "out_of_memory" mean that we or the kernel killed it.
        usage: What it used.
        limits: The limits of the policy that it came to, what ended it first; empty when none.
        moved_aside: A sentence for each protected path that the command made; guard.py.
        connections: What its programs connected to, or tried to; refusals say why.
        value: The JSON of a file operation; None for a command.
        narrowed: What of the policy a file operation kept; None where that was all.
    """

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    reason: Reason
    wall_seconds: float
    usage: Usage
    limits: tuple[Limit, ...]
    enforcement: Enforcement
    moved_aside: tuple[str, ...] = ()
    connections: tuple[Connection, ...] = ()
    value: Any = None
    narrowed: Mapping[str, Any] | None = None

    @property
    def truncated(self) -> bool:
        """Whether more was written than kept."""
        return self.stdout_bytes > len(self.stdout) or self.stderr_bytes > len(self.stderr)

    @property
    def ended_by(self) -> Limit | None:
        """The limit for which everything in the sandbox was killed; None when none was."""
        return next((limit for limit in self.limits if limit.effect == "ended"), None)

    def facts(self) -> dict[str, Any]:
        """What a record holds of it: the end and what was used, without the output."""
        facts = {} if self.narrowed is None else {"grant": dict(self.narrowed)}
        return {
            **facts,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "usage": self.usage.to_json(),
            "limits": [limit.to_json() for limit in self.limits],
            "stdout_bytes": self.stdout_bytes,
            "stderr_bytes": self.stderr_bytes,
            "moved_aside": list(self.moved_aside),
            **(
                {"connections": [c.to_json() for c in self.connections]} if self.connections else {}
            ),
        }
