"""A pseudo-terminal between the caller's terminal and the payload's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty
from types import TracebackType


class Relay:
    """Copies bytes and the window size both ways; the caller's terminal is raw while entered.

    Args:
        outer: Descriptor of the caller's terminal.
    """

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self._master = -1

    def __enter__(self) -> Relay:
        self._saved = termios.tcgetattr(self._outer)
        return self

    def connect(self, master: int) -> None:
        """Begin to copy between the caller's terminal and `master`'s."""
        self._master = os.dup(master)
        # On Linux the master's settings are the terminal's: tty_ioctl(4).
        termios.tcsetattr(self._master, termios.TCSANOW, self._saved)
        self._resize()
        tty.setraw(self._outer, termios.TCSADRAIN)  # what was typed ahead is kept
        os.set_blocking(self._master, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._outer, self._to_payload)
        loop.add_reader(self._master, self._to_caller)
        loop.add_signal_handler(signal.SIGWINCH, self._resize)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._master < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._outer)
        loop.remove_reader(self._master)
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(self._outer, termios.TCSADRAIN, self._saved)
        os.close(self._master)

    def drain(self) -> None:
        """Show what the payload wrote last."""
        while self._to_caller():
            pass

    def _resize(self) -> None:
        with contextlib.suppress(OSError):
            termios.tcsetwinsize(self._master, termios.tcgetwinsize(self._outer))

    def _to_payload(self) -> None:
        data = os.read(self._outer, 4096)
        if data:
            with contextlib.suppress(BlockingIOError):
                os.write(self._master, data)
        else:
            asyncio.get_running_loop().remove_reader(self._outer)

    def _to_caller(self) -> bool:
        try:
            data = os.read(self._master, 1 << 16)
        except (BlockingIOError, OSError):
            return False
        while data:
            data = data[os.write(self._outer, data) :]
        return True
