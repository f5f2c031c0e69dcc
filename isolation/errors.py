"""What can go wrong between a policy and a result.

IsolationError
├── SetupError           the sandbox could not be built
│   └── EnforcementError the host enforces less than the policy's `require`
├── ProtectionError      what a command made under a protected name could not be undone
├── CommandNotFound      the payload's executable is not in the sandbox's view
└── OperationError       a file operation was refused by the kernel or by its own checks

Each message says what to do. A program that ran and failed is no error: see `Result`.
"""

from __future__ import annotations


class IsolationError(Exception):
    """Base of all errors of `purplebox.isolation`."""


class SetupError(IsolationError):
    """The sandbox could not be built; nothing ran."""


class EnforcementError(SetupError):
    """The host cannot enforce a layer that the policy requires; nothing ran."""


class ProtectionError(IsolationError):
    """A command has run, and what it made under a protected name could not be moved aside."""


class CommandNotFound(IsolationError):
    """The command does not exist in the sandbox (`code` ENOENT) or may not be executed (EACCES)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OperationError(IsolationError):
    """A file operation failed inside the sandbox. `code` is the errno's name or "EINVAL"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
