"""Over 2,000 draws of every form: what is asked about is as often as it should be, within four sigma."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import nine_sets
import numpy as np
import pytest
from nine_sets import boxes, parts, record, semantic
from stream_sets import SIZE, bands, processor, rectangle

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS, Processor
from osm.data.sample import Sample, SampleTransform
from osm.data.sample_config import SampleConfig
from osm.datasets.table import Dataset, DatasetTable
from osm.forms import Form, read_sample
from osm.io.views import View

DRAWS = 2000
TABLE = DatasetTable()


class Drawn:
    """The samples of one scene, and the views that were tried for them."""

    def __init__(self, prepared: Processor, row: Dataset, members: dict[str, bytes], config: SampleConfig) -> None:
        self.views: list[View] = []
        transform, rng = SampleTransform(config, prepared), np.random.default_rng(11)
        draw_view = transform.draw_view

        def noted(scene: Form, rng: np.random.Generator) -> View:
            self.views.append(draw_view(scene, rng))
            return self.views[-1]

        transform.draw_view = noted  # type: ignore[method-assign]
        scene = read_sample(row.form, members, row.label_set, row.rules)
        self.samples: list[Sample] = [transform(scene, "key", rng) for _ in range(DRAWS)]
        self.names = [name for sample in self.samples for name in sample.targets]
        self.boxed = [prompt in BOX_PROMPTS for sample in self.samples for prompt in sample.prompts]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


def is_share(found: Sequence[bool], expected: float) -> bool:
    sigma = math.sqrt(expected * (1 - expected) / len(found))
    return bool(abs(np.mean(found) - expected) <= 4 * sigma)


def are_uniform(values: Sequence[str], choices: Sequence[str]) -> bool:
    """Chi square, within four of its sigmas."""
    seen = Counter(values)
    assert set(seen) <= set(choices), set(seen) - set(choices)
    expected, free = len(values) / len(choices), len(choices) - 1
    chi_square = sum((seen[choice] - expected) ** 2 / expected for choice in choices)
    return chi_square < free + 4 * math.sqrt(2 * free)


def names(row: Dataset, *ids: int) -> list[str]:
    return [row.label_set[i].target for i in ids]


PANOPTIC_IDS = bands(SIZE, SIZE, (1, 2, 3, 4))


def panoptic(row: Dataset, categories: Sequence[int], **more: int) -> dict[str, bytes]:
    entries = [{"id": i + 1, "category_id": c, "iscrowd": 0} for i, c in enumerate(categories)]
    entries[-1].update(more)
    png = nine_sets.panoptic_png(PANOPTIC_IDS)
    return record({"jpg": nine_sets.jpg(SIZE, SIZE), "png": png}, SIZE, SIZE, segments_info=entries)


@pytest.mark.parametrize("name", ["coco", "ade20k", "cityscapes"])
def test_panoptic(prepared: Processor, name: str) -> None:
    """Segments uniformly, crowds never; boxes for things alone."""
    row = TABLE[name]
    classes = row.label_set.classes.values()
    things = [c.id for c in classes if c.isthing][:2]
    stuff = [c.id for c in classes if not c.isthing][:1]
    crowd = [c.id for c in classes if c.isthing][2]
    drawn = Drawn(prepared, row, panoptic(row, [*things, *stuff, crowd], iscrowd=1), SampleConfig(mask2box_prob=0.2))
    assert are_uniform(drawn.names, names(row, *things, *stuff))
    of_things = names(row, *things)
    assert is_share([box for box, n in zip(drawn.boxed, drawn.names, strict=True) if n in of_things], 0.2)
    assert not any(box for box, n in zip(drawn.boxed, drawn.names, strict=True) if n not in of_things)


def test_prompts_are_uniform(prepared: Processor) -> None:
    row = TABLE["coco"]
    drawn = Drawn(prepared, row, panoptic(row, [1, 2, 3, 4]), SampleConfig(mask2box_prob=0.5))
    prompts = [prompt for sample in drawn.samples for prompt in sample.prompts]
    assert are_uniform([p for p in prompts if p in MASK_PROMPTS], MASK_PROMPTS)
    assert are_uniform([p for p in prompts if p in BOX_PROMPTS], BOX_PROMPTS)


@pytest.mark.parametrize("name", ["a847", "pc459"])
def test_semantic(prepared: Processor, name: str) -> None:
    """Ids uniformly, however large; those ignored and those of 100 pixels or fewer never; no boxes, as all is stuff."""
    row = TABLE[name]
    ids = np.full((SIZE, SIZE), 5)  # most of the picture
    ids[:11, :11], ids[:11, 20:31], ids[:10, 40:50] = 6, 7, 8
    ids[40:, :] = row.ignored_ids[-1]
    drawn = Drawn(prepared, row, semantic(ids), SampleConfig(mask2box_prob=1.0, random_scale_min=1, random_scale_max=1))
    assert are_uniform(drawn.names, names(row, 5, 6, 7))
    assert not any(drawn.boxed)


def test_lvis(prepared: Processor) -> None:
    """Annotations, not classes, uniformly; half of them as boxes."""
    row = TABLE["lvis"]
    spans = [(0, 1), (14, 1), (28, 2), (42, 3)]
    entries = [
        {"bbox": [x, 0, 14, 50], "category_id": c, "segmentation": rectangle(x, 0, x + 14, 50)} for x, c in spans
    ]
    members = record({"jpg": nine_sets.jpg(SIZE, SIZE)}, SIZE, SIZE, segments_info=entries)
    drawn = Drawn(prepared, row, members, SampleConfig(mask2box_prob=0.5))
    twice, *once = names(row, 1, 2, 3)
    assert is_share([name == twice for name in drawn.names], 0.5)
    assert are_uniform([name for name in drawn.names if name != twice], once)
    assert is_share(drawn.boxed, 0.5)


def test_v3det(prepared: Processor) -> None:
    row = TABLE["v3det"]
    found = [([x, 1.5, 13.2, 30], c) for x, c in ((0, 1), (14.5, 2), (29, 3), (43, 13204))]
    drawn = Drawn(prepared, row, boxes(SIZE, SIZE, found), SampleConfig())
    assert are_uniform(drawn.names, names(row, 1, 2, 3, 13204))
    assert all(drawn.boxed)
    for sample in drawn.samples[:200]:
        ys, xs = np.nonzero(sample.masks[0, 0].numpy())
        assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1) > 100


@pytest.mark.parametrize("boxes_too", [0.0, 0.2])
def test_partimagenet(prepared: Processor, boxes_too: float) -> None:
    """A fifth of whole objects; of the parts four in five named after their object, each part as often as another."""
    row = TABLE["partimagenet"]
    members = parts(bands(SIZE, SIZE, (0, 1, 2, 40)), np.where(bands(SIZE, SIZE, (0, 0, 0, 1)) == 0, 0, 255))
    drawn = Drawn(prepared, row, members, SampleConfig(mask2box_prob=boxes_too))
    whole = [name == "impala" for name in drawn.names]
    assert is_share(whole, 0.2)
    of_parts = [name for name in drawn.names if name != "impala"]
    assert is_share([name.startswith("impala ") for name in of_parts], 0.8)
    assert {name.split()[0] for name in of_parts} == {"impala", "quadruped"}
    assert are_uniform([name.split()[1] for name in of_parts], ["head", "body", "foot"])
    assert is_share(drawn.boxed, boxes_too)


@pytest.mark.parametrize(("whole_prob", "prepend_prob"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.3)])
def test_shares_of_parts_are_flags(prepared: Processor, whole_prob: float, prepend_prob: float) -> None:
    row = TABLE["partimagenet"]
    members = parts(bands(SIZE, SIZE, (0, 1)), np.full((SIZE, SIZE), 0))
    config = SampleConfig(part_in_use_whole_prob=whole_prob, part_in_prepend_object_class_prob=prepend_prob)
    drawn = Drawn(prepared, row, members, config)
    assert is_share([name == "impala" for name in drawn.names], whole_prob)
    of_parts = [name for name in drawn.names if name != "impala"]
    if of_parts:
        assert is_share([name.startswith("impala ") for name in of_parts], prepend_prob)


def test_pascal_part(prepared: Processor) -> None:
    """Ids uniformly (two of them may be named alike), with neither whole objects nor their names."""
    row = TABLE["pascal_part"]
    left_ear, right_ear, head, ignored = 3, 4, 2, 24
    assert names(row, left_ear, right_ear) == ["cow ear"] * 2 and ignored not in row.label_set
    members = parts(bands(SIZE, SIZE, (left_ear, right_ear, head, ignored)), np.full((SIZE, SIZE), 1), "rgb")
    drawn = Drawn(prepared, row, members, SampleConfig())
    assert set(drawn.names) == {"cow ear", "cow head"}
    assert is_share([name == "cow ear" for name in drawn.names], 2 / 3)


@pytest.mark.parametrize("row", list(TABLE.values())[:9], ids=lambda row: row.name)
def test_scale_and_flip_of_every_set(prepared: Processor, row: Dataset) -> None:
    """The longest side goes to int(u * S), u uniform in 0.5..1.5; half of the views are flipped."""
    side = SIZE - 6  # under S, and square: the side says what u was
    scene = read_sample(row.form, nine_sets.sample(row, 0, side, side), row.label_set, row.rules)
    transform, rng = SampleTransform(SampleConfig(), prepared), np.random.default_rng(5)
    views = [transform.draw_view(scene, rng) for _ in range(DRAWS)]
    u = np.sort((np.array([view.width for view in views]) + 0.5) / SIZE)
    assert u[0] >= 0.5 and u[-1] <= 1.5
    gap = np.abs(u - 0.5 - (np.arange(DRAWS) + 0.5) / DRAWS).max()  # Kolmogorov-Smirnov, at one in a hundred
    assert gap < 1.63 / math.sqrt(DRAWS) + 1 / SIZE
    assert is_share([view.flip for view in views], 0.5)
