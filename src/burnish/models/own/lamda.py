"""LaMDA: a decoder whose attention knows distances only, with gated-GELU inner layers.

Source: Thoppilan et al. 2022, section 3 and appendix. What the paper leaves open is done as in T5 1.1 (Raffel et al. 2020;
Shazeer 2020): root-mean-square norms before each block, no biases, one table of relative positions for all layers. Unlike
T5, scores are divided by the root of a head's width, and weights start as GPT-2's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


@strict
class LamdaConfig(PreTrainedConfig):
    """The sizes of a LaMDA; the defaults are the paper's 2B.

    Args:
        relative_attention_num_buckets: how many distances are told apart, half of them one by one.
        relative_attention_max_distance: from where on distances are alike.
    """

    model_type = "lamda"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32_000
    hidden_size: int = 2_560
    intermediate_size: int = 20_480
    num_hidden_layers: int = 10
    num_attention_heads: int = 40
    head_dim: int = 128
    hidden_act: str = "gelu_pytorch_tanh"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    attention_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        buckets, longest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if not 2 <= buckets < 2 * longest:
            raise ValueError(
                f"relative_attention_num_buckets {buckets} must be at least 2, and half of it less than "
                f"relative_attention_max_distance {longest}"
            )
        super().__post_init__(**kwargs)


def bucket(distance: torch.Tensor, buckets: int, longest: int) -> torch.Tensor:
    """Return the bucket of each distance back (0 for later positions): one each at first, then logarithmically wider ones.

    Source: Raffel et al. 2020, section 2.1; `relative_position_bucket` of Mesh TensorFlow.

    >>> bucket(torch.tensor([-3, 0, 5, 15, 16, 30, 60, 127, 500]), buckets=32, longest=128).tolist()
    [0, 0, 5, 15, 16, 20, 26, 31, 31]
    """
    distance, exact = distance.clamp(min=0), buckets // 2
    wider = torch.log(distance.clamp(min=1).float() / exact) / math.log(longest / exact) * (buckets - exact)
    return torch.where(distance < exact, distance, (exact + wider.long()).clamp(max=buckets - 1))


class LamdaRelativeBias(nn.Module):
    """What is added to the scores of two positions by their distance, one table for all layers."""

    def __init__(self, config: LamdaConfig):
        super().__init__()
        self.buckets, self.longest = config.relative_attention_num_buckets, config.relative_attention_max_distance
        self.table = nn.Embedding(self.buckets, config.num_attention_heads)

    def forward(self, queries: int, keys: int, past: int) -> torch.Tensor:
        """Return [1, heads, queries, keys] for queries that follow `past` positions."""
        device = self.table.weight.device
        distance = torch.arange(queries, device=device)[:, None] + past - torch.arange(keys, device=device)
        return self.table(bucket(distance, self.buckets, self.longest)).permute(2, 0, 1)[None]


class LamdaRMSNorm(nn.Module):
    """Division by the root mean square, in float32. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps).to(hidden.dtype) * self.weight


class LamdaResidualLinear(nn.Linear):
    """A product whose result is added to what flows through the layers."""


class LamdaMLP(nn.Module):
    """GELU(x W) * (x V), and back to the model's width. Source: Shazeer 2020, equation 6 (GEGLU)."""

    def __init__(self, config: LamdaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = LamdaResidualLinear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


def eager_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float, dropout: float = 0.0, position_bias: torch.Tensor | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attend with the scores written out.

    Returns:
        [rows, positions, heads, width], and the attention weights [rows, heads, positions, keys].
    """
    scores = query @ key.transpose(2, 3) * scaling
    for added in (position_bias, attention_mask):
        scores = scores if added is None else scores + added
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LamdaAttention(nn.Module):
    """Attention to earlier positions, with a bias by distance."""

    is_causal = True

    def __init__(self, config: LamdaConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        inner = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.o_proj = LamdaResidualLinear(inner, config.hidden_size, bias=False)

    def forward(
        self, hidden: torch.Tensor, attention_mask: Any, past_key_values: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        out, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), weights


class LamdaDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the gated inner layer, each on normed inputs and added to them."""

    def __init__(self, config: LamdaConfig, layer_idx: int):
        super().__init__()
        self.self_attn = LamdaAttention(config, layer_idx)
        self.mlp = LamdaMLP(config)
        self.input_layernorm = LamdaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LamdaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LamdaPreTrainedModel(PreTrainedModel):
    """What all LaMDA models share."""

    config_class = LamdaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LamdaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": LamdaDecoderLayer, "attentions": LamdaAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal, what is added to the residual divided by the root of their number. Source: Radford et al. 2019, 2.3."""
        super()._init_weights(module)
        if isinstance(module, LamdaResidualLinear):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, std=std)


class LamdaModel(LamdaPreTrainedModel):
    """The decoder without its output layer."""

    def __init__(self, config: LamdaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.relative_bias = LamdaRelativeBias(config)
        self.layers = nn.ModuleList([LamdaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LamdaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states; `position_ids` are taken and not used, for only distances count."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = create_causal_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=attention_mask, past_key_values=past_key_values
        )
        keys = past + hidden.shape[1] if mask is None else mask.shape[-1]
        bias = self.relative_bias(hidden.shape[1], keys, past).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=past_key_values, position_bias=bias, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values if use_cache else None
        )


class LamdaForCausalLM(LamdaPreTrainedModel, GenerationMixin):
    """The decoder with a layer that scores each token of the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LamdaConfig):
        super().__init__(config)
        self.model = LamdaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the last `logits_to_keep` positions (0: all), and the loss if labels are given."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )


class LamdaForSequenceClassification(GenericForSequenceClassification, LamdaPreTrainedModel):
    """The decoder with a layer that judges a row by its last position."""


CONFIG = LamdaConfig
HEADS = {
    "AutoModel": LamdaModel,
    "AutoModelForCausalLM": LamdaForCausalLM,
    "AutoModelForSequenceClassification": LamdaForSequenceClassification,
}
