"""DNS of one sandbox on the wire: questions by UDP and TCP, answered by names.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from ...policies.hosts import Verdict
from .. import libc
from .names import Names, answer
from .sockets import RawStream

_MOST_BYTES = 4096
_PACKET_INFO = (
    (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
    (socket.IPPROTO_IP, libc.IP_PKTINFO),
)


class Questions:
    """Answers those of one sandbox. Arguments as of `names.answer`."""

    def __init__(
        self, names: Names, decide: Callable[[str], Verdict], *, ipv6: bool,
        refused: Callable[[str, Verdict], None],
    ) -> None:  # fmt: skip
        self._names = names
        self._decide = decide
        self._ipv6 = ipv6
        self._refused = refused

    def on_datagram(self, udp: socket.socket) -> None:
        """Answer what has come by UDP."""
        room = socket.CMSG_SPACE(32)
        for _ in range(64):
            try:
                question, ancillary, _, peer = udp.recvmsg(_MOST_BYTES, room)
            except OSError:
                return
            said = self._answer(question)
            # The answer's source is the address that was asked: ipv6(7), ip(7).
            source = [item for item in ancillary if item[:2] in _PACKET_INFO]
            if said is not None:
                with contextlib.suppress(OSError):
                    udp.sendmsg([said], source, 0, peer)

    async def serve(self, client: RawStream) -> None:
        """Serve a connection, and close it: each message after its length in two bytes. RFC 7766."""
        held = b""
        try:
            while data := await client.read(_MOST_BYTES):
                held += data
                while len(held) >= 2 and len(held) >= 2 + int.from_bytes(held[:2]):
                    size = int.from_bytes(held[:2])
                    said = self._answer(held[2 : 2 + size])
                    held = held[2 + size :]
                    if said is None:
                        return
                    await client.write(len(said).to_bytes(2) + said)
        except OSError:
            client.abort()
        finally:
            client.close()

    def _answer(self, question: bytes) -> bytes | None:
        return answer(question, self._names, self._decide, ipv6=self._ipv6, refused=self._refused)
