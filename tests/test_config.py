"""Configs and flags: what is parsed, what overrides what, and what a mistake is called."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from osm.config import as_dict, find_config, from_dict, load_yaml
from osm.datasets.labels import load_labels
from osm.datasets.table import PUBLISHED_MODES, Dataset, DatasetTable
from osm.errors import OsmError
from osm.models.model_config import ModelConfig, load_model_config
from osm.training.run_config import Run, parse
from osm.training.train_cli import main
from osm.training.train_config import SetConfig, TrainConfig

SETS = ("--batch_size_coco", "2", "--coco_shards", "x.tar")
# Two sets of the published README's command, with sizes of its own (the whole of both: test_published_commands.py).
PUBLISHED_COMMAND = """
  --dataset_resampled \
  --mask2box_prob 0.2 \
  --batch_size_coco 8 \
  --batch_size_ade20k 4 \
  --train_num_samples_coco 1000 \
  --train_num_samples_ade20k 500 \
  --workers 4 \
  --run_name osm_final \
  --num_epochs 10 \
  --warmup_steps 100 \
  --weight_decay 0.05 \
  --lr_scheduler cosine \
  --coco_shards "$SAVE_PATH/coco_pan_wds_exclude_lvisval/{000000000..000000106}.tar" \
  --ade20k_shards "$SAVE_PATH/ade20k_pan_wds/{000000000..000000020}.tar" \
  --learning_rate 4e-5 \
  --precision amp_bfloat16 \
  --gradient_accumulation_steps 4
