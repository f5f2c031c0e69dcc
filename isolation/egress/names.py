"""DNS of a sandbox: allowed names have an address of its own making, all others do not exist.

The name is decided when it is asked for, the real address when it is connected to: a made-up address
tells the gate which name a connection is for. So nothing is sent to a name server for what is not
connected to. Sources: RFC 1035, RFC 2308, RFC 6761; RFC 2544 and RFC 5180 for the ranges.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, cast

import dnslib

from ...policies.addresses import Address
from ...policies.hosts import Verdict, Why, canonical_name

_dns = cast(Any, dnslib)  # half of it has no types
IPV4 = IPv4Network("198.18.0.0/15")
IPV6 = IPv6Network("2001:2::/48")
_MOST_NAMES = 8192  # of one sandbox; the one that was asked for longest ago gives way
MOST_LISTED = 256  # names in /etc/hosts, which programs read from its beginning for each name
_TTL_SECONDS = 60
_PAGE_BYTES = 4096
_FIRST = 256  # 198.18.0.x is left out: some programs take .0 and .255 for no host


def listed(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that a policy allows that stand in /etc/hosts; the rest is asked for."""
    return tuple(n for n in names if n.rpartition(".")[2] != "localhost")[:MOST_LISTED]


def reads_mapped() -> bool:
    """Whether programs here find either family in an IPv4-mapped address of /etc/hosts. RFC 4291, 2.5.5.2.

    glibc does: who asks for IPv4 gets the address that is mapped, who asks for IPv6 or for any gets it as
    it stands, which an IPv6 socket connects to by IPv4. musl gives it for IPv6 alone.
    """
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        socket.socket(socket.AF_INET6).close()
    except (OSError, ValueError):
        return False
    return True


def hosts_file(names: Sequence[str], *, mapped: bool) -> str:
    """Lines for /etc/hosts of what a sandbox's `Names` has from the beginning. hosts(5)."""
    return "".join(_line(name, _FIRST + at, mapped=mapped) for at, name in enumerate(names))


def _line(name: str, index: int, *, mapped: bool) -> str:
    # One address: of two getaddrinfo(3) asks the kernel which is better (RFC 6724), which takes it three
    # times as long as all else that it does.
    return f"{'::ffff:' * mapped}{IPV4[index]} {name}\n"


