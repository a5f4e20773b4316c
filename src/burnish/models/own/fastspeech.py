"""A model that speaks all of a text at once: layers on characters, how long each is, layers on frames, a log-mel spectrum.

Source: Ren et al. 2019 (FastSpeech), section 3; Ren et al. 2021 (FastSpeech 2), section 2.2, without predictors of pitch and
energy. A frame is also told how far into its character it lies, and how long that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

#: Frames a character that are said at most, of all of a text: one that has hardly learned would speak for minutes.
_MOST_FRAMES = 20


@strict
class FastSpeechConfig(PretrainedConfig):
    """Sizes of the two stacks of layers; both are equally wide."""

    model_type = "fastspeech"

    vocab_size: int = 64
    hidden_size: int = 192
    num_hidden_layers: int = 4
    encoder_layers: int = 3
    num_attention_heads: int = 2
    intermediate_size: int = 384
    kernel_size: int = 3
    num_mel_bins: int = 80
    pad_token_id: int | None = 0
    initializer_range: float = 0.02


@dataclass
class Spoken(ModelOutput):
    """What is said.

    Args:
        spectrogram: log-mel spectra, [rows, frames, mels].
        log_durations: of each character, log(1 + frames), [rows, characters].
        places: the character of each frame, [rows, frames]; -1 behind the end of a row.
    """

    spectrogram: torch.Tensor | None = None
    log_durations: torch.Tensor | None = None
    places: torch.Tensor | None = None


def positions(count: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines of places, [count, width]. Source: Vaswani et al. 2017, section 3.5."""
    steps = torch.exp(torch.arange(0, width, 2, device=like.device) * (-9.21034 / width))
    angles = torch.arange(count, device=like.device)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)


def places_of(durations: torch.Tensor) -> torch.Tensor:
    """Return the character of each frame, [rows, frames]; -1 behind the end of a row.

    Args:
        durations: whole frames of each character, [rows, characters].

    >>> places_of(torch.tensor([[2, 0, 1], [1, 1, 0]])).tolist()
    [[0, 0, 2], [0, 1, -1]]
    """
    ends = durations.cumsum(1)
    frames = torch.arange(int(ends[:, -1].max()), device=durations.device).expand(len(ends), -1).contiguous()
    return torch.searchsorted(ends, frames, right=True).masked_fill(frames >= ends[:, -1:], -1)


class FastSpeechLayer(nn.Module):
    """Attention between all positions, then a convolution over near ones; what fills a row up is 0 before each."""

    def __init__(self, config: FastSpeechConfig):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.attention_norm, self.conv_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, config.intermediate_size, config.kernel_size, padding="same")
        self.output = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden_states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return hidden states [rows, positions, width].

        Args:
            real: which positions are, [rows, positions].
        """
        mixed = self.queries_keys_values(self.attention_norm(hidden_states))
        query, key, value = mixed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, real[:, None, None])
        hidden_states = hidden_states + self.attended(found.transpose(1, 2).flatten(2))
        near = self.conv_norm(hidden_states) * real[..., None]
        return hidden_states + self.output(functional.gelu(self.conv(near.transpose(1, 2)).transpose(1, 2)))


class FastSpeechPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model."""

    config_class = FastSpeechConfig
    base_model_prefix = "fastspeech"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


class FastSpeechForTextToSpectrogram(FastSpeechPreTrainedModel):
    """Characters in, a log-mel spectrum out."""

    def __init__(self, config: FastSpeechConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.ModuleList(FastSpeechLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.lengths_conv = nn.Conv1d(width, width, 3, padding="same")
        self.lengths_norm = nn.LayerNorm(width)
        self.lengths = nn.Linear(width, 1)
        self.within = nn.Linear(2, width)
        self.decoder = nn.ModuleList(FastSpeechLayer(config) for _ in range(config.num_hidden_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.mels = nn.Linear(width, config.num_mel_bins)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        **_: Any,
    ) -> Spoken:
        """Return what is said.

        Args:
            input_ids: characters, [rows, characters].
            attention_mask: which of them are, 1 or 0.
            places: the character of each frame, -1 behind the end of a row, [rows, frames]. None: they follow from the
                lengths that the model gives the characters, each row at least a frame and at most 20 a character.
        """
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        hidden = self.embeddings(input_ids)
        hidden = hidden + positions(hidden.shape[1], hidden.shape[2], hidden)
        for layer in self.encoder:
            hidden = layer(hidden, real)
        hidden = self.encoder_norm(hidden)
        near = self.lengths_conv((hidden * real[..., None]).transpose(1, 2)).transpose(1, 2)
        log_durations = self.lengths(self.lengths_norm(functional.gelu(near))).squeeze(-1)
        if places is None:
            ends = (log_durations.float().expm1().clamp_min(0) * real).cumsum(1)
            ends = ends * (_MOST_FRAMES * real.sum(1, keepdim=True) / ends[:, -1:].clamp_min(1e-9)).clamp(max=1)
            ends = ends.round().long()
            ends[:, -1].clamp_(min=1)
            places = places_of(ends.diff(dim=1, prepend=ends.new_zeros(len(ends), 1)))
        said, where = places >= 0, places.clamp_min(0)
        counts = torch.zeros_like(input_ids).scatter_add_(1, where, said.long())
        count = counts.gather(1, where)
        since = torch.arange(where.shape[1], device=where.device) - (counts.cumsum(1) - counts).gather(1, where)
        within = torch.stack([(since + 0.5) / count.clamp_min(1), count.log1p()], -1).to(hidden.dtype)
        hidden = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[2])) + self.within(within)
        hidden = hidden + positions(hidden.shape[1], hidden.shape[2], hidden)
        for layer in self.decoder:
            hidden = layer(hidden, said)
        return Spoken(self.mels(self.decoder_norm(hidden)), log_durations, places)


CONFIG = FastSpeechConfig
HEADS = {"AutoModelForTextToSpectrogram": FastSpeechForTextToSpectrogram}
