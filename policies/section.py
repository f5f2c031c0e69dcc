"""What every section of a policy is made of: strict, frozen, quantities with their units."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from .units import parse_bytes, parse_cores, parse_seconds

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Cores = Annotated[float, BeforeValidator(parse_cores)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


class Section(BaseModel):
    """A part of a policy: a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
