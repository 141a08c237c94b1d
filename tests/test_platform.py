"""The package is imported where the system has no fcntl and no resource, as on Windows."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import builtins, importlib, pkgutil
import_ = builtins.__import__

def without(name, globals=None, *rest, **named):
    if name in ("fcntl", "resource") and (globals or {}).get("__name__", "").startswith("osm."):
        raise ImportError(name)
    return import_(name, globals, *rest, **named)

builtins.__import__ = without
import osm
names = [m.name for m in pkgutil.walk_packages(osm.__path__, "osm.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
from osm.training.meter import memory_gib
import torch
assert memory_gib(torch.device("cpu")) == 0.0
print(len(names))
"""


def test_modules_of_unix_are_not_needed() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150
