"""The tree as a whole: what is declared and shipped, how modules depend on each other, and the wheel."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import PATIENCE_S

import osm
from osm.datasets.table import DatasetTable
from osm.models.model_config import load_model_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
MAX_LINES = 600
OPTIONAL = (
    "open_clip",
    "label",
    "ray",
    "lora",
    "quantization",
    "prepare",
    "fast",
    "proposals",
    "wandb",
    "serve",
    "notebook",
    "sam",
    "segmenter",
)  # extras whose packages osm imports
README_EXTRAS = ("open_clip", "wandb", "proposals", "prepare", "fast", "serve", "notebook", "sam", "segmenter")
ENTRY_FOLDERS = ("train", "test", "dataset_preparation", "scripts")


@cache
def project_files() -> tuple[Path, ...]:
    """What is in the repository, or about to be: git's list, or (a copy without .git) all that nothing else made."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if listing is not None and listing.returncode == 0:
        names = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        made = re.compile(r"\..*|__pycache__|.*\.egg-info|build|dist|runs|wandb|shared")
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [name for name in names if not any(made.fullmatch(part) for part in name.parts)]
    return tuple(sorted(ROOT / name for name in set(names) if (ROOT / name).is_file()))


def python_files(folder: str = "") -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module, or name of a module, that a file imports, in functions and for type checkers too."""
    package = module_name(path) if path.stem == "__init__" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.fixture
def declared() -> dict[str, Any]:
    """The section [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_requirements_are_what_the_commands_of_the_readme_need(declared: dict[str, Any]) -> None:
    extras = [line for extra in README_EXTRAS for line in declared["optional-dependencies"][extra]]
    wanted = list(dict.fromkeys([*declared["dependencies"], *extras]))
    assert (ROOT / "requirements.txt").read_text().splitlines() == wanted
    assert (ROOT / "requirments.txt").read_text() == "-r requirements.txt\n"


def test_what_osm_imports_is_declared(declared: dict[str, Any]) -> None:
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~; \[]", name)[0]).lower()

    optional = [name for extra in OPTIONAL for name in declared["optional-dependencies"][extra]]
    required = {canonical(name) for name in declared["dependencies"] + optional}
    homes = importlib.metadata.packages_distributions()
    for path in python_files("osm"):
        for name in {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"osm"}:
            assert required & {canonical(d) for d in homes.get(name, [name])}, f"{path}: {name} is in no requirement"


def test_no_long_file() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in python_files()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_no_branch_on_a_dataset_name() -> None:
    branch = re.compile(r"if .*dataset(_name)? == [\"']")
    found = [f"{p}: {line}" for p in python_files("osm") for line in p.read_text().splitlines() if branch.search(line)]
    assert not found, "a dataset's ways belong into its row of the table (osm/datasets/table.py)"


def test_every_module_says_what_it_is_for() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in python_files("osm")}
    # An __init__.py that holds nothing has nothing to say.
    silent = [str(path) for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not silent


def test_nothing_imports_entry_scripts() -> None:
    scripts = [path for folder in ENTRY_FOLDERS for path in python_files(folder)]
    assert scripts
    names = {module_name(path) for path in scripts} | {path.stem for path in scripts}
    found = [f"{p}: {n}" for p in python_files() for n in imports(p) if any(within(n, script) for script in names)]
    assert not found


def test_no_reference_to_what_readers_do_not_have() -> None:
    """No path into a folder beside the repository, no number of a tracker."""
    elsewhere = re.compile(r"(?<![\w-])shared" + r"/|\bissue" + r" ?#", re.IGNORECASE)
    found = []
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path}: {line[:200]}" for line in text.splitlines() if elsewhere.search(line)]
    assert not found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse(path: Path) -> None:
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"model", "datasets"} & set(sections)
    if "model" in sections:
        load_model_config(str(path))
    if "datasets" in sections:
        DatasetTable().with_yaml(path)


INSTALLED = """
import sys
from pathlib import Path
import osm
from osm.config import find_config
from osm.models.model_config import load_model_config
import osm
from osm.datasets.table import DatasetTable
from osm.datasets.labels import load_labels

environment = Path(sys.prefix).resolve()
assert Path(osm.__file__).resolve().is_relative_to(environment), osm.__file__
for name in osm.__all__:
    getattr(osm, name)
for name in sys.argv[1].split(","):
    assert find_config(name).resolve().is_relative_to(environment), name
load_model_config("osm_small")
model, _ = osm.create_model_and_transforms("osm_nano")  # its frozen parts come with the package
assert model.config.tower.source == model.config.llm.source == "package"
assert all(row.label_set.vocabulary for row in DatasetTable().values() if row.labels)
assert all(load_labels(name).classes for name in sys.argv[2].split(","))
"""


@pytest.mark.slow
def test_wheel_of_the_sdist(tmp_path: Path) -> None:
    """A wheel built from the sdist, installed away from the checkout, brings the package with configs and labels."""
    source = tmp_path / "source"  # a copy: building would leave files in the checkout, and pick up older ones there
    for path in project_files():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sdist = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", sdist, tmp_path], check=True, timeout=PATIENCE_S, cwd=source, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(archive)]
    subprocess.run(build, check=True, timeout=PATIENCE_S)
    (wheel,) = tmp_path.glob("*.whl")

    environment = tmp_path / "environment"
    venv.create(environment, symlinks=os.name != "nt")
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=PATIENCE_S)
    # It borrows this environment's packages; the checkout is not among them, as a .pth file in them is not read.
    paths = {"base": str(environment), "platbase": str(environment)}
    borrowed = dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
    (Path(sysconfig.get_path("purelib", "venv", paths)) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")

    configs = ",".join(path.stem for path in CONFIGS if path.parent == ROOT / "configs")
    labels = ",".join(path.stem for path in project_files() if path.match("osm/datasets/labels/*.json"))
    command = [str(python), "-I", "-c", INSTALLED, configs, labels]
    run = subprocess.run(command, cwd=Path(tmp_path.anchor), capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr


def test_the_citation_has_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == osm.__version__


def test_the_workflow_calls_the_test_script() -> None:
    """And all YAML files of the repository's host can be read."""
    documents = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github").rglob("*.yml"))]
    assert len(documents) == 3 and all(documents)
    [workflow] = [document for document in documents if "jobs" in document]
    assert workflow["jobs"]["test"]["steps"][-1]["run"] == "bash scripts/test.sh"
