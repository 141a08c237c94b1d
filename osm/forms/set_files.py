"""Where a set's files lie: on this machine, or on servers, with local copies of what was fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.storage.cache import RemoteFolder


@dataclass(frozen=True)
class SetFiles:
    """Where a set's files lie, and how they are to be read.

    Attributes:
        name: of the set, for messages.
        image_dir, ann_dir, json_file: the pictures; label maps, panoptic PNGs or .mat files; the annotations.
        labels: the names of the ids: a table of the project or a json; None = those of `json_file`.
        flag: how a message calls a field, with `{}` for its name.
        row: the set's row: how its files are named, whether EXIF counts, which ids are ignored.
        filter_lvis_val: leave out the COCO train images that are in LVIS val; other sets are not touched.
        more: further files that a form takes, by field.
        called: fields that the user knows by another name.
        folders: the remote ones, by field; the field is then the local copy.
        given: the URLs of fields that are local copies.
    """

    name: str
    image_dir: str | Path
    row: Dataset
    ann_dir: str | Path | None = None
    json_file: str | Path | None = None
    labels: str | None = None
    flag: str = "--{}"
    filter_lvis_val: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, RemoteFolder] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)

    def flag_of(self, field_name: str) -> str:
        """What the user knows a field by."""
        return self.flag.format(self.called.get(field_name, field_name))

    def _value(self, field_name: str) -> Any:
        return self.more[field_name] if field_name in self.more else getattr(self, field_name)

    def where(self, field_name: str) -> str:
        """A field and its value, as a message begins."""
        return f"{self.flag_of(field_name)} {self.given.get(field_name, self._value(field_name))}"

    def recorded(self, field_name: str) -> str:
        """A field's absolute path, or its URL, as meta files have it."""
        return self.given.get(field_name) or str(Path(self._value(field_name)).resolve())

    def listed(self, field_name: str) -> list[str] | None:
        """The paths of the files in a remote folder; None where the server does not list them."""
        return self.folders[field_name].names

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetches those of the files that lie in remote folders; see `RemoteFolder.fetch`."""
        paths = list(paths) if self.folders else []
        for folder in self.folders.values():
            folder.fetch(path for path in paths if path.is_relative_to(folder.root))

    def folder(self, field_name: str) -> Path:
        """A field's folder. Raises OsmError where there is none."""
        value = getattr(self, field_name)
        if value is None or not Path(value).is_dir():
            raise OsmError(f"{self.where(field_name)}: there is no such folder")
        return Path(value)
