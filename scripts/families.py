"""Write docs/families.md: which way each task takes with each family of models. `make docs` runs it.

Every family is built small, with random weights, and tried as a run tries it when it starts.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from burnish.errors import UserError
from burnish.models.load import build as build_model
from burnish.models.load import make_config, quiet
from burnish.models.logits import whole_logits
from burnish.models.stack import Stack
from burnish.task import Batch, Task, registry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
LENGTHS = [5, 9, 9, 30]
VOCABULARY = 211

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {
    **_IDS,
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4} | _IDS

_BOTH = {
    **_IDS, "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 2,
}  # fmt: skip

#: transformers' name of each family, and the settings of a small model of it. Windows are shorter than the longest row.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 9},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": _SMALL,
    "olmo2": _SMALL,
    "granite": {**_GROUPED, "logits_scaling": 4.0},
    "cohere": {**_GROUPED, "logit_scale": 0.25},
    "gpt_neox": _SMALL,
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
        "pad_token_id": 0,
    },
    "gptj": {**_GPT, "rotary_dim": 8},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 4, "n_head": 4, "pad_token_id": 0},
    "gpt_oss": {**_GROUPED, "num_local_experts": 4},
    "lamda": {
        **_SMALL, "head_dim": 16, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
    },
    "bert": _SMALL,
    "roberta": {**_SMALL, "pad_token_id": 1},
    "modernbert": {**_SMALL, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 12},
    "distilbert": {
        "vocab_size": VOCABULARY, "dim": 64, "hidden_dim": 128, "n_layers": 4, "n_heads": 4, "pad_token_id": 0,
    },
    "electra": {**_SMALL, "embedding_size": 64},
    "albert": {**_SMALL, "embedding_size": 64},
    "deberta-v2": _SMALL,
    "mpnet": _SMALL,
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 4, "num_heads": 4,
        "pad_token_id": 0, "decoder_start_token_id": 0,
    },
    "bart": _BOTH,
    "marian": {**_BOTH, "forced_eos_token_id": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a family is computed for one task."""

    rows: str
    frozen: str
    logits: str


def made(auto_class: str, family: str) -> Any:
    """Return a small model of a family with random weights and no dropout.

    Raises:
        UserError: the family has no such head.
    """
    torch.manual_seed(0)
    options = {"problem_type": "single_label_classification"} if "Classification" in auto_class else {}
    config = make_config({"model_type": family, **FAMILIES[family]}, options, 0.0)
    with quiet():
        return build_model(auto_class, config, None)[0].eval()


def batch_of(rows: list[int]) -> Batch:
    """Return some of four rows of fixed random tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    longest = max(LENGTHS[row] for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : LENGTHS[row]] = tokens[row]
        mask[place, : LENGTHS[row]] = 1
    return Batch({"input_ids": ids, "attention_mask": mask}, {}, {}, [LENGTHS[row] for row in rows])


def forward_of(model: Any) -> Callable[[Batch], Any]:
    """Return a function that computes a model on a batch, as a task's loss would."""

    def forward(batch: Batch) -> Any:
        answers = {"decoder_input_ids": batch.inputs["input_ids"]} if model.config.is_encoder_decoder else {}
        output = model(**batch.inputs, **answers)
        read = [value for name, value in output.items() if name.endswith("logits")]
        read = read or [output.last_hidden_state * batch.inputs["attention_mask"][..., None]]  # a model without a head
        return torch.stack([value.float().sum() for value in read]).sum()

    return forward


def way_of(task: type[Task], family: str) -> Way | None:
    """Return how a family is computed for a task; None if there is no such model."""
    try:
        task = task.suited(
            make_config({"model_type": family, **FAMILIES[family]}, {}, None), task.Settings(name=task.name)
        )
        model = made(task.auto_class, family)
    except UserError:
        return None
    if model.config.is_encoder_decoder and task.auto_class != "AutoModelForSeq2SeqLM":
        return None  # its encoder alone would do
    forward = forward_of(model)
    stack = Stack(model)
    refusal = stack.refusal(forward, batch_of([0, 1, 2, 3]), [batch_of([row]) for row in range(len(LENGTHS))])
    frozen, logits = "computed in every step: rows are padded", ""
    if refusal is None and task.vary is not Task.vary:
        frozen = "computed in every step: the rows change from epoch to epoch"
    elif refusal is None:
        model.requires_grad_(False)
        stack.layers[2:].requires_grad_(True)
        why = stack.find_prefix(forward, batch_of([0, 1, 2, 3]))
        frozen = f"computed in every step: {why}" if why else "computed once"
    if task.auto_class in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"):
        whole = whole_logits(model)
        logits = f"whole: {whole}" if whole else "scored ones only"
    return Way(f"padded: {refusal}" if refusal else "end to end", frozen, logits)


def page() -> str:
    """Return the text of docs/families.md."""
    parts = [
        "# Families of models\n\nWhich way the engine takes with each family, for every task. Made by `make docs`, which "
        "builds each family small and tries it as a run does when it starts; a test fails when a way changes.\n\n"
        "- **Rows**: end to end, without padding; or rows of like length padded to the longest, and why.\n"
        "- **Frozen layers**: computed once for each row and replayed; or computed in every step, and why.\n"
        "- **Logits**: only the scored ones are made, a chunk at a time; or all of them, and why.\n\n"
        "A family that is not listed is tried all the same when a run starts, and the run says which way it went.\n"
    ]
    alike: dict[Any, list[str]] = {}
    for name, task in registry().items():
        alike.setdefault((task.auto_class, task.vary is Task.vary), []).append(name)
    for names in alike.values():
        task = registry()[names[0]]
        rows, missing = [], []
        for family in FAMILIES:
            if (way := way_of(task, family)) is None:
                missing.append(family)
                continue
            cells = (way.rows, way.frozen, way.logits)
            rows.append(f"| {family} | " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        head = "| family | rows | frozen layers | logits |\n|---|---|---|---|"
        none = f"\nThere is no such model of {', '.join(missing)}.\n" if missing else ""
        parts.append(f"## {', '.join(names)}\n\n{head}\n" + "\n".join(rows) + f"\n{none}")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
