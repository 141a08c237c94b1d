"""Registries of interchangeable parts (towers, bridges, ...) by name.

`Registry.get` accepts four kinds of names:

- the name of a part of this package,
- a name that was registered with `Registry.register`, for example by the decorator `register_tower`,
- the name of an entry point that an installed package declares in the registry's group, for example `osm.towers`,
- `module:Class`, for a class that can be imported.

Parts are imported on first use, so listing the names imports nothing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from osm.errors import OsmError, shown

Part = TypeVar("Part", bound=type)
Registered = TypeVar("Registered", bound=type)

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Registry(Generic[Part]):
    """Classes of one kind, by name.

    Args:
        kind: the word for a part in error messages, for example "tower".
        group: the entry-point group in which installed packages declare parts, for example "osm.towers".
        builtin: the parts of this package, as name -> "module:Class".
        interface: "module:Class" of the base class of all parts. A class is checked against it before it is used, so
            a name in a file cannot make the program call any other object.
        default: the name of the part that is used when a config names none.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], interface: str, default: str = "") -> None:
        self.kind, self.group, self.interface, self.default = kind, group, interface, default
        self._builtin = dict(builtin)
        self._registered: dict[str, Part] = {}

    @property
    def builtin(self) -> tuple[str, ...]:
        """The names of this package's own parts."""
        return tuple(self._builtin)

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a class decorator that registers a part under `name`.

        Raises:
            OsmError: `name` has other characters than a name may have, or another class has the name. The decorator
                raises it if the class is not a subclass of the interface.
        """
        if not _NAME.fullmatch(name):
            raise OsmError(
                f"{self.kind} {name!r}: expected a letter, followed by letters, digits, '.', '_' and '-' only"
            )

        def add(part: Registered) -> Registered:
            if name in self._builtin or self._registered.get(name, part) is not part:
                raise OsmError(f"{self.kind} {name!r}: another {self.kind} has this name; choose a different one")
            self._registered[name] = self._checked(part, name)
            return part

        return add

    def names(self) -> list[str]:
        """Return every name that `get` accepts except `module:Class`: built-in, registered, then installed parts.

        Each of the three groups is sorted.
        """
        names = [*sorted(self._builtin), *sorted(self._registered), *sorted(self._installed())]
        return list(dict.fromkeys(names))

    def origin(self, name: str) -> str:
        """Return where a part comes from: "built in", "registered", or the name of the installed distribution."""
        if name in self._builtin:
            return "built in"
        if name in self._registered:
            return "registered"
        point = self._installed().get(name)
        return "module" if point is None else (point.dist.name if point.dist else point.value)

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._registered or name in self._installed()

    def get(self, name: str) -> Part:
        """Return the class for a name or for `module:Class`.

        Raises:
            OsmError: no such part, it cannot be imported, or it is not a subclass of the interface.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            return self._imported(self._builtin[name], name)
        if is_import_path(name):
            return self._imported(name, name)
        point = self._installed().get(name)
        if point is None:
            raise OsmError(f"{self.kind} {shown(name)}: expected one of {', '.join(self.names())}, or module:Class")
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


def is_import_path(name: str) -> bool:
    """Return whether a name has the form `module:Class`."""
    return _PATH.fullmatch(name) is not None
