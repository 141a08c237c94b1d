"""Tar files that lie: read_shard ends, in little memory, with samples or counted errors, and reads nothing else."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile import END, HUGE, header, pax, seconds, tar_member
from stream_sets import bands, panoptic, processor, scene, write_shard

from osm.data import shards
from osm.data.feature_cache import FeatureCache
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.shards import RawSample, read_shard
from osm.data.tar import MAX_EXTENDED_BYTES, TarReader
from osm.errors import SampleError

LONG, LINK, LOCAL, GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE
SPARSE = tarfile.GNUTYPE_SPARSE
GOOD = tar_member("a.json", b"{}")
LAST = tar_member("z.json", b"{}")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with seconds(30):
        yield


def keys(path: Path, content: bytes | None = None) -> list[str]:
    """Keys of the samples, and the reasons of what could not be read."""
    if content is not None:
        path.write_bytes(content)
    found = []
    for raw in read_shard(str(path)):
        assert isinstance(raw, RawSample) or (isinstance(raw, SampleError) and str(path) in str(raw))
        found.append(f"!{raw.reason}" if isinstance(raw, SampleError) else raw.key)
    return found


# What headers claim.

CLAIMS = {
    **{f"a member of {size}": header("b.json", size) + LAST for size in (*HUGE, 2**64)},
    **{f"a foreign member of {size}": header("b.txt", size) + LAST for size in HUGE},
    **{f"a member of {size}": header("b.json", size) + LAST for size in (-1, -512, -1024, -(2**60))},
    "back to itself": header("b.txt", -512) + LAST,
    "back to the start": header("b.txt", -1536) + LAST,
    **{f"{kind!r} of {size}": header("b", size, kind) + LAST
       for kind in (LONG, LINK, LOCAL, GLOBAL, tarfile.SOLARIS_XHDTYPE)
       for size in (*HUGE, MAX_EXTENDED_BYTES + 1, -600)},
    "a chain of long names": (header("b", 512, LONG) + b"n" * 511 + b"\0") * 5000,
    "a chain of extended headers": pax(("path", "b.json")) * 5000,
    "an extended header of a size": pax(("size", str(2**62))) + header("b.txt", 2) + LAST,
    "an extended header of a negative size": pax(("size", "-1024")) + header("b.txt", 2) + LAST,
    "an extended header of a size in words": pax(("size", "many")) + header("b.txt", 2) + LAST,
    "an extended header of many digits": pax(("size", "9" * 5000)) + header("b.txt", 2) + LAST,
    "a record of no length": tar_member("x", b"0 size=1\n", LOCAL) + LAST,
    "a record of a long length": tar_member("x", b"999999999 path=b.json\n", LOCAL) + LAST,
    "a length of many digits": tar_member("x", b"9" * 5000 + b" path=b.json\n", LOCAL) + LAST,
    "no record": tar_member("x", b"hello", LOCAL) + LAST,
    "a long name": tar_member("x", b"n" * 5000 + b".json", LONG) + LAST,
    "a map of a sparse file that goes on": header("b.txt", 0, SPARSE)[:482] + b"\1" * 30,
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_header_claims_is_not_believed(tmp_path: Path, claim: str) -> None:
    (tmp_path / "0.tar").write_bytes(GOOD + CLAIMS[claim] + END)
    tracemalloc.start()
    try:
        found = keys(tmp_path / "0.tar")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[0] == "a" and found[-1] == "!broken_tar" and "z" not in found
    assert found[1:-1] in ([], ["!member_too_large"])
    assert peak < 3 << 20


def test_tiny_members_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(tar_member("x.txt", b"") * 20_000 + GOOD + b"".join(map(tiny, range(2000))) + END)
    tracemalloc.start()
    try:
        count = sum(isinstance(raw, RawSample) for raw in read_shard(str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2001 and peak < 1 << 20


def tiny(number: int) -> bytes:
    return tar_member(f"{number:05d}.json", b"{}")


# What is no sample's file.

NO_FILES = {
    "a symbolic link": header("b.json", 0, tarfile.SYMTYPE),
    "a link": header("b.json", 0, tarfile.LNKTYPE),
    "a link with a size": header("b.json", 1024, tarfile.LNKTYPE),
    "a folder": header("b.json", 0, tarfile.DIRTYPE),
    "a pipe": header("b.json", 0, tarfile.FIFOTYPE),
    "a device": header("b.json", 0, tarfile.CHRTYPE),
    "an unknown kind": tar_member("b.json", b"x" * 700, b"V"),
    "a sparse file": tar_member("b.json", b"x" * 700, SPARSE),
    "a sparse file of the new kind": pax(("GNU.sparse.major", "1"), ("GNU.sparse.name", "b.json"), ("size", "600"))
    + tar_member("GNUSparseFile.0/b", b"1\n0\n" + b"9" * 596),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_counted_and_passed_over(tmp_path: Path, kind: str) -> None:
    rest = tar_member("b.png", b"x")  # of the same sample
    assert keys(tmp_path / "0.tar", GOOD + NO_FILES[kind] + rest + LAST + END) == ["a", "!member_not_a_file", "z"]
    assert keys(tmp_path / "0.tar", GOOD + rest + NO_FILES[kind] + LAST + END) == ["a", "!member_not_a_file", "z"]


def test_a_header_for_all_members_is_for_all(tmp_path: Path) -> None:
    everywhere = pax(("path", "all.json"), ("size", "2"), kind=GLOBAL)
    own = pax(("path", "own.json")) + header("b.json", 700) + b"{}" + bytes(510)
    assert keys(tmp_path / "0.tar", GOOD + everywhere + own + LAST + END) == ["a", "own", "all"]


def test_a_member_that_is_there_twice_is_counted(tmp_path: Path) -> None:
    twice = (
        tar_member("b.json", b"{}") + tar_member("b.png", b"") + tar_member("b.json", b"[]") + tar_member("b.tif", b"")
    )
    assert keys(tmp_path / "0.tar", GOOD + twice + LAST + END) == ["a", "!member_twice", "z"]


def test_a_sample_that_is_too_large_altogether_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 1000)
    parts = [tar_member(f"b.{name}", b"x" * 400) for name in ("png", "jpg", "json")]
    assert keys(tmp_path / "0.tar", GOOD + b"".join(parts[:2]) + LAST + END) == ["a", "b", "z"]
    assert keys(tmp_path / "0.tar", GOOD + b"".join(parts) + LAST + END) == ["a", "!member_too_large", "z"]


def test_names_that_are_no_utf8_are_keys_like_others(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", {"\udcff\udcfe": panoptic(bands(60, 60)), "ok": panoptic(bands(60, 60))})
    with tarfile.open(path) as tar:
        assert tar.getnames()[0].startswith("\udcff\udcfe")  # the bytes 255 and 254
    samples = [raw for raw in read_shard(str(path)) if isinstance(raw, RawSample)]
    assert [raw.key for raw in samples] == [r"\xff\xfe", "ok"]
    transform = SampleTransform(SampleConfig(), processor(tmp_path / "tokenizer"), views=2)
    for raw in samples:
        transform(scene(raw.members), raw.key, np.random.default_rng(0))
        assert FeatureCache(tmp_path, "f").path("set", raw.cache_key, 0).name.isascii()


# Damage.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "0.tar"
    return write_shard(path, {f"k{i}": panoptic(bands(30 + i, 20)) for i in range(4)}).read_bytes()


def test_no_flipped_byte_loses_a_sample_silently(tmp_path: Path, whole: bytes) -> None:
    rng, broken = random.Random(0), 0
    marks = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 1024  # with the first block of the end mark
    for turn in range(600):
        data = bytearray(whole)
        at = rng.choice(marks) + rng.randrange(512) if turn % 2 else rng.randrange(end)
        data[at] ^= rng.randrange(1, 256)
        found = keys(tmp_path / "0.tar", bytes(data))
        assert found == ["k0", "k1", "k2", "k3"] or found[-1] == "!broken_tar", (turn, at, found)
        broken += found[-1] == "!broken_tar"
    assert broken > 250


def test_many_flipped_bytes_give_samples_or_reasons(tmp_path: Path, whole: bytes) -> None:
    rng, reasons = random.Random(1), set()
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(2, 12)):
            at = rng.randrange(len(whole.rstrip(b"\0")))
            data[at : at + rng.choice((1, 1, 8, 100))] = rng.randbytes(1) if turn % 2 else bytes(1)
        (tmp_path / "0.tar").write_bytes(data)
        for raw in read_shard(str(tmp_path / "0.tar")):
            try:
                if isinstance(raw, SampleError):
                    raise raw
                scene(raw.members).image()
            except SampleError as error:
                reasons.add(error.reason)
    assert {"broken_tar", "image_truncated", "bad_json"} <= reasons


def test_a_cut_is_always_told(tmp_path: Path, whole: bytes) -> None:
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end, 61):
        found = keys(tmp_path / "0.tar", whole[:length])
        assert found[-1] == "!broken_tar" and found[:-1] == ["k0", "k1", "k2", "k3"][: len(found) - 1]


# What tarfile writes.


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_honest_archives_are_read_as_tarfile_reads_them(tmp_path: Path, form: int) -> None:
    path, rng = tmp_path / "0.tar", random.Random(2)
    names = ["a.json", "b/c.png", "ö/é.jpg", *([] if form == tarfile.USTAR_FORMAT else ["x/" * 200 + "深.json"])]
    with tarfile.open(path, "w", format=form, pax_headers={"comment": "of all"}) as tar:
        for size, name in enumerate(names * 3):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = (0, 1, 511, 512, 513, 5000)[size % 6], 1.5
            tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
        tar.addfile(tarfile.TarInfo("folder/"))
    with tarfile.open(path) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar if info.isfile()]  # type: ignore[union-attr]
    with path.open("rb") as stream:
        reader = TarReader(stream)
        assert [(member.name, reader.read(member)) for member in reader if member.is_regular] == expected
        assert len(expected) >= 9 and not reader.fault


def test_sizes_over_eight_gigabytes_can_be_written_in_two_ways(tmp_path: Path) -> None:
    data = b"x" * 700
    in_base_256 = bytearray(header("b.json", 8 << 30))
    in_base_256[124:136] = b"\x80" + len(data).to_bytes(11, "big")
    in_base_256[148:156] = b" " * 8
    in_base_256[148:156] = b"%06o\0 " % sum(in_base_256)
    tail = data + bytes(324)
    for one in (bytes(in_base_256), pax(("size", "700")) + header("b.json", 0)):
        assert keys(tmp_path / "0.tar", GOOD + one + tail + LAST + END) == ["a", "b", "z"]


def test_errors_of_samples_can_be_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SampleError("broken_tar", "0.tar: cut")))
    assert isinstance(error, SampleError) and (error.reason, str(error)) == ("broken_tar", "0.tar: cut")
