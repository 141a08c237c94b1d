"""Several raters: what they get is blind, their files are checked, and the figures are those by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judged_report
import numpy as np
import pytest
from fake_namer import FakeName, FakeNamer
from judgements import FORMAT, SIDE, SampleOptions, sample_for_raters, titled_folders
from PIL import Image
from rater_agreement import as_json, report_of
from rater_files import GRADES, UNRATED, RatedItem, RatedSample, read_sample
from rating_page import rating_page
from sklearn.metrics import cohen_kappa_score
from small_wordnet import write_wordnet

from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions

ROOT = Path(__file__).resolve().parents[2]
RATERS = ("ann", "ben", "cem")
SHORT = {"R": "right", "A": "acceptable", "W": "wrong", "-": ""}


class Cats(FakeNamer):
    """Calls everything a cat."""

    words, prob = ("Cats", "Cats"), 0.123

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: object) -> list:
        return [{mode: FakeName(word, self.prob) for mode in self.modes} for word in self.words[: len(masks)]]


class Animals(Cats):
    """Tells cats from dogs."""

    words, prob = ("cats", "dog"), 0.987


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "judged.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def two_models(pets: Dataset, tmp_path: Path) -> dict[str, Path]:
    models = {"felix": tmp_path / "felix", "noah": tmp_path / "noah"}
    for namer, folder in zip((Cats(), Animals()), models.values(), strict=True):
        generate_predictions(namer, pets, 0, 1, folder, modes=["any"])
    return models


@pytest.fixture
def table(pets_yaml: Path) -> DatasetTable:
    return DatasetTable().with_yaml(str(pets_yaml))


def written(models: dict[str, Path], table: DatasetTable, folder: Path, seed: int = 0, each: int = 10) -> Path:
    options = SampleOptions(["pets"], each=each, seed=seed)
    sample_for_raters(models, 1, folder / "key.json", folder / "raters", table, options, RATERS)
    return folder


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def pictures(folder: Path, name: str) -> dict[str, bytes]:
    """The picture of each item on a rater's sheets, without the number above it."""
    found = {}
    for place, entry in enumerate(load(folder / "raters" / name / f"{name}.json")["items"]):
        sheet = np.asarray(Image.open(folder / "raters" / name / f"{place // 10 + 1:02}.png"))
        left, top = place % 5 * (SIDE + 8), place % 10 // 5 * (SIDE + 40) + 34
        found[entry["item"]] = sheet[top : top + SIDE, left : left + SIDE].tobytes()
    return found


def test_what_a_rater_gets_is_blind(two_models: dict[str, Path], table: DatasetTable, tmp_path: Path) -> None:
    folder = written(two_models, table, tmp_path / "study")
    key = load(folder / "key.json")
    orders = []
    for name in RATERS:
        own = folder / "raters" / name
        assert {path.name for path in own.iterdir()} == {f"{name}.json", f"{name}.html", "01.png", "02.png"}
        document = load(own / f"{name}.json")
        assert set(document) == {"rater", "how", "items"} and document["rater"] == name
        assert all(set(entry) == {"number", "item", "prediction", "verdict"} for entry in document["items"])
        assert [entry["number"] for entry in document["items"]] == list(range(1, len(key["items"]) + 1))
        assert {entry["prediction"] for entry in document["items"]} == {"cats", "dog"}  # one model writes "Cats"
        page = (own / f"{name}.html").read_text()
        pixels = re.findall(r"data:image/jpeg;base64,[\w+/=]+", page)  # letters by chance
        assert len(pixels) == len(key["items"])
        text = (own / f"{name}.json").read_text() + re.sub("|".join(map(re.escape, pixels)), "", page)
        others = [f'"{other}"' for other in RATERS if other != name]
        for secret in ("kitty", "hound", "pets", "prob", "0.123", "0.987", "felix", "noah", *others):
            assert secret not in text
        assert not any(Image.open(path).info for path in own.glob("*.png"))  # no texts in the files
        orders.append([entry["item"] for entry in document["items"]])
        assert sorted(orders[-1]) == [entry["item"] for entry in key["items"]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert pictures(folder, "ann") == pictures(folder, "ben") == pictures(folder, "cem")


def test_equal_names_of_two_models_are_one_item(
    two_models: dict[str, Path], table: DatasetTable, tmp_path: Path
) -> None:
    key = load(written(two_models, table, tmp_path / "study") / "key.json")
    # 5 images. The cat's mask is "cats" for both models; the dog's is "cats" for one and "dog" for the other.
    assert len(key["items"]) == 15 and key["models"] == ["felix", "noah"]
    for entry in key["items"]:
        of_cat = entry["names"][0] == "cat"
        assert entry["models"] == {
            **({"felix": 0.123} if entry["prediction"] == "cats" else {}),
            **({"noah": 0.987} if of_cat or entry["prediction"] == "dog" else {}),
        }
    few = load(written(two_models, table, tmp_path / "few", each=2) / "key.json")["items"]
    # 2 right and 2 wrong ones of felix, and 2 right ones of noah, who has no wrong ones.
    assert sum(e["names"][0] == "dog" and e["prediction"] == "cats" for e in few) == 2 and 4 <= len(few) <= 6


def test_two_runs_are_equal_and_ids_are_stable(
    two_models: dict[str, Path], table: DatasetTable, tmp_path: Path
) -> None:
    one, two, other = (
        written(two_models, table, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 5))
    )
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    of_ann = Path("raters") / "ann" / "ann.json"
    first, last = ([e["item"] for e in load(folder / of_ann)["items"]] for folder in (one, other))
    assert first != last and sorted(first) == sorted(last)
    alone = load(written({"noah": two_models["noah"]}, table, tmp_path / "d") / "key.json")
    assert {e["item"] for e in alone["items"]} < set(first)


