"""The classification benchmark: both sides do the same work, and the baselines learn what there is to learn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import WhisperForConditionalGeneration

from benchmarks.beside_trainer import after_first_epoch
from benchmarks.burnish_side import measure
from benchmarks.clock import Laps
from benchmarks.image_rows import Images, together
from benchmarks.page import check_sentiment
from benchmarks.rows import digest, read_split
from benchmarks.sound_rows import Sounds
from benchmarks.tfidf import baselines
from benchmarks.trainer_sentiment import ALL_SIDES, main, settings_of
from helpers import session_of
from tasks.test_speech_recognition import settings_of as settings_of_speech


@pytest.fixture
def recipe(tmp_path: Path, reviews_file: Path, tiny_bert: Path) -> Path:
    """A recipe like recipes/minilm-sentiment.yaml, small."""
    path = tmp_path / "reviews.yaml"
    values = {
        "task": "text-classification",
        "model": str(tiny_bert),
        "data": {"train": str(reviews_file), "holdout": "20%"},
        "freeze": {"layers": 1},
        "optim": {"lr": 1e-3},
        "train": {"length": "2 epochs", "batch": 32},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_both_sides_do_the_same_work(recipe: Path, capsys: pytest.CaptureFixture[str]):
    settings = settings_of(recipe)
    common = ["--recipe", str(recipe), "--threads", "1", "--settings", json.dumps(settings)]
    results: list[dict[str, Any]] = [{"side": "baselines", **baselines(recipe)}]
    for side in ALL_SIDES:
        main(["--one", side, *common])
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for result in results:
        result["epochs"] = 2
    assert [check.what for check in check_sentiment(results) if not check.passed] == []
    by_side = {result["side"]: result for result in results}
    assert by_side["burnish"]["rows_learned"] == 2 * results[0]["train_rows"]
    assert by_side["trainer"]["precision"] == by_side["burnish-fp32"]["precision"] == "fp32"
    assert by_side["trainer-tuned"]["precision"] == "bf16"
    for side in ALL_SIDES:
        assert 0 < by_side[side]["train"]["cpu"] < by_side[side]["whole"]["cpu"]


def test_settings_are_the_recipes(recipe: Path):
    settings = settings_of(recipe)
    assert settings["frozen_layers"] == 1
    assert settings["trainer"]["num_train_epochs"] == 2
    assert settings["trainer"]["per_device_train_batch_size"] == 32
    assert settings["trainer"]["learning_rate"] == 1e-3
    assert settings["trainer"]["lr_scheduler_type"] == "cosine"
    assert settings["trainer"]["warmup_steps"] > 0


@pytest.mark.parametrize(
    ("setting", "value"), [("optim", {"name": "muon"}), ("schedule", {"name": "wsd"}), ("train", {"length": "9 steps"})]
)
def test_refuses_what_trainer_cannot_be_given_equally(recipe: Path, setting: str, value: dict[str, str]):
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**values, setting: {**values.get(setting, {}), **value}}))
    with pytest.raises(ValueError, match=f"{setting}.{next(iter(value))}"):
        settings_of(recipe)


def test_burnish_side_measures_text_generation(tmp_path: Path, text_file: Path):
    recipe = tmp_path / "text.yaml"
    values = {
        "task": "text-generation",
        "model": {"preset": "gpt2-nano", "vocab_size": 300},
        "data": str(text_file),
        "train": {"length": "3 steps", "batch": 4, "sequence": 32},
        "generate": {"max_tokens": 2},
    }
    recipe.write_text(yaml.safe_dump(values))
    result = measure(recipe, seed=0, threads=1)
    assert result["steps"] == 3
    assert 0 < result["train"]["cpu"] < result["whole"]["cpu"]
    assert 0 < result["bits_per_byte"] < 10
    assert result["held_out_bytes"] == sum(len(row.values["text"].encode()) for row in read_split(recipe).held_out)


def test_trainer_gets_the_images_and_boxes_that_burnish_learns(tmp_path: Path, boxes_folder: Path):
    """A detector's rows as a plain script gives them to Trainer, decoded anew or kept, are those of the task's own batches."""
    given = {"model": {"preset": "yolos-nano", "image_size": 32}, "data": {"train": str(boxes_folder)}}
    session = session_of("object-detection", tmp_path / "run", **given)
    wanted = session.task.collate([session.stores["train"][row] for row in range(6)])
    for kept in (False, True):
        rows = Images(session, kept)
        found = together([rows[row] for row in range(6)])
        assert np.abs(found["pixel_values"] - wanted.inputs["pixel_values"]).max() < 1e-5
        for row, label in enumerate(found["labels"]):
            count = len(label["class_labels"])
            assert label["class_labels"].tolist() == wanted.targets["numbers"][row, :count].tolist()
            assert label["boxes"].numpy() == pytest.approx(wanted.targets["boxes"][row, :count].numpy())
            assert (wanted.targets["numbers"][row, count:] == -1).all()


def test_trainer_gets_the_sounds_and_tokens_that_burnish_learns(tmp_path: Path, songs_folder: Path):
    """Whisper's own loss on Trainer's batch is burnish's on the task's own; with targets a place further it is another."""
    session = session_of(
        "automatic-speech-recognition",
        tmp_path / "run",
        **settings_of_speech("whisper", tmp_path / "model", songs_folder),
    )
    rows, model = Sounds(session), session.fit.model.eval()
    batch = session.task.collate([session.stores["train"][row] for row in range(4)])
    given = rows.together([rows[row] for row in range(4)])
    assert np.array_equal(given["input_features"], batch.inputs["input_features"])
    assert np.array_equal(given["decoder_input_ids"], batch.inputs["decoder_input_ids"])
    with torch.no_grad():
        wanted = float(session.task.loss(model, batch)["loss"]) / batch.weights["loss"]
    assert int((given["labels"] >= 0).sum()) == batch.weights["loss"]
    assert np.array_equal(given["labels"][given["labels"] >= 0], batch.targets["labels"])
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert float(plain(**given).loss) == pytest.approx(wanted, rel=1e-5)
        assert float(plain(**{**given, "labels": given["labels"].roll(1)}).loss) != pytest.approx(wanted, rel=1e-3)


def test_laps_tell_epochs_apart():
    """Steps of the first epoch, or of a run of one epoch its first step, are left out."""
    watch = SimpleNamespace(laps=Laps())
    for step in range(1, 6):
        sum(range(20_000))
        watch.laps.step(step)
    whole, later, second = watch.laps.after()["cpu"], *(after_first_epoch(watch, 2, rows)["cpu"] for rows in (5, 20))
    assert 0 < later < second < whole


def test_baselines_on_words_that_decide(tmp_path: Path, reviews_file: Path):
    recipe = tmp_path / "reviews.yaml"
    recipe.write_text(yaml.safe_dump({"task": "text-classification", "model": "m", "data": str(reviews_file)}))
    found = baselines(recipe)
    split = read_split(recipe)
    labels = [row.values["label"] for row in split.held_out]
    assert found["majority"] == labels.count(found["majority_label"]) / len(labels)
    assert found["tfidf"] > 0.9
    assert found["rows"] == {"train": digest(split.train), "held_out": digest(split.held_out)}
