"""Sets, converters, checkpoints, pictures and lists on servers: read as the same files on this machine are."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from convert_sets import Set, members, write_image
from fake_namer import FakeNamer
from panoptic_pets import write_panoptic
from PIL import Image
from servers import FileServer, S3Server, registered
from tiny import tiny_model_yaml

import osm
from osm.config import as_dict, find_config
from osm.datasets.labels import load_labels
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError, RunStopped
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate_cli import generate_main
from osm.forms import split_of
from osm.labeling.folder_cli import main as name_folder
from osm.labeling.name_cli import main as name_picture
from osm.models.factory import build
from osm.models.model_config import load_model_config
from osm.prepare.convert import main as convert
from osm.recognition.vocabulary import read_names
from osm.training.train_config import SetConfig, TrainConfig

FILES = ("image_dir", "mask_dir", "json_file")


@pytest.fixture
def pets(shelf: Path) -> Dataset:
    """A val split on the shelf, with a table beside it whose paths are relative."""
    row = write_panoptic(shelf / "pets")
    paths = {"image_dir": "images", "mask_dir": "masks", "json_file": "panoptic.json"}
    table = {"datasets": {"pets": {"form": "coco_panoptic", **paths}}}
    (shelf / "pets" / "sets.yaml").write_text(yaml.safe_dump(table))
    return row


def generate(out: Path, table: str, *more: str) -> dict[str, Any]:
    """Predictions of a namer without a model, and their meta file."""
    arguments = ["0", "1", "x.pt", str(out), "--datasets", table, "--sets", "pets", *more]
    assert generate_main(arguments, lambda *_, **__: FakeNamer()) == 0
    found = {path.name: json.loads(path.read_text()) for path in out.iterdir()}
    for value in found.values():
        if isinstance(value, dict):
            value.pop("seconds", None)
    return found


def test_a_val_split_of_a_store(
    pets: Dataset, shelf: Path, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.bucket("bkt")
    s3.put_folder("bkt", shelf, "val/")
    url = "s3://bkt/val/pets"
    here = generate(tmp_path / "here", str(shelf / "pets/sets.yaml"), "--limit", "2")
    s3.forget()
    there = generate(tmp_path / "there", f"{url}/sets.yaml", "--limit", "2")
    files = there["pets_meta_0_of_1.json"].pop("files")
    assert here["pets_meta_0_of_1.json"].pop("files") and here == there
    assert files == {"image_dir": f"{url}/images", "mask_dir": f"{url}/masks", "json_file": f"{url}/panoptic.json"}
    fetched = [number for number in range(5) if s3.requests(f"bkt/val/pets/images/{number}.png", "GET")]
    assert fetched == [3, 4]  # of the pictures and masks those in use alone
    s3.put_folder("bkt", tmp_path / "there", "out/")
    capsys.readouterr()
    told = []
    for out, table in ((tmp_path / "here", shelf / "pets/sets.yaml"), ("s3://bkt/out", f"{url}/sets.yaml")):
        assert evaluate_main([str(out), "1", "--datasets", str(table), "--metrics", "published"]) == 0
        told.append([line for line in capsys.readouterr().out.splitlines() if ": left out" not in line])
    assert told[0] == told[1] != []


def test_a_val_split_by_http_from_folders_that_are_not_listed(
    pets: Dataset, shelf: Path, server: FileServer, tmp_path: Path
) -> None:
    server.status = {f"pets/{folder}/": 403 for folder in ("images", "masks")}
    here = generate(tmp_path / "here", str(shelf / "pets/sets.yaml"))["pets_pred_0_of_1.json"]
    flags = [f"--pets_{name}={server.url(f'pets/{name_of}')}" for name, name_of in zip(FILES, PATHS, strict=True)]
    there = generate(tmp_path / "there", str(shelf / "pets/sets.yaml"), *flags)["pets_pred_0_of_1.json"]
    assert here == there


PATHS = ("images", "masks", "panoptic.json")


def remote_row(row: Dataset, base: str) -> Dataset:
    places = {name: f"{base}/pets/{path}" for name, path in zip(FILES, PATHS, strict=True)}
    return replace(row, **places, labels=places["json_file"])


@pytest.mark.parametrize("protocol", ["gs", "hf"])
def test_a_val_split_of_other_stores(pets: Dataset, shelf: Path, tmp_path: Path, protocol: str) -> None:
    shutil.copytree(shelf, tmp_path / "store" / "bkt")
    with registered(protocol, tmp_path / "store"):
        there, here = split_of(remote_row(pets, f"{protocol}://bkt")), split_of(pets)
        assert there.source_hash == here.source_hash and len(there) == 5
        one, other = there.load(2), here.load(2)
        assert one.entry == other.entry and np.array_equal(one.mask(0), other.mask(0))


def test_names_that_are_spelt_in_another_way_are_found_in_the_listing(
    pets: Dataset, shelf: Path, server: FileServer
) -> None:
    document = json.loads((shelf / "pets/panoptic.json").read_text())
    for image in document["images"]:
        image["file_name"] = rf"C:\pictures\{image['file_name'].replace('png', 'PNG')}"
    (shelf / "pets/panoptic.json").write_text(json.dumps(document))
    split = split_of(remote_row(pets, server.url().rstrip("/")))
    assert split.load(0).image_path.name == "4.png" and split.load(0).image().size == (8, 6)


def test_a_picture_that_is_not_there_is_told_of_before(
    pets: Dataset, shelf: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf / "pets/images/2.png").unlink()
    arguments = ["0", "1", "x.pt", str(tmp_path / "out"), "--datasets", server.url("pets/sets.yaml"), "--sets", "pets"]
    assert generate_main(arguments, lambda *_, **__: FakeNamer()) == 2
    assert "set 'pets': 1 of the 10 files to read are missing" in capsys.readouterr().err


def test_a_server_that_fails_is_no_mistake_of_the_user(
    pets: Dataset, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["0", "1", "x.pt", str(tmp_path / "out"), "--datasets", server.url("pets/sets.yaml"), "--sets", "pets"]
    for status, name, code in (
        (503, "pets/panoptic.json", 3),
        (404, "pets/panoptic.json", 2),
        (503, "pets/sets.yaml", 3),
    ):
        server.status = {name: status}
        assert generate_main(arguments, lambda *_, **__: pytest.fail("a model was loaded")) == code
        said = capsys.readouterr().err
        assert server.url(name) in said and ("--pets_json_file" in said) == ("json" in name) and "cache" not in said


def test_label_maps_are_fetched_whole(shelf: Path, s3: S3Server) -> None:
    for number in range(2):
        write_image(place(shelf, "images") / f"{number}.jpg", number)
        Image.fromarray(np.full((16, 24), 1 + number, np.uint8)).save(place(shelf, "maps") / f"{number}.png")
    (shelf / "names.txt").write_text("nothing\nsky\ncar\n")
    s3.bucket("bkt")
    s3.put_folder("bkt", shelf)

    def row(base: str) -> Dataset:
        return Dataset("mine", "semantic", "Mine", f"{base}/names.txt", f"{base}/images", f"{base}/maps")

    here, there = split_of(row(str(shelf))), split_of(row("s3://bkt"))
    assert here.source_hash == there.source_hash and [there.load(i).entry for i in range(2)] == [
        here.load(i).entry for i in range(2)
    ]


def place(root: Path, name: str) -> Path:
    (root / name).mkdir(exist_ok=True)
    return root / name


# Converters.


@pytest.mark.parametrize("way", ["http", "s3"])
def test_a_conversion(way: str, shelf: Path, server: FileServer, s3: S3Server, tmp_path: Path) -> None:
    made = Set(shelf, "coco_panoptic")
    made.write()
    s3.bucket("bkt")
    s3.put_folder("bkt", shelf)
    base = server.url().rstrip("/") if way == "http" else "s3://bkt"

    def run(base: str, out: str) -> int:
        places = {"json_file": "set.json", "image_dir": "images", "ann_dir": "panoptic"}
        flags = [f"--{name}={base}/{path}" for name, path in places.items()]
        return convert("coco_panoptic", ["--output_dir", str(tmp_path / out), "--num_workers", "1", *flags])

    assert run(str(shelf), "here") == run(base, "there") == 0
    assert members(tmp_path / "here") == members(tmp_path / "there")
    noted = json.loads((tmp_path / "there" / "progress.json").read_text())
    assert f"{base}/set.json" in json.dumps(noted) and "cache" not in json.dumps(noted)
    assert run(base, "there") == 0  # it is there already


def test_a_conversion_counts_the_pictures_that_are_not_there(shelf: Path, server: FileServer, tmp_path: Path) -> None:
    made = Set(shelf, "coco_instances")
    (made.images / "im2.jpg").unlink()
    made.write()
    flags = [f"--json_file={server.url('set.json')}", f"--image_dir={server.url('images')}", "--max_bad_samples=0.5"]
    assert convert("coco_instances", ["--output_dir", str(tmp_path / "out"), "--num_workers", "1", *flags]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["left_out"] == {"image_missing": 1}


def test_parts_with_their_split_beside(shelf: Path, s3: S3Server, tmp_path: Path) -> None:
    for number in range(2):
        for folder, ending in (
            ("images/train", "JPEG"),
            ("annotations/train", "png"),
            ("annotations/train_whole", "png"),
        ):
            (shelf / folder).mkdir(parents=True, exist_ok=True)
            path = shelf / folder / f"n{number}.{ending}"
            Image.new("RGB", (24, 16)).save(path) if ending == "JPEG" else Image.new("L", (24, 16), number).save(path)
    s3.bucket("bkt")
    s3.put_folder("bkt", shelf)
    for base, out in ((str(shelf), "here"), ("s3://bkt", "there")):
        flags = ["--output_dir", str(tmp_path / out), "--num_workers", "1", f"--image_dir={base}/images"]
        assert convert("partimagenet", flags) == 0
    assert members(tmp_path / "here") == members(tmp_path / "there") != {}


def test_a_conversion_stops_where_the_server_does(
    shelf: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Set(shelf, "coco_instances").write()
    server.status = {"images/im1.jpg": 500}
    flags = [f"--json_file={server.url('set.json')}", f"--image_dir={server.url('images')}"]
    assert convert("coco_instances", ["--output_dir", str(tmp_path / "out"), *flags]) == 3
    assert f"{server.url('images/im1.jpg')}: HTTP 500 (tried 3 times)" in capsys.readouterr().err


# What stands in a file that somebody else has written is never asked for.


def test_urls_in_jsons_are_names_of_files(pets: Dataset, shelf: Path, server: FileServer) -> None:
    document = json.loads(Path(str(pets.json_file)).read_text())
    for image in document["images"]:
        image |= {"coco_url": server.url("pets/images/0.png"), "file_name": server.url("pets/images/0.png")}
    for row in document["annotations"]:
        row["file_name"] = server.url("pets/masks/0.png")
    Path(str(pets.json_file)).write_text(json.dumps(document))
    with suppress(OsmError):
        split_of(pets).load(0)
    assert server.requests() == 0


def test_urls_that_predictions_note_are_not_asked_for(
    pets: Dataset, shelf: Path, server: FileServer, tmp_path: Path
) -> None:
    generate(tmp_path / "out", str(shelf / "pets/sets.yaml"))
    meta = tmp_path / "out" / "pets_meta_0_of_1.json"
    document = json.loads(meta.read_text())
    document["files"] = {name: server.url(f"pets/{path}") for name, path in zip(FILES, PATHS, strict=True)}
    meta.write_text(json.dumps(document))
    arguments = [str(tmp_path / "out"), "1", "--datasets", str(shelf / "pets/sets.yaml"), "--metrics", "published"]
    assert evaluate_main(arguments) == 0 and server.requests() == 0


# Models, pictures and lists.


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model, _ = build(load_model_config(str(tiny_model_yaml(folder))))
    model.save_pretrained(folder / "final")
    return folder / "final"


def test_a_picture_is_named(
    final: Path, shelf: Path, server: FileServer, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(shelf / "photo.jpg", 0, (70, 50))
    Image.fromarray(np.pad(np.full((20, 30), 255, np.uint8), ((10, 20), (10, 30)))).save(shelf / "mask.png")
    (shelf / "names.txt").write_text("cat\ndog\n")
    s3.bucket("bkt")
    s3.put_folder("bkt", final, "runs/final/")
    told = []
    for base, checkpoint in ((f"{shelf}/", str(final)), (server.url(), "s3://bkt/runs/final")):
        sources = [f"{base}photo.jpg", "--mask", f"{base}mask.png", "--vocabulary", f"{base}names.txt"]
        assert name_picture([*sources, "--checkpoint", checkpoint, "--device", "cpu", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[1]["image"] == server.url("photo.jpg") and told[1]["regions"][0]["region"].endswith("/mask.png")
    assert [one["regions"][0]["answers"] for one in told][0] == told[1]["regions"][0]["answers"]
    assert name_picture([server.url("no.jpg"), "--box", "1,1,9,9", "--checkpoint", str(final)]) == 2
    assert f"error: image {server.url('no.jpg')}: there is no such file" in capsys.readouterr().err
    recognizer = osm.load_recognizer(final, device="cpu")
    recognizer.set_image(server.url("photo.jpg"))
    assert recognizer.image_size == (70, 50)


def test_a_folder_of_pictures_is_named(final: Path, shelf: Path, server: FileServer, tmp_path: Path) -> None:
    for number in range(2):
        write_image(place(shelf, "photos") / f"{number}.jpg", number, (70, 50))
    flags = ["--output_dir", str(tmp_path / "out"), "--checkpoint", str(final), "--device", "cpu"]
    assert name_folder([server.url("photos"), *flags]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["0.json", "1.json"]


def test_a_checkpoint_that_is_not_there(server: FileServer, shelf: Path) -> None:
    with pytest.raises(OsmError, match=r"^checkpoint http://.*/final/config.json: there is no such file$"):
        osm.load_recognizer(server.url("final"))
    (shelf / "a.pt").write_bytes(b"no zip")
    with pytest.raises(OsmError, match="a.pt"):
        osm.load_model(server.url("a.pt"))
    server.status = {"a.pt": 500}
    with pytest.raises(RunStopped, match=r"checkpoint http://.*/a.pt: HTTP 500"):
        osm.load_model(server.url("a.pt"))


def test_lists_and_configs(shelf: Path, server: FileServer) -> None:
    (shelf / "names.txt").write_text("cat\ndog\n")
    (shelf / "mine.yaml").write_text("model: {}\n")
    assert read_names(server.url("names.txt")) == ["cat", "dog"]
    labels = load_labels(server.url("names.txt") + "?token=hunter2")
    assert labels.source == server.url("names.txt") and labels[1].target == "dog"
    assert find_config(server.url("mine.yaml")).read_text() == "model: {}\n"
    with pytest.raises(OsmError, match="expected a name that ends in .yaml"):
        find_config(server.url("names.txt"))


def test_a_table_on_a_server_has_its_paths_beside_it(shelf: Path, server: FileServer) -> None:
    rows = {"near": {"form": "boxes", "json_file": "a b.json", "image_dir": "s3://bkt/images"}}
    (shelf / "sets.yaml").write_text(yaml.safe_dump({"datasets": rows}))
    row = DatasetTable().with_yaml(server.url("sets.yaml"))["near"]
    assert (row.json_file, row.image_dir) == (server.url("a b.json"), "s3://bkt/images")
    rows["near"]["json_file"] = "../../up.json"
    (shelf / "sets.yaml").write_text(yaml.safe_dump({"datasets": rows}))
    with pytest.raises(OsmError, match=r"a URL must not contain '\.\.'"):
        split_of(DatasetTable().with_yaml(server.url("sets.yaml"))["near"])


def test_what_signs_a_url_is_not_recorded() -> None:
    sets = {"coco": SetConfig("https://h/a.tar?sig=hunter2", 1)}
    config = TrainConfig(start_from="https://h/final?sig=hunter2", sets=sets)
    assert "hunter2" not in json.dumps(as_dict(config)) and as_dict(config)["start_from"] == "https://h/final"
