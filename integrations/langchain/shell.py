"""The shell of LangChain's `ShellToolMiddleware`, in a sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The base of HostExecutionPolicy; only the implementations are exported by the package.
from langchain.agents.middleware._execution import BaseExecutionPolicy

from ...policies import Policy, load_policy


@dataclass
class PurpleExecutionPolicy(BaseExecutionPolicy):
    """One sandbox for the whole session, held by `purple run`: `cd` and variables stay, as the
    middleware promises.

    The session leaves one record. For a verdict and a record of each command, add `PurpleMiddleware`.
    The policy's `resources.timeout` does not end the session, the middleware's `command_timeout` ends
    a command; all other limits hold for the session as a whole.

    Attributes:
        policy: A `Policy`, or the name or path of a profile.
    """

    policy: Policy | str = "code-assistant"

    def spawn(
        self, *, workspace: Path, env: Mapping[str, str], command: Sequence[str]
    ) -> subprocess.Popen[str]:
        """Start the shell.

        Args:
            workspace: The directory that it sees.
            env: Added to the policy's environment.
            command: The shell and its arguments.

        Raises:
            PolicyError: there is no such profile.

        A sandbox that cannot be built says so on stderr and ends with status 125.
        """
        policy = self.policy
        if not isinstance(policy, Policy):
            policy = load_policy(policy, project=workspace)
        resources = policy.resources.model_copy(update={"wall_seconds": None})
        policy = policy.model_copy(update={"resources": resources, "extends": None})
        variables = [f"{name}={value}" for name, value in env.items()]
        inside = ["/usr/bin/env", *variables, *command] if variables else list(command)
        text = json.dumps(policy.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        # A policy without a file of its own: memory, read by the name of its descriptor.
        file = os.memfd_create("purple-policy")
        try:
            os.write(file, text.encode())
            os.lseek(file, 0, os.SEEK_SET)
            return subprocess.Popen(
                [
                    sys.executable, "-m", "purplebox.gateway.cli", "run", "-p", f"/dev/fd/{file}",
                    "-w", str(workspace), "--", *inside,
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", bufsize=1, cwd=workspace, pass_fds=(file,),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(file)
