"""The life of a tool call: validated → decided → recorded → run → recorded → returned.

Every call takes this path and leaves one record, however it ends. Nothing in a call's arguments
can change its sandbox; only the policy can.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from ..isolation import CommandNotFound, Engine, IsolationError, OperationError, Result
from ..policies import Decision, Policy, decide
from .audit import AuditLog, spans
from .audit.record import recorded_arguments
from .reasons import Reason
from .tools import TOOLS, ToolDefinition
from .tools.shell import as_text, moved_aside, structured

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What goes back to the client."""

    reason: Reason
    text: str
    content: dict[str, Any] | None = None

    @property
    def is_error(self) -> bool:
        """MCP's isError: the model should see that it did not work."""
        if self.reason is not Reason.COMPLETED:
            return True
        return bool(self.content and self.content.get("exit_code"))


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Carries calls out under one policy."""

    engine: Engine
    policy: Policy
    log: AuditLog

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        client: str = "",
        progress: Progress | None = None,
    ) -> Outcome:
        """Carry one call out. Cancelling it kills its sandbox first, then records that."""
        definition = TOOLS.get(tool)
        decision, refusal = self._judge(definition, tool, arguments, client)
        audit = self.policy.audit
        started = time.monotonic()
        fields = {
            "tool": tool,
            "client": client,
            "policy": self.policy.name,
            "policy_version": self.policy.digest,
            "effect": decision.effect,
            "rule": decision.rule,
            "decision_reason": decision.reason,
            "arguments": recorded_arguments(arguments, audit.arguments, audit.redact),
            "enforcement": self.engine.enforcement.to_json(),
        }
        # OSError here stops the call: what cannot be recorded does not run.
        call_id = self.log.begin(fields)
        spans.annotate(
            {
                spans.CALL_ID: call_id, spans.POLICY: self.policy.name,
                spans.POLICY_VERSION: self.policy.digest, spans.EFFECT: decision.effect,
                spans.RULE: decision.rule,
                **{spans.ENFORCEMENT + k: v.status for k, v in self.engine.enforcement.layers.items()},
            }
        )  # fmt: skip
        end: dict[str, Any] = {"reason": str(Reason.CANCELLED)}
        try:
            if refusal is not None:
                outcome, result = refusal, None
            else:
                outcome, result = await self._run(tool, arguments, progress)
            end = {"reason": str(outcome.reason), **_resources(result)}
            return outcome
        finally:
            end["wall_seconds"] = round(time.monotonic() - started, 4)
            self.log.end(call_id, end)
            spans.annotate({spans.REASON: end["reason"], spans.EXIT_CODE: end.get("exit_code")})

    def _judge(
        self,
        definition: ToolDefinition | None,
        tool: str,
        arguments: Mapping[str, Any],
        client: str,
    ) -> tuple[Decision, Outcome | None]:
        if definition is None:
            known = ", ".join(TOOLS)
            decision = Decision(effect="deny", reason="unknown tool", rule="tools")
            return decision, Outcome(
                reason=Reason.UNKNOWN_TOOL, text=f"There is no tool {tool!r}; there are: {known}."
            )
        validator = jsonschema.Draft202012Validator(definition.input_schema)
        if (error := next(iter(validator.iter_errors(dict(arguments))), None)) is not None:
            where = ".".join(str(part) for part in error.absolute_path)
            text = f"Invalid arguments for {tool}: {where + ': ' if where else ''}{error.message[:500]}"
            decision = Decision(effect="deny", reason="invalid arguments", rule="schema")
            return decision, Outcome(reason=Reason.INVALID_ARGUMENTS, text=text)
        decision = decide(self.policy, tool=tool, args=arguments, client=client)
        if decision.effect == "allow":
            return decision, None
        rule = f"rule {decision.rule} of policy {self.policy.name}"
        if decision.effect == "ask":
            text = f"Refused: this needs a person's approval, and nobody can be asked here ({rule}): {decision.reason}"
            return decision, Outcome(reason=Reason.APPROVAL_REQUIRED, text=text)
        return decision, Outcome(
            reason=Reason.POLICY_DENIED, text=f"Denied by {rule}: {decision.reason}"
        )

    async def _run(
        self, tool: str, arguments: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Outcome, Result | None]:
        try:
            if tool == "shell":
                return await self._shell(arguments, progress)
            result = await self.engine.call(tool, arguments)
        except CommandNotFound as error:
            return Outcome(reason=Reason.COMMAND_NOT_FOUND, text=str(error)), None
        except OperationError as error:
            text = f"{tool} failed ({error.code}): {error}"
            if error.code in ("ENOENT", "EACCES", "EROFS", "EPERM"):
                text += (
                    f". Only what policy {self.policy.name} grants is visible (rules filesystem.read, "
                    "filesystem.write, filesystem.protect)."
                )
            return Outcome(reason=Reason.OPERATION_FAILED, text=text), None
        except IsolationError as error:
            return Outcome(reason=Reason.SANDBOX_UNAVAILABLE, text=f"Not run: {error}"), None
        text = (
            result.value["content"]
            if tool == "read_file"
            else json.dumps(result.value, ensure_ascii=False)
        )
        if undone := moved_aside(result, self.policy):
            return Outcome(reason=Reason.POLICY_DENIED, text="\n".join(undone)), result
        return Outcome(reason=Reason.COMPLETED, text=text, content=result.value), result

    async def _shell(
        self, arguments: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Outcome, Result]:
        def on_output(_: str, data: bytes) -> None:
            if progress is not None:
                progress(data[-4096:].decode("utf-8", "replace"))

        command: str = arguments["command"]
        result = await self.engine.run(
            ["/bin/sh", "-c", command],
            cwd=arguments.get("cwd", ""),
            wall_seconds=arguments.get("timeout_seconds"),
            on_output=on_output,
        )
        content = structured(command, result, self.policy)
        reason = {
            "timed_out": Reason.TIMED_OUT,
            "out_of_memory": Reason.OUT_OF_MEMORY,
        }.get(result.reason, Reason.COMPLETED)
        return Outcome(reason=reason, text=as_text(content), content=content), result


def _resources(result: Result | None) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "cpu_seconds": result.cpu_seconds,
        "memory_peak_bytes": result.memory_peak_bytes,
        "stdout_bytes": result.stdout_bytes,
        "stderr_bytes": result.stderr_bytes,
        "moved_aside": list(result.moved_aside),
    }
