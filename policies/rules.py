"""Tool-call rules: (tool, server, canonical arguments, …) → Decision. Pure.

Theory of operation
    `Rules` is made once per policy. The first call of a (server, tool) picks the rules whose globs
    fit. For a decision `sieve` drops those that a look at the arguments settles, the facts that
    the others name are converted once, and each of them is evaluated on the same ones.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from .canonical import CanonicalError, Place, path_pattern
from .request import BUILT_IN, Request, as_shell, make_request, names
from .sieve import Sieve

if TYPE_CHECKING:
    from .flow import Flow
    from .judging import ToolRule
    from .model import Policy

Effect = Literal["allow", "ask", "deny"]
# The refusals among them are reason codes of the gateway, by the same spelling.
Code = Literal[
    "allowed", "policy_denied", "approval_required", "rule_failed", "arguments_ambiguous",
    "outside_grant", "flow_denied",
]  # fmt: skip
CODES: dict[Effect, Code] = {
    "allow": "allowed", "ask": "approval_required", "deny": "policy_denied"
}  # fmt: skip

ORDER: tuple[Effect, ...] = ("deny", "ask", "allow")

# What an expression may name, and what each is.
VARIABLES = {
    "tool": "the tool's own name",
    "server": 'name of the server behind the gateway; "" for the built-in tools',
    "client": "who asks",
    "session": "of that client",
    "args": "the arguments, canonical",
    "workspace": 'absolute path; "" where there is none',
    "paths": "every path that an argument names, absolute",
    "urls": "every URL among the arguments: url, scheme, host, port, path, query, userinfo",
    "command": "of a shell command: text, programs, invocations, redirections, opaque",
}
_BOUND = re.compile(r"\.\s*(?:all|exists|exists_one|existsOne|filter|map)\s*\(\s*(\w+)\s*,")
_MOST_TOOLS = 4096  # that selections are kept for; names come from servers


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict: what, why (for people and the model), by which rule of which policy.

    Attributes:
        code: Stable; also says whether a rule, its failure, the arguments or the flow decided.
    """

    effect: Effect
    reason: str
    rule: str
    code: Code = "allowed"


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Any:
    """Compile a CEL expression. Raises `ValueError`: it does not parse, or names the unknown."""
    import cel

    try:
        program = cel.compile(text)
    except Exception as error:  # the library raises several kinds
        raise ValueError(f"not a CEL expression: {error}") from error
    for name in sorted(set(program.variables()) - set(_BOUND.findall(text))):
        if name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(VARIABLES)}"
            raise ValueError(f"unknown variable {name}; {hint}")
    return program


class Rules:
    """The rules of one policy, ready to judge.

    Args:
        policy: Whose `tools` these are.
        place: Where relative paths of a call begin.
    """

    def __init__(self, policy: Policy, place: Place | None = None) -> None:
        self.policy = policy
        self.place = place or Place()
        self._selected: dict[tuple[str, str], _Selection] = {}

    @cached_property
    def flow(self) -> Flow:
        """The policy's flow rules."""
        from .flow import Flow

        return Flow(self.policy, self.place)

    def request(
        self, *, tool: str, arguments: Mapping[str, Any], server: str = "", client: str = "",
        session: str = "",
    ) -> Request:  # fmt: skip
        """The call with canonical arguments. Raises `CanonicalError`: such a call is refused."""
        return make_request(
            tool=tool, arguments=arguments, server=server, client=client, session=session,
            place=self.place, declared=self.policy.tools.arguments,
        )  # fmt: skip

    def decide(self, request: Request) -> Decision:
        """Judge one call: deny before ask before allow, then the default.

        A rule whose expression fails, or gives anything but true or false, denies. A tool that does
        what `shell` does meets what rules for that one deny or ask, too; what allows names it itself.
        """
        selection = self._selection(request)
        decision = selection.judge(request)
        if (shell := as_shell(request)) is not None:
            other = self._selection(shell)
            told = other.approved(shell, other.judge(shell))
            if told.rule != "tools.default":
                decision = stricter(decision, told)
        return selection.approved(request, decision)

    def _selection(self, request: Request) -> _Selection:
        key = (request.server, request.tool)
        selection = self._selected.get(key)
        if selection is None:
            if len(self._selected) >= _MOST_TOOLS:
                self._selected.clear()
            selection = self._selected[key] = _Selection(self.policy, request.tool, request.server)
        return selection


