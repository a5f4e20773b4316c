"""GPT-3 with its banded layers: every other one sees only the nearest positions. Dense, it is a GPT-2, and is made as one.

Source: Brown et al. 2020, section 2.1 ("alternating dense and locally banded sparse attention patterns"); Child et al. 2019.
The paper does not say how wide the band is; 256 is GPT-Neo's.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2PreTrainedModel


@strict
class Gpt3Config(GPT2Config):
    """A GPT-2's sizes, and how many positions (itself among them) a position sees in every second layer."""

    model_type = "gpt3"

    attention_band: int = 256


def banded(mask: torch.Tensor | None, queries: int, past: int, band: int, like: torch.Tensor) -> torch.Tensor:
    """Return a mask [rows or 1, 1, queries, keys] that hides what lies `band` positions back or more, and what `mask` hides.

    Args:
        mask: boolean (True is seen) or added to the scores; None: earlier positions are seen.
        past: positions before the first query.
    """
    keys = past + queries if mask is None else mask.shape[-1]
    back = torch.arange(queries, device=like.device)[:, None] + past - torch.arange(keys, device=like.device)
    seen = ((back >= 0) & (back < band))[None, None]
    if mask is None or mask.dtype == torch.bool:
        return seen if mask is None else seen & mask
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


class Gpt3BandedAttention(GPT2Attention):
    """GPT-2's attention to the nearest positions only."""

    def forward(
        self, hidden_states: Any, past_key_values: Any = None, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        band = self.config.attention_band
        if self.config._attn_implementation in ALL_MASK_ATTENTION_FUNCTIONS:  # others are told the band, not a mask
            past = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
            attention_mask = banded(attention_mask, hidden_states.shape[1], past, band, hidden_states)
        return super().forward(hidden_states, past_key_values, attention_mask, *args, sliding_window=band, **kwargs)


class Gpt3PreTrainedModel(GPT2PreTrainedModel):
    """What both models share."""

    config_class = Gpt3Config
    _supports_flash_attn = False
    _supports_flex_attn = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: weights start by transformers' own rules, which for other code pass over GPT-2's residual layers."""
        return False


class Gpt3Model(Gpt3PreTrainedModel, GPT2Model):
    """The decoder without its output layer."""

    def __init__(self, config: Gpt3Config):
        super().__init__(config)
        for index in range(1, config.n_layer, 2):
            self.h[index].attn = Gpt3BandedAttention(config, layer_idx=index)
        self.post_init()


class Gpt3LMHeadModel(Gpt3PreTrainedModel, GPT2LMHeadModel):
    """The decoder with a layer that scores each token of the vocabulary."""

    def __init__(self, config: Gpt3Config):
        super(GPT2LMHeadModel, self).__init__(config)  # which would build dense layers first
        self.transformer = Gpt3Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


CONFIG = Gpt3Config
HEADS = {"AutoModel": Gpt3Model, "AutoModelForCausalLM": Gpt3LMHeadModel}
