"""What a call's connections did, for its result, the record and the span."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from ...policies.hosts import Verdict, Why
from .http import Exchange

Via = Literal["direct", "http_proxy", "socks", "dns", "listen", "loopback"]
MOST_KEPT = 500  # entries of a call; the rest is counted
_MOST_REQUESTS = 50  # of one connection


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One connection that a program inside made or tried to make.

    Attributes:
        via: How it came: straight, by the proxy variables, or as a question for an address ("dns",
            only those that were refused); "listen" is one that came in by a published port,
            "loopback" one to a process of the same session.
        name: That was asked for, or the process; "" for a literal address.
        address: Literal that was asked for, or the one that was dialled; "" when none was.
        port: 0 for a DNS question.
        rule: Key of the policy that allowed or refused it; "" where no rule matched.
        reason: Why it was refused or failed; "" when it was not.
        text: The sentence for the model and the person, when it was.
        bytes_out, bytes_in: Out of the sandbox and into it, as TCP carried them.
        seconds: From its start to its end, or to the end of the call.
        times: How often the same was refused.
        requests: HTTP requests on it, where they were read: the first 50.
    """

    via: Via
    name: str
    address: str
    port: int
    rule: str
    reason: Why
    text: str
    bytes_out: int
    bytes_in: int
    seconds: float
    times: int
    requests: tuple[Exchange, ...]

    def to_json(self) -> dict[str, Any]:
        """For the record; what is empty is left out."""
        said: dict[str, Any] = {
            "via": self.via, "name": self.name, "address": self.address, "port": self.port,
            "rule": self.rule, "reason": str(self.reason), "text": self.text,
            "bytes_out": self.bytes_out, "bytes_in": self.bytes_in,
            "seconds": round(self.seconds, 4), "times": self.times if self.times > 1 else 0,
            "requests": [
                {"method": r.method, "path": r.path, "status": r.status, "reason": r.reason}
                for r in self.requests
            ],
        }  # fmt: skip
        return {key: value for key, value in said.items() if value}


class CapReached(OSError):
    """The call has sent as much as its policy lets it."""


class Entry:
    """One connection while it lasts. It is a `sockets.Tally`."""

    def __init__(self, ledger: Ledger, via: Via, name: str, address: str, port: int) -> None:
        self._ledger = ledger
        self._began = time.monotonic()
        self._seconds: float | None = None
        self.via: Via = via
        self.name = name
        self.address = address
        self.port = port
        self.rule = ""
        self.reason = Why.NONE
        self.text = ""
        self.bytes_out = self.bytes_in = 0
        self.times = 1
        self.requests: list[Exchange] = []

    def refuse(self, verdict: Verdict) -> None:
        """Note why it was refused or failed; the first reason stays."""
        if not self.reason:
            self.reason, self.rule, self.text = verdict.reason, verdict.rule, verdict.text

    def sending(self, count: int) -> None:
        """As `Tally.sending`."""
        ledger = self._ledger
        if ledger.cap_bytes is not None and ledger.bytes_out + count > ledger.cap_bytes:
            text = (
                f"{self.name or self.address}: cut, this call has sent the {ledger.cap_bytes} bytes "
                "that network.bytes_out lets it; ask the person to raise it if more must leave"
            )
            self.refuse(
                Verdict(allowed=False, reason=Why.BYTES_OUT, rule="network.bytes_out", text=text)
            )
            raise CapReached(text)
        ledger.bytes_out += count
        self.bytes_out += count

    def received(self, count: int) -> None:
        """As `Tally.received`."""
        self.bytes_in += count

    def exchanged(self, exchange: Exchange) -> None:
        """Note an HTTP request; one that was refused is also why the connection stands out."""
        if len(self.requests) < _MOST_REQUESTS:
            self.requests.append(exchange)
        if exchange.text:
            reason = Why(exchange.reason)
            self.refuse(
                Verdict(allowed=False, reason=reason, rule=exchange.rule, text=exchange.text)
            )

    def end(self) -> None:
        """Stop its clock. One that was refused as another was becomes one more time of that."""
        if self._seconds is None:
            self._seconds = time.monotonic() - self._began
            if self.reason and not self.requests and not self.bytes_out:
                self._ledger.fold(self)

    def frozen(self) -> Connection:
        """As it is now."""
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return Connection(
            via=self.via, name=self.name, address=self.address, port=self.port, rule=self.rule,
            reason=self.reason, text=self.text, bytes_out=self.bytes_out, bytes_in=self.bytes_in,
            seconds=seconds, times=self.times, requests=tuple(self.requests),
        )  # fmt: skip


class Ledger:
    """The connections of one call.

    Args:
        cap_bytes: What all of them together may send; None is no cap.

    Attributes:
        dropped: How many there were beyond the `MOST_KEPT` that are kept.
    """

    def __init__(self, cap_bytes: int | None) -> None:
        self.cap_bytes = cap_bytes
        self.bytes_out = 0
        self.dropped = 0
        self._entries: list[Entry] = []
        self._refused: dict[tuple[str, str, str, int, Why], Entry] = {}

    def begin(self, via: Via, *, name: str = "", address: str = "", port: int = 0) -> Entry:
        """A new connection."""
        entry = Entry(self, via, name, address, port)
        if len(self._entries) < MOST_KEPT:
            self._entries.append(entry)
        else:
            self.dropped += 1
        return entry

    def refused_name(self, name: str, verdict: Verdict) -> None:
        """A question for the address of a name that may not be asked for; programs ask often."""
        entry = self.begin("dns", name=name)
        entry.refuse(verdict)
        entry.end()

    def fold(self, entry: Entry) -> None:
        """Take `entry`, refused, for one more time of an equal one; programs try often."""
        key = (entry.via, entry.name, entry.address, entry.port, entry.reason)
        first = self._refused.get(key)
        if first is not None:
            first.times += 1
            if self._entries and self._entries[-1] is entry:
                self._entries.pop()
            elif entry in self._entries:
                self._entries.remove(entry)
            else:
                self.dropped -= 1
        elif entry in self._entries:
            self._refused[key] = entry

    def connections(self) -> tuple[Connection, ...]:
        """All that are kept, in the order in which they began."""
        return tuple(entry.frozen() for entry in self._entries)
