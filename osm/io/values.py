"""Values of other people's jsons, read by what they mean: "1" and 1.0 are the integer 1, and `false` is no crowd."""

from __future__ import annotations

import json
import math
import numbers
import sys
from typing import Any

_DIGITS = 38  # an id of more is no id: Python reads integers of thousands of digits


def whole(value: Any) -> int | None:
    """The integer that a value stands for: an integer, a float without a fraction, or a text of one; else None.

    A truth value is no number.
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
    """The finite number that a value stands for: a number that a float can hold, or a text of one; else None."""
    if type(value) in (int, float):
        return value if abs(value) <= sys.float_info.max else None  # false for nan, too
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
    """What a flag like `iscrowd` says: a truth value, 0 or 1, a text of one of these, or nothing (false); else None."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        return {"": False, "0": False, "false": False, "1": True, "true": True}.get(value.strip().lower())
    number = finite(value)
    return None if number not in (0, 1) else bool(number)


def storable(value: Any) -> bool:
    """Whether a value can stand in a sample's json: NaN and infinity cannot, nor can what is nested without end."""
    if isinstance(value, (int, str)) or value is None:
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def side(value: Any) -> int | None:
    """The width or height that a json states; None where it states none (absent, no number, 0 or -1)."""
    number = whole(value)
    return number if number is not None and number > 0 else None
