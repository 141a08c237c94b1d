"""The inputs of the speed benchmarks besides this repository: photos, trained models, datasets, another checkout.

A small run needs none of them. It uses synthetic scenes, untrained models and this checkout instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from osm.errors import OsmError

INPUTS = {
    "photos": ("DATA", "a folder of photos with panoptic.json, panoptic/ and images/"),
    "nano": ("NANO", "a trained osm_nano, else that of the benchmark `quickstart`"),
    "queries": ("QUERIES", "a trained osm_small_queries"),
    "sets": ("SETS", "a YAML with the val files of camvid and clothing"),
    "old": ("OLD", "another checkout, with which this one is compared"),
}
"""The environment variable of each input, and what it names."""

PARTS = {"photos": "val", "sets": "sets.yaml"}
"""The part of a substitute that benchmarks take."""

UNTRAINED = """
import sys, osm
osm.create_model_and_transforms("osm_nano")[0].save_pretrained(sys.argv[1])
"""


@dataclass
class SpeedInputs:
    """Finds the inputs of benchmarks.

    Attributes:
        out: the folder of all results.
        given: the paths that the user gave, by the names of the inputs.
        small: whether substitutes are made for inputs that are not given.
        root: the checkout.
    """

    out: Path
    given: dict[str, str]
    small: bool
    root: Path

    @classmethod
    def from_environment(cls, out: Path, small: bool, root: Path) -> SpeedInputs:
        """Raises OsmError if a variable names a path that does not exist."""
        given = {}
        for name, (variable, what) in INPUTS.items():
            value = os.environ.get(variable)
            if value:
                if not Path(value).exists():
                    raise OsmError(f"{variable}={value} does not exist: expected {what}")
                given[name] = str(Path(value).resolve())
        return cls(out, given, small, root)

    def find(self, name: str) -> Path | None:
        """Return the path of an input, or None if it is not given. In a small run, `make` may have to make it."""
        if name in self.given:
            return Path(self.given[name])
        if self.small:
            return self.root if name == "old" else self._substitute(name) / PARTS.get(name, "")
        trained = self.out / "work" / "quickstart" / "run" / "run" / "final"
        return trained if name == "nano" and trained.is_dir() else None

    def make(self, name: str) -> None:
        """Make the substitute of an input that is not given. Raises OsmError if that fails."""
        made = self._substitute(name)
        if not self.small or name in self.given or name == "old" or made.exists():
            return
        # A killed run leaves the temporary folder, which is made again.
        temporary = made.with_name(made.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        {"photos": self._draw, "sets": self._write_sets}.get(name, self._untrained)(temporary)
        temporary.rename(made)

    def _substitute(self, name: str) -> Path:
        return self.out / "small_inputs" / ("nano" if name == "queries" else name)

    def _draw(self, folder: Path) -> None:
        words = ("-m", "osm", "scenes", str(folder))
        self._python(*words, "--split", "val", "--sets", "scenes_plain", "--images", "12", "--seed", "3")
        (folder / "val" / "panoptic.json").symlink_to("scenes_plain.json")

    def _write_sets(self, folder: Path) -> None:
        self.make("photos")
        photos = self.find("photos")
        assert photos is not None
        table = str(photos / "panoptic.json")
        row = {"form": "coco_panoptic", "title": "scenes", "labels": table, "json_file": table}
        row |= {"image_dir": str(photos / "images"), "mask_dir": str(photos / "panoptic")}
        text = yaml.safe_dump({"datasets": {name: dict(row) for name in ("camvid", "clothing")}})
        (folder / "sets.yaml").write_text(text, encoding="utf-8")

    def _untrained(self, folder: Path) -> None:
        self._python("-c", UNTRAINED, str(folder))

    def _python(self, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, *words], cwd=self.root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise OsmError(f"{' '.join(words[:3])} failed: {done.stderr.strip()[-500:]}")
