"""`osm quickstart`: its stages fit together, a run goes on where it was, and (slow) the whole of it, killed once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import PATIENCE_S

import osm.cli
import osm.evaluation.evaluate_cli
import osm.evaluation.predict.generate_cli
import osm.evaluation.report.report_cli
import osm.prepare.convert
import osm.recognition.namer
import osm.synthetic.scenes.write
import osm.training.trainer
from osm import quickstart
from osm.command_stages import Stage
from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.quickstart import SHORT, QuickstartOptions, main, run, stages
from osm.synthetic.scenes.scene_names import FINE, SETS, categories
from osm.synthetic.scenes.write import SceneOptions
from osm.training.run_config import Run

pytestmark = pytest.mark.usefixtures("console")

KINDS = ("predictions", "held_out", "initial", "shuffle_masks", "blank_image")
TITLES = ["after training", "held-out pairs", "before training", "masks of other images", "grey images"]


# -- a dry run ---------------------------------------------------------------------------------------------------------


class DryRun:
    """Stands for the work behind each command: checks that what it reads is there, writes empty files, takes notes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scenes: dict[str, SceneOptions] = {}
        self.training: Run | None = None
        self.named: dict[str, list[tuple[str, int, int, str, Mapping[str, Any]]]] = {}
        self.report: dict[str, Any] = {}
        self.evaluated: list[str] = []
        monkeypatch.setattr(osm.synthetic.scenes.write, "write_scenes", self.draw)
        monkeypatch.setattr(osm.prepare.convert, "convert_set", self.convert)
        monkeypatch.setattr(osm.training.trainer, "train", self.train)
        monkeypatch.setattr(osm.recognition.namer, "load_namer", self.load_namer)
        monkeypatch.setattr(osm.evaluation.predict.generate_cli, "generate_predictions", self.generate_predictions)
        monkeypatch.setattr(osm.evaluation.evaluate_cli, "evaluate_folder", self.evaluate_folder)
        monkeypatch.setattr(osm.evaluation.report.report_cli, "write_report", self.write_report)
        monkeypatch.setattr(osm.evaluation.report.report_cli, "write_picture", self.write_picture)

    def draw(self, folder: Path, options: SceneOptions, workers: int | None) -> Path:
        self.scenes[folder.name] = options
        for name in ("images", "panoptic"):
            (folder / name).mkdir(parents=True)
        for name in options.sets:
            (folder / f"{name}.json").write_text(json.dumps({"categories": categories(name)}))
        return folder

    def convert(self, chosen: Any, source: Any, options: Any) -> None:
        assert Path(source.json_file).is_file() and Path(source.image_dir).is_dir() and Path(source.ann_dir).is_dir()
        assert Path(source.json_file).stem == Path(options.output_dir).name
        Path(options.output_dir).mkdir(parents=True)
        (Path(options.output_dir) / "000000000.tar").touch()

    def train(self, wanted: Run) -> None:
        self.training = wanted
        assert all(Path(chosen.shards).is_file() for chosen in wanted.training.used_sets.values())
        folder = Path(wanted.training.run_name)
        for name in ("initial", "final") if wanted.training.save_initial else ("final",):
            (folder / name).mkdir(parents=True)
        (folder / "log.jsonl").touch()

    def load_namer(self, checkpoint: str, config: str | None, device: str) -> Namespace:
        assert Path(checkpoint).is_dir() and config is None and device == "cpu"
        return Namespace(modes=(*SETS, "any"), checkpoint=Path(checkpoint).name)

    def generate_predictions(
        self, namer: Namespace, row: Dataset, part: int, parts: int, out_dir: str, **options: Any
    ) -> None:
        assert row.label_set.classes
        split = {Path(str(path)).parent.name for path in (row.image_dir, row.mask_dir, row.json_file)}
        note = (row.name, part, parts, "/".join((*split, namer.checkpoint)), options)
        self.named.setdefault(Path(out_dir).name, []).append(note)
        Path(out_dir).mkdir(exist_ok=True)

    def evaluate_folder(self, folder: Path, parts: int, table: Mapping[str, Dataset]) -> tuple[list[Any], list[str]]:
        assert parts == 2 and set(SETS) <= set(table)
        self.evaluated.append(folder.name)
        return [], []

    def write_report(
        self, out: Path, folders: Mapping[str, Path], parts: int, table: Mapping[str, Dataset], options: Any
    ) -> None:
        assert parts == 2 and set(SETS) <= set(table)
        self.report = {title: folder.name for title, folder in folders.items()}

    def write_picture(self, path: Path, folder: Path, parts: int, table: Mapping[str, Dataset], *_: Any) -> Path:
        assert folder.is_dir() and parts == 2 and set(SETS) <= set(table)
        path.touch()
        return path


