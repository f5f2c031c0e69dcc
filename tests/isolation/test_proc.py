"""/proc of a sandbox shows the sandbox's processes, whichever way the kernel offers to mount it."""

from __future__ import annotations

import subprocess
import sys

import pytest

MOUNT = """
import os, sys
from purplebox.isolation import libc, mounts
if sys.argv[1] == "old":
    found = os.uname()
    os.uname = lambda: os.uname_result((*found[:2], "6.16.3-generic", *found[3:]))
    real = libc.mount
    def mount(source, target, kind=None, flags=0, data=""):
        assert "pidns" not in data  # such a kernel would log it, at each sandbox
        real(source, target, kind, flags, data)
    libc.mount = mount
uid, gid = os.geteuid(), os.getegid()
libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
libc.unshare(libc.CLONE_NEWPID)
reader, writer = os.pipe()
pid_1 = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
mounts.mount_proc(pid_1, held_by_landlock=False)
print(sorted(filter(str.isdigit, os.listdir("/proc"))), open("/proc/1/comm").read().strip())
print(bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY), bool(os.statvfs("/proc").f_flag & os.ST_RDONLY))
"""


@pytest.mark.parametrize("kernel", ["this", "old"])
def test_it_is_that_of_pid_1(kernel: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", MOUNT, kernel], check=True, capture_output=True, text=True
    ).stdout
    assert said == "['1'] cat\nTrue False\n"
