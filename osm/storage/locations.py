"""What a location may be: a local path, or a URL of a protocol that reads files and runs nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from osm.errors import OsmError

REMOTE = ("http", "https", "s3", "gs", "hf")
WRITABLE = ("s3", "gs")
# `Path` makes one slash of two: "s3:/bucket/key" is taken for what it was.
_URL = re.compile(r"(https?|s3|gs|hf|file):/+(?=[^/])", re.IGNORECASE)
_FILE = re.compile(r"file:/*", re.IGNORECASE)
# What other loaders take for a command (`pipe:`, a bar at either end), another protocol, or standard input. (One letter
# before a colon is a drive of Windows.)
_NO_PATH = re.compile(r"\s*([a-z][a-z0-9+.-]+:|\||-\s*$)|.*\|\s*$", re.IGNORECASE | re.DOTALL)


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URL of one of the protocols `REMOTE`."""
    found = _URL.match(os.fspath(location))
    return found is not None and found[1].lower() != "file"


def check_location(location: str | os.PathLike[str], what: str) -> str:
    """Returns a local path as it is (`file://` taken off), or a URL in one spelling.

    Args:
        what: begins the message, such as "--coco_shards".

    Raises:
        OsmError: a command such as `pipe:`, a protocol that is not one of `REMOTE`, or a URL with a password in it.
    """
    text = os.fspath(location)
    found = _URL.match(text)
    if found is None:
        if _NO_PATH.match(text):
            raise OsmError(
                f"{what} {text[:200]!r}: expected a local path, or a URL that begins with "
                f"{', '.join(f'{name}://' for name in REMOTE)}; commands like `pipe:` are refused "
                "(./ before it, for a file that is called so)"
            )
        return text
    protocol, rest = found[1].lower(), text[found.end() :]
    if protocol == "file":
        return unquote("/" + _FILE.sub("", text).removeprefix("localhost/"))
    host = rest.partition("/")[0]
    if "@" in host and protocol != "hf":
        raise OsmError(
            f"{what} {protocol}://***@{host.rpartition('@')[2]}: a password in a URL would end up in logs; use the "
            "library's own way (AWS_* variables, ~/.netrc, gcloud, HF_TOKEN)"
        )
    if ".." in rest.partition("?")[0].split("/") or "\0" in rest:
        raise OsmError(f"{what} {public(text)}: '..' in a URL; expected the address itself")
    return f"{protocol}://{rest}"


def check_writable(location: str | os.PathLike[str], what: str) -> str:
    """As `check_location`, for something that is to be written. Raises OsmError also for protocols that only read."""
    given = os.fspath(location)
    if "://" not in given and not _URL.match(given):
        return given  # a folder may be called like a protocol: nothing that is written to is ever run
    text = check_location(location, what)
    if is_remote(text) and text.partition(":")[0] not in WRITABLE:
        protocols = ", ".join(f"{name}://" for name in WRITABLE)
        raise OsmError(f"{what} {public(text)}: it can be read, but not written; expected a local path, {protocols}")
    return text


def public(location: str | os.PathLike[str]) -> str:
    """A location as messages and meta files may show it: without the query, which holds a signed URL's credentials."""
    text = os.fspath(location)
    if not is_remote(text):
        return text
    parts = urlsplit(text)
    host = parts.netloc if parts.scheme == "hf" else parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The location of a file of a folder; a signed URL's query stays at the end."""
    text = os.fspath(folder)
    if not is_remote(text):
        return str(Path(text) / name)
    path, mark, query = text.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def sibling(location: str | os.PathLike[str], name: str) -> str:
    """The location of another file of the folder that a file is in."""
    text = os.fspath(location)
    if not is_remote(text):
        return str(Path(text).parent / name)
    path, mark, query = text.partition("?")
    return f"{path.rpartition('/')[0]}/{name}{mark}{query}"


def name_of(location: str | os.PathLike[str]) -> str:
    """The last part of a location."""
    text = os.fspath(location)
    return unquote(text.partition("?")[0].rstrip("/").rpartition("/")[2]) if is_remote(text) else Path(text).name
