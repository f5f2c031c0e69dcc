"""GPUs by index: which nodes are found, which a sandbox gets; with stand-ins, for few hosts have one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from purplebox.isolation import SetupError
from purplebox.isolation.devices import find_gpus, grant_gpus
from purplebox.isolation.plan import compile_plan
from purplebox.policies import load_policy

NVIDIA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / name[1:]).write_text(text)
        (root / name[1:]).chmod(0o666)


def pci(root: Path, address: str, driver: str, render: int | None = None) -> None:
    """A PCI device as sysfs shows it."""
    device = f"/sys/devices/pci0000:00/{address}"
    put(root, f"{device}/vendor", f"/sys/bus/pci/drivers/{driver}/bind")
    (root / device[1:] / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
    (root / f"sys/bus/pci/devices/{address}").symlink_to(f"../../../devices/pci0000:00/{address}")
    if render is None:
        return
    name = f"renderD{render}"
    put(root, f"/dev/dri/{name}", f"/dev/dri/card{render - 128}")
    put(root, f"{device}/drm/{name}/dev", text=f"226:{render}\n")
    (root / f"{device[1:]}/drm/{name}/device").symlink_to(f"../../../{address}")
    for directory, link in (("sys/class/drm", name), ("sys/dev/char", f"226:{render}")):
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / link).symlink_to(f"../../devices/pci0000:00/{address}/drm/{name}")


def two_nvidia(root: Path) -> None:
    put(
        root,
        *NVIDIA,
        "/dev/nvidia0",
        "/dev/nvidia1",
        "/dev/nvidia-modeset",
        "/dev/nvidia-caps/nvidia-cap12",
    )
    for number, address in enumerate(("0000:01:00.0", "0000:02:00.0")):
        put(
            root,
            f"/proc/driver/nvidia/gpus/{address}/information",
            text=f"Device Minor: \t {number}\n",
        )
    put(root, "/proc/driver/nvidia/capabilities/gpu1/mig/gi3/access", text="DeviceFileMinor: 12\n")
    pci(root, "0000:01:00.0", "nvidia", 129)
    pci(root, "0000:02:00.0", "nvidia", 130)  # fmt: skip


def test_a_gpu_has_its_nodes_and_none_of_another(tmp_path: Path) -> None:
    two_nvidia(tmp_path)
    put(tmp_path, "/sys/module/nvidia/initstate", "/sys/module/nvidia_uvm/initstate", text="live\n")
    nodes, read = grant_gpus([1], str(tmp_path))
    assert set(nodes) == {
        "/dev/nvidia1", *NVIDIA, "/dev/nvidia-caps/nvidia-cap12", "/dev/dri/renderD130",
    }  # fmt: skip
    assert {
        "/sys/devices/pci0000:00/0000:02:00.0", "/sys/bus/pci/devices/0000:02:00.0",
        "/sys/class/drm/renderD130", "/sys/dev/char/226:130",
        "/sys/module/nvidia", "/sys/module/nvidia_uvm",
    } == set(read)  # fmt: skip
    both, _ = grant_gpus("all", str(tmp_path))
    assert {"/dev/nvidia0", "/dev/nvidia1", "/dev/dri/renderD129"} < set(both)
    assert not {"/dev/nvidia-modeset", "/dev/dri/card1"} & set(both)
    assert grant_gpus("none", str(tmp_path)) == ((), ())


def test_other_makers_come_after_in_the_order_of_their_render_nodes(tmp_path: Path) -> None:
    two_nvidia(tmp_path)
    pci(tmp_path, "0000:00:02.0", "i915", 128)
    pci(tmp_path, "0000:03:00.0", "amdgpu", 131)
    put(tmp_path, "/dev/kfd", "/sys/devices/virtual/kfd/kfd/dev")
    assert sorted(find_gpus(str(tmp_path))) == [0, 1, 2, 3]
    assert grant_gpus([2], str(tmp_path))[0] == ("/dev/dri/renderD128",)
    nodes, read = grant_gpus([3], str(tmp_path))
    assert nodes == ("/dev/dri/renderD131", "/dev/kfd")
    assert "/sys/devices/virtual/kfd" in read


def test_what_is_not_there_or_cannot_be_opened_is_an_error_that_says_so(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(ValueError, match=r"no GPU 0 \(it has none\)"):
        grant_gpus([0], root)
    assert grant_gpus("all", root) == ((), ())
    put(tmp_path, "/dev/nvidia0", "/dev/nvidiactl")
    with pytest.raises(ValueError, match="nvidia-modprobe -u -c 0"):
        grant_gpus([0], root)
    put(tmp_path, *NVIDIA)
    with pytest.raises(ValueError, match=r"no GPU 1, 7 \(it has 0\)"):
        grant_gpus([0, 1, 7], root)
    assert grant_gpus([0], root)[0] == ("/dev/nvidia0", *NVIDIA)
    (tmp_path / "dev/nvidia0").chmod(0o400)
    with pytest.raises(ValueError, match=r"/dev/nvidia0 of GPU 0 cannot be opened.*its group"):
        grant_gpus([0], root)
    assert grant_gpus("all", root) == ((), ())


def test_a_policy_with_a_gpu_that_is_not_there_is_refused(workspace: Path) -> None:
    base = load_policy("base")
    policy = base.model_copy(update={"devices": base.devices.model_copy(update={"gpu": (99,)})})
    with pytest.raises(SetupError, match=r"devices\.gpu: this host has no GPU 99"):
        compile_plan(policy, workspace)


# A /dev of its own in a mount namespace of its own: stand-ins that can be told apart.
STAGE = """
import os, sys
from purplebox.isolation import libc

def own_mounts():
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)

