"""Data sets from the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

import re
from pathlib import Path

from burnish.errors import UserError

#: The split a Hub id stands for when it names none: `ORG/NAME` given as --data.test is its test split.
DEFAULT_SPLITS = {"data.train": "train", "data.validation": "validation", "data.test": "test"}

_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<subset>[\w.-]+))?(?:@(?P<split>\w+))?")


def fetch_dataset(name: str, setting: str) -> list[Path]:
    """Return the cached Arrow files of the Hub data set `ORG/NAME[:SUBSET][@SPLIT]`.

    Raises:
        UserError: the id is malformed, or the data set cannot be had.
    """
    match = _ID.fullmatch(name)
    if match is None:
        raise UserError(f"{setting}: {name!r} is neither a path nor a Hub id of the form ORG/NAME[:SUBSET][@SPLIT].")
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    split = match["split"] or DEFAULT_SPLITS.get(setting, "train")
    try:
        dataset = load_dataset(match["name"], match["subset"], split=split)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(
            f"{setting}: {name!r} is no local path, and the Hub data set (split {split!r}) cannot be had: {problem}"
        ) from error
    return [Path(file["filename"]) for file in dataset.cache_files]
