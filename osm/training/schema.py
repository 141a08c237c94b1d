"""Builds the JSON schema of the config files from the config dataclasses: types, choices, defaults and descriptions.

`osm schema` prints the JSON schema of a config file. Editors can use the schema to autocomplete keys and to flag
unknown keys.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from osm.config import as_dict, field_descriptions
from osm.models.bridges import BRIDGES
from osm.models.model_config import BridgeConfig, ModelConfig, TowerConfig
from osm.models.old_keys import BRIDGE_SECTIONS, TOWER_FIELDS, TOWER_KINDS
from osm.models.towers import TOWERS
from osm.registry import Registry
from osm.training.train_config import TrainConfig

_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_PARTS: dict[type, Registry[Any]] = {TowerConfig: TOWERS, BridgeConfig: BRIDGES}
# PyYAML reads 1e-4 as a string, which `osm.config.from_dict` converts to a number.
_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"}]}


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file, which has the sections `model` and `training`."""
    model = _object(ModelConfig)
    model["properties"] |= _old_keys()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of osm",
        "type": "object",
        "properties": {"model": _or_empty(model), "training": _or_empty(_object(TrainConfig))},
        "additionalProperties": False,
    }


def _object(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a mapping whose keys are the fields of a dataclass."""
    hints, described = typing.get_type_hints(cls), field_descriptions(cls)
    properties = {}
    for each in dataclasses.fields(cls):
        schema = _of_hint(hints[each.name])
        if "choices" in each.metadata:
            schema = {"enum": list(each.metadata["choices"])}
        if each.name in described:
            schema = {**schema, "description": described[each.name]}
        properties[each.name] = schema | _default(each)
    summary = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return {"type": "object", "description": summary, "properties": properties, "additionalProperties": False}


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return {}
    if isinstance(value, tuple(_PARTS)):  # the default values depend on the section's `kind`
        return {}
    plain = as_dict(value) if dataclasses.is_dataclass(value) else value
    return {"default": json.loads(json.dumps(plain))}


def _of_hint(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of the values that `osm.config.from_dict` accepts for a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return dict(_NUMBER)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"}, *(_of_hint(each) for each in arguments if each is not type(None))]}
    if origin is tuple:
        return {"type": "array", "items": _of_hint(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_hint(arguments[1])}
    if hint in _PARTS:
        return _part(_PARTS[hint], hint)
    return _object(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {}


def _part(registry: Registry[Any], base: type) -> dict[str, Any]:
    """Return the JSON schema of a config section whose allowed fields depend on the value of its `kind` key."""
    kinds = []
    for name in registry.names():
        schema = _object(registry.get(name).Config)
        if name in TOWER_KINDS:  # configs written by older versions have the fields of every kind
            schema["properties"] = {key: {} for key in TOWER_FIELDS} | schema["properties"]
        schema["properties"]["kind"] = {"const": name}
        kinds.append(schema | ({} if name == registry.default else {"required": ["kind"]}))
    known = {"properties": {"kind": {"enum": registry.names()}}}
    kinds.append({"type": "object", "required": ["kind"], "not": known, "properties": {"kind": {"pattern": ":"}}})
    return {"anyOf": kinds, "description": inspect.cleandoc(base.__doc__ or "").partition("\n\n")[0]}


def _old_keys() -> dict[str, Any]:
    """Return the JSON schemas of the deprecated keys that older configs use in the `model` section."""
    found: dict[str, Any] = {"variant": {"enum": list(BRIDGE_SECTIONS), "deprecated": True}}
    for kind, section in BRIDGE_SECTIONS.items():
        schema = _object(BRIDGES.get(kind).Config)
        del schema["properties"]["kind"]
        found[section] = {**schema, "deprecated": True}
    return found


def _or_empty(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}
