"""Adapters: what trains, that merging changes nothing, that they go with frozen layers, packing and resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import burnish
from burnish.config import AdapterSettings, FreezeSettings
from burnish.engine import checkpoint
from burnish.errors import UserError
from burnish.models.adapter import adapt, adapted_layers, merged
from burnish.terminal import Terminal
from helpers import result_of
from scripts import families

LM, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
QUIET = Terminal(quiet=True)
TOLERANCE = 1e-5
"""Largest relative distance of merged and unmerged logits, float32."""


def train(folder: Path, model: Path, rows: Path, task: str = "text-classification", **more: Any) -> burnish.Run:
    settings: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": str(rows),
        "train": {"length": "8 steps", "batch": 8, "sequence": 32, "precision": "fp32", "dropout": 0},
        "run": {"dir": str(folder)},
        **more,
    }
    run = burnish.train(task, terminal=QUIET, **settings)
    assert isinstance(run, burnish.Run)
    return run


KINDS = [(kind, *model) for kind in ("lora", "dora") for model in ((LM, "gpt2"), (LM, "llama"), (CLASSIFIER, "bert"))]


@pytest.mark.parametrize(
    ("kind", "auto_class", "family"), [*KINDS, ("qlora", LM, "llama"), ("qlora", CLASSIFIER, "bert")]
)
def test_merged_logits_are_those_with_the_adapters(kind: str, auto_class: str, family: str) -> None:
    """Also where input and output embeddings are one matrix, and of layers in 4 bits, whose weights are then those they
    stand for; the model itself stays bit for bit what it was."""
    torch.manual_seed(0)
    model = families.made(auto_class, family).eval()
    plain = families.made(auto_class, family).eval()
    adapt(model, AdapterSettings(kind=kind, rank=4), FreezeSettings())
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = families.batch_of([0, 1])
    with torch.no_grad():
        wanted = model(**batch.inputs).logits
        states = merged(model)
        assert states is not None and all(
            torch.equal(before[name], value) for name, value in model.state_dict().items()
        )
        assert float((plain(**batch.inputs).logits - wanted).norm()) > 100 * TOLERANCE * float(wanted.norm())
        plain.load_state_dict(states)
        found = plain(**batch.inputs).logits
    assert float((found - wanted).norm()) <= TOLERANCE * float(wanted.norm())


def test_only_adapters_and_the_head_train_and_the_run_opens_without_peft(
    tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", tiny_bert, reviews_file, adapter="lora")
    assert run.folder.read_json(run.folder.plan)["model"]["trainable"] < 30_000
    found = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    assert not any("lora" in name for name, _ in found.named_parameters())
    [answer] = run.predict(["a good king"])
    ids = torch.tensor([burnish.load(run.path) and _ids(run, "a good king")])
    with torch.no_grad():
        scores = found(input_ids=ids).logits.softmax(-1)[0]
    assert list(answer["scores"].values()) == pytest.approx(scores.tolist(), abs=1e-4)
    assert {file.name for file in (run.path / "model" / "adapter").iterdir()} >= {"adapter_config.json"}


def _ids(run: burnish.Run, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(run.path / "model")(text)["input_ids"]


@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_the_adapter_opens_with_peft_beside_its_base(tmp_path: Path, text_file: Path, decoder: Path) -> None:
    import peft

    run = train(tmp_path / "run", decoder, text_file, "text-generation", adapter={"kind": "lora", "rank": 4})
    base = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    wanted = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32)
    found = peft.PeftModel.from_pretrained(base, str(run.path / "model" / "adapter"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.allclose(found(input_ids=ids).logits, wanted(input_ids=ids).logits, atol=1e-4)


def test_adapters_go_with_frozen_layers_their_cache_and_resume(
    tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    """The cache and a stop on the way change nothing, to the bit."""
    same: dict[str, Any] = {"adapter": "lora", "checkpoint": {"every": 3, "keep": 9}}
    cached = train(tmp_path / "cached", tiny_bert, reviews_file, freeze={"layers": 1}, **same)
    plain = train(tmp_path / "plain", tiny_bert, reviews_file, freeze={"layers": 1, "cache": "off"}, **same)
    assert "computed in every step" not in (cached.path / "log.txt").read_text()
    assert result_of(cached.path)["losses"] == result_of(plain.path)["losses"]
    wanted = result_of(plain.path)
    for step in checkpoint.steps(plain.path / "checkpoints"):
        if step > 3:
            checkpoint.retire(checkpoint.path_of(plain.path / "checkpoints", step))
    plain.folder.metrics.unlink()
    again = train(tmp_path / "plain", tiny_bert, reviews_file, freeze={"layers": 1, "cache": "off"}, **same)
    assert result_of(again.path) == wanted


def test_layers_that_are_frozen_get_no_adapter() -> None:
    model = families.made(CLASSIFIER, "bert")
    adapt(model, AdapterSettings(kind="lora"), FreezeSettings(layers=1))
    names = [name for name, _ in adapted_layers(model)]
    assert names and not any(".layer.0." in name for name in names) and any(".layer.1." in name for name in names)


@pytest.mark.parametrize(
    ("adapter", "freeze", "message"),
    [
        (
            {"kind": "lora", "targets": "nowhere*"},
            {},
            "adapter.targets: nowhere[*] matches no linear layer of the model; they are",
        ),
        ({"kind": "lora"}, {"layers": "all"}, "adapter.kind: with --freeze.layers all no layer is left for adapters"),
        ({"rank": 4}, {}, "adapter.rank: adapter.kind none has none. Give --adapter.kind lora, or leave it out"),
        (
            {"kind": "prompt", "tokens": 4, "rank": 4},
            {},
            "adapter.rank: adapter.kind prompt has none. Give --adapter.kind lora",
        ),
        ({"kind": "dora", "tokens": 4}, {}, "adapter.tokens: adapter.kind dora has none. Give --adapter.kind prompt"),
        ({"kind": "lore"}, {}, "adapter.kind: .* 'none', 'lora', 'dora', 'qlora' or 'prompt'"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    adapter: dict, freeze: dict, message: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", tiny_bert, reviews_file, adapter=adapter, freeze=freeze)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_layers_of_4_bits_go_with_frozen_layers_and_resume_and_checkpoints_hold_the_adapters_only(
    tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    same: dict[str, Any] = {
        "adapter": "qlora",
        "checkpoint": {"every": 3, "keep": 9},
        "freeze": {"layers": 1},
        "train": {"length": "8 steps", "batch": 8, "sequence": 32, "precision": "bf16", "dropout": 0},
    }
    run = train(tmp_path / "run", tiny_bert, reviews_file, **same)
    wanted = result_of(run.path)
    folder = run.path / "checkpoints"
    newest = checkpoint.path_of(folder, max(checkpoint.steps(folder)))
    names = set(load_file(newest / "model.safetensors"))
    assert names and all("lora_" in name or "classifier" in name for name in names)
    for step in checkpoint.steps(folder):
        if step > 3:
            checkpoint.retire(checkpoint.path_of(folder, step))
    run.folder.metrics.unlink()
    assert result_of(train(tmp_path / "run", tiny_bert, reviews_file, **same).path) == wanted
    found = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    assert type(found.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_run_does_not_go_on_upon_another_base(kind: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    same: dict[str, Any] = {"adapter": kind, "checkpoint": {"every": 3, "keep": 9}}
    run = train(tmp_path / "run", base, reviews_file, **same)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("attention.self.key.weight"))
    save_file({**weights, name: weights[name] * 1.5}, base / "model.safetensors", metadata={"format": "pt"})
    run.folder.metrics.unlink()
    before = result_of_checkpoints(run)
    with pytest.raises(
        UserError, match=r"model.path: the pretrained weights are others than those this run began with"
    ):
        train(tmp_path / "run", base, reviews_file, **same)
    assert result_of_checkpoints(run) == before


def result_of_checkpoints(run: burnish.Run) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in sorted(run.path.rglob("*.safetensors"))]


def test_what_has_no_form_of_4_bits_is_refused(decoder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter.kind: .* is a Conv1D, which has no form of 4 bits; take lora"):
        train(tmp_path / "run", decoder, text_file, "text-generation", adapter="qlora")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_one_position_computes_as_many_do() -> None:
    """The library has another kernel for it, for generating."""
    model = families.made(LM, "llama").eval()
    adapt(model, AdapterSettings(kind="qlora", rank=4), FreezeSettings())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        together = model(input_ids=ids).logits[:, -1]
        first = model(input_ids=ids[:, :2], use_cache=True)
        alone = model(input_ids=ids[:, 2:], past_key_values=first.past_key_values).logits[:, -1]
    assert torch.allclose(alone, together, atol=1e-5)
