"""Families of LLMs through both bridges, and the page that says which work."""

from __future__ import annotations

import json
from pathlib import Path

import families
import families_checks
import pytest
from families import LLM_INPUTS
from families_llms import FAMILIES
from families_table import BEGIN, END, OUTPUT, PAGE, read_outcomes, section, write_section
from transformers.utils import generic

# Of each kind of cache one: keys and values; states of a state-space model, of linear attention, of both in one layer;
# states that only explicit positions lead on; one that cannot select rows; none; shared blocks.
KINDS = {
    "gpt2": "",
    "mamba": "one token at a time",
    "qwen3_next": "",
    "falcon_h1": "own greedy",
    "bamba": "own greedy",
    "minimax": "no cache, own greedy",
    "rwkv": "no cache, own greedy",
    "zamba2": "own greedy",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_family_is_right_with_both_bridges(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", lambda message, *args: told.append(message))
    for variant in LLM_INPUTS:
        found = families_checks.check_family(FAMILIES[name], variant, tmp_path)
        assert found == dict.fromkeys(families_checks.COLUMNS, "right") | {"slow": KINDS[name]}
    assert not told  # of arguments that are on their way out


def test_a_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that forgets what came before is wrong, and a failure in a library is an error."""
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    real = families_checks.Decoder

    class Forgets(real):  # type: ignore[misc, valid-type]
        def greedy(self, inputs: object) -> object:
            inputs.embeds_RTW[:, :-1] = 0  # type: ignore[attr-defined]
            return super().greedy(inputs)

    monkeypatch.setattr(families_checks, "Decoder", Forgets)
    monkeypatch.setattr(families_checks, "load_folder", lambda path: 1 / 0)
    found = families_checks.check_family(FAMILIES["llama"], "maskqformer", tmp_path)
    assert found["build"] == found["generate"] == "right"
    assert found["decoder"].startswith("wrong: greedy") and found["save/load"].startswith("error: ZeroDivisionError")


def test_the_page_is_what_the_script_writes_from_the_kept_outcomes() -> None:
    outcomes = read_outcomes(OUTPUT)
    assert list(outcomes["families"]) == list(FAMILIES) and len(FAMILIES) >= 60
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == section(outcomes)
    for variants in outcomes["families"].values():
        assert set(variants) == set(LLM_INPUTS)
        for found in variants.values():
            assert all(not value.startswith(("wrong", "error")) for value in found.values()), found


def test_the_command_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outcomes that are in its file are taken from there; the page keeps what stands around the table."""
    output, page = tmp_path / "llms.json", tmp_path / "page.md"
    right = dict.fromkeys(families_checks.COLUMNS, "right") | {"slow": ""}
    refused = {"build": "refused: it has | none"}
    output.write_text(json.dumps({"versions": {}, "families": {"llama": {"maskqformer": right, "flamingo": refused}}}))
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--only", "llama,opt", "--output", str(output), "--table", str(page), "--timeout", "0"]
    monkeypatch.setattr("sys.argv", ["families.py", *arguments])
    assert families.main() == 1  # nothing is done in no time
    said = capsys.readouterr().out
    assert "llama, flamingo: as it should be" in said
    assert "opt, flamingo: build: error: not done after 0 seconds" in said
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| llama | maskqformer | right | right | right | right | right | right |  |" in text
    assert "- llama, flamingo: it has \\| none" in text
    assert list(json.loads(output.read_text())["families"]) == ["llama", "opt"]
    write_section(page, read_outcomes(output))
    assert page.read_text() == text


def test_other_outcomes_do_not_change_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    monkeypatch.setattr(families, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["families.py", "--only", "", "--output", str(tmp_path / "llms.json")])
    assert families.main() == 0
    assert page.read_text() == f"{BEGIN}\nold\n{END}\n"
