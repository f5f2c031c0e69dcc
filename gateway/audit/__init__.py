"""The record: one hash-chained entry before and one after each call (`log`), what of the arguments
it holds (`record`), and the same facts on the OpenTelemetry span (`spans`)."""

from __future__ import annotations

from .log import AuditLog, VerifyReport, default_path, verify

__all__ = ["AuditLog", "VerifyReport", "default_path", "verify"]
