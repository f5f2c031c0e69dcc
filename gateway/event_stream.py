"""Event streams of streamable HTTP, which a client may leave and take up again where it was.

Theory of operation
    A `Stream` is where a session's messages for one request go (or those for none). One response at a
    time reads it; a new reader ends the one before. What has been sent is kept for a while, so that
    `Last-Event-ID` (2025-11-25, "Resumability and Redelivery") finds its place again: an event's id
    is the stream's name and the event's number in it. `Streams` bounds what one session keeps.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .wire import jsonrpc
from .wire.jsonrpc import Message

RETRY_MS = 500
_KEPT_BYTES = 16 << 20  # of a session, sent or not while nobody reads
_MOST_STREAMS = 1024
_EVENT_ID = re.compile(r"([0-9]{1,12})-([0-9]{1,12})")
COMMENT = b": ping\r\n\r\n"


@dataclass(frozen=True)
class Event:
    """One message of a stream.

    Attributes:
        id: Of the event; "" in a stream that cannot be resumed.
        data: The message, one line.
        message: The same.
    """

    id: str
    data: bytes
    message: Message

    @property
    def is_final(self) -> bool:
        """Whether it is the answer, after which nothing comes."""
        return "method" not in self.message

    def encode(self) -> bytes:
        """As server-sent event."""
        name = f"id: {self.id}\r\n".encode() if self.id else b""
        return name + b"event: message\r\ndata: " + self.data.rstrip(b"\n") + b"\r\n\r\n"


class Stream:
    """A sink whose messages a response sends.

    Args:
        drained: Called when all has been sent.
        name: In event ids; "" for a stream that cannot be resumed, which keeps nothing.
    """

    def __init__(self, drained: Callable[[], None], name: str = "") -> None:
        self.buffered_bytes = 0
        self.kept_bytes = 0
        self.closed = False
        self._name = name
        self._events: deque[Event] = deque()
        self._sent = 0  # how many of the kept ones
        self._first = 1  # number of the oldest one kept
        self._news = asyncio.Event()
        self._reader = 0
        self._drained = drained

    def send(self, message: Message) -> None:
        """Queue one; nothing happens once the stream is closed. Raises `ValueError`: no JSON."""
        data = jsonrpc.encode(message)
        if self.closed:
            return
        number = self._first + len(self._events)
        event = Event(f"{self._name}-{number}" if self._name else "", data, message)
        self._events.append(event)
        self.buffered_bytes += len(data)
        self.kept_bytes += len(data)
        self._news.set()

    def attach(self) -> int:
        """A new reader; the one before is ended."""
        self._reader += 1
        self._news.set()
        return self._reader

    def is_reader(self, reader: int) -> bool:
        """Whether `reader` is still the one that reads."""
        return self._reader == reader

    def wake(self) -> None:
        """Have the reader look again."""
        self._news.set()

    async def next(self, reader: int, seconds: float) -> Event | None:
        """The next event; None when none has come in time, or the reader was woken or ended."""
        if self._sent == len(self._events) and self.is_reader(reader):
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except TimeoutError:
                return None
        if self._sent == len(self._events) or not self.is_reader(reader):
            return None
        event = self._events[self._sent]
        self._sent += 1
        self.buffered_bytes -= len(event.data)
        if not self._name:
            self._drop_oldest()
        if not self.buffered_bytes:
            self._drained()
        return event

    def primer(self) -> bytes:
        """An event without data: the id to come back with, and when."""
        last = f"{self._name}-{self._first + self._sent - 1}"
        return f"id: {last}\r\nretry: {RETRY_MS}\r\ndata: \r\n\r\n".encode()

    def rewind(self, number: int) -> bool:
        """Go on after event `number`; False when what came after it is no longer there."""
        sent = number - self._first + 1
        if not 0 <= sent <= len(self._events):
            return False
        self._sent = sent
        self.buffered_bytes = sum(len(e.data) for e in list(self._events)[sent:])
        return True

    def trim(self, most_bytes: int) -> None:
        """Keep no more than so much, unless a reader has yet to take it."""
        while self.kept_bytes > most_bytes and self._events and (self._sent or not self._reader):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        event = self._events.popleft()
        self.kept_bytes -= len(event.data)
        if self._sent:
            self._sent -= 1
        else:
            self.buffered_bytes -= len(event.data)
        self._first += 1


class Streams:
    """The streams of one legacy session that its client may come back to."""

    def __init__(self, drained: Callable[[], None]) -> None:
        self._drained = drained
        self._last = 0
        self._streams: dict[str, Stream] = {}

    def open(self) -> Stream:
        """A new stream."""
        self._last += 1
        name = str(self._last)
        stream = self._streams[name] = Stream(self._drained, name)
        self._bound()
        return stream

    def resume(self, event_id: str) -> Stream | None:
        """The stream that `event_id` is of, to be read after that event; None when it is gone."""
        match = _EVENT_ID.fullmatch(event_id)
        stream = self._streams.get(match[1]) if match else None
        if match is None or stream is None or not stream.rewind(int(match[2])):
            return None
        return stream

    def _bound(self) -> None:
        """Forget the oldest beyond the limits."""
        while len(self._streams) > _MOST_STREAMS:
            self._streams.pop(next(iter(self._streams))).closed = True
        kept = sum(stream.kept_bytes for stream in self._streams.values())
        for stream in list(self._streams.values()):
            if kept <= _KEPT_BYTES:
                break
            before = stream.kept_bytes
            stream.trim(max(0, before - (kept - _KEPT_BYTES)))
            kept -= before - stream.kept_bytes
