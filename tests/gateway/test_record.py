"""The spelling of records: what stays is spelled once, and nothing of a call can show through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.audit import AuditLog, verify
from purplebox.gateway.audit.log import begin_form, entries
from purplebox.gateway.audit.record import Form, canonical

HOSTILE: list[Any] = [
    {}, {"a": 1}, None, "x", {"seq": 7, "prev": "p", "hash": "h"}, {"z": [1, {"b": "\n\x1b[31m\u202e"}]},
    {"a": '"}'}, {"a": '","call_id":"forged'}, {"n": 2**70, "\ud800": "\udfff"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", HOSTILE)
def test_a_form_that_is_filled_is_spelled_as_the_whole(arguments: Any) -> None:
    fields = {"tool": "t", "client": '"c"', "policy": "p", "zone": {"b": 1, "a": [2]}}
    form = Form(fields, ("arguments", "call_id", "seq"))
    for seq in (1, 22):
        filled = form.filled(canonical(arguments), '"id"', str(seq))
        whole = {**fields, "arguments": arguments, "call_id": "id", "seq": seq}
        assert filled == canonical(whole)


def test_lines_of_a_form_are_of_one_chain_with_the_others(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    form = begin_form({"tool": "t", "client": "c"})
    for arguments in HOSTILE:
        log.end(log.begin_as(form, canonical(arguments)), {"reason": "completed"})
        log.end(log.begin({"tool": "t", "arguments": arguments}), {"reason": "completed"})
    log.close()
    report = verify(tmp_path / "log")
    assert (report.problems, report.interrupted) == ((), ())
    begun = [e for _, e in entries(tmp_path / "log") if e and e["event"] == "begin"]
    assert [canonical(e["arguments"]) for e in begun[::2]] == [canonical(a) for a in HOSTILE]
    assert {e["client"] for e in begun[::2]} == {"c"}
