"""Sounds judged by models of every kind that hears: what is heard in one never depends on its neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

from burnish.errors import UserError
from helpers import apart, first_step, session_of, trained, weights_of

_WAVE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
}  # fmt: skip
_SPECTRA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
KINDS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "wav2vec2, norm over time": ("Wav2Vec2", _WAVE, transformers.Wav2Vec2FeatureExtractor()),
    "wav2vec2, norm of each": (
        "Wav2Vec2",
        {**_WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "hubert": ("Hubert", _WAVE, transformers.Wav2Vec2FeatureExtractor()),
    "ast": ("AST", {**_SPECTRA, "max_length": 128}, transformers.ASTFeatureExtractor(max_length=128)),
    "whisper": (
        "Whisper",
        {
            "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_layers": 1,
            "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "max_source_positions": 50,
        },
        transformers.WhisperFeatureExtractor(chunk_length=1),
    ),
}  # fmt: skip


def made(kind: str, folder: Path) -> dict[str, Any]:
    """Write a small model of a kind with random weights and return the settings that name it."""
    name, options, extractor = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return {"path": str(folder)}


def settings_of(kind: str, folder: Path, data: Path) -> dict[str, Any]:
    train = {"batch": 6, "precision": "fp32", "dropout": 0, "length": "20 steps", "evaluate_every": "20 steps"}
    return {
        "model": made(kind, folder),
        "data": {"train": str(data)},
        "train": train,
        "optim": {"lr": 1e-3},
        "task": {"seconds": 2},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(kind: str, tones_folder: Path, tmp_path: Path) -> None:
    """Sounds of many lengths, all at once, two and one at a time, end to end where the model takes it, and padded."""
    given = settings_of(kind, tmp_path / "model", tones_folder)
    wanted = None
    for micro_batch, packing in ((6, "auto"), (2, "off"), (1, "auto")):
        train = {**given["train"], "micro_batch": micro_batch, "packing": packing}
        session = session_of("audio-classification", tmp_path / "run", **{**given, "train": train})
        session.join()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in session.job.model.parameters():
                value += 0.05 * torch.randn(value.shape, generator=draw)
        loss, gradient = first_step(session)
        wanted = wanted or (loss, gradient)
        assert float(loss) == pytest.approx(float(wanted[0]), rel=1e-5)
        assert float((gradient - wanted[1]).norm() / wanted[1].norm()) <= 1e-5, (micro_batch, packing)


def test_what_does_not_fit_into_a_window_is_left_out(tones_folder: Path, tmp_path: Path) -> None:
    """A window of a second holds no sound of two: cut off, a label could stand for what is not heard."""
    data = tmp_path / "tones"
    shutil.copytree(tones_folder, data)
    soundfile.write(data / "low" / "long.wav", 0.1 * np.ones(12_000, np.float32), 8_000)
    for kind, fits in (("whisper", False), ("hubert", True)):
        given = settings_of(kind, tmp_path / kind, data)
        if fits:
            session_of("audio-classification", tmp_path / "run", **given)
            continue
        with pytest.raises(UserError, match=r"long\.wav is longer than 1 seconds"):
            session_of("audio-classification", tmp_path / "run", **given)


def test_a_norm_over_time_would_tie_a_row_to_its_neighbours(tones_folder: Path, tmp_path: Path) -> None:
    """The same model as transformers computes it: the padding of a short row changes what is heard in it."""
    session = session_of(
        "audio-classification", tmp_path / "run", **settings_of("hubert", tmp_path / "model", tones_folder)
    )
    store, task = session.stores["train"], session.task
    order = store.lengths().argsort()
    short, long = store[int(order[0])], store[int(order[-1])]
    alone, both = task.inputs([short]), task.inputs([short, long])
    ours = session.fit.model.eval()
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "model").eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)  # without what masks of its own would show
    with torch.no_grad():
        apart_ours = (ours(**both).logits[0] - ours(**alone).logits[0]).norm() / ours(**alone).logits.norm()
        apart_theirs = (theirs(**both).logits[0] - theirs(**alone).logits[0]).norm() / theirs(**alone).logits.norm()
        assert torch.equal(ours(**alone).logits, theirs(**alone).logits)
    assert float(apart_ours) <= 1e-5 < 1e-3 < float(apart_theirs)


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_frozen_layers_are_computed_once(kind: str, tones_folder: Path, tmp_path: Path) -> None:
    """The conv front and the encoder are replayed: weights equal to those without a cache."""

    given = settings_of(kind, tmp_path / "model", tones_folder)
    freeze = {"layers": "all"} if kind == "hubert" else {"pattern": "encoder.*"}
    runs = []
    for cache in ("auto", "off"):
        run = trained("audio-classification", tmp_path / cache, **given, freeze={**freeze, "cache": cache})
        assert bool(run.replays.found) == (cache == "auto")
        runs.append(weights_of(run))
    assert apart(*runs) <= 1e-6
