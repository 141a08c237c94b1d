"""The stored results of `families.py`, and the section of docs/families.md that is generated from them."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "benchmarks" / "families" / "llms.json"
PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- made by benchmarks/families.py: LLMs -->", "<!-- end: LLMs -->"
COLUMNS = ("build", "embeddings", "training", "generate", "decoder", "save/load")


def read_outcomes(path: Path) -> dict[str, Any]:
    """Return the stored results, or an empty mapping if there are none."""
    if not path.is_file():
        return {"versions": {}, "families": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write_outcomes(path: Path, outcomes: dict[str, Any], order: list[str]) -> None:
    """Write the results atomically, in the order of the table."""
    outcomes["versions"] = {name: version(name) for name in ("torch", "transformers")}
    found = outcomes["families"]
    outcomes["families"] = {name: found[name] for name in order if name in found}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def section(outcomes: dict[str, Any]) -> str:
    """Return the table in Markdown, followed by the error messages of the refused LLMs."""
    versions = " and ".join(f"{name} {number}" for name, number in outcomes["versions"].items())
    lines = [f"{len(outcomes['families'])} LLM families were tested with {versions}.", ""]
    lines += [f"| family | variant | {' | '.join(COLUMNS)} | not used |", f"|---|---|{'---|' * (len(COLUMNS) + 1)}"]
    notes: dict[str, list[str]] = {}
    for name, variants in outcomes["families"].items():
        for variants_said, found in _together(variants):
            cells = []
            for column in COLUMNS:
                kind, _, said = found.get(column, "-").partition(": ")
                if said:
                    notes.setdefault(said.replace("|", "\\|"), []).append(f"{name}, {variants_said}")
                cells.append(kind)
            lines.append(f"| {name} | {variants_said} | {' | '.join(cells)} | {found.get('slow', '')} |")
    if notes:
        lines += ["", "Error messages of the refused LLMs:", "", "```text"]
        lines += [f"- {'; '.join(dict.fromkeys(where))}: {said}" for said, where in notes.items()]
        lines += ["```"]
    return "\n".join(lines)


def _together(variants: dict[str, dict[str, str]]) -> list[tuple[str, dict[str, str]]]:
    """Merge the rows of a family into one if all variants have the same result."""
    each = list(variants.values())
    if all(found == each[0] for found in each):
        return [("both", each[0])]
    return list(variants.items())


def write_section(page: Path, outcomes: dict[str, Any]) -> None:
    """Replace the section between its two marks, and keep the rest of the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{section(outcomes)}\n\n{END}{after}", encoding="utf-8")
