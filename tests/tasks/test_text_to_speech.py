"""Texts that are said: each row as it would be alone, durations as they are given, and sounds that can be heard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import burnish
from burnish.api import predict
from burnish.data.extractor import make_extractor, make_writer
from burnish.errors import UserError
from burnish.models.load import make_config
from burnish.models.own.fastspeech import FastSpeechForTextToSpectrogram, places_of
from burnish.ops.griffin_lim import griffin_lim, magnitudes_of
from burnish.tasks.text_to_speech import TextToSpeech
from helpers import burnish as command
from helpers import said_by_card, session_of
from tones import HERTZ

GIVEN = {
    "model": {"preset": "fastspeech-nano"},
    "task": {"seconds": 2},
    "train": {"length": "150 steps", "batch": 8, "precision": "fp32", "evaluate_every": "150 steps"},
    "optim": {"lr": 2e-3},
}


@pytest.fixture(scope="module")
def run(songs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> burnish.Run:
    """A run that has learned to sing letters."""
    given = {**GIVEN, "run": {"dir": str(tmp_path_factory.mktemp("speaks") / "run")}}
    found = burnish.train("text-to-speech", data=str(songs_folder), **given)
    assert isinstance(found, burnish.Run)
    return found


def small() -> FastSpeechForTextToSpectrogram:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "encoder_layers": 2, "vocab_size": 9}
    return FastSpeechForTextToSpectrogram(make_config({"model_type": "fastspeech", **sizes}, {}, None)).eval()


def test_a_row_is_said_as_it_is_alone() -> None:
    """What fills rows up changes nothing (relative 1e-5); without the mask of characters it would."""
    model, ids = small(), torch.tensor([[3, 4, 5, 6, 7], [5, 3, 8, 0, 0]])
    mask, places = (ids > 0).long(), places_of(torch.tensor([[2, 0, 3, 1, 1], [1, 2, 1, 0, 0]]))
    with torch.no_grad():
        together = model(ids, mask, places)
        alone = model(ids[1:, :3], mask[1:, :3], places[1:, :4])
        blind = model(ids, None, places)
    assert together.spectrogram.shape == (2, 7, 80)
    wanted = alone.spectrogram[0]
    assert float((together.spectrogram[1, :4] - wanted).norm() / wanted.norm()) <= 1e-5
    assert float((blind.spectrogram[1, :4] - wanted).norm() / wanted.norm()) > 1e-3
    torch.testing.assert_close(together.log_durations[1, :3], alone.log_durations[0], rtol=1e-5, atol=1e-6)


def test_a_frame_knows_how_far_into_its_character_it_lies() -> None:
    """Frames of one character differ, and a character of no frames is not said."""
    model, ids = small(), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        model.decoder = torch.nn.ModuleList()  # what the layers are given, as it is
        said = model(ids, None, places_of(torch.tensor([[2, 0, 2]])))
        held = model(ids, None, places_of(torch.tensor([[4, 0, 0]])))
    assert said.places.tolist() == [[0, 0, 2, 2]]
    assert (held.spectrogram[0, 1:] - held.spectrogram[0, :1]).abs().amax(1).min() > 1e-3


def test_a_model_that_knows_nothing_stops() -> None:
    """A text is at most 20 frames a character long, its characters as long beside each other as the model says."""
    model, ids = small(), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        model.lengths.weight.zero_()
        model.lengths.bias.fill_(9.0)  # 8,102 frames each
        assert torch.bincount(model(ids).places[0]).tolist() == [20, 20, 20]
        model.lengths.bias.fill_(1.5)  # 3.5 frames each
        assert model(ids).places.shape[1] == 10


def test_rows_become_frames_of_each_character(songs_folder: Path, tmp_path: Path) -> None:
    """Characters and frames add up to the sound, and the cut between two letters lies where the tone changes."""
    session = session_of(
        "text-to-speech", tmp_path / "run", data={"train": str(songs_folder), "holdout": "0%"}, **GIVEN
    )
    rows = [json.loads(line) for line in (songs_folder / "metadata.jsonl").read_text().splitlines()]
    example, hop, rate = session.stores["train"][0], session.task.hop, session.task.rate
    seconds = np.cumsum(rows[0]["durations"])
    mels = example["mels"].reshape(-1, 80)
    assert len(example["ids"]) == len(rows[0]["text"]) and example["durations"].sum() == len(mels)
    assert np.abs(example["durations"].cumsum() * hop / rate - seconds)[:-1].max() <= hop / rate
    loudest = [int(part.mean(0).argmax()) for part in np.split(mels, example["durations"].cumsum()[:-1])]
    order = sorted(range(len(loudest)), key=lambda place: HERTZ[rows[0]["text"][place]])
    assert [loudest[place] for place in order] == sorted(loudest)


def test_samples_are_found_for_a_spectrum() -> None:
    """A tone comes back at its frequency and about as loud; the same seed gives the same samples, another others."""
    extractor = make_extractor({"num_mel_bins": 80})
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    mels = extractor(audio_target=tone, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    magnitudes = magnitudes_of(10 ** torch.from_numpy(mels).T, torch.from_numpy(extractor.mel_filters).float())
    window = torch.from_numpy(extractor.window).float()
    found, again, other = (griffin_lim(magnitudes, window, 256, seed) for seed in (0, 0, 1))
    assert torch.equal(found, again) and not torch.equal(found, other)
    heard = np.abs(np.fft.rfft(found.numpy()))
    assert abs(heard.argmax() * 16_000 / len(found) - 1000) < 20
    assert 0.6 < float(found[4000:-4000].std()) / float(tone.std()) < 1.4


def test_a_run_sings_what_it_learned(run: burnish.Run, tmp_path: Path) -> None:
    """Each letter at its frequency, as long as letters are; the command line writes a file that holds the samples."""
    answer = run.predict("ad")
    samples, half = np.array(answer["samples"]), len(answer["samples"]) // 2
    assert answer["rate"] == 16_000 and 0.15 < len(samples) / 16_000 < 0.35
    for part, letter in ((samples[: half - 800], "a"), (samples[half + 800 :], "d")):
        loudest = np.abs(np.fft.rfft(part)).argmax() * 16_000 / len(part)
        assert min(HERTZ, key=lambda known: abs(HERTZ[known] - loudest)) == letter
    done = command("predict", run.path, "ad", "--generate.sounds", tmp_path, "--json")
    said = json.loads(done.stdout)
    assert "samples" not in said and Path(said["file"]).parent == tmp_path
    written, rate = soundfile.read(said["file"])
    assert rate == 16_000
    np.testing.assert_allclose(written, samples, atol=1e-4)
    sounds = {"generate": {"sounds": str(tmp_path)}}
    [again, other] = (next(iter(predict(str(run.path), ["ad"], seed=seed, **sounds))) for seed in (0, 1))
    assert again["file"] == said["file"] != other["file"]
    assert sorted(tmp_path.iterdir()) == sorted([Path(again["file"]), Path(other["file"])])


def test_any_text_is_said_or_refused(run: burnish.Run, tmp_path: Path) -> None:
    """Unknown characters are left out and named; a text of nothing else is refused; a long one is said in pieces."""
    assert run.predict("Ab-7 c")["left_out"] == "-7"
    with pytest.raises(UserError, match="'42!' holds nothing that this model can say"):
        run.predict("42!")
    assert "shines' --generate.sounds spoken\n" in (run.path / "card.md").read_text()
    said_by_card(run.path, tmp_path)
    written, rate = soundfile.read(tmp_path / "spoken.wav")
    assert rate == 16_000 and np.abs(written).max() > 0.01
    long = run.predict(" ".join(["abcd"] * 60))
    assert long["seconds"] > 15


def test_texts_are_cut_into_what_is_said_at_once(tmp_path: Path) -> None:
    """After sentences, else between words; digits by their names; an end where a text has none."""
    reader = make_writer(
        tmp_path / "reader", sorted("abcdefghijklmnopqrstuvwxyz.,?'"), make_extractor({"num_mel_bins": 80})
    )
    task = TextToSpeech(TextToSpeech.Settings(name="text-to-speech"), reader, {"end": "."})
    assert task.pieces("It\u2019s  21.5%. Is it? Yes") == (["it's two one point five.", "is it?", "yes."], "%")
    whole = " ".join(["word"] * 60)
    cut, _ = task.pieces(whole)
    assert len(cut) == 2 and " ".join(piece.rstrip(".") for piece in cut) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"durations": None}, "has no column 'durations'"),
        ({"durations": "0.1"}, "its durations are not a list of 2 numbers, the seconds of each character"),
        ({"durations": [0.1]}, "its durations are not a list of 2 numbers"),
        ({"durations": [9.0, 0.1]}, r"its durations are 9.10 seconds together, its sound is 0.20"),
        ({"durations": [-0.1, 0.3]}, r"its durations are 0.20 seconds together"),
    ],
)
def test_wrong_rows_are_named(change: dict, message: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(3_200, 0.1), 16_000)
    row = {"file_name": "a.wav", "text": "ab", "durations": [0.1, 0.1]} | change
    row = {name: value for name, value in row.items() if value is not None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        session_of("text-to-speech", tmp_path / "run", data={"train": str(tmp_path), "holdout": "0%"}, **GIVEN)


def test_a_letter_of_held_out_rows_is_learned(songs_folder: Path, tmp_path: Path) -> None:
    """The table has 80 rows, of which one says e, and that one is held out."""
    rows = [json.loads(line) for line in (songs_folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"], row["singer"] = str(songs_folder / row.pop("file_name")), "one"
    rows[0]["text"], rows[0]["singer"] = "e" * len(rows[0]["text"]), "two"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data in ({"group": "singer"}, {"holdout": "10%"}):
        given = {**GIVEN, "data": {"train": str(tmp_path / "rows.jsonl"), **data}}
        session = session_of("text-to-speech", tmp_path / "run", **given)
        assert "e" in session.task.facts["characters"] and not session.splits.broken
    held = [len(list(side)) for side in (session.splits.train, session.splits.validation)]
    assert sum(held) == len(rows)


def test_a_sound_too_short_to_learn_from_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(10, 0.1), 16_000)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "a", "durations": [0.000625]}\n')
    with pytest.raises(UserError, match=r"a\.wav is too short, 0\.001 seconds"):
        session_of("text-to-speech", tmp_path / "run", data={"train": str(tmp_path), "holdout": "0%"}, **GIVEN)


def test_other_models_are_refused(songs_folder: Path, tmp_path: Path) -> None:
    given = {**GIVEN, "data": {"train": str(songs_folder)}}
    with pytest.raises(UserError, match="a wav2vec2-bert does not learn text-to-speech here"):
        session_of("text-to-speech", tmp_path / "run", **{**given, "model": {"preset": "w2v-bert-nano"}})
    for unused, message in (
        ({"data": {"train": str(songs_folder), "speaker": "singer"}}, "data.speaker: a fastspeech learns one voice"),
        ({"augment": {"noise": 0.5}}, "augment.noise: text-to-speech varies nothing"),
    ):
        with pytest.raises(UserError, match=message):
            session_of("text-to-speech", tmp_path / "run", **{**given, **unused})
    with pytest.raises(UserError, match="fastspeech"):
        session_of(
            "audio-classification", tmp_path / "run", **{**given, "data": {"train": str(songs_folder), "label": "text"}}
        )
