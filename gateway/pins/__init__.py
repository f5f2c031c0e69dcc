"""What tool servers said of themselves when a person last looked, and whether they still say it.

`store` is the file that remembers; `launch` is what is started; `Pins` compares one server with its
pins, and a `Watch` does so for one session of it: what has changed is withheld until it is accepted
(`purple pins`).
"""

from __future__ import annotations

from .pins import KINDS, Pins
from .store import PinError, PinStore, default_path
from .watch import Watch

__all__ = ["KINDS", "PinError", "PinStore", "Pins", "Watch", "default_path"]
