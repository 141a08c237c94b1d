"""Predictions that only names of a list may be: `--vocabulary set|FILE` and `--way`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_namer import FakeName, FakeNamer

from osm.evaluation.predict.generate_cli import generate_main


class Choosing(FakeNamer):
    """Says the list's last name, or the first name of its last class, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, str]] = []

    def name_image(
        self, image: Any, masks: Any, modes: Any, vocabulary: Any = None, method: str = "constrained"
    ) -> Any:
        self.asked.append((vocabulary, method))
        found = super().name_image(image, masks, modes)
        if vocabulary is None:
            return found
        last = getattr(vocabulary[-1], "target", vocabulary[-1])
        return [names and {mode: FakeName(last, 0.5) for mode in names} for names in found]


def run(yaml: Path, out: Path, *flags: str) -> tuple[int, Choosing]:
    namer = Choosing()
    arguments = ["0", "1", "my.pt", str(out), "--datasets", str(yaml), "--sets", "pets", *flags]
    return generate_main(arguments, lambda *_, **__: namer), namer


def classes(out: Path) -> set[str]:
    document = json.loads((out / "pets_pred_0_of_1.json").read_text())
    segments = [segment for entry in document for segment in entry["segments_info"] if "open_end_pred" in segment]
    return {prediction["class"] for segment in segments for prediction in segment["open_end_pred"].values()}


def test_names_of_the_set_or_of_a_file(pets_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, namer = run(pets_yaml, tmp_path / "set", "--vocabulary", "set", "--way", "scored")
    [[*listed], way] = namer.asked[0]
    assert code == 0 and way == "scored" and [one.names for one in listed] == [("cat", "kitty"), ("dog", "hound")]
    assert classes(tmp_path / "set") == {"dog"}
    names = tmp_path / "names.txt"
    names.write_text("# two\nTeapot\nmug\n")
    code, namer = run(pets_yaml, tmp_path / "file", "--vocabulary", str(names))
    assert code == 0 and namer.asked[0] == (["teapot", "mug"], "constrained") and classes(tmp_path / "file") == {"mug"}
    code, namer = run(pets_yaml, tmp_path / "free")
    assert code == 0 and namer.asked[0] == (None, "constrained")
    # A part that was made with another list is not gone on with, nor taken for this one's.
    capsys.readouterr()
    assert run(pets_yaml, tmp_path / "file", "--vocabulary", "set")[0] == 2
    assert "made with a different value of vocabulary" in capsys.readouterr().err
    assert run(pets_yaml, tmp_path / "file", "--vocabulary", str(names), "--way", "scored")[0] == 2
    assert run(pets_yaml, tmp_path / "free")[0] == 0


def test_a_list_that_is_none(pets_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    for path, message in ((empty, "no name in it"), (tmp_path / "none.txt", "No such file")):
        assert run(pets_yaml, tmp_path / "out", "--vocabulary", str(path))[0] == 2
        assert message in capsys.readouterr().err
