#!/usr/bin/env python3
"""Compares the accuracy and the time of four ways to name the same masks, one free and three with a list of names.

`free` generates any name. The others choose among the dataset's own classes and their spellings: `constrained` searches
for the most likely name, `scored` computes the likelihood of every name, and `mapped` generates a free name and then
chooses the nearest name. Acc is the published accuracy. The expected calibration error is that of the probabilities as
reported, before and after the calibration, in 10 bins with equal numbers of masks. The last line of the output is a
JSON document.

    python3 benchmarks/vocabularies.py runs/osm_small/final --datasets sets.yaml --sets camvid,clothing
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from osm.datasets.table import ANY_MODE, Dataset, DatasetTable  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.evaluation.metrics import accepted_forms, in_vocabulary, normalize  # noqa: E402
from osm.evaluation.metrics.calibration import calibrate_by_mass  # noqa: E402
from osm.forms import split_of  # noqa: E402
from osm.recognition.recognizer import METHODS, Recognizer, load_recognizer  # noqa: E402


def measure(
    recognizer: Recognizer, row: Dataset, method: str, limit: int | None, wanted: Sequence[str] = ("own", ANY_MODE)
) -> dict[str, Any]:
    """Return the counts of one dataset, named in one way and in the given modes."""
    split = split_of(row)
    modes = [row.name if mode == "own" else mode for mode in wanted]
    classes = list(row.label_set.classes.values())
    options: dict[str, Any] = {} if method == "free" else {"vocabulary": classes, "method": method}
    right: dict[str, list[bool]] = {mode: [] for mode in modes}
    probs: dict[str, list[float]] = {mode: [] for mode in modes}
    calibrated: dict[str, list[float | None]] = {mode: [] for mode in modes}
    outside, masks, seconds = dict.fromkeys(modes, 0), 0, 0.0
    for index in range(min(len(split), limit or len(split))):
        item = split.load(index)
        found = [(label, item.mask(k)) for k, label in enumerate(item.annotations) if item.mask(k).any()]
        image = item.image()
        begun = time.monotonic()
        masks_of = [np.stack([mask for _, mask in found])] if found else []
        boxed = split.form.boxed
        answers = recognizer.name_batch([image], masks_of, modes=modes, boxed=boxed, **options)[0] if found else []
        seconds += time.monotonic() - begun
        for (annotation, _), regions in zip(found, answers, strict=True):
            accepted = accepted_forms(row.label_set[annotation[split.form.category_key]].names)
            masks += not regions[0].skipped
            for answer in regions:
                if not answer.skipped:
                    right[answer.mode].append(normalize(answer.text) in accepted)
                    probs[answer.mode].append(answer.prob)
                    calibrated[answer.mode].append(answer.calibrated_prob)
                    outside[answer.mode] += not in_vocabulary(answer.text, row.label_set)

    def errors(of: Mapping[str, list[Any]]) -> dict[str, float]:
        return {mode: calibrate_by_mass(np.array(of[mode]), np.array(right[mode])).ece or 0.0 for mode in modes}

    def rounded(values: Mapping[str, float]) -> dict[str, float]:
        return {("own" if mode == row.name else mode): round(value, 6) for mode, value in values.items()}

    return {
        "masks": masks,
        "accuracy": rounded({mode: sum(found) / masks for mode, found in right.items()}),
        "expected_calibration_error": rounded(errors(probs)),
        **({"after_calibration": rounded(errors(calibrated))} if recognizer.model.calibration else {}),
        "not_in_vocabulary": rounded({mode: count / masks for mode, count in outside.items()}),
        "seconds": round(seconds, 1),
        "names_per_second": round(len(modes) * masks / seconds, 2),
        "list": len({name for one in classes for name in one.names}),
    }


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("checkpoint")
    out.add_argument("--datasets", required=True, help="a YAML with the sets' val paths")
    out.add_argument("--sets", default="camvid,clothing")
    out.add_argument("--ways", default=",".join(["free", *METHODS]), help="[%(default)s]")
    out.add_argument("--modes", default=f"own,{ANY_MODE}", help="`own` is the set's mode [%(default)s]")
    out.add_argument("--limit", type=int, help="images of each set")
    out.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all cores")
    args = out.parse_args()
    try:
        if args.threads:
            torch.set_num_threads(args.threads)
        table = DatasetTable().with_yaml(args.datasets)
        recognizer = load_recognizer(args.checkpoint)
        cases, modes = [], args.modes.split(",")
        for name in args.sets.split(","):
            for method in args.ways.split(","):
                cases.append(
                    {"set": name, "way": method, **measure(recognizer, table[name], method, args.limit, modes)}
                )
                print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({"checkpoint": args.checkpoint, **machine, "cases": cases}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
