"""Every command and YAML that the docs show is one that the project takes."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path

import page_tables
import pytest
import shipped_tables
import speed_tables
import yaml
from page_tables import with_tables

from osm import completion, fetch, finetune, quickstart
from osm.config import load_yaml
from osm.datasets.table import DatasetTable
from osm.evaluation import calibrate_cli, evaluate_cli, reproduce
from osm.evaluation.bench import bench_cli
from osm.evaluation.predict import generate_cli
from osm.evaluation.report import report_cli
from osm.evaluation.scoring import proposals_cli as scoring_cli
from osm.labeling import folder_cli, label_cli, name_cli, review_cli, sample_photos
from osm.models.model_config import load_model_config
from osm.planning import plan_cli
from osm.prepare import convert
from osm.prepare.originals import originals_cli as originals
from osm.serving import serve_cli
from osm.sharing import export_cli
from osm.synthetic import collages
from osm.synthetic.scenes import write as scenes
from osm.training import names_refit_cli, run_config, schema_cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "dataset_preparation" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMAND_PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "quickstart": quickstart.parser,
    "fetch": fetch.parser,
    "finetune": finetune.parser,
    "sample": sample_photos.parser,
    "completion": completion.parser,
    "plan": plan_cli.parser,
    "schema": schema_cli.parser,
    "scenes": scenes.parser,
    "collages": collages.parser,
    "prepare": convert.parser,
    "prepare_original": originals.parser,
    "demo": serve_cli.demo_parser,
    "serve": serve_cli.parser,
    "name": name_cli.parser,
    "label": label_cli.parser,
    "review": review_cli.parser,
    "folder": folder_cli.parser,
    "demo_with_sam.py": folder_cli.parser,
    "export": export_cli.export_parser,
    "import": export_cli.import_parser,
    "bench": bench_cli.parser,
    "calibrate": calibrate_cli.parser,
    "refit_names": names_refit_cli.parser,
    "compare": report_cli.compare_parser,
    "reproduce": reproduce.parser,
    "test/evaluate_proposals.py": scoring_cli.parser,
    "report": report_cli.report_parser,
    "picture": report_cli.picture_parser,
}
VARIABLES = {"SAVE_PATH": "shards", "DATA_PATH": "data", "i": "0", "GPU_COUNT": "8", "CKPT_PATH": "osm_final.pt"}


# `osm` commands that are a script's.
SAME_AS = {
    "train": "train/train.py",
    "generate": "test/generate_pred.py",
    "evaluate": "test/evaluate_pred.py",
    "evaluate_proposals": "test/evaluate_proposals.py",
    "prepare_panoptic": "dataset_preparation/convert_coco_panoptic_to_wds.py",
    "prepare_instances": "dataset_preparation/convert_coco_instances_to_wds.py",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command that calls one of our scripts, variables filled in."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"\$\{?(\w+)\}?", lambda m: VARIABLES.get(m[1], m[1].lower()), line)
                words = shlex.split(line, comments=True)
                end = words.index("&") if "&" in words else len(words)
                scripts = [k for k, word in enumerate(words) if word.endswith(".py")]
                if words[:1] == ["osm"] and words[1:]:
                    yield page.name, [SAME_AS.get(words[1], words[1]), *words[2:end]]
                elif scripts:
                    yield page.name, words[scripts[0] : end]


COMMANDS = list(commands())


def set_of(script: Path) -> str:
    """The set that a script of `dataset_preparation` is for."""
    text = (ROOT / "dataset_preparation" / script.name).read_text(encoding="utf-8")
    return text.split('main("')[1].split('"')[0]


def own_sets(folder: Path) -> Path:
    """All sets that the docs' YAML examples name, in one file."""
    rows = {}
    for page in PAGES:
        for block in blocks(page, "yaml"):
            rows.update(yaml.safe_load(block).get("datasets", {}))
    for row in rows.values():  # as the converter would have written it
        labels = folder / row.get("labels", row.get("json_file"))
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text('{"categories": [{"id": 1, "name": "road"}]}')
    path = folder / "sets.yaml"
    path.write_text(yaml.safe_dump({"datasets": rows}))
    return path


def test_the_docs_show_commands_of_every_script() -> None:
    shown = {Path(words[0]).name for _, words in COMMANDS}
    scripts = [*ROOT.glob("train/*.py"), *ROOT.glob("test/*.py"), *ROOT.glob("dataset_preparation/*.py")]
    assert {script.name for script in scripts} <= shown


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{Path(w[0]).name}" for page, w in COMMANDS])
def test_command_parses(page: str, words: list[str], tmp_path: Path) -> None:
    script, arguments = Path(words[0]), words[1:]
    here = [ROOT, ROOT / "dataset_preparation"]
    known = words[0] in COMMAND_PARSERS or any((folder / script).is_file() for folder in here)
    assert known, f"{page}: {script} is not in the project"
    sets = own_sets(tmp_path)
    if "--datasets" in arguments:
        arguments[arguments.index("--datasets") + 1] = str(sets)
    if "--start_from" in arguments:  # the weights are not here: a config of the project stands for theirs
        place = arguments.index("--start_from")
        arguments[place : place + 2] = [] if "--config" in arguments else ["--config", "osm_nano"]
    if words[0] in COMMAND_PARSERS:
        assert vars(COMMAND_PARSERS[words[0]]().parse_args(arguments))
    elif script.name == "train.py":
        run = run_config.parse(arguments)
        assert run.training.used_sets
    elif script.name == "generate_pred.py":
        table = DatasetTable().with_yaml(sets)
        assert generate_cli.generate_parser(table).parse_args(arguments).checkpoint
    elif script.name.startswith("convert_"):
        assert convert.parser(set_of(script)).parse_args(arguments).output_dir
    elif script.name.startswith("make_"):
        assert originals.parser(set_of(script)).parse_args(arguments).num_workers
    elif script.name == "evaluate_pred.py":
        # It has nothing to read here: a mistake in the call would be argparse's exit.
        assert evaluate_cli.evaluate_main([str(tmp_path / "none"), *arguments[1:]]) == 2
    else:
        assert script.name in {path.name for path in [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]}


