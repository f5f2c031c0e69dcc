"""How a policy is held: sandboxes, and what they enforce.

Nouns: `Engine` (one policy, one workspace) → `Result` with its `Enforcement`, or a `Process` that has
its own when it ends, or a `Sandbox` that takes command after command; what becomes of one command is an `execution`. `plan` compiles a policy into
plain values; `keeper` and `zygote`, each a process of its own, carry them out: a `slot` is one
sandbox there, `lockdown` the order in which it is closed, `pid1` its first process, which starts the
command; `ground` is what the two build before there is a plan, and `first` the sandbox in it. On the gateway's side `forkserver` has them forked ahead, `link` speaks with them, `started`
is a sandbox that is ready, and `pool` keeps some. One file per kernel facility serves them. Where the
caller's event loop is not asyncio's, an engine lives in a `loopthread` and is called from `abroad`.

Names load on first use: the zygote imports this package, too, and must stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .enforcement import Enforcement, Layer
    from .errors import (
        CommandNotFound,
        EnforcementError,
        IsolationError,
        OperationError,
        ProtectionError,
        SetupError,
    )
    from .process import Process
    from .result import Result
    from .sandbox import Engine
    from .standing import Sandbox
    from .sync import SyncEngine, SyncProcess, SyncSandbox
    from .usage import Limit, Usage
    from .view import View

_HOMES = {
    "Enforcement": "enforcement",
    "Layer": "enforcement",
    "CommandNotFound": "errors",
    "EnforcementError": "errors",
    "IsolationError": "errors",
    "OperationError": "errors",
    "ProtectionError": "errors",
    "SetupError": "errors",
    "Process": "process",
    "Result": "result",
    "Engine": "sandbox",
    "Sandbox": "standing",
    "SyncEngine": "sync",
    "SyncProcess": "sync",
    "SyncSandbox": "sync",
    "Limit": "usage",
    "Usage": "usage",
    "View": "view",
}

__all__ = [
    "CommandNotFound",
    "Enforcement",
    "EnforcementError",
    "Engine",
    "IsolationError",
    "Layer",
    "Limit",
    "OperationError",
    "Process",
    "ProtectionError",
    "Result",
    "Sandbox",
    "SetupError",
    "SyncEngine",
    "SyncProcess",
    "SyncSandbox",
    "Usage",
    "View",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
