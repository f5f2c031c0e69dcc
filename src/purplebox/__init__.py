"""Purple: a gateway between an LLM agent and everything its tools touch.

`Gateway` is all of it in one object. Imports run one way: integrations → gateway → isolation →
policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .gateway.gateway import Gateway

__version__ = "0.1.0"
__all__ = ["Gateway", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Gateway":  # loaded on first use: the zygote imports this package, too
        from .gateway.gateway import Gateway

        return Gateway
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
