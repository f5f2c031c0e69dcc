"""Sizes and durations as people write them, to numbers."""

from __future__ import annotations

import os
import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?(/s)?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def parse_bytes(value: int | str) -> int:
    """`4096`, `"512M"`, `"4G"`, `"100MB/s"` to bytes; K, M, G, T are powers of 1024.

    Raises:
        ValueError: negative, or not a size; the text shows the accepted forms.
    """
    if isinstance(value, bool):
        raise ValueError("a size is a number or a text such as 512M, not true or false")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError(f"{value!r} is not a size; write 1048576, 512K, 4G or 100MB/s")
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def parse_seconds(value: float | str) -> float:
    """`3600`, `"30s"`, `"10m"`, `"1.5h"` to seconds.

    Raises:
        ValueError: zero, negative, or not a duration.
    """
    if isinstance(value, bool):
        raise ValueError("a duration is a number of seconds or a text such as 30s")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a duration; write 90, 30s, 10m or 1h")
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds < float("inf"):
        raise ValueError("a duration is more than zero")
    return seconds


def parse_cores(value: float | str) -> float:
    """`0.5` cores, or `"90%"` of those that this process may run on.

    Raises:
        ValueError: zero, negative, over 100 %, or neither.
    """
    if isinstance(value, bool):
        raise ValueError("CPUs are a number of cores or a share such as 90%")
    if isinstance(value, int | float):
        return float(value)
    match = _SHARE.fullmatch(value.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{value!r} is no number of CPUs; write 0.5, 2, or 90% of this machine's")
    return round(share * len(os.sched_getaffinity(0)), 3)
