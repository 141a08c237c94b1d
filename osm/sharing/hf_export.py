"""Writes a trained model as a folder for transformers' `AutoModel`, with a model card, and uploads it to a hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osm import __version__
from osm.errors import OsmError
from osm.files import read_json, write_atomically
from osm.models.factory import load_folder
from osm.models.osm import OmniScientModel
from osm.sharing.hf_model import MODULE, save_processor
from osm.shipped import shipped_model
from osm.storage.locations import is_remote, public
from osm.training.export import PUBLISHED_SUFFIXES, export

_CODE = '''"""Loads this model with transformers. The package of the OmniScient Model code, `osm`, must be installed."""

from osm.sharing.hf_model import HfOsmConfig, HfOsmModel, HfOsmProcessor

__all__ = ["HfOsmConfig", "HfOsmModel", "HfOsmProcessor"]
'''


def export_hf(
    source: Path,
    out: str,
    force: bool = False,
    half: bool = False,
    repository: str | None = None,
    private: bool = False,
) -> str:
    """Write a trained model as a folder for transformers, and return a line that describes it.

    Args:
        source: see `osm.training.export.export`.
        out: a local folder.
        force: replace an existing model at `out`.
        half: round the values to float16.
        repository: the id of a hub repository to which the folder is uploaded, or None.
        private: whether a new repository is private.

    Raises:
        OsmError: see `osm.training.export.export`, `complete_folder` and `push_to_hub`; or `out` is not a local folder.
    """
    if is_remote(out) or Path(out).suffix in PUBLISHED_SUFFIXES:
        raise OsmError(f"--format hf: {public(out)} must be a local folder; --push_to_hub uploads it")
    said = export(source, out, force=force, half=half)
    complete_folder(Path(out), shipped_model(source) or source)
    return said if repository is None else f"{said}; uploaded: {push_to_hub(Path(out), repository, private)}"


def complete_folder(folder: Path, source: Path) -> None:
    """Add to a folder with `config.json` and `model.safetensors` what transformers needs, and a model card.

    The folder can then be loaded by `osm.load_model` and by `AutoModel.from_pretrained(..., trust_remote_code=True)`.
    The frozen parts are loaded to get the tokenizers, and checked.

    Args:
        folder: the folder, which is changed.
        source: the folder that the model was exported from. Its `LICENSE` and `MODEL_CARD.md` are used, if it has them.

    Raises:
        OsmError: the frozen parts are not found, or are not those that the model was trained with.
    """
    model, processor = load_folder(folder)
    assert processor is not None
    document = read_json(folder / "config.json", "config")[0]
    document |= {
        "model_type": "osm",
        "architectures": ["HfOsmModel"],
        "auto_map": {"AutoConfig": f"{MODULE}.HfOsmConfig", "AutoModel": f"{MODULE}.HfOsmModel"},
    }
    save_processor(processor, model.config.context_enlarge_ratio, folder)
    if (source / "LICENSE").is_file():
        shutil.copyfile(source / "LICENSE", folder / "LICENSE")
    card = source / "MODEL_CARD.md"
    own = card.read_text(encoding="utf-8") if card.is_file() else ""
    write_atomically(folder / "README.md", [model_card(model, document, own)])
    write_atomically(folder / f"{MODULE}.py", [_CODE])
    write_atomically(folder / "config.json", [json.dumps(document, indent=2), "\n"])


def model_card(model: OmniScientModel, document: Mapping[str, Any], own: str = "") -> str:
    """Return a model card in Markdown: what the model is, how to use it, its frozen parts and its modes.

    Args:
        document: the content of config.json.
        own: a card that a person has written. It replaces the general description.
    """
    config = model.config
    tower = config.base_model_name or config.tower.name or config.tower.kind
    llm = config.base_model_name or config.llm.name
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trained = trained or sum(parameter.numel() for parameter in model.bridge.parameters())
    hashes = document.get("frozen", {})
    position = ", before the embeddings of the mask" if config.prompt_first else ""
    rows = [
        ("vision tower", f"{tower} (frozen, {_short(hashes.get('tower'))})"),
        ("LLM", f"{llm} (frozen, {_short(hashes.get('llm'))})"),
        ("bridge", f"{config.bridge.kind}, {trained / 1e6:.1f} M trained parameters, in this repository"),
        ("input", f"{config.input_size} pixels, in windows of {config.sliding_window_size} pixels"),
        ("modes", ", ".join(config.modes)),
        *([("prompt", f"`{config.prompt}`{position}")] if config.prompt else []),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    about = own.strip() or (
        "# OmniScient Model\n\nGiven an image and a mask, box or point, this model names what is there, without a "
        "list of class names. A frozen vision tower and a frozen LLM are connected by a small trained bridge.\n\n"
        "This card was generated. Add the training data, the accuracy and the license before you publish the model."
    )
    return f"""---
library_name: osm
pipeline_tag: image-to-text
tags: [open-vocabulary, segmentation, mask-recognition]
---

{about}

## Use

The package `osm` (version {__version__} or later) must be installed. The frozen parts are fetched from where the table
says, and their hashes are checked.

```python
import osm

recognizer = osm.load_recognizer("<this repository or its folder>")
recognizer.set_image("photo.jpg")
print(recognizer.name(boxes=[[10, 20, 200, 100]]))
```

With transformers, which runs the three lines of `{MODULE}.py`:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("<this repository>", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("<this repository>", trust_remote_code=True)
print(model.name("photo.jpg", boxes=[[10, 20, 200, 100]]))
```

## Parts

| part | value |
|---|---|
{table}
"""


def _short(value: Any) -> str:
    return f"hash {value[:12]}" if isinstance(value, str) else "not checked"


def push_to_hub(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder to a hub, and return the URL of the commit.

    The hub is that of huggingface_hub (`HF_ENDPOINT`), and so is the token.

    Args:
        repository: the id of the repository, `owner/name`. It is created if it does not exist.
        private: whether a new repository is private.

    Raises:
        OsmError: the hub refuses the upload, or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        found = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of an OmniScient Model"
        )
    except Exception as error:  # huggingface_hub's HTTP library, and so its exceptions, change between versions
        raise OsmError(f"--push_to_hub {repository}: {error}") from None
    return str(found.commit_url)
