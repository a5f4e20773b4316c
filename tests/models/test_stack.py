"""Rows end to end and replayed prefixes: equal to each row alone, to recomputing; wrong variants are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from burnish.models.logits import loss_sum, whole_logits
from burnish.models.stack import Stack
from burnish.ops import attention
from burnish.task import Batch
from scripts import families

TOLERANCE = 1e-5
"""Relative global L2 of the gradient, float32, no dropout."""

LM, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
PACKED = [
    ("gpt2", LM), ("llama", LM), ("mistral", LM), ("qwen3", LM), ("gemma2", LM), ("gemma3_text", LM), ("granite", LM),
    ("cohere", LM), ("bert", CLASSIFIER), ("roberta", CLASSIFIER), ("modernbert", CLASSIFIER), ("llama", CLASSIFIER),
]  # fmt: skip
ROWS = [0, 1, 2, 3]


def loss_of(model: Any, auto_class: str, rows: Sequence[int]) -> torch.Tensor:
    """Return a summed loss of some rows: next tokens, or labels."""
    batch = families.batch_of(list(rows))
    if auto_class == CLASSIFIER:
        logits = model(**batch.inputs).logits.float()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(rows) % 2, reduction="sum")
    ids, longest = batch.inputs["input_ids"], max(batch.lengths or [])
    real = [row * longest + place for row, n in enumerate(batch.lengths or []) for place in range(n - 1)]
    places = torch.tensor(real)
    return loss_sum(model, {"input_ids": ids}, ids.flatten()[places + 1], places)


def gradient(model: Any, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    loss().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def packed_against_alone(auto_class: str, family: str) -> float:
    """Return how far the gradient of rows end to end lies from that of each row alone."""
    model = families.made(auto_class, family)
    alone = gradient(model, lambda: torch.stack([loss_of(model, auto_class, [row]) for row in ROWS]).sum())
    stack = Stack(model)
    with stack.rows([families.LENGTHS[row] for row in ROWS]):
        together = gradient(model, lambda: loss_of(model, auto_class, ROWS))
    return distance(together, alone)


@pytest.mark.parametrize(("family", "auto_class"), PACKED)
def test_rows_end_to_end_have_the_gradient_of_rows_alone(family: str, auto_class: str) -> None:
    assert packed_against_alone(auto_class, family) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "auto_class", "lengths"),
    [("llama", LM, [sum(families.LENGTHS)]), ("bert", CLASSIFIER, [14, 39]), ("gpt2", LM, [53])],
)
def test_naive_packing_fails_the_same_test(
    family: str, auto_class: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows laid end to end but seen as fewer, longer ones by the attention."""
    real = attention.set_segments

    def naive(found: Sequence[int]) -> None:
        real([*lengths, sum(found) - sum(lengths)] if len(found) > 1 and sum(found) > sum(lengths) else lengths)

    monkeypatch.setattr(attention, "set_segments", naive)
    assert packed_against_alone(auto_class, family) > 100 * TOLERANCE


def test_a_window_off_by_one_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT hands over its half window plus one: taking it as inclusive sees one position too many."""
    real = attention.Rule

    def wider(causal: bool, scale: float, window: int | None = None, softcap: float | None = None) -> attention.Rule:
        return real(causal, scale, None if window is None else window + 1, softcap)

    monkeypatch.setattr(attention, "Rule", wider)
    assert packed_against_alone(CLASSIFIER, "modernbert") > 10 * TOLERANCE


@pytest.mark.parametrize(("family", "auto_class"), [("qwen3", LM), ("modernbert", CLASSIFIER), ("bert", CLASSIFIER)])
def test_changing_a_row_changes_no_other(family: str, auto_class: str) -> None:
    model = families.made(auto_class, family)
    stack, batch = Stack(model), families.batch_of(ROWS)

    def logits() -> torch.Tensor:
        with torch.no_grad(), stack.rows(batch.lengths):
            return model(**batch.inputs).logits.clone()

    before = logits()
    batch.inputs["input_ids"][1, :9] = torch.arange(20, 29)
    after = logits()
    for row, length in enumerate(families.LENGTHS):
        part = (slice(None),) if auto_class == CLASSIFIER else (slice(0, length),)
        assert torch.equal(before[row][part], after[row][part]) == (row != 1)


def test_dropout_is_drawn_and_keeps_the_mean() -> None:
    """The attention weights' own dropout: its mean over draws is the attention without it."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 8, dtype=torch.float64).float() for _ in range(3))
    segments, rule = attention.Segments((5, 7)), attention.Rule(causal=True, scale=0.3)
    exact = attention.attention(query, key, value, segments, rule)
    draws = torch.stack([attention.attention(query, key, value, segments, rule, 0.2) for _ in range(3000)])
    assert not torch.equal(draws[0], draws[1])
    assert distance(draws.mean(0), exact) < 0.02


