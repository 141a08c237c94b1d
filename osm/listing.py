"""`osm list KIND`: lists the towers, LLMs, bridges, metrics, formats, datasets and other parts that can be named.

Names and descriptions are read without importing the listed classes, so `osm list` is fast and also lists classes from
packages that cannot be imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from osm.command_parser import CommandParser
from osm.config import config_paths
from osm.datasets.table import BUILTIN, DatasetTable
from osm.errors import OsmError, run_command
from osm.files import read_text, read_yaml
from osm.registry import Registry
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)


@dataclass(frozen=True)
class Listed:
    """One line of a listing.

    Attributes:
        name: the name by which flags and config files refer to the listed class, model, dataset or config.
        origin: "built in", "registered", the name of a file, or the name of the installed distribution.
        about: a one-line description.
    """

    name: str
    origin: str
    about: str


# Registries are imported lazily, so that `osm list forms` does not import the packages that towers need.
REGISTRIES = {
    "towers": "osm.models.towers:TOWERS",
    "bridges": "osm.models.bridges:BRIDGES",
    "segmenters": "osm.recognition.segmenters:SEGMENTERS",
    "metrics": "osm.evaluation.metrics:METRICS",
    "forms": "osm.datasets.form_registry:FORMS",
    "label_formats": "osm.labeling.formats:FORMATS",
    "benches": "osm.evaluation.bench:BENCHES",
}


def parts(kind: str) -> list[Listed]:
    """Return one line for each class in a registry, and log a warning for each class that cannot be selected by name.

    `kind` is the registry's key in `REGISTRIES`.
    """
    module, _, attribute = REGISTRIES[kind].partition(":")
    registry: Registry[Any] = getattr(importlib.import_module(module), attribute)
    for sentence in registry.hidden():
        logger.warning(sentence)
    return [Listed(name, registry.origin(name), summary_of(registry.path(name))) for name in registry.names()]


def summary_of(path: str) -> str:
    """Return the first line of a class's docstring, given its `path` (`module:Class`), without importing the module.

    Only the module's parent packages are imported. If the class is not found, the returned text explains why it cannot
    be imported.
    """
    module, _, attribute = path.partition(":")
    loaded = sys.modules.get(module)
    if loaded is not None and hasattr(loaded, attribute):
        return _first_line(getattr(loaded, attribute).__doc__)
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return f"{path} cannot be imported: there is no such module"
        source = read_text(Path(spec.origin), path)
        nodes = ast.parse(source).body
    except (ImportError, SyntaxError, ValueError, OsmError) as error:
        return f"{path} cannot be imported: {error}"
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return _first_line(ast.get_docstring(node))
    return f"{path} cannot be imported: the module does not define the class"


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]


def llms() -> list[Listed]:
    """Return the kinds of values that `model.llm.name` accepts, and the LLMs used in the built-in configs."""
    kinds = {
        "FOLDER": "a causal language model that transformers saved (docs/families.md has the tested families)",
        "HUB_ID": "a causal language model on the Hugging Face hub, as owner/name",
        "FILE.gguf": "a causal language model in a GGUF file",
    }
    found = [Listed(name, "built in", about) for name, about in kinds.items()]
    for path in config_paths():
        model = read_yaml(path, "config").get("model") or {}
        name = (model.get("llm") or {}).get("name")
        if name:
            found.append(Listed(name, path.name, f"the LLM of the config {path.stem}"))
    return found


def datasets(table: str | None = None) -> list[Listed]:
    """Return one line for each built-in dataset and for each dataset in the user's YAML file `table`, if given."""
    rows = DatasetTable().with_yaml(table) if table else DatasetTable()
    own = {row.name for row in BUILTIN if rows[row.name] == row}
    return [
        Listed(row.name, "built in" if row.name in own else str(table), f"{row.title} (form {row.form})")
        for row in rows.values()
    ]


def configs() -> list[Listed]:
    """Return the built-in configs, each described by the first line of the comment in its file."""
    found = []
    for path in config_paths():
        first = read_text(path, "config").split("\n")[0]
        found.append(Listed(path.stem, "built in", first.removeprefix("#").strip()))
    return found


LISTS: dict[str, Callable[[], list[Listed]]] = {
    "llms": llms,
    "datasets": datasets,
    "configs": configs,
    **{kind: partial(parts, kind) for kind in REGISTRIES},
}


def list_parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm list`."""
    parser = CommandParser(
        prog="osm list", allow_abbrev=False, description="Lists the parts that configs and flags can name."
    )
    parser.add_argument("kind", choices=tuple(LISTS), help="what to list: %(choices)s", metavar="KIND")
    parser.add_argument("--datasets", metavar="FILE.yaml", help="a YAML file with your own datasets, for KIND datasets")
    parser.add_argument("--json", action="store_true", help="print a json list of objects with name, origin and about")
    return parser


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm list` and return its exit code: 0 on success, or 2 for invalid arguments."""
    return run_command(_list, list_parser().parse_args(argv), interrupted="interrupted")


def _list(args: argparse.Namespace) -> None:
    if args.datasets and args.kind != "datasets":
        raise OsmError(f"--datasets {args.datasets} has no effect when listing {args.kind}; remove the flag")
    found = datasets(args.datasets) if args.datasets else LISTS[args.kind]()
    if args.json:
        echo(*json.dumps([asdict(one) for one in found], indent=1).split("\n"))
        return
    widths = [max((len(getattr(one, field)) for one in found), default=0) for field in ("name", "origin")]
    for one in found:
        echo(f"{one.name:<{widths[0]}}  {one.origin:<{widths[1]}}  {one.about}")
