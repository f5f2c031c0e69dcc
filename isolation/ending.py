"""The end of a keeper, as the gateway waits for it; also of one that cannot end by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket

# Between looks, and how many before it is killed: it ends in milliseconds, in seconds where a thousand
# sandboxes do with it.
_LOOK_SECONDS, _LOOKS = 2.0, 30


async def end(keeper: int, channel: socket.socket) -> None:
    """Wait until a keeper has ended that is to.

    One that is stopped (SIGSTOP) is killed, and with it all the others (PR_SET_PDEATHSIG); what it would
    have removed, the next one does (leftovers.py). One that is frozen, so that not even that ends it, is
    left after a minute.

    Args:
        keeper: Its pid.
        channel: To it, non-blocking, and shut down for writing, by which it knows.

    Raises:
        OSError: from the channel; it has ended.
    """
    for look in range(_LOOKS):
        if await _ends(channel):
            return
        if look == _LOOKS - 1 or _is_stopped(keeper):
            _kill(keeper, channel)
            await _ends(channel)
            return


async def _ends(channel: socket.socket) -> bool:
    """Wait for a while; whether it has."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_SECONDS):
            while await loop.sock_recv(channel, 1 << 16):
                pass  # what it said before it heard
            return True
    return False


def _is_stopped(pid: int) -> bool:
    """Or held by a tracer. proc_pid_stat(5)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False


def _kill(keeper: int, channel: socket.socket) -> None:
    """SIGKILL, if it still has its end of `channel`, which nobody else has."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(keeper)
        try:
            # If it is not at its end now, the pid was not another's when we took hold of it.
            channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