class Listing:
    """The /etc/hosts that one sandbox has for itself: names that it has asked for need not be asked for again.

    Args:
        fd: Opened to append; closed by this.
        room: How many names may be added.
        mapped: As `reads_mapped`.
    """

    def __init__(self, fd: int, room: int, *, mapped: bool) -> None:
        self._fd = fd
        self._room = room
        self._mapped = mapped

    def add(self, name: str, index: int) -> bool:
        """Add an allowed name; False where it does not stand there: the sandbox's /tmp is full, or the file is."""
        if self._room <= 0 or self._fd < 0:
            return False
        line = _line(name, index, mapped=self._mapped).encode()
        try:
            size = os.fstat(self._fd).st_size
            # Programs read meanwhile, and see a page as it was or as it is: so no line lies in two.
            left = -size % _PAGE_BYTES
            if left < len(line):
                line = b"\n" * left + line
            whole = os.write(self._fd, line) == len(line)
            if not whole:
                os.ftruncate(self._fd, size)
        except OSError:
            whole = False
        self._room = self._room - 1 if whole else 0
        return whole

    def close(self) -> None:
        """Add nothing any more."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Names:
    """The names that one sandbox has asked for.

    Args:
        known: What it has from the beginning, and keeps: see `hosts_file`.
        listing: Where what it asks for is written, and then kept as well; None for nowhere.

    Attributes:
        on_taken_back: Called when an address becomes another name's.
    """

    def __init__(self, known: Sequence[str] = (), listing: Listing | None = None) -> None:
        self._listing = listing
        self._known = {name: _FIRST + at for at, name in enumerate(known)}
        self._index: OrderedDict[str, int] = OrderedDict()
        self._name: dict[int, str] = {index: name for name, index in self._known.items()}
        self._next = _FIRST
        self.on_taken_back: Callable[[], None] = lambda: None
        self._answers: dict[bytes, bytes] = {}  # by question, both without their first two bytes

    def index_of(self, name: str) -> int:
        """The number of an allowed name, which both its addresses are made of."""
        index = self._known.get(name)
        if index is not None:
            return index
        index = self._index.get(name)
        if index is None:
            if len(self._index) >= _MOST_NAMES:
                _, old = self._index.popitem(last=False)
                del self._name[old]
                self._answers.clear()
                self.on_taken_back()
            while self._next in self._name:
                self._next += 1
            index = self._next
            self._next = index + 1 if index + 1 < IPV4.num_addresses else _FIRST
            self._name[index] = name
            if self._listing is not None and self._listing.add(name, index):
                self._known[name] = index
                return index
            self._index[name] = index
        self._index.move_to_end(name)
        return index

    def known(self, question: bytes) -> bytes | None:
        """The answer to an equal question that was answered before."""
        rest = self._answers.get(question[2:])
        return None if rest is None else question[:2] + rest

    def keep(self, question: bytes, said: bytes) -> None:
        """Keep an answer that gives an address of an allowed name, for `known`."""
        if len(self._answers) < _MOST_NAMES:
            self._answers[question[2:]] = said[2:]

    def name_of(self, address: Address) -> str | None:
        """The name that a made-up address stands for; None for one that was not given out."""
        network = IPV4 if isinstance(address, IPv4Address) else IPV6
        return self._name.get(int(address) - int(network.network_address))


def made_up(address: Address) -> bool:
    """Whether `address` lies where this module gives addresses out."""
    return address in (IPV4 if isinstance(address, IPv4Address) else IPV6)


def answer(
    question: bytes, names: Names, decide: Callable[[str], Verdict], *, ipv6: bool,
    refused: Callable[[str, Verdict], None],
) -> bytes | None:  # fmt: skip
    """The answer to a DNS message; None to what is none.

    Args:
        question: As it came.
        names: Where the addresses of allowed names are kept.
        decide: The policy's word on a name.
        ipv6: Whether AAAA is answered.
        refused: Told of a name that is not allowed, and why.
    """
    if (again := names.known(question)) is not None:
        return again
    try:
        asked = _dns.DNSRecord.parse(question)
    except (_dns.DNSError, ValueError, IndexError):
        return None
    if asked.header.qr:
        return None
    reply = _dns.DNSRecord(_dns.DNSHeader(id=asked.header.id, qr=1, aa=1, ra=1, rd=asked.header.rd))
    if asked.header.opcode or len(asked.questions) != 1 or asked.q.qclass != _dns.CLASS.IN:
        reply.header.rcode = _dns.RCODE.NOTIMP if asked.header.opcode else _dns.RCODE.REFUSED
        return bytes(reply.pack())
    reply.add_question(asked.q)
    text, why = _name(asked)
    if why is not None:
        refused(text, why)
        reply.header.rcode = _dns.RCODE.NXDOMAIN
    elif text == "localhost" or text.endswith(".localhost"):
        _add(reply, asked, IPv4Address("127.0.0.1"), IPv6Address("::1") if ipv6 else None)
    elif text.endswith((".in-addr.arpa", ".ip6.arpa")):
        reply.header.rcode = _dns.RCODE.NXDOMAIN  # what programs ask for unasked is no refusal
    else:
        verdict = decide(text)
        if verdict.allowed:
            index = names.index_of(text)
            _add(reply, asked, IPV4[index], IPV6[index] if ipv6 else None)
            said = bytes(reply.pack())
            names.keep(question, said)
            return said
        else:
            refused(text, verdict)
            reply.header.rcode = _dns.RCODE.NXDOMAIN
    return bytes(reply.pack())


def _name(asked: Any) -> tuple[str, Verdict | None]:
    labels = [bytes(label) for label in asked.q.qname.label]
    shown = b".".join(labels).decode("latin-1")
    try:
        if any(b"." in label for label in labels):  # one label that would read as two
            raise ValueError("a label holds a dot")
        return canonical_name(shown), None
    except ValueError as error:
        text = f"{shown[:80]!r} was asked for: {error}"
        return shown[:253], Verdict(allowed=False, reason=Why.NAME_INVALID, text=text)


def _add(reply: Any, asked: Any, four: IPv4Address, six: IPv6Address | None) -> None:
    if asked.q.qtype == _dns.QTYPE.A:
        reply.add_answer(
            _dns.RR(asked.q.qname, _dns.QTYPE.A, ttl=_TTL_SECONDS, rdata=_dns.A(str(four)))
        )
    elif asked.q.qtype == _dns.QTYPE.AAAA and six is not None:
        reply.add_answer(
            _dns.RR(asked.q.qname, _dns.QTYPE.AAAA, ttl=_TTL_SECONDS, rdata=_dns.AAAA(str(six)))
        )
