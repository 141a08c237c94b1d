"""Names for classes of WordNet from a table of names, such as scripts/ordinary_names.yaml."""

from __future__ import annotations

from osm.evaluation.metrics.wordnet import WordNet


def everyday_name(wordnet: WordNet, table: dict[str, list[str]], class_id: str) -> str | None:
    """Return the name in the table whose synset is the fewest steps above a class, or None."""
    above = wordnet.above(int(class_id[1:]))
    steps = [(above[int(one[1:])], name) for name, synsets in table.items() for one in synsets if int(one[1:]) in above]
    return min(steps)[1] if steps else None
