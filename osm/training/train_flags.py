"""The flags of `train.py`. This module does not import torch, so that `osm train --help` stays fast."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from osm.command_parser import CommandParser
from osm.config import add_settings, field_descriptions
from osm.data.sample_config import SampleConfig
from osm.datasets.table import DatasetTable
from osm.training.train_config import SetConfig, TrainConfig

MODEL_FLAGS = {
    "base_model_name": str,
    "input_size": int,
    "sliding_window_size": int,
    "sliding_window_stride": int,
    "context_enlarge_ratio": float,
}
"""The flags that set fields of the model config, and the type of each field."""
WIDTH_FLAGS = ("backbone_output_stride", "backbone_output_channel", "maskqformer_channel", "llm_channel")
"""The flags that do not configure the model. Their values are checked against the sizes of the built model."""
_MODEL_HELP = {
    "base_model_name": "an InstructBLIP (hub id or folder) that the model is built around, or a config",
    "input_size": "the longest side of an image for the model, in pixels",
    "sliding_window_size": "the side of the tower's windows, in pixels",
    "sliding_window_stride": "the distance between two windows, in pixels",
    "context_enlarge_ratio": "by how much the box around a mask is enlarged on each side for the context queries, as a "
    "fraction of the box",
    "backbone_output_stride": "the expected patch size of the tower, in pixels",
    "backbone_output_channel": "the expected width of the tower's tokens",
    "maskqformer_channel": "the expected width of the bridge",
    "llm_channel": "the expected width of the LLM's embeddings",
}
_METAVARS: dict[Any, str] = {str: "TEXT", int: "N", float: "X"}
_PUBLISHED_DASHES = ("dist_backend", "dist_url", "no_set_device_rank")
FLAG_GROUPS = {
    "run": "run_name start_from resume_from_checkpoint save_initial checkpoint_every_steps keep_checkpoints "
    "delete_previous_checkpoint seed num_epochs",
    "optimization": "learning_rate lr_scheduler warmup_steps weight_decay label_smoothing known_names known_classes "
    "names_loss names_smoothing gradient_accumulation_steps precision tf32 gradient_checkpointing",
    "samples": "masks_per_image resize random_scale_min random_scale_max supervise mask2box_prob synonym_prob "
    "part_in_use_whole_prob part_in_prepend_object_class_prob",
    "reading": "workers dataset_resampled shuffle_buffer shard_cache shard_cache_gb pipeline feature_cache views",
    "evaluation during training": "held_out_share eval_every_steps eval_samples best_metric",
    "log and failures": "logging_steps wandb wandb_project peak_tflops max_skipped_steps max_bad_samples",
    "processes and devices": "device num_threads fsdp fsdp_sharding_strategy fsdp_shard_size fsdp_use_orig_params "
    "emulate_world_size dist_backend dist_url no_set_device_rank",
}
"""Title of a group in the help text -> its flags, separated by spaces."""


@dataclass(frozen=True)
class ScalarField:
    """A field of a config that is also a flag.

    Attributes:
        name: the name of the field and of the flag.
        type: str, int, float or bool.
        default: the default value.
        choices: the allowed values; empty = any value of the type.
    """

    name: str
    type: type
    default: Any
    choices: tuple[str, ...] = ()


def scalar_fields(cls: type) -> list[ScalarField]:
    """Return the fields of a config dataclass that are also flags."""
    hints = get_type_hints(cls)
    return [
        ScalarField(f.name, hints[f.name], f.default, f.metadata.get("choices", ()))
        for f in dataclasses.fields(cls)
        if hints[f.name] in (str, int, float, bool)
    ]


def set_flags(name: str) -> dict[str, str]:
    """Map the names of a dataset's flags to the `SetConfig` fields that the flags set."""
    return {
        f"{name}_shards": "shards",
        f"batch_size_{name}": "batch_size",
        f"train_num_samples_{name}": "train_num_samples",
        f"loss_multiplier_{name}": "loss_multiplier",
    }


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that override the model config, and the flags that are checked against the built model."""
    model = parser.add_argument_group("model", "These flags override the config file.")
    for name, kind in MODEL_FLAGS.items():
        model.add_argument(f"--{name}", type=kind, metavar=_METAVARS[kind], help=f"{_MODEL_HELP[name]} [the config's]")
    checked = parser.add_argument_group("checks of the model", "A model with other sizes is an error.")
    for name in WIDTH_FLAGS:
        checked.add_argument(f"--{name}", type=int, metavar="N", help=f"{_MODEL_HELP[name]} [not checked]")


def train_parser(table: DatasetTable | None = None) -> argparse.ArgumentParser:
    """Return the argument parser for `train.py`, with additional flags for each dataset in the dataset table.

    Args:
        table: the dataset table; None = the built-in one.

    Flags that are not given are absent from the parsed namespace.
    """
    table = DatasetTable() if table is None else table
    out = CommandParser(
        prog="train.py",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        usage="%(prog)s --config CONFIG --SET_shards SHARDS --batch_size_SET N ... [more of the flags below]",
        description="Trains an OSM bridge. The values in brackets are the defaults without a config file.",
    )
    out.add_argument("--config", help="a config of the project (osm, osm_small, osm_nano) or a YAML file [osm]")
    add_settings(out)
    out.add_argument("--datasets", help="a YAML file that adds your own datasets to the table [none]")
    add_model_flags(out)
    fields = {item.name: item for cls in (TrainConfig, SampleConfig) for item in scalar_fields(cls)}
    described = field_descriptions(TrainConfig) | field_descriptions(SampleConfig)
    for title, names in FLAG_GROUPS.items():
        group = out.add_argument_group(title)
        for name in names.split():
            _add_field(group, fields.pop(name), described[name])
    assert not fields, f"flags without a group: {', '.join(fields)}"
    kinds, meanings = get_type_hints(SetConfig), field_descriptions(SetConfig)
    defaults = {item.name: item.default for item in dataclasses.fields(SetConfig)}
    for name in table:
        group = out.add_argument_group(f"dataset {name}")
        for flag, field_name in set_flags(name).items():
            text = f"{_sentence(meanings[field_name])} [{_shown(defaults[field_name])}]"
            metavar = "SHARDS" if field_name == "shards" else _METAVARS[kinds[field_name]]
            group.add_argument(f"--{flag}", type=kinds[field_name], metavar=metavar, help=text)
    return out


def read_flags(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], DatasetTable]:
    """Return the flags that were given, by name, and the dataset table.

    The file given by `--datasets` is read first, because each dataset adds flags.

    Raises:
        OsmError: the file given by `--datasets` is invalid.
        SystemExit: argparse found an unknown flag.
    """
    table = datasets_of(argv)
    return vars(train_parser(table).parse_args(argv)), table


def datasets_of(argv: Sequence[str] | None) -> DatasetTable:
    """Return the dataset table with the datasets of the file that `--datasets` names, if the flag is given.

    Raises:
        OsmError: the file is invalid.
    """
    first = CommandParser(add_help=False, allow_abbrev=False)
    first.add_argument("--datasets", default=None)
    path = first.parse_known_args(argv)[0].datasets
    return DatasetTable().with_yaml(path) if path else DatasetTable()


def _add_field(group: Any, item: ScalarField, description: str) -> None:
    names = [f"--{item.name}"]
    if item.name in _PUBLISHED_DASHES:
        names.insert(0, f"--{item.name.replace('_', '-')}")
    text = _sentence(description)
    if item.type is bool:
        group.add_argument(*names, dest=item.name, action="store_true", help=f"{text} [off]")
        return
    metavar = "{" + ",".join(item.choices) + "}" if item.choices else _METAVARS[item.type]
    text = f"{text} [{_shown(item.default)}]"
    group.add_argument(*names, dest=item.name, type=item.type, metavar=metavar, help=text)


def _sentence(text: str) -> str:
    """Return a description from a docstring as help text: one line without markup, its per cent signs escaped."""
    text = text if text.endswith("...") else text.removesuffix(".")
    return text.replace("`", "").replace("%", "%%")


def _shown(value: Any) -> str:
    return "none" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)
