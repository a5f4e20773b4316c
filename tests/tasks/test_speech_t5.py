"""A SpeechT5 learns a voice: the loss of transformers, each row as it would be alone, and sounds by vocoder or without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpectrogramLoss

import burnish
from burnish.api import predict
from burnish.errors import UserError
from burnish.ops.griffin_lim import griffin_lim
from burnish.session import Session
from burnish.task import Row
from helpers import said_by_card, session_of
from tiny_speech_t5 import SPEAKER, tiny_vocoder


@pytest.fixture(scope="module")
def said_folder(songs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs with who sings them."""
    folder, draw = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    rows = [json.loads(line) for line in (songs_folder / "metadata.jsonl").read_text().splitlines()]
    with (folder / "rows.jsonl").open("w") as file:
        for row in rows[:40]:
            given = {"audio": str(songs_folder / row["file_name"]), "text": row["text"]}
            file.write(json.dumps(given | {"who": draw.normal(size=SPEAKER).tolist()}) + "\n")
    return folder / "rows.jsonl"


def given(model: Path, rows: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "data": {"train": str(rows), "speaker": "who"},
        "task": {"seconds": 2},
        "train": {"length": "12 steps", "batch": 6, "precision": "fp32", "evaluate_every": "6 steps", **more},
        "optim": {"lr": 1e-3},
        "run": {"threads": 1},
    }


