"""The documentation as a site: it builds without warnings, is complete, and works without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from osm.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.places.append(found.get("src") or "")
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.places.append(found.get("href") or "")


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("index.html"))


def test_every_page_of_the_documentation_is_on_the_site(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    missing = [str(name) for name in sources if not (site / name / "index.html").is_file()]
    assert not missing and (site / "index.html").is_file() and (site / "dataset_preparation" / "index.html").is_file()
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [str(name) for name in sources if f"- {name.as_posix()}.md" not in navigation]


def test_commands_and_configs_are_those_of_the_program(site: Path) -> None:
    text = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h2 id="osm-([a-z_]+)"', text)
    assert headings == list(COMMANDS) and "--overlaps" in text
    configs = (site / "reference" / "config" / "index.html").read_text(encoding="utf-8")
    assert "model.input_size" in configs and "1120" in configs
    functions = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert "osm.recognition.recognizer.Recognizer.name_views" in functions


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        for place in loaded.places:
            assert "//" not in place, (page, place)
            local = place.split("?")[0].split("#")[0]
            assert not local or (page.parent / local).resolve().is_file(), (page, place)
