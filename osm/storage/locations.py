"""Check and split locations.

A location is a local path or a URL. Only protocols that access files are accepted, not those that run commands.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from osm.errors import OsmError

REMOTE = ("http", "https", "s3", "gs", "hf")
HTTP = ("http", "https")
WRITABLE = ("s3", "gs")
# One slash is accepted because `Path` turns "s3://bucket/key" into "s3:/bucket/key".
_URL = re.compile(r"(https?|s3|gs|hf|file):/+(?=[^/])", re.IGNORECASE)
_VERSION = re.compile(r"\?versionId=[^/?]*$")
_FILE = re.compile(r"file:/*", re.IGNORECASE)
# Matches strings that other data loaders interpret as a command (`pipe:` or `|`), standard input or another protocol.
# A single letter before a colon is a Windows drive.
_NO_PATH = re.compile(r"\s*([a-z][a-z0-9+.-]+:|\||-\s*$)|.*\|\s*$", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"\?[^\s,{}]*")  # Matches the query of a URL within a pattern or a sentence.
_WEB = re.compile(r"https?:/", re.IGNORECASE)
_COMMAND = re.compile(r"\s*(pipe:|\||-\s*$)|.*\|\s*$", re.IGNORECASE | re.DOTALL)
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is a URL with one of the protocols in `REMOTE`."""
    found = _URL.match(os.fspath(location))
    return found is not None and found[1].lower() != "file"


def is_path(text: str) -> bool:
    """Return whether a string is a local path, as opposed to a URL, a command or `-` (standard input)."""
    return _NO_PATH.match(text) is None


def check_location(location: str | os.PathLike[str], what: str) -> str:
    """Validate a location and return it as a local path (without `file://`) or a normalized URL.

    Args:
        location: a local path or a URL.
        what: the beginning of error messages, such as "--coco_shards".

    Raises:
        OsmError: the location is a command such as `pipe:`, has a protocol that is not in `REMOTE`, or is a URL that
            contains a password.
    """
    text = os.fspath(location)
    found = _URL.match(text)
    if found is None:
        if not is_path(text):
            raise OsmError(
                f"{what} {_hidden(text)[:200]!r}: expected a local path or a URL that starts with "
                f"{', '.join(f'{name}://' for name in REMOTE)}; commands like `pipe:` are not supported "
                "(if this is the name of a file, put ./ before it)"
            )
        return text
    protocol, rest = found[1].lower(), text[found.end() :]
    if protocol == "file":
        path = unquote(_FILE.sub("", text, count=1).removeprefix("localhost/"))
        return path if _DRIVE.match(path) else f"/{path}"
    host = rest.partition("/")[0]
    if "@" in host and protocol != "hf":
        raise OsmError(
            f"{what} {protocol}://***@{host.rpartition('@')[2]}: a password in a URL would end up in logs; pass "
            "credentials in the library's usual way (AWS_* variables, ~/.netrc, gcloud, HF_TOKEN)"
        )
    if ".." in unquote(rest.partition("?")[0]).split("/") or "\0" in rest:
        raise OsmError(f"{what} {public(text)}: a URL must not contain '..' or a null character")
    return f"{protocol}://{rest}"


def _hidden(text: str) -> str:
    """Remove the password and query from an unsupported URL for use in an error message."""
    return re.sub(r"//[^/]*@", "//***@", text.partition("?")[0]) if "://" in text else text


def check_writable(location: str | os.PathLike[str], what: str) -> str:
    """Check that a location is writable and return it as a local path (without `file://`) or a normalized URL.

    Raises:
        OsmError: the location is invalid (see `check_location`), or its protocol is read-only.
    """
    given = os.fspath(location)
    if "://" not in given and not _URL.match(given) and not _COMMAND.match(given):
        return given  # The name of a local folder may contain a colon.
    text = check_location(location, what)
    if is_remote(text) and text.partition(":")[0] not in WRITABLE:
        protocols = ", ".join(f"{name}://" for name in WRITABLE)
        raise OsmError(
            f"{what} {public(text)}: the location is read-only; expected a local path or a URL that starts with "
            f"{protocols}"
        )
    return text


def split_url(url: str) -> tuple[str, str, str, str]:
    """Split a URL into protocol, host (or bucket), path without the leading slash, and query.

    In object store keys, `#` and `?` are ordinary characters. The only query is S3's `?versionId=`.
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
    """Return a location without its password and query, for messages and meta files.

    The query of a signed URL contains credentials.
    """
    text = os.fspath(location)
    if not is_remote(text):
        return text
    found = _URL.match(text)
    assert found is not None
    protocol, host, path, _ = split_url(f"{found[1].lower()}://{text[found.end() :]}")
    host = host if protocol == "hf" else host.rpartition("@")[2]
    return f"{protocol}://{host}/{path}" if path else f"{protocol}://{host}"


def public_text(text: str) -> str:
    """Remove the queries of all HTTP URLs in a text, such as a pattern that matches several locations."""
    return "::".join(_QUERY.sub("", part) if _WEB.search(part) else part for part in text.split("::"))


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the location of a file in a folder.

    If the folder is a signed URL, the file's URL ends with the same query.

    Args:
        name: the path of the file within the folder.
    """
    text = os.fspath(folder)
    if not is_remote(text):
        return str(Path(text) / name)
    protocol, host, path, query = split_url(text)
    below = quote(name, errors="surrogatepass") if protocol in HTTP else name
    parts = [host, *([path.rstrip("/")] if path.rstrip("/") else []), below]
    return f"{protocol}://{'/'.join(parts)}{'?' if query else ''}{query}"


def sibling(location: str | os.PathLike[str], name: str) -> str:
    """Return the location of the file or folder `name` next to `location`."""
    text = os.fspath(location)
    if not is_remote(text):
        return str(Path(text).parent / name)
    protocol, host, path, query = split_url(text)
    parent = path.rstrip("/").rpartition("/")[0]
    return join(f"{protocol}://{host}/{parent}{'?' if query else ''}{query}", name)


def name_of(location: str | os.PathLike[str]) -> str:
    """Return the last component of a location, which is the name of a file or folder."""
    text = os.fspath(location)
    if not is_remote(text):
        return Path(text).name
    protocol, _, path, _ = split_url(text)
    name = path.rstrip("/").rpartition("/")[2]
    return unquote(name) if protocol in HTTP else name


def suffix_of(location: str | os.PathLike[str]) -> str:
    """Return the suffix of a location's name in lower case, such as `.pt`."""
    return Path(name_of(location)).suffix.lower()
