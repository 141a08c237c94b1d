"""`osm reproduce` beside a table of figures that are worked out by hand."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_six_sets import BY_HAND, COUNTS, document

from osm.evaluation import reproduce
from osm.evaluation.reproduce import PUBLISHED, Figures


def by_hand(name: str, masks: int = 3) -> Figures:
    _, (right, strange), (own_right, own_strange) = COUNTS[name]
    return Figures(*(round(100 * n / 3, 2) for n in (right, own_right, strange, own_strange)), masks=masks)


class Generate:
    """In place of the model: writes the hand-made predictions of some sets."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, [""]

    def __call__(self, argv: Sequence[str]) -> int:
        self.asked = list(argv)
        for name in self.names:
            masks = [one for part in BY_HAND[name] for one in part]
            path = Path(argv[3]) / f"{name}_pred_0_of_1.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(document(name, masks, 0)))
        return 0


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figures]:
    monkeypatch.setattr(reproduce, "PUBLISHED", {name: by_hand(name) for name in PUBLISHED})
    return reproduce.PUBLISHED


def run(out: Path, generate: Generate, *flags: str) -> int:
    return reproduce.main(["osm_final.pt", str(out), "--json", str(out.with_suffix(".json")), *flags], generate)


def test_the_published_table_is_whole() -> None:
    assert set(PUBLISHED) == set(BY_HAND) and sum(one.masks for one in PUBLISHED.values()) == 397_069
    assert PUBLISHED["lvis"] == Figures(64.54, 72.45, 8.28, 1.18, 244645)


def test_equal_figures_are_reproduced(tmp_path: Path, table: dict[str, Figures], capsys: pytest.CaptureFixture) -> None:
    generate = Generate(*PUBLISHED)
    assert run(tmp_path / "out", generate, "--limit=5", "--config", "osm") == 0
    asked = ["--config", "osm", "--sets", ",".join(PUBLISHED), "--limit", "5"]  # other sets have no published figures
    assert generate.asked == ["0", "1", "osm_final.pt", str(tmp_path / "out"), *asked]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| set | Acc any | Acc own | NIV any | NIV own | masks | within 0.5 points |"
    assert "| coco | 66.67 (+0.00) | 100.00 (+0.00) | 33.33 (+0.00) | 0.00 (+0.00) | 3 | reproduced |" in lines
    assert len(lines) == 2 + 6 and all(line.endswith("| reproduced |") for line in lines[2:])
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["missing"] == [] and written["sets"]["coco"]["ours"]["acc_any"] == 66.67


def test_other_figures_are_not(tmp_path: Path, table: dict[str, Figures], capsys: pytest.CaptureFixture) -> None:
    ours = table["pc459"]
    table["pc459"] = Figures(ours.acc_any - 0.6, ours.acc_own, ours.niv_any + 0.4, ours.niv_own, 3)
    assert run(tmp_path / "out", Generate(*PUBLISHED)) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "pc459" in line)
    assert "(+0.60)" in line and "(-0.40)" in line and line.endswith("| not reproduced |")
    assert run(tmp_path / "out", Generate(*PUBLISHED), "--tolerance", "0.7") == 0
    # As good figures of other masks are no reproduction.
    table["pc459"] = by_hand("pc459", masks=4)
    assert run(tmp_path / "out", Generate(*PUBLISHED)) == 1
    assert "| 3 (published: 4) |" in capsys.readouterr().out


def test_a_set_that_is_not_there_is_said(
    tmp_path: Path, table: dict[str, Figures], capsys: pytest.CaptureFixture
) -> None:
    assert run(tmp_path / "out", Generate("coco", "lvis")) == 1
    out = capsys.readouterr().out
    assert re.search("ade20k: left out, no ade20k_pred_<i>_of_1.json", out) and out.count("| reproduced |") == 2


def test_processes_that_fail_are_no_other_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def failed(command: list[str]) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", failed)
    assert run(tmp_path / "out", Generate(), "--processes", "3") == 2
    words = asked[0][asked[0].index("osm") :]
    asked = ["--sets", ",".join(PUBLISHED)]
    assert words == ["osm", "generate", "auto", "auto", "osm_final.pt", str(tmp_path / "out"), *asked]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "out", Generate("coco"), "--processes", "0") == 2
    assert "--processes 0, --tolerance 0.5: expected at least 1 process" in capsys.readouterr().err
    assert run(tmp_path / "out", Generate("coco"), "--tolerance", "nan") == 2
    assert (
        "--tolerance nan: expected at least 1 process and a finite, non-negative tolerance" in capsys.readouterr().err
    )
    (tmp_path / "file").touch()
    assert run(tmp_path / "out", Generate("coco"), "--json", str(tmp_path / "file" / "x.json")) == 2
    assert "x.json: File exists; expected a file that can be written" in capsys.readouterr().err
    assert run(tmp_path / "out", Generate("coco"), "--json", str(tmp_path / "new" / "x.json")) == 1
    assert (tmp_path / "new" / "x.json").is_file()
    with pytest.raises(SystemExit):  # nothing would be reproduced with other masks or modes
        run(tmp_path / "out", Generate("coco"), "--alter", "blank_image")
    assert "unrecognized arguments: --alter" in capsys.readouterr().err
    # What generation says goes through: here, that nothing is there to be named.
    assert reproduce.main(["osm_final.pt", str(tmp_path / "none"), "--sets", "nothing"]) == 2
    assert "--sets: unknown dataset 'nothing'" in capsys.readouterr().err
