"""A hook of mkdocs: the pages that are made from the code, and links that leave the folder of the documentation.

The pages of commands and of configs come from the parsers and the schema, so they cannot differ from the program. Files
outside of docs/ that are pages of the site (README.md, dataset_preparation/README.md) are added under a name of their
own. Links to other files of the repository, which are not on the site, become their paths.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from osm.cli import COMMANDS
from osm.training.schema import config_schema

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = {"README.md": "index.md", "dataset_preparation/README.md": "dataset_preparation.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_WIDTH = "100"  # columns of the help texts

API = {
    "Naming": (
        "osm.load_recognizer",
        "osm.recognition.recognizer.Recognizer",
        "osm.recognition.answers.Recognition",
        "osm.recognition.answers.Alternative",
        "osm.recognition.vocabulary.Ranking",
    ),
    "Labeling": (
        "osm.labeling.label_run.label",
        "osm.labeling.label_options.LabelOptions",
        "osm.labeling.label_output.LabelSummary",
        "osm.labeling.adapters.to_detections",
        "osm.labeling.adapters.AutodistillModel",
        "osm.labeling.adapters.label_fiftyone",
        "osm.labeling.formats.label_format.LabelFormat",
    ),
    "Models": (
        "osm.create_model_and_transforms",
        "osm.load_model",
        "osm.models.osm.OmniScientModel",
        "osm.models.model_config.ModelConfig",
    ),
    "Interfaces of plug-ins": (
        "osm.models.towers.tower.Tower",
        "osm.models.bridges.bridge.Bridge",
        "osm.recognition.segmenters.base.Segmenter",
        "osm.evaluation.metrics.base.Metric",
        "osm.forms.base.Form",
    ),
    "Errors": ("osm.errors.OsmError", "osm.errors.SampleError", "osm.errors.RunStopped"),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code, and the pages outside of docs/."""
    made = {
        "reference/commands.md": commands_page(),
        "reference/config.md": config_page(),
        "reference/api.md": api_page(),
    }
    for source, name in _OUTSIDE.items():
        made[name] = moved((ROOT / source).read_text(encoding="utf-8"), source, name)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace links that lead to files outside of the site."""
    return moved(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def moved(text: str, source: str, name: str) -> str:
    """Return the text of a file of the repository as a page of the site.

    Args:
        source: the path of the file in the repository.
        name: the path of the page in docs/.
    """

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        place, hash_, anchor = target.partition("#")
        if not place or ":" in place:
            return found[0]
        base = posixpath.dirname(source) if source not in _OUTSIDE.values() else "docs"
        path = posixpath.normpath(posixpath.join(base, place))
        if source.startswith("docs/") and source.removeprefix("docs/") in _OUTSIDE.values():
            return found[0]  # its links were moved when the page was added
        if path in _OUTSIDE:
            path = f"docs/{_OUTSIDE[path]}"
        elif not path.startswith("docs/") or (ROOT / path).is_dir():
            return f"{words} (`{path}`)" if path not in words else words
        return f"{image}[{words}]({posixpath.relpath(path, posixpath.dirname(f'docs/{name}'))}{hash_}{anchor})"

    return _LINK.sub(link, text)


def commands_page() -> str:
    """Return a page with the help of every command."""
    os.environ["COLUMNS"] = _WIDTH
    parts = ["# Commands\n\nEvery command with its flags, as `osm COMMAND --help` prints them."]
    for name, command in COMMANDS.items():
        if command.parser == "prepare" or command.function == "prepare":
            text = f"`osm {name} --help` lists the datasets; `osm {name} SET --help` lists the flags of one."
            parts.append(f"## osm {name}\n\nThis command {command.what}. {text}")
            continue
        shown = command.build_parser().format_help()
        parts.append(f"## osm {name}\n\nThis command {command.what}.\n\n```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """Return a page with every value of a config: its type, its default, and what it means."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, schema in _leaves(config_schema(), ""):
        kind = schema.get("type") or ("one of " + ", ".join(map(str, schema["enum"])) if "enum" in schema else "")
        default = "" if "default" not in schema else f"`{schema['default']!r}`"
        meaning = str(schema.get("description", "")).replace("|", "\\|").replace("\n", " ")
        rows.append(f"| `{path}` | {kind} | {default} | {meaning} |")
    head = (
        "# Config files\n\n"
        "A config is a YAML file with the sections `model` and `training`. `--config` takes a file or a name in "
        "`configs/`, and `--set model.llm.name=...` changes one value. `osm schema` prints this table as a JSON schema "
        "for editors.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def _leaves(schema: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the values of a schema that are not sections, with their dotted paths."""
    options = [schema, *schema.get("anyOf", ())]
    sections = next((one["properties"] for one in options if one.get("properties")), None)
    if sections is None:
        return [(path, schema)]
    found = []
    for name, inner in sections.items():
        found += _leaves(inner, f"{path}.{name}" if path else name)
    return found


def api_page() -> str:
    """Return a page with the public classes and functions, whose text mkdocstrings takes from the docstrings."""
    parts = ["# Python API\n\n`import osm` gives the functions that most programs need."]
    for title, names in API.items():
        parts.append(f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names))
    return "\n\n".join(parts) + "\n"
