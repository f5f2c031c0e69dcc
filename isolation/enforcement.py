"""What is enforced, layer by layer, as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .plan import Plan

Status = Literal["full", "partial", "none"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: how much of it holds, and why not more (empty when full).

    Attributes:
        held_by: The layer that holds all that this one lets through, where it is full; "" for none.
    """

    status: Status
    reason: str = ""
    held_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Enforcement:
    """The layers of one sandbox, by name."""

    layers: Mapping[str, Layer]

    def to_json(self) -> dict[str, dict[str, str]]:
        """`{layer: {"status": …, "reason": …}}`, for results, records and spans."""
        return {
            name: {"status": layer.status, "reason": layer.reason}
            for name, layer in self.layers.items()
        }

    def missing(self, required: tuple[str, ...]) -> list[str]:
        """A sentence for every required layer that is not full, nor held by another that is."""
        return [
            f"layer {name} is {self.layers[name].status}: {self.layers[name].reason}"
            for name in required
            if not self._is_held(self.layers[name])
        ]

    def _is_held(self, layer: Layer) -> bool:
        other = self.layers.get(layer.held_by)
        return layer.status == "full" or (other is not None and other.status == "full")


def enforcement_of(found: Mapping[str, Any], plan: Plan) -> Enforcement:
    """What holds, from what the keeper `found`: `cgroup` (version, reason) and `landlock_abi`."""
    group, abi = found["cgroup"], found["landlock_abi"]
    limited = any(v is not None for v in (plan.memory_bytes, plan.cpu_cores, plan.processes))
    if group["version"] == 0:
        cgroup = Layer(
            status="partial" if limited else "none",
            reason=f"{group['reason']}; memory and processes are held by rlimits and a watcher, "
            "CPU and block I/O are not",
        )
    else:
        cgroup = Layer(status="partial" if group["reason"] else "full", reason=group["reason"])
    if abi == 0:
        landlock = Layer(
            status="none", reason="the kernel has no Landlock; boot with lsm=landlock,…"
        )
    elif abi < 3:
        landlock = Layer(
            status="partial", held_by="mounts",
            reason=f"ABI {abi} cannot hold truncate(2), which mounts hold alone; Linux 6.2 can",
        )  # fmt: skip
    else:
        landlock = Layer(status="full")
    full = Layer(status="full")
    if not plan.namespaces:
        return _without_namespaces(landlock, cgroup, abi)
    return Enforcement(
        layers={
            "namespaces": full, "mounts": full, "capabilities": full, "landlock": landlock,
            "seccomp": full, "cgroup": cgroup, "network": full,
        }
    )  # fmt: skip


def _without_namespaces(landlock: Layer, cgroup: Layer, abi: int) -> Enforcement:
    if 0 < abi < 6:
        landlock = Layer(
            status="partial",
            reason=f"without namespaces, ABI {abi} cannot hold {'truncate(2) and ' if abi < 3 else ''}"
            "signals to your other processes; Linux 6.12 can",
        )
    namespaces = Layer(
        status="none",
        reason="none can be had here: the command has your own user id, and your other processes are "
        "beside it, held apart by Landlock alone",
    )
    mounts = Layer(
        status="none",
        reason="Landlock decides what can be opened, but names, sizes and owners of all files can be "
        "seen; filesystem.hide, protect and tmp_size are not held",
    )
    full = Layer(status="full")
    root = Layer(
        status="partial",
        reason="the command's user id is root's, though without any capability",
    )
    return Enforcement(
        layers={
            "namespaces": namespaces, "mounts": mounts,
            "capabilities": full if os.geteuid() else root, "landlock": landlock,
            "seccomp": full, "cgroup": cgroup, "network": full,
        }
    )  # fmt: skip
