"""Addresses: every spelling of a literal, and the classes that no policy means by a name.

Sources: IANA's special-purpose address registries (RFC 6890 and its updates), inet_aton(3), and
the host parser of the URL standard (a name whose last label is a number is an IPv4 address).
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NoReturn

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network

# First match names the class. Longer prefixes stand before those that hold them.
_SPECIAL: tuple[tuple[Range, str], ...] = tuple(
    (ip_network(text), kind)
    for kind, texts in (
        # Cloud instance metadata: AWS, GCP, Azure and others; Alibaba; Azure's wire server; Oracle; AWS.
        (
            "metadata",
            "169.254.169.254/32 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32 fd00:ec2::/32",
        ),
        ("loopback", "127.0.0.0/8 ::1/128"),
        ("unspecified", "0.0.0.0/8 ::/128"),
        ("private", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10"),
        ("shared", "100.64.0.0/10"),
        ("link-local", "169.254.0.0/16 fe80::/10"),
        ("6to4", "192.88.99.0/24 2002::/16"),
        ("documentation", "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"),
        ("benchmarking", "198.18.0.0/15 2001:2::/48"),
        ("multicast", "224.0.0.0/4 ff00::/8"),
        ("reserved", "192.0.0.0/24 240.0.0.0/4 100::/64 5f00::/16"),
        ("Teredo", "2001::/32"),
        ("reserved", "2001::/23"),
        ("IPv4-mapped", "::ffff:0:0/96"),
        ("NAT64", "64:ff9b::/96 64:ff9b:1::/48"),
        ("IPv4-compatible", "::/96"),
    )
    for text in texts.split()
)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


@lru_cache(1024)
def special_class(address: Address) -> str:
    """The class for which `address` is refused unless a policy names it; "" for the public rest.

    A form of IPv6 that carries an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) is a class
    of its own, whatever it carries.
    """
    for network, kind in _SPECIAL:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST_6:
        return "reserved"
    return ""


def holds_special(text: str) -> bool:
    """Whether an address or range has addresses that no policy means by a name; so does what is none."""
    try:
        network = parse_range(text)
    except ValueError:
        return True
    return network is None or any(
        network.version == special.version and network.overlaps(special) for special, _ in _SPECIAL
    )


def literal_address(host: str) -> Address | None:
    """The address that `host` spells; None when it is a name.

    Brackets, and what inet_aton(3) takes for IPv4: one to four numbers, decimal, octal, or
    hexadecimal, the last of which fills what is left.

    Raises:
        ValueError: it looks like an address but is none, or has a zone (`fe80::1%eth0`).
    """
    if host.startswith("[") or ":" in host:
        inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            return IPv6Address(inner) if "%" not in inner else _fail(host)
        except ValueError:
            _fail(host)
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    if len(parts) > 4:
        _fail(host)
    numbers = [_number(part, host) for part in parts]
    if any(n > 255 for n in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        _fail(host)
    value = numbers[-1]
    for index, number in enumerate(numbers[:-1]):
        value |= number << 8 * (3 - index)
    return IPv4Address(value)


def parse_range(text: str) -> Range | None:
    """The range that a pattern of a policy means: an address or `ADDRESS/LENGTH`; None for a name.

    Raises:
        ValueError: bits are set beyond the length, or it is no range.
    """
    if "/" in text:
        return ip_network(text)
    literal = literal_address(text)
    if literal is None:
        return None
    # IPv6 has no spelling that another reader takes for a different address.
    if isinstance(literal, IPv4Address) and str(literal) != text:
        raise ValueError(f"write the address as {literal}")
    return ip_network(literal)


@lru_cache(1024)
def unmapped(text: str) -> Address:
    """The address of a peer as the kernel tells it for a socket of both families: RFC 3493, 3.7."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _number(text: str, host: str) -> int:
    if not _NUMBER.fullmatch(text) or len(text) > 16:
        _fail(host)
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    try:
        return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)
    except ValueError:
        _fail(host)


def _fail(host: str) -> NoReturn:
    raise ValueError(f"{host[:80]!r} is no address")
