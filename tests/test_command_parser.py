"""The argument parser of all commands: defaults in the help, suggestions, negative numbers, the command's name."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest
from processes import PATIENCE_S

from osm.cli import COMMANDS, main
from osm.command_parser import CommandParser, called_as
from osm.errors import did_you_mean, not_one_of

HEAVY = ("torch", "transformers", "timm", "scipy", "matplotlib", "webdataset", "fastapi", "uvicorn", "skimage")


def flags_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if not isinstance(action, argparse._HelpAction))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "prepare"])  # its parser depends on the dataset
def test_every_flag_is_described_with_its_default(name: str) -> None:
    parser = COMMANDS[name].build_parser()
    formatter = parser._get_formatter()
    for action in flags_of(parser):
        flag = "/".join(action.option_strings) or action.dest
        assert action.help and len(action.help.split()) > 1, f"{name} {flag}"
        text = formatter._expand_help(action)
        stated = any(word in text for word in ("[", "default", "may be repeated"))
        assert stated or action.required or not action.option_strings, f"{name} {flag}: {text}"


def test_no_help_imports_torch() -> None:
    program = (
        "import contextlib, io, sys\n"
        "from osm.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([name, '--help'])\n"
        f"    heavy = [module for module in {HEAVY} if module in sys.modules]\n"
        "    assert not heavy, f'osm {name} --help imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


def test_flags_of_train_are_in_groups_and_once() -> None:
    parser = COMMANDS["train"].build_parser()
    groups = {group.title: [a.dest for a in group._group_actions] for group in parser._action_groups}
    assert {"optimization", "samples", "reading", "dataset coco"} <= groups.keys()
    assert "learning_rate" in groups["optimization"] and "coco_shards" in groups["dataset coco"]
    grouped = [dest for dests in groups.values() for dest in dests]
    assert len(grouped) == len(set(grouped)) > 90
    texts = {action.dest: action.help for action in flags_of(parser)}
    assert texts["learning_rate"] == "the peak learning rate of AdamW [0.0001]"
    assert "0 = the dataset is not used [0]" in str(texts["batch_size_coco"])


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        assert main(words) == 2
    except SystemExit as end:
        assert end.code == 2
    return capsys.readouterr().err


def test_misspelled_words_are_answered_with_the_nearest_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "trian").endswith("; did you mean 'train'?\n")
    assert "did you mean" not in said(capsys, "qqqqqqqq")
    error = said(capsys, "train", "--lerning_rate", "3")
    assert error.startswith("usage: osm train ") and error.endswith("3; did you mean '--learning_rate'?\n")
    assert "did you mean '--learning_rate'?" in said(capsys, "train", "--lerning_rate=3")
    assert "did you mean 'cosine'?" in said(
        capsys,
        "train",
        "--config",
        "osm_nano",
        "--lr_scheduler",
        "cosin",
        "--coco_shards",
        "a",
        "--batch_size_coco",
        "1",
    )
    assert "did you mean 'osm_small'?" in said(capsys, "train", "--config", "osm_smal")
    assert "did you mean 'learning_rate'?" in said(capsys, "train", "--set", "training.learning_rates=3")
    assert "did you mean 'coco'?" in said(capsys, "generate", "0", "1", "none", "out", "--sets", "cocoo")


def test_a_choice_is_suggested() -> None:
    assert did_you_mean("scord", ("constrained", "scored", "mapped")) == "; did you mean 'scored'?"
    assert did_you_mean("x", ("constrained",)) == ""
    error = not_one_of("--way", "scord", ("constrained", "scored"))
    assert str(error) == "--way 'scord' is not one of constrained, scored; did you mean 'scored'?"
    parser = CommandParser(prog="osm test")
    parser.add_argument("--kind", choices=("folder", "file"))
    assert parser._suggestion("argument --kind: invalid choice: 'foldr' (choose from 'folder', 'file')").endswith(
        "'folder'?"
    )


@pytest.mark.parametrize("value", ["-5,10,20,30", "-.5,1", "-1e-3,2"])
def test_negative_numbers_are_values(value: str) -> None:
    parser = CommandParser()
    parser.add_argument("--box", action="append")
    parser.add_argument("-n", action="store_true")
    assert parser.parse_args(["--box", value, "-n"]).box == [value]
    with pytest.raises(SystemExit):
        parser.parse_args(["--box", "-x,1"])


def test_commands_call_themselves_by_the_name_they_were_called_by(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "generate", "evaluate", "prepare_panoptic"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: osm {name} ")
    assert CommandParser(prog="train.py").prog == "train.py"
    with called_as("osm train"):
        assert CommandParser(prog="train.py").prog == "osm train"
