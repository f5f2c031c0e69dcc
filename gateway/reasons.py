"""Stable reason codes, shared by replies, records, spans, docs and tests.

`python -m purplebox.gateway.reasons` prints docs/reasons.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ..policies.hosts import Why


class Reason(StrEnum):
    """Why a call ended as it did."""

    COMPLETED = "completed"
    POLICY_DENIED = "policy_denied"
    RULE_FAILED = "rule_failed"
    ARGUMENTS_AMBIGUOUS = "arguments_ambiguous"
    OUTSIDE_GRANT = "outside_grant"
    FLOW_DENIED = "flow_denied"
    APPROVAL_REQUIRED = "approval_required"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_TIMED_OUT = "approval_timed_out"
    APPROVAL_VOID = "approval_void"
    PIN_MISMATCH = "pin_mismatch"
    RELOAD_REFUSED = "reload_refused"
    RATE_LIMITED = "rate_limited"
    RESULT_WITHHELD = "result_withheld"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNKNOWN_TOOL = "unknown_tool"
    COMMAND_NOT_FOUND = "command_not_found"
    OPERATION_FAILED = "operation_failed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    INTERNAL_ERROR = "internal_error"


# What it means; what the person can do about it, "" where there is nothing to do.
MEANINGS: Mapping[Reason, tuple[str, str]] = {
    Reason.COMPLETED: ("The call ran to its end; a command's own failure is in its exit status.", ""),
    Reason.POLICY_DENIED: (
        "A rule of the policy, or its default, says no.",
        "Change the rule that is named if this is meant to be allowed.",
    ),
    Reason.RULE_FAILED: (
        "A rule could not be evaluated on these arguments; what cannot be judged does not run.",
        "Mend the rule that is named: guard it with has() or a type check.",
    ),
    Reason.ARGUMENTS_AMBIGUOUS: (
        "The arguments can be read in two ways (a key twice, a path or URL that programs read differently).",
        "Nothing, unless it comes again: then see what the model sends.",
    ),
    Reason.OUTSIDE_GRANT: (
        "An argument of another server's tool names what the policy does not grant that server.",
        "Grant it in that server's profile (`filesystem`, `network`) if it is meant.",
    ),
    Reason.FLOW_DENIED: (
        "The session has read what is private, or taken in what is untrusted; this call could carry it out.",
        "Start a new session, or change the `flow` rule that is named.",
    ),
    Reason.APPROVAL_REQUIRED: (
        "A person must approve this, and nobody can be asked here.",
        "Use a client that asks its user, answer with `purple approvals`, or allow it by a rule.",
    ),
    Reason.APPROVAL_DENIED: ("A person was asked and said no.", "Say what to do instead."),
    Reason.APPROVAL_TIMED_OUT: (
        "A person was asked and did not answer in time.", "Have the model ask again when somebody is there.",
    ),
    Reason.APPROVAL_VOID: (
        "The policy changed after the question was asked, or the answer was given to another call.",
        "Have the model ask again.",
    ),
    Reason.PIN_MISMATCH: (
        "What the server offers, or its program, is not what a person has accepted.",
        "Look at `purple pins diff`; `purple pins accept` if the change is meant.",
    ),
    Reason.RELOAD_REFUSED: (
        "A policy or configuration that changed cannot be used; the one before is still in force.",
        "Mend the file; the gateway says on stderr what is wrong with it.",
    ),
    Reason.RATE_LIMITED: (
        "A limit of the policy is reached; `retry_seconds` says when to try again.",
        "Raise the limit that is named if this much is meant to run.",
    ),
    Reason.RESULT_WITHHELD: (
        "The call has run; its result speaks to the model, and the policy withholds such results.",
        "Look at what the tool gives; set `screens.injection` to wrap or flag if it is harmless.",
    ),
    Reason.INVALID_ARGUMENTS: ("The arguments do not fit the tool's schema.", ""),
    Reason.UNKNOWN_TOOL: ("There is no tool of this name.", ""),
    Reason.COMMAND_NOT_FOUND: (
        "There is no such program, or no such directory, inside the sandbox.",
        "Install it, or grant the directory that it is in (`filesystem.read`).",
    ),
    Reason.OPERATION_FAILED: ("The tool reports a failure of its own; the result says which.", ""),
    Reason.TIMED_OUT: (
        "It was ended at its time limit.", "Raise `resources.timeout` if it is meant to take longer.",
    ),
    Reason.OUT_OF_MEMORY: (
        "It was ended at its memory limit.", "Raise `resources.memory_limit` if it is meant to need more.",
    ),
    Reason.CANCELLED: ("The caller cancelled it, or went away.", ""),
    Reason.SANDBOX_UNAVAILABLE: (
        "The sandbox could not be built; the call has not run.", "Run `purple doctor`.",
    ),
    Reason.INTERNAL_ERROR: (
        "The gateway failed; the record has the error.", "Please report it with the record's entry.",
    ),
}  # fmt: skip

# The same for connections of a call: `reason` of an entry of `connections` in its record.
CONNECTIONS: Mapping[Why, tuple[str, str]] = {
    Why.NAME_INVALID: ("The name is none that DNS can have.", ""),
    Why.HOST_NOT_ALLOWED: ("No rule allows the host.", "Add it to `network.allow`."),
    Why.HOST_DENIED: ("A rule denies the host.", "Change the rule that is named."),
    Why.PORT_NOT_ALLOWED: ("The host is allowed, this port is not.", "Add it to the rule's `ports`."),
    Why.ADDRESS_NOT_ALLOWED: (
        "The name leads to an address that is not public (loopback, private, metadata, …).",
        "Name the range in the rule's `addresses` if it is meant.",
    ),
    Why.REQUEST_NOT_ALLOWED: (
        "The host is allowed, this method or path is not.", "Add it to the rule's `methods` or `paths`.",
    ),
    Why.REQUEST_INVALID: ("The request can be read in two ways, or is no HTTP.", ""),
    Why.NAME_MISSING: ("TLS without a server name, or HTTP without Host: nobody can tell whom it is for.", ""),
    Why.NAME_MISMATCH: ("The server name or Host is not the name whose address was asked for.", ""),
    Why.PROTOCOL_NOT_ALLOWED: (
        "Neither TLS nor HTTP on a port where requests are judged.",
        "Leave `methods` and `paths` out of the rule if any protocol may pass.",
    ),
    Why.CREDENTIAL_MISUSED: (
        "A credential's placeholder was on its way to another place than its own.",
        "See what the program sends where; the credential itself was not sent.",
    ),
    Why.BYTES_OUT: ("The call has sent as much as it may.", "Raise `network.bytes_out`."),
    Why.TOO_MANY_CONNECTIONS: ("The call has too many connections open at once.", ""),
    Why.UNRESOLVED: ("The name has no address, or the name server does not answer.", ""),
    Why.UPSTREAM_FAILED: ("The server cannot be reached, or its certificate is not good.", ""),
    Why.CLIENT_TLS: (
        "The program did not accept the certificate of the gate.",
        "Have it trust the system's certificates, or use `tls: pass` for this host.",
    ),
}  # fmt: skip


def page() -> str:
    """docs/reasons.md."""
    lines = [
        "# Reasons",
        "",
        "<!-- Printed by `python -m purplebox.gateway.reasons`; a test compares the two. -->",
        "",
        "A refusal says to the model what was refused, by which rule, and what to do. Beside that, for programs and the",
        'person, its result has `_meta["purplebox/refusal"]` (for methods other than `tools/call`: the error\'s `data`):',
        "",
        "```json",
        '{"reason": "rate_limited", "rule": "limits[0].calls", "retry_seconds": 12, "person": "Raise …"}',
        "```",
        "",
        "The same code is `reason` in the record and `purple.reason` in the span. Retrying what has no `retry_seconds` does not help.",
        "",
        "| reason of a call | what it means | what the person can do |",
        "|---|---|---|",
        *(f"| `{reason}` | {what} | {person} |" for reason, (what, person) in MEANINGS.items()),
        "",
        'Connections that a call was refused are in the result\'s `_meta["purplebox/connections"]`, in the record and as events of the',
        "span; what the program itself made of it is in its output.",
        "",
        "| reason of a connection | what it means | what the person can do |",
        "|---|---|---|",
        *(f"| `{reason}` | {what} | {person} |" for reason, (what, person) in CONNECTIONS.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
