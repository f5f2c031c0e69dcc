"""What acts goes through `Calls`: decided, recorded, screened, then carried out on the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from ..call import REFUSAL, Call, Ran, Refusal, Version, text_result
from ..calls import Calls
from ..reasons import Reason
from ..screens import Findings
from . import jsonrpc
from .asking import ClientAsker
from .client import Client
from .exchange import Exchange
from .jsonrpc import Message, RpcError, is_object, object_of
from .session import Session

# Requests that read, change or cost something, besides tools/call. To the rules the method is the
# tool's name, and the params are its arguments.
ACTING = frozenset(
    {"resources/read", "prompts/get", "sampling/createMessage", "elicitation/create"}
)
# What a server asks of a client.
ASKING = frozenset({"sampling/createMessage", "elicitation/create"})
_ERROR = "error"


class Backend(Protocol):
    """One server as a session sees it.

    Attributes:
        name: In rules and records; "" for the built-in tools.
    """

    name: str

    async def describe(self, client: Client, exchange: Exchange | None) -> Message:
        """The result of `initialize` or `server/discover`, as the client's era has it; starts it.

        Raises:
            RpcError: it cannot be started, or does not speak the protocol.
        """
        ...

    async def request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        """The result of a request, params already in the server's own names. Raises `RpcError`."""
        ...

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """Pass on a notification."""
        ...

    async def aclose(self) -> None:
        """End it."""
        ...


async def act(
    calls: Calls, version: Version, session: Session, client: Client, server: str, method: str,
    params: Message | None, forward: Callable[[Message | None], Awaitable[Any]],
    exchange: Exchange | None = None, problem: Refusal | None = None,
) -> Message:  # fmt: skip
    """Decide, record and carry out one request.

    Args:
        calls, version: Who decides, and by what.
        session, client: Whose request it is, or who is asked.
        server: Name of the server behind the gateway.
        method, params: As they would go out.
        forward: Sends the request with these params and returns its result.
        exchange: In which the client can be asked for approval; None where there is none.
        problem: Why it is refused whatever the rules say; None where it is not.

    Raises:
        RpcError: what the peer answered, or that a method other than tools/call was refused.
    """
    is_tool = method == "tools/call"
    given: Any = (params or {}).get("arguments", {}) if is_tool else (params or {})
    if not is_object(given):
        raise RpcError(jsonrpc.INVALID_PARAMS, "arguments must be an object")
    tool = (params or {}).get("name") if is_tool else method
    if not isinstance(tool, str):
        raise RpcError(jsonrpc.INVALID_PARAMS, "name must be a string")
    failed: RpcError | None = None
    facts: dict[str, Any] = {}
    if method in ASKING:  # towards the client: screened before anybody sees it
        findings = Findings()
        given = version.screen.value(given, findings)
        params = given
        if findings:
            facts["request_screens"] = findings.to_json()
        if version.screen.withholds(findings):
            text = version.screen.withheld(f"{method} of server {server!r}", findings)
            problem = Refusal(reason=Reason.RESULT_WITHHELD, rule="screens.injection", text=text)

    async def run(call: Call, _: Version) -> Ran:
        nonlocal failed
        try:
            result = await forward(_with(params, call.arguments, given, is_tool))
        except RpcError as error:
            failed = error
            placeholder = text_result(str(error), {_ERROR: error.error}, is_error=True)
            facts["rpc_error"] = error.code
            return Ran(result=placeholder, reason=Reason.OPERATION_FAILED, facts=facts)
        if not is_object(result):
            failed = RpcError(jsonrpc.INTERNAL_ERROR, f"Server {server!r} answered no object")
            placeholder = text_result(str(failed), {_ERROR: failed.error}, is_error=True)
            return Ran(result=placeholder, reason=Reason.OPERATION_FAILED, facts=facts)
        bad = is_tool and result.get("isError") is True
        reason = Reason.OPERATION_FAILED if bad else Reason.COMPLETED
        return Ran(result=result, reason=reason, facts=facts)

    call = Call(
        tool=tool, arguments=given, server=server, client=client.name, session=session.id,
        asker=ClientAsker(session, client, exchange),
    )  # fmt: skip
    outcome = await calls.call(call, version, run, problem=problem)
    if is_tool:
        session.tasks.made_by(outcome.call_id, outcome.result)
    if failed is not None:
        error = object_of(outcome.content).get(_ERROR)  # as the screens have left it
        raise RpcError.of(error) if error else RpcError(failed.code, outcome.text)
    if not is_tool and outcome.is_error and "content" in outcome.result:
        told = object_of(object_of(outcome.result.get("_meta")).get(REFUSAL))
        data = {"reason": str(outcome.reason), "rule": outcome.decision.rule, **told}
        raise RpcError(jsonrpc.REFUSED, outcome.text, data)
    return outcome.result


def _with(
    params: Message | None, arguments: Mapping[str, Any], given: Mapping[str, Any], is_tool: bool
) -> Message | None:
    """The params with the arguments that were judged; as they came where those are the same."""
    if arguments is given or arguments == given:
        return params
    return {**(params or {}), "arguments": dict(arguments)} if is_tool else dict(arguments)
