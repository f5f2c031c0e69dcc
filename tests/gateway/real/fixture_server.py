# pyright: reportDeprecated=false
"""A server with the fixtures that `@modelcontextprotocol/conformance` asks for, on the SDK.

python fixture_server.py           on stdio
python fixture_server.py PORT      on http://127.0.0.1:PORT/mcp
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any

import mcp_types as types
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer, RequestStateSecurity
from mcp.server.mcpserver.prompts.base import Prompt, UserMessage
from mcp.server.streamable_http import EventMessage
from pydantic import BaseModel, Field

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA="

server = MCPServer(
    "conformance-fixture",
    version="1",
    request_state_security=RequestStateSecurity(keys=[b"k" * 32]),
)


tool = server.tool(description="A fixture.")  # the suite wants descriptions
prompt = server.prompt(description="A fixture.")


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, kind: str, value: str) -> types.EmbeddedResource:
    inside = types.TextResourceContents(uri=uri, mime_type=kind, text=value)
    return types.EmbeddedResource(type="resource", resource=inside)


def form(message: str, **properties: str) -> types.ElicitRequest:
    schema = {
        "type": "object", "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }  # fmt: skip
    return types.ElicitRequest(
        params=types.ElicitRequestFormParams(message=message, requested_schema=schema)
    )


def sample(prompt: str, tokens: int) -> types.CreateMessageRequest:
    said = types.SamplingMessage(role="user", content=text(prompt))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[said], max_tokens=tokens)
    )


def required(state: str | None = None, **asked: Any) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=asked, request_state=state)


def given(ctx: Context, key: str) -> Any:
    """What the client answered; None while it has not."""
    return (ctx.input_responses or {}).get(key)


# Tools: content.


@tool
def test_simple_text() -> str:
    return "This is a simple text response for testing."


@tool
def test_image_content() -> list[types.ImageContent]:
    return [image()]


@tool
def test_audio_content() -> list[types.AudioContent]:
    return [types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")]


@tool
def test_embedded_resource() -> list[types.EmbeddedResource]:
    return [
        embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    ]


@tool
def test_multiple_content_types() -> list[Any]:
    inside = json.dumps({"test": "data", "value": 123})
    return [
        text("Multiple content types test:"), image(),
        embedded("test://mixed-content-resource", "application/json", inside),
    ]  # fmt: skip


@tool
def test_error_handling() -> str:
    raise RuntimeError("This tool intentionally returns an error for testing")


@tool
def test_x_mcp_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "",
) -> str:
    return region


@tool
def json_schema_2020_12_tool() -> str:
    return "called"


server._tool_manager._tools["json_schema_2020_12_tool"].parameters = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {
        "$anchor": "addressDef", "type": "object",
        "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
    }},
    "properties": {
        "name": {"type": "string"}, "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"}, "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}  # fmt: skip


# Tools: what happens while they run.


@tool
async def test_tool_with_logging(ctx: Context) -> str:
    for said in ("started", "processing", "completed"):
        await ctx.info(f"Tool execution {said}")
        await asyncio.sleep(0.02)
    return "done"


@tool
async def test_tool_with_progress(ctx: Context) -> str:
    for step in (0, 50, 100):
        await ctx.report_progress(step, 100, f"Completed step {step} of 100")
        await asyncio.sleep(0.02)
    return "done"


@tool
async def test_reconnection(ctx: Context) -> str:
    await ctx.info("before")
    await ctx.close_sse_stream()  # nothing on stdio, which has no stream to close
    await asyncio.sleep(0.5)
    await ctx.info("after")
    return "Reconnection test completed"


@tool
async def test_trigger_tool_change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    return "changed"


@tool
async def test_trigger_prompt_change(ctx: Context) -> str:
    server.add_prompt(Prompt.from_function(lambda: "x", name="test_dynamic_prompt"))
    server.remove_prompt("test_dynamic_prompt")
    await ctx.notify_prompts_changed()
    return "changed"


# Tools: what a 2025-11-25 server asks of its client.


@tool
async def test_sampling(prompt: str, ctx: Context) -> str:
    said = types.SamplingMessage(role="user", content=text(prompt))
    answer = await ctx.session.create_message(
        messages=[said], max_tokens=100, related_request_id=ctx.request_id
    )
    return f"LLM response: {getattr(answer.content, 'text', '')}"


async def elicit(ctx: Context, schema: type[BaseModel]) -> str:
    answer = await ctx.elicit(message="Please fill this in", schema=schema)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"action={answer.action}, content={content}"


class Response(BaseModel):
    response: str = Field(description="User's response")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Annotated[str, Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})] = (
        "active"
    )
    verified: bool = True


def titled(**names: str) -> list[Any]:
    return [{"const": const, "title": title} for const, title in names.items()]


class Enums(BaseModel):
    untitledSingle: Annotated[
        str, Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    ]
    titledSingle: Annotated[
        str, Field(json_schema_extra={"oneOf": [*titled(value1="First", value2="Second")]})
    ]
    legacyEnum: Annotated[
        str, Field(json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]})
    ]
    untitledMulti: Annotated[
        list[str],
        Field(json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}}),
    ]
    titledMulti: Annotated[
        list[str],
        Field(json_schema_extra={"items": {"anyOf": [*titled(value1="First", value2="Second")]}}),
    ]


@tool
async def test_elicitation(message: str, ctx: Context) -> str:
    return await elicit(ctx, Response)


@tool
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    return await elicit(ctx, Defaults)


@tool
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    return await elicit(ctx, Enums)


# Tools: what a 2026-07-28 server answers instead.


@tool
async def test_missing_capability(ctx: Context) -> str:
    stated = ctx.session.client_capabilities
    if stated is None or stated.sampling is None:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY, message="This tool needs sampling",
            data={"requiredCapabilities": {"sampling": {}}},
        )  # fmt: skip
    return "sampling is there"


@tool
async def test_input_required_result_elicitation(ctx: Context) -> Any:
    if answer := given(ctx, "user_name"):
        return f"Hello, {(answer.content or {}).get('name')}!"
    return required(user_name=form("What is your name?", name="string"))


@tool
async def test_input_required_result_sampling(ctx: Context) -> Any:
    if answer := given(ctx, "capital_question"):
        return f"The model said: {answer.content.text}"
    return required(capital_question=sample("What is the capital of France?", 100))


@tool
async def test_input_required_result_list_roots(ctx: Context) -> Any:
    if answer := given(ctx, "client_roots"):
        return f"{len(answer.roots)} roots"
    return required(client_roots=types.ListRootsRequest())


@tool
async def test_input_required_result_request_state(ctx: Context) -> Any:
    if given(ctx, "confirm") and ctx.request_state == "state":
        return "state-ok"
    return required("state", confirm=form("Please confirm", ok="boolean"))


@tool
async def test_input_required_result_tampered_state(ctx: Context) -> Any:
    if ctx.request_state is not None:
        return "state-ok"
    return required("round-1", confirm=form("Please confirm", ok="boolean"))


@tool
async def test_input_required_result_multiple_inputs(ctx: Context) -> Any:
    if all(given(ctx, key) for key in ("user_name", "greeting", "client_roots")):
        return "All inputs received."
    return required(
        "several", user_name=form("What is your name?", name="string"),
        greeting=sample("Generate a greeting", 50), client_roots=types.ListRootsRequest(),
    )  # fmt: skip


@tool
async def test_input_required_result_multi_round(ctx: Context) -> Any:
    if ctx.request_state == "2" and (color := given(ctx, "step2")):
        return f"The color is {(color.content or {}).get('color')}."
    if ctx.request_state == "1" and given(ctx, "step1"):
        return required("2", step2=form("Step 2: What is your favorite color?", color="string"))
    return required("1", step1=form("Step 1: What is your name?", name="string"))


@tool
async def test_input_required_result_capabilities(ctx: Context) -> Any:
    stated = ctx.client_capabilities
    asked: dict[str, Any] = {}
    if stated is None or stated.sampling is not None:
        asked["sample"] = sample("Say hello", 50)
    if stated is None or stated.elicitation is not None:
        asked["ask"] = form("What is your name?", name="string")
    return required("gated", **asked)


# Resources and prompts.


@server.resource("test://static-text")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    import base64

    return base64.b64decode(PNG)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource")
def watched() -> str:
    return "watched"


@prompt
def test_simple_prompt() -> list[Any]:
    return [UserMessage(content=text("This is a simple prompt for testing."))]


@prompt
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[Any]:
    return [UserMessage(content=text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]


@prompt
def test_prompt_with_embedded_resource(resourceUri: str) -> list[Any]:
    inside = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [UserMessage(content=inside), UserMessage(content=text("Please process it."))]


@prompt
def test_prompt_with_image() -> list[Any]:
    return [UserMessage(content=image()), UserMessage(content=text("Please analyze it."))]


@prompt
async def test_input_required_result_prompt(ctx: Context) -> Any:
    if answer := given(ctx, "user_context"):
        return [UserMessage(content=text(f"Context: {(answer.content or {}).get('context')}"))]
    return required(user_context=form("What context should the prompt use?", context="string"))


async def nothing(ctx: Any, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


for method, params in (
    ("logging/setLevel", types.SetLevelRequestParams),
    ("resources/subscribe", types.SubscribeRequestParams),
    ("resources/unsubscribe", types.UnsubscribeRequestParams),
):
    server._lowlevel_server.add_request_handler(method, params, nothing)


async def complete(ref: Any, argument: Any, context: Any) -> types.Completion:
    return types.Completion(values=[], total=0, has_more=False)


completed: Any = server.completion
completed()(complete)


class Events:
    """Events of all streams, in order, so that a client may resume one."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        after = int(last_event_id)
        stream = self._events[after - 1][0]
        for number, (owner, message) in enumerate(self._events[after:], after + 1):
            if owner == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


if __name__ == "__main__":
    if len(sys.argv) > 1:
        store: Any = Events()
        server.run("streamable-http", port=int(sys.argv[1]), event_store=store, retry_interval=100)
    else:
        server.run()
