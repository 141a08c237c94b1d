"""`osm completion`: a real bash completes commands and flags with the script that it prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import PATIENCE_S

from osm.cli import COMMANDS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "osm.bash"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    quoted, line = " ".join(f"'{word}'" for word in words), " ".join(words)
    program = f"""
source {script}
COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
$(complete -p osm | sed 's/.*-F \\([^ ]*\\).*/\\1/') osm '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_flags(script: Path) -> None:
    assert set(completed(script, "osm", "")) >= set(COMMANDS)
    assert set(completed(script, "osm", "ev")) == {"evaluate", "evaluate_proposals"}
    assert "--learning_rate" in completed(script, "osm", "train", "--learn")
    assert "--coco_shards" in completed(script, "osm", "train", "--coco")
    assert completed(script, "osm", "completion", "z") == ["zsh"]


def test_every_shell_gets_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#compdef osm") and "--learning_rate" in out
    with pytest.raises(SystemExit):
        main(["completion", "fishy"])
    assert "invalid choice: 'fishy'" in capsys.readouterr().err
