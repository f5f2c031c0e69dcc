"""Stable reason codes, shared by replies, records, spans, docs and tests."""

from __future__ import annotations

from enum import StrEnum


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
