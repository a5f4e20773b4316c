"""Speech recognition: exact however a step is cut, errors counted by one rule, misfits found before training."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import burnish
from burnish.config import AugmentSettings, GenerateSettings
from burnish.data.augment_sounds import varied
from burnish.data.tokenizer import train_tokenizer
from burnish.errors import UserError
from burnish.generate.ctc import WordModel, aligned, beam_search, best_path
from burnish.inference import open_model
from burnish.tasks.speech_recognition import _Writing, pieces
from helpers import apart, first_step, said_by_card, session_of, trained, weights_of
from tasks.test_audio_classification import _WAVE
from tones import RATE, folder_of_songs

TASK = "automatic-speech-recognition"
_LAYERS = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "max_target_positions": 24, "max_source_positions": 100,
}  # fmt: skip
_TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}


def made(kind: str, folder: Path) -> str:
    """Write a small model of a kind with random weights, its feature extractor and, of one that writes, a tokenizer."""
    torch.manual_seed(0)
    if kind == "wav2vec2":
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**_WAVE)).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        return str(folder)
    tokenizer = train_tokenizer(folder, ["abcd dcba ab cd"] * 9, 300, {"pad_token": "<pad>"})
    if kind == "whisper":
        config = transformers.WhisperConfig(vocab_size=len(tokenizer), **_LAYERS, **_TOKENS)
        transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
        transformers.WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    else:
        options = {"hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 2}
        options |= {"decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2}
        config = transformers.MoonshineConfig(vocab_size=len(tokenizer), **options, **_TOKENS)
        transformers.MoonshineForConditionalGeneration(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return str(folder)


def settings_of(kind: str, folder: Path, data: Path) -> dict[str, Any]:
    train = {"batch": 6, "precision": "fp32", "dropout": 0, "length": "14 steps", "evaluate_every": "14 steps"}
    return {
        "model": made(kind, folder),
        "data": {"train": str(data)},
        "train": train,
        "optim": {"lr": 1e-3},
        "task": {"seconds": 2},
    }


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper", "moonshine"])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(kind: str, songs_folder: Path, tmp_path: Path) -> None:
    """Sounds and texts of many lengths, all at once, two and one at a time, padded and not."""
    given = settings_of(kind, tmp_path / "model", songs_folder)
    wanted = None
    for micro_batch, packing in ((6, "auto"), (2, "off"), (1, "auto")):
        train = {**given["train"], "micro_batch": micro_batch, "packing": packing}
        session = session_of(TASK, tmp_path / "run", **{**given, "train": train})
        session.join()
        loss, gradient = first_step(session)
        wanted = wanted or (loss, gradient)
        assert float(loss) == pytest.approx(float(wanted[0]), rel=1e-5)
        assert float((gradient - wanted[1]).norm() / wanted[1].norm()) <= 1e-5, (micro_batch, packing)


def test_a_frozen_encoder_is_computed_once(songs_folder: Path, tmp_path: Path) -> None:
    """Weights equal to those without a cache, and so are the figures, whose texts are written from what is stored."""
    given, runs, figures = settings_of("whisper", tmp_path / "model", songs_folder), [], []
    for cache in ("auto", "off"):
        run = trained(TASK, tmp_path / cache, **given, freeze={"pattern": "model.encoder.*", "cache": cache})
        assert bool(run.replays.found) == (cache == "auto")
        runs.append(weights_of(run))
        figures.append([line["metrics"] for line in run.folder.log_lines() if "evaluation" in line])
    assert apart(*runs) <= 1e-6
    assert figures[0][0] == pytest.approx(figures[1][0], rel=1e-5)


def test_the_loss_of_ctc_is_that_of_transformers(songs_folder: Path, tmp_path: Path) -> None:
    session = session_of(TASK, tmp_path / "run", **settings_of("wav2vec2", tmp_path / "model", songs_folder))
    task, model = session.task, session.fit.model.eval()
    batch = task.collate([session.stores["train"][row] for row in range(4)])
    labels = torch.nn.utils.rnn.pad_sequence(batch.targets["labels"].split(batch.targets["sizes"].tolist()), True, -100)
    with torch.no_grad():
        assert float(task.loss(model, batch)["loss"]) == pytest.approx(
            float(model(**batch.inputs, labels=labels).loss), rel=1e-5
        )


def test_errors_are_counted_over_all_that_is_said(songs_folder: Path, tmp_path: Path) -> None:
    """Not as a mean over rows; case and punctuation are no errors, and text where nothing is said is one."""
    session = session_of(TASK, tmp_path / "run", **settings_of("wav2vec2", tmp_path / "model", songs_folder))
    truth, answer = ["Turn on, the light!", "no", "..."], ["turn off the the light", "no", "oh"]
    records = {
        "truth": np.array(truth, object),
        "answer": np.array(answer, object),
        "nats": np.ones(3),
        "targets": np.ones(3),
    }
    joined = session.task.join(records)
    assert joined["word_errors"].tolist() == [2, 0, 1] and joined["words"].tolist() == [4, 1, 0]
    assert session.task.metrics(joined)["wer"] == 3 / 5
    [table] = session.task.figures(joined)
    assert table["rows"][0][2] == "turn [ -> off] [on -> the] the light"


def test_a_whisper_of_several_languages_is_told_which() -> None:
    """Language and task stand before every answer; without a language, and with one that there is not, it is refused."""
    marks = [
        "<|startoftranscript|>",
        "<|en|>",
        "<|zh|>",
        "<|de|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    tokenizer = transformers.WhisperTokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    reader = transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer)
    several = type("Several", (_Writing,), {"name": TASK, "config": transformers.WhisperConfig()})
    known = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))

    def before(**given: Any) -> list[int]:
        return several(several.Settings(**given), reader, {}).before

    start, english, _, german, translate, transcribe, no_times = known.values()
    assert before(language="de") == [start, german, transcribe, no_times]
    assert before(language="en", translate=True) == [start, english, translate, no_times]
    with pytest.raises(UserError, match=r"task\.language: this Whisper knows several"):
        before()
    with pytest.raises(UserError, match=r"task\.language: .*klingon"):
        before(language="klingon")
    alone = type("Alone", (_Writing,), {"name": TASK, "config": transformers.WhisperConfig(vocab_size=51_864)})
    with pytest.raises(UserError, match=r"task\.language: only a Whisper of several languages"):
        alone(alone.Settings(language="de"), reader, {})


def test_beams_sum_paths_and_ask_for_words() -> None:
    """The best path says nothing, yet most of the probability is on `a`; words decide between what sounds alike."""
    scores = np.log(np.array([[0.6, 0.4, 1e-9], [0.6, 0.4, 1e-9]]))
    spell = lambda ids: "".join(" ab"[token] for token in ids)  # noqa: E731
    assert beam_search(scores, 0, 4, spell) == [1]
    alike = np.log(np.array([[0.02, 0.47, 0.51], [0.9, 0.05, 0.05]]))
    assert beam_search(alike, 0, 4, spell) == [2]
    assert beam_search(alike, 0, 4, spell, None, WordModel.of(["a", "a a"]), 1.0) == [1]


def test_variation_follows_from_the_draw_and_masks_what_it_says() -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)
    settings = AugmentSettings(noise=0.1, gain=3, speed=0.1, mask_time=0.1, mask_frequency=0.2)
    assert np.array_equal(varied(settings, samples, RATE, 5), varied(settings, samples, RATE, 5))
    assert not np.array_equal(varied(settings, samples, RATE, 5)[:100], varied(settings, samples, RATE, 6)[:100])
    silenced = varied(AugmentSettings(mask_time=0.3), samples, RATE, 5)
    assert 0 < (silenced == 0).mean() <= 0.6 and np.array_equal(silenced[silenced != 0], samples[silenced != 0])
    spectrum = np.abs(np.fft.rfft(varied(AugmentSettings(mask_frequency=0.3), samples, RATE, 5)))
    assert 0.02 < (spectrum < 1e-3 * np.median(spectrum)).mean() < 0.9


@pytest.mark.parametrize(
    ("kind", "spoil", "reason"),
    [
        ("wav2vec2", {"text": "abcd " * 60}, "its text needs 299 frames and the sound gives"),
        ("whisper", {"text": "abcd dcba " * 40}, "tokens, the model has room for 24"),
        ("wav2vec2", {"text": "..."}, "its text says nothing but punctuation"),
    ],
)
def test_a_text_that_does_not_fit_is_named_before_training(
    kind: str, spoil: dict[str, str], reason: str, tmp_path: Path
) -> None:
    folder = folder_of_songs(tmp_path / "songs", 10)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines[3] |= spoil
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=f"003.wav: .*{reason}"):
        session_of(TASK, tmp_path / "run", **{**settings_of(kind, tmp_path / "model", folder), "train": {"batch": 2}})


def test_text_in_another_script_is_named(songs_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "songs"
    shutil.copytree(songs_folder, data)
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    other = tmp_path / "more"
    folder_of_songs(other, 4)
    (other / "metadata.jsonl").write_text(json.dumps({**rows[0], "text": "你好"}) + "\n")
    with pytest.raises(UserError, match=r"000\.wav: its text holds 你 好, which the model has no token for"):
        given = settings_of("wav2vec2", tmp_path / "model", data)
        session_of(TASK, tmp_path / "run", **{**given, "data": {"train": str(data), "validation": str(other)}})


def test_a_whisper_from_scratch_may_write_blanks(songs_folder: Path, tmp_path: Path) -> None:
    """Of all its tokens only those that say nothing are forbidden."""
    given = {"model": {"preset": "whisper-nano"}, "data": {"train": str(songs_folder)}, "task": {"seconds": 2}}
    session = session_of(TASK, tmp_path / "run", **given)
    task, model = session.task, session.fit.model.eval()
    with torch.no_grad():  # each token is as likely as the next, but the blank
        model.proj_out.weight.zero_()
        model.proj_out.weight[task.words.word_delimiter_token_id] = 1.0
        model.model.decoder.layer_norm.bias.fill_(1.0)
    heard = task._encoded(model, task.inputs([session.stores["train"][0]]))
    [ids] = task._written(model, heard, 1, GenerateSettings(max_tokens=3))
    assert ids == 3 * [task.words.word_delimiter_token_id]


def test_tokens_lie_where_the_likeliest_path_has_them() -> None:
    """Of all paths that give two tokens, tried one by one; of the best path it is where each begins."""
    draw = np.random.default_rng(0)
    for frames in (2, 3, 5, 7):
        for ids in ([1, 2], [1, 1]):
            scores = np.log(draw.dirichlet(np.ones(3), frames))
            found = {}
            for path in map(np.array, product(range(3), repeat=frames)):
                begins = np.flatnonzero((path != 0) & np.append(True, path[1:] != path[:-1]))
                if path[begins].tolist() == ids:
                    found[scores[np.arange(frames), path].sum()] = begins.tolist()
            if found:
                assert aligned(scores, ids, 0) == found[max(found)]
            path = scores.argmax(1)
            begins = np.flatnonzero((path != 0) & np.append(True, path[1:] != path[:-1]))
            assert aligned(scores, best_path(scores, 0), 0) == begins.tolist()


def test_long_sounds_are_cut_where_it_is_quiet(tmp_path: Path) -> None:
    loud = np.random.default_rng(0).integers(-9_000, 9_000, 50 * RATE).astype(np.int16)
    loud[9 * RATE : 9 * RATE + RATE // 5] = 0
    cuts = pieces(loud, RATE, 10)
    assert cuts[0] == (0, pytest.approx(9.1 * RATE, abs=RATE // 10))
    assert cuts[-1][1] == len(loud) and all(a[1] == b[0] and a[1] - a[0] <= 10 * RATE for a, b in pairwise(cuts))


def test_a_whisper_is_taught_the_blank_that_it_was_taught(songs_folder: Path, tmp_path: Path) -> None:
    """Its own texts begin with a blank; without it a tuned model runs one sentence into the next."""
    given = {"model": {"path": made("whisper", tmp_path / "model")}, "data": {"train": str(songs_folder)}}
    task = session_of(TASK, tmp_path / "run", **given, task={"seconds": 2}).task
    ids = task.ids_of("Ab cd")
    assert task.words.decode(ids[:-1]) == " Ab cd" and task.spell(ids[:-1]) == "Ab cd"
    assert task.ids_of("  ") == "says nothing"


@pytest.mark.parametrize("kind", ["whisper", "moonshine"])
def test_what_a_decoder_writes_has_a_time_for_each_word(kind: str, tmp_path: Path) -> None:
    """Over two pieces of a sound: the words are the text's, one after another, within the sound."""
    model = open_model(made(kind, tmp_path), TASK, {"task": {"seconds": 2}})
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
    asked = {"audio": {"array": sound, "sampling_rate": RATE}}
    [answer] = model.predict([asked], {"max_tokens": 12}, 0)
    assert answer["text"].split() == [word for chunk in answer["chunks"] for word in chunk["text"].split()]
    times = [second for chunk in answer["chunks"] for second in (chunk["start"], chunk["end"])]
    assert len(answer["chunks"]) > 1 and times == sorted(times) and times[0] >= 0 and times[-1] <= 3


def test_the_card_of_a_whisper_from_scratch_hears(tmp_path: Path) -> None:
    """Its code gives the letters of the training texts, of which two that are equal stay two."""
    folder = folder_of_songs(tmp_path / "songs", 6)
    settings = {"data": str(folder), "model": {"preset": "whisper-nano"}, "run": {"dir": str(tmp_path / "run")}}
    run = burnish.train(TASK, **settings, task={"seconds": 1}, train={"length": "2 steps", "batch": 2})
    assert isinstance(run, burnish.Run)
    shutil.copy(folder / "000.wav", tmp_path / "speech.wav")
    assert set(said_by_card(run.path, tmp_path).strip()) <= set("abcd ")