"""


def write(path: Path, document: Any) -> str:
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


# Files.


def test_the_published_model() -> None:
    config = load_model_config("osm")
    assert config == ModelConfig(base_model_name="Salesforce/instructblip-vicuna-7b")
    assert (config.input_size, config.sliding_window_size, config.sliding_window_stride) == (1120, 224, 224)
    assert config.mask_to_grid == "nearest" and config.context_enlarge_ratio == 0.5
    assert config.modes == PUBLISHED_MODES and len(PUBLISHED_MODES) == 10


def test_the_small_model_and_its_training() -> None:
    run = parse(["--config", "osm_small", *SETS])
    assert run.model.tower.kind == "timm" and run.model.tower.strides == (16, 32)
    assert run.model.input_size % 32 == 0 and run.model.mask_to_grid == "area"
    assert run.training.sample.resize == "always" and isinstance(run.training.learning_rate, float)


def test_the_benchmark_table() -> None:
    table = DatasetTable().with_yaml(find_config("benchmark"))
    assert table["coco"].image_dir == "coco/val2017" and table["coco"].form == "coco_panoptic"
    assert table["ade20k"].json_file == "ADEChallengeData2016/ade20k_panoptic_val.json"


def test_configs_go_through_plain_values_and_back() -> None:
    for name in ("osm", "osm_small"):
        config = load_model_config(name)
        assert from_dict(ModelConfig, json.loads(json.dumps(as_dict(config))), "there and back") == config


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"model": {"imput_size": 5}}, r"model: unknown field 'imput_size'; the fields are .*input_size"),
        ({"model": {"input_size": "big"}}, r"model\.input_size: expected int, found 'big'"),
        ({"model": {"input_size": True}}, r"model\.input_size: expected int, found True"),
        ({"model": {"tower": {"kind": "timm", "strides": 5}}}, r"model\.tower\.strides: expected a list, found 5"),
        ({"model": {"tower": {"kind": "timm", "strides": ["a"]}}}, r"model\.tower\.strides: expected int, found 'a'"),
        ({"model": {"qformer": {"dropout": "x"}}}, r"model\.qformer\.dropout: expected float, found 'x'"),
        ({"model": {"qformer": 7}}, r"model\.qformer: expected a mapping of kind, .*layers"),
        ({"model": {"modes": ["coco"]}}, r"model\.modes must contain 'any'"),
        ({"model": {"variant": "other"}}, r"model\.variant 'other'"),
        ({"model": {"mask_to_grid": "cubic"}}, r"model\.mask_to_grid 'cubic'"),
        ({"model": [1]}, r"model must be a mapping"),
        ({"models": {}}, r"unknown section 'models'"),
        ([1], r"expected the sections"),
        ("a: [", r"config .*tiny\.yaml"),
    ],
)
def test_mistakes_in_a_model_section(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path / "tiny.yaml", document)
    with pytest.raises(OsmError, match=message):
        load_model_config(path, base_model_name="some/base")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"learning_rat": 1}, r"training: unknown field 'learning_rat'"),
        ({"workers": 1.5}, r"training\.workers: expected int, found 1.5"),
        ({"dataset_resampled": "yes"}, r"training\.dataset_resampled: expected bool, found 'yes'"),
        ({"sample": {"resize": 3}}, r"training\.sample\.resize: expected str, found 3"),
        ({"sample": {"colour": 3}}, r"training\.sample: unknown field 'colour'"),
        ({"sample": [3]}, r"training\.sample: expected a mapping, found \[3\]"),
        ({"sets": {"coco": 3}}, r"training\.sets\.coco: expected a mapping, found 3"),
        ({"sets": {"coco": {"size": 3}}}, r"training\.sets\.coco: unknown field 'size'"),
        (
            {"sets": {"coca": {}}},
            r"training\.sets: unknown dataset 'coca'; define it in the --datasets file\. Known datasets: coco, lvis",
        ),
    ],
)
def test_mistakes_in_a_training_section(tmp_path: Path, section: Any, message: str) -> None:
    path = write(tmp_path / "tiny.yaml", {"model": {"base_model_name": "some/base"}, "training": section})
    with pytest.raises(OsmError, match=message):
        parse(["--config", path, *SETS])


def test_empty_sections_are_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path / "tiny.yaml", "model:\n  base_model_name: some/base\ntraining:\n  sample:\n  sets:\n    coco:\n"
    )
    assert parse(["--config", path, *SETS]).training == parse(["--base_model_name", "some/base", *SETS]).training


def test_a_config_that_is_not_there() -> None:
    with pytest.raises(OsmError, match="config 'nowhere.yaml': no such file"):
        load_yaml("nowhere.yaml")
    with pytest.raises(OsmError, match="'nowhere' is neither .*osm, .*osm_small"):
        load_yaml("nowhere")


# Flags.


def published(**environment: str) -> Run:
    text = PUBLISHED_COMMAND.replace("\\\n", " ")
    for name, value in environment.items():
        text = text.replace(f"${name}", value)
    return parse(shlex.split(text))


def test_the_published_command_parses() -> None:
    run = published(SAVE_PATH="/data")
    expected = {
        "coco": SetConfig("/data/coco_pan_wds_exclude_lvisval/{000000000..000000106}.tar", 8, 1000),
        "ade20k": SetConfig("/data/ade20k_pan_wds/{000000000..000000020}.tar", 4, 500),
    }
    assert run.training.used_sets == expected
    assert run.training.dataset_resampled and run.training.sample.mask2box_prob == 0.2
    assert (run.training.learning_rate, run.training.weight_decay, run.training.warmup_steps) == (4e-5, 0.05, 100)
    assert (run.training.lr_scheduler, run.training.num_epochs, run.training.workers) == ("cosine", 10, 4)
    assert (run.training.precision, run.training.gradient_accumulation_steps) == ("amp_bfloat16", 4)
    assert run.training.run_name == "osm_final"
    assert run.model == load_model_config("osm") and set(run.widths.values()) == {None}


def test_the_defaults_are_the_published_ones() -> None:
    run = parse(SETS)
    found = run.training
    assert (found.run_name, found.seed, found.learning_rate, found.lr_scheduler) == ("osm", 42, 1e-4, "constant")
    assert (found.warmup_steps, found.weight_decay, found.num_epochs, found.workers) == (5000, 0.1, 1, 1)
    assert (found.gradient_accumulation_steps, found.logging_steps, found.precision) == (1, 100, "fp32")
    assert (found.sample.random_scale_min, found.sample.random_scale_max) == (0.5, 1.5)
    assert (found.sample.mask2box_prob, found.sample.resize, found.sample.supervise) == (0.0, "published", "all")
    assert found.dist_url == "env://" and not found.dataset_resampled
    assert found.sets["coco"] == SetConfig("x.tar", 2, 10_000, 1.0)


def test_flags_override_the_yaml_which_overrides_the_defaults(tmp_path: Path) -> None:
    document = {
        "model": {"base_model_name": "some/base", "input_size": 448},
        "training": {
            "learning_rate": "3e-4",
            "seed": 7,
            "sample": {"resize": "always", "masks_per_image": 3},
            "sets": {"coco": {"shards": "from_yaml.tar", "batch_size": 4, "loss_multiplier": 2}},
        },
    }
    path = write(tmp_path / "tiny.yaml", document)
    run = parse(["--config", path])
    assert run.training.learning_rate == 3e-4 and run.training.seed == 7 and run.model.input_size == 448
    assert run.training.used_sets == {"coco": SetConfig("from_yaml.tar", 4, 10_000, 2.0)}
    flags = "--seed 9 --masks_per_image 5 --batch_size_coco 6 --input_size 672 --context_enlarge_ratio -1"
    run = parse(["--config", path, *flags.split()])
    assert run.training.seed == 9 and run.training.learning_rate == 3e-4
    assert (run.training.sample.masks_per_image, run.training.sample.resize) == (5, "always")
    assert run.training.used_sets == {"coco": SetConfig("from_yaml.tar", 6, 10_000, 2.0)}
    assert run.model.input_size == 672 and run.model.context_enlarge_ratio == -1
    assert run.model.base_model_name == "some/base"


def test_both_spellings_of_the_flags_with_dashes() -> None:
    for dash in "-_":
        flags = f"--dist{dash}backend gloo --dist{dash}url tcp://h:1 --no{dash}set{dash}device{dash}rank".split()
        found = parse([*SETS, *flags]).training
        assert (found.dist_backend, found.dist_url, found.no_set_device_rank) == ("gloo", "tcp://h:1", True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr_scheduler step", "--lr_scheduler 'step' is not one of constant, linear, cosine"),
        ("--precision fp8", "--precision 'fp8' is not one of"),
        ("--wandb yes", "--wandb 'yes'"),
        ("--num_epochs 0", "--num_epochs 0 must be 1 or more"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0"),
        ("--workers -1", "--workers -1 must be 0 or more"),
        ("--learning_rate -1", "--learning_rate -1.0"),
        ("--batch_size_ade20k 2", "--batch_size_ade20k 2 requires --ade20k_shards"),
        ("--train_num_samples_coco 0", "--train_num_samples_coco 0 must be 1 or more"),
        ("--sliding_window_size 2000", r"--sliding_window_size 2000 must be between 1 and the --input_size \(1120\)"),
        ("--sliding_window_stride 225", "--sliding_window_stride 225 .* would not be covered"),
        ("--random_scale_min 2", "--random_scale_min 2.0 and --random_scale_max 1.5"),
        ("--part_in_use_whole_prob 1.2", "--part_in_use_whole_prob 1.2 is not between 0 and 1"),
        ("--part_in_prepend_object_class_prob -1", "--part_in_prepend_object_class_prob -1.0 is not between 0 and 1"),
        ("--fsdp --fsdp_sharding_strategy half", "--fsdp_sharding_strategy 'half' is not one of full, hybrid"),
        ("--fsdp_sharding_strategy hybrid", "--fsdp_sharding_strategy and --fsdp_shard_size require --fsdp"),
        ("--fsdp --fsdp_shard_size 2", "--fsdp_shard_size 2 requires --fsdp_sharding_strategy hybrid"),
        ("--fsdp --precision fp16", "--fsdp cannot be combined with --precision fp16"),
        ("--fsdp --feature_cache cache", "--fsdp cannot be combined with --feature_cache cache"),
        ("--held_out_share 1", "--held_out_share 1.0 must be at least 0 and less than 1"),
        ("--eval_every_steps 5", "--eval_every_steps 5 requires held-out samples; set --held_out_share"),
        ("--max_bad_samples 3", "--max_bad_samples 3.0 must be between 0 and 1"),
        ("--max_skipped_steps 0", "--max_skipped_steps 0 must be 1 or more"),
        ("--keep_checkpoints 0", "--keep_checkpoints 0 must be 1 or more"),
        ("--checkpoint_every_steps -1", "--checkpoint_every_steps -1 must be 0 or more"),
        ("--best_metric f1", "--best_metric 'f1' is not one of accuracy, loss"),
    ],
)
def test_flags_that_are_not_right(flags: str, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        parse([*SETS, *flags.split()])


def test_no_set_at_all() -> None:
    with pytest.raises(OsmError, match="no dataset is used; .* coco, lvis"):
        parse(["--coco_shards", "x.tar"])


@pytest.mark.parametrize("flags", [["--batch_size_unheard", "2"], ["--seeds", "3"], ["--see", "3"], ["--seed", "x"]])
def test_unknown_flags_and_abbreviations_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*SETS, *flags])
    assert caught.value.code == 2 and flags[0] in capsys.readouterr().err


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SETS, "--precision", "fp8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --precision 'fp8'") and said.count("\n") == 1


# Sets of one's own.


def test_a_users_set_brings_its_flags_and_its_mode(tmp_path: Path) -> None:
    write(tmp_path / "cats.json", json.dumps({"categories": [{"id": 1, "name": "Cat", "synonyms": ["kitty"]}]}))
    path = write(tmp_path / "sets.yaml", {"datasets": {"pets": {"form": "coco_instances", "labels": "cats.json"}}})
    run = parse(["--datasets", path, "--batch_size_pets", "3", "--pets_shards", "p.tar", "--loss_multiplier_pets", "2"])
    assert run.training.used_sets == {"pets": SetConfig("p.tar", 3, 10_000, 2.0)}
    assert run.model.modes == (*PUBLISHED_MODES, "pets")
    row = run.table["pets"]
    assert row == Dataset("pets", "coco_instances", "pets", str(tmp_path / "cats.json"))
    assert row.label_set[1].names == ("cat", "kitty")


def test_rows_are_added_and_changed(tmp_path: Path) -> None:
    document = {
        "datasets": {
            "coco": {"image_dir": "val"},
            "mine": {"form": "coco_panoptic", "json_file": "a/b.json", "title": "Mine", "mask_dir": "/abs"},
        }
    }
    table = DatasetTable().with_yaml(write(tmp_path / "sets.yaml", document))
    assert list(table) == [*DatasetTable(), "mine"]
    assert table["coco"] == replace(DatasetTable()["coco"], image_dir=str(tmp_path / "val"))
    labels = str(tmp_path / "a/b.json")  # the json's own categories
    assert table["mine"] == Dataset("mine", "coco_panoptic", "Mine", labels, None, "/abs", labels)
    here = DatasetTable().with_yaml(write(tmp_path / "here.yaml", {"relative_to": "working_folder", **document}))
    assert here["coco"].image_dir == "val"


def test_a_tenth_set_of_every_form_is_a_few_lines(tmp_path: Path) -> None:
    write(tmp_path / "fur.json", json.dumps({"categories": [{"id": 1, "name": "Cat Tail", "supercategory": "Cat"}]}))
    write(tmp_path / "cats.json", json.dumps({"categories": [{"id": 4, "name": "Manx"}]}))
    rows = {
        "shapes": {"form": "semantic", "labels": "fur.json", "ignored_ids": [0, 255]},
        "fur": {"form": "parts", "labels": "fur.json", "whole_labels": "cats.json", "id_coding": "rgb"},
        "found": {"form": "boxes", "labels": "v3det"},
        "pc459": {"ignored_ids": []},
    }
    table = DatasetTable().with_yaml(write(tmp_path / "sets.yaml", {"datasets": rows}))
    assert table["shapes"].rules.ignored_ids == {0, 255} and table["shapes"].rules.whole_labels is None
    rules = table["fur"].rules
    assert rules.whole_labels is not None and rules.whole_labels[4].target == "manx" and rules.id_coding == "rgb"
    assert table["fur"].label_set[1].supercategory == "cat"
    assert table["found"].label_set.source == "v3det" and not table["pc459"].rules.ignored_ids


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a: [", "dataset table"),
        ({"sets": {}}, "expected a mapping 'datasets:"),
        ({"datasets": []}, "expected a mapping 'datasets:"),
        ({"datasets": {"coco": 5}}, "set 'coco': expected a mapping, found 5"),
        ({"datasets": {"coco": {"images": "x"}}}, "set 'coco': unknown field 'images'; the fields are form"),
        (
            {"datasets": {"mine": {"form": "coco_panoptic"}}},
            "set 'mine': a new dataset needs 'form', and either 'labels' or",
        ),
        ({"datasets": {"mine": {"labels": "coco"}}}, "set 'mine': a new dataset needs 'form'"),
        (
            {"datasets": {"mine": {"form": "voc", "labels": "coco"}}},
            "form 'voc': expected one of boxes, coco",
        ),
        ({"datasets": {"My Set": {"form": "coco_panoptic", "labels": "coco"}}}, "set 'My Set': the name of a dataset"),
        ({"datasets": {"any": {"form": "coco_panoptic", "labels": "coco"}}}, "cannot be 'any'"),
        ({"datasets": {"coco": {"ignored_ids": 3}}}, "set 'coco': ignored_ids 3 is not a list of integers"),
        ({"datasets": {"coco": {"id_coding": "cmyk"}}}, "id_coding 'cmyk' is not one of grey, rgb"),
        ({"datasets": {7: {}}}, "set 7: the name of a dataset"),
        ({"datasets": {"coco": {}}, "relative_to": "home"}, "relative_to 'home'"),
    ],
)
def test_mistakes_in_a_dataset_table(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path / "sets.yaml", document)
    with pytest.raises(OsmError, match=message):
        DatasetTable().with_yaml(path)
    with pytest.raises(OsmError, match="dataset table .*nowhere.yaml"):
        DatasetTable().with_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "'categories' is empty"),
        ([{"id": "one", "name": "cat"}], "integer 'id'"),
        ([{"id": True, "name": "cat"}], "integer 'id'"),
        ([{"name": "cat"}], "integer 'id'"),
        ([{"id": 1, "name": ""}, {"id": 2, "name": " "}], "'categories' is empty"),
        ([{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}], "id 1 is given twice"),
        ([{"id": 1, "name": "cat", "synonyms": {"a": "kitty"}}], "'synonyms' has to be a list, found"),
        ([5], "found 5"),
        (None, "no list 'categories'"),
    ],
)
def test_mistakes_in_a_label_file(tmp_path: Path, categories: Any, message: str) -> None:
    path = write(tmp_path / "labels.json", json.dumps({"categories": categories}))
    with pytest.raises(OsmError, match=message):
        load_labels(path)


def test_synonyms_may_be_null(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", json.dumps({"categories": [{"id": 1, "name": " Cat ", "synonyms": None}]}))
    assert load_labels(path)[1].names == ("cat",)


def test_a_configs_fields_and_flags_agree() -> None:
    """Whatever can stand in a YAML's training section is a flag, too."""
    document = as_dict(TrainConfig())
    scalars = {**document, **document["sample"]}
    flags: list[str] = []
    for name, value in scalars.items():
        if isinstance(value, dict) or name == "resume_from_checkpoint":
            continue
        flags += [f"--{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    direct = ("--set", "model.bridge.direct_tokens=1")  # which --known_names needs
    assert parse([*SETS, *flags, *direct]).training.seed == 42
