"""Parity with plain transformers: loss, gradient, exported logits, for GPT-2, Llama and BERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import burnish
from burnish.api import resolve
from burnish.data.tokenizer import train_tokenizer
from burnish.engine.step import accumulate
from burnish.run import RunFolder
from burnish.session import Session
from burnish.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> dict[str, Path]:
    """Folders with small decoders of two families and a tokenizer, saved by plain transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("decoders")
    tokenizer = train_tokenizer(folder / "tokenizer", text_file.read_text().split("\n\n"), 300)
    torch.manual_seed(0)
    size = len(tokenizer)
    models = {
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
            )
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def session_of(task: str, model: Path, data: Path, folder: Path, **train) -> Session:
    config, task_class, _ = resolve(
        task,
        {
            "model": str(model),
            "data": str(data),
            "run": {"dir": str(folder)},
            "train": {"precision": "fp32", "dropout": 0.0, "batch": 4, **train},
        },
    )
    session = Session(config, task_class, RunFolder(folder), QUIET)
    session.prepare()
    session.build()
    session.join()
    return session


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    distance = sum(float((ours[n] - theirs[n]).square().sum()) for n in ours) ** 0.5
    assert distance <= 1e-5 * sum(float(g.square().sum()) for g in theirs.values()) ** 0.5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoder_step_equals_plain_transformers(
    family: str, decoders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """One step's loss and gradient against `model(input_ids, labels)` of a model opened without burnish."""
    from transformers import AutoModelForCausalLM

    session = session_of("text-generation", decoders[family], text_file, tmp_path / "run", sequence=32)
    batches = session.job.loader.step(0)
    loss = accumulate(session.job.model, session.job.stack, session.task, batches, "cpu", seed=0)
    plain = AutoModelForCausalLM.from_pretrained(decoders[family], dtype=torch.float32)
    store = session.stores["train"]
    ids = torch.stack([torch.tensor(store[row]["input_ids"].astype("int64")) for row in session.job.loader.rows(0)])
    logits = plain(ids[:, :-1]).logits
    expected = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert_equal(gradients(session.job.model), gradients(plain))


def test_encoder_step_equals_plain_transformers(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    session = session_of("text-classification", tiny_bert, reviews_file, tmp_path / "run", batch=6)
    session.job.model.save_pretrained(tmp_path / "start")
    loss = accumulate(session.job.model, session.job.stack, session.task, session.job.loader.step(0), "cpu", seed=0)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = list(session.splits.train)
    picked = [rows[row] for row in session.job.loader.rows(0)]
    encoded = tokenizer([row.values["text"] for row in picked], padding=True, return_tensors="pt")
    labels = torch.tensor([session.task.facts["labels"].index(row.values["label"]) for row in picked])
    expected = plain(**encoded, labels=labels).loss
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert_equal(gradients(session.job.model), gradients(plain))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_exported_decoder_opens_in_plain_transformers(
    family: str, decoders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """`model/` after training: same logits in float32 as the model burnish holds, tokenizer included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from burnish.inference import open_model

    run = burnish.train(
        "text-generation",
        terminal=QUIET,
        model=str(decoders[family]),
        data=str(text_file),
        train={"length": "5 steps", "batch": 4, "sequence": 32},
        generate={"max_tokens": 2},
        run={"dir": str(tmp_path / "run")},
    )
    plain = AutoModelForCausalLM.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    ours = open_model(str(run.path), settings={"train": {"precision": "fp32"}})
    text = "The old river runs slowly under a green stone."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ours.task.tokenizer(text)["input_ids"]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours.model(ids).logits)
    from safetensors.torch import load_file

    final = load_file(run.path / "checkpoints" / "step-000005" / "model.safetensors")
    for name, value in plain.named_parameters():
        assert torch.equal(value, final[name])
    assert plain.dtype == torch.float32


def test_exported_classifier_opens_in_a_pipeline(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    """The labels, the tokenizer and the scores are the same through `transformers.pipeline`."""
    from transformers import pipeline

    run = burnish.train(
        "text-classification",
        terminal=QUIET,
        model=str(tiny_bert),
        data=str(reviews_file),
        train={"length": "20 steps", "precision": "fp32"},
        run={"dir": str(tmp_path / "run")},
    )
    text = "The old king is great under the river."
    answer = run.predict(text)
    plain = pipeline("text-classification", model=str(run.path / "model"))(text)[0]
    assert plain["label"] == answer["label"]
    assert plain["score"] == pytest.approx(answer["score"], abs=1e-5)
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_a_run_starts_from_a_run(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    """`--model RUN` loads every tensor of the earlier run, its head included."""
    settings = {"data": str(reviews_file), "train": {"length": "3 steps"}}
    first = burnish.train(
        "text-classification", terminal=QUIET, model=str(tiny_bert), run={"dir": str(tmp_path / "a")}, **settings
    )
    session = session_of("text-classification", first.path, reviews_file, tmp_path / "b")
    assert session.loaded.new == [] and session.loaded.left_out == []
    from safetensors.torch import load_file

    weights = load_file(first.path / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in session.job.model.named_parameters())


def test_a_decoder_classifies(decoders: dict[str, Path], reviews_file: Path, tmp_path: Path) -> None:
    """A GPT-2 has no padding token; batched scores equal those of each text alone, pretrained and from scratch."""
    for name, model in (("pretrained", {"path": str(decoders["gpt2"])}), ("scratch", {"preset": "gpt2-nano"})):
        run = burnish.train(
            "text-classification",
            terminal=QUIET,
            model=model,
            data=str(reviews_file),
            train={"length": "4 steps", "batch": 8, "precision": "fp32", "sequence": 60},
            run={"dir": str(tmp_path / name)},
        )
        from burnish.inference import open_model

        ours = open_model(str(run.path), settings={"train": {"precision": "fp32"}})
        rows = ["a good king", "the old stone never sees a very bad river under the garden"]
        examples = [
            {**ours.task._inputs([{"text": text}], 60)[0], "label": torch.zeros(1, dtype=torch.int64).numpy()}
            for text in rows
        ]
        with torch.no_grad():
            together = ours.model(**ours.task.collate(examples).inputs).logits
            alone = torch.cat([ours.model(**ours.task.collate([e]).inputs).logits for e in examples])
        assert torch.allclose(together, alone, atol=1e-5)
