"""What is enforced, layer by layer, as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["full", "partial", "none"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: how much of it holds, and why not more (empty when full)."""

    status: Status
    reason: str = ""


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
        """A sentence for every required layer that is not full."""
        return [
            f"layer {name} is {self.layers[name].status}: {self.layers[name].reason}"
            for name in required
            if self.layers[name].status != "full"
        ]
