"""Numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite_or_none(value: Any) -> float | None:
    """A number as a float; None for values of a table that are no finite number (None, NaN, pandas' NA, text)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def number_text(value: Any, digits: int = 3) -> str:
    """A number with this many decimals; a dash if there is none."""
    number = finite_or_none(value)
    return "\N{EN DASH}" if number is None else f"{number:,.{digits}f}"


def interval_text(row: Mapping[Any, Any], value: str, low: str, high: str) -> str | None:
    """`0.700 [0.640, 0.760]` from three columns of a row; None unless all three have numbers."""
    numbers = [number for name in (value, low, high) if (number := finite_or_none(row.get(name))) is not None]
    return "{:.3f} [{:.3f}, {:.3f}]".format(*numbers) if len(numbers) == 3 else None
