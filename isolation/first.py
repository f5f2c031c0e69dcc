"""An engine's first sandbox: made before there is a plan, but for all in which plans differ.

Theory of operation
    `lay` makes it on a ground (ground.py): its namespaces, private mounts, /proc, and its pid 1, which
    moves into its cgroup and waits at a gate. That has executed nothing but pid1_*.S, and nobody has a
    way to it. When a plan comes, `complete` attaches what that grants and adds it to the ruleset; limits
    are set, and the filter is in the file that pid 1 will read. Then the gate is opened, and pid 1 closes
    itself as any other does. It serves one plan or none: for one that needs what cannot be had so late,
    it is ended and another is made in the usual way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from . import libc
from .lockdown import Gate, Home, create_ruleset, let_write, start_pid_1
from .marks import Marks
from .mounts import bound_private, furnish, granted_trees, mount_private, mount_proc, seal_root
from .netns import new_network
from .plan import FIRST, PRIVATE, Plan
from .slot import Slot


class First(Slot):
    """The zygote's account of it.

    Args:
        example: A plan that grants nothing, in whose view it is.
        group: Its cgroup's number; 0 for none.
    """

    def __init__(self, example: Plan, group: int) -> None:
        super().__init__(
            {"spawn": FIRST, "group": group, "terminal": [], "hide": [], "protect": []}
        )
        self._example = example
        self._ruleset: int | None = None
        self._gate: Gate | None = None

    def lay(self, home: Home, bpf: int, group: Callable[[], Sequence[int]]) -> None:
        """Make it; arguments as of `prepare`. Raises OSError; `abandon` undoes what had been done."""
        theirs = self.open_streams()
        try:
            self.network = new_network()
            home.leave(self.network)
            self._mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
            buried = granted_trees(self._example.buried)
            mount_private(self._example.tmp_bytes)
            furnish(None, buried, Marks())
            self._private = os.open("/tmp", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._ruleset = create_ruleset(self._example.landlock_abi)
            self._gate = Gate()
            self.pid_1 = start_pid_1(self._example, theirs, self._ruleset, bpf, group(), self._gate)
            self.pidfd = os.pidfd_open(self.pid_1)
            mount_proc(self.pid_1, held_by_landlock=self._ruleset is not None)
            seal_root()
        finally:
            home.come_back()
            for fd in theirs:
                os.close(fd)

    def serves(self, plan: Plan) -> bool:
        """Whether it can be completed for a plan, whose view must stand."""
        early = plan.network, plan.names_threads, plan.files, plan.authority
        if plan.io_bytes_per_second is not None:
            return False  # in v1 one cgroup more, into which its pid 1 would have to move
        if any(early) or any(map(_is_under_ours, plan.granted)):
            return False
        return plan.landlock_abi == self._example.landlock_abi and _can_go(plan)

    def complete(self, plan: Plan, home: Home, marks: Marks) -> None:
        """Have in it what a plan grants. Raises OSError; `abandon` ends it."""
        more = plan._replace(read=tuple(p for p in plan.read if p not in self._example.read))
        trees = granted_trees(more.granted)
        home.enter(self._mounts)
        try:
            bound_private(plan.tmp_bytes)
            furnish(plan.workspace, trees, marks)
            if self._ruleset is not None:
                let_write(self._ruleset, plan)
        finally:
            home.come_back()

    def go_on(self) -> None:
        """Let its pid 1 close itself. Call when it is complete and its limits are set."""
        if self._gate is not None:
            self._gate.open()
        self._let_go()

    def abandon(self) -> None:
        """As `Slot.abandon`."""
        super().abandon()
        self._let_go()

    def _let_go(self) -> None:
        if self._gate is not None:
            self._gate.close()
        if self._ruleset is not None:
            os.close(self._ruleset)
        self._gate = self._ruleset = None


def _is_under_ours(granted: str) -> bool:
    """Whether what each sandbox has of its own belongs on top of a granted tree, which would now cover it."""
    return f"{granted}/".startswith(("/proc/", "/dev/pts/")) or any(
        f"{own}/".startswith(f"{granted}/") for own in (*PRIVATE, "/proc", "/dev/pts")
    )


def _can_go(plan: Plan) -> bool:
    """Whether its command, which is in HOME, can go to the workspace when it is closed already."""
    # access(2) counts none of our capabilities, which it will not have.
    return plan.workspace is None or (plan.may_chdir and os.access(plan.workspace, os.X_OK))
