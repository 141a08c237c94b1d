"""Sets whose files lie on servers: brought here, or made ready to be, before a form reads them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from osm.forms.base import Form, SetFiles
from osm.storage import remote
from osm.storage.cache import RemoteFolder, localize, user_cache
from osm.storage.locations import check_location, is_remote, public


def localized(files: SetFiles, form: type[Form]) -> SetFiles:
    """The files of a set with local paths, in every field.

    What describes the set as a whole is fetched now. Of a folder whose files a json names, each is fetched by
    `SetFiles.fetch`.

    Raises:
        OsmError: a location that is none, or a file or folder that is not there. RunStopped: the server fails.
    """
    files = _checked(files)
    values: dict[str, Any] = {name: getattr(files, name) for name in ("json_file", "labels")}
    values["refs_file"] = files.more.get("refs_file")
    given: dict[str, str] = {name: public(value) for name, value in values.items() if value and is_remote(value)}
    local: dict[str, Any] = {name: str(localize(values[name], files.flag_of(name))) for name in given}
    more = {**files.more, **{name: local.pop(name) for name in list(local) if name in files.more}}
    files = replace(files, **local, more=more, given=given)
    cache, whole = user_cache(), form.whole_folders(files)
    for url in whole:
        with remote.as_user_error(url, files.flag_of("image_dir")):
            cache.get_tree(check_location(url, files.flag_of("image_dir")))
    folders: dict[str, RemoteFolder] = {}
    for name in ("image_dir", "ann_dir"):
        value = getattr(files, name)
        if value and is_remote(value):
            url = check_location(value, files.flag_of(name))
            given[name] = public(url)
            local[name] = str(cache.path_of(url))
            if value not in whole:
                folders[name] = RemoteFolder(url, cache)
    return replace(files, **local, folders=folders, given=given)


def _checked(files: SetFiles) -> SetFiles:
    """With `file://` taken off. Raises OsmError for commands and protocols that are not read."""
    changes: dict[str, Any] = {}
    for name in ("image_dir", "ann_dir", "json_file", "labels"):
        value = getattr(files, name)
        if value and not os.path.lexists(value) and (path := check_location(value, files.flag_of(name))) != str(value):
            changes[name] = path
    return replace(files, **changes)