def test_every_set_of_the_docs_is_a_row(tmp_path: Path) -> None:
    table = DatasetTable().with_yaml(own_sets(tmp_path))
    assert len(table) > len(DatasetTable())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_parses(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    if "datasets" in document:
        assert len(DatasetTable().with_yaml(path)) >= len(DatasetTable())
        return
    assert load_model_config(str(path)).input_size > 0
    if "training" in load_yaml(str(path)):
        sets = load_yaml(str(path))["training"].get("sets", {})
        arguments = ["--config", str(path), "--batch_size_coco", "2"]
        arguments += [word for name in ("coco", *sets) for word in (f"--{name}_shards", "x.tar")]
        assert run_config.parse(arguments).training.used_sets["coco"].batch_size == 2


def test_the_tables_of_plans_are_those_of_the_files() -> None:
    """`benchmarks/plan_tables.py` writes them."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import plan_tables
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    found = plan_tables.stored_tables()
    assert {name for lines in found.values() for name in lines} == {"recipes", "published", "datasets", "check"}
    for page, lines in found.items():
        text = (ROOT / page).read_text()
        assert plan_tables.with_tables(text, lines) == text, f"{page}: run benchmarks/plan_tables.py --tables"


TABLES = [
    ("serve_tables", "serving", "serving"),
    ("scale_tables", "scale", "scaling"),
    ("bench_tables", "benches", "benches"),
]


def tables_of(script: str, figures: str) -> dict[str, str]:
    found: dict[str, str] = importlib.import_module(script).tables(ROOT / "docs" / "benchmarks" / figures)
    return found


@pytest.mark.parametrize(("script", "figures", "page"), TABLES)
def test_the_tables_are_those_of_the_figures(script: str, figures: str, page: str) -> None:
    """`benchmarks/SCRIPT.py docs/benchmarks/FIGURES docs/PAGE.md` writes them."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    tables = tables_of(script, figures)
    assert tables and with_tables(text, tables) == text


@pytest.mark.parametrize("page", speed_tables.PAGES)
def test_the_speed_figures_are_those_of_the_measurements(page: str) -> None:
    """`benchmarks/speed_tables.py docs/benchmarks docs` writes them."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = speed_tables.PAGES[page](ROOT / "docs" / "benchmarks")
    assert blocks and with_tables(text, blocks) == text, f"{page}: run benchmarks/speed_tables.py docs/benchmarks docs"


@pytest.mark.parametrize("page", shipped_tables.PAGES)
def test_the_scores_of_the_included_model_are_the_measured_ones(page: str) -> None:
    """`benchmarks/shipped_tables.py docs/benchmarks .` writes them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = shipped_tables.PAGES[page](ROOT / "docs" / "benchmarks")
    assert tables and with_tables(text, tables) == text, f"{page}: run benchmarks/shipped_tables.py docs/benchmarks ."


def test_every_generated_block_of_a_page_belongs_to_a_table() -> None:
    """A block whose table was removed would keep its old figures."""
    made = {f"docs/{page}": set(blocks(ROOT / "docs" / "benchmarks")) for page, blocks in speed_tables.PAGES.items()}
    made |= {f"docs/{page}.md": set(tables_of(script, figures)) for script, figures, page in TABLES}
    for name, tables in shipped_tables.PAGES.items():
        made[name] = made.get(name, set()) | set(tables(ROOT / "docs" / "benchmarks"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = set(re.findall(r"<!-- end of (\w+) -->", text))
        assert marks <= made.get(page.relative_to(ROOT).as_posix(), set()), page


def test_the_readme_has_the_time_of_the_quickstart() -> None:
    found = re.search(r"the quickstart takes (\d+) minutes", (ROOT / "README.md").read_text(encoding="utf-8"))
    seconds = page_tables.read(ROOT / "docs" / "benchmarks" / "osm_nano" / "stages_42.json")["seconds"]
    always = sum(took for stage, took in seconds.items() if stage not in speed_tables.ONLY_FULL)
    assert found and int(found[1]) == round(always / 60)


def message_templates() -> list[str]:
    """Every string of the package, with a NUL in the place of each formatted value."""
    found = []
    for path in (ROOT / "osm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_of_the_troubleshooting_page_exist() -> None:
    """Except for a command, a flag, and the messages of the system and of PyTorch."""
    others = {"osm fetch osm_small", "--mode", "No space left on device", "CUDA out of memory"}
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    quoted = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell) if span not in others]
    assert len(quoted) > 10
    templates = message_templates()
    unknown = []
    for clause in {clause for span in quoted for clause in span.split("; ")}:
        pieces = [re.escape(piece.strip()) for piece in re.split(r"\.\.\.|\b[NMWH]\b", clause) if piece.strip(" :?")]
        pattern = re.compile(".*".join(pieces), re.DOTALL)
        if not any(pattern.search(template) for template in templates):
            unknown.append(clause)
    assert not unknown
