#!/usr/bin/env python3
"""Tests about seventy towers of timm and open_clip with random weights, and writes docs/towers.md.

Towers that are already in the file of results are skipped, so a stopped run can be resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from tower_cases import CASES  # noqa: E402

from osm.command_parser import CommandParser  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.quiet import quiet_command  # noqa: E402
from osm.terminal import console_command  # noqa: E402


@quiet_command
@console_command
def main() -> int:
    parser = CommandParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/families/towers.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/towers.md", help="[%(default)s]")
    parser.add_argument("--only", default="", help="comma-separated names of towers")
    parser.add_argument("--timeout", type=float, default=300, help="in seconds per tower [%(default)s]")
    args = parser.parse_args()
    from tower_trials import towers_page, try_all

    from osm.files import write_output

    try:
        only = set(filter(None, args.only.split(",")))
        if unknown := only - {case.name for case in CASES}:
            raise OsmError(f"--only {','.join(sorted(unknown))}: no such tower among the cases")
        cases = [case for case in CASES if not only or case.name in only]
        document = try_all(cases, args.output, args.timeout)
        write_output(args.page, "--page", [towers_page(document, CASES)])
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wrong = [key for key, result in document["towers"].items() if result["outcome"] == "wrong"]
    print(f"{len(document['towers'])} towers, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