def own_devices(stage, real):
    libc.mount("stage", stage, "tmpfs", 0, "mode=755")
    for name in ("shm", "pts", "dri"):
        os.mkdir(f"{stage}/{name}")
    libc.mount("/dev/shm", f"{stage}/shm", None, libc.MS_BIND)  # the workspace may be there
    same = {name: name for name in ("null", "zero", "full", "random", "urandom")}
    others = {"nvidia0": "zero", "nvidia1": "full", "nvidiactl": "null", "nvidia-uvm": "null", "nvidia-modeset": "null"}
    for name, source in {**same, **others}.items():
        open(f"{stage}/{name}", "w").close()
        libc.mount(f"/dev/{source}", f"{stage}/{name}", None, libc.MS_BIND)
    for number in (128, 129) if real else ():
        os.mknod(f"{stage}/dri/renderD{number}", 0o20660, os.makedev(1, 5))
        os.chmod(f"{stage}/dri/renderD{number}", 0o660)
        os.chown(f"{stage}/dri/renderD{number}", 0, 4242 + number - 128)
    libc.mount(stage, "/dev", None, libc.MS_BIND | libc.MS_REC)
"""
RUN = """
import asyncio, json
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

LOOK = '''
import errno, glob, json, os
def tried(path, flags=os.O_RDWR):
    try:
        fd = os.open(path, flags)
        return os.read(fd, 2).hex()
    except OSError as error:
        return errno.errorcode[error.errno]
names = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "dri/renderD128", "dri/renderD129"]
said = {name: tried("/dev/" + name) for name in names}
try:
    os.mknod("/tmp/made", 0o20666, os.makedev(1, 5))
    said["made"] = "ok"
except OSError as error:
    said["made"] = errno.errorcode[error.errno]
said["groups"] = os.getgroups()
import threading
going = threading.Event()
thread = threading.Thread(target=going.wait)
thread.start()
for path in (
    f"self/task/{thread.native_id}/comm", "self/comm", "1/comm", "1/mem", "1/oom_score_adj", "sysrq-trigger",
    "sys/kernel/core_pattern", "sys/kernel/hostname", "irq/default_smp_affinity"
):
    try:
        os.close(os.open("/proc/" + path, os.O_WRONLY))
        said[path.replace(str(thread.native_id), "TID")] = "ok"
    except OSError as error:
        said[path.replace(str(thread.native_id), "TID")] = errno.errorcode[error.errno]
going.set()
print(json.dumps(said))
'''
async def main():
    base = load_policy("base")
    for gpu in json.loads(sys.argv[2]):
        devices = base.devices.model_copy(update={"gpu": gpu if isinstance(gpu, str) else tuple(gpu)})
        policy = base.model_copy(update={"devices": devices, "require": ()})
        async with Engine(policy, Path(sys.argv[1])) as engine:
            result = await engine.run(["python3", "-c", LOOK])
            print(result.stdout.decode() or repr(result), end="")
own_mounts()
own_devices(sys.argv[3], sys.argv[4] == "real")
asyncio.run(main())
"""


def staged(
    tmp_path: Path, workspace: Path, *gpus: object, nodes: bool = False
) -> list[dict[str, object]]:
    stage = tmp_path / "dev"
    stage.mkdir()
    words = [str(workspace), json.dumps(gpus), str(stage), "real" if nodes else "bound"]
    ran = subprocess.run(
        [sys.executable, "-c", STAGE + RUN, *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_inside_are_the_granted_nodes_alone(tmp_path: Path, workspace: Path) -> None:
    none, first, second, both = staged(tmp_path, workspace, "none", [0], [1], "all")
    assert {none[f"nvidia{n}"] for n in (0, 1)} | {none["nvidiactl"]} == {"ENOENT"}
    assert (first["nvidia0"], first["nvidia1"], first["nvidiactl"]) == ("0000", "ENOENT", "")
    assert (second["nvidia0"], second["nvidia1"], second["nvidia-uvm"]) == ("ENOENT", "0000", "")
    assert (both["nvidia0"], both["nvidia1"], both["nvidia-modeset"]) == ("0000", "0000", "ENOENT")
    assert both["made"] == "EPERM"


def test_roots_sandbox_is_in_the_group_of_its_node_and_in_no_other(
    tmp_path: Path, workspace: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    without, with_it = staged(tmp_path, workspace, [0], [2], nodes=True)
    assert (without["dri/renderD128"], without["groups"]) == ("ENOENT", [])
    assert (with_it["dri/renderD128"], with_it["dri/renderD129"]) == ("0000", "ENOENT")
    assert len(list(with_it["groups"])) == 1  # type: ignore[call-overload]


def test_nvidias_library_may_name_its_threads_and_proc_is_held_all_the_same(
    tmp_path: Path, workspace: Path
) -> None:
    none, gpu = staged(tmp_path, workspace, "none", [0])
    assert (none["self/task/TID/comm"], none["self/comm"]) == ("EACCES", "EACCES")
    assert (gpu["self/task/TID/comm"], gpu["self/comm"]) == ("ok", "ok")
    for path in (
        "1/comm", "1/mem", "1/oom_score_adj", "sysrq-trigger", "sys/kernel/core_pattern",
        "sys/kernel/hostname", "irq/default_smp_affinity"
    ):  # fmt: skip
        assert gpu[path] in ("EACCES", "EPERM", "EROFS", "ENOENT"), (path, gpu[path])


def test_under_wsl_one_node_is_all_gpus(tmp_path: Path) -> None:
    put(tmp_path, "/dev/dxg")
    assert grant_gpus([0], str(tmp_path)) == (("/dev/dxg",), ())
    two_nvidia(tmp_path)
    assert grant_gpus([2], str(tmp_path))[0] == ("/dev/dxg",)