@pytest.fixture(scope="module")
def session(speech_t5: Path, said_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return session_of(
        "text-to-speech", tmp_path_factory.mktemp("session") / "run", **given(speech_t5, said_folder, dropout=0.0)
    )


def test_the_loss_is_that_of_transformers(session: Session) -> None:
    """Of a whole step, with rows of several lengths (relative 1e-5)."""
    model, task = session.fit.model.eval(), session.task
    batch = task.collate([session.stores["train"][number] for number in range(6)])
    assert len(set(batch.lengths)) > 1
    with torch.no_grad():
        ours = sum(float(value) / batch.weights[name] for name, value in task.loss(model, batch).items())
        output = model(**batch.inputs, output_attentions=True, output_hidden_states=True)
        said, head = output.decoder_hidden_states[-1], model.speech_decoder_postnet
        real = batch.inputs["decoder_attention_mask"].bool().repeat_interleave(task.config.reduction_factor, 1)
        labels = batch.targets["mels"].masked_fill(~real[:, :, None], -100.0)
        before, ends = head.feat_out(said).view_as(labels), head.prob_out(said).flatten(1)
        mask, crossed = batch.inputs["attention_mask"], output.cross_attentions
        wanted = SpeechT5SpectrogramLoss(task.config)(mask, before, output.spectrogram, ends, labels, crossed)
        scores = task.metrics(task.score(model, batch))
    assert ours == pytest.approx(float(wanted), rel=1e-5)
    assert scores["loss"] == pytest.approx(ours, rel=1e-5)


def test_a_row_is_said_as_it_is_alone(session: Session) -> None:
    """What fills rows up changes nothing (relative 1e-5); the last convolutions of transformers would see it."""
    model, task = session.fit.model.eval(), session.task
    examples = sorted(
        (session.stores["train"][number] for number in range(12)), key=lambda one: int(one["positions"][0])
    )
    short, long = examples[0], examples[-1]
    alone, together = task.collate([short]), task.collate([long, short])
    with torch.no_grad():
        wanted = model(**alone.inputs).spectrogram[0]
        found = model(**together.inputs).spectrogram[1, : len(wanted)]
        blind = {name: value for name, value in together.inputs.items() if name != "decoder_attention_mask"}
        wrong = model(**blind).spectrogram[1, : len(wanted)]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    assert float((wrong - wanted).norm() / wanted.norm()) > 1e-4


def test_a_run_speaks_as_its_speakers_do(speech_t5: Path, said_folder: Path, tmp_path: Path) -> None:
    """The mean of who is named speaks; a vocoder makes other samples than Griffin and Lim's way, 256 for each frame."""
    vocoder = tiny_vocoder(tmp_path / "vocoder")
    settings = given(speech_t5, said_folder)
    settings["train"]["length"] = "2 steps"
    run = burnish.train("text-to-speech", **settings | {"run": {"dir": str(tmp_path / "run")}})
    facts = json.loads((tmp_path / "run" / "plan.json").read_text())["facts"]
    assert len(facts["voice"]) == SPEAKER and any(facts["voice"])
    plainly = run.predict("ab cd")
    [made] = predict(str(run.path), ["ab cd"], task={"vocoder": str(vocoder)})
    assert plainly["samples"] != made["samples"]
    assert len(made["samples"]) == len(plainly["samples"]) + 256
    assert run.predict("ab cd 7")["left_out"] == "7"
    said_by_card(run.path, tmp_path)
    assert len(soundfile.read(tmp_path / "spoken.wav")[0])


def test_a_long_text_is_said_within_the_model_s_positions(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most as many characters as it has positions for; one that never stops ends at its last frame."""
    model, task = session.fit.model.eval(), session.task
    task.facts = {**task.facts, "end": "."}
    pieces, _ = task.pieces("abcd" * 100)
    assert max(len(task.words(piece)["input_ids"]) for piece in pieces) == task.config.max_text_positions
    monkeypatch.setattr(model.speech_decoder_postnet.prob_out, "forward", lambda said: said.new_full((1, 2), -9.0))
    frames = task.config.max_speech_positions * task.config.reduction_factor
    assert len(task.spoken(model, pieces[0], 0)) == (frames - 1) * task.hop


def test_who_speaks_has_length_one_however_large_the_numbers(session: Session) -> None:
    for size in (1.0, 1e38, 1e300):
        voice = session.task.voice_of(Row({"speaker": [size] * SPEAKER}, "rows.jsonl:1"))
        np.testing.assert_allclose(voice, SPEAKER**-0.5, rtol=1e-6)


def test_a_model_without_a_tokenizer_is_named(speech_t5: Path, said_folder: Path, tmp_path: Path) -> None:
    """New tokens of characters would mean others than those that it has learned."""
    bare = shutil.copytree(speech_t5, tmp_path / "bare", ignore=shutil.ignore_patterns("spm*", "tokenizer*"))
    with pytest.raises(UserError, match="bare: holds no tokenizer"):
        session_of("text-to-speech", tmp_path / "run", **given(bare, said_folder))


def test_samples_of_few_frames_are_found() -> None:
    """A sound shorter than a window has as many samples as its frames say."""
    for frames in (1, 2, 5):
        assert len(griffin_lim(torch.rand(513, frames), torch.hann_window(1024), 256, 0)) == (frames - 1) * 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"who": None}, "has no column 'who'"),
        ({"who": [1.0, 2.0]}, "its speaker is not a list of 8 numbers"),
        ({"who": "me"}, "its speaker is not a list of 8 numbers"),
        ({"text": "ab" * 40}, "its text has 82 positions, and the model has 60; cut it into pieces"),
        ({"text": "abXY"}, "its text holds X Y, which the model has no token for"),
    ],
)
def test_wrong_rows_are_named(change: dict, message: str, speech_t5: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(8_000, 0.1), 16_000)
    row = {"audio": "a.wav", "text": "ab", "who": [0.5] * SPEAKER} | change
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({name: value for name, value in row.items() if value is not None}) + "\n")
    settings = given(speech_t5, rows)
    settings["data"]["holdout"] = "0%"
    with pytest.raises(UserError, match=message):
        session_of("text-to-speech", tmp_path / "run", **settings)


def test_wrong_vocoders_are_refused(speech_t5: Path, said_folder: Path, songs_folder: Path, tmp_path: Path) -> None:
    settings = given(speech_t5, said_folder)
    narrow = tiny_vocoder(tmp_path / "narrow", 40)
    for vocoder, message in (
        (speech_t5, "is no vocoder of a SpeechT5"),
        (narrow, "is for spectra of 40 bands and 16000 samples a second, and the model says 80 and 16000"),
        (tmp_path / "none", "no such folder"),
    ):
        settings["task"] = {"vocoder": str(vocoder)}
        with pytest.raises(UserError, match=message):
            session_of("text-to-speech", tmp_path / "run", **settings)
    settings = {"data": {"train": str(songs_folder)}, "model": {"preset": "fastspeech-nano"}, "task": {"vocoder": "x"}}
    with pytest.raises(UserError, match=r"task.vocoder.*a fastspeech's spectra are not those it knows"):
        session_of("text-to-speech", tmp_path / "run", **settings)
