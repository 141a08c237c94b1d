"""A page on which a rater judges names: one offline HTML file with pictures, which saves the rater's JSON file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from markupsafe import Markup
from PIL import Image

from osm.html_pages import page_environment

_PAGE = Path(__file__).with_suffix(".html")


def rating_page(document: Mapping[str, Any], pictures: Sequence[Image.Image]) -> str:
    """Return the page of a rater. It shows and contains only what is in the rater's list.

    Args:
        document: the rater's list (`rater`, `how` and `items`).
        pictures: the picture of each item.
    """
    text = json.dumps(document, sort_keys=True)
    data = {
        # The browser keeps verdicts under this key, so another sample or rater does not get them.
        "key": f"osm judged names {hashlib.sha256(text.encode()).hexdigest()}",
        "document": document,
        "pictures": [_data_url(picture) for picture in pictures],
    }
    # A name may contain "</script>".
    escaped = json.dumps(data).replace("<", "\\u003c")
    template = page_environment(FileSystemLoader(_PAGE.parent)).get_template(_PAGE.name)
    return template.render(rater=document["rater"], how=document["how"], data=Markup(escaped))


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
