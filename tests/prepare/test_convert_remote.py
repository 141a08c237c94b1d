"""The converters with `--output_dir s3://...` and `gs://...`: the same bytes, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from convert_sets import Set, files
from processes import PATIENCE_S
from servers import S3Server, registered

from osm.errors import OsmError, RunStopped
from osm.prepare.convert import BadSamplesError, prepare

BUCKET = "sets"


@pytest.fixture
def made(tmp_path: Path) -> Set:
    return Set(tmp_path / "set", "coco_panoptic", 6)


def flags(made: Set, output: str, *more: str) -> list[str]:
    paths = ["--image_dir", str(made.images), "--ann_dir", str(made.masks), "--json_file", str(made.write())]
    sizes = ["--num_files_per_shard", "2", "--num_workers", "1"]
    return ["coco_panoptic", "--output_dir", output, *paths, *sizes, *more]


def converted_here(made: Set) -> dict[str, bytes]:
    folder = made.root / "here"
    made.convert(folder, num_files_per_shard=2)
    return files(folder)


def stored(server: S3Server, prefix: str = "out/") -> dict[str, bytes]:
    names = [name for name in server.names(BUCKET) if name.startswith(prefix)]
    return {name.removeprefix(prefix): server.read(BUCKET, name) for name in names}


def left_in(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file()]


def test_the_same_bytes_as_here_and_no_secret(
    made: Set, clean_s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(flags(made, f"s3://{BUCKET}/out", "--num_workers", "2")) == 0
    said = "".join(capsys.readouterr())
    assert f"6 samples in 3 shards to s3://{BUCKET}/out" in said
    assert stored(clean_s3) == converted_here(made)
    assert not left_in(tmp_path / "cache"), "nothing stays on this machine"
    texts = [said.encode(), *stored(clean_s3).values()]
    assert not [text for text in texts if clean_s3.SECRET.encode() in text or b"the-access-key" in text]


def test_a_finished_one_is_left_as_it_is(made: Set, clean_s3: S3Server) -> None:
    whole = made.convert(f"s3://{BUCKET}/out", num_files_per_shard=2)
    before = stored(clean_s3)
    clean_s3.forget()
    shutil.rmtree(made.images)
    made.images.mkdir()
    assert made.convert(f"s3://{BUCKET}/out/", num_files_per_shard=2) == whole
    assert stored(clean_s3) == before
    assert not any(clean_s3.requests(f"{BUCKET}/out/{name}", "PUT") for name in before if name.endswith(".tar"))


# Ends the converter as it opens a certain picture: the shards before are uploaded, one is begun.
KILLED_AT_AN_IMAGE = """
import os, signal, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]) == {image!r}:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from osm.prepare.convert import prepare
sys.exit(prepare(sys.argv[1:]))
"""


def test_killed_and_started_again_on_an_empty_machine(
    made: Set, clean_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = converted_here(made)
    with tarfile.open(made.root / "here" / "000000002.tar") as tar:
        image = made.images / [name for name in tar.getnames() if name.endswith(".jpg")][1]
    call = flags(made, f"s3://{BUCKET}/out")
    program = KILLED_AT_AN_IMAGE.format(image=str(image))
    killed = subprocess.run([sys.executable, "-c", program, *call], capture_output=True, text=True, timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(stored(clean_s3)) == [
        ".osm.lock",
        *("000000000.index.json", "000000000.tar", "000000001.index.json", "000000001.tar"),
        *("categories.json", "progress.json"),
    ]
    assert left_in(tmp_path / "cache") == ["000000002.tar.tmp"]
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "another machine"))
    assert prepare(call) == 0
    assert f"resuming: 2 whole shards in s3://{BUCKET}/out (4 of 6 samples)" in capsys.readouterr().err
    assert stored(clean_s3) == whole
    assert [clean_s3.requests(f"{BUCKET}/out/00000000{n}.tar", "PUT") for n in range(3)] == [1, 1, 1]
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    assert prepare(call) == 0
    assert not left_in(tmp_path / "cache"), "what the killed run had begun is removed"


def test_a_shard_of_another_size_is_made_again(made: Set, clean_s3: S3Server) -> None:
    made.convert(f"s3://{BUCKET}/out", num_files_per_shard=2)
    before = stored(clean_s3)
    clean_s3.put(BUCKET, "out/000000001.tar", before["000000001.tar"][:-512])
    clean_s3.forget()
    made.convert(f"s3://{BUCKET}/out", num_files_per_shard=2)
    assert stored(clean_s3) == before
    assert [clean_s3.requests(f"{BUCKET}/out/00000000{n}.tar", "PUT") for n in range(3)] == [0, 1, 1]


def test_what_other_runs_made_is_refused(made: Set, clean_s3: S3Server) -> None:
    clean_s3.put(BUCKET, "theirs/000000000.tar", b"someone's")
    with pytest.raises(OsmError, match=f"output_dir s3://{BUCKET}/theirs contains 000000000.tar, which progress.json"):
        made.convert(f"s3://{BUCKET}/theirs")
    assert stored(clean_s3, "theirs/") == {"000000000.tar": b"someone's"}
    made.convert(f"s3://{BUCKET}/out", num_files_per_shard=2)
    before = stored(clean_s3)
    with pytest.raises(OsmError, match="num_files_per_shard was 2, but is now 3"):
        made.convert(f"s3://{BUCKET}/out", num_files_per_shard=3)
    assert stored(clean_s3) == before


def test_a_mended_set_is_converted_anew(made: Set, clean_s3: S3Server) -> None:
    image = made.images / "im0.jpg"
    data = image.read_bytes()
    image.unlink()
    with pytest.raises(BadSamplesError, match=f"all counts: s3://{BUCKET}/out/summary.json"):
        made.convert(f"s3://{BUCKET}/out", max_bad_samples=0, num_files_per_shard=2)
    image.write_bytes(data)
    made.convert(f"s3://{BUCKET}/out", max_bad_samples=0, num_files_per_shard=2)
    assert stored(clean_s3) == converted_here(made)


def test_a_server_that_is_gone_ends_the_run_and_the_same_command_goes_on(
    made: Set, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    call = flags(made, f"s3://{BUCKET}/out")
    for name in ("000000001.tar", "000000001.index.json", "progress.json", "summary.json", ".osm.lock"):
        clean_s3.status, clean_s3.methods = {f"{BUCKET}/out/{name}": 500}, {"PUT"}
        assert prepare(call) == 3
        said = capsys.readouterr().err
        assert f"error: s3://{BUCKET}/out/{name}: " in said and "the same command again to resume" in said
        assert "Traceback" not in said and clean_s3.SECRET not in said
        assert ".osm.lock" not in stored(clean_s3)
    clean_s3.status = {}
    assert prepare(call) == 0
    assert stored(clean_s3) == converted_here(made)
    clean_s3.status, clean_s3.methods = {f"{BUCKET}/out/000000000.tar": 500}, {"PUT"}
    clean_s3.status_times = 2  # fewer than the tries
    assert prepare(flags(made, f"s3://{BUCKET}/other")) == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("https://host/set", "--output_dir https://host/set: the location is read-only; .* s3://, gs://"),
        ("hf://datasets/a/b", "the location is read-only"),
        ("pipe:cat > x.tar", "commands like `pipe:` are not supported"),
        ("s3://key:secret@bucket/out", "a password in a URL would end up in logs"),
        ("s3://bucket/out?versionId=1", "the URL of an output must not contain '?'"),
        ("s3://no-such-bucket/out", "output_dir s3://no-such-bucket/out: there is no such bucket"),
    ],
)
def test_where_nothing_can_be_written(made: Set, clean_s3: S3Server, output: str, message: str) -> None:
    with pytest.raises(OsmError, match=message.replace("?", r"\?")) as refused:
        made.convert(output)
    assert not isinstance(refused.value, RunStopped) and "secret" not in str(refused.value)


def test_gs_through_a_folder(made: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "google" / "bucket").mkdir(parents=True)
    with registered("gs", tmp_path / "google"):
        made.convert("gs://bucket/deep/out", num_files_per_shard=2)
        with pytest.raises(OsmError, match="num_files_per_shard was 2, but is now 3"):
            made.convert("gs://bucket/deep/out", num_files_per_shard=3)
    assert files(tmp_path / "google" / "bucket" / "deep" / "out") == converted_here(made)


def test_a_full_disk_of_the_staging_folder_is_named(
    made: Set, clean_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSM_CACHE", os.devnull)
    with pytest.raises(OsmError, match=r"staging folder /dev/null/staging/s3-sets-out-\w+: .*OSM_CACHE"):
        made.convert(f"s3://{BUCKET}/out")
