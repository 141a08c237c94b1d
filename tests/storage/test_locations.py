"""What may stand where a file is meant: paths and URLs of five protocols, and nothing that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from osm.errors import OsmError
from osm.storage.locations import check_location, check_writable, is_remote, join, name_of, public, sibling, suffix_of


@pytest.mark.parametrize(
    "text",
    [
        "pipe:cat x",
        " pipe:cat x",
        "PIPE:cat x",
        "|cat x",
        "cat x|",
        "cat x|\n",
        "-",
        "ssh://host/x",
        "sftp://host/x",
        "ftp://host/x",
        "simplecache::https://host/x",
        "zip://x::https://host/x.zip",
        "local://x",
        "memory://x",
        "data:text/plain,x",
        "s3:x",
        "s3://",
        "file:x",
        " https://host/x",
    ],
)
def test_what_is_no_location_is_refused(text: str) -> None:
    assert not is_remote(text)
    with pytest.raises(OsmError, match="^--flag '.*': expected a local path or a URL that starts with http://"):
        check_location(text, "--flag")


@pytest.mark.parametrize("text", ["", "a.tar", "/a/b:c.tar", "./pipe:x", "a|b/c", "dir-/x-", "../x", "C:/x", r"C:\x"])
def test_paths_stay_as_they_are(text: str) -> None:
    assert check_location(text, "--flag") == text and not is_remote(text)


@pytest.mark.parametrize("text", ["file:///a/b", "file:/a/b", "FILE:///a/b", "file://localhost/a/b", "file:///a/%62"])
def test_file_urls_are_paths(text: str) -> None:
    assert check_location(text, "--flag") == "/a/b" and not is_remote(text)


def test_a_drive_of_windows_in_a_file_url() -> None:
    assert check_location("file:///C:/a", "--flag") == "C:/a"


@pytest.mark.parametrize("url", ["http://h/a", "https://h:80/a?q=1", "s3://b/k", "gs://b/k#1", "hf://datasets/o/n@v/f"])
def test_urls_have_one_spelling(url: str) -> None:
    protocol, _, rest = url.partition("://")
    for spelt in (url, f"{protocol.upper()}://{rest}", f"{protocol}:/{rest}", Path(url)):
        assert is_remote(spelt) and check_location(spelt, "--flag") == url


@pytest.mark.parametrize("url", ["https://me:hunter2@h/x", "s3://key:hunter2@b/k", "ftp://me:hunter2@h/x"])
def test_no_password_in_a_url_nor_in_its_message(url: str) -> None:
    with pytest.raises(OsmError) as error:
        check_location(url, "--flag")
    assert "--flag" in str(error.value) and "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["https://h/a/../b", "s3://b/../k", "http://h/%2e%2e/a", "s3://b/a\0"])
def test_no_url_climbs(url: str) -> None:
    with pytest.raises(OsmError, match="a URL must not contain '..'"):
        check_location(url, "--flag")


def test_what_is_written_to() -> None:
    assert check_writable("s3://b/k", "--out") == "s3://b/k" and check_writable("out", "--out") == "out"
    for url in ("https://h/a?sig=hunter2", "hf://o/n/f"):
        with pytest.raises(OsmError, match="--out .*: the location is read-only") as error:
            check_writable(url, "--out")
        assert "hunter2" not in str(error.value)


def test_the_parts_of_locations() -> None:
    signed = "https://h/a/b%20c.PT?X-Amz-Signature=hunter2#top"
    assert public(signed) == "https://h/a/b%20c.PT" and name_of(signed) == "b c.PT" and suffix_of(signed) == ".pt"
    assert sibling(signed, "d e.json") == "https://h/a/d%20e.json?X-Amz-Signature=hunter2"
    assert join("https://h/a/?t=1", "x#1?.jpg") == "https://h/a/x%231%3F.jpg?t=1"
    # In a store's key these are letters.
    assert join("s3://b/a/", "x#1?.jpg") == "s3://b/a/x#1?.jpg" and name_of("s3://b/a/x#1?.jpg") == "x#1?.jpg"
    assert public("s3://b/k?versionId=7") == "s3://b/k" and sibling("s3://b/images/", "masks") == "s3://b/masks"
    assert join("s3://b", "k") == "s3://b/k" and public("s3://b") == "s3://b"
    assert join("a", "b") == str(Path("a/b")) and sibling("a/b", "c") == str(Path("a/c")) and public("a?b") == "a?b"
