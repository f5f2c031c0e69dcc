"""Several ids in one sandbox: the ranges that /etc/subuid and /etc/subgid grant, mapped by shadow's helpers.

With them a policy's `user: root` is root of the sandbox's user namespace: its id 0 is the caller's own,
1 and above are subordinate ones, which nobody else has. So programs that install as root (tar, chown,
install, fakeroot's work) do on granted files what they mean. Sources: subuid(5), newuidmap(1),
user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import os
import pwd

from . import libc
from .errors import SetupError

# What chown, chmod, tar, su and kill among the sandbox's own ids need; nothing of it reaches an id that
# is not mapped. Numbers of <linux/capability.h>.
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID = 0, 1, 3, 4, 5, 6, 7
KEPT = frozenset((CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID))
_MOST = 65535  # with 0 all ids of 16 bits, which is what archives and packages use
# A keeper has no PATH; the last is NixOS's, where setuid programs are.
_PLACES = ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin")


def id_maps(etc: str = "/etc") -> tuple[str, ...]:
    """newuidmap's path and its arguments after the pid, newgidmap's path and arguments.

    Empty where the caller is root, whose sandboxes have one id that nobody has; where no range is granted
    to the caller; and where the helpers are not installed.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return ()
    found: list[str] = []
    for helper, table, own in (("newuidmap", "subuid", uid), ("newgidmap", "subgid", gid)):
        path = next((f"{p}/{helper}" for p in _PLACES if os.access(f"{p}/{helper}", os.X_OK)), None)
        granted = _range(f"{etc}/{table}", uid)
        if path is None or granted is None:
            return ()
        start, count = granted
        found += [path, f"0 {own} 1 1 {start} {min(count, _MOST)}"]
    return tuple(found)


def _range(path: str, uid: int) -> tuple[int, int] | None:
    """The first range that the table grants to a user, by name or by number."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        with open(path) as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        return None
    for line in lines:
        if len(line) == 3 and line[0] in names and line[1].isdigit() and line[2].isdigit():
            return int(line[1]), int(line[2])
    return None


def unshare_mapped(flags: int, maps: tuple[str, ...]) -> None:
    """unshare(2) with a user namespace whose ids are mapped as `id_maps` says.

    setgroups(2) stays denied in it: who may leave a group gets at files that keep that group out.

    Raises:
        SetupError: a helper refused.
        OSError: the kernel refused.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = os.getpid()
    helper = os.fork()  # from outside: only there the helpers may do it
    if helper == 0:
        code = 1
        try:
            os.close(writer)
            if os.read(reader, 1):
                code = 0
                for program, words in zip(maps[::2], maps[1::2], strict=True):
                    arguments = [program, str(process), *words.split()]
                    code = code or os.waitpid(os.posix_spawn(program, arguments, {}), 0)[1]
        finally:
            os._exit(1 if code else 0)
    os.close(reader)
    try:
        libc.unshare(flags)
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        os.write(writer, b"x")
    finally:
        os.close(writer)
        _, status = os.waitpid(helper, 0)
    if status:
        raise SetupError(
            f"{maps[0]} or {maps[2]} refused the ranges of /etc/subuid and /etc/subgid; see stderr"
        )
