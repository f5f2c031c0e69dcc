"""Asking the person at the client about one of the client's own calls."""

from __future__ import annotations

from ..approvals.question import Answer, Question, elicited
from .client import Client
from .exchange import Exchange
from .jsonrpc import RpcError, is_object, object_of
from .session import Session


class ClientAsker:
    """Elicitation in the client's era: a request to a legacy client, `input_required` to a modern one.

    An answer counts only on this way: as the client's response to the gateway's own request, or in the
    retry that brings back the sealed state of this very call. Nothing in a call's arguments is one.

    Args:
        session, client: Whose call it is.
        exchange: The call; None asks a legacy client outside of any.
    """

    def __init__(self, session: Session, client: Client, exchange: Exchange | None) -> None:
        self._session, self._client, self._exchange = session, client, exchange

    @property
    def who(self) -> str:
        """`stdio:NAME` by the client's own word, or `http:PRINCIPAL` by the transport's."""
        principal = self._session.principal
        return f"http:{principal}" if principal else f"stdio:{self._client.name}"

    async def ask(self, question: Question) -> Answer | None:
        """As `Asker.ask`."""
        offered = self._client.capabilities.get("elicitation")
        # 2025-11-25, "Elicitation": an empty object means forms; else each mode is named.
        if not is_object(offered) or (offered and "form" not in offered):
            return None
        params = question.elicitation()
        if self._client.era == "legacy" and self._client.version < "2025-11-25":
            del params["mode"]  # not there before
        method = "elicitation/create"
        try:
            if self._exchange is not None:
                result = await self._exchange.ask(method, params)
            elif self._client.era == "legacy":
                result = await self._session.ask(method, params, None)
            else:
                return None
        except RpcError:  # it cannot, or nobody answered in time: other ways may go on
            return None
        return elicited(question, object_of(result))
