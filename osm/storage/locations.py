"""What a location may be: a local path, or a URL of a protocol that reads files and runs nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from osm.errors import OsmError

REMOTE = ("http", "https", "s3", "gs", "hf")
HTTP = ("http", "https")
WRITABLE = ("s3", "gs")
# `Path` makes one slash of two: "s3:/bucket/key" is taken for what it was.
_URL = re.compile(r"(https?|s3|gs|hf|file):/+(?=[^/])", re.IGNORECASE)
_VERSION = re.compile(r"\?versionId=[^/?]*$")
_FILE = re.compile(r"file:/*", re.IGNORECASE)
# What other loaders take for a command (`pipe:`, a bar at either end), another protocol (one letter is a drive of
# Windows), or standard input.
_NO_PATH = re.compile(r"\s*([a-z][a-z0-9+.-]+:|\||-\s*$)|.*\|\s*$", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"\?[^\s,{}]*")  # within a pattern or a sentence
_WEB = re.compile(r"https?:/", re.IGNORECASE)
_COMMAND = re.compile(r"\s*(pipe:|\||-\s*$)|.*\|\s*$", re.IGNORECASE | re.DOTALL)
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URL of one of the protocols `REMOTE`."""
    found = _URL.match(os.fspath(location))
    return found is not None and found[1].lower() != "file"


def is_path(text: str) -> bool:
    """Whether a text can be nothing but a local path: no URL, command or standard input."""
    return _NO_PATH.match(text) is None


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
        if not is_path(text):
            raise OsmError(
                f"{what} {_hidden(text)[:200]!r}: expected a local path, or a URL that begins with "
                f"{', '.join(f'{name}://' for name in REMOTE)}; commands like `pipe:` are refused "
                "(./ before it, for a file that is called so)"
            )
        return text
    protocol, rest = found[1].lower(), text[found.end() :]
    if protocol == "file":
        path = unquote(_FILE.sub("", text, count=1).removeprefix("localhost/"))
        return path if _DRIVE.match(path) else f"/{path}"
    host = rest.partition("/")[0]
    if "@" in host and protocol != "hf":
        raise OsmError(
            f"{what} {protocol}://***@{host.rpartition('@')[2]}: a password in a URL would end up in logs; use the "
            "library's own way (AWS_* variables, ~/.netrc, gcloud, HF_TOKEN)"
        )
    if ".." in unquote(rest.partition("?")[0]).split("/") or "\0" in rest:
        raise OsmError(f"{what} {public(text)}: '..' in a URL; expected the address itself")
    return f"{protocol}://{rest}"


def _hidden(text: str) -> str:
    """What is no URL of ours as a message may show it: without a password and a query."""
    return re.sub(r"//[^/]*@", "//***@", text.partition("?")[0]) if "://" in text else text


def check_writable(location: str | os.PathLike[str], what: str) -> str:
    """As `check_location`, for something that is to be written. Raises OsmError also for protocols that only read."""
    given = os.fspath(location)
    if "://" not in given and not _URL.match(given) and not _COMMAND.match(given):
        return given  # a folder may have a colon in its name
    text = check_location(location, what)
    if is_remote(text) and text.partition(":")[0] not in WRITABLE:
        protocols = ", ".join(f"{name}://" for name in WRITABLE)
        raise OsmError(f"{what} {public(text)}: it can be read, but not written; expected a local path, {protocols}")
    return text


def split_url(url: str) -> tuple[str, str, str, str]:
    """Protocol, host (or bucket), path without its first slash, and query.

    In a store's key `#` and `?` are letters as any other; of S3, `?versionId=` is a query.
    """
    protocol, _, rest = url.partition("://")
    query = ""
    if protocol in HTTP:
        rest, _, query = rest.partition("#")[0].partition("?")
    elif protocol == "s3" and (found := _VERSION.search(rest)):
        rest, query = rest[: found.start()], found[0][1:]
    host, _, path = rest.partition("/")
    return protocol, host, path, query


def public(location: str | os.PathLike[str]) -> str:
    """A location as messages and meta files may show it: without the query, which holds a signed URL's credentials."""
    text = os.fspath(location)
    if not is_remote(text):
        return text
    found = _URL.match(text)
    assert found is not None
    protocol, host, path, _ = split_url(f"{found[1].lower()}://{text[found.end() :]}")
    host = host if protocol == "hf" else host.rpartition("@")[2]
    return f"{protocol}://{host}/{path}" if path else f"{protocol}://{host}"


def public_text(text: str) -> str:
    """A text without the queries of the http URLs in it, such as a pattern of several locations."""
    return "::".join(_QUERY.sub("", part) if _WEB.search(part) else part for part in text.split("::"))


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The location of a file of a folder, by its path there; a signed URL's query stays at the end."""
    text = os.fspath(folder)
    if not is_remote(text):
        return str(Path(text) / name)
    protocol, host, path, query = split_url(text)
    below = quote(name, errors="surrogatepass") if protocol in HTTP else name
    parts = [host, *([path.rstrip("/")] if path.rstrip("/") else []), below]
    return f"{protocol}://{'/'.join(parts)}{'?' if query else ''}{query}"


def sibling(location: str | os.PathLike[str], name: str) -> str:
    """The location of another file of the folder that a file (or folder) is in."""
    text = os.fspath(location)
    if not is_remote(text):
        return str(Path(text).parent / name)
    protocol, host, path, query = split_url(text)
    parent = path.rstrip("/").rpartition("/")[0]
    return join(f"{protocol}://{host}/{parent}{'?' if query else ''}{query}", name)


def name_of(location: str | os.PathLike[str]) -> str:
    """The last part of a location."""
    text = os.fspath(location)
    if not is_remote(text):
        return Path(text).name
    protocol, _, path, _ = split_url(text)
    name = path.rstrip("/").rpartition("/")[2]
    return unquote(name) if protocol in HTTP else name


def suffix_of(location: str | os.PathLike[str]) -> str:
    """What a location's name ends with, in lower case, such as `.pt`."""
    return Path(name_of(location)).suffix.lower()
