"""Reading shards: patterns, both layouts, broken and hostile archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from convert_sets import Set
from stream_sets import SIZE, bands, instances, panoptic, published, rectangle, scene, write_shard, write_tar

from osm.data import shards
from osm.data.shard_lists import existing_shards, expand_shards
from osm.data.shards import RawSample, read_shard
from osm.datasets.labels import load_labels
from osm.errors import OsmError, RunStopped, SampleError
from osm.forms import read_sample
from osm.io.views import View


def keys(path: Path) -> list[str]:
    """Keys of the samples, and the reasons of what could not be read."""
    return [f"!{raw.reason}" if isinstance(raw, SampleError) else raw.key for raw in read_shard(str(path))]


def sample(number: int = 0) -> dict[str, bytes]:
    return panoptic(bands(30 + number, 20))


# Patterns.


def test_braces_are_expanded() -> None:
    assert expand_shards("a/{000000098..000000101}.tar") == [
        f"a/{number}.tar" for number in ("000000098", "000000099", "000000100", "000000101")
    ]
    assert expand_shards("{8..11}.tar") == ["8.tar", "9.tar", "10.tar", "11.tar"]
    assert expand_shards("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expand_shards("x.tar::y{1,2}.tar") == ["x.tar", "y1.tar", "y2.tar"]
    assert expand_shards("/plain path.tar") == ["/plain path.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a::",
        "{1..2.tar",
        "1..2}.tar",
        "{}.tar",
        "{a}.tar",
        "{5..3}.tar",
        "{0..99999999}.tar",
        "{{1..2}}.tar",
        "pipe:cat a.tar",
        "PIPE:rm -rf x",
        "a.tar::pipe:cat b.tar",
        "ftp://example.org/{0..3}.tar",
        "ssh://host/a.tar",
        "memory://a.tar",
        "s3:bucket/a.tar",
        "file:a.tar",
        "gs:bucket/a.tar",
        "|cat a.tar",
        " | cat a.tar",
        "cat a.tar |",
        " pipe:cat a.tar",
        "-",
        "a.tar::-",
        "{pipe,a}:cat b.tar",
        "{0..99}{|,}",
        "{0..999999}{0..999999}",
        "{0..999999}::a.tar",
        "{0.." + "9" * 5000 + "}.tar",
        "{٠..٩}.tar",
        "pi" + "x" * 10**6 + "{",
    ],
)
def test_malformed_patterns_urls_and_commands_are_refused(pattern: str) -> None:
    with pytest.raises(OsmError, match="shards '") as error:
        expand_shards(pattern)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_locations_that_are_read(tmp_path: Path) -> None:
    urls = ["https://example.org/a.tar", "s3://bucket/a/0.tar", "s3://bucket/a/1.tar", "hf://datasets/me/set/0.tar"]
    assert expand_shards("https://example.org/a.tar::s3://bucket/a/{0..1}.tar::hf://datasets/me/set/0.tar") == urls
    assert expand_shards("file:///data/a%20b.tar") == ["/data/a b.tar"]
    with pytest.raises(OsmError, match="password in a URL") as error:
        expand_shards("https://me:hidden@example.org/a.tar")
    assert "hidden" not in str(error.value)


def test_globs_and_lists_in_files(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write_shard(tmp_path / f"{number}.tar", {})
    every = [f"{tmp_path}/{number}.tar" for number in range(3)]
    assert existing_shards(f"{tmp_path}/*.tar", "--coco_shards") == every
    assert existing_shards(f"{tmp_path}/[02].tar::{tmp_path}/1.tar", "--coco_shards") == [every[0], every[2], every[1]]
    with pytest.raises(OsmError, match=r"--coco_shards .*x\*.tar: no shard matches"):
        existing_shards(f"{tmp_path}/x*.tar", "--coco_shards")
    listed = tmp_path / "train.txt"
    listed.write_text(f"# a comment\n{{0..1}}.tar\n\n{tmp_path}/2.tar\n")
    assert existing_shards(f"@{listed}", "--coco_shards") == every
    assert existing_shards(f"@{listed}::{tmp_path}/0.tar", "--coco_shards") == [*every, every[0]]
    for text, message in (
        ("", "lists no shards"),
        ("@train.txt\n", "names another list"),
        ("pipe:cat x\n", "are not supported"),
    ):
        listed.write_text(text)
        with pytest.raises(OsmError, match=message):
            expand_shards(f"@{listed}")
    odd = write_shard(tmp_path / "a[1].tar", {})
    assert existing_shards(str(odd), "--coco_shards") == [str(odd)]


def test_a_name_with_a_colon_can_be_given(tmp_path: Path) -> None:
    assert expand_shards("./pipe:x.tar::/data/a|b/c:d-.tar") == ["./pipe:x.tar", "/data/a|b/c:d-.tar"]


def test_missing_shards_are_reported_once(console: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", {})
    found = existing_shards(f"{tmp_path}/{{0..4}}.tar", "--coco_shards")
    assert found == [f"{tmp_path}/{number}.tar" for number in range(3)]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--coco_shards: 2 of 5 shards do not exist" in said and f"{tmp_path}/3.tar" in said
    assert existing_shards(f"{tmp_path}/{{0..2}}.tar", "--coco_shards") == found and not capsys.readouterr().err


def test_too_many_missing_shards_are_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {})
    assert len(existing_shards(f"{tmp_path}/{{0..9}}.tar", "--coco_shards")) == 1
    with pytest.raises(OsmError, match="--coco_shards: 19 of 20 shards do not exist .* correct the range"):
        existing_shards(f"{tmp_path}/{{0..19}}.tar", "--coco_shards")
    with pytest.raises(OsmError, match="none of the 7 shards exist .first missing shard: .*/b0.tar."):
        existing_shards(f"{tmp_path}/b{{0..6}}.tar", "--coco_shards")


# Layouts.


def test_both_layouts_give_equal_scenes() -> None:
    categories = bands(40, 30)
    annotations = [{"category_id": 2, "segmentation": rectangle(3, 4, 30, 20)}]
    view = View(60, 45, 2, 1, SIZE, 44, flip=True)
    for form, members in (
        ("coco_panoptic", panoptic(categories)),
        ("coco_instances", instances(40, 30, annotations)),
    ):
        plain, packed = scene(members, form), scene(published(members), form)
        assert set(published(members)) == {"json"}
        np.testing.assert_array_equal(np.asarray(plain.image()), np.asarray(packed.image()))
        picked = [one.pick(view, 3, np.random.default_rng(0)) for one in (plain, packed)]
        assert [s.category_id for s in picked[0]] == [s.category_id for s in picked[1]] != []
        for first, second in zip(*picked, strict=True):
            np.testing.assert_array_equal(first.mask, second.mask)


@pytest.mark.parametrize("form", ["coco_panoptic", "coco_instances"])
def test_converted_shards_are_read_in_both_layouts(tmp_path: Path, form: str) -> None:
    made = Set(tmp_path, form)
    scenes = {}
    for layout in ("webdataset", "published"):
        made.convert(tmp_path / layout, layout=layout)
        labels = load_labels(tmp_path / layout / "categories.json")
        for shard in sorted((tmp_path / layout).glob("*.tar")):
            for raw in read_shard(str(shard)):
                assert isinstance(raw, RawSample) and raw.shard == str(shard)
                scenes[layout, raw.key] = read_sample(form, raw.members, labels)
    assert len(scenes) == 8
    for number in range(4):
        plain, packed = scenes["webdataset", f"im{number}"], scenes["published", f"im{number}"]
        np.testing.assert_array_equal(np.asarray(plain.image()), np.asarray(packed.image()))


def test_keys_keep_their_folder_and_end_at_the_first_dot(tmp_path: Path) -> None:
    good = sample()
    members = [(f"{key}.{name}", data) for key in ("a/1", "b/1", "v1.2/1") for name, data in good.items()]
    assert keys(write_tar(tmp_path / "0.tar", members)) == ["a/1", "b/1", "v1.2/1"]


# Broken and hostile archives.


def test_a_truncated_shard_gives_what_is_whole(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", {f"k{number}": sample(number) for number in range(4)})
    whole = path.read_bytes()
    assert keys(path) == ["k0", "k1", "k2", "k3"]
    with tarfile.open(path) as tar:
        starts = {member.name: (member.offset, member.offset_data, member.size) for member in tar}
    offset, data, size = starts["k2.png"]
    for length in (data + size // 2, data + 1, data):  # within k2: what there is of it is dropped
        path.write_bytes(whole[:length])
        assert keys(path) == ["k0", "k1", "!broken_tar"]
    path.write_bytes(whole[: starts["k0.json"][1] + 1])
    assert keys(path) == ["!broken_tar"]
    # Between two samples, even within a header: the sample before is whole.
    for length in (starts["k2.image.png"][0], starts["k2.image.png"][0] + 100):
        path.write_bytes(whole[:length])
        assert keys(path) == ["k0", "k1", "!broken_tar"]


def test_damage_in_the_middle_is_no_silent_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", {f"k{number}": sample(number) for number in range(4)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmember("k1.image.png").offset
    data[offset : offset + 512] = b"\xff" * 512
    path.write_bytes(data)
    assert keys(path) == ["k0", "!broken_tar"]


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b" + b"x" * 600])
def test_what_is_no_tar_is_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    assert keys(tmp_path / "0.tar") == ["!broken_tar"]


def test_a_shard_that_is_gone_stops_what_reads_it(tmp_path: Path) -> None:
    """Without it other samples would follow, and no run could be repeated."""
    for name in ("missing.tar", "."):
        with pytest.raises(OsmError, match=str(tmp_path / name)) as failure:
            list(read_shard(str(tmp_path / name)))
        assert isinstance(failure.value, RunStopped)


def test_an_empty_archive_is_whole(tmp_path: Path) -> None:
    assert keys(write_tar(tmp_path / "0.tar", [])) == []


def test_paths_and_links_in_a_tar_touch_no_file(tmp_path: Path) -> None:
    outside = tmp_path / "x.json"
    outside.write_text("secret")
    path = tmp_path / "deep" / "er" / "0.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for name in ("../../x.json", "/etc/x.json", "../../y.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link.json")
            info.type, info.linkname = kind, str(outside)
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    read = list(read_shard(str(path)))
    assert sorted(tmp_path.rglob("*")) == before and outside.read_text() == "secret"
    assert keys(path) == ["../../x", "/etc/x", "../../y", "!member_not_a_file"]
    assert all(isinstance(raw, SampleError) or raw.members == {"json": b"{}"} for raw in read)


def test_a_sample_with_an_over_large_member_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 5000)
    large = {**sample(1), "png": b"x" * 5001}
    path = write_shard(tmp_path / "0.tar", {"k0": sample(), "k1": large, "k2": sample()})
    assert keys(path) == ["k0", "!member_too_large", "k2"]


def test_foreign_members_are_ignored(tmp_path: Path) -> None:
    good = sample()
    members = [("README", b"hello"), ("notes.txt", b"hello")]
    members += [(f"k0.{name}", data) for name, data in {**good, "cls": b"5", "pyd": b"\x80\x04."}.items()]
    members += [("other.pickle", b"\x80\x04."), *((f"k1.{name}", data) for name, data in good.items())]
    read = list(read_shard(str(write_tar(tmp_path / "0.tar", members))))
    assert [raw.key for raw in read] == ["k0", "k1"]  # type: ignore[union-attr]
    assert all(set(raw.members) == set(good) for raw in read)  # type: ignore[union-attr]
    assert json.loads(read[0].members["json"])["segments_info"]  # type: ignore[union-attr]
