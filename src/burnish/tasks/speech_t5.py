"""Text to speech by a SpeechT5: a decoder that says a few frames after another, looking at the text, until it stops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from burnish.config import DataSettings, TaskSettings
from burnish.data.tokenizer import filled_up
from burnish.task import Batch, Example, Records, Row
from burnish.tasks.text_to_speech import Speech, TextToSpeechSettings

if TYPE_CHECKING:
    import torch

#: How much the one frame at which a sound ends counts beside another, in transformers' SpeechT5SpectrogramLoss.
_END = 5.0
#: Frames a character that are said at most: transformers' own number, where the model has as many positions.
_MOST_FRAMES = 20.0


class SpeechT5(Speech):
    """A sound for each text, by a pretrained SpeechT5 that learns a voice or a language.

    The loss of a step is the absolute error of the log-mel spectrum before and after its last convolutions, a mean over its
    bands, per frame; the cross-entropy of whether the sound ends, per frame; and how far attention lies from the diagonal
    of text and sound, a mean over its cells.

    Source: Ao et al. 2022 (SpeechT5), section 2.2; Tachibana et al. 2018 (guided attention), section 4.1; transformers'
    SpeechT5SpectrogramLoss.
    """

    config: ClassVar[Any]
    """The model's, as it is before this task changes it."""
    metric_names = ("mel_error", "end_error", "loss")
    lower_is_better = frozenset({"mel_error", "end_error", "loss"})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        pieces = {piece for piece in self.words.get_vocab() if len(piece) == 1}
        self.characters = frozenset(pieces - {"\u2581"} | {" "})
        added = len(self.words("")["input_ids"]) + 2  # a blank before the text, the sign that may end it
        self.at_once = max(1, min(self.at_once, self.config.max_text_positions - added))

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return super().columns(data) | ({"speaker": data.speaker} if data.speaker else {})

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: TextToSpeechSettings) -> dict[str, Any]:
        """Return the sign with which most of the texts end, if that is one, and the mean of those who speak."""
        voices = [found for row in rows if not isinstance(found := cls.voice_of(row), str)]
        end = super().learn(rows, settings)["end"]  # its characters are those of its tokenizer
        return {"end": end, "voice": np.mean(voices, 0).round(6).tolist() if voices else None}

    @classmethod
    def voice_of(cls, row: Row) -> np.ndarray | str:
        """Return who speaks, float32 [numbers] of length 1, or why it is not said; all 0 where no column says it."""
        size = cls.config.speaker_embedding_dim
        try:
            voice = np.asarray(row.values.get("speaker", np.zeros(size)), np.float64)
        except (TypeError, ValueError):
            voice = np.empty(0)
        if voice.shape != (size,) or not np.isfinite(voice).all():
            return f"its speaker is not a list of {size} numbers"
        voice = voice / max(float(np.abs(voice).max()), 1e-12)  # so that no square is too large for a number
        return (voice / max(float(np.linalg.norm(voice)), 1e-12)).astype(np.float32)

    def model_options(self) -> dict[str, Any]:
        """Return the settings by which no layers are left out."""
        return {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}

    def check(self, model: Any) -> None:
        from burnish.models.speaking import prepare

        prepare(model)
        _ = self.vocoder

    def sight(self, model: Any) -> Any:
        import torch

        from burnish.models.vision import hear

        steps = self.settings.seconds * self.rate // self.hop // self.config.reduction_factor
        ids = torch.ones(1, min(steps // 2, self.config.max_text_positions), dtype=torch.long)
        steps = min(steps, self.config.max_speech_positions)
        frames, voice = (
            torch.zeros(1, steps, self.config.num_mel_bins),
            torch.zeros(1, self.config.speaker_embedding_dim),
        )
        inputs = {"input_ids": ids, "decoder_input_values": frames, "speaker_embeddings": voice}
        return hear(model, inputs, self.settings.seconds)

    # -- rows to examples --------------------------------------------------------------------------------------------

    def learned(self, row: Row, text: str, samples: np.ndarray) -> Example | str:
        ids, mels, voice = self.words(text)["input_ids"], self.mels(samples), self.voice_of(row)
        if isinstance(voice, str):
            return voice
        together = self.config.reduction_factor
        steps = len(mels) // together
        if not steps:
            return "its sound is too short"
        for what, count, most in (
            ("text has", len(ids), self.config.max_text_positions),
            ("sound has", steps, self.config.max_speech_positions),
        ):
            if count > most:
                return f"its {what} {count} positions, and the model has {most}; cut it into pieces"
        mels = mels[: steps * together]
        return {"ids": np.array(ids), "mels": mels.ravel(), "voice": voice, "positions": np.array([steps])}

    # -- examples to batches -----------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        ids, mask = filled_up([example["ids"] for example in examples], self.words.pad_token_id)
        sizes = [int(example["positions"][0]) for example in examples]
        together, bands = self.config.reduction_factor, self.config.num_mel_bins
        mels = np.zeros((len(sizes), max(sizes) * together, bands), np.float32)
        for row, (example, size) in enumerate(zip(examples, sizes, strict=True)):
            mels[row, : size * together] = example["mels"].reshape(-1, bands)
        before = np.zeros(
            (len(sizes), max(sizes), bands), np.float32
        )  # each step is told the last frame of the one before
        before[:, 1:] = mels[:, together - 1 :: together][:, :-1]
        real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        inputs = {
            "input_ids": torch.as_tensor(ids, dtype=torch.long),
            "attention_mask": torch.as_tensor(mask, dtype=torch.long),
            "decoder_input_values": torch.from_numpy(before),
            "decoder_attention_mask": real.long(),
            "speaker_embeddings": torch.from_numpy(np.stack([example["voice"] for example in examples])),
        }
        frames = float(sum(sizes) * together)
        cells = float(sum(size * len(example["ids"]) for example, size in zip(examples, sizes, strict=True)))
        weights = {"mel": frames, "end": frames} | (
            {"attention": cells} if self.config.use_guided_attention_loss else {}
        )
        return Batch(inputs, {"mels": torch.from_numpy(mels)}, weights, sizes)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        errors = self._errors(model, batch)
        return {name: errors[name].sum() for name in batch.weights}

    def score(self, model: Any, batch: Batch) -> Records:
        sums = {name: value.double().cpu().numpy() for name, value in self._errors(model, batch).items()}
        steps, ids = batch.inputs["decoder_attention_mask"].sum(1), batch.inputs["attention_mask"].sum(1)
        frames = steps * self.config.reduction_factor
        return sums | {"frames": frames.cpu().numpy(), "cells": (steps * ids).cpu().numpy()}

    def _errors(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return how far a model is from each row, summed over its frames or cells."""
        import torch
        from torch.nn import functional

        output = model(**batch.inputs, output_attentions=True, output_hidden_states=True)
        said, mels = output.decoder_hidden_states[-1], batch.targets["mels"]
        head, after = model.speech_decoder_postnet, output.spectrogram.float()
        before, ends = head.feat_out(said).float().view_as(mels), head.prob_out(said).float().flatten(1)
        text, steps = batch.inputs["attention_mask"].bool(), batch.inputs["decoder_attention_mask"].bool()
        real = steps.repeat_interleave(self.config.reduction_factor, 1)
        last = torch.zeros_like(ends).scatter_(1, real.sum(1, keepdim=True) - 1, 1.0)
        end = functional.binary_cross_entropy_with_logits(
            ends, last, reduction="none", pos_weight=ends.new_tensor(_END)
        )
        off = (after - mels).abs().mean(2)
        heads = self.config.guided_attention_loss_num_heads
        seen = torch.cat([layer[:, :heads] for layer in output.cross_attentions], 1).float().mean(1)
        far = (seen * off_diagonal(text, steps, self.config.guided_attention_loss_sigma)).sum((1, 2))
        return {
            "mel": ((off + (before - mels).abs().mean(2)) * real).sum(1),
            "end": (end * real).sum(1),
            "attention": far * self.config.guided_attention_loss_scale,
            "after": (off * real).sum(1),
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """Return the mean error of a log10-mel and the loss of where the sound ends, both told the frames before."""
        frames = records["frames"].sum()
        mel, end = float(records["mel"].sum() / frames), float(records["end"].sum() / frames)
        far = float(records["attention"].sum() / records["cells"].sum())
        loss = mel + end + (far if self.config.use_guided_attention_loss else 0.0)
        return {"mel_error": float(records["after"].sum() / frames), "end_error": end, "loss": loss}

    # -- predictions -------------------------------------------------------------------------------------------------

    def spoken(self, model: Any, text: str, seed: int) -> np.ndarray:
        import torch

        voice = self.facts.get("voice") or [0.0] * self.config.speaker_embedding_dim
        ids = torch.tensor([self.words(text)["input_ids"]], device=model.device)
        speaker = torch.tensor([voice], device=model.device, dtype=model.dtype)
        room = self.config.max_speech_positions * self.config.reduction_factor / ids.shape[1]
        with torch.inference_mode():
            mels = model.generate_speech(ids, speaker, maxlenratio=min(_MOST_FRAMES, room)).float().cpu()
        return self.samples_of(mels, seed)


def off_diagonal(text: torch.Tensor, steps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return how far each cell is from the diagonal of text and sound: 0 to 1, [rows, steps, characters]; 0 where none is.

    Args:
        text: which characters are, bools [rows, characters].
        steps: which steps are, bools [rows, steps].

    Source: Tachibana et al. 2018, equation 6.
    """
    import torch

    along, across = (
        torch.arange(mask.shape[1], device=mask.device) / mask.sum(1, keepdim=True) for mask in (steps, text)
    )
    far = 1 - torch.exp(-((across[:, None] - along[:, :, None]) ** 2) / (2 * sigma**2))
    return far * (steps[:, :, None] & text[:, None])
