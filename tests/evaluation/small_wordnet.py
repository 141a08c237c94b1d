"""A WordNet of a few nouns in the release's own format, written where a test wants it."""

from __future__ import annotations

from pathlib import Path

LICENCE = "  1 This is a small database in the format of WordNet 3.0 Copyright nobody.  \n"
# lemmas, what they are kinds of, and what is part of them, by the synset's first lemma.
SYNSETS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "entity": (["entity"], [], []),
    "animal": (["animal", "beast"], ["entity"], ["leg"]),
    "dog": (["dog", "domestic_dog"], ["animal"], []),
    "poodle": (["poodle"], ["dog"], []),
    "cat": (["cat"], ["animal"], []),
    "person": (["person"], ["entity"], []),
    "man": (["man"], ["person"], []),
    "leg": (["leg"], ["entity"], []),
    "seat": (["seat"], ["entity"], []),
    "couch": (["couch", "sofa"], ["seat"], ["leg"]),
    "vehicle": (["vehicle"], ["entity"], ["wheel"]),
    "car": (["car", "automobile"], ["vehicle"], []),
    "bus": (["bus", "coach"], ["vehicle"], []),
    "trolley": (["trolley"], ["bus", "entity"], []),  # two ways up
    "minitrolley": (["minitrolley"], ["trolley"], []),
    "trainer": (["trainer", "coach"], ["person"], []),
    "wheel": (["wheel"], ["entity"], []),
    "light": (["light"], ["entity"], []),
    "traffic light": (["traffic_light"], ["light"], []),
}


def write_wordnet(folder: Path) -> Path:
    """Writes the three files that are read."""
    folder.mkdir(parents=True)
    places: dict[str, int] = {}
    for _ in range(2):  # places are of 8 digits: the first round finds them, the second one writes them
        text = LICENCE
        for key, (lemmas, above, parts) in SYNSETS.items():
            places[key], start = len(text), places.get(key, 0)
            words = " ".join(f"{lemma} 0" for lemma in lemmas)
            links = [("@", up) for up in above] + [("%p", part) for part in parts]
            pointers = "".join(f" {symbol} {places.get(to, 0):08d} n 0000" for symbol, to in links)
            text += f"{places[key]:08d} 03 n {len(lemmas):02x} {words} {len(links):03d}{pointers} | a gloss, %p n  \n"
            assert start in (0, places[key])
    (folder / "data.noun").write_text(text)
    senses: dict[str, list[int]] = {}
    for key, (lemmas, _, _) in SYNSETS.items():
        for lemma in lemmas:
            senses.setdefault(lemma, []).append(places[key])
    lines = [
        f"{lemma} n {len(of)} 2 @ %p {len(of)} 0 {' '.join(f'{place:08d}' for place in of)}  \n"
        for lemma, of in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(lines))
    (folder / "noun.exc").write_text("men man\n")
    return folder
