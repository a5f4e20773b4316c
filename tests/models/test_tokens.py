"""New tokens: how their embeddings begin, which rows train, that merging changes nothing, runs with added and virtual ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import burnish
from burnish.config import AdapterSettings, FreezeSettings
from burnish.engine import checkpoint
from burnish.errors import UserError
from burnish.models.adapter import adapt, merged
from burnish.models.load import build
from burnish.models.tokens import grow
from burnish.terminal import Terminal
from helpers import apart, result_of, said_by_card, trained, weights_of
from scripts import families

LM, MASKED, BOTH = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
CLASSIFIER = "AutoModelForSequenceClassification"
QUIET = Terminal(quiet=True)
TOLERANCE = 1e-5
"""Largest relative distance of merged and unmerged logits, float32; of the gradients of two micro-batches."""
NEW = {families.VOCABULARY: [7], families.VOCABULARY + 1: [8, 9]}
ADDED = {"added_tokens": ["<wizard>", "kingdom"]}
PROMPT = {"kind": "prompt", "tokens": 3}


def grown(auto_class: str, family: str) -> Any:
    model = families.made(auto_class, family).eval()
    grow(model, families.VOCABULARY + len(NEW), NEW)
    return model


@pytest.mark.parametrize(("auto_class", "family"), [(LM, "gpt2"), (LM, "llama"), (LM, "gptj"), (MASKED, "bert")])
def test_new_rows_begin_as_the_mean_of_older_ones_and_leave_the_predictions_of_the_others(
    auto_class: str, family: str
) -> None:
    before, model = families.made(auto_class, family), grown(auto_class, family)
    old, table = before.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(table[:-2], old) and torch.equal(table[-2], old[7])
    assert torch.allclose(table[-1], (old[8] + old[9]) / 2)
    head, first = model.get_output_embeddings(), before.get_output_embeddings()
    if head.weight is not table:
        assert torch.allclose(head.weight[-2:], first.weight.mean(0).expand(2, -1))
    inputs = families.batch_of([0, 1]).inputs
    with torch.no_grad():
        found, wanted = model(**inputs).logits, before(**inputs).logits
        assert torch.allclose(found[..., :-2], wanted, atol=1e-6)
        if head.weight is not table:
            assert torch.allclose(found[..., -1], wanted.mean(-1), atol=1e-5)


MODELS = [(LM, "gpt2"), (LM, "llama"), (CLASSIFIER, "bert"), (MASKED, "bert"), (BOTH, "t5")]
KINDS = [(kind, *model) for kind in ("lora", "dora", "qlora", "prompt") for model in MODELS]


@pytest.mark.parametrize(("kind", "auto_class", "family"), [case for case in KINDS if case != ("qlora", LM, "gpt2")])
def test_only_new_rows_train_and_merged_logits_are_those_with_them(kind: str, auto_class: str, family: str) -> None:
    """Also where input and output embeddings are one matrix, whose rows are then one too."""
    model, plain = grown(auto_class, family), grown(auto_class, family)
    narrow: dict[str, Any] = {} if kind == "prompt" else {"rank": 4}
    adapt(model, AdapterSettings(kind=kind, **narrow), FreezeSettings(), list(NEW))
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    tied = family != "llama"
    rows = [name for name in trains if name.endswith(".rows")]
    assert len(rows) == (1 if tied else 2)
    assert all("lora_" in name or name in rows or name.startswith("classifier") for name in trains)
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if name in trains:
            torch.nn.init.normal_(value, std=0.2)
    batch = families.batch_of([0, 1]).inputs
    batch["input_ids"][:, 1], batch["input_ids"][0, 3] = NEW
    if auto_class == BOTH:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        wanted = model(**batch).logits
        assert float((plain(**batch).logits - wanted).norm()) > 100 * TOLERANCE * float(wanted.norm())
        states = merged(model)
        assert states is not None
        plain.load_state_dict(states)
        found = plain(**batch).logits
    assert float((found - wanted).norm()) <= TOLERANCE * float(wanted.norm())


def test_rows_that_are_there_already_are_used(tmp_path: Path) -> None:
    """Many models have room for more tokens than their tokenizer has."""
    families.made(LM, "gpt2").save_pretrained(tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    model, _ = build(LM, config, tmp_path, {families.VOCABULARY - 1: [7]})
    table = model.get_input_embeddings().weight
    assert len(table) == families.VOCABULARY and torch.equal(table[-1], table[7])


def settings(base: Path, rows: Path, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": {"path": str(base), **more.pop("model", {})},
        "data": str(rows),
        "train": {"length": "6 steps", "batch": 8, "sequence": 32, "precision": "fp32", "dropout": 0},
        "generate": {"max_tokens": 4, "temperature": 0.0},
    }
    return {**given, **more}


def train(folder: Path, name: str, /, **given: Any) -> burnish.Run:
    run = burnish.train(name, terminal=QUIET, **{"run": {"dir": str(folder)}, **given})
    assert isinstance(run, burnish.Run)
    return run


def checkpointed(run: burnish.Run) -> set[str]:
    folder = run.path / "checkpoints"
    return set(load_file(checkpoint.path_of(folder, max(checkpoint.steps(folder))) / "model.safetensors"))


def resumed(run: burnish.Run, task: str, **given: Any) -> burnish.Run:
    """Return the run gone on with from its third step."""
    folder = run.path / "checkpoints"
    for step in checkpoint.steps(folder):
        if step > 3:
            checkpoint.retire(checkpoint.path_of(folder, step))
    run.folder.metrics.unlink()
    return train(run.path, task, **given)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_with_added_tokens_opens_in_plain_transformers(
    adapter: str, decoder: Path, text_file: Path, tmp_path: Path
) -> None:
    """One token each, in training as in use; the others keep their ids, and with adapters their embeddings."""
    given = settings(decoder, text_file, model=ADDED, adapter=adapter)
    run = train(tmp_path / "run", "text-generation", **given)
    older, tokenizer = (AutoTokenizer.from_pretrained(path) for path in (decoder, run.path / "model"))
    assert tokenizer("the<wizard>kingdom")["input_ids"] == [*older("the")["input_ids"], len(older), len(older) + 1]
    before = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32)
    old, table = before.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert model.config.vocab_size == len(table) == len(tokenizer) and model.lm_head.weight is table
    assert torch.equal(table[: len(old)], old) == (adapter == "lora")
    begun = old[older("<wizard>")["input_ids"]].mean(0)
    assert not torch.equal(table[len(old)], begun) and torch.allclose(table[len(old)], begun, atol=0.05)
    assert not (run.path / "model" / "adapter").exists()
    [answer] = run.predict(["the <wizard>"])
    ids = tokenizer("the <wizard>", return_tensors="pt")["input_ids"]
    output = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer["generated"]


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_added_tokens_are_in_checkpoints_and_a_run_goes_on_to_the_bit(
    adapter: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    given = settings(tiny_bert, reviews_file, model=ADDED, adapter=adapter, checkpoint={"every": 3, "keep": 9})
    run = train(tmp_path / "run", "text-classification", **given)
    names = checkpointed(run)
    assert any(name.endswith(".rows") for name in names) and not any("original" in name for name in names)
    wanted = result_of(run.path)
    assert result_of(resumed(run, "text-classification", **given).path) == wanted


def test_a_reference_reads_the_new_tokens_too(decoder: Path, pairs_file: Path, tmp_path: Path) -> None:
    """The model that preference tuning begins with is the one it compares with, also when a finished run is evaluated."""
    given = settings(
        decoder, pairs_file, model=ADDED, adapter="lora", data={"train": str(pairs_file), "prompt": "prompt"}
    )
    run = train(tmp_path / "run", "preference-tuning", **given)
    found = run.evaluate()["metrics"]
    assert found == pytest.approx({name: run.metrics["validation"][name] for name in found}, abs=1e-5)


def test_running_text_has_the_prompt_before_every_sequence_and_only_it_trains(
    decoder: Path, text_file: Path, tmp_path: Path
) -> None:
    given = settings(decoder, text_file, adapter=PROMPT, checkpoint={"every": 3, "keep": 9})
    run = train(tmp_path / "run", "text-generation", **given)
    assert checkpointed(run) == {"transformer.wte.parametrizations.weight.0.rows"}
    before = load_file(decoder / "model.safetensors")
    after = load_file(run.path / "model" / "model.safetensors")
    assert all(torch.equal(after[name][: len(value)], value) for name, value in before.items())
    wanted = result_of(run.path)
    assert wanted["losses"][-1][1] < wanted["losses"][0][1]  # type: ignore[index]
    assert result_of(resumed(run, "text-generation", **given).path) == wanted


def test_sequences_of_running_text_keep_every_target(decoder: Path, text_file: Path, tmp_path: Path) -> None:
    """The targets are those without a prompt, though a sequence has room for fewer of them."""
    sessions = [
        trained(
            "text-generation", tmp_path / str(n), **settings(decoder, text_file, **more, train={"length": "1 steps"})
        )
        for n, more in enumerate(
            ({"adapter": PROMPT, "run": {"dir": str(tmp_path / "0")}}, {"run": {"dir": str(tmp_path / "1")}})
        )
    ]
    targets = []
    for session in sessions:
        store, task = session.stores["train"], session.task
        batch = task.collate([store[row] for row in range(len(store))])
        targets.append(batch.targets["labels"])
        assert max(batch.lengths or []) <= session.plan.sequence
    assert torch.equal(*targets)
    ids = sessions[0].stores["train"][1]["input_ids"]
    assert ids[:3].tolist() == list(sessions[0].beginnings)


@pytest.mark.parametrize("task", ["text-generation", "text-classification"])
def test_a_prompt_does_not_depend_on_how_a_step_is_cut(
    task: str, decoder: Path, tiny_bert: Path, text_file: Path, reviews_file: Path, tmp_path: Path
) -> None:
    model, rows = (decoder, text_file) if task == "text-generation" else (tiny_bert, reviews_file)
    found = []
    for name, more in (("a", {}), ("b", {"micro_batch": 3}), ("c", {"packing": "off"})):
        given = settings(model, rows, adapter=PROMPT)
        given["train"] = {**given["train"], "length": "2 steps", **more}
        found.append(weights_of(trained(task, tmp_path / name, **given)))
    assert apart(found[1], found[0]) <= TOLERANCE and apart(found[2], found[0]) <= TOLERANCE


@pytest.mark.parametrize("task", ["text-generation", "text-classification"])
def test_a_prompt_is_used_in_plain_transformers_as_the_card_says(
    task: str, decoder: Path, tiny_bert: Path, text_file: Path, reviews_file: Path, tmp_path: Path
) -> None:
    model, rows = (decoder, text_file) if task == "text-generation" else (tiny_bert, reviews_file)
    run = train(tmp_path / "run", task, **settings(model, rows, adapter=PROMPT))
    said = said_by_card(run.path)
    if task == "text-generation":
        prompt = run.folder.read_json(run.folder.plan)["facts"]["prompts"][0]
        assert said.strip() == (prompt + run.predict([prompt])[0]["generated"]).strip()
    else:
        [answer] = run.predict(["the plot is thin but the cast shines"])
        label, score = said.split()
        assert label == answer["label"] and float(score) == pytest.approx(answer["score"], abs=1e-4)


def test_a_conversation_begins_with_the_prompt(decoder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "who sees the river"}, {"role": "assistant", "content": "the old king"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns}) + "\n")
    given = settings(
        decoder,
        rows,
        adapter=PROMPT,
        data={"train": str(rows), "messages": "messages", "holdout": "0%"},
        task={"template": "chatml"},
    )
    given["train"] = {**given["train"], "sequence": 128, "length": "1 steps"}
    run = train(tmp_path / "run", "text-generation", **given)
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    ids = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]).startswith("<|prompt-1|><|prompt-2|><|prompt-3|><|im_start|>user")
    model = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32)
    output = model.generate(ids, max_new_tokens=4, do_sample=False)
    answer = run.predict([{"messages": turns[:1]}])[0]["generated"]
    assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer


def test_only_a_prompt_and_the_head_of_a_classifier_train(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "text-classification", **settings(tiny_bert, reviews_file, adapter=PROMPT))
    assert all(name.startswith("classifier") or name.endswith(".rows") for name in checkpointed(run))
    before = load_file(tiny_bert / "model.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model").bert.state_dict()
    assert all(torch.equal(model[name][: len(value)], value) for name, value in before.items() if name in model)


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("text-classification", {"model": {"added_tokens": ["king"]}}, "model.added_tokens: 'king' is a token already"),
        (
            "text-classification",
            {"model": {"added_tokens": [" "]}},
            "model.added_tokens: one of them is empty; give texts",
        ),
        ("text-classification", {"model": {"added_tokens": ["<a>", "<a>"]}}, "'<a>' is a token already; leave it out"),
        ("text-classification", {"model": {"added_tokens": ["\u200b"]}}, "model.added_tokens: .* sees nothing in"),
        (
            "text-classification",
            {"model": ADDED, "freeze": {"layers": 1}},
            "freeze.layers: the embeddings stay as they are then, so new tokens could not be learned",
        ),
        (
            "fill-mask",
            {"adapter": PROMPT},
            "adapter.kind: fill-mask takes no prompt .text-classification, text-gener.* take lora",
        ),
        (
            "text-classification",
            {"adapter": {"kind": "prompt", "tokens": 15}},
            "adapter.tokens: 15 virtual tokens fill more than half of a sequence of 32. Give at most 14",
        ),
        (
            "text-classification",
            {"adapter": {"kind": "prompt", "tokens": 0}},
            "adapter.tokens: .* greater than or equal to 1",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(
    task: str, more: dict, message: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", task, **settings(tiny_bert, reviews_file, **more))
    assert not os.path.exists(tmp_path / "run" / "config.yaml")


@pytest.mark.parametrize("more", [{"model": ADDED}, {"adapter": PROMPT}])
def test_a_model_from_scratch_takes_none(more: dict, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a model from scratch takes no (new tokens|prompt), since its tokenizer is trained"
    ):
        train(tmp_path / "run", "text-generation", **{"preset": "gpt2-nano", "data": str(text_file), **more})
