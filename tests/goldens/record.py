"""Records the goldens anew and says how much moved: `python tests/goldens/record.py [orders conversion ...]`.

A golden is recorded anew only for an intended change, in a commit of its own, with a line in docs/differences.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path[:0] = [str(path) for path in (TESTS.parent, TESTS, TESTS / "data", HERE)]

import golden_checkpoints  # noqa: E402
import golden_orders  # noqa: E402
import golden_predictions  # noqa: E402
import golden_shards  # noqa: E402

RECORDERS: dict[str, Callable[[Path], Any]] = {
    "orders": golden_orders.record_orders,
    "conversion": golden_shards.record_conversion,
    "reading": lambda _: golden_shards.record_reading(),
    "checkpoints": golden_checkpoints.record_checkpoints,
    "nano": lambda _: golden_predictions.record_nano(),
    "small": lambda _: golden_predictions.record_small(),
}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Flattens a golden into path -> value, so that two can be compared item by item."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)  # type: ignore[assignment]
    else:
        return {path: value}
    return {key: leaf for name, part in parts for key, leaf in leaves(part, f"{path}/{name}").items()}


def moved(before: Any, after: Any, tolerance: float = 0.0) -> list[str]:
    """Returns a line for each item that differs; numbers above 1 may differ by that share, others by `tolerance`."""
    old, new = leaves(before), leaves(after)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        one, other = old.get(key, "(nothing)"), new.get(key, "(nothing)")
        close = (
            isinstance(one, float) and isinstance(other, float) and abs(one - other) <= tolerance * max(1.0, abs(one))
        )
        if one != other and not close:
            lines.append(f"{key}: {one} -> {other}")
    return lines


def stored(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def main(names: list[str]) -> None:
    for name in names or RECORDERS:
        with tempfile.TemporaryDirectory() as folder:
            # Through json, as the stored one.
            found = json.loads(json.dumps(RECORDERS[name](Path(folder))))
        path = HERE / f"{name}.json"
        before = stored(name) if path.exists() else {}
        lines = moved(before, found)
        print(f"{name}: {len(lines)} of {len(leaves(found))} items moved", *lines[:20], sep="\n  ")
        path.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
