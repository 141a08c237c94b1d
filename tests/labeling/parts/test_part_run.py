"""`osm label --to parts`: its rows, what a killed run costs, shares, and the formats that are made from parts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from cluster_simulation import PART_REQUESTS, SHARD_REQUESTS
from noise_photos import COUNT, noise_photos
from old_files import make_old
from processes import wait_until
from servers import S3Server

from osm.errors import OsmError, RunStopped
from osm.io.segmentation import encode_rle
from osm.labeling.formats.label_format import LabeledImage, LabelShape
from osm.labeling.label_cli import main, options_of, parser
from osm.labeling.label_journal import Record, image_record
from osm.labeling.label_tasks import LabelTask
from osm.labeling.parts import part_run
from osm.labeling.parts.part_labeler import KILLED, PartitionResult, PartLabeler
from osm.labeling.parts.part_rows import COLUMNS, part_bytes, part_records
from osm.labeling.parts.part_run import consume, label_parts
from osm.labeling.parts.part_store import PartStore
from osm.labeling.parts.partitions import plan_partitions
from osm.labeling.review_cli import main as review_main

PART = 4
ROWS = 3 * COUNT + 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def command(photos: Path, checkpoint: Path) -> Callable[..., list[str]]:
    """The arguments of `osm label` for an output folder."""
    model = ["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "4", "--part_images", str(PART)]

    def words(out: Path | str, *more: str, images: str = "", masks: bool = True) -> list[str]:
        own = ["--masks", str(photos / "masks.json")] if masks else []
        return [images or str(photos / "images"), str(out), *own, *model, *more]

    return words


@pytest.fixture(scope="module")
def whole(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert main(command(out, "--to", "parts,coco")) == 1  # one image failed
    return out


def files(out: Path | str) -> dict[str, bytes]:
    store = PartStore(str(out))
    return {name: store.read(f"parts/{name}") or b"" for name in store.names("parts")}


def rows(out: Path | str) -> list[dict[str, Any]]:
    return [row for _, data in sorted(files(out).items()) for row in parquet.read_table(io.BytesIO(data)).to_pylist()]


def test_every_mask_has_a_row_and_a_failed_image_too(whole: Path, photos: Path) -> None:
    found = rows(whole)
    assert len(found) == ROWS and set(found[0]) == COLUMNS.keys()
    assert len({(row["image"], row["mask"]) for row in found}) == ROWS
    document = json.loads((photos / "masks.json").read_text())
    stated = Counter(f"sub/{row['image_id']}.png" for row in document["annotations"])
    assert Counter(row["image"] for row in found) == stated
    failed = [row for row in found if row["failed"]]
    assert {row["image"] for row in failed} == {"sub/3.png"} and [row["source_row"] for row in failed] == [0, 1, 2]
    [unread] = [row for row in found if row["skipped"] == "annotation_without_mask"]
    assert (unread["image"], unread["source_row"], unread["rle"], unread["name"]) == ("sub/1.png", 4, None, "")
    [box] = [row for row in found if row["is_box"]]
    assert (box["id"], box["x"], box["y"], box["box_width"], box["box_height"], box["area"]) == (900, 5, 5, 20, 20, 400)
    named = [row for row in found if row["name"]]
    assert named and all(0 <= row["prob"] <= 1 and row["rle"] for row in named)  # a small probability is rounded to 0
    assert any(row["prob"] > 0 for row in named)


def test_the_rows_hold_all_of_a_record(whole: Path) -> None:
    for name, data in files(whole).items():
        records = part_records(data, name)
        assert part_bytes(records) == data
    with pytest.raises(OsmError, match="a.parquet: not a Parquet file"):
        part_records(b"PAR1 no", "a.parquet")


def test_other_formats_are_made_from_parts(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path, "--to", "coco")
    at = words.index("--part_images")
    assert main(words[:at] + words[at + 2 :]) == 1
    assert (whole / "labels.json").read_bytes() == (tmp_path / "labels.json").read_bytes()
    assert review_main([str(whole)]) == 0
    assert "annotation_without_mask" not in (whole / "review.html").read_text()
    capsys.readouterr()


def test_two_processes_and_shares_write_the_same_parts(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert main(command(tmp_path / "two", "--to", "parts", "--processes", "2")) == 1
    assert files(tmp_path / "two") == files(whole)
    codes = [main(command(tmp_path / "shares", "--share", f"{k}/2")) for k in (0, 1)]
    assert codes == [1, 0]  # the image that fails is in the first part
    assert files(tmp_path / "shares") == files(whole)
    assert main(command(tmp_path / "shares", "--to", "parts,coco")) == 1
    assert (tmp_path / "shares" / "labels.json").read_bytes() == (whole / "labels.json").read_bytes()


def test_a_killed_run_continues_with_the_parts_that_are_left(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "osm", "label", *command(tmp_path, "--to", "parts")]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "parts").is_dir() or not files(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    age_temporary_files(tmp_path)  # if it was killed while it wrote one
    (tmp_path / ".osm_label" / "done" / "000000.json").unlink(missing_ok=True)  # killed before it was written
    assert main(command(tmp_path, "--to", "parts")) == 1
    assert files(tmp_path) == files(whole)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    # Only the first part has an image that failed, which is tried again.
    assert all(after[name] == stamp for name, stamp in before.items() if "000000" not in name)
    assert not list((tmp_path / ".osm_label" / "attempts").iterdir())


def age_temporary_files(folder: Path) -> None:
    for path in folder.rglob(".*.tmp"):
        make_old(path)


def test_what_a_killed_run_was_writing_is_removed(command: Callable[..., list[str]], tmp_path: Path) -> None:
    left = [
        tmp_path / folder / f".1.json.{'a' * 32}.tmp" for folder in (".osm_label/attempts", ".osm_label/done", "parts")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    age_temporary_files(tmp_path)
    assert main(command(tmp_path, "--to", "parts")) == 1  # an image failed
    assert not any(path.exists() for path in left)


def test_an_image_that_failed_is_tried_again(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(photos, tmp_path / "data"))
    words = [str(copy / "images"), str(tmp_path / "out"), "--masks", str(copy / "masks.json"), "--to", "parts"]
    words += ["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "4"]
    assert main(words) == 1
    shutil.copyfile(copy / "images" / "sub" / "4.png", copy / "images" / "sub" / "3.png")
    stale = {row["image"]: row for row in rows(tmp_path / "out")}
    assert main(words) == 0
    assert f"{COUNT} images" in capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert len(found) == ROWS and not any(row["failed"] for row in found)
    assert {row["image"]: row for row in found if row["image"] != "sub/3.png"} == {
        name: row for name, row in stale.items() if name != "sub/3.png"
    }


class Death(BaseException):
    """Ends the worker, as SIGKILL does: nothing of the package catches it."""


class DeadlyLabeler:
    """A labeler that one image kills."""

    def __init__(self, labeler: Any, deadly: int) -> None:
        self.labeler, self.deadly = labeler, deadly

    def records(self, tasks: Sequence[LabelTask]) -> Iterator[Record]:
        for task in tasks:
            if task.number == self.deadly:
                raise Death
            yield from self.labeler.records([task])

    def failed(self, task: LabelTask, reason: str) -> Record:
        record: Record = self.labeler.failed(task, reason)
        return record


def test_an_image_that_kills_its_worker_is_left_out(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    options = options_of(parser().parse_args(command(tmp_path, "--to", "parts")))
    plan = plan_partitions(options)
    deaths = 0
    for _ in range(10):
        labeler = PartLabeler(options, plan.reader)
        labeler._labeler = DeadlyLabeler(labeler.labeler, deadly=6)  # type: ignore[assignment]
        try:
            counts = labeler.label(plan.partitions[1])
            break
        except Death:
            deaths += 1
    assert deaths == 4 and counts.failed == 1 and list(counts.failures.values()) == [KILLED]
    found = {name: rows_of for name, rows_of in _by_image(rows(tmp_path)).items()}
    expected = {name: rows_of for name, rows_of in _by_image(rows(whole)).items() if name in found}
    assert len(found["sub/6.png"]) == 3 and all(row["failed"] == KILLED for row in found.pop("sub/6.png"))
    expected.pop("sub/6.png")
    assert found == expected
    labeler = PartLabeler(options, plan.reader)  # a later run does not try it again
    assert labeler.label(plan.partitions[1]).failed == 1


def _by_image(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(row["image"], []).append(row)
    return groups


def shards(photos: Path, out: Path, size: int) -> int:
    """Write the photos as shards, without the one that cannot be read. Return the number of shards."""
    document = json.loads((photos / "masks.json").read_text())
    out.mkdir()
    images = [image for image in document["images"] if image["id"] != 3]
    starts = range(0, len(images), size)
    for number, start in enumerate(starts):
        with tarfile.open(out / f"{number:03d}.tar", "w") as archive:
            for image in images[start : start + size]:
                own = [row for row in document["annotations"] if row["image_id"] == image["id"]]
                data = (photos / "images" / image["file_name"]).read_bytes()
                for suffix, content in (("png", data), ("json", json.dumps({"annotations": own}).encode())):
                    member = tarfile.TarInfo(f"{image['id']:03d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return len(starts)


def requests(server: S3Server, *names: str) -> Counter[str]:
    """The requests for objects whose names contain one of some texts, by method."""
    with server._lock:
        found = {key: count for key, count in server._requests.items() if any(name in key[1] for name in names)}
    out: Counter[str] = Counter()
    for (method, path), count in found.items():
        out[method] += count if not path.endswith(("/parts", "/done")) else 0
    return out


def test_shards_on_s3_to_s3_with_few_requests(
    photos: Path, command: Callable[..., list[str]], tmp_path: Path, clean_s3: S3Server
) -> None:
    count = shards(photos, tmp_path / "shards", 6)
    assert count == 2
    for number in range(count):
        clean_s3.put("bucket", f"in/{number:03d}.tar", (tmp_path / "shards" / f"{number:03d}.tar").read_bytes())
    local = command(tmp_path / "local", "--to", "parts,coco", images=f"{tmp_path}/shards/{{000..001}}.tar", masks=False)
    assert main(local) == 0
    clean_s3.forget()
    remote = command("s3://bucket/out", images="s3://bucket/in/{000..001}.tar", masks=False)
    assert main(remote) == 0
    # The simulation of clusters counts with these requests.
    of_parts = requests(clean_s3, "part", "attempts")
    assert of_parts == {kind: 4 * number for kind, number in PART_REQUESTS.items() if kind != "LIST"}
    of_shards = requests(clean_s3, ".tar", "done/")
    assert of_shards == Counter({"GET": count}) + Counter({kind: count * n for kind, n in SHARD_REQUESTS.items()})
    assert clean_s3.requests("bucket", "GET") - 4 * PART_REQUESTS["LIST"] <= 8  # lists; the others are of the whole run
    found = rows("s3://bucket/out")
    assert {row["path"] for row in found} == {f"s3://bucket/in/{number:03d}.tar" for number in range(count)}
    assert [{**row, "path": ""} for row in found] == [{**row, "path": ""} for row in rows(tmp_path / "local")]
    assert len(found) == ROWS - 3
    assert not list((tmp_path / "cache").rglob("*.tar"))  # the disk does not fill up
    before = clean_s3.requests(method="PUT")
    assert main(remote) == 0
    assert clean_s3.requests(method="PUT") == before  # nothing is labeled again
    with pytest.raises(OsmError, match="min_area"):
        label_parts(options_of(parser().parse_args([*remote, "--min_area", "3"])))
    assert main([*remote, "--overwrite", "--min_area", "3"]) == 0
    # The images of all shards are numbered together in other formats.
    document = json.loads((tmp_path / "local" / "labels.json").read_text())
    assert [image["id"] for image in document["images"]] == list(range(1, COUNT))


def test_a_broken_shard_does_not_stop_the_others(
    photos: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards(photos, tmp_path / "shards", 6)
    good = (tmp_path / "shards" / "000.tar").read_bytes()
    (tmp_path / "shards" / "000.tar").write_bytes(good[:3000])
    words = command(tmp_path / "out", "--to", "parts", images=f"{tmp_path}/shards/{{000..001}}.tar", masks=False)
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "1 of 2 partitions were not finished" in said and "000.tar" in said
    assert [name for name in files(tmp_path / "out")] == ["part-000001-00000.parquet", "part-000001-00001.parquet"]
    (tmp_path / "shards" / "000.tar").write_bytes(good)
    assert main(words) == 0
    assert len(rows(tmp_path / "out")) == ROWS - 3


def test_a_shard_that_is_missing_is_not_forgotten(
    photos: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards(photos, tmp_path / "shards", 6)
    words = command(tmp_path / "out", "--to", "parts", images=f"{tmp_path}/shards/{{000..002}}.tar", masks=False)
    assert main(words) == 3
    assert "1 of 3 partitions were not finished" in capsys.readouterr().err
    shutil.copyfile(tmp_path / "shards" / "000.tar", tmp_path / "shards" / "002.tar")
    assert main(words) == 0


def test_a_complete_partition_whose_part_is_gone_is_labeled_again(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    (out / "parts" / "part-000002-00000.parquet").unlink()
    assert main(command(out, "--to", "parts")) == 1
    assert files(out) == files(whole)


def test_unusual_ids_and_texts_get_rows() -> None:
    rle = {"size": [30, 40], "counts": encode_rle(np.ones((30, 40), bool))["counts"]}
    shapes = [LabelShape(rle, id=one, label="caf\udce9", name="cup") for one in (1 << 70, -5, "a", None)]
    record = image_record(LabeledImage(0, "caf\udce9.jpg", "/caf\udce9.jpg", (40, 30), tuple(shapes)))
    found = parquet.read_table(io.BytesIO(part_bytes([record]))).to_pylist()
    assert [(row["id"], row["id_text"]) for row in found] == [
        (None, str(1 << 70)),
        (-5, None),
        (None, "a"),
        (None, None),
    ]
    assert {row["label"] for row in found} == {"caf?"}


def test_a_stopped_worker_is_no_attempt(command: Callable[..., list[str]], tmp_path: Path) -> None:
    options = options_of(parser().parse_args(command(tmp_path, "--to", "parts")))
    plan = plan_partitions(options)
    labeler = PartLabeler(options, plan.reader)
    good = labeler.labeler

    class Stopped(DeadlyLabeler):
        def records(self, tasks: Sequence[LabelTask]) -> Iterator[Record]:
            yield from self.labeler.records(tasks[:1])
            raise KeyboardInterrupt

    for _ in range(5):
        labeler._labeler = Stopped(good, deadly=0)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            labeler.label(plan.partitions[1])
    stored = labeler.store.read(plan.partitions[1].attempts_name(0))
    assert stored is not None and json.loads(stored) == {"begun": 0, "image": None, "deaths": {}}
    labeler._labeler = good
    assert labeler.label(plan.partitions[1]).failed == 0


def test_a_worker_that_breaks_stops_instead_of_failing_every_image(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(parser().parse_args(command(tmp_path, "--to", "parts", "--part_images", "100")))
    plan = plan_partitions(options)
    labeler = PartLabeler(options, plan.reader)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(labeler.labeler.recognizer, "set_image", broken)
    # One of the twelve images is no image, which is an error of its file, and starts the count again.
    monkeypatch.setattr("osm.labeling.labeler.MAX_FAULTS", 5)
    with pytest.raises(
        RunStopped, match="5 images in a row failed; the last: unexpected error: RuntimeError: CUDA error"
    ):
        labeler.label(plan.partitions[0])
    assert not files(tmp_path)


def test_workers_end_with_their_parent(command: Callable[..., list[str]], tmp_path: Path) -> None:
    token = f"OSM_PART_TEST={time.time_ns()}"
    name, _, value = token.partition("=")
    words = [sys.executable, "-m", "osm", "label", *command(tmp_path, "--to", "parts", "--processes", "2")]
    process = subprocess.Popen(words, env={**os.environ, name: value}, stderr=subprocess.DEVNULL)

    def children() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if token.encode() in (path / "environ").read_bytes() and int(path.name) != process.pid:
                    found.append(int(path.name))
        return found

    wait_until(lambda: len(children()) >= 2, process)
    process.kill()
    process.wait()
    wait_until(lambda: not children(), message="the workers go on")


def test_a_server_that_fails_ends_the_run() -> None:
    stopped = [PartitionResult(k, "the server is away", True) for k in range(50)]
    with pytest.raises(RunStopped, match=f"{part_run.MAX_STOPS} partitions in a row failed"):
        consume(iter(stopped), 50, shown=False)
    some = [PartitionResult(k, "bad" if k % 2 else "", bool(k % 2)) for k in range(50)]
    assert len(consume(iter(some), 50, shown=False)) == 25


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--share", "2/2"], "--share 2/2: expected K/N with K from 0 to N - 1"),
        (["--share", "0/2", "--to", "coco"], "--to coco cannot be combined with --share"),
        (["--share", "0/2", "--overwrite"], "--overwrite cannot be combined with --share"),
        (["--to", "parts", "--min_prob", "0.5"], "--min_prob 0.5 has no effect on --to parts"),
        (["--to", "parts", "--part_images", "0"], "--part_images 0 must be 1 or more"),
        (["--to", "parts", "--corrections", "a.json"], "--corrections has no effect on --to parts; add another format"),
        (["--part_images", "7"], "--part_images has no effect without --to parts"),
        (["--engine", "ray", "--gpus_per_process", "1.5"], "--gpus_per_process 1.5 must be from 0 to 1"),
        (["--to", "parts", "--gpus_per_process", "0.5"], "--gpus_per_process has no effect without --engine ray"),
        (["--engine", "spark"], "--engine 'spark' is not one of local, ray"),
        (["--engine", "ray", "--gpus_per_process", "-1"], "--gpus_per_process -1.0 must be from 0 to 1"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_only_parts_are_written_to_object_stores(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("s3://bucket/out", "--to", "coco")) == 2
    assert "--to coco: only --to parts can be written to s3://bucket/out" in capsys.readouterr().err
    assert main(command("https://example.org/out")) == 2
    assert "the location is read-only" in capsys.readouterr().err


def test_dry_run(command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "out", "--to", "parts", "--dry_run")) == 0
    assert f"3 partitions, {COUNT} images, to parts: {tmp_path}/out" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
