"""GPUs: the device nodes of each, and what drivers' libraries read about it. Looks, changes nothing.

A sandbox gets the nodes of the GPUs that its policy names; those of others are not in its view, which
is how container runtimes keep GPUs apart, too. Drivers' libraries are system software and seen anyway.
Nodes that drive a display (/dev/dri/card*, nvidia-modeset) are for nobody: computing needs none.

Under WSL2 one node, /dev/dxg, is all GPUs of the machine, and Windows's libraries are in /usr/lib/wsl.

Sources: kernel Documentation/gpu/drm-uapi.rst, "Render nodes"; Documentation/ABI/stable/sysfs-devices;
NVIDIA's driver README, "Device Node Access" and its MIG user guide; ROCm's "Running in containers";
igo95862/bubblejail#123 (/sys/module/nvidia), nolabs-ai/nono#673 and NVIDIA/OpenShell#710 (`Plan.names_threads`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

_NVIDIA = re.compile(r"nvidia(\d+)")
_RENDER = re.compile(r"renderD(\d+)")
# Of all GPUs of one maker together.
_NVIDIA_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
# libGLX and libnvidia-ml take the driver for absent without initstate and version.
_NVIDIA_FACTS = ("/sys/module/nvidia", "/sys/module/nvidia_uvm", "/sys/module/nvidia_drm")
_AMD_NODES = ("/dev/kfd",)
_AMD_FACTS = ("/sys/class/kfd/kfd", "/sys/devices/virtual/kfd", "/sys/module/amdgpu")
# Which memory and CPUs are near; which libraries implement an interface.
_DXG = "/dev/dxg"
_FACTS = (
    "/sys/devices/system/cpu", "/sys/devices/system/node",
    "/etc/OpenCL", "/etc/glvnd", "/etc/vulkan",
)  # fmt: skip


class Gpu(NamedTuple):
    """One GPU: its nodes, and files and directories that are to be read; absolute paths."""

    nodes: tuple[str, ...]
    read: tuple[str, ...]


def find_gpus(root: str = "") -> dict[int, Gpu]:
    """Every GPU of this host by its index: NVIDIA's by the number in their node's name, then those of
    others in the order of their render nodes.

    Args:
        root: Before each path that is looked at; not in what is returned.
    """
    addresses = _nvidia_addresses(root)
    found: dict[int, Gpu] = {}
    for number in _numbers(f"{root}/dev", _NVIDIA):
        nodes = (f"/dev/nvidia{number}", *_NVIDIA_NODES, *_mig_nodes(number, root))
        address = next((a for a, n in addresses.items() if n == number), None)
        found[number] = Gpu(nodes, (*_NVIDIA_FACTS, *(_pci(address, root) if address else ())))
    others: list[Gpu] = []
    for number in _numbers(f"{root}/dev/dri", _RENDER):
        name = f"renderD{number}"
        device = os.path.realpath(f"{root}/sys/class/drm/{name}/device")
        driver = os.path.basename(os.path.realpath(f"{device}/driver"))
        address = os.path.basename(device)
        read = [f"/sys/class/drm/{name}", device.removeprefix(root), *_pci(address, root)]
        if node := _text(f"{root}/sys/class/drm/{name}/dev"):
            read.append(f"/sys/dev/char/{node}")
        if driver == "nvidia" or address in addresses:
            if (gpu := found.get(addresses.get(address, -1))) is not None:  # the same one once more
                found[addresses[address]] = Gpu(
                    (*gpu.nodes, f"/dev/dri/{name}"), (*gpu.read, *read)
                )
            continue
        amd = driver == "amdgpu"
        others.append(
            Gpu(
                (f"/dev/dri/{name}", *(_AMD_NODES if amd else ())),
                (*read, *(_AMD_FACTS if amd else ())),
            )
        )
    if os.path.exists(root + _DXG):
        others.append(Gpu((_DXG,), ()))
    after = max(found, default=-1) + 1
    return {**found, **{after + n: gpu for n, gpu in enumerate(others)}}


def grant_gpus(
    wanted: Literal["none", "all"] | Sequence[int], root: str = ""
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes that a policy's `devices.gpu` gives, and what is to be read beside them.

    Args:
        wanted: `all` are those that there are and that the caller may open, which may be none.
        root: As for `find_gpus`.

    Raises:
        ValueError: an index that no GPU has, or whose nodes a sandbox of this caller could not open.
    """
    if wanted == "none":
        return (), ()
    gpus = find_gpus(root)
    if wanted != "all":
        if missing := [str(index) for index in wanted if index not in gpus]:
            there = f"it has {', '.join(map(str, gpus))}" if gpus else "it has none"
            raise ValueError(
                f"devices.gpu: this host has no GPU {', '.join(missing)} ({there}); "
                "name another, or load its driver"
            )
        for index in wanted:
            _check(index, gpus[index], root)
        chosen = [gpus[index] for index in wanted]
    else:
        chosen = [gpu for gpu in gpus.values() if _openable(root + gpu.nodes[0])]
    nodes = [node for gpu in chosen for node in gpu.nodes if os.path.exists(root + node)]
    read = [path for gpu in chosen for path in gpu.read]
    read += _FACTS if chosen else ()
    return _each_once(nodes), _each_once(p for p in read if os.path.lexists(root + p))


def _check(index: int, gpu: Gpu, root: str) -> None:
    uvm = "/dev/nvidia-uvm"
    if uvm in gpu.nodes and not os.path.exists(root + uvm):
        raise ValueError(
            f"devices.gpu: GPU {index} needs {uvm}, which is not there; run `nvidia-modprobe -u -c 0`"
        )
    for node in gpu.nodes:
        if os.path.exists(root + node) and not _openable(root + node):
            raise ValueError(
                f"devices.gpu: {node} of GPU {index} cannot be opened by a sandbox of yours; "
                "be in its group (sudo usermod -aG render $USER, then log in again)"
            )


def _openable(node: str) -> bool:
    """Whether a sandbox will be able to. Root's is nobody on the host but in their groups (origin.py)."""
    if os.geteuid() != 0:
        return os.access(node, os.R_OK | os.W_OK)
    status = os.stat(node)
    by_group = status.st_mode & 0o060 == 0o060 and status.st_gid != 0
    return status.st_mode & 0o006 == 0o006 or by_group


def _numbers(directory: str, pattern: re.Pattern[str]) -> list[int]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def _nvidia_addresses(root: str) -> dict[str, int]:
    """PCI address → number of the node."""
    base = f"{root}/proc/driver/nvidia/gpus"
    found: dict[str, int] = {}
    for address in os.listdir(base) if os.path.isdir(base) else ():
        if match := re.search(r"Device Minor:\s*(\d+)", _text(f"{base}/{address}/information")):
            found[address.lower()] = int(match[1])
    return found


def _mig_nodes(number: int, root: str) -> list[str]:
    """The nodes of a GPU's instances, by which the driver tells who may use which."""
    base = f"{root}/proc/driver/nvidia/capabilities/gpu{number}/mig"
    minors = [
        int(match[1])
        for directory, _, names in os.walk(base)
        if "access" in names
        and (match := re.search(r"DeviceFileMinor:\s*(\d+)", _text(f"{directory}/access")))
    ]
    return [f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in sorted(minors)]


def _pci(address: str, root: str) -> tuple[str, ...]:
    link = f"/sys/bus/pci/devices/{address}"
    if not os.path.exists(root + link):
        return ()
    return link, os.path.realpath(root + link).removeprefix(root)


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _each_once(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))
