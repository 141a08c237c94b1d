"""Registries that map names to this package's interchangeable classes, such as towers and bridges.

`Registry.get` accepts four kinds of names:

- the name of a class built into this package,
- a name registered with `Registry.register`, for example by the `register_tower` decorator,
- the name of an entry point that an installed package declares in the registry's group, for example `osm.towers`,
- `module:Class`, for any importable class.

Registered classes are imported on first use, so listing the names does not import any class.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from osm.errors import OsmError, did_you_mean, shown

Part = TypeVar("Part", bound=type)
Registered = TypeVar("Registered", bound=type)

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Registry(Generic[Part]):
    """Maps names to classes of one kind, such as all tower classes.

    Args:
        kind: the word for a class in error messages, for example "tower".
        group: the entry-point group in which installed packages declare classes, for example "osm.towers".
        builtin: name -> "module:Class" for the classes that are built into this package.
        interface: "module:Class" of the base class of all registered classes. Each class is checked to be a subclass
            before it is used, so that a name in an untrusted file cannot make the program call arbitrary objects.
        default: the name of the class that is used if a config does not name a class.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], interface: str, default: str = "") -> None:
        self.kind, self.group, self.interface, self.default = kind, group, interface, default
        self._builtin = dict(builtin)
        self._registered: dict[str, Part] = {}

    @property
    def builtin(self) -> tuple[str, ...]:
        """The names of the classes built into this package."""
        return tuple(self._builtin)

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a class decorator that registers a class under `name`.

        Raises:
            OsmError: `name` contains invalid characters. The decorator also raises OsmError if a different class
                already has the name, or if the class is not a subclass of the interface.
        """
        if not _NAME.fullmatch(name):
            raise OsmError(f"{self.kind} {name!r}: expected a letter followed only by letters, digits, '.', '_' or '-'")

        def add(part: Registered) -> Registered:
            if name in self._builtin or self._registered.get(name, part) is not part:
                raise OsmError(
                    f"{self.kind} {name!r}: another {self.kind} already has this name; choose a different name"
                )
            self._registered[name] = self._checked(part, name)
            return part

        return add

    def names(self) -> list[str]:
        """Return the names of all known classes: built-in first, then registered, then those of installed packages.

        Each of the three groups is sorted. The method `get` also accepts any `module:Class`.
        """
        names = [*sorted(self._builtin), *sorted(self._registered), *sorted(self._installed())]
        return list(dict.fromkeys(names))

    def hidden(self) -> list[str]:
        """Return a warning for each installed package's class that is hidden by another class with the same name.

        A built-in or registered class hides an installed package's class with the same name. If several installed
        packages declare a class with the same name, only one of these classes can be selected by name.
        """
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        sentences = []
        for name, points in sorted(found.items()):
            taken = name in self._builtin or name in self._registered
            for point in points if taken else points[:-1]:
                where = f"of package {point.dist.name}" if point.dist else f"({point.value})"
                sentences.append(
                    f"{self.kind} {name!r} {where} is hidden by another {self.kind} with the same name; "
                    f"use {point.value} to select it"
                )
        return sentences

    def origin(self, name: str) -> str:
        """Return the origin of a class: "built in", "registered", or the name of the installed distribution."""
        if name in self._builtin:
            return "built in"
        if name in self._registered:
            return "registered"
        point = self._installed().get(name)
        return "module" if point is None else (point.dist.name if point.dist else point.value)

    def path(self, name: str) -> str:
        """Return a class's import path, "module:Class", given its name, without importing the class."""
        if name in self._registered:
            part = self._registered[name]
            return f"{part.__module__}:{part.__qualname__}"
        point = None if name in self._builtin else self._installed().get(name)
        return self._builtin.get(name, name) if point is None else point.value

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._registered or name in self._installed()

    def get(self, name: str) -> Part:
        """Return a class, given its registered name or its import path `module:Class`.

        Raises:
            OsmError: no class has this name, the class cannot be imported, or it is not a subclass of the interface.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            return self._imported(self._builtin[name], name)
        if is_import_path(name):
            return self._imported(name, name)
        point = self._installed().get(name)
        if point is None:
            meant = did_you_mean(name, self.names())
            raise OsmError(
                f"{self.kind} {shown(name)}: expected one of {', '.join(self.names())}, or module:Class{meant}"
            )
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
