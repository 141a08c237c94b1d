"""The parts of a labeling run as its journal, from which other formats and the review page are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from osm.labeling.label_journal import LabelJournal, Record
from osm.labeling.parts.part_labeler import done_counts
from osm.labeling.parts.part_rows import part_records
from osm.labeling.parts.part_store import PartStore


class PartJournal(LabelJournal):
    """The finished images of a local output folder with parts. Images are numbered through all partitions.

    Args:
        out: the output folder, in which a run has written parts.
    """

    def __init__(self, out: Path) -> None:
        self.folder = LabelJournal.existing(out).folder
        self.store = PartStore(str(out))

    def records(self) -> Iterator[Record]:
        """Yield the finished images in the order of the input. Only one part is in memory at a time."""
        first, listed = 0, self.settings()["listed by workers"]
        current = ""
        for name in self.store.names("parts"):
            if not name.startswith("part-"):
                continue
            partition = name.split("-")[1]
            if listed and current and partition != current:
                first += done_counts(self.store, f".osm_label/done/{current}.json").numbers
            current = partition
            data = self.store.read(f"parts/{name}")
            assert data is not None
            for record in part_records(data, self.store.where(f"parts/{name}")):
                yield {**record, "number": record["number"] + first}


def open_journal(out: Path) -> LabelJournal:
    """Return the record of an earlier run in a local folder of labels, whether it has parts or not."""
    found = LabelJournal.existing(out)
    return PartJournal(out) if "listed by workers" in found.settings() else found
