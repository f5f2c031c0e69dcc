"""What a result or a definition is looked through for before the client, the record or a span has it.

`characters` takes out what is not seen, `known` finds the policy's own credentials, `detectors` asks
a library for anybody's, `markers` finds text that speaks to the model; all four are pure. `Screen`
does them to JSON values by one policy, `progress` to text that comes in pieces, and `Screens` is the
stage that has it done to every call.
"""

from __future__ import annotations

from .screen import Findings, Screen
from .stage import Screens

__all__ = ["Findings", "Screen", "Screens"]
