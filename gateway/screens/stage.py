"""The stage that has every result screened, and the words of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..reasons import Reason
from ..wire.jsonrpc import is_list, is_object
from .screen import Findings, noted

if TYPE_CHECKING:
    from ...policies import Decision
    from ..call import Call, Ran, Refusal, Version

_LARGE_CHARACTERS = 1 << 18  # above it a thread does the work, so that other calls go on


class Screens:
    """Stands outermost, so that it sees what every other stage has made of a result."""

    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        """As `Stage.before`: nothing to say."""
        return None

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        """As `Stage.after`."""
        screen = version.screen
        both: list[Any] = [ran.result, dict(ran.facts)]
        if not screen.is_ready:
            await screen.prepare(both)
        large = is_large(ran.result)
        if not large and screen.is_plain(both):
            return ran
        from ..call import Ran, Refusal, refused

        findings = Findings()
        if large:
            result, facts = await asyncio.to_thread(screen.value, both, findings)
        else:
            result, facts = screen.value(both, findings)
        if not findings:
            return ran
        facts = {**facts, "screens": findings.to_json()}
        if screen.withholds(findings):
            text = screen.withheld(f"the result of {call.tool}", findings)
            refusal = Refusal(reason=Reason.RESULT_WITHHELD, rule="screens.injection", text=text)
            held = refused(refusal)
            return Ran(
                result=noted(held.result, findings),
                reason=held.reason,
                facts={**facts, **held.facts},
            )
        return Ran(result=noted(result, findings), reason=ran.reason, facts=facts)


def is_large(value: Any) -> bool:
    """Whether looking through `value` takes long enough to be worth a thread."""
    level: list[Any] = [value]
    total = 0
    while level:
        item = level.pop()
        total += len(item) if type(item) in (str, dict, list) else 0
        if total > _LARGE_CHARACTERS:
            return True
        if is_object(item):
            level += item.values()
        elif is_list(item):
            level += item
    return False
