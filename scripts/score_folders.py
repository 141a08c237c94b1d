#!/usr/bin/env python3
"""Names the masks of folders in COCO panoptic format with a trained model, and prints the accuracy in both modes.

    python3 scripts/score_folders.py CHECKPOINT OUT coco=DATA/coco_panoptic/val coco:mini=DATA/coco_mini/val

A folder contains images/, panoptic/ and panoptic.json. The word before `=` is the mode that the folder is named in,
besides `any`, and optionally a title after a colon. For each folder, OUT receives the prediction files, which
`osm calibrate` and `osm report` also read. The table shows the accuracy in both modes with 95 % intervals, clustered by
image. Its last row pools all folders. The last line of the output is a JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from benchmarks.page_tables import with_interval  # noqa: E402
from osm.datasets.table import ANY_MODE, Dataset, DatasetTable  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402
from osm.evaluation.metrics.scores import Accuracy, score_masks  # noqa: E402
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, draws, middle  # noqa: E402
from osm.evaluation.predict.records import read_set  # noqa: E402
from osm.files import write_atomically  # noqa: E402

PARTS = 2
_ARGUMENT = re.compile(r"(?P<mode>[a-z][a-z0-9_]*)(?::(?P<title>[a-z0-9_]+))?=(?P<folder>.+)")


@dataclass(frozen=True)
class Folder:
    """A folder to name.

    Attributes:
        title: the title in the table, and the name of the folder of the predictions.
        mode: the mode that is used besides `any`, which is also the name of the dataset.
        place: the folder.
    """

    title: str
    mode: str
    place: Path

    @classmethod
    def of(cls, argument: str) -> Folder:
        """Parse an argument such as `coco:mini=DATA/coco_mini/val`. Raises OsmError if it is malformed."""
        match = _ARGUMENT.fullmatch(argument)
        if match is None:
            raise OsmError(f"{argument!r}: expected MODE=FOLDER or MODE:TITLE=FOLDER")
        place = Path(match["folder"]).resolve()
        missing = [name for name in ("images", "panoptic", "panoptic.json") if not (place / name).exists()]
        if missing:
            raise OsmError(f"{argument!r}: {place} has no {missing[0]}; expected images/, panoptic/ and panoptic.json")
        return cls(match["title"] or match["mode"], match["mode"], place)

    def write_table(self, path: Path) -> None:
        """Write the dataset table with this folder's row."""
        new = {} if self.mode in DatasetTable() else {"form": "coco_panoptic", "title": self.title}
        files = {"image_dir": "images", "mask_dir": "panoptic", "json_file": "panoptic.json"}
        row = {**new, **{field: str(self.place / name) for field, name in files.items()}}
        write_atomically(path, [yaml.safe_dump({"datasets": {self.mode: row}})])


def predict(checkpoint: str, folder: Folder, out: Path) -> Path:
    """Name a folder's masks in two processes of one thread each. Returns the path of its dataset table."""
    (out / folder.title).mkdir(parents=True, exist_ok=True)
    table = out / f"{folder.title}.yaml"
    folder.write_table(table)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, ROOT / "test/generate_pred.py"]
    more = [
        str(PARTS),
        checkpoint,
        out / folder.title,
        "--datasets",
        table,
        "--sets",
        folder.mode,
        "--num_threads",
        "1",
    ]
    runs = [subprocess.Popen([*words, str(part), *more], env=environment) for part in range(PARTS)]
    if any([run.wait() for run in runs]):
        raise OsmError(f"{folder.title}: the predictions failed")
    return table


def right_names(row: Dataset, predictions: Path) -> ImageSums:
    """Return the per-image sums of correct names in the folder's own mode and in `any`."""
    records = read_set(row, predictions, PARTS)
    own, anyone = (score_masks(records, mode, metrics=[Accuracy()]) for mode in (row.name, ANY_MODE))
    columns = {"own": own.columns["acc"], ANY_MODE: anyone.columns["acc"]}
    return ImageSums(own.images, records.image_count, columns)


def pooled(sums: list[ImageSums]) -> ImageSums:
    """Return the sums of all folders together."""
    found = ImageSums(np.zeros(0, int), 0, {key: np.zeros(0) for key in sums[0].keys})
    found.sums = np.concatenate([one.sums for one in sums])
    found.counts = np.concatenate([one.counts for one in sums])
    return found


def figures(sums: ImageSums, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the accuracy in both modes, and the accuracy in `any` minus the accuracy in the own mode."""
    rates = {key: rate.as_json() for key, rate in sums.rates(bootstrap).items()}
    value = rates[ANY_MODE]["value"] - rates["own"]["value"]
    if rates["own"]["interval"] is None:  # a single image
        return {**rates, "gap": {"value": value, "interval": None}}
    gaps = [
        rates_S2[:, 1] - rates_S2[:, 0]
        for weights in draws(len(sums.sums), bootstrap)
        for rates_S2 in [(weights @ sums.sums) / (weights @ sums.counts)]
    ]
    return {**rates, "gap": {"value": value, "interval": middle(np.concatenate(gaps))}}


def line(title: str, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [with_interval(found["own"]), with_interval(found[ANY_MODE]), with_interval(found["gap"], "+")]
    return f"| {title} | {found['own']['images']} | {found['own']['masks']} | {' | '.join(cells)} |"


def _main(args: argparse.Namespace) -> None:
    folders = [Folder.of(argument) for argument in args.folders]
    titles = [folder.title for folder in folders]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise OsmError(f"two folders have the title {twice!r}; give titles, such as {twice}:one=... {twice}:two=...")
    args.out.mkdir(parents=True, exist_ok=True)
    found, sums = {}, []
    for folder in folders:
        table = predict(args.checkpoint, folder, args.out)
        sums.append(right_names(DatasetTable().with_yaml(table)[folder.mode], args.out / folder.title))
        found[folder.title] = figures(sums[-1], Bootstrap())
    if len(folders) > 1:
        found["all"] = figures(pooled(sums), Bootstrap())
    print("| folder | images | masks | own mode Acc | `any` Acc | difference |\n|---|---|---|---|---|---|")
    print("\n".join(line(title, one) for title, one in found.items()))
    print(json.dumps({"checkpoint": args.checkpoint, "folders": found}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a trained model: a folder, or the name of a model of the package")
    parser.add_argument("out", type=Path, help="folder of the predictions")
    parser.add_argument("folders", nargs="+", metavar="MODE[:TITLE]=FOLDER")
    return run_command(_main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
