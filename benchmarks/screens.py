"""How often the screens find something in ordinary output, and what they cost.

Run it: python benchmarks/screens.py [--each N] [--seed N]
A sample is what one call would give, at most 64 KiB: a manual page as `man` and as `cat` print it, a commit
with its patch, a source file, a piece of JSON, a listing, what pip says. None holds an attack that we know
of, so each finding is a false positive, but that documentation of secrets and injections, and keys in test
data, look like what they are about. The corpus is the machine's own: other machines give other figures.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from purplebox.gateway.screens import Findings, Screen, detectors
from purplebox.policies import load_policy

_MOST = 64 << 10
_ROOT = Path(__file__).parents[1]


def output(*argv: str) -> str:
    """What a program prints."""
    ran = subprocess.run(argv, capture_output=True, cwd=_ROOT, timeout=60, check=False)
    return (ran.stdout + ran.stderr)[:_MOST].decode("utf-8", "replace")


def files(root: Path, pattern: str, chosen: random.Random, count: int) -> Iterator[str]:
    """The beginnings of some files."""
    found = sorted(p for p in root.rglob(pattern) if p.is_file())
    for path in chosen.sample(found, min(count, len(found))):
        yield path.read_bytes()[:_MOST].decode("utf-8", "replace")


def corpus(chosen: random.Random, each: int) -> dict[str, Callable[[], Iterator[str]]]:
    """Kinds of output."""
    library = Path(sysconfig.get_paths()["purelib"])
    standard = Path(sysconfig.get_paths()["stdlib"])

    def pages(
        argv: tuple[str, ...], count: int, where: str = "/usr/share/man/man1"
    ) -> Iterator[str]:
        manuals = sorted(Path("/").glob(f"{where[1:]}/*.gz"))
        for page in chosen.sample(manuals, min(count, len(manuals))):
            yield output(*argv, str(page))

    def commits() -> Iterator[str]:
        for commit in output("git", "log", "--format=%h").split()[:each]:
            yield output("git", "show", "--stat", "--patch", commit)

    def pip() -> Iterator[str]:
        run = (sys.executable, "-m", "pip")
        yield output(*run, "list")
        yield output(*run, "freeze", "--all")
        yield output(*run, "inspect")
        yield output(*run, "help", "install")
        yield output(*run, "install", "--no-index", "no-such-package")
        for name in ("pydantic", "cryptography", "uvicorn", "mcp", "pytest"):
            yield output(*run, "show", "-f", name)

    def system() -> Iterator[str]:
        for line in (
            "ls -laR /etc", "ps aux", "mount", "df -h", "env -i sh -c env", "dpkg -l", "uname -a",
            "find /usr/lib -maxdepth 2", "git status", "git log --graph --oneline", "id", "cat /proc/meminfo",
            "sha256sum /usr/bin/git /bin/ls /bin/sh", "xxd -l 20000 /bin/ls", "base64 /bin/true",
            "python3 --help", "git help -a", "cat /proc/cpuinfo", "ls -la /usr/bin", "date",
        ):  # fmt: skip
            yield output("sh", "-c", line)

    return {
        "man": lambda: pages(("man", "--pager=cat"), each // 4),
        "man, raw roff": lambda: pages(("zcat",), each),
        "git show": commits,
        "Python, standard library": lambda: files(standard, "*.py", chosen, each),
        "Python, packages": lambda: files(library, "*.py", chosen, each),
        "JSON": lambda: files(Path("/usr"), "*.json", chosen, each),
        "text, Markdown, HTML": lambda: (
            text
            for pattern in ("*.md", "*.txt", "*.html", "copyright")
            for text in files(Path("/usr/share"), pattern, chosen, each // 4)
        ),
        "man, other languages": lambda: pages(("zcat",), each, "/usr/share/man/??/man1"),
        "pip": pip,
        "system": system,
    }


def speed(screen: Screen) -> None:
    """CPU seconds where there is nothing to find; not wall time, for the machine may be shared."""
    text = "".join(files(Path(sysconfig.get_paths()["stdlib"]), "*.py", random.Random(1), 600))
    ascii_only = text.encode("ascii", "replace").decode()
    print("| text of | CPU seconds |\n|---|---|")
    for name, base in (("ASCII", ascii_only), ("Unicode", text)):
        for size in (1 << 10, 1 << 20, 50 << 20):
            sample = (base * (size // len(base) + 1))[:size]
            repeats = max(1, (1 << 20) // size)
            start = time.thread_time()
            for _ in range(repeats):
                screen.value({"content": [{"type": "text", "text": sample}]}, Findings())
            print(f"| {size >> 10} KiB, {name} | {(time.thread_time() - start) / repeats:.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=200, help="samples of a kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what was found where")
    args = parser.parse_args()
    screen = Screen(load_policy("base"), {"OUR_TOKEN": "never-in-any-output-1f9c"})
    if not detectors.is_installed():
        print("without purplebox[secrets]: nothing was looked for by detectors")
    detectors.load()
    print("| output of | samples | KiB | characters removed | secrets | injection | which |")
    print("|---|---|---|---|---|---|---|")
    totals: Counter[str] = Counter()
    for kind, samples in corpus(random.Random(args.seed), args.each).items():
        counts: Counter[str] = Counter()
        which: Counter[str] = Counter()
        for sample in samples():
            findings = Findings()
            screen.text(sample, findings)
            counts.update(samples=1, bytes=len(sample))
            counts.update({k: 1 for k in findings.to_json()})
            which.update([*findings.characters, *findings.secrets, *findings.injection])
            if args.show and (findings.secrets or findings.injection):
                print(f"  {findings.sentence()}: {sample[:70]!r}", file=sys.stderr)
        totals.update(counts)
        row(kind, counts, ", ".join(f"{n} {name}" for name, n in which.most_common(6)))
    row("**all**", totals, "")
    print()
    speed(screen)


def row(kind: str, counts: Counter[str], which: str) -> None:
    """Print one row."""
    total = max(1, counts["samples"])
    shares = (f"{counts[k] / total:.1%}" for k in ("characters", "secrets", "injection"))
    print(f"| {kind} | {total} | {counts['bytes'] >> 10} | {' | '.join(shares)} | {which} |")


if __name__ == "__main__":
    main()
