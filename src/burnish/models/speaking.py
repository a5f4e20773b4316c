"""SpeechT5, so that it says a row as it would alone, and the same each time; and its vocoder."""

from __future__ import annotations

import json
from typing import Any

import torch

from burnish.errors import UserError
from burnish.models.source import model_folder, with_safetensors
from burnish.ops.dropout import keep_mask


def prepare(model: Any) -> None:
    """Let the last convolutions of a SpeechT5 see nothing behind a row's end, and tie its prenet's dropout to the frame.

    In transformers they see what fills a row up; and the dropout that stays on in evaluations (Shen et al. 2018, section
    2.2) is drawn anew each time, one for all rows. No weight changes.
    """
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpeechDecoderPrenet

    class Prenet(SpeechT5SpeechDecoderPrenet):
        def _consistent_dropout(self, inputs_embeds: torch.Tensor, p: float) -> torch.Tensor:
            if self.training:
                keep = keep_mask(inputs_embeds.shape, p, inputs_embeds.device)
            else:
                keep = kept(inputs_embeds.shape[1], inputs_embeds.shape[2], p).to(inputs_embeds.device)
            return inputs_embeds * keep / (1 - p)

    model.speecht5.decoder.prenet.__class__ = Prenet
    real: list[torch.Tensor] = []

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("decoder_attention_mask")
        real[:] = [] if mask is None else [mask.repeat_interleave(model.config.reduction_factor, 1)[:, None]]
        numbers = {name: kwargs[name].to(module.dtype) for name in ("decoder_input_values", "speaker_embeddings")}
        return args, kwargs | numbers

    def cut(module: Any, args: Any) -> Any:
        return (args[0] * real[0].to(args[0].dtype),) if real else None

    for module in model.modules():
        if hasattr(module, "encode_positions"):  # its table is float32
            module.encode_positions.register_forward_hook(lambda _, given, found: found.to(given[0].dtype))
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(lambda *_: real.clear())
    for layer in model.speech_decoder_postnet.layers:
        layer.conv.register_forward_pre_hook(cut)


def kept(frames: int, units: int, probability: float) -> torch.Tensor:
    """Return which units of each frame stay in evaluations, bools [frames, units]: the same however many frames follow.

    >>> bool((kept(3, 8, 0.5) == kept(9, 8, 0.5)[:3]).all())
    True
    """
    draws = torch.rand(frames, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draws >= probability


def load_vocoder(name: str, bands: int, rate: int) -> Any:
    """Return a HiFi-GAN that makes samples of log-mel spectra, in evaluation mode.

    Args:
        name: a folder or Hub id.
        bands: of the spectra.
        rate: samples a second.

    Raises:
        UserError: it is none, or for other spectra.
    """
    from transformers import SpeechT5HifiGan

    folder, setting = model_folder(name, None), f"task.vocoder: {name}"
    try:
        kinds = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        kinds = None
    if kinds != [SpeechT5HifiGan.__name__]:
        raise UserError(f"{setting} is no vocoder of a SpeechT5 (SpeechT5HifiGan). Give one, or leave it out.")
    try:
        made = SpeechT5HifiGan.from_pretrained(with_safetensors(folder), use_safetensors=True).eval()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{setting} cannot be read ({' '.join(str(error).split())[:200]}).") from error
    known = made.config.model_in_dim, made.config.sampling_rate
    if known != (bands, rate):
        raise UserError(
            f"{setting} is for spectra of {known[0]} bands and {known[1]} samples a second, and the model says {bands} and "
            f"{rate}. Give the one that belongs to it, or leave it out."
        )
    return made
