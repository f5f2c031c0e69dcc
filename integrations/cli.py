"""The command `purple`, whole: the gateway's verbs and those that meet other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..gateway.cli import main as gateway_main
from .clients import commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status."""
    return gateway_main(arguments, more=commands.add_parsers)


if __name__ == "__main__":
    sys.exit(main())
