"""Text that speaks to the model rather than about the work. Pure.

A marker is a hint: who writes to get past this list gets past it. What holds is the policy: what the
model is made to ask for is decided like anything else. No maintained library of small, fast patterns
was found: those on PyPI are classifiers of hundreds of megabytes or young lists of one author. The
shapes here are those of published attacks: Greshake et al. 2023 (indirect injection), Invariant Labs
2025 (tool poisoning), Rehberger (exfiltration by image, hidden Unicode), and the control tokens of
chat templates.
"""

from __future__ import annotations

import re

_ANY = r"[^.!?\n]"
_AI = r"(?:ai|llms?|language\s+models?|chat\s?bots?|assistants?|agents?|claude|chatgpt|gpt|copilot|gemini)"
_BEFORE = 250
MOST_CHARACTERS = 16 << 20  # what lies behind is beyond the context of any model


def _rule(name: str, starts: str, pattern: str, before: str = r"(?<!\w)\Z") -> _Rule:
    compiled = re.compile(pattern, re.IGNORECASE)
    return (
        name,
        tuple(word.replace("PIPE", "|") for word in starts.split("|")),
        compiled,
        re.compile(before, re.IGNORECASE),
    )


_Rule = tuple[str, tuple[str, ...], re.Pattern[str], re.Pattern[str]]
# Name; the words (lower case) at which the pattern begins; the pattern; what must be somewhere
# before it. Searching the words and matching only there is thirty times as fast as searching for
# the pattern.
_RULES: tuple[_Rule, ...] = (
    _rule(
        "instruction-override", "ignore|disregard|forget|override|overrule",
        rf"\w+\b{_ANY}{{0,30}}\b(?:previous|prior|above|earlier|preceding|your|system)\b"
        rf"{_ANY}{{0,20}}\b(?:instructions?|prompts?|directives?|guidelines|programming)\b",
    ),
    _rule(
        "new-instructions", "new |updated |revised |real |actual |additional ",
        rf"\w+\s+(?:\w+\s+)?instructions\s*(?::|(?:for|to)\s+(?:you|the)\b{_ANY}{{0,20}}\b{_AI}\b)",
    ),
    _rule(
        "chat-template", "<PIPE|[inst]|[/inst]|<<sys>>|<start_of_turn>|<｜",
        r"<\|(?:im_start|im_end|im_sep|system|user|assistant|endoftext|eot_id|eom_id|channel|"
        r"start_header_id|end_header_id|begin_of_text|end_of_turn)\|>"
        r"|\[/?INST\]|<<SYS>>|<start_of_turn>|<｜(?:User|Assistant)｜>",
        "",
    ),
    _rule(
        "fake-system", "<important>|<system|[system message]|# system ",
        r"<(?:(?-i:IMPORTANT|SYSTEM)|system[-_]?(?:prompt|message|reminder|instructions?|override))>"
        r"|\[system\s+message\]|#\s*system\s+(?:message|prompt)\b",
        "",
    ),
    _rule(
        "secrecy", "do not |don't |don’t |never |without |must not |avoid ",
        r"(?:do\s+not|don['’]t|never|without|must\s+not|avoid)\s+"
        r"(?:tell(?:ing)?|inform(?:ing)?|notify(?:ing)?|alert(?:ing)?|"
        r"(?:mention(?:ing)?|reveal(?:ing)?|disclos(?:e|ing))(?:\s+\w+){0,3}\s+to)\s+"
        r"(?:the\s+|your\s+)?(?:user|human|person|operator)\b",
    ),
    _rule(
        "role-change", "you are now|from now on|pretend to be|pretend you",
        rf"(?:you\s+are\s+now|from\s+now\s+on,?\s+you\s+(?:are|will|must)|pretend\s+(?:to\s+be|you\s+are))\b"
        rf"{_ANY}{{0,40}}\b(?:{_AI}|dan|jailbroken|unrestricted|(?:root|admin|developer|debug|god)\s+mode)\b",
    ),
    _rule(
        "prompt-theft", "your ",
        r"your\s+(?:\w+\s+)?(?:system\s+(?:prompt|instructions?)|(?:initial|hidden)\s+(?:prompt|instructions))\b",
    ),
    _rule(
        "addressed-to-model", "attention|note|notice|instruction|message|important",
        rf"(?:attention|note|notice|instructions?|message|important)\b[\s:,!-]{{0,4}}(?:to|for)?\s+"
        rf"(?:all\s+|any\s+|the\s+)?{_AI}(?:\s+{_AI})?\s*[:!]",
    ),
    _rule(
        "addressed-to-model", "if you are a",
        rf"if\s+you\s+are\s+an?\s+(?:\w+\s+)?{_AI}\b{_ANY}{{0,60}}\b(?:must|please|should|do)\b",
    ),
    _rule(
        "reads-secrets", ".ssh|.env|id_rsa|mcp.json|.aws/credentials|/etc/passwd",
        r"\.ssh/|id_rsa|mcp\.json|\.aws/credentials|/etc/passwd|\.env\b",
        r"\b(?:before|when|whenever|after|first)\b[^\n]{0,120}"
        r"\b(?:read|cat|open|include|send|pass|upload)\b[^\n]{0,80}\Z",
    ),
    _rule(
        "image-exfiltration", "![",
        r"!\[[^\]\n]{0,100}\]\(https?://[^)\s]{1,300}[?&/=](?:\{|\$\{|%7[Bb]|<|\[)[^)\n]{0,200}\)",
        "",
    ),
)  # fmt: skip
HIDDEN_TEXT = "hidden-text"
# In a short text one search for all words is faster than one for each.
_ANY_START = re.compile("|".join(re.escape(word) for rule in _RULES for word in rule[1]))
_SHORT_CHARACTERS = 1024


def find(text: str) -> list[str]:
    """Names of the markers in the first MOST_CHARACTERS of `text`, each once."""
    text = text[:MOST_CHARACTERS]
    # Only one letter is longer in lower case; positions must be the same in both.
    lower = text.lower() if text.isascii() else text.replace("\u0130", "I").lower()
    if len(lower) < _SHORT_CHARACTERS and _ANY_START.search(lower) is None:
        return []
    found: dict[str, None] = {}
    for rule in _RULES:
        if rule[0] not in found and _is_in(text, lower, rule):
            found[rule[0]] = None
    return list(found)


def _is_in(text: str, lower: str, rule: _Rule) -> bool:
    _, starts, pattern, before = rule
    for word in starts:
        at = lower.find(word)
        while at >= 0:
            if pattern.match(text, at) and before.search(text[max(0, at - _BEFORE) : at]):
                return True
            at = lower.find(word, at + 1)
    return False
