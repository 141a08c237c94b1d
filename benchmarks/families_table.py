"""The kept outcomes of `families.py`, and the section of docs/families.md that is made from them."""

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
    """The outcomes so far; empty where there are none."""
    if not path.is_file():
        return {"versions": {}, "families": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write_outcomes(path: Path, outcomes: dict[str, Any], order: list[str]) -> None:
    """Writes the outcomes in the table's order; a run that is killed leaves the file before or the file after."""
    outcomes["versions"] = {name: version(name) for name in ("torch", "transformers")}
    found = outcomes["families"]
    outcomes["families"] = {name: found[name] for name in order if name in found}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def section(outcomes: dict[str, Any]) -> str:
    """The table as Markdown, and below it the sentences of what is refused."""
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
    """One row where all variants have the same outcome."""
    each = list(variants.values())
    if all(found == each[0] for found in each):
        return [("both", each[0])]
    return list(variants.items())


def write_section(page: Path, outcomes: dict[str, Any]) -> None:
    """Writes the section between its two marks anew; the rest of the page stays."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{section(outcomes)}\n\n{END}{after}", encoding="utf-8")
