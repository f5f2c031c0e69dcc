"""What a person is asked about a call, and what they answer. Pure but for the protocol `Asker`.

A question is made of the call as it was judged (after canonicalisation), so that what is shown is what
runs. Everything in it that the agent chose is neutralised: no control, bidirectional or invisible
character reaches the screen, and no line of an argument can pass for a line of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ..audit.record import digest

if TYPE_CHECKING:
    from ...isolation import Enforcement
    from ...policies import Decision, Grant, Policy
    from ..call import Call

Choice = Literal["once", "session", "always", "deny"]
CHOICES: Mapping[Choice, str] = {
    "once": "Allow once",
    "session": "Allow this exact call for the rest of this session",
    "always": "Allow this exact call always, and write that into the policy",
    "deny": "Deny",
}
_SHOWN_CHARACTERS = 6000  # what a dialog can hold; the command line shows everything
# Invisible although Unicode calls them printable: variation selectors, fillers, joiners.
_INVISIBLE = frozenset(
    [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0x2800]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, good for one answer.

    Attributes:
        id: Eight characters that name it on the command line.
        binding: SHA-256 over client, session, server, tool, arguments and policy version: an answer
            counts for the call with this digest and for no other.
        title: One line.
        text: All of it: tool, arguments as judged, rule and its reason, the sandbox it would get.
        arguments: The same as values, for a webhook; redacted as the policy's `audit.redact` says.
        choices: What may be answered.
        expires_seconds: After so many seconds from when it was asked, no answer counts.
        facts: What else there is to it, as values: tool, server, client, session, rule, reason,
            policy and its version, sandbox.
    """

    id: str
    binding: str
    title: str
    text: str
    arguments: Mapping[str, Any]
    choices: tuple[Choice, ...]
    expires_seconds: float
    facts: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def dialog(self) -> str:
        """The text at a length for a dialog; says what is missing and how to see it."""
        if len(self.text) <= _SHOWN_CHARACTERS:
            return self.text
        missing = len(self.text) - _SHOWN_CHARACTERS
        return (
            f"CUT: {missing} more characters are not shown here. See all of it before you say yes: "
            f"purple approvals show {self.id}\n\n{self.text[:_SHOWN_CHARACTERS]}"
        )

    def schema(self) -> dict[str, Any]:
        """The `requestedSchema` of an MCP form elicitation."""
        names = [CHOICES[choice] for choice in self.choices]
        decision = {
            "type": "string", "title": "Decision", "enum": list(self.choices), "enumNames": names,
        }  # fmt: skip
        return {"type": "object", "properties": {"decision": decision}, "required": ["decision"]}

    def elicitation(self) -> dict[str, Any]:
        """The params of `elicitation/create`, in wire form."""
        return {"mode": "form", "message": self.dialog, "requestedSchema": self.schema()}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A person's word. `by` says how it came (`elicitation`, `command`, …), for the record.

    `binding`, where it is given, is the digest of the call that the person was shown.
    """

    choice: Choice
    by: str
    binding: str = ""


class Asker(Protocol):
    """A way to reach a person.

    Attributes:
        who: `command`, `webhook`, `callback`; or the client that made the call, as `stdio:NAME` or
            `http:PRINCIPAL`, which is asked only where the policy's `approvals.clients` names it.
    """

    @property
    def who(self) -> str:
        """See above."""
        ...

    async def ask(self, question: Question) -> Answer | None:
        """Ask, and wait for the answer; cancelled when another way was faster or time is up.

        Returns:
            None when nobody can be asked this way (a client without that capability, a server
            that does not answer); a person who closes the dialog has said no, and that is an
            `Answer`.
        """
        ...


def elicited(question: Question, result: Mapping[str, Any]) -> Answer:
    """What an `ElicitResult` in wire form says: anything but a clear yes is a no."""
    content = result.get("content")
    if result.get("action") == "accept" and isinstance(content, Mapping):
        choice: object = cast("Mapping[str, object]", content).get("decision")
        for offered in question.choices:
            if choice == offered:
                return Answer(choice=offered, by="elicitation", binding=question.binding)
    return Answer(choice="deny", by="elicitation", binding=question.binding)


def binding_of(call: Call, decision: Decision, version: str) -> str:
    """The digest that an approval is bound to. `version`: the policy's digest."""
    return digest({
        "client": call.client, "session": call.session, "server": call.server, "tool": call.tool,
        "arguments": dict(call.arguments), "rule": decision.rule, "policy": version,
    })  # fmt: skip