def after_osm(command: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `-m osm` in a command, and after it."""
    place = next(k for k in range(len(command)) if command[k : k + 2] == ["-m", "osm"])
    assert command[0] == sys.executable
    return command[1:place], command[place + 2 :]


@pytest.mark.parametrize("changes", [{"full": True}, {}, SHORT], ids=["controls", "default", "short"])
def test_every_stage_has_what_it_needs(changes: dict[str, Any], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """All commands, parsed and led as far as the work itself."""
    options = QuickstartOptions(tmp_path / "out", seed=7, test_seed=70, processes=3, device="cpu", **changes)
    options.out.mkdir()
    quickstart.write_tables(options.out)
    dry = DryRun(monkeypatch)
    first, *others = stages(options)
    assert first.name == "photos" and first.optional and not any(stage.optional for stage in others)
    assert [after_osm(command)[1][0] for command in first.commands] == ["fetch", "sample"]
    for stage in others:
        for command in stage.commands:
            launcher, arguments = after_osm(command)
            assert bool(launcher) == (arguments[0] == "train")
            assert osm.cli.main(arguments) == 0, (stage.name, capsys.readouterr().err)

    test, held_out = dry.scenes["test"], dry.scenes["held_out"]
    assert (test.images, test.pairs, test.sets) == (options.test_images, "seen", SETS)
    assert (held_out.images, held_out.pairs, held_out.sets) == (options.held_out_images, "held_out", SETS)
    assert len({drawn.seed for drawn in dry.scenes.values()}) == len(dry.scenes) == 4
    assert all(drawn.held_out_seed == 0 for drawn in dry.scenes.values())
    assert {drawn.size for drawn in dry.scenes.values()} == {256}

    assert dry.training is not None
    training = dry.training.training
    assert set(training.used_sets) == set(SETS) < set(dry.training.model.modes)
    assert (training.seed, training.num_epochs, training.device) == (7, options.epochs, "cpu")
    used = {(chosen.train_num_samples, chosen.batch_size) for chosen in training.used_sets.values()}
    assert used == {(options.samples, options.batch_size)}

    kinds = KINDS if options.full else KINDS[:2]
    assert set(dry.named) == set(kinds)
    for kind, notes in dry.named.items():
        assert sorted(note[:3] for note in notes) == sorted((name, part, 2) for name in SETS for part in range(2))
        where = {"held_out": "held_out/final", "initial": "test/initial"}.get(kind, "test/final")
        alter = kind if kind in ("shuffle_masks", "blank_image") else "none"
        limit = None if kind in ("predictions", "held_out") else options.control_images
        assert {note[3] for note in notes} == {where}
        assert {(note[4]["alter"], note[4]["limit"]) for note in notes} == {(alter, limit)}
    assert dry.evaluated == ["predictions", "held_out"]
    assert dry.report == dict(zip(TITLES, kinds, strict=False))
    assert (options.out / "picture.jpg").exists()


def test_training_is_launched_on_the_processes_asked_for(tmp_path: Path) -> None:
    (command,) = next(
        stage for stage in stages(QuickstartOptions(tmp_path, processes=3)) if stage.name == "training"
    ).commands
    launcher = after_osm(command)[0]
    assert launcher[:2] == ["-m", "torch.distributed.run"]
    assert launcher[launcher.index("--nproc_per_node") + 1] == "3"


# -- stages that only touch files --------------------------------------------------------------------------------------


def step(name: str, code: str, *more: str) -> Stage:
    """A stage of one Python command, run beside a line of its own in `order`."""
    note = f"open('order', 'a').write({name + ' '!r}); "
    return Stage(name, "a test", [[sys.executable, "-S", "-c", note + code, *more]])


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)  # the command sets its own
    yield tmp_path / "out"
    signal.signal(signal.SIGTERM, handler)


def order() -> list[str]:
    return Path("order").read_text().split()


def test_a_failing_stage_is_named_and_the_next_run_goes_on(out: Path, monkeypatch: Any, capsys: Any) -> None:
    """As does a run that was killed: what is finished is on disk after every stage."""
    fails = "import os, sys; os.path.exists('mended') or sys.exit(3)"
    steps = [step("one", "pass"), step("two words", fails), step("three", "pass")]
    monkeypatch.setattr(quickstart, "stages", lambda options: steps)
    with pytest.raises(OsmError, match=r"stage 'two words' failed with exit code 3: .*python.* -c .*mended"):
        run(QuickstartOptions(out))
    assert order() == ["one", "two", "words"]
    assert list(json.loads((out / "stages.json").read_text())["seconds"]) == ["one"]
    assert main([str(out)]) == 3  # the stage's own code
    assert "error: stage 'two words' failed" in capsys.readouterr().err
    Path("order").unlink()
    Path("mended").touch()
    assert list(run(QuickstartOptions(out))) == ["one", "two words", "three"]
    assert order() == ["two", "words", "three"]
    printed = capsys.readouterr().out
    assert "[1/3] one: done before" in printed and "[2/3] two words: a test" in printed and "$ " in printed
    run(QuickstartOptions(out))
    assert order() == ["two", "words", "three"]


def test_an_optional_stage_may_fail_and_is_tried_again(out: Path, monkeypatch: Any, capsys: Any) -> None:
    steps = [replace(step("one", "import sys; sys.exit(2)"), optional=True), step("two", "pass")]
    monkeypatch.setattr(quickstart, "stages", lambda options: steps)
    assert list(run(QuickstartOptions(out))) == ["two"]
    assert "warning: [1/2] one: left out; stage 'one' failed with exit code 2" in capsys.readouterr().err
    run(QuickstartOptions(out))
    assert order() == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"config": "osm_flamingo_nano"}, "config"),
        (SHORT, "train_images, epochs, samples, test_images, held_out_images, control_images"),
    ],
)
def test_other_options_are_refused(changes: dict[str, Any], named: str, out: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(quickstart, "stages", lambda options: [step("one", "pass")])
    run(QuickstartOptions(out))
    with pytest.raises(OsmError, match=f"created with different values of {named}; choose a different folder"):
        run(QuickstartOptions(out, **changes))
    run(QuickstartOptions(out, device="cuda"))  # it changes no file's meaning
    assert order() == ["one"]


def test_both_parts_of_predictions_run_side_by_side(out: Path, monkeypatch: Any) -> None:
    """Each waits for the other to have begun."""
    code = (
        "import sys, time, pathlib; own, other = sys.argv[2:]; pathlib.Path(own).touch(); end = time.time() + 20\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.01); time.time() < end or sys.exit(4)"
    )
    commands = [[sys.executable, "-c", code, "generate", own, other] for own, other in (("a", "b"), ("b", "a"))]
    monkeypatch.setattr(quickstart, "stages", lambda options: [Stage("predictions", "two parts", commands)])
    assert list(run(QuickstartOptions(out))) == ["predictions"]


def test_a_part_that_is_killed_is_named_with_its_code(out: Path, monkeypatch: Any) -> None:
    """As where memory ends: the other part's code 0 says nothing."""
    kill = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", "generate"]
    commands = [[sys.executable, "-c", "pass", "generate"], kill]
    monkeypatch.setattr(quickstart, "stages", lambda options: [Stage("predictions", "two parts", commands)])
    with pytest.raises(OsmError, match=r"stage 'predictions' failed with exit code -9: .*os\.kill"):
        run(QuickstartOptions(out))


@pytest.mark.parametrize(("gpus", "chosen"), [(0, "cpu"), (1, "cpu"), (2, "cuda")])
def test_training_goes_to_gpus_where_every_process_has_one(gpus: int, chosen: str, out: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    (training,) = next(stage for stage in stages(QuickstartOptions(out)) if stage.name == "training").commands
    assert training[training.index("--device") + 1] == chosen
    (training,) = next(
        stage for stage in stages(QuickstartOptions(out, device="cuda:0")) if stage.name == "training"
    ).commands
    assert training[training.index("--device") + 1] == "cuda:0"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_what_was_started(name: str, out: Path, monkeypatch: Any, capsys: Any) -> None:
    code = "import os, signal, time; open('pid', 'w').write(str(os.getpid())); signal.signal(signal.SIGINT, "
    code += f"signal.SIG_IGN); os.kill(os.getppid(), signal.{name}); time.sleep(60)"
    monkeypatch.setattr(quickstart, "stages", lambda options: [step("long", code), step("next", "pass")])
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main([str(out)]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "the same command resumes" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert order() == ["long"]
    assert not (out / "stages.json").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--processes", "0"), ("--test_seed", "9"), ("--seed", "-1"), ("--epochs", "0")]
)
def test_wrong_flags_are_named(flag: str, value: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(out), flag, value]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} {value} must be ")
    assert not out.exists()


def test_a_file_in_place_of_the_folder_is_an_error(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.touch()
    assert main([str(out)]) == 2
    assert str(out) in capsys.readouterr().err


def test_the_summary(out: Path) -> None:
    figures = {"specific": {"acc": 0.456, "total": 11}, "agnostic": {"acc": None}, "either_vocabulary": {"acc": 1.0}}
    parts = {"parts_of_names": {"total": 8, "full_right": 2, "head_right": 6, "modifiers_right": 4}}
    results = {"after training": {FINE: figures}, "held-out pairs": {FINE: {**figures, **parts}}}
    (out / "report").mkdir(parents=True)
    (out / "report" / "results.json").write_text(json.dumps({"predictions": results}))
    text = quickstart.summary(QuickstartOptions(out), {"scenes": 30.0, "training": 120.0})
    cells = [line.split() for line in text.splitlines()]
    assert ["after", "training", FINE, "11", "45.6", "%", "-", "100.0", "%"] in cells
    assert "of 8, 25.0 % right in full, 75.0 % in the thing, 50.0 % in the attribute" in text
    assert "all: 2.5 minutes" in text and str(out / "report" / "report.html") in text


# -- the whole of it ---------------------------------------------------------------------------------------------------


# With OSM_WHOLE_QUICKSTART=1 (scripts/full_check.sh), the test runs `osm quickstart --short` in its real size.
SIZES: dict[str, int] = (
    {}
    if os.environ.get("OSM_WHOLE_QUICKSTART")
    else {"train_images": 48, "samples": 96, "test_images": 8, "held_out_images": 4, "control_images": 4}
)


def family(pid: int) -> list[int]:
    """A process and all that came of it; torchrun gives each of its workers a session of its own."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found = [pid]
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found


@pytest.mark.slow
def test_the_whole_killed_while_it_trains_and_started_again(tmp_path: Path) -> None:
    program = f"import sys; from osm import quickstart; quickstart.SHORT.update({SIZES}); sys.exit(quickstart.main())"
    command = [sys.executable, "-c", program, str(tmp_path / "out"), "--short", "--full", "--device", "cpu"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdout is not None
    seen = []
    for line in first.stdout:
        seen.append(line)
        if "process(es) on cpu; epochs" in line:
            break
    else:
        pytest.fail("it ended before training: " + "".join(seen[-20:]))
    for pid in family(first.pid):
        os.kill(pid, signal.SIGKILL)
    first.stdout.close()
    assert first.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    assert "training" not in json.loads((tmp_path / "out" / "stages.json").read_text())["seconds"]

    again = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    assert "[2/12] scenes: done before" in again.stdout
    options = QuickstartOptions(tmp_path / "out", full=True, **{**SHORT, **SIZES})
    record = json.loads((options.out / "stages.json").read_text())
    assert list(record["seconds"]) == [stage.name for stage in stages(options)]
    assert (options.out / "report" / "report.html").stat().st_size > 10_000
    with Image.open(options.out / "picture.jpg") as picture:
        assert picture.width > 500
    results = json.loads((options.out / "report" / "results.json").read_text())["predictions"]
    assert list(results) == TITLES
    for name in SETS:
        trained, before = (results[title][name]["specific"] for title in ("after training", "before training"))
        assert trained["total"] >= before["total"] > 0
    assert accuracy(results["after training"]) > accuracy(results["before training"])
    assert "after training" in again.stdout and "What to do next" in again.stdout


def accuracy(figures: Mapping[str, Any]) -> float:
    """In the sets' own modes, all masks together."""
    own = [figures[name]["specific"] for name in SETS]
    return float(sum(one["correct"] for one in own) / sum(one["total"] for one in own))
