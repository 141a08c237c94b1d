"""Interpret values in untrusted JSON files.

For example, "1" and 1.0 are read as the integer 1, and a flag may be `false`, 0 or "0".
"""

from __future__ import annotations

import json
import math
import numbers
import sys
from typing import Any

_DIGITS = 38  # The maximum number of digits of an integer. No id is longer.


def whole(value: Any) -> int | None:
    """Convert an integer, a float with an integer value, or a string containing such a number to an integer.

    Returns:
        The integer, or None for all other values, including True and False.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit():
            return int(text) if len(digits) <= _DIGITS else None
        value = finite(text)  # "1.0"
    if isinstance(value, numbers.Real) and math.isfinite(value) and float(value).is_integer():
        return int(float(value))
    return None


def finite(value: Any) -> int | float | None:
    """Convert a number, or a string containing a number, to a finite number. Return None for any other value."""
    if type(value) in (int, float):
        return value if abs(value) <= sys.float_info.max else None  # The comparison is also false for NaN.
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            number = float(value) if len(value) < 100 and value.isascii() and "_" not in value else math.nan
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return None


def truth(value: Any) -> bool | None:
    """Convert a flag such as `iscrowd` to a bool, or return None if the value is invalid.

    Valid values are True, False, 0, 1, a string containing one of these, and null, which means False.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        return {"": False, "0": False, "false": False, "1": True, "true": True}.get(value.strip().lower())
    number = finite(value)
    return None if number not in (0, 1) else bool(number)


def storable(value: Any) -> bool:
    """Return whether a value can be stored in a sample's JSON.

    NaN, infinity and lists that contain themselves cannot be stored.
    """
    if isinstance(value, (int, str)) or value is None:
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def side(value: Any) -> int | None:
    """Convert a width or height from a JSON file to an integer, or return None if it is not a positive integer."""
    number = whole(value)
    return number if number is not None and number > 0 else None
