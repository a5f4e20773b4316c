"""From a model's name to a folder that is safe to open: Hub id, local folder or burnish run; safetensors only."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from burnish.env import cache_dir, fingerprint
from burnish.errors import UserError
from burnish.run import (
    RunFolder,
    home_path,
    nearest_beside,
    refuse_missing,
    refuse_unreadable,
    remove_folder,
    replace_folder,
    write_json,
)

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def model_folder(name: str, revision: str | None) -> Path:
    """Return the local folder of a model: the folder itself, a run's `model/`, or a Hub snapshot.

    Raises:
        UserError: nothing of that name can be had.
    """
    path = home_path(name)
    refuse_unreadable(path, name)
    if os.path.isdir(path):
        run = RunFolder(path)
        if run.is_run:
            if not (run.model / "config.json").is_file():
                raise UserError(f"{name}: the run has no model yet; continue it to its end first.")
            return run.model
        if not (path / "config.json").is_file():
            raise UserError(f"{name}: the folder holds no config.json, so it is no model and no burnish run.")
        return path
    if os.path.exists(path):
        raise UserError(f"{name}: a model is a folder or a Hub id, and this is a file.")
    refuse_missing(name)
    return _hub_snapshot(name, revision)


def _hub_snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch(*_TEXT_FILES, "*.safetensors")
        if not list(folder.glob("*.safetensors")):
            folder = fetch(*_TEXT_FILES, "pytorch_model*.bin")
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: no such folder, and the Hub model cannot be had ({problem}). Give a folder or a Hub id."
            f"{nearest_beside(name)}"
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: the Hub model holds no config.json.")
    return folder


def make_known(model_type: Any) -> None:
    """Make an architecture of ours known to transformers' Auto classes; those of transformers' own need nothing more."""
    if isinstance(model_type, str) and (Path(__file__).parent / "own" / f"{model_type}.py").is_file():
        importlib.import_module("burnish.models.own")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's `config.json` without what could make a loader run or fetch code.

    Raises:
        UserError: damaged, too large, or of an architecture transformers does not have itself.
    """
    from transformers import CONFIG_MAPPING

    file = folder / "config.json"
    try:
        if file.stat().st_size > 1_000_000:
            raise UserError(f"{file}: larger than 1 MB, which no model config is.")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}).") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    make_known(kind)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"{file}: model_type {kind!r} is no architecture of the installed transformers; "
            "burnish never runs code that comes with a model."
        )
    return _scrubbed(values)


def _scrubbed(value: Any) -> Any:
    """Drop, at every depth, keys that name code, kernels or loading options."""
    if isinstance(value, dict):
        refused = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
        return {
            key: _scrubbed(item)
            for key, item in value.items()
            if key not in refused and "attn_implementation" not in key and not key.startswith("_")
        }
    return [_scrubbed(item) for item in value] if isinstance(value, list) else value


def with_safetensors(folder: Path) -> Path:
    """Return a folder with the same model in safetensors; `.bin` weights are converted once, in a child process.

    Raises:
        UserError: there are no weights, or they cannot be read as plain tensors.
    """
    if list(folder.glob("*.safetensors")):
        return folder
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if not pickled:
        raise UserError(f"{folder}: holds no weights (*.safetensors).")
    key = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in pickled]
    target = cache_dir() / "converted" / fingerprint(key)
    if not (target / "config.json").is_file():
        temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        try:
            command = [sys.executable, "-m", "burnish.models.convert", str(temporary), *map(str, pickled)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
            if done.returncode != 0:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise UserError(
                    f"{pickled[0]}: cannot be converted to safetensors; only plain tensors are read ({last[0][:300]})."
                )
            for file in folder.iterdir():
                if file.suffix in (".json", ".txt", ".model", ".jinja") and not file.name.endswith(".bin.index.json"):
                    (temporary / file.name).write_bytes(file.read_bytes())
            write_json(temporary / "config.json", read_config(folder))
            replace_folder(temporary, target)
        finally:
            remove_folder(temporary)
    return target