class _Selection:
    """The rules that a tool of a server is judged by."""

    def __init__(self, policy: Policy, tool: str, server: str) -> None:
        self._default: Effect = policy.tools.default
        self._fixed: list[_Compiled] = []
        self._conditional: list[_Compiled] = []
        for index, rule in enumerate(policy.tools.rules):
            if applies(rule, tool, server):
                compiled = _Compiled(index, rule)
                group = self._fixed if rule.when.strip() == "true" else self._conditional
                group.append(compiled)
        # Calls that a person has allowed for good, by their arguments in one spelling.
        self._approved = {
            _spelling(call.arguments): index
            for index, call in enumerate(policy.tools.approved)
            if (call.server, call.tool) == (server, tool)
        }
        texts = [compiled.rule.when for compiled in self._conditional]
        self._sieve = Sieve(texts, is_shell=BUILT_IN.get(tool, {}).get("command") == "command")
        # Always given, so that arguments which CEL cannot take deny whatever the rules look at.
        self._always = frozenset({"args"} if any("args" in c.variables for c in self._conditional) else ())  # fmt: skip

    def approved(self, request: Request, decision: Decision) -> Decision:
        """`decision`, or that a person has allowed for good what it asks about."""
        if decision.effect != "ask" or not self._approved:
            return decision
        index = self._approved.get(_spelling(request.arguments))
        if index is None:
            return decision
        reason = f"a person has allowed this call for good, where {decision.rule} would ask"
        return Decision(effect="allow", reason=reason, rule=f"tools.approved[{index}]")

    def judge(self, request: Request) -> Decision:
        """What the rules say."""
        matched = list(self._fixed)
        if self._conditional:
            left = [self._conditional[index] for index in self._sieve.left(request)]
            try:
                facts = self._facts(request, left)
            except Exception as error:
                return _failed(self._conditional[0].index, f"{type(error).__name__}: {error}"[:300])
            for compiled in left:
                try:
                    verdict = compiled.program.execute(facts)
                except Exception as error:
                    return _failed(compiled.index, f"{type(error).__name__}: {error}"[:300])
                if verdict is True:
                    matched.append(compiled)
                elif verdict is not False:
                    return _failed(compiled.index, "it is neither true nor false")
        if matched:
            first = min(matched, key=lambda c: c.rank)
            rule = first.rule
            return Decision(
                effect=rule.effect,
                reason=rule.reason or f"{rule.effect} by rule",
                rule=f"tools.rules[{first.index}]",
                code=CODES[rule.effect],
            )
        return Decision(
            effect=self._default, reason="no rule matched", rule="tools.default",
            code=CODES[self._default],
        )  # fmt: skip

    def _facts(self, request: Request, left: Sequence[_Compiled]) -> Any:
        """What the expressions that are left may name, converted once for all of them."""
        import cel

        facts: dict[str, Any] = {}
        for name in self._always.union(*(compiled.variables for compiled in left)):
            if name == "args":
                facts[name] = dict(request.arguments)
            elif name == "command":
                facts[name] = request.command.to_json()
            elif name == "paths":
                facts[name] = list(request.paths)
            elif name == "urls":
                facts[name] = [url.to_json() for url in request.urls]
            elif name == "workspace":
                facts[name] = request.place.workspace or ""
            else:
                facts[name] = getattr(request, name)
        context: Any = cel.Context(facts)
        if any(compiled.calls_glob for compiled in left):

            def glob(text: Any, pattern: Any) -> bool:
                return _glob(text, pattern, request.place)

            context.add_function("glob", glob)
        return context


class _Compiled:
    """A rule, its index in the policy, and its expression."""

    def __init__(self, index: int, rule: ToolRule) -> None:
        self.index, self.rule = index, rule
        self.rank = (ORDER.index(rule.effect), index)
        self.program = compile_expression(rule.when)
        self.variables = frozenset(self.program.variables()) & frozenset(VARIABLES)
        self.calls_glob = "glob" in self.program.functions()


def applies(rule: ToolRule, tool: str, server: str) -> bool:
    """Whether the globs of `rule` fit a tool; its `when` is another matter.

    `tool` is matched with the tool's own name and with `server__tool`. A rule that *allows* a
    built-in tool by its name does not allow a tool of that name of another server.
    """
    if rule.effect == "allow" and rule.server == "*" and rule.tool in BUILT_IN and server:
        return False
    return fnmatchcase(server, rule.server) and any(
        fnmatchcase(name, rule.tool) for name in names(tool, server)
    )


@lru_cache(maxsize=1024)
def _pattern(glob: str, place: Place) -> re.Pattern[str]:
    return path_pattern(glob, place)


def _glob(text: Any, glob: Any, place: Place) -> bool:
    if not isinstance(text, str) or not isinstance(glob, str):
        raise TypeError("glob(path, pattern) takes two texts")
    return _pattern(glob, place).fullmatch(text) is not None


def _spelling(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=dict)


def _failed(index: int, why: str) -> Decision:
    return Decision(
        effect="deny", reason=f"the rule could not be evaluated: {why}",
        rule=f"tools.rules[{index}]", code="rule_failed",
    )  # fmt: skip


def judge(
    rules: Rules, request: Request, follow: Callable[[str, bool], str] | None
) -> tuple[Request, Decision]:
    """Judge a call by what its paths say and by where they lead; the stricter verdict counts.

    Args:
        rules: Of its policy.
        request: As asked for, canonical.
        follow: As in `Request.resolved`; None follows no link.

    Returns:
        The call to run (with the paths where they lead, but for another server's tool, whose links
        are its own), and the verdict.
    """
    decision = rules.decide(request)
    led = request if follow is None else request.resolved(follow)
    if led is request:
        return request, decision
    pairs = zip(request.uses, led.uses, strict=True)
    links = [f"{a.value} leads to {b.value}" for a, b in pairs if a.value != b.value]
    other = rules.decide(led)
    other = replace(other, reason=f"{other.reason} ({'; '.join(links)})")
    return (request if request.server else led), stricter(decision, other)


def stricter(one: Decision, other: Decision | None) -> Decision:
    """The one that allows less; the first where both allow the same."""
    if other is None or ORDER.index(one.effect) <= ORDER.index(other.effect):
        return one
    return other


def ambiguous(error: CanonicalError) -> Decision:
    """The refusal of a call whose arguments have no one meaning."""
    return Decision(
        effect="deny", reason=str(error), rule="tools.arguments", code="arguments_ambiguous"
    )


def decide(
    policy: Policy,
    *,
    tool: str,
    args: Mapping[str, Any],
    server: str = "",
    client: str = "",
    session: str = "",
    place: Place | None = None,
) -> Decision:
    """Judge one call under a policy that is not kept; who judges many keeps `Rules`."""
    rules = Rules(policy, place)
    try:
        request = rules.request(
            tool=tool, arguments=args, server=server, client=client, session=session
        )
    except CanonicalError as error:
        return ambiguous(error)
    return rules.decide(request)
