"""Python functions that run in a sandbox: `ship` packs one on the host's side, `inside` unpacks and
runs it there, `values` carries arguments and results, `run` is what a call of it does."""

from __future__ import annotations

from .run import in_sandbox, value_of
from .ship import NotShippable, Shipment
from .values import NotPlain

__all__ = ["NotPlain", "NotShippable", "Shipment", "in_sandbox", "value_of"]
