"""`benchmarks/all.sh`: all benchmarks of speed, resumed after a kill, with their failures and their figures."""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from all_speed import main
from raw_figures import find_values, last_document, summaries
from speed_benchmarks import BENCHMARKS, NOT_SPEED, SpeedBenchmark
from speed_inputs import INPUTS
from speed_machine import gpu_model

from osm.errors import OsmError
from osm.files import lock

ROOT = Path(__file__).resolve().parents[1]
# A benchmark that notes its calls. With a pipe, it reports itself there and waits until it is killed.
FAKE = """
import json, os, signal, sys
name, calls, value = sys.argv[1:4]
with open(calls, "a") as file:
    file.write(name + chr(10))
pipe = os.environ.get("PIPE")
if pipe and name == os.environ["STUCK"] and open(calls).read().split().count(name) == 2:
    report = open(pipe, "w")
    report.write("x")
    report.flush()
    signal.pause()
if value == "broken":
    print("begins")
    sys.exit("the disk is gone")
print("a line before")
print(json.dumps({"cases": [{"masks": 8, "rate": float(value)}]}, indent=1))
"""
DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1] + "/tests", sys.argv[1] + "/benchmarks"]
from test_benchmarks_all import table
from all_speed import main
sys.exit(main([sys.argv[2]], table(Path(sys.argv[3])), Path(sys.argv[4])))
"""


def fake(name: str, calls: Path, value: object = 3, runs: int = 1, **more: Any) -> SpeedBenchmark:
    flags = f"{name} {calls} {value}"
    return SpeedBenchmark(name, f"fake.py {flags}", flags, (("cases[masks].rate", "names/s"),), "", runs, **more)


def table(calls: Path) -> list[SpeedBenchmark]:
    return [fake("first", calls), fake("second", calls, 5, runs=3), fake("third", calls)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the fake benchmark."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "fake.py").write_text(FAKE)
    git(root, "init", "-q")
    commit(root)
    return root


def git(root: Path, *words: str) -> None:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *settings, *words], check=True)


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "-q", "--allow-empty", "-m", "a change")


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "all.json").read_text())
    return found


def answer(pipe: int) -> bytes:
    """What a process writes to a pipe; nothing if it has ended."""
    assert select.select([pipe], [], [], 30)[0], "the process writes nothing"
    return os.read(pipe, 1)


def test_a_killed_run_continues_where_it_was(checkout: Path, tmp_path: Path) -> None:
    calls, out, pipe = tmp_path / "calls", tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", DRIVER, str(ROOT), str(out), str(calls), str(checkout)]
    driver = subprocess.Popen(command, env={**os.environ, "PIPE": str(pipe), "STUCK": "second"})
    report = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert answer(report) == b"x"  # the second benchmark is in its second run
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert answer(report) == b""  # the pipe ends with the benchmark, which must not go on beside the next run
    os.close(report)
    assert results(out)["benchmarks"]["first"]["status"] == "done"
    assert main([str(out)], table(calls), checkout) == 0
    assert calls.read_text().split() == ["first", "second", "second", "second", "second", "third"]
    second = results(out)["figures"][1]
    assert second["key"] == "second/masks 8/rate" and second["repeats"] == 3 and second["unit"] == "names/s"
    assert second["raw"] == [f"raw/second_{number}.json" for number in (1, 2, 3)]
    assert second["command"] == f"python3 fake.py second {calls} 5"
    assert (second["median"], second["lowest"], second["highest"]) == (5, 5, 5)
    assert main([str(out)], table(calls), checkout) == 0
    assert len(calls.read_text().split()) == 6  # nothing was left to do
    assert main([str(out), "--only", "third", "--fresh"], table(calls), checkout) == 0
    assert calls.read_text().split()[6:] == ["third"] and len(results(out)["figures"]) == 3


def test_a_failed_benchmark_is_reported_and_the_others_run(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, out = tmp_path / "calls", tmp_path / "out"
    broken = [
        fake("broken", calls, "broken"),
        SpeedBenchmark("unlike", f"fake.py unlike {calls} 1", "", (("cases.speed", "s"),), ""),
        fake("last", calls),
    ]
    assert main([str(out)], broken, checkout) == 1
    said = capsys.readouterr().err
    assert "exit code 1" in said and "  begins\n  the disk is gone" in said
    assert "no number at cases.speed" in said and "failed: broken, unlike" in said
    found = results(out)
    assert [record["status"] for record in found["benchmarks"].values()] == ["failed", "failed", "done"]
    assert [figure["key"] for figure in found["figures"]] == ["last/masks 8/rate"]
    assert main([str(out), "--only", "last"], broken, checkout) == 0
    calls.unlink()
    main([str(out)], [fake("broken", calls), *broken[2:]], checkout)
    assert calls.read_text().split() == ["broken"]  # what failed is tried again, and is mended now
    assert results(out)["benchmarks"]["broken"]["status"] == "done"


def test_other_code_and_other_sizes_are_measured_again(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, out = tmp_path / "calls", tmp_path / "out"

    def runs(*flags: str) -> int:
        calls.write_text("")
        assert main([str(out), *flags], [fake("one", calls)], checkout) == 0
        return len(calls.read_text().split())

    assert runs() == 1 and runs() == 0
    assert not results(out)["dirty"]
    (checkout / "docs").mkdir()
    (checkout / "docs" / "page.md").write_text("a page is no code")
    assert runs() == 0
    (checkout / "fake.py").write_text(FAKE + "# changed\n")
    assert runs() == 1 and runs() == 0
    assert results(out)["dirty"]
    first = results(out)["commit"]
    commit(checkout)
    assert runs() == 1 and runs() == 0
    assert results(out)["figures"][0]["commit"] == results(out)["commit"] != first
    assert runs("--fresh") == 1
    monkeypatch.setenv("SMALL", "1")
    assert runs() == 1
    assert results(out)["small"] and results(out)["figures"][0]["key"].startswith("small run: ")
    monkeypatch.setenv("SMALL", "0")
    assert runs() == 1 and not results(out)["small"]


def test_what_cannot_run_here_is_listed_as_skipped(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATA", raising=False)
    calls, out = tmp_path / "calls", tmp_path / "out"
    needy = [fake("photos", calls, "{photos}"), fake("done", calls)]
    if gpu_model() is None:
        needy.append(fake("large", calls, gpu=True))
    assert main([str(out)], needy, checkout) == 0
    records = results(out)["benchmarks"]
    assert records["photos"]["status"] == "skipped" and "DATA is not set" in records["photos"]["reason"]
    assert records.get("large", {"reason": "there is no GPU"})["reason"] == "there is no GPU"
    assert calls.read_text().split() == ["done"]
    monkeypatch.setenv("DATA", str(tmp_path / "none"))
    assert main([str(out)], needy, checkout) == 2 and "DATA=" in capsys.readouterr().err
    assert main([str(out), "--only", "dine"], [fake("dine_in", calls)], checkout) == 2
    assert "--only dine: expected" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        assert lock(held)
        command = [sys.executable, "-c", DRIVER, str(ROOT), str(out), str(tmp_path / "calls"), str(checkout)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "is used by another run" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_every_file_of_benchmarks_is_measured_or_known_to_measure_no_speed() -> None:
    scripts = {Path(one.script).stem for one in BENCHMARKS if one.script.startswith("benchmarks/")}
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not files - scripts - set(NOT_SPEED), "add them to benchmarks/speed_benchmarks.py"
    assert not scripts & set(NOT_SPEED) and scripts | set(NOT_SPEED) <= files


def test_the_table_is_in_order() -> None:
    names = [benchmark.name for benchmark in BENCHMARKS]
    assert len(set(names)) == len(names)
    for benchmark in BENCHMARKS:
        assert benchmark.runs >= 1 and benchmark.figures and benchmark.small
        assert benchmark.script.startswith("-m osm ") or (ROOT / benchmark.script).is_file()
        assert not benchmark.page or (ROOT / "docs" / benchmark.page).is_file(), benchmark.name
        for small in (False, True):
            assert set(benchmark.inputs(small)) <= set(INPUTS), benchmark.name


def test_the_paths_of_figures_are_those_of_the_documents_in_the_docs() -> None:
    checked = 0
    for benchmark in BENCHMARKS:
        path = ROOT / "docs" / "benchmarks" / benchmark.kept
        if benchmark.kept and path.is_file():  # some have not been measured yet
            found = summaries([json.loads(path.read_text())], benchmark.figures)
            assert len({figure["key"] for figure in found}) == len(found) > 0
            checked += 1
    assert checked > 15


def test_figures_are_found_in_documents() -> None:
    document = last_document('{"not": 1}\nlog\n{\n "a": {"x.y": [1, 2], "null": null, "text": "t"},\n "b": []\n}\n')
    assert list(find_values(document, "a.*")) == [("a/x.y", [1.0, 2.0])]
    assert not list(find_values(document, "b[c].d")) and not list(find_values(document, "a.none.more"))
    runs = [{"s": [{"n": 1, "v": value}, {"n": 2, "v": 7}]} for value in (4, 1, 2)]
    (one, two) = summaries(runs, [("s[n].v", "s")])
    assert one == {"key": "n 1/v", "unit": "s", "median": 2, "lowest": 1, "highest": 4, "repeats": 3}
    assert two["key"] == "n 2/v"
    for text in ("no document", '{"broken": \n'):
        with pytest.raises(OsmError):
            last_document(text)
    with pytest.raises(OsmError, match="no number at x"):
        summaries(runs, [("x", "s")])


def test_a_real_benchmark_in_its_smallest_size(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "benchmarks" / "all.sh"), str(tmp_path / "out"), "--only", "loader"]
    environment = {**os.environ, "SMALL": "1", "OSM_VENV": sys.prefix}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert found["small"] and "no figures" in found["note"] and found["machine"]["cores"] == os.cpu_count()
    assert {"cpu", "memory_gib", "gpu", "python", "torch", "omp_threads"} <= set(found["machine"])
    figures = {figure["key"]: figure for figure in found["figures"]}
    speed = figures["small run: loader/set lvis layout published size 64x48/samples_per_second/ours"]
    assert speed["unit"] == "samples/s" and speed["median"] > 0 and speed["repeats"] == 1
    assert (tmp_path / "out" / speed["raw"][0]).is_file()


def test_what_a_benchmark_imports_from_another_is_there() -> None:
    """Most benchmarks take too long to be run here, and are only imported when they are run."""
    folder = ROOT / "benchmarks"
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")}
    checked = 0
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in trees:
                there = names_of(trees[node.module])
                assert {one.name for one in node.names} <= there, f"{name} imports from {node.module}"
                checked += 1
    assert checked > 50


def names_of(tree: ast.Module) -> set[str]:
    """The names that a module defines or imports at its top level."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(one.asname or one.name).split(".")[0] for one in node.names}
        else:
            found |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return found
