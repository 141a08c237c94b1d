"""Builds config dataclasses from YAML files and `--set` values. Error messages name the invalid field."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from osm.documents import parse_yaml
from osm.errors import OsmError, did_you_mean, shown
from osm.files import check_regular_file, read_yaml
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, public_text, suffix_of

T = TypeVar("T")
SECTIONS = ("model", "training")
"""The sections of a config file."""
_ENTRY = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (.*)$")


class FieldError(OsmError):
    """Raised by a config's `__post_init__` if a field is invalid.

    The error message begins with the field's name, because `__post_init__` does not know the field's full path.
    `from_dict` prepends the path of the config section to the message.
    """


def choice(default: str, choices: Sequence[str]) -> Any:
    """Return a dataclass field whose value must be one of `choices`. The config's JSON schema lists the choices."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


def field_descriptions(cls: type) -> dict[str, str]:
    """Read a dataclass's field descriptions from the `Attributes:` section of the class docstring.

    Descriptions of inherited fields are read from the base classes' docstrings.
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        names: list[str] = []
        for line in text.partition("Attributes:\n")[2].splitlines():
            entry = _ENTRY.match(line.removeprefix("    "))
            if entry and not line.startswith("     "):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith("     ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a config dataclass from plain values parsed from YAML or JSON.

    A config class may define a `resolve(values, where)` method that returns three objects: the class to build, its
    field values, and a mapping from field names to keys in the file. The mapping contains only the fields whose key in
    the file differs from the field name.

    Args:
        where: the path of the config section in the file. Error messages begin with this path.

    Raises:
        OsmError: a field is unknown, or its type or value is invalid. The message begins with the path of the field.
    """
    written: Mapping[str, str] = {}
    resolve = getattr(cls, "resolve", None)
    if resolve is not None:
        cls, values, written = resolve(values, where)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise OsmError(f"{where}: expected a mapping of {', '.join(names)}, found {shown(values)}")
    for key in values:
        if key not in names:
            meant = did_you_mean(str(key), names)
            raise OsmError(f"{where}: unknown field {shown(key)}; the fields are {', '.join(names)}{meant}")
    given = {key: _convert(hints[key], value, f"{where}.{written.get(key, key)}") for key, value in values.items()}
    try:
        return cls(**given)
    except FieldError as error:
        raise OsmError(f"{where}.{error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise OsmError(f"{where}: expected a list, found {shown(value)}")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise OsmError(f"{where}: expected a mapping, found {shown(value)}")
        return {key: _convert(typing.get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:  # PyYAML reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    # YAML reads `Name:` as a mapping, `no` as false and `5` as a number.
    quotes = "; put the text in quotes, on a command line as in --set \"FIELD='TEXT'\"" if hint is str else ""
    raise OsmError(f"{where}: expected {hint.__name__}, found {shown(value)}{quotes}")


def find_config(name: str) -> Path:
    """Return the path of a config file.

    Args:
        name: an existing file, a URL (the returned path is that of a local copy), or the name of a config in the
            project's `configs/` (`osm`, `osm_small`, ...).

    Raises:
        OsmError: `name` is neither an existing file nor the name of a config.
    """
    if is_remote(name):
        if suffix_of(name) not in (".yaml", ".yml"):
            raise OsmError(f"config {public(name)}: expected a name that ends in .yaml")
        return localize(name, "config")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        check_regular_file(path, "config")
        if path.is_file():
            return path
        raise OsmError(f"config {name!r}: no such file")
    for folder in _config_folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    shipped = [path.stem for path in config_paths()]
    meant = did_you_mean(name, shipped)
    raise OsmError(f"config {name!r} is neither a .yaml file nor a built-in config ({', '.join(shipped)}){meant}")


def config_paths() -> list[Path]:
    """Return the paths of the built-in configs, sorted by name."""
    found = {path.stem: path for folder in reversed(_config_folders()) for path in folder.glob("osm*.yaml")}
    return [found[name] for name in sorted(found)]


def _config_folders() -> list[Path]:
    # In an installed package, the built-in configs are in osm.configs; in a checkout, configs/ is next to osm/.
    package = Path(str(resources.files("osm")))
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_yaml(name: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file into a mapping from section names (`model`, `training`) to their values.

    Args:
        name: see `find_config`.
        settings: the values of `--set`, which override the values in the file (see `apply_settings`).

    Raises:
        OsmError: the file is not found or is not YAML, a section is unknown, or a setting is malformed.
    """
    path = find_config(name)
    document = read_yaml(path, "config")
    if not isinstance(document, dict):
        raise OsmError(f"config {path}: expected the sections 'model' and 'training', found {shown(document)}")
    for section in document:
        if section not in SECTIONS:
            raise OsmError(
                f"config {path}: unknown section {shown(section)}; the valid sections are model and training"
            )
    sections = {section: {} if values is None else values for section, values in document.items()}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise OsmError(f"config {path}: section {section} must be a mapping, found {shown(values)}")
    return apply_settings(sections, settings)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the `--set` flag to a command's argument parser. The parsed values are stored in `args.settings`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="PATH=VALUE",
        help="a value that overrides the config file, for example --set model.llm.name=Qwen/Qwen2.5-0.5B; the value is "
        "YAML; may be repeated",
    )


def apply_settings(sections: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a config's sections in which `--set` values override the config's own values.

    Args:
        settings: strings of the form `path=value`. The path is dotted and begins with a section (`model.llm.name`), and
            the value is YAML. Keys that the config lacks are added. Like the fields of the file, the fields are
            checked later, by `from_dict`.

    Raises:
        OsmError: a setting has no `=`, its path is outside the sections or leads through a value that is not a mapping,
            or its value is invalid YAML.
    """
    changed = {name: _copied(section) for name, section in sections.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.split(".")
        if not equals or len(keys) < 2 or keys[0] not in SECTIONS or not all(keys):
            raise OsmError(f"--set {shown(setting)}: expected model.FIELD=VALUE or training.FIELD=VALUE")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise OsmError(f"--set {path}: {shown(text)} is not valid YAML ({error})") from None
        place = changed
        for depth, key in enumerate(keys[:-1], 1):
            inner = place.get(key)
            if inner is None:
                inner = place[key] = {}
            elif not isinstance(inner, dict):
                raise OsmError(f"--set {path}: the value of {'.'.join(keys[:depth])} is {shown(inner)}, not a mapping")
            place = inner
        place[keys[-1]] = value
    return changed


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def as_dict(config: Any) -> dict[str, Any]:
    """Convert a config to plain values for YAML or JSON, with the signatures removed from signed URLs.

    If the config class defines a `stored()` method, its return value is used instead of the fields. `stored()` returns
    the config in the layout that checkpoints use.
    """
    values = config.stored() if hasattr(config, "stored") else dataclasses.asdict(config)
    plain: dict[str, Any] = _without_signatures(values)
    return plain


def _without_signatures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_signatures(one) for key, one in value.items()}
    return public_text(value) if isinstance(value, str) else value