def test_unknown_arguments_are_refused_by_name() -> None:
    tensors = [torch.ones(1, 1, 4, 8)] * 3
    with attention.segments_of([4]), pytest.raises(NotImplementedError, match="Linear hands s_aux"):
        attention.model_attention(torch.nn.Linear(1, 1), *tensors, s_aux=torch.ones(1))
    with attention.segments_of([2, 3]), pytest.raises(NotImplementedError, match="something else than its own rows"):
        attention.model_attention(torch.nn.Linear(1, 1), *tensors)


def test_every_family_goes_the_way_the_page_says() -> None:
    """A family that falls back unnoticed fails here; a wanted change is written by `make docs`."""
    assert families.PAGE.read_text(encoding="utf-8") == families.page()


# -- padded rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_padded_rows_in_bf16_attend_in_float32(family: str) -> None:
    """In float32 the gradient is transformers' own, bit for bit; in bfloat16 it is as near to it as theirs, or nearer."""
    found = {}
    for name in ("sdpa", attention.PADDED):
        attention.register()
        model = families.made(CLASSIFIER, family)
        model.set_attn_implementation(name)
        loss = partial(loss_of, model, CLASSIFIER, ROWS)
        found[name, "fp32"] = gradient(model, loss)
        model.bfloat16()
        found[name, "bf16"] = gradient(model, loss).float()
    exact = found["sdpa", "fp32"]
    assert torch.equal(found[attention.PADDED, "fp32"], exact)
    assert distance(found[attention.PADDED, "bf16"], exact) <= 1.2 * distance(found["sdpa", "bf16"], exact) < 0.1


# -- only what is read of the last layer --------------------------------------------------------------------------------

READ = [("bert", "first"), ("roberta", "first"), ("modernbert", "first"), ("gpt2", "last"), ("llama", "last"),
        ("qwen3", "last"), ("gemma2", "last"), ("mistral", "last")]  # fmt: skip


def classifier(family: str) -> tuple[Any, Stack, Callable[[Batch], torch.Tensor]]:
    model = families.made(CLASSIFIER, family)
    model.eval()
    return model, Stack(model), lambda batch: model(**batch.inputs).logits.float().square().sum()


@pytest.mark.parametrize(("family", "place"), READ)
def test_the_last_layer_computes_only_what_the_head_reads_with_the_same_gradient(family: str, place: str) -> None:
    model, stack, forward = classifier(family)
    alone = gradient(model, lambda: torch.stack([loss_of(model, CLASSIFIER, [row]) for row in ROWS]).sum())
    assert stack.find_read(forward, families.batch_of(ROWS)) == place
    seen: list[int] = []
    last = [module for module in stack.layers[-1].modules() if isinstance(module, (torch.nn.Linear, Conv1D))][-1]
    handle = last.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    with stack.rows(families.LENGTHS):
        together = gradient(model, lambda: loss_of(model, CLASSIFIER, ROWS))
    handle.remove()
    assert distance(together, alone) <= TOLERANCE
    assert seen == [len(ROWS)]


@pytest.mark.parametrize("place", ["first", "last"])
def test_the_wrong_position_fails_the_same_test(place: str) -> None:
    family = {"first": "llama", "last": "bert"}[place]
    model, stack, _ = classifier(family)
    alone = gradient(model, lambda: torch.stack([loss_of(model, CLASSIFIER, [row]) for row in ROWS]).sum())
    stack.reads = place
    with stack.rows(families.LENGTHS):
        together = gradient(model, lambda: loss_of(model, CLASSIFIER, ROWS))
    assert distance(together, alone) > 100 * TOLERANCE


