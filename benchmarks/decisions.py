"""A decision with 1, 20 and 200 rules, beside one CEL evaluation for each rule.

Run it: python benchmarks/decisions.py [--rounds N]
Every rule concerns the tool that is called and reads its arguments; half of the commands are judged by
their parsed programs. A round makes the arguments canonical and decides; interleaved with the peer, which
evaluates the same expressions one by one, without making anything canonical.
"""

from __future__ import annotations

import argparse
import statistics
import time

from purplebox.policies import Place, Policy, Rules
from purplebox.policies.rules import compile_expression


def measure(count: int, rounds: int, *, parsed: bool) -> None:
    """Print one row."""
    expressions = [
        f'args.command.contains("w{i}")' + (f' && "p{i}" in command.programs' if parsed else "")
        for i in range(count)
    ]
    rules = tuple({"tool": "shell", "when": text, "effect": "deny"} for text in expressions)
    compiled = Rules(
        Policy.model_validate({"name": "p", "tools": {"rules": rules}}), Place(workspace="/w")
    )
    programs = [compile_expression(text) for text in expressions]
    arguments = {"command": "cd src && git log --oneline | head -n 5", "cwd": "./src"}
    request = compiled.request(tool="shell", arguments=arguments)
    facts = {"args": arguments, "command": request.command.to_json()}
    ours: list[float] = []
    single: list[float] = []
    for number in range(rounds + 20):
        start = time.perf_counter()
        compiled.decide(compiled.request(tool="shell", arguments=arguments))
        middle = time.perf_counter()
        for program in programs:
            program.execute(facts)
        end = time.perf_counter()
        if number >= 20:
            ours.append((middle - start) * 1000)
            single.append((end - middle) * 1000)
    p99 = statistics.quantiles(ours, n=100)[98]
    median, peer = statistics.median(ours), statistics.median(single)
    kind = "command.programs" if parsed else "args"
    print(f"| {count} | {kind} | {median:.3f} | {p99:.3f} | {peer:.3f} | {peer / median:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    print("| rules | read | median ms | p99 ms | one by one, median ms | ratio |")
    print("|---|---|---|---|---|---|")
    for parsed in (False, True):
        for count in (1, 20, 200):
            measure(count, rounds, parsed=parsed)
