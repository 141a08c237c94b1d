"""The model card of osm-nano's frozen parts, from the facts that pre-training noted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

_CARD = """\
# osm-nano: the frozen parts

A tower and an LLM for `configs/osm_nano.yaml`, small enough to come with the package. They were trained from random
values on what this project draws and writes itself, by

```bash
python3 scripts/pretrain_nano.py --work runs/nano
```

in {minutes} minutes ({machine}; torch {torch}, timm {timm},
transformers {transformers}). Licence: Apache-2.0, as the project. The bridge between them is not here: `osm quickstart`
trains it from random values.

They are for showing and testing the whole system on drawn scenes. They know nothing of photos.

## Tower

`resnet18` of timm with other sizes, {tower_parameters:,} parameters, feature maps at strides 8 and 16, windows of 128
pixels.

**Supervised**, on {scenes:,} drawn scenes of {things} things, {stuff} kinds of stuff and {attributes} attributes, seen
{epochs} times each (scaled, cropped, flipped). Two linear heads on the tokens that the bridge reads, thrown away
afterwards, were trained to say the thing (or stuff) and, of things, the attribute: of every place, and of the mean
token under every mask. The tower was thus told which things and attributes there are. It was never told a name of
both, and no scene it saw shows one of the {held_out} held-out attribute-thing pairs. On 200 scenes of another seed the
two heads are right on {kind:.1%} (thing or stuff) and {attribute:.1%} (attribute) of the masks.

## LLM

A Llama of {llm_parameters:,} parameters with a byte-level BPE of its own, trained for {steps} steps of {batch} texts:
one of the project's 38 questions and a name, and before them vectors that hold the name's words, blended, blurred and
in no order, as a bridge would put them there. Two thirds of the names are an adjective and a noun, the rest a noun
alone; the words are those of the scenes and {others} more, so that what is learned is to say what the vectors say. The
held-out pairs never occurred, but each of their words did with most others, so that nothing taught it that they do not
exist: words given that way it says rightly for {seen:.1%} of 200 trained pairs and {unseen:.1%} of the {held_out}
held-out ones.

## Held-out pairs

No stage has seen these (`osm.synthetic.scenes.words.held_out_pairs`, seed 0):

{pairs}
"""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown; what a part that is not trained yet would say is left open."""
    from osm.synthetic.pretraining.corpus import OTHER_ADJECTIVES, other_nouns

    tower, llm, scenes = facts.get("tower"), facts.get("llm"), facts["scenes"]
    if tower is None or llm is None:
        return f"# osm-nano: unfinished, {'the tower' if tower is None else 'the LLM'} is not pre-trained yet\n"
    return _CARD.format(
        minutes=round((tower["seconds"] + llm["seconds"]) / 60),
        machine=facts["machine"],
        **facts["versions"],
        tower_parameters=tower["parameters"],
        scenes=tower["training"]["scenes"],
        epochs=tower["training"]["epochs"],
        things=scenes["things"],
        stuff=scenes["stuff"],
        attributes=scenes["attributes"],
        held_out=len(scenes["held_out_pairs"]),
        **tower["accuracy"],
        llm_parameters=llm["parameters"],
        steps=llm["training"]["steps"],
        batch=llm["training"]["batch_size"],
        others=len(OTHER_ADJECTIVES) + len(other_nouns()),
        seen=llm["accuracy"]["seen pairs"],
        unseen=llm["accuracy"]["held-out pairs"],
        pairs=textwrap.fill(", ".join(scenes["held_out_pairs"]), 120),
    )
