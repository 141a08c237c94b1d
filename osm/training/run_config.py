"""Reads the command line and the config file of a training run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osm.config import FieldError, from_dict, load_yaml
from osm.data.sample_config import SampleConfig
from osm.data.shard_lists import expand_shards
from osm.data.shard_writer import CATEGORIES
from osm.data.stream import user_pipeline
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError, did_you_mean, shown
from osm.files import read_json
from osm.forms import form_class
from osm.models import checkpoint
from osm.models.factory import base_config
from osm.models.model_config import ModelConfig
from osm.storage import remote
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, sibling
from osm.terminal import message_logger
from osm.training.checkpoints import local_checkpoint
from osm.training.train_config import TrainConfig
from osm.training.train_flags import MODEL_FLAGS, WIDTH_FLAGS, read_flags, scalar_fields, set_flags

logger = message_logger(__name__)


@dataclass(frozen=True)
class Run:
    """The complete configuration for a `train.py` run.

    Attributes:
        training: the training config.
        model: the model config.
        widths: the values of WIDTH_FLAGS; None = the flag is not given.
        table: the dataset table.
    """

    training: TrainConfig
    model: ModelConfig
    widths: dict[str, int | None]
    table: DatasetTable


def parse(argv: Sequence[str] | None = None) -> Run:
    """Parse the command line of `train.py`, and read the config file.

    Raises:
        OsmError: a value is invalid.
        SystemExit: argparse found an unknown flag.
    """
    return resolve(*read_flags(argv))


def resolve(given: dict[str, Any], table: DatasetTable) -> Run:
    """Build a run's configuration from flags and the config file.

    Flags override `--set` values, which in turn override the values in the YAML file given by `--config`.

    Args:
        given: flag name -> value, for the flags that were given.
        table: the dataset table.

    Raises:
        OsmError: a value is invalid.
    """
    yaml_name, settings = given.get("config", "osm"), given.get("settings", [])
    section = dict(load_yaml(yaml_name, settings).get("training", {}))
    sample, sets = _mapping(section, "sample"), _mapping(section, "sets")
    sets = {name: _mapping(sets, name, "training.sets") for name in list(sets)}
    for name in (f.name for f in dataclasses.fields(SampleConfig)):
        if name in given:
            sample[name] = given[name]
    for name in table:
        flags = set_flags(name)
        chosen = {field_name: given[flag] for flag, field_name in flags.items() if flag in given}
        if chosen:
            sets[name] = {**sets.get(name, {}), **chosen}
    unknown = sorted(set(sets) - set(table))
    if unknown:
        raise OsmError(
            f"training.sets: unknown dataset {unknown[0]!r}; define it in the --datasets file. "
            f"Known datasets: {', '.join(table)}{did_you_mean(unknown[0], table)}"
        )
    scalars = {f.name: given[f.name] for f in scalar_fields(TrainConfig) if f.name in given}
    training = from_dict(TrainConfig, {**section, **scalars, "sample": sample, "sets": sets}, "training")
    if training.pipeline:
        user_pipeline(training.pipeline)
    if not training.used_sets:
        raise OsmError(
            "no dataset is used; set --batch_size_<set> and --<set>_shards for at least one of " + ", ".join(table)
        )
    for name, used in training.used_sets.items():
        table = table.with_row(trained_row(table[name], used.shards))
        _ = table[name].label_set  # raises for an invalid label file here, before the model is loaded
    if training.resume_from_checkpoint:
        # A remote checkpoint is downloaded before the first collective call, which could otherwise time out.
        local_checkpoint.cache_clear()
        local_checkpoint(training.resume_from_checkpoint)
    overrides = {name: given[name] for name in MODEL_FLAGS if name in given and name != "base_model_name"}
    base = given.get("base_model_name", yaml_name)
    own, modes = checkpoint.config_and_modes(training.start_from) if training.start_from else (None, [])
    if own is None or {"config", "base_model_name"} & given.keys():
        model = base_config(base, yaml_name, settings, **overrides)
    elif overrides or _of_model(settings):
        flag = next(iter(overrides), "") or f"set {_of_model(settings)[0]}"
        raise OsmError(
            f"--{flag} cannot change the model of --start_from {public(training.start_from)}; remove the flag"
        )
    else:
        model = own
    known, started = getattr(model.bridge, "direct_names", ()), own is model
    if training.known_classes and started:
        raise OsmError(
            f"--known_classes: the model of --start_from {public(training.start_from)} cannot be changed; remove the "
            "flag"
        )
    if training.known_names and started and not known:
        raise OsmError(
            f"--known_names: the model of --start_from {public(training.start_from)} was trained without known names; "
            "remove the flag"
        )
    before = model.modes if started else ()
    model = model.with_modes([*modes, *training.used_sets])
    if training.known_names or (started and known):
        model = _with_known_names(model, [table[name] for name in training.used_sets], before)
    if training.known_classes:
        model = _with_known_classes(model, training.known_classes)
    return Run(training, model, {name: given.get(name) for name in WIDTH_FLAGS}, table)


def trained_row(row: Dataset, shards: str) -> Dataset:
    """Return a dataset's entry in the dataset table, with the label file that belongs to its shards.

    If the dataset table does not name a label file, the `categories.json` that the converter wrote next to the shards
    is used. Datasets whose samples contain their own phrases do not need a label file.
    """
    if row.labels:
        return row
    if form_class(row.form).phrased:
        return replace(row, json_file=None)
    labels = sibling(expand_shards(shards)[0], CATEGORIES)
    if is_remote(labels):
        with contextlib.suppress(OsmError):  # the file is optional, and some stores raise an error if it is missing
            if remote.exists(labels):
                return replace(row, labels=str(localize(labels, "labels")))
        return row
    return replace(row, labels=labels) if Path(labels).exists() else row


def _with_known_names(model: ModelConfig, rows: Sequence[Dataset], before: Sequence[str]) -> ModelConfig:
    """Return the model config with the class names of the datasets among the known names of the bridge's direct path.

    In the mode of a dataset, the classifier chooses among the class names of this dataset. A mode in which the model of
    `--start_from` chooses among all known names is not restricted.

    Datasets whose samples contain their own phrases have no classes, so their names are not among them.

    Args:
        before: the modes of the model of `--start_from`.

    Raises:
        OsmError: the model has no direct path, or no dataset has classes.
    """
    bridge: Any = model.bridge
    if not getattr(bridge, "direct_tokens", 0):
        raise OsmError("--known_names needs a bridge with a direct path; set model.bridge.direct_tokens to 1 or more")
    labelled = [row for row in rows if not form_class(row.form).phrased]
    own = {row.name: [label.target for label in row.label_set.classes.values()] for row in labelled}
    names = _distinct([*bridge.direct_names, *itertools.chain(*own.values())])
    if not names:
        raise OsmError("--known_names: none of the training datasets has classes; remove the flag")
    of_modes = dict(bridge.direct_mode_names)
    for mode, targets in own.items():
        if targets and (mode in of_modes or mode not in before):
            of_modes[mode] = _distinct([*of_modes.get(mode, ()), *targets])
    try:
        return replace(model, bridge=replace(bridge, direct_names=names, direct_mode_names=of_modes))
    except FieldError as error:
        raise OsmError(f"--known_names: model.bridge.{error}") from None


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _with_known_classes(model: ModelConfig, file: str) -> ModelConfig:
    """Return the model config with the classifier of the tower, whose classes have the names in a file.

    Raises:
        OsmError: the file is not a list of names, no class has a known name, or the tower has no classifier.
    """
    document, _ = read_json(localize(file, "--known_classes"), "--known_classes")
    if not isinstance(document, list) or not all(isinstance(name, str) for name in document):
        raise OsmError(f"--known_classes {file}: expected a list with the name of each class, found {shown(document)}")
    tower, bridge = model.tower, model.bridge
    if not hasattr(tower, "classes"):
        raise OsmError(
            f"--known_classes needs a tower with a classifier of its own; model.tower.kind {tower.kind!r} has none"
        )
    known = set(getattr(bridge, "direct_names", ()))
    classes = tuple(name if name in known else "" for name in document)
    if not any(classes):
        raise OsmError(f"--known_classes {file}: none of its {len(classes)} names is a class name of the datasets")
    logger.info("--known_classes: %d of %d classes have a known name", sum(map(bool, classes)), len(classes))
    try:
        tower = replace(tower, classes=len(classes))  # type: ignore[call-arg]
    except FieldError as error:
        raise OsmError(f"--known_classes: model.tower.{error}") from None
    try:
        bridge = replace(bridge, direct_classes=classes)  # type: ignore[call-arg]
    except FieldError as error:
        raise OsmError(f"--known_classes: model.bridge.{error}") from None
    return replace(model, tower=tower, bridge=bridge)


def _of_model(settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if setting.startswith("model.")]


def _mapping(section: dict[str, Any], name: str, where: str = "training") -> dict[str, Any]:
    """Remove the mapping `name` from a config section, and return a copy of the mapping."""
    value = section.pop(name, None)
    if not isinstance(value, dict | None):
        raise OsmError(f"{where}.{name}: expected a mapping, found {value!r}")
    return dict(value or {})
