"""`purple approvals list | show | allow | deny | watch`: a person's answers to what gateways ask."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

_WATCH_SECONDS = 0.5


def add_parser(verbs: Any) -> None:
    """Add the verb group."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "approvals", help="answer what running gateways ask about tool calls"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("list", "every open question, a line each"),
        ("watch", "show questions as they come; on a terminal, answer them"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", help="the questions as JSON, one a line")
    show = actions.add_parser("show", help="all of one question")
    allow = actions.add_parser("allow", help="let a call run")
    longer = allow.add_mutually_exclusive_group()
    longer.add_argument(
        "--session", action="store_const", const="session", dest="choice",
        help="and the same call of the same session from now on",
    )  # fmt: skip
    longer.add_argument(
        "--always", action="store_const", const="always", dest="choice",
        help="and the same call for good: written into the policy's file, as the question shows",
    )  # fmt: skip
    deny = actions.add_parser("deny", help="refuse a call")
    for action in (show, allow, deny):
        action.add_argument("id", help="of the question; its beginning will do")
    allow.set_defaults(choice="once")
    deny.set_defaults(choice="deny")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the action; 1 when an answer was not taken or there is no such question."""
    from ..approvals.channel import ChannelError
    from . import fail

    try:
        if args.action == "watch":
            return _watch(as_json=args.json)
        if args.action == "list":
            return _list(as_json=args.json)
        return _one(args)
    except ChannelError as error:
        return fail(str(error), 1)


def _list(*, as_json: bool) -> int:
    from ..approvals.channel import questions

    found = [question for _, question in questions()]
    for question in found:
        print(json.dumps(question) if as_json else _line(question))
    if not found and not as_json:
        print("no open questions")
    return 0


def _one(args: argparse.Namespace) -> int:
    from ..approvals.channel import answer, questions
    from . import fail

    found = [(n, q) for n, q in questions() if args.id and str(q["id"]).startswith(args.id)]
    if len(found) != 1:
        many = f"{len(found)} open questions begin with {args.id}; write more of it"
        none = f"no question {args.id} is open; see: purple approvals list"
        return fail(many if found else none, 1)
    name, question = found[0]
    print(question["text"])
    if args.action != "show":
        answer(name, question, args.choice)
        print("denied" if args.choice == "deny" else f"allowed ({args.choice})")
    return 0


def _watch(*, as_json: bool) -> int:
    from ..approvals.channel import questions

    seen: set[str] = set()
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        print("waiting for questions; Ctrl-C ends", file=sys.stderr)
    while True:
        current = list(questions())
        seen &= {str(question["id"]) for _, question in current}
        for name, question in current:
            if question["id"] in seen:
                continue
            seen.add(str(question["id"]))
            if as_json:
                print(json.dumps(question), flush=True)
            elif interactive:
                _prompt(name, question)
            else:
                print(_line(question), flush=True)
        time.sleep(_WATCH_SECONDS)


def _prompt(name: str, question: dict[str, Any]) -> None:
    from ..approvals.channel import ChannelError, answer

    choices: dict[str, str] = {str(choice)[0]: str(choice) for choice in question["choices"]}
    offered = ", ".join(f"[{letter}]{choice[1:]}" for letter, choice in choices.items())
    print(f"\n{question['text']}\n{offered}, or Enter to leave it open: ", end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    if choice := choices.get(line.strip().lower()[:1]):
        try:
            answer(name, question, choice)
        except ChannelError as error:
            print(f"not taken: {error}")


def _line(question: dict[str, Any]) -> str:
    from ..approvals.question import visible

    reason = visible(str(question["reason"]))
    seconds = max(0, round(float(question["expires_seconds"])))
    return f"{question['id']}  {seconds:4} s left  {question['title']}  ({reason})"
