"""Read file sizes, byte ranges, whole files and folder listings over HTTP.

The HTTP functions in fsspec are not used, because they report a missing file when the server is down, read responses of
any size into memory, and follow links that lead outside the listed folder.

The coroutines in this module run in fsspec's event loop. If a request fails, the coroutine raises aiohttp's error, and
`osm.storage.remote` retries the request.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from osm.errors import OsmError
from osm.storage.locations import public
from osm.storage.stats import NoRanges, Stat, WrongLength, check_unchanged

_GONE = (404, 410)
_NO_HEAD = (400, 403, 405, 501)
_HREF = re.compile(r"""<a\s[^>]*?href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+))""", re.IGNORECASE)
_PAGE_BYTES = 64 << 20
_MAX_PAGES = 100_000
_DEEPEST = 32  # The maximum depth of the nested folders to list.


async def stat(fs: Any, url: str) -> Stat:
    """Return the size and version of a file.

    Raises:
        FileNotFoundError: there is no such file.
        WrongLength: the server does not report the size.
    """
    session = await fs.set_session()
    async with session.head(fs.encode_url(url), allow_redirects=True) as answer:
        if answer.status in _GONE:
            raise FileNotFoundError(public(url))
        if answer.status not in _NO_HEAD:
            answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        if answer.status == 200 and length.isdigit():
            return Stat(int(length), _version(answer.headers))
    # Some servers reject HEAD requests (a signed URL may be valid only for GET) or omit the size from the response.
    async with session.get(fs.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
        if answer.status in _GONE:
            raise FileNotFoundError(public(url))
        if answer.status != 416:  # Servers return status 416 for a range request on an empty file.
            answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        if answer.status != 200:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not length.isdigit():
            raise WrongLength("the server does not report the size of the file")
        return Stat(int(length), _version(answer.headers))


def _version(headers: Any) -> str:
    return next((_plain(headers[key]) for key in ("ETag", "Last-Modified") if headers.get(key)), "")


def _plain(tag: str) -> str:
    return tag.removeprefix("W/").strip('"')


def _answer_version(headers: Any, expected: Stat) -> str:
    """Return a file's expected version if the response states it or states none, or else the response's version."""
    given = [_plain(headers[key]) for key in ("ETag", "Last-Modified") if key in headers]
    return given[0] if given and expected.version not in given else expected.version


async def read_range(fs: Any, url: str, start: int, end: int, expected: Stat | None) -> bytes:
    """Return the bytes `start` to `end` (excluded) of a file. The response must have the expected size and version.

    Raises:
        FileNotFoundError: there is no such file.
        NoRanges: the server sends only whole files.
        WrongLength: the server sent a different number of bytes.
        RunStopped: the file has changed.
    """
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
        if answer.status in _GONE:
            raise FileNotFoundError(public(url))
        if answer.status == 416:
            raise WrongLength(f"the file ends before byte {end}")
        answer.raise_for_status()
        if answer.status != 206:
            raise NoRanges(public(url))
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if expected is not None:
            size = int(total) if total.isdigit() else expected.size
            check_unchanged(url, expected, Stat(size, _answer_version(answer.headers, expected)))
        data = bytearray()
        async for block in answer.content.iter_any():
            data += block
            if len(data) > end - start:
                raise WrongLength(f"{end - start} bytes were requested, but the server sent more")
        if len(data) != end - start:
            raise WrongLength(f"{end - start} bytes were requested, but the server sent {len(data)} bytes")
        return bytes(data)


async def fetch_whole(fs: Any, url: str, path: Path, expected: Stat) -> None:
    """Download a whole file from a server that does not support range requests. Reading stops after the expected size.

    Raises:
        FileNotFoundError: there is no such file.
        WrongLength: the server sent a different number of bytes.
        RunStopped: the file has changed.
    """
    session = await fs.set_session()
    async with session.get(fs.encode_url(url)) as answer:
        if answer.status in _GONE:
            raise FileNotFoundError(public(url))
        answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        now = Stat(int(length) if length.isdigit() else expected.size, _answer_version(answer.headers, expected))
        check_unchanged(url, expected, now)
        came = 0
        with path.open("wb") as file:
            async for block in answer.content.iter_any():
                came += len(block)
                if came > expected.size:
                    raise WrongLength(f"the server announced {expected.size} bytes but sent more")
                file.write(block)
        if came != expected.size:
            raise WrongLength(f"the server announced {expected.size} bytes but sent {came} bytes")


async def list_names(fs: Any, url: str, most: int) -> list[str]:
    """Return the paths of all files inside a folder and its subfolders, as listed by the server's HTML pages.

    Only links to files and folders directly inside the listed folder are followed, so that links to a different host,
    links to a parent folder and circular links are ignored.

    Raises:
        FileNotFoundError: the page does not exist, or contains no link to a file.
        OsmError: there are more than `most` files.
    """
    parts = urlsplit(url)
    root = str(fs.encode_url(urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + "/", "", ""))))
    pages, names = [""], list[str]()
    for number, page in enumerate(pages):  # The loop appends to `pages`.
        if number >= _MAX_PAGES or len(names) > most:
            raise OsmError(f"{public(url)}: over {most} files or {_MAX_PAGES} folders")
        address = root + page
        for child in _children(address, await _page(fs, address)):
            name = unquote(child)
            if name.strip("/") in ("", ".", "..") or "\0" in name or "/" in name.rstrip("/"):
                continue
            if child.endswith("/"):
                if page.count("/") < _DEEPEST:
                    pages.append(page + child)
            else:
                names.append(unquote(page) + name)
    if not names:
        raise FileNotFoundError(public(url))
    return names


async def list_page(fs: Any, url: str) -> list[str]:
    """Return the percent-encoded names of the files in one folder, as listed by the folder's HTML page.

    Raises:
        FileNotFoundError: there is no such page.
    """
    address = str(fs.encode_url(url.rstrip("/") + "/"))
    return [child for child in _children(address, await _page(fs, address)) if not child.endswith("/")]


async def _page(fs: Any, url: str) -> str:
    session = await fs.set_session()
    async with session.get(fs.encode_url(url)) as answer:
        if answer.status in _GONE:
            raise FileNotFoundError(public(url))
        answer.raise_for_status()
        if answer.content_type != "text/html":
            raise FileNotFoundError(public(url))  # The response is a file instead of an HTML folder listing.
        data = bytearray()
        async for block in answer.content.iter_any():
            data += block
            if len(data) > _PAGE_BYTES:
                raise OsmError(f"{public(url)}: the HTML page listing this folder is larger than {_PAGE_BYTES} bytes")
        return data.decode("utf-8", "replace")


def _children(address: str, page: str) -> list[str]:
    """Return the entries linked from a folder's HTML page, percent-encoded and without duplicates.

    Entries for subfolders end with a slash.
    """
    found: dict[str, None] = {}
    for match in _HREF.finditer(page):
        href = html.unescape(match[1] or match[2] or match[3] or "")
        try:
            target = urljoin(address, href)
            parts = urlsplit(target)
        except ValueError:
            continue
        if parts.query or parts.fragment or not target.startswith(address):
            continue
        child = target[len(address) :]
        if child and "/" not in child[:-1]:
            found[child] = None
    return list(found)
