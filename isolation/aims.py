"""What the network and the environment of a policy must not give: what attacks on them aim at. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ..policies.hosts import WEB_PORTS, Hosts
from .errors import SetupError
from .netns import GATE_PORT
from .system import TRUST_VARIABLES

if TYPE_CHECKING:
    from ..policies.model import Network, Policy

# TEST-NET-3 and -1 (RFC 5737), IPv6's documentation prefix (RFC 3849), and where clouds have metadata.
_FAR = ("203.0.113.1", "192.0.2.1", "169.254.169.254", "2001:db8::1")
_NAME = "purple-attack.invalid"  # RFC 6761: it leads nowhere
_UNHEARD_PORT = 53000  # UDP


def forbidden(network: Network, listener: int) -> dict[str, Any]:
    """Hosts and ports that no rule of `network` allows.

    Args:
        network: The section; isolated, all is forbidden.
        listener: Port on the host's loopback, where something answers.

    Returns:
        `far`, literal addresses and a port each; `unconnected`, the same for UDP, which no rule can
        allow; `names`; `tunnels`, what the gate is asked for as a proxy at its port, `gate`: all of
        these, and the listener.

    Raises:
        SetupError: a pattern means nothing.
    """
    try:
        hosts = Hosts(network)
    except ValueError as error:
        raise SetupError(str(error)) from error

    def address_is_allowed(text: str, port: int, name: str = "") -> bool:
        verdict = hosts.decide_address(ip_address(text), port, name=name, own=bool(name))
        return verdict.allowed

    def name_is_allowed(name: str, port: int) -> bool:
        return hosts.decide_name(name, port).allowed

    far = list(_closed(network, _FAR, address_is_allowed))
    names = list(_closed(network, (_NAME,), name_is_allowed))
    loopback = [
        (host, listener)
        for host, name in (("127.0.0.1", ""), ("localhost", "localhost"))
        if not address_is_allowed("127.0.0.1", listener, name)
    ]
    return {
        "far": far, "unconnected": [(_FAR[0], _UNHEARD_PORT)], "names": names,
        "tunnels": [*loopback, *far, *names], "gate": GATE_PORT,
    }  # fmt: skip


def _closed(
    network: Network, hosts: tuple[str, ...], is_allowed: Callable[[str, int], bool]
) -> Iterator[tuple[str, int]]:
    """Each host, with the first port at which it is not allowed: of those that others are reached at,
    if there is one, so that not the port alone is what is refused."""
    named = [port for rule in network.allow for port in rule.ports or WEB_PORTS]
    for host in hosts:
        ports = itertools.chain(named, WEB_PORTS, range(1, 65536))
        port = next((port for port in ports if not is_allowed(host, port)), None)
        if port is not None:
            yield host, port


def own_variables(policy: Policy) -> list[str]:
    """The variables that the policy gives to its sandboxes, and those that come with what it says."""
    inspected = TRUST_VARIABLES if policy.network.tls == "inspect" else ()
    placeholders = (credential.placeholder_env for credential in policy.network.credentials)
    return [*policy.environment.pass_, *policy.environment.set, *placeholders, *inspected]
