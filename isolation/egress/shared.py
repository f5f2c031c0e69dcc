"""What the gates of one policy share: its rules, keys and certificates, and who resolves and dials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...policies.hosts import Hosts
from ...policies.model import Network
from ..errors import SetupError
from ..netns import GATE_PORT
from .ca import Authority
from .credentials import open_vault
from .dial import Dialer, Resolve, SystemResolver
from .gate import Gate
from .http import Judgement, Origin
from .inspect import Interceptor
from .names import MOST_LISTED, hosts_file, listed, reads_mapped

if TYPE_CHECKING:
    from ...policies.model import HostRule


class Egress:
    """What the gates of one policy share. Its constructor blocks: it reads secrets, makes keys.

    Args:
        network: The policy's section.
        resolve: How names are resolved; None is the host's own way.
        trust: Certificates, PEM, by which servers may identify themselves beside the host's own.

    Raises:
        SetupError: a rule or a credential cannot be used; says which and what to do.
    """

    def __init__(
        self, network: Network, *, resolve: Resolve | None = None, trust: Sequence[Path] = ()
    ) -> None:
        try:
            self.hosts = Hosts(network)
        except ValueError as error:
            raise SetupError(str(error)) from error
        self.names = listed(self.hosts.exact_names())
        self.mapped = reads_mapped()
        self.authority = Authority()
        self.vault = open_vault(network.credentials, network.tls)
        self.interceptor = Interceptor(self.authority, self.vault, trust, tls=network.tls)
        self._own = SystemResolver() if resolve is None else None
        self.dialer = Dialer(self.hosts, resolve or self._own or SystemResolver())
        self.bytes_out = network.bytes_out
        self._inspects = network.tls == "inspect"

    @property
    def certificate(self) -> str:
        """The authority that programs inside are to trust, PEM; "" for none."""
        return self.authority.certificate if self._inspects else ""

    @property
    def asks(self) -> bool:
        """Whether there is a name that is allowed and not in `hosts_file`."""
        return self.hosts.has_patterns or len(self.names) == MOST_LISTED

    @property
    def hosts_file(self) -> str:
        """Lines for /etc/hosts: what its gates have an address for from the beginning."""
        return hosts_file(self.names, mapped=self.mapped)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for programs inside: placeholders, and the gate as a proxy."""
        # ALL_PROXY is http://, not socks5h://: httpx refuses to start with one where socksio is not
        # installed. SOCKS is spoken at the same port.
        url = f"http://127.0.0.1:{GATE_PORT}"
        proxies = {name: url for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
        proxies["NO_PROXY"] = "localhost,127.0.0.1,::1"
        return {
            **proxies,
            **{name.lower(): value for name, value in proxies.items()},
            **self.vault.environment,
        }

    def open(self, doors: Sequence[int], only: Sequence[HostRule] | None = None) -> Gate:
        """The gate of a new sandbox.

        Args:
            doors: Its sockets, from `netns.open_doors`, and what `hosts` gave; closed with the gate.
            only: What of the policy's hosts its call is for; None is all.
        """
        return Gate(self, doors, only)

    def decide(self, origin: Origin, method: str, path: str) -> Judgement:
        """As `http.Decide`."""
        verdict = self.hosts.decide_request(method, origin.host, path, port=origin.port)
        return Judgement(allowed=verdict.allowed, rule=verdict.rule, reason=verdict.text)

    def close(self) -> None:
        """Let go of what waits for name servers, and for servers to be dialled."""
        self.dialer.close()
        if self._own is not None:
            self._own.close()
