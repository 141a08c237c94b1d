"""`--known_names`: the names of the datasets' classes, and the loss of the classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stream_sets import CATEGORIES
from tiny_run import Workshop, losses

import osm
from osm.errors import OsmError
from osm.training.distributed import World
from osm.training.run_config import parse
from osm.training.trainer import Trainer

FLAGS = ("--known_names", "--supervise", "answer")
NAMES = tuple(one["name"] for one in CATEGORIES)


def test_the_names_are_those_of_the_datasets(workshop: Workshop, tmp_path: Path) -> None:
    sets = {"pan": (2, 4), "inst": (2, 4)}
    run = parse(workshop.arguments(tmp_path / "run", *FLAGS, sets=sets, variant="pooled"))
    bridge: Any = run.model.bridge
    assert bridge.direct_names == NAMES  # of both datasets, each name once
    assert bridge.direct_mode_names == {"pan": NAMES, "inst": NAMES}


def test_the_classifier_adds_its_cross_entropy_in_training_alone(workshop: Workshop, tmp_path: Path) -> None:
    smoothed = (*FLAGS, "--names_loss", "0.5", "--names_smoothing", "0.2")
    trainer = workshop.trainer(tmp_path / "run", *smoothed, variant="pooled", dropout=0.0)
    batch = next(iter(next(iter(trainer.loaders.values())).epoch(0)))[0]
    batch.targets[0] = "something else"  # for the class `other`
    logits: list[torch.Tensor] = []
    bridge: Any = trainer.model.bridge
    bridge.register_forward_hook(lambda module, inputs, output: logits.append(output.name_logits_RK))
    with torch.no_grad():
        found, counts = trainer.task(batch)
        trainer.task.eval()
        bridge.direct.train()  # so that the names of the modes have no effect
        plain, _ = trainer.task(batch)
    targets = torch.tensor([len(NAMES), *(NAMES.index(name) for name in batch.targets[1:])])
    own = F.cross_entropy(logits[0], targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(found, plain + 0.5 * counts * own, atol=1e-4, rtol=1e-4)


def test_names_are_learned(workshop: Workshop, tmp_path: Path) -> None:
    """Two runs are equal, their loss falls, and the model in `final` has the names."""
    flags = (*FLAGS, "--learning_rate", "1e-2", "--set", "model.bridge.direct_zoom=28")
    options: dict[str, Any] = {"sets": {"pan": (4, 160)}, "dropout": 0.0, "variant": "pooled"}
    first = workshop.train(tmp_path / "first", *flags, **options)
    assert sum(r["loss"] for r in first[-4:]) < 0.85 * sum(r["loss"] for r in first[:4])
    assert losses(workshop.train(tmp_path / "again", *flags, **options)) == losses(first)
    config = json.loads((tmp_path / "first/final/config.json").read_text())
    assert config["model"]["bridge"]["direct_names"] == list(NAMES)
    assert config["model"]["bridge"]["direct_mode_names"] == {"pan": list(NAMES)}


def test_the_classes_of_the_tower_get_the_known_names(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([NAMES[1], "something else", "", NAMES[0], NAMES[1]]))
    flags = (*FLAGS, "--set", "model.bridge.direct_zoom=28", "--known_classes", str(classes))
    trained = workshop.train(tmp_path / "run", *flags, variant="pooled")
    assert trained and "--known_classes: 3 of 5 classes have a known name" in capsys.readouterr().err
    model, _, _ = osm.load_model(tmp_path / "run/final")
    bridge: Any = model.bridge
    assert bridge.config.direct_classes == (NAMES[1], "", "", NAMES[0], NAMES[1]) and model.tower.classes == 5
    assert bridge.direct.known.name_of_class_A.tolist() == [1, len(NAMES), len(NAMES), 0, 1]
    start = ("--supervise", "answer", "--start_from", str(tmp_path / "run/final"))
    again = workshop.arguments(tmp_path / "again", *start)
    del again[:2]  # --config
    assert parse(again).model.bridge == bridge.config
    with pytest.raises(OsmError, match=r"--known_classes: the model of --start_from .* cannot be changed"):
        parse([*again, "--known_names", "--known_classes", str(classes)])


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({"a": 1}, (), "expected a list with the name of each class, found"),
        (["zebra crossing sign", ""], (), "none of its 2 names is a class name of the datasets"),
        ([NAMES[0]], (), "--known_classes: .*direct_classes needs direct_zoom"),
        ([NAMES[0]], ("--set", "model.tower={kind: open_clip, name: ViT-B-32}"), "kind 'open_clip' has none"),
    ],
)
def test_wrong_files_of_classes(
    workshop: Workshop, tmp_path: Path, content: Any, flags: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(content))
    given = (*FLAGS, "--known_classes", str(file), *flags)
    with pytest.raises(OsmError, match=message):
        parse(workshop.arguments(tmp_path / "run", *given, variant="pooled"))
    with pytest.raises(OsmError, match="--known_classes x.json requires --known_names"):
        parse(workshop.arguments(tmp_path / "run", "--known_classes", "x.json", variant="pooled"))


def test_a_new_dataset_adds_its_names_to_a_trained_model(workshop: Workshop, tmp_path: Path) -> None:
    """As it adds its mode: the trained rows stay, wherever they lie in the list."""
    first = ("--set", f"model.bridge.direct_names=[zebra, {NAMES[1]}]", "--supervise", "answer")
    first = (*first, "--set", "model.bridge.direct_mode_names={coco: [zebra]}")
    workshop.train(tmp_path / "first", *first, variant="pooled")
    before, _, _ = osm.load_model(tmp_path / "first/final")
    flags = workshop.arguments(
        tmp_path / "second", "--supervise", "answer", "--start_from", str(tmp_path / "first/final")
    )
    del flags[:2]  # --config, which would stand for a model of its own
    trainer = Trainer(parse(flags), World(0, 1, torch.device("cpu")))
    bridge: Any = trainer.model.bridge
    names = bridge.config.direct_names
    assert names == ("zebra", NAMES[1], *(name for name in NAMES if name != NAMES[1]))
    # The mode `pan` of the model was not restricted.
    assert bridge.config.direct_mode_names == {"coco": ("zebra",)}
    two = workshop.arguments(tmp_path / "third", *flags[flags.index("--supervise") :], sets={"inst": (2, 4)})
    started = parse(two[2:]).model.bridge
    assert started.direct_mode_names == {"coco": ("zebra",), "inst": NAMES}  # type: ignore[attr-defined]
    old: Any = before.bridge
    known, trained = bridge.direct.known, old.direct.known
    assert torch.equal(known.embeddings[:2], trained.embeddings) and len(known.embeddings) == len(names)
    for now, then in ((known.linear.weight, trained.linear.weight), (known.linear.bias, trained.linear.bias)):
        assert torch.equal(now[:2], then[:2]) and torch.equal(now[-1], then[-1])
    with pytest.raises(OsmError, match="was trained without known names"):
        workshop.train(tmp_path / "plain", variant="pooled")
        parse([*flags, "--known_names", "--start_from", str(tmp_path / "plain/final")])


@pytest.mark.parametrize(
    ("flags", "variant", "message"),
    [
        ((), "maskqformer", "--known_names needs a bridge with a direct path"),
        (("--set", "model.bridge.direct_names=[cat, cat]"), "pooled", "direct_names: 'cat' is given twice"),
        (("--names_loss", "0"), "pooled", "--names_loss 0.0 must be greater than 0"),
        (("--names_smoothing", "1"), "pooled", "--names_smoothing 1.0 must be at least 0 and less than 1"),
    ],
)
def test_wrong_flags(workshop: Workshop, tmp_path: Path, flags: tuple[str, ...], variant: str, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        parse(workshop.arguments(tmp_path / "run", *FLAGS, *flags, variant=variant))
