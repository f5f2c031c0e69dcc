"""A decision with 1, 20 and 200 rules, beside one CEL evaluation for each rule.

Run it: python benchmarks/decisions.py [--rounds N]
Every rule concerns the tool that is called and reads its arguments: by a text that they contain, by the
programs of the parsed command (quoted, so that it has to be parsed), or by an expression that only CEL
understands. A round makes the arguments canonical and decides. Wall time has whatever else the machine
does in it; CPU time is that of the thread. Before them, in 20 rounds, the peer evaluates the same
expressions one by one, without making anything canonical.
"""

from __future__ import annotations

import argparse
import statistics
import time

from purplebox.policies import Place, Policy, Rules
from purplebox.policies.rules import compile_expression

KINDS = {
    "args.command.contains(…)": 'args.command.contains("w{i}")',
    "… in command.programs": '"p{i}" in command.programs',
    "size(args.command) > …": "size(args.command) > 100{i}",
}


def measure(kind: str, count: int, rounds: int) -> None:
    """Print one row."""
    expressions = [KINDS[kind].replace("{i}", str(i)) for i in range(count)]
    rules = tuple({"tool": "shell", "when": text, "effect": "deny"} for text in expressions)
    compiled = Rules(
        Policy.model_validate({"name": "p", "tools": {"rules": rules}}), Place(workspace="/w")
    )
    programs = [compile_expression(text) for text in expressions]
    arguments = {"command": "cd 'src' && git log --oneline | head -n 5", "cwd": "./src"}
    request = compiled.request(tool="shell", arguments=arguments)
    facts = {"args": arguments, "command": request.command.to_json()}
    wall: list[float] = []
    cpu: list[float] = []
    peer: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        for program in programs:
            program.execute(facts)
        peer.append((time.perf_counter() - start) * 1000)
    for number in range(rounds + 20):
        start, own = time.perf_counter(), time.thread_time()
        compiled.decide(compiled.request(tool="shell", arguments=arguments))
        if number >= 20:
            cpu.append((time.thread_time() - own) * 1000)
            wall.append((time.perf_counter() - start) * 1000)
    median, single = statistics.median(wall), statistics.median(peer)
    tail, own_tail = (statistics.quantiles(times, n=100)[98] for times in (wall, cpu))
    figures = f"{median:.3f} | {tail:.3f} | {own_tail:.3f} | {single:.3f} | {single / median:.1f}"
    print(f"| {kind} | {count} | {figures} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    print(
        "| rules read | rules | median ms | p99 ms | p99 CPU ms | one by one, median ms | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for count in (1, 20, 200):
            measure(kind, count, rounds)