def visible(text: str) -> str:
    """`text` with everything that a screen would not show, or obey, spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() and ord(c) not in _INVISIBLE else f"\\u{{{ord(c):x}}}" for c in text
    )


def title(call: Call) -> str:
    """`tool` or `server: tool`."""
    return visible(f"{call.server}: {call.tool}" if call.server else call.tool)


def describe(
    call: Call, decision: Decision, policy: Policy, enforcement: Enforcement | None = None,
    written: str = "",
) -> str:  # fmt: skip
    """The text of a question.

    Args:
        call, decision: As judged.
        policy: Of the sandbox that the call would get.
        enforcement: What of it holds on this host; None leaves that line out.
        written: What `always` would write, and where; "" where it is not offered.
    """
    lines = [f"Tool:     {title(call)}"]
    if call.client:
        lines.append(f"Client:   {visible(call.client)}")
    lines.append(f"Asked by: rule {decision.rule} of policy {visible(policy.name)}")
    lines.append(f"Because:  {visible(decision.reason)}")
    lines.append(f"Sandbox:  {sandbox_words(policy, call.grant)}")
    if enforcement is not None:
        lines.append(f"Enforced: {visible(enforced_words(enforcement))}")
    lines.append("Arguments, as judged:" if call.arguments else "No arguments.")
    for name, value in call.arguments.items():
        lines += _argument(str(name), value)
    if not json.dumps(dict(call.arguments), ensure_ascii=False, default=str).isascii():
        lines.append(
            "Note: the arguments contain characters outside ASCII; look-alikes are possible."
        )
    if written:
        lines.append("`always` would write:")
        lines += [f"  + {visible(line)}" for line in written.split("\n")]
    return "\n".join(lines)


def _argument(name: str, value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    # Each line of an argument has a mark of its own, so that none can look like a line of ours.
    inner = [f"  | {visible(line)}" for line in text.split("\n")]
    return [f"  {visible(name)}:", *inner]


def enforced_words(enforcement: Enforcement) -> str:
    """How much of the sandbox this host holds, in a line."""
    weak = [
        f"{name} {layer.status} ({layer.reason})"
        for name, layer in enforcement.layers.items()
        if layer.status != "full"
    ]
    return "in full but: " + "; ".join(weak) if weak else "every layer in full"


def sandbox_words(policy: Policy, grant: Grant | None = None) -> str:
    """What a call could reach, in a line: of what the policy allows, what its grant does."""
    if grant is not None and grant.scope == "call":
        hosts = ", ".join(f"{rule.host}:{rule.ports[0]}" for rule in grant.hosts)
        shares = (("reads ", grant.read), ("writes ", grant.write))
        parts = [verb + ", ".join(paths) for verb, paths in shares if paths]
        parts.append(f"network: {hosts}" if hosts else "no network")
        return visible("this call alone: " + "; ".join(parts))
    files, resources = policy.filesystem, policy.resources
    words = {
        "none": "no workspace", "read": "workspace read-only", "write": "workspace writable",
        "overlay": "workspace writable, changes staged",
    }  # fmt: skip
    parts = [words[files.workspace]]
    if files.read:
        parts.append("reads " + ", ".join(files.read))
    if files.write:
        parts.append("writes " + ", ".join(files.write))
    network = policy.network
    if network.isolated:
        parts.append("no network")
    else:
        hosts = ", ".join(rule.host for rule in network.allow)
        parts.append(f"network: {hosts or 'loopback only'}")
    if resources.memory_bytes is not None:
        parts.append(f"{resources.memory_bytes / (1 << 30):g} GiB of memory")
    if resources.wall_seconds is not None:
        parts.append(f"{resources.wall_seconds:g} s")
    return visible("; ".join(parts))
