"""`osm refit_names`: what the classifier of the known names is trained on, what changes, and users' mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from stream_sets import CATEGORIES, bands, panoptic, write_shard
from tiny_run import Workshop

import osm
from osm.data.shard_lists import existing_shards
from osm.data.shards import RawSample, read_shard
from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.forms import read_sample
from osm.io.views import View
from osm.models.bridges.direct import DirectPath
from osm.prepare.convert import prepare
from osm.recognition.encode import ImageEncoder, MaskEncoder
from osm.recognition.regions import regions_of
from osm.training.discriminant import WeightedInputs, linear_discriminant
from osm.training.names_refit import ClassifierInputs, NameExamples, accuracy, direct_path, read_examples, refit
from osm.training.names_refit_cli import main
from osm.training.refit_options import RefitOptions
from osm.training.run_config import trained_row

NAMES = tuple(one["name"] for one in CATEGORIES)
ZOOM = ("--set", "model.bridge.direct_zoom=28", "--set", "model.bridge.direct_zoom_cutout=true")


@pytest.fixture
def trained(workshop: Workshop, tmp_path: Path) -> Path:
    flags = ("--known_names", "--supervise", "answer", *ZOOM)
    workshop.train(tmp_path / "run", *flags, variant="pooled", sets={"pan": (2, 4)})
    final = tmp_path / "run" / "final"
    config = json.loads((final / "config.json").read_text())
    calibration = {"slope": 1.0, "intercept": 0.0, "unsure": 0.5, "names": 100}
    (final / "config.json").write_text(json.dumps({**config, "calibration": calibration}))
    return final


def arguments(workshop: Workshop, *more: str) -> list[str]:
    shards = [f"--shards={name}={workshop.root}/{name}/{{000..001}}.tar" for name in ("pan", "inst")]
    return [*shards, "--datasets", str(workshop.table), *more]


def test_only_the_classifier_changes_and_it_learns_the_names(
    workshop: Workshop, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--steps", "150", "--masks", "8", "--learning_rate", "1e-2")
    for out in ("once", "again"):
        assert main([str(trained), str(tmp_path / out), *arguments(workshop, *more)]) == 0
    said = capsys.readouterr().out
    assert "the calibration of the probabilities is left out" in said
    before, after, again = (
        load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "once", tmp_path / "again")
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"direct.known.{name}" for name in ("linear.weight", "linear.bias", "mlp_out.weight")}
    assert all(torch.equal(value, again[name]) for name, value in after.items())
    then, now = (json.loads((folder / "config.json").read_text()) for folder in (trained, tmp_path / "once"))
    assert "calibration" not in now and now["model"] == then["model"] and now["frozen"] == then["frozen"]
    for name in ("pan", "inst"):
        [line] = [line for line in said.splitlines() if line.startswith(f"{name}: ")][:1]
        assert float(line.split("before, ")[1].split("%")[0]) > 90, line


def test_the_examples_are_what_the_classifier_reads_in_naming(workshop: Workshop, trained: Path) -> None:
    model, processor, _ = osm.load_model(trained)
    row = DatasetTable().with_yaml(workshop.table)["inst"]
    shards = existing_shards(f"{workshop.root}/inst/{{000..001}}.tar", "--shards")
    path: Any = direct_path(model, "model")
    read = path.classifier_inputs
    seen: list[tuple[torch.Tensor, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectPath, "classifier_inputs", lambda self, *given: seen.append(given) or read(*given))
        found = read_examples(model, processor, row, shards, RefitOptions())
    names = model.config.bridge.direct_names  # type: ignore[attr-defined]
    assert len(found) == 12 and found.inputs.class_logits_RA is None and len(seen) == 6
    raw = next(iter(read_shard(shards[0])))
    assert isinstance(raw, RawSample)
    scene = read_sample(row.form, raw.members, row.label_set, row.rules)
    whole = View(scene.width, scene.height, 0, 0, scene.width, scene.height, False)
    segments = scene.pick(whole, 10, np.random.default_rng(0), fixed_view=True)
    [image] = ImageEncoder(model, processor).encode([scene.image()])
    regions = regions_of((scene.width, scene.height), [one.mask for one in segments])
    tokens, mean = image.state[0]  # type: ignore[misc]
    first = found.targets_R[:2].tolist()  # the two masks of the first image, in any order
    for segment, mask in zip(segments, MaskEncoder(model, processor).encode(regions, image), strict=True):
        inputs, hidden = read(tokens, mean, torch.zeros(1, dtype=torch.long), mask.features)
        match = first.index(names.index(segment.label.target))
        torch.testing.assert_close(found.inputs.inputs_RX[match].float(), inputs[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found.inputs.hidden_RH[match].float(), hidden[0], atol=2e-3, rtol=2e-3)


def test_other_words_for_a_known_name_are_left_out(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    """In a dataset with phrases: an unknown name beside a known one, and one in an image of its own."""
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    boxes = [(1, NAMES[0]), (1, "something like it"), (2, "something else")]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)],
        "annotations": [
            {"id": place, "image_id": image, "bbox": [4, 4, 30, 20], "phrase": name}
            for place, (image, name) in enumerate(boxes)
        ],
    }
    (tmp_path / "regions.json").write_text(json.dumps(document))
    given = f"--output_dir {tmp_path}/shards --image_dir {tmp_path}/images --json_file {tmp_path}/regions.json"
    assert prepare(["regions", *given.split()]) == 0
    (tmp_path / "phrases.yaml").write_text("datasets:\n  phrases: {form: regions}\n")
    model, processor, _ = osm.load_model(trained)
    row = DatasetTable().with_yaml(tmp_path / "phrases.yaml")["phrases"]
    found = read_examples(model, processor, row, [f"{tmp_path}/shards/000000000.tar"], RefitOptions())
    assert sorted(found.targets_R.tolist()) == [0, len(NAMES)]
    few = read_examples(model, processor, row, [f"{tmp_path}/shards/000000000.tar"], RefitOptions(most=1))
    assert len(few) == 1


def test_shards_without_a_known_name(trained: Path) -> None:
    """As if the shards of one dataset were given with the name of another."""
    model, processor, _ = osm.load_model(trained)
    path = direct_path(model, "model")
    assert path.known is not None
    before = path.known.linear.weight.clone()
    inputs = ClassifierInputs(torch.zeros(4, path.mlp_in.in_features), torch.zeros(4, path.mlp_in.out_features), None)
    sets = {name: NameExamples(inputs, torch.full((4,), len(NAMES))) for name in ("a", "b")}
    with pytest.raises(OsmError, match=r"--shards: none of the masks \(a: 4, b: 4\) has a known name"):
        refit(path, sets, {"a": 1.0, "b": 1.0}, RefitOptions(steps=1))
    assert torch.equal(path.known.linear.weight, before)


def test_samples_that_cannot_be_read_are_skipped(
    workshop: Workshop, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = panoptic(bands(64, 48, (1, 2, 3)))
    broken = {**good, "image.png": good["image.png"][:60]}
    write_shard(tmp_path / "000.tar", {"a": broken, "b": good})
    model, processor, _ = osm.load_model(trained)
    row = DatasetTable().with_yaml(workshop.table)["pan"]
    with caplog.at_level("INFO"):
        found = read_examples(
            model, processor, trained_row(row, f"{workshop.root}/pan/000.tar"), [f"{tmp_path}/000.tar"], RefitOptions()
        )
    assert (
        len(found) == 3
        and "pan: skipped {" in caplog.text
        and "images: 1; 3 masks, 3 of them with a known name" in caplog.text
    )
    write_shard(tmp_path / "001.tar", {"a": broken})
    with pytest.raises(OsmError, match=r"--shards pan: no image has a mask with a name \(skipped: {'\w+': 1}\)"):
        read_examples(model, processor, row, [f"{tmp_path}/001.tar"], RefitOptions())


def test_the_loss_is_weighted_over_the_datasets(trained: Path) -> None:
    """The same inputs have another name in each dataset, and the heavier dataset wins."""
    model, _, _ = osm.load_model(trained)
    path = direct_path(model, "model")
    inputs = torch.randn(20, path.mlp_in.in_features, generator=torch.Generator().manual_seed(0)).half()
    hidden = torch.randn(20, path.mlp_in.out_features, generator=torch.Generator().manual_seed(1)).half()
    sets = {
        name: NameExamples(ClassifierInputs(inputs, hidden, None), torch.full((20,), number))
        for number, name in enumerate(("a", "b"))
    }
    options = RefitOptions(steps=60, masks=8, learning_rate=1e-2)
    for heavy in ("a", "b"):
        refit(path, sets, {"a": 0.1, "b": 0.1, heavy: 10.0}, options)
        assert {name: accuracy(path, examples) for name, examples in sets.items()} == {
            "a": float(heavy == "a"),
            "b": float(heavy == "b"),
        }
    assert path.known is not None
    probs = F.softmax(path.known.logits(inputs.float(), hidden.float()), 1).mean(0)
    assert probs[1] > 10 * probs[0]


def test_the_discriminant_is_added_to_the_trained_classifier(trained: Path) -> None:
    path = direct_path(osm.load_model(trained)[0], "model")
    assert path.known is not None
    inputs = torch.randn(30, path.mlp_in.in_features, generator=torch.Generator().manual_seed(0)).half()
    hidden, targets = torch.zeros(30, path.mlp_in.out_features).half(), torch.arange(30) % 3
    sets = {"a": NameExamples(ClassifierInputs(inputs, hidden, None), targets)}
    found = []
    for weight in (0.0, 0.5):
        refit(path, sets, {"a": 2.0}, RefitOptions(steps=5, masks=8, discriminant=weight, shrinkage=0.5))
        found.append((path.known.linear.weight.detach().clone(), path.known.linear.bias.detach().clone()))
    wanted = linear_discriminant([WeightedInputs(inputs, targets, 1.0)], path.known.linear.out_features, 0.5, 16)
    for without, with_it, of_discriminant in zip(*found, wanted, strict=True):
        torch.testing.assert_close(with_it, without + 0.5 * of_discriminant)


def test_only_the_ratios_of_the_weights_matter(trained: Path) -> None:
    path = direct_path(osm.load_model(trained)[0], "model")
    assert path.known is not None
    rng = torch.Generator().manual_seed(0)
    sets = {}
    for name in ("a", "b"):
        inputs = torch.randn(12, path.mlp_in.in_features, generator=rng).half()
        read = ClassifierInputs(inputs, torch.zeros(12, path.mlp_in.out_features).half(), None)
        sets[name] = NameExamples(read, torch.arange(12) % 3)
    found = []
    for factor in (1.0, 8.0):
        options = RefitOptions(steps=5, masks=4, discriminant=0.5)
        refit(path, sets, {"a": factor, "b": 0.25 * factor}, options)
        found.append(path.known.linear.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_features_that_are_not_finite(workshop: Workshop, trained: Path) -> None:
    model, processor, _ = osm.load_model(trained)
    row = DatasetTable().with_yaml(workshop.table)["pan"]
    direct_path(model, "model").mlp_in.bias.data[0] = 1e6  # more than float16 can express
    with pytest.raises(OsmError, match="--shards pan: the model's features of the masks are not finite in float16"):
        read_examples(model, processor, row, [f"{workshop.root}/pan/000.tar"], RefitOptions())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--weights", "pam=2"), "--weights pam: the datasets of --shards are pan, inst.* did you mean 'pan'"),
        (("--weights", "pan=much"), "--weights pan=much: expected a number"),
        (("--weights", "pan=-1"), "--weights pan=-1: must be greater than 0"),
        (("--weights", "pan"), "--weights 'pan': expected the name of a dataset, `=` and a value"),
        (("--shards", "pan=x.tar"), "--shards: the dataset 'pan' is given twice"),
        (("--steps", "0"), "--steps 0 must be 1 or more"),
        (("--dropout", "1"), "--dropout 1.0 must be at least 0 and less than 1"),
        (("--shrinkage", "0"), "--shrinkage 0.0 must be at least 0.001 and at most 1"),
        (("--discriminant", "-1"), "--discriminant -1.0 must be at least 0"),
        (("--prior_masks", "0"), "--prior_masks 0.0 must be at least 0.001"),
        (("--learning_rate", "nan"), "--learning_rate nan must be greater than 0"),
        (("--shards", "pet=x.tar"), "pet"),
    ],
)
def test_wrong_flags(
    workshop: Workshop, tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "out"), *arguments(workshop, *more)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said


def test_a_model_without_known_names(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.train(tmp_path / "run", variant="pooled", sets={"pan": (2, 2)})
    final = str(tmp_path / "run" / "final")
    assert main([final, str(tmp_path / "out"), *arguments(workshop)]) == 2
    assert "the model has no known names; train it with --known_names" in capsys.readouterr().err
    assert main([final, final, *arguments(workshop)]) == 2
    assert "already" in capsys.readouterr().err
    with pytest.raises(OsmError, match="no known names"):
        direct_path(osm.load_model(final)[0], "model")
