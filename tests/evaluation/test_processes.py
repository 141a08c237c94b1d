"""Several processes: torchrun, `test_8gpu.sh`, SIGKILL; and parts that do not belong together."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S
from six_sets import AreaNamer, make, row_of

from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.generate_cli import _own_device, generate_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAKE = str(HERE / "fake_cli.py")
NAMES = ("lvis", "pc459")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "GPUS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join((str(ROOT), str(HERE)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def parts(root: Path, count: int) -> dict[str, bytes]:
    """The files of `NAMES` in so many parts, made in this process."""
    files = {}
    for name in NAMES:
        for part in range(count):
            path = generate_predictions(AreaNamer(), row_of(name), part, count, root / "here")
            files[path.name] = path.read_bytes()
    return files


def test_torchrun(root: Path) -> None:
    for name in NAMES:
        make(name, root, 5)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, FAKE, "auto", "auto", "my.pt", "out"]
    subprocess.run(command, cwd=root, env=environment(), check=True, capture_output=True, timeout=PATIENCE_S)
    assert {path.name: path.read_bytes() for path in root.glob("out/*_pred_*")} == parts(root, 2)
    assert evaluate_main(["out", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (
            ("auto", "auto"),
            {},
            "arguments `i` and `n` are 'auto': the environment variable RANK is not set; start the command",
        ),
        (("auto", "auto"), {"RANK": "0", "WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'"),
        (("auto", "auto"), {"RANK": "2", "WORLD_SIZE": "2"}, "part 2 of 2: parts are counted from 0"),
        (
            ("0", "auto"),
            {"RANK": "0", "WORLD_SIZE": "2"},
            "arguments `i` and `n` are '0 auto': expected two numbers, or 'auto auto'",
        ),
        (("auto", "2"), {}, "arguments `i` and `n` are 'auto 2': expected two numbers"),
    ],
)
def test_wrong_parts(
    root: Path,
    words: tuple[str, ...],
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make("pc459", root, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert generate_main([*words, "my.pt", "out"], lambda *_, **__: AreaNamer()) == 2
    assert message in capsys.readouterr().err


def test_each_process_has_its_own_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from osm.errors import OsmError

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _own_device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (_own_device("auto"), _own_device("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        OsmError, match="no GPU is left for local rank 1, because the number of available GPUs is 1; start torchrun"
    ):
        _own_device("auto")


@pytest.mark.parametrize("name", NAMES)
def test_sigkill(root: Path, name: str) -> None:
    make(name, root, 40)
    undisturbed = generate_predictions(AreaNamer(), row_of(name), 0, 1, root / "here").read_bytes()
    rng, target = random.Random(name), root / "out" / f"{name}_pred_0_of_1.json"
    killed = 0
    for _ in range(30):
        command = [sys.executable, FAKE, "0", "1", "my.pt", "out"]
        with subprocess.Popen(command, cwd=root, env=environment(PAUSE="0.02"), stderr=subprocess.PIPE) as run:
            partial = target.with_suffix(".partial.jsonl")
            before = partial.stat().st_size if partial.exists() else 0
            while run.poll() is None and (not partial.exists() or partial.stat().st_size <= before):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            run.kill()
        killed += run.returncode != 0
        if run.returncode == 0:
            break
    assert target.read_bytes() == undisturbed
    assert killed > 1


SCRIPT = ROOT / "scripts" / "test_8gpu.sh"


def script(root: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`test_8gpu.sh` with an interpreter that runs the fake in place of `test/*.py`."""
    python = root / "python"
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} {FAKE} "$@"\n')
    python.chmod(0o755)
    command = ["bash", str(SCRIPT), *words]
    given = environment(PYTHON=str(python), **more)
    return subprocess.run(command, cwd=root, env=given, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_script_on_two_gpus(root: Path) -> None:
    make("lvis", root, 5)
    (root / "my.yaml").write_text("datasets:\n  pc459: {title: Mine}\n")
    make("pc459", root, 5)
    flags = ("--datasets", "my.yaml", "--device", "cpu")
    failed = script(root, "my.pt", "out", *flags, GPUS="2", FAILING="1", CUDA_VISIBLE_DEVICES="5,GPU-ab,7")
    assert failed.returncode == 1 and not failed.stdout
    assert "part 0 sees 5\n" in failed.stderr and "part 1 sees GPU-ab\n" in failed.stderr
    assert failed.stderr.endswith("error: part 1 of 2 failed; the same command does what is left\n")
    done = script(root, "my.pt", "out", *flags, GPUS="2")
    assert done.returncode == 0, done.stderr
    assert "part 1 sees 1\n" in done.stderr and "pc459_pred_0_of_2.json: finished already, skipped" in done.stderr
    assert "LVIS Instance evaluation:\nAgnostic: Acc: 0/8 = 0.0" in done.stdout and "Mine evaluation:" in done.stdout
    assert {path.name: path.read_bytes() for path in root.glob("out/*_pred_*")} == parts(root, 2)


def test_script_names_proposals(root: Path) -> None:
    make("pc459", root, 2)
    rle = {"size": [6, 8], "counts": [0, 24, 24]}
    (root / "p.json").write_text(json.dumps([{"file_name": f"2008_00000{k}.jpg", "segmentation": rle} for k in (2, 3)]))
    done = script(root, "my.pt", "out", "--masks", "p.json", "--sets", "pc459", GPUS="2")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(list(root.glob("out/pc459_proposals_*"))) == 2


def test_script_errors(root: Path) -> None:
    assert "usage: bash scripts/test_8gpu.sh CKPT OUT_DIR" in script(root, "my.pt").stderr
    assert "GPUS 'many' is not a number of GPUs" in script(root, "my.pt", "out", GPUS="many").stderr
    few = script(root, "my.pt", "out", GPUS="3", CUDA_VISIBLE_DEVICES="0,1")
    assert (few.returncode, few.stderr.count("\n")) == (2, 1)
    assert "GPUS is 3, but CUDA_VISIBLE_DEVICES '0,1' names 2; set GPUS=2" in few.stderr


def change_meta(path: Path, **values: Any) -> None:
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, **values}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checkpoint": "other"},
            "the prediction files come from different checkpoints: pc459_pred_0_of_2.json from fake-1, pc459",
        ),
        (
            {"items": [1, 5]},
            "pc459_pred_1_of_2.json starts at image 1 instead of image 2: the parts",
        ),
        ({"items": [3, 5]}, "starts at image 3 instead of image 2: images 2 to 2 are missing"),
        ({"items": [2, 4]}, "pc459_pred_1_of_2.json ends at image 4, but the run covers 5 images"),
        ({"part": 0}, "pc459_pred_1_of_2.json is part 0 of 2 according to its meta file, but part 1 of 2"),
        ({"parts": 3}, "pc459_pred_1_of_2.json is part 1 of 3 according to its meta file"),
        ({"annotations": "0"}, "were made with different values of annotations"),
    ],
)
def test_parts_that_do_not_belong_together(
    root: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make("pc459", root, 5)
    for part in range(2):
        generate_predictions(AreaNamer(), row_of("pc459"), part, 2, root / "out")
    assert evaluate_main(["out", "2"]) == 0
    change_meta(root / "out/pc459_meta_1_of_2.json", **changes)
    capsys.readouterr()
    assert evaluate_main(["out", "2"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["coco", "lvis", "a847"])
def test_overlapping_parts_without_meta_files(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(name, root, 5)
    for part in range(2):
        generate_predictions(AreaNamer(), row_of(name), part, 2, root / "out")
    first, second = (root / f"out/{name}_pred_{part}_of_2.json" for part in range(2))
    second.write_bytes(first.read_bytes())
    for path in root.glob("out/*_meta_*"):
        path.unlink()
    assert evaluate_main(["out", "2"]) == 2
    assert f"is in both {first.name} and {second.name}: the parts overlap" in capsys.readouterr().err
