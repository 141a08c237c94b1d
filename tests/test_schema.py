"""The JSON schema of the configs, and `--set`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from osm.cli import main
from osm.config import load_yaml
from osm.errors import OsmError
from osm.models.model_config import load_model_config
from osm.training.run_config import parse
from osm.training.schema import config_schema

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("osm*.yaml"))
SETS = ("--batch_size_coco", "2", "--coco_shards", "x.tar")


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def mappings(document: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all mappings within a document, except the options of a tower, which are free."""
    if not isinstance(document, dict) or path[-1:] == ("options",):
        return []
    return [path, *(found for key, value in document.items() for found in mappings(value, (*path, key)))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_no_misspelt_one_is(
    validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    document = yaml.safe_load(path.read_text())
    validator.validate(document)
    for place in mappings(document):
        wrong = copy.deepcopy(document)
        inner = wrong
        for key in place:
            inner = inner[key]
        inner["imput_size"] = 3
        assert not validator.is_valid(wrong), place


@pytest.mark.parametrize(
    ("section", "valid"),
    [
        ({"variant": "flamingo", "flamingo": {"roi": 3}}, True),
        ({"variant": "flamingo", "flamingo": {"roj": 3}}, False),
        ({"tower": {"kind": "some.module:Tower", "anything": 3}}, True),
        ({"tower": {"kind": "tim"}}, False),
        ({"bridge": {"kind": "maskqformer", "roi": 3}}, False),
        ({"mask_to_grid": "cubic"}, False),
        ({"input_size": "large"}, False),
        ({"llm": {"quantization": "bnb_nf4"}}, True),
        ({"llm": {"quantization": "nf4"}}, False),
    ],
)
def test_sections(validator: jsonschema.Draft202012Validator, section: dict[str, Any], valid: bool) -> None:
    assert validator.is_valid({"model": section}) == valid


def test_the_command_prints_types_defaults_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    model, training = (schema["properties"][name]["anyOf"][0]["properties"] for name in ("model", "training"))
    assert model["input_size"] == {
        "type": "integer",
        "description": "S, the side of the square canvas in pixels.",
        "default": 1120,
    }
    assert training["lr_scheduler"]["enum"] == ["constant", "linear", "cosine"]
    kinds = {each["properties"]["kind"].get("const") for each in model["bridge"]["anyOf"]}
    assert {"maskqformer", "flamingo"} <= kinds
    described = [name for name, field in training.items() if "description" not in field]
    assert not described, described


# --set.


def test_set_replaces_values_of_the_file() -> None:
    settings = ["model.llm.name=some/llm", "model.bridge.layers=1", "model.tower.strides=[16]", "training.seed=7"]
    config = load_model_config("osm_nano", settings)
    assert config.llm.name == "some/llm" and config.tower.strides == (16,) and config.bridge.layers == 1
    assert load_yaml("osm_nano", settings)["training"]["seed"] == 7
    assert load_model_config("osm_nano").llm.name == "osm_nano/llm"


def test_set_in_train_and_flags_before_it() -> None:
    flags = ["--config", "osm_nano", "--set", "training.seed=7", "--set", "training.learning_rate=1e-5", *SETS]
    run = parse([*flags, "--set", "model.lora.rank=4", "--set", "training.sample.resize=published"])
    assert (run.training.seed, run.training.learning_rate, run.model.lora.rank) == (7, 1e-5, 4)
    assert run.training.sample.resize == "published"
    assert parse([*flags, "--seed", "8"]).training.seed == 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.llm.name=5", r"model\.llm\.name: expected str, found 5"),
        (
            "model.prompt=Name:",
            r"model\.prompt: expected str, found \{'Name': None\}; put the text in quotes, on a command line as in "
            r"--set \"FIELD='TEXT'\"",
        ),
        ("model.llm.nam=x", r"model\.llm: unknown field 'nam'"),
        ("model.bridge.layers=0", r"model\.bridge\.layers 0 is not 1 to"),
        (
            "model.input_size.side=5",
            r"--set model\.input_size\.side: the value of model\.input_size is 256, not a mapping",
        ),
        ("models.input_size=5", r"--set 'models\.input_size=5': expected model\.FIELD=VALUE or training\.FIELD=VALUE"),
        ("model.input_size", r"--set 'model\.input_size': expected model\.FIELD=VALUE"),
        ("model.modes=[", r"--set model\.modes: '\[' is not valid YAML"),
    ],
)
def test_mistakes_in_set(setting: str, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        load_model_config("osm_nano", [setting])


def test_set_is_refused_with_a_checkpoint_that_has_its_config() -> None:
    import osm

    with pytest.raises(OsmError, match="--set model.input_size=64: the checkpoint osm_nano has its own model config"):
        osm.load_model("osm_nano", settings=["model.input_size=64"])
