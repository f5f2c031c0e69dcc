"""The tool `http_request`: one request, each of its hops in a sandbox that reaches that host alone."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ...isolation import IsolationError, OperationError
from ...policies import CanonicalError
from ...policies.canonical import Url, canonical_url
from ...policies.hosts import Why
from ..call import Ran, Refusal, refused, text_result
from ..calls import judge_call
from ..reasons import Reason
from .definition import BuiltIn, ToolDefinition, array, closed, flag, integer, outputs, string
from .notes import connections

if TYPE_CHECKING:
    from ...isolation import Result
    from ..call import Call, Version

MOST_REDIRECTS = 10
DEFAULT_SECONDS = 60.0
DEFAULT_BYTES = 256 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
# The same authority as fetch() has it: what was meant for one origin does not go to another.
_PRIVATE = ("authorization", "cookie", "proxy-authorization")
_STOPPED = frozenset(Why) - {Why.NONE, Why.UNRESOLVED, Why.UPSTREAM_FAILED, Why.CLIENT_TLS}
_TEXTUAL = ("text/", "application/json", "application/xml", "application/javascript",
            "application/x-www-form-urlencoded", "application/yaml", "image/svg+xml")  # fmt: skip

DEFINITION = ToolDefinition(
    name="http_request",
    title="Make an HTTP request",
    description=(
        "Request a URL that the policy allows and return the response: as text, JSON, Markdown (of "
        "HTML), base64, or into a file of the workspace. Redirects are followed where the policy "
        "allows the next URL, too. HTTP and HTTPS only; there are no cookies between calls."
    ),
    input_schema=closed(
        {
            "url": string("http:// or https://", pattern="^[hH][tT][tT][pP][sS]?://"),
            "method": string("default: GET", pattern="^[A-Za-z]{1,20}$"),
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "body": string("sent as UTF-8"),
            "body_base64": string("sent as the bytes that it decodes to; in place of body"),
            "as": {
                "enum": ["auto", "text", "json", "markdown", "base64"],
                "description": "how the body comes back; auto: text where it is text, else base64",
            },
            "save_to": string("a file that gets the body; nothing of it is returned then", minLength=1),
            "follow_redirects": flag("default: true"),
            "max_bytes": integer(f"of the body that are returned; default {DEFAULT_BYTES}", 1),
            "timeout_seconds": {"type": "number", "exclusiveMinimum": 0},
        },
        ["url"],
    ),
    output_schema=outputs(
        url=string("of the response, after redirects"),
        status=integer("of the response"),
        headers={"type": "object", "description": "names in lower case, values joined by a comma"},
        content={"description": "the body as asked for; null where it went into a file"},
        content_as=string("text, json, markdown or base64"),
        size_bytes=integer("of the body, as far as it was read"),
        truncated=flag("whether there is more than is returned"),
        saved_to={"type": ["string", "null"]},
        redirects=array(outputs(status=integer(""), url=string(""))),
        notes=array(string("what to know of it")),
    ),
    annotations={
        "readOnlyHint": False, "destructiveHint": True, "idempotentHint": False,
        "openWorldHint": True,
    },
)  # fmt: skip


@dataclass(kw_only=True)
class _Hop:
    """A request as it goes out."""

    url: Url
    method: str
    headers: dict[str, str]
    body: bytes
    redirects: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


async def run(call: Call, version: Version) -> Ran:
    """Request `url`; a status of 400 and above is a result, not a failure."""
    arguments, policy = call.arguments, version.policy
    if policy.network.isolated:
        text = (
            f"Denied: there is no network (rule network.isolated of policy {policy.name}). Retrying "
            "will not help; ask the person for a policy that grants the host."
        )
        return refused(Refusal(reason=Reason.POLICY_DENIED, rule="network.isolated", text=text))
    try:
        hop = _first(arguments)
    except ValueError as error:
        return _failed(str(error), Reason.INVALID_ARGUMENTS, {})
    follows = bool(arguments.get("follow_redirects", True))
    while True:
        try:
            result = await version.engine.call(
                "http_request", _operation(hop, call, version, follows), grant=call.grant
            )
        except OperationError as error:
            return _failed(f"http_request failed ({error.code}): {error}", Reason.OPERATION_FAILED, hop.facts)  # fmt: skip
        except IsolationError as error:
            return _failed(f"Not run: {error}", Reason.SANDBOX_UNAVAILABLE, hop.facts)
        _add(hop.facts, result.facts())
        value: dict[str, Any] = result.value
        if "error" in value:
            return _no_response(value["error"], result, version, hop)
        location = next((v for k, v in value["headers"] if k.lower() == "location"), None)
        if not (follows and value["status"] in _REDIRECTS and location):
            return await _response(value, hop, arguments)
        if len(hop.redirects) >= MOST_REDIRECTS:
            text = (
                f"Stopped after {MOST_REDIRECTS} redirects; the next one leads to {location[:500]}"
            )
            return _failed(text, Reason.OPERATION_FAILED, hop.facts)
        judged = _redirected(hop, value["status"], location, call, version)
        if isinstance(judged, Ran):
            return judged
        call = judged


def _first(arguments: Any) -> _Hop:
    url = canonical_url(arguments["url"])
    if "body_base64" in arguments:
        if "body" in arguments:
            raise ValueError("give body or body_base64, not both")
        try:
            body = base64.b64decode(arguments["body_base64"], validate=True)
        except ValueError:
            raise ValueError("body_base64 is not base64") from None
    else:
        body = arguments.get("body", "").encode("utf-8", "surrogatepass")
    method = arguments.get("method", "GET").upper()
    return _Hop(url=url, method=method, headers=dict(arguments.get("headers", {})), body=body)


def _operation(hop: _Hop, call: Call, version: Version, follows: bool) -> dict[str, Any]:
    url = hop.url
    if url.userinfo:
        raise OperationError("EINVAL", "a user or password in a URL is not sent; use a header")
    host = f"[{url.host}]" if ":" in url.host else url.host
    default = {"http": 80, "https": 443}[url.scheme]
    operation: dict[str, Any] = {
        "scheme": url.scheme, "host": url.host, "port": url.port, "method": hop.method,
        "authority": host if url.port == default else f"{host}:{url.port}",
        "target": (url.path or "/") + (f"?{url.query}" if url.query else ""),
        "headers": hop.headers, "body": base64.b64encode(hop.body).decode(), "redirects": follows,
        "seconds": float(call.arguments.get("timeout_seconds", DEFAULT_SECONDS)),
    }  # fmt: skip
    if "save_to" in call.arguments:
        operation["save_to"] = version.rules.place.shown(call.arguments["save_to"])
    return operation


def _redirected(hop: _Hop, status: int, location: str, call: Call, version: Version) -> Call | Ran:
    """Turn `hop` into the next request; the call as it is judged for that one, or why it is not made."""
    try:
        url = canonical_url(urljoin(hop.url.text, location))
        if url.scheme not in ("http", "https"):
            raise CanonicalError("neither http nor https")
    except (CanonicalError, ValueError) as error:
        text = f"Redirected to {location[:500]!r}, which is no URL to follow: {error}"
        return _failed(text, Reason.OPERATION_FAILED, hop.facts)
    if status == 303 or (status in (301, 302) and hop.method == "POST"):
        hop.method = "GET" if hop.method != "HEAD" else "HEAD"
        hop.body = b""
        hop.headers = {k: v for k, v in hop.headers.items() if k.lower() != "content-type"}
    if (url.scheme, url.host, url.port) != (hop.url.scheme, hop.url.host, hop.url.port):
        hop.headers = {k: v for k, v in hop.headers.items() if k.lower() not in _PRIVATE}
    asked = {**call.arguments, "url": url.text, "method": hop.method}
    judged, decision = judge_call(
        replace(call, arguments=asked), version.rules, version.engine.view
    )
    if decision.effect != "allow":
        verb = "needs a person's approval" if decision.effect == "ask" else "is denied"
        text = (
            f"Not followed: {hop.url.text} redirects to {url.text}, which {verb} (rule "
            f"{decision.rule} of policy {version.policy.name}): {decision.reason}. Request that URL "
            "itself if it is what you want."
        )
        reason = Reason.APPROVAL_REQUIRED if decision.effect == "ask" else Reason(decision.code)
        stopped = refused(Refusal(reason=reason, rule=decision.rule, text=text))
        return replace(stopped, facts={**hop.facts, **stopped.facts})
    hop.redirects.append({"status": status, "url": url.text})
    hop.url = url
    return judged


def _no_response(error: str, result: Result, version: Version, hop: _Hop) -> Ran:
    """A failure; a refusal where it is the policy that is in the way."""
    way = "".join(f" (redirected to {r['url']})" for r in hop.redirects[-1:])
    stopped = next((c for c in result.connections if c.reason in _STOPPED), None)
    if stopped is not None:
        text = f"Denied{way}: " + " ".join(connections(result, version.policy))
        rule = stopped.rule or "network.allow"
        ran = refused(Refusal(reason=Reason.POLICY_DENIED, rule=rule, text=text))
        return replace(ran, facts={**hop.facts, **ran.facts})
    return _failed(f"http_request failed{way}: {error}", Reason.OPERATION_FAILED, hop.facts)


async def _response(value: dict[str, Any], hop: _Hop, arguments: Any) -> Ran:
    headers: dict[str, str] = {}
    for name, text in value["headers"]:
        key = name.lower()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    notes: list[str] = []
    body = base64.b64decode(value["body"])
    room = arguments.get("max_bytes", DEFAULT_BYTES)
    truncated = bool(value["truncated"])
    saved = value.get("saved")
    content, form = None, "text"
    if saved is None:
        wanted = arguments.get("as", "auto")
        content, form = await asyncio.to_thread(_content, body, headers, wanted, notes)
        if isinstance(content, str) and len(content) > room:
            content, truncated = content[:room], True
    if truncated:
        notes.append("Cut: there is more; use save_to for all of it.")
    said: dict[str, Any] = {
        "url": hop.url.text, "status": value["status"], "headers": headers, "content": content,
        "content_as": form, "size_bytes": value["size_bytes"], "truncated": truncated,
        "saved_to": saved, "redirects": hop.redirects, "notes": notes,
    }  # fmt: skip
    shown = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    lines = [f"HTTP {value['status']} {hop.url.text}", *(f"[{note}]" for note in notes)]
    lines.append(f"{value['size_bytes']} bytes saved to {saved}" if saved is not None else shown)
    return Ran(result=text_result("\n".join(lines), said), facts=hop.facts)


def _content(
    body: bytes, headers: dict[str, str], wanted: str, notes: list[str]
) -> tuple[Any, str]:
    """The body in the form that is wanted, or in the next best, which is then noted."""
    kind = headers.get("content-type", "").lower()
    mime, _, parameters = kind.partition(";")
    mime = mime.strip()
    if wanted == "base64":
        return base64.b64encode(body).decode(), "base64"
    if wanted == "auto":
        textual = mime.startswith(_TEXTUAL) or mime.endswith(("+json", "+xml"))
        if not textual and (mime or not body) and (b"\0" in body or not _is_utf8(body)):
            return base64.b64encode(body).decode(), "base64"
    text = body.decode(_charset(parameters), "replace")
    if wanted == "json":
        try:
            return json.loads(text), "json"
        except (ValueError, RecursionError) as error:
            notes.append(f"Not JSON ({str(error)[:100]}): here as text.")
    if wanted == "markdown":
        try:
            return _markdown(text), "markdown"
        except Exception as error:  # of a parser that is given anybody's HTML
            notes.append(f"No Markdown could be made of it ({type(error).__name__}): here as text.")
    return text, "text"


def _markdown(text: str) -> str:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(text, "html.parser")
    for hidden in soup(["script", "style", "noscript", "template", "svg", "head"]):
        hidden.decompose()
    made: str = MarkdownConverter(heading_style="ATX", strip=["img"]).convert_soup(soup)
    lines = [line.rstrip() for line in made.splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip() + "\n"


def _charset(parameters: str) -> str:
    for part in parameters.split(";"):
        name, _, value = part.strip().partition("=")
        if name == "charset":
            try:
                return codecs.lookup(value.strip("\"' ")).name
            except LookupError:
                break
    return "utf-8"


def _is_utf8(body: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(body)
    except UnicodeDecodeError:
        return False
    return True


def _add(facts: dict[str, Any], more: dict[str, Any]) -> None:
    """Facts of one more hop: the last one's, with the connections of all."""
    before = facts.get("connections", [])
    facts.update(more)
    if all_ := [*before, *more.get("connections", [])]:
        facts["connections"] = all_


def _failed(text: str, reason: Reason, facts: dict[str, Any]) -> Ran:
    return Ran(result=text_result(text, is_error=True), reason=reason, facts=facts)


HTTP_REQUEST = BuiltIn(definition=DEFINITION, run=run)
