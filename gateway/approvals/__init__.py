"""A person's word on calls whose verdict is `ask`.

`question` is what is shown and answered, and the protocol `Asker` by which the wire reaches a client;
`Approvals` asks on every way at once and takes the first answer; `board` is the way through
`purple approvals`, `webhook` the one over HTTP; `standing` keeps what was allowed for longer.
"""

from __future__ import annotations

from .question import Answer, Asker, Choice, Question

__all__ = ["Answer", "Asker", "Choice", "Question"]