def test_from_a_sample_to_figures(
    two_models: dict[str, Path], pets_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "wordnet")))
    key, folder = tmp_path / "key.json", tmp_path / "raters"
    done = run(
        *("sample", two_models["felix"], 1, key, folder, "--datasets", pets_yaml, "--sets", "pets", "--title", "felix"),
        *("--also", f"noah={two_models['noah']}", "--raters", "ann, ben"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"15 items for 2 raters in {folder}; {key} is the key, which no rater may see\n"
    names = {entry["item"]: entry["names"] for entry in load(key)["items"]}
    files = [folder / name / f"{name}.json" for name in ("ann", "ben")]
    for path in files:
        document = load(path)
        for entry in document["items"]:
            true = entry["prediction"].rstrip("s") in names[entry["item"]]
            entry["verdict"] = ("right" if path.stem == "ann" else "acceptable") if true else "wrong"
        path.write_text(json.dumps(document))
    done = run("agreement", key, *files, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    assert "15 items in 5 images" in done.stdout and "| ben | 15 | 0 | 0 | 10 | 5 |" in done.stdout
    assert "| ann and ben | 15 | 33 % (33 to 33) | 0.25 (0.25 to 0.25) | 0.40 (0.40 to 0.40) |" in done.stdout
    assert "| Acc | 100 % (100 to 100) | 1.00 (1.00 to 1.00) | 100 % (100 to 100) | 0 (0 to 0) |" in done.stdout
    found = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert found["pairs"][0]["linear_kappa"]["value"] == pytest.approx(0.4)
    assert {one["name"] for one in found["graded"]} >= {"the probability of felix", "the probability of noah"}


def test_mistakes_in_a_sample_are_said(two_models: dict[str, Path], table: DatasetTable, tmp_path: Path) -> None:
    key, folder, options = tmp_path / "key.json", tmp_path / "raters", SampleOptions(["pets"])

    def refused(message: str, raters: list[str], key: Path = key) -> None:
        with pytest.raises(OsmError, match=message):
            sample_for_raters(two_models, 1, key, folder, table, options, raters)
        assert not key.exists()

    refused("--raters '': expected one name or more", [])
    refused("--raters '../ann': expected a name of at most 40 letters", ["../ann"])
    refused("--raters 'Ann' is given twice", ["ann", "Ann"])
    refused("key.json is in the folder of the rater ann, who may not see it", ["ann"], folder / "ann" / "key.json")
    (folder / "ben").mkdir(parents=True)
    refused("ben exists, and its verdicts would be lost", ["ann", "ben"])


def test_a_rater_judges_on_the_page(browser: Any, tmp_path: Path) -> None:
    hostile = "</script><b>cat & \u202ehat</b>"
    names = ("cat", hostile, "", "dog")
    items = [{"number": k, "item": f"id{k}", "prediction": name, "verdict": ""} for k, name in enumerate(names, 1)]
    path, colors = tmp_path / "ann.html", ("red", "green", "blue", "white")
    document = {"rater": "ann", "how": "Judge.", "items": items}
    path.write_text(rating_page(document, [Image.new("RGB", (SIDE, SIDE), color) for color in colors]))
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.inner_text("#name") == "cat" and page.inner_text("#progress") == "item 1 of 4, 0 judged"
    first = page.get_attribute("#picture", "src")
    page.keyboard.press("1")
    assert page.text_content("#name") == hostile and page.get_attribute("#picture", "src") != first
    page.keyboard.press("3")
    assert page.inner_text("#name") == "(nothing)"
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("button[aria-pressed=true]", "data-verdict") == "wrong"
    page.click("text=2 acceptable")
    page.keyboard.press("3")  # the third
    page.keyboard.press("1")  # the fourth; the page stays there
    page.keyboard.press("0")  # and is taken back
    assert page.inner_text("#progress") == "item 4 of 4, 3 judged, not saved yet"
    page.on("dialog", lambda dialog: dialog.accept())  # it warns before the page is left
    page.reload()
    assert page.inner_text("#progress") == "item 4 of 4, 3 judged, not saved yet"  # the first without a verdict
    page.keyboard.press("n")  # there is no other one
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "ann.json"
    saved = load(download.value.path())
    verdicts = ("right", "acceptable", "wrong", "")
    assert saved == {**document, "items": [{**e, "verdict": v} for e, v in zip(items, verdicts, strict=True)]}
    assert page.inner_text("#progress") == "item 4 of 4, 3 judged"
    assert not faults and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    page.close()


def test_models_are_named() -> None:
    assert titled_folders("a", Path("x"), ["b=y", " c =z=1"]) == {"a": Path("x"), "b": Path("y"), "c": Path("z=1")}
    for given, message in (
        ("noah", "--also 'noah': expected TITLE=FOLDER"),
        ("=y", "--also '=y': expected TITLE=FOLDER"),
        ("a=y", "--also 'a=y': the title 'a' is given twice"),
    ):
        with pytest.raises(OsmError, match=message):
            titled_folders("a", Path("x"), [given])


def test_a_list_of_one_person_has_no_models(two_models: dict[str, Path], pets_yaml: Path, tmp_path: Path) -> None:
    files = ("sample", two_models["felix"], 1, tmp_path / "list.json", tmp_path / "sheets", "--datasets", pets_yaml)
    done = run(*files, "--sets", "pets", "--also", "noah=out")
    assert done.returncode == 2 and "--also noah=out: a list of one person has no models; expected" in done.stderr


# Figures by hand, of six items in three images.

VERDICTS = {"ann": "RRAWWR", "ben": "RAAWRR", "cem": "RRWWW-"}
FLAG = np.array([True, False, True, False, True, True])
SCORES = np.array([0.9, 0.8, 0.3, 0.4, 0.1, np.nan])


def study(folder: Path, verdicts: dict[str, str] = VERDICTS) -> list[Path]:
    """Write a key and the raters' files, each in another order."""
    items = [
        {"item": letter, "set": "pets", "image": 1 + k // 2, "segment": k, "names": ["cat"], "prediction": "dog"}
        for k, letter in enumerate("abcdef")
    ]
    for entry in items:
        entry["models"] = {"model": 0.5}
    folder.mkdir(exist_ok=True)
    paths = [folder / "key.json", *(folder / f"{name}.json" for name in verdicts)]
    paths[0].write_text(json.dumps({"format": FORMAT, "raters": list(verdicts), "items": items}))
    for turn, (path, given) in enumerate(zip(paths[1:], verdicts.values(), strict=True)):
        own = [
            {"item": item, "prediction": "dog", "verdict": SHORT[verdict]}
            for item, verdict in zip("abcdef", given, strict=True)
        ]
        own = own[turn:] + own[:turn]
        path.write_text(json.dumps({"rater": path.stem, "items": own}))
    return paths


def figures(folder: Path, verdicts: dict[str, str] = VERDICTS) -> dict[str, Any]:
    key, *files = study(folder, verdicts)
    return as_json(report_of(read_sample(key, files), {"Acc": FLAG}, {"score": SCORES}))


def test_figures_of_raters_by_hand(tmp_path: Path) -> None:
    found = figures(tmp_path)
    assert (found["items"], found["images"], found["rated_by_all"], found["ties"]) == (6, 3, 5, 0)
    assert found["raters"]["cem"] == {"rated": 5, "unrated": 1, "wrong": 3, "acceptable": 0, "right": 2}
    for pair in found["pairs"]:
        both = [
            ("WAR".index(a), "WAR".index(b))
            for a, b in zip(*(VERDICTS[name] for name in pair["raters"]), strict=True)
            if "-" not in (a, b)
        ]
        one, other = zip(*both, strict=True)
        assert pair["equal"]["items"] == len(both) and pair["equal"]["value"] == pytest.approx(
            sum(a == b for a, b in both) / len(both)
        )
        assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(one, other))
        assert pair["linear_kappa"]["value"] == pytest.approx(cohen_kappa_score(one, other, weights="linear"))
    # Of the five items that all judged, the shares of agreeing pairs are 1, 1/3, 1/3, 1, 1/3: 0.6. The 15 verdicts are
    # 6 right, 3 acceptable and 6 wrong: 0.16 + 0.04 + 0.16 = 0.36 by chance. 0.24 / 0.64 = 0.375.
    fleiss = found["all_raters"]["Fleiss' kappa"]
    assert fleiss["value"] == pytest.approx(0.375) and (fleiss["items"], fleiss["images"]) == (5, 3)
    assert fleiss["interval"][0] < 0.375 < fleiss["interval"][1]
    assert found["all_raters"]["Krippendorff's alpha"]["items"] == 6


def test_figures_of_metrics_by_hand(tmp_path: Path) -> None:
    found = figures(tmp_path)
    # The majority is R, R, A, W, W; the metric says true, wrong, true, wrong, true.
    assert found["majority"] == {"wrong": 2, "acceptable": 1, "right": 2}
    acc = found["true_or_wrong"][0]
    assert (acc["accuracy"]["value"], acc["missed"], acc["excess"]) == (0.6, 1, 1)
    assert acc["kappa"]["value"] == pytest.approx((0.6 - 0.52) / (1 - 0.52))
    # Without ann, ben or cem, the stricter of two verdicts says true of the first 2, 2, 3 items. The metric is right
    # about 2, 2 and 3 of the five, the raters about 4, 3 and 4.
    assert acc["beside"]["value"] == pytest.approx(7 / 15) and acc["behind"]["value"] == pytest.approx(4 / 15)
    others = {one["name"]: one for one in found["each_rater_against_the_others"]}
    assert {name: one["accuracy"]["value"] for name, one in others.items()} == {"ann": 0.8, "ben": 0.6, "cem": 0.8}
    assert (others["ben"]["missed"], others["ben"]["excess"]) == (0, 2)
    # 0.9, 0.8 and 0.3 are true; 0.4 and 0.1 are wrong.
    assert found["graded"][0]["auroc"]["value"] == pytest.approx(5 / 6)


def test_ties_count_as_the_stricter_verdict(tmp_path: Path) -> None:
    found = figures(tmp_path, {name: VERDICTS[name] for name in ("ann", "ben")})
    # Only the fifth item is right for one and wrong for the other.
    assert found["ties"] == 1 and found["majority"] == {"wrong": 2, "acceptable": 2, "right": 2}


def test_equal_verdicts_have_no_kappa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judged_report, "metrics", lambda items: ({"Acc": np.ones(6, bool)}, {"score": SCORES}))
    key, *files = study(tmp_path, {"ann": "RRRRRR", "ben": "RRRRRR"})
    judged_report.agreement(key, files, tmp_path / "figures.json")
    out = capsys.readouterr().out
    assert "| ann and ben | 6 | 100 % (100 to 100) | - | - |" in out
    assert "- kappa of ann and ben: undefined: all of these verdicts are the same" in out
    assert "- auroc of score: undefined: all of these items are true, or all are wrong" in out
    found = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert found["pairs"][0]["kappa"]["value"] is None and found["graded"][0]["auroc"]["undefined"]


def test_no_item_that_all_judged(tmp_path: Path) -> None:
    found = figures(tmp_path, {"ann": "RRW---", "ben": "---RRW"})
    assert found["rated_by_all"] == 0 and found["pairs"][0]["kappa"]["undefined"] == (
        "no item has the verdicts that it needs"
    )
    assert found["true_or_wrong"][0]["accuracy"]["value"] is None and found["graded"][0]["tau_b"] is None


def test_one_rater_has_no_agreement_of_raters(tmp_path: Path) -> None:
    found = figures(tmp_path, {"ann": "RRAWWR"})
    assert not found["pairs"] and not found["all_raters"] and not found["each_rater_against_the_others"]
    assert found["true_or_wrong"][0]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["true_or_wrong"][0]["behind"] is None


def test_items_of_unknown_images_are_images_of_their_own() -> None:
    items = tuple(
        RatedItem(str(k), "pets", image, ("cat",), "cat", {}) for k, image in enumerate((1, "1", 1, None, None))
    )
    sample = RatedSample(items, ("ann",), np.full((5, 1), UNRATED))
    assert sample.images.tolist() == [0, 1, 0, 2, 3]


def first_item(document: Any) -> Any:
    return document["items"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: first_item(d).update(verdict="good"),
            "item 'a': verdict 'good' is not one of right, acceptable, wrong",
        ),
        (lambda d: first_item(d).update(verdict=None), "item 'a': verdict None is not one of right"),
        (lambda d: first_item(d).update(item="zz"), "item 'zz' is not in the key; expected the file of a rater of the"),
        (
            lambda d: first_item(d).update(item="b"),
            "item 'b' is given twice; expected one verdict",
        ),
        (lambda d: first_item(d).update(prediction="cow"), "item 'a': prediction 'cow': expected 'dog', as in the key"),
        (lambda d: d["items"].pop(0), r"1 of 6 items of the key are missing \(a\); expected all of them"),
        (lambda d: d["items"].__delitem__(slice(4)), r"4 of 6 items of the key are missing \(a, b, c, ...\)"),
        (lambda d: d.update(rater="benn"), "rater 'benn' is not one of ann, ben, cem; did you mean 'ben'"),
        (lambda d: d.update(rater="ben"), "rater 'ben' is that of .*ann.json too; give one file for each rater"),
        (lambda d: d.pop("rater"), "rater None: expected the file of a rater that `sample --raters` wrote"),
        (lambda d: d.update(items={}), r"items {}: expected a list of objects, one or more"),
    ],
)
def test_mistakes_in_a_rater_s_file_are_said(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    key, *files = study(tmp_path)
    document = load(files[0])
    change(document)
    files[0].write_text(json.dumps(document))
    with pytest.raises(OsmError, match=message) as caught:
        read_sample(key, files)
    assert str(files[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "format 'other': expected 'judged names, 1', the key"),
        (lambda d: d.update(raters=3), "raters 3: expected a list of names"),
        (lambda d: d.update(items=[]), r"items \[\]: expected a list of objects"),
        (lambda d: first_item(d).update(item="b"), "1 items have the id of another one"),
        (lambda d: first_item(d).update(item=3), "item 3: expected a text, the id of the item"),
        (lambda d: first_item(d).update(models=[]), r"item 'a': models \[\]: expected the probability of the name"),
        (lambda d: first_item(d).update(models={"m": 7}), "item 'a': prob 7: expected a number from 0 to 1"),
        (lambda d: first_item(d).update(names=[]), r"item 'a': names \[\] is not a list of texts"),
        (lambda d: first_item(d).update(prediction=1), "item 'a': class 1: expected a string"),
    ],
)
def test_mistakes_in_a_key_are_said(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    key, *files = study(tmp_path)
    document = load(key)
    change(document)
    key.write_text(json.dumps(document))
    with pytest.raises(OsmError, match=message):
        read_sample(key, files)


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    key, *files = study(tmp_path)
    with pytest.raises(OsmError, match="a key has no verdicts; expected the files of one or more raters after it"):
        read_sample(key)
    with pytest.raises(OsmError, match="a list of one person takes no files of raters; expected the key"):
        read_sample(ROOT / "docs" / "benchmarks" / "judged" / "osm_small_60.json", files)
    with pytest.raises(OsmError, match="key.json: rater None: expected the file of a rater"):
        read_sample(key, [key])
    # The order of the files is that of the raters; their items are in the order of the key.
    found = read_sample(key, files[::-1])
    assert found.raters == ("cem", "ben", "ann") and GRADES[found.grades[2, 2]] == "acceptable"
