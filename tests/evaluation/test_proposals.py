"""`--masks FILE`: proposals in COCO's results form, named instead of the ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
from six_sets import HEIGHT, WIDTH, AreaNamer, make, row_of, said

from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.generate_cli import generate_main

# Column by column: the left half; the last column but for its last pixel; nothing.
LEFT_RLE = {"size": [HEIGHT, WIDTH], "counts": [0, 24, 24]}
LAST_RLE = {"size": [HEIGHT, WIDTH], "counts": [42, 5, 1]}
EMPTY_RLE = {"size": [HEIGHT, WIDTH], "counts": [48]}


def write(root: Path, document: Any) -> Path:
    path = root / "proposals.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def name_all(root: Path, name: str, document: Any) -> Any:
    path = generate_predictions(AreaNamer(), row_of(name), 0, 1, root / "out", proposals=write(root, document))
    assert path.name == f"{name}_proposals_0_of_1.json"
    return json.loads(path.read_text())


def test_every_proposal_comes_back_with_its_names(root: Path) -> None:
    make("coco", root, 3)
    compressed = coco_mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": [0, 24, 24]}, HEIGHT, WIDTH)
    proposals: list[dict[str, Any]] = [
        {"image_id": 140, "segmentation": LEFT_RLE, "score": 0.5, "bbox": [0, 0, 4, 6], "category_id": 1, "more": "x"},
        {"image_id": 139, "segmentation": {**compressed, "counts": compressed["counts"].decode()}},
        {"file_name": "000000000140.jpg", "segmentation": LAST_RLE, "score": 1},
        {"image_id": 139, "file_name": "000000000139.jpg", "segmentation": EMPTY_RLE},
    ]
    areas = {0: 24, 2: 5, 1: 24}
    # Image by image, in the order in which the file first names them.
    assert name_all(root, "coco", proposals) == [
        {**proposals[k], **({"open_end_pred": said("coco", areas[k])} if k in areas else {})} for k in (0, 2, 1, 3)
    ]
    meta = json.loads((root / "out" / "coco_meta_proposals_0_of_1.json").read_text())
    assert meta["counts"]["named"] == 3 and meta["counts"]["empty"] == 1
    assert (meta["items"], meta["images"], meta["files"]["masks"]) == ([0, 2], 2, str(root / "proposals.json"))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("lvis", ({"image_id": 1}, {"file_name": "val2017/000000000001.jpg"})),
        (
            "cityscapes",
            (
                {"image_id": "frankfurt_000000_000294"},
                {"file_name": "frankfurt/frankfurt_000000_000294_leftImg8bit.png"},
                {"file_name": "frankfurt_000000_000294_gtFine_leftImg8bit.png"},
            ),
        ),
        ("ade20k", ({"image_id": "ADE_val_00000001"}, {"file_name": "ADE_val_00000001.jpg"})),
        ("a847", ({"image_id": "ADE_val_00000001"}, {"file_name": "ADE_val_00000001.jpg"})),
        ("pc459", ({"file_name": "2008_000002.jpg"},)),
    ],
)
def test_images_of_every_form(root: Path, name: str, names: tuple[dict[str, Any], ...]) -> None:
    make(name, root, 2)
    proposals = [{**called, "segmentation": LEFT_RLE} for called in names]
    assert name_all(root, name, proposals) == [{**p, "open_end_pred": said(name, 24)} for p in proposals]


def test_restarts_and_parts(root: Path) -> None:
    make("coco", root, 5)
    file = write(root, [{"image_id": 139 + k % 5, "segmentation": (LEFT_RLE, LAST_RLE)[k % 2]} for k in range(20)])
    row = row_of("coco")
    whole = generate_predictions(AreaNamer(), row, 0, 1, root / "whole", proposals=file)

    class Dying(AreaNamer):
        def name_image(self, *arguments: Any) -> Any:
            if len(self.calls) == 1:
                raise InterruptedError
            return super().name_image(*arguments)

    for _ in range(4):
        with pytest.raises(InterruptedError):
            generate_predictions(Dying(), row, 0, 1, root / "out", proposals=file)
    again = generate_predictions(AreaNamer(), row, 0, 1, root / "out", proposals=file)
    assert again.read_bytes() == whole.read_bytes()
    parts = [generate_predictions(AreaNamer(), row, k, 2, root / "out", proposals=file) for k in range(2)]
    named = [json.loads(path.read_text()) for path in parts]
    assert [len(part) for part in named] == [8, 12]
    assert named[0] + named[1] == json.loads(whole.read_text())
    # Ground truth beside it, and another file of proposals.
    generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    write(root, [{"image_id": 139, "segmentation": LEFT_RLE}])
    with pytest.raises(
        OsmError, match="coco_proposals_0_of_1.json exists, but was made with a different value of annotations"
    ):
        generate_predictions(AreaNamer(), row, 0, 1, root / "out", proposals=file)


GOOD = {"image_id": 139, "segmentation": LEFT_RLE}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[", r"--masks .*proposals\.json: not valid json"),
        ({"proposals": []}, r"--masks .*expected a list of \{image_id or file_name"),
        ([GOOD, 3], "expected a list of"),
        ([GOOD, {"segmentation": LEFT_RLE}], "proposal 1: has neither image_id nor file_name"),
        ([{**GOOD, "image_id": 7}], "proposal 0: image_id 7 matches none of the 2 images in dataset 'coco'"),
        ([{**GOOD, "image_id": [139]}], "matches none of the 2 images"),
        ([{**GOOD, "image_id": True}], "matches none of the 2 images"),
        (
            [{"file_name": "../x.jpg", "segmentation": LEFT_RLE}],
            r"file_name '\.\./x\.jpg' matches none of the 2 images",
        ),
        ([{**GOOD, "file_name": "000000000140.jpg"}], "refer to different images in dataset 'coco'"),
        ([{"image_id": 139}], "segmentation None is neither an RLE"),
        ([{**GOOD, "segmentation": "x"}], "is neither an RLE"),
        ([{**GOOD, "segmentation": {"size": [6, 8]}}], "RLE counts are neither"),
        (
            [{**GOOD, "segmentation": {"size": [8, 6], "counts": [48]}}],
            r"RLE size \[8, 6\] \(height, width\), but the image's",
        ),
        ([{**GOOD, "score": "high"}], "proposal 0: score 'high' is not a number"),
        ('[{"image_id": 139, "segmentation": {"size": [6, 8], "counts": [48]}, "score": NaN}]', "score nan is not a"),
        ([{**GOOD, "segmentation": {"size": [6, 8], "counts": [47]}}], "proposal 0: RLE counts do not add up"),
    ],
)
def test_bad_proposals(root: Path, document: Any, message: str) -> None:
    make("coco", root, 2)
    with pytest.raises(OsmError, match=message):
        name_all(root, "coco", document)


def test_size_of_an_image_whose_json_has_none(root: Path) -> None:
    make("a847", root, 1)
    with pytest.raises(OsmError, match=r"RLE size \[8, 6\]"):
        name_all(
            root, "a847", [{"file_name": "ADE_val_00000001.jpg", "segmentation": {"size": [8, 6], "counts": [48]}}]
        )


def test_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 2)
    for path in (root / "coco/panoptic_val2017").iterdir():
        path.unlink()
    (root / "coco/panoptic_val2017").rmdir()  # the set's own masks are not needed
    write(root, [GOOD])

    def run(*flags: str) -> int:
        return generate_main(["0", "1", "my.pt", "out", *flags], lambda *_, **__: AreaNamer())

    assert run("--masks", "proposals.json", "--sets", "coco") == 0
    assert (root / "out/coco_proposals_0_of_1.json").is_file()
    for flags in ((), ("--sets", "coco,lvis")):
        assert run("--masks", "proposals.json", *flags) == 2
        assert (
            "--masks proposals.json: a file of proposals belongs to a single dataset; select that dataset with --sets"
            in capsys.readouterr().err
        )
    assert run("--masks", "absent.json", "--sets", "coco") == 2
    assert "--masks absent.json: No such file" in capsys.readouterr().err
    assert run("--sets", "coco") == 2
    assert "coco: left out, mask_dir coco/panoptic_val2017 does not exist" in capsys.readouterr().err