def test_a_head_that_reads_all_positions_gets_all() -> None:
    model, stack, forward = classifier("modernbert")
    model.config.classifier_pooling = "mean"
    assert stack.find_read(forward, families.batch_of(ROWS)) is None
    model, stack, _ = families.made(LM, "llama"), None, None
    stack = Stack(model)
    assert stack.find_read(lambda batch: model(**batch.inputs).logits.square().sum(), families.batch_of(ROWS)) is None


def test_a_head_of_zeros_hides_nothing() -> None:
    """Its loss is the same whatever it reads; what it reads shows all the same."""
    model, stack, forward = classifier("modernbert")
    torch.nn.init.zeros_(model.classifier.weight)
    assert stack.find_read(forward, families.batch_of(ROWS)) == "first"
    model.config.classifier_pooling = "mean"
    assert stack.find_read(forward, families.batch_of(ROWS)) is None


def test_rows_of_one_position_tell_nothing() -> None:
    _, stack, forward = classifier("bert")
    ids = torch.tensor([[5], [6]])
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {}, {}, [1, 1])
    assert stack.find_read(forward, batch) is None


# -- the frozen prefix -------------------------------------------------------------------------------------------------


def vision() -> tuple[Any, Batch]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8
    )
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return ViTForImageClassification(config), Batch({"pixel_values": pixels}, {}, {}, [17] * 3)


def audio() -> tuple[Any, Batch]:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=32, layerdrop=0.0,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, apply_spec_augment=False,
    )  # fmt: skip
    wave = torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))
    return Wav2Vec2ForSequenceClassification(config), Batch({"input_values": wave}, {}, {}, [12] * 2)


def text(family: str, auto_class: str) -> Callable[[], tuple[Any, Batch]]:
    return lambda: (families.made(auto_class, family), families.batch_of(ROWS))


REPLAYED = {
    "gpt2": text("gpt2", LM),
    "llama": text("llama", LM),
    "qwen3": text("qwen3", LM),
    "bert": text("bert", CLASSIFIER),
    "modernbert": text("modernbert", CLASSIFIER),
    "vit": vision,
    "wav2vec2": audio,
}


@pytest.mark.parametrize(
    ("name", "depth"), [(name, depth) for name in REPLAYED for depth in (2, 4) if (name, depth) != ("gpt2", 4)]
)  # a GPT-2 with all layers frozen has nothing left to train, for its output layer is its embedding
def test_a_replayed_prefix_is_bit_equal_to_recomputing(name: str, depth: int) -> None:
    torch.manual_seed(0)
    model, batch = REPLAYED[name]()
    model.eval()
    stack = Stack(model)
    model.base_model.requires_grad_(False)
    stack.layers[depth:].requires_grad_(True)
    forward = families.forward_of(model)
    assert stack.find_prefix(forward, batch) is None
    assert stack.depth == depth
    with stack.rows(batch.lengths):
        recomputed = gradient(model, lambda: forward(batch))
    stored = stack.prefix_of(forward, batch)
    inner = stack.inner
    stack.inner = [lambda *_, **__: pytest.fail("a stored layer was computed")] * depth + inner[depth:]
    with stack.rows(batch.lengths, stored):
        replayed = gradient(model, lambda: forward(batch))
    assert torch.equal(replayed, recomputed)


def test_a_prefix_that_cannot_be_replayed_is_refused_by_name() -> None:
    model, batch = REPLAYED["bert"]()
    stack, forward = Stack(model), families.forward_of(model)
    model.requires_grad_(False)
    stack.layers[2:].requires_grad_(True)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    assert stack.find_prefix(forward, batch) == "something below the frozen layers trains"
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.bert.embeddings.dropout.p = 0.5
    model.train()
    assert stack.find_prefix(forward, batch) == "the frozen layers draw random numbers"
    assert stack.depth == 0


def test_recomputed_activations_give_the_same_gradient() -> None:
    for mode in ("selective", "full"):
        model = families.made(LM, "llama")
        whole_logits(model)
        stack = Stack(model)
        grads = []
        for recompute in ("none", mode):
            stack.recompute(recompute)
            with stack.rows([families.LENGTHS[row] for row in ROWS]):
                grads.append(gradient(model, lambda model=model: loss_of(model, LM, ROWS)))
        assert distance(grads[1], grads[0]) <= 1e-6
