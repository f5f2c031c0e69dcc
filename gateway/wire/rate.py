"""How many frames a client may send: a bucket that fills as fast as frames may come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from . import jsonrpc
from .jsonrpc import Message, RpcError

# More than the gateway answers: whoever works never gets here, and a flood of what costs little
# (pings, unreadable frames) leaves time for others.
MAX_FRAMES_A_SECOND = 20_000


class Rate:
    """One client's bucket.

    Args:
        a_second: Frames a second for good, and as many at once after a second's silence.
        clock: Seconds; must not go back.
    """

    def __init__(
        self, a_second: float = MAX_FRAMES_A_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._a_second, self._clock = a_second, clock
        self._left, self._last = a_second, clock()

    def take(self) -> bool:
        """Count a frame; False where it is one too many, which is then not counted."""
        if self._left < 1:
            now = self._clock()
            self._left = min(self._a_second, self._left + (now - self._last) * self._a_second)
            self._last = now
            if self._left < 1:
                return False
        self._left -= 1
        return True

    @staticmethod
    def concerns(message: Message) -> bool:
        """Whether `message` is refused where it comes too fast.

        Answers and cancellations are not: somebody waits for the one, and the other ends work.
        """
        return message.get("method") not in (None, "notifications/cancelled")

    def refusal(self) -> RpcError:
        """What is answered to whoever waits."""
        seconds = (1 - self._left) / self._a_second
        text = f"Over {self._a_second:g} frames a second; nothing was done. Send fewer, or wait"
        data = {"retryAfterMs": max(1, math.ceil(seconds * 1000))}
        return RpcError(jsonrpc.OVERLOADED, text, data)
