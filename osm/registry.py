"""Registries of interchangeable parts: towers, bridges, segmenters, metrics and forms, by name.

A part is found under one of four names:

- the name of a part of this package,
- a name given to `Registry.register` (as `register_tower` and its like do),
- the name of an entry point that an installed package declares in the registry's group (`osm.towers`, ...),
- `module:Class`, for a class that can be imported.

Parts are imported when they are first asked for, so listing names imports nothing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from osm.errors import OsmError

Part = TypeVar("Part", bound=type)

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Registry(Generic[Part]):
    """Classes of one kind, by name.

    Args:
        kind: What a part is called in messages: "tower".
        group: The entry-point group of installed packages: "osm.towers".
        builtin: The parts of this package: name -> "module:Class".
        interface: "module:Class" of the base class that every part must be a subclass of. It is checked before a
            part is used, so that a name in a file cannot make the program call anything else.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], interface: str) -> None:
        self.kind, self.group, self.interface = kind, group, interface
        self._builtin = dict(builtin)
        self._registered: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """A class decorator that registers a part under `name`.

        Raises:
            OsmError: Where `name` is not a plain name, or is taken by another class.
        """
        if not _NAME.fullmatch(name):
            raise OsmError(f"{self.kind} {name!r}: a name has letters, digits, '.', '_' and '-', a letter first")

        def add(part: Part) -> Part:
            taken = name in self._builtin or self._registered.get(name, part) is not part
            if taken:
                raise OsmError(f"{self.kind} {name!r}: the name is taken; register it under another one")
            self._checked(part, name)
            self._registered[name] = part
            return part

        return add

    def names(self) -> list[str]:
        """All names that `get` finds, apart from `module:Class`: sorted within builtin, registered, installed."""
        names = [*sorted(self._builtin), *sorted(self._registered), *sorted(self._installed())]
        return list(dict.fromkeys(names))

    def origin(self, name: str) -> str:
        """Where a part comes from, for a listing: "built in", "registered", or the distribution that brings it."""
        if name in self._builtin:
            return "built in"
        if name in self._registered:
            return "registered"
        point = self._installed().get(name)
        return "module" if point is None else (point.dist.name if point.dist else point.value)

    def path(self, name: str) -> str:
        """Return "module:Class" of a part, without importing it."""
        if name in self._registered:
            part = self._registered[name]
            return f"{part.__module__}:{part.__qualname__}"
        point = None if name in self._builtin else self._installed().get(name)
        return self._builtin.get(name, name) if point is None else point.value

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._registered or name in self._installed()

    def get(self, name: str) -> Part:
        """The class called `name`, or `module:Class`.

        Raises:
            OsmError: Where there is none, where it cannot be imported, or where it is not a subclass of the interface.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            return self._imported(self._builtin[name], name)
        if _PATH.fullmatch(name):
            return self._imported(name, name)
        point = self._installed().get(name)
        if point is None:
            raise OsmError(f"{self.kind} {name!r}: expected one of {', '.join(self.names())}, or module:Class")
        return self._imported(point.value, name)

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _imported(self, path: str, name: str) -> Part:
        module, _, attribute = path.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for step in attribute.split("."):
                found = getattr(found, step)
        except (ImportError, AttributeError) as error:
            raise OsmError(f"{self.kind} {name!r}: {path} cannot be imported: {error}") from error
        return self._checked(found, name)

    def _checked(self, part: Any, name: str) -> Part:
        module, _, attribute = self.interface.partition(":")
        base = getattr(importlib.import_module(module), attribute)
        if not (isinstance(part, type) and issubclass(part, base)):
            raise OsmError(f"{self.kind} {name!r}: expected a subclass of {module}.{attribute}, found {part!r}")
        return part  # type: ignore[return-value]
