"""LaMDA: the paper's shapes, attention as written in the papers, the same with and without a cache, open to transformers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.t5.modeling_t5 import T5Attention

import burnish
import burnish.models.own.lamda as lamda
from burnish.errors import UserError
from burnish.inference import open_model
from burnish.models.load import make_config, skeleton
from burnish.models.scratch import find_preset
from burnish.models.stack import Stack
from burnish.task import Batch
from burnish.terminal import Terminal

QUIET = Terminal(quiet=True)
SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "head_dim": 8, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": 0,
}  # fmt: skip


def _model(attention: str = "sdpa", **options: object) -> lamda.LamdaForCausalLM:
    torch.manual_seed(0)
    config = make_config({"model_type": "lamda", **SMALL, **options}, {}, None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    with torch.no_grad():  # a bias that would be seen
        model.model.relative_bias.table.weight.normal_(0, 1)
    return model


@pytest.mark.parametrize(
    ("name", "billions", "layers", "width", "inner", "heads"),
    [
        ("lamda-2b", 2.1, 10, 2_560, 20_480, 40),
        ("lamda-8b", 8.6, 16, 4_096, 32_768, 64),
        ("lamda-137b", 137.4, 64, 8_192, 65_536, 128),
    ],
)
def test_the_papers_shapes_have_the_papers_counts(
    name: str, billions: float, layers: int, width: int, inner: int, heads: int
) -> None:
    """Without embeddings, as the paper counts: 2B, 8B and 137B."""
    preset = find_preset(name)
    model = skeleton(preset.auto_class, make_config({"model_type": preset.model_type, **preset.options}, {}, None))
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (layers, width, inner)
    assert (config.num_attention_heads, config.head_dim) == (heads, 128)
    counted = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    assert counted / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20)])
def test_distances_are_told_apart_as_in_t5(buckets: int, longest: int) -> None:
    distance = torch.arange(-20, 300)
    wanted = T5Attention._relative_position_bucket(-distance, False, buckets, longest)
    assert torch.equal(lamda.bucket(distance, buckets, longest), wanted)


def test_a_layer_is_the_papers_formula() -> None:
    """One layer written out: softmax(QK^T/sqrt(d) + B)V on earlier positions, then GELU(xW) * xV, each on normed inputs."""
    model = _model(num_hidden_layers=1)
    weights = dict(model.model.layers[0].named_parameters())
    ids = torch.randint(1, 60, (1, 30), generator=torch.Generator().manual_seed(1))
    x = model.model.embed_tokens(ids)[0]
    norm = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    q, k, v = ((norm(x) @ weights[f"self_attn.{name}_proj.weight"].T).view(30, 4, 8).transpose(0, 1) for name in "qkv")
    back = torch.arange(30)[:, None] - torch.arange(30)
    bias = model.model.relative_bias.table.weight[T5Attention._relative_position_bucket(-back, False, 8, 20)]
    scores = q @ k.transpose(1, 2) / math.sqrt(8) + bias.permute(2, 0, 1)
    attended = scores.masked_fill(back < 0, -math.inf).softmax(-1) @ v
    x = x + attended.transpose(0, 1).flatten(1) @ weights["self_attn.o_proj.weight"].T
    gate, up, down = (weights[f"mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
    x = x + (torch.nn.functional.gelu(norm(x) @ gate, approximate="tanh") * (norm(x) @ up)) @ down
    wanted = norm(x) @ model.model.embed_tokens.weight.T
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert torch.allclose(model(ids).logits[0], wanted, atol=1e-6), attention


def test_with_a_cache_and_padding_on_the_left_the_logits_are_the_same() -> None:
    model = _model()
    ids = torch.randint(1, 60, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :25], use_cache=True)
        parts = [first.logits]
        for start, end in ((25, 26), (26, 33), (33, 40)):
            parts.append(model(ids[:, start:end], past_key_values=first.past_key_values, use_cache=True).logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)
        shifted = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
        mask = torch.ones_like(shifted).masked_fill(torch.arange(45) < 5, 0)
        assert torch.allclose(model(shifted, attention_mask=mask).logits[:, 5:], whole, atol=1e-12)
        short, long = model.generate(ids[:1, :9], max_new_tokens=20, do_sample=False), ids[:1, :9]
        for _ in range(20):
            long = torch.cat([long, model(long, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(short, long)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_end_to_end_have_the_outputs_and_gradients_of_rows_alone(attention: str) -> None:
    """Also the gradient of the table of distances, which all rows and layers share. Idle positions make a long row."""
    model, lengths = _model(attention), [7, 3, 3, 30, 12]
    stack = Stack(model)
    ids = torch.zeros(5, 30, dtype=torch.long)
    rows = [torch.randint(1, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: value.grad.clone() for name, value in model.named_parameters()}
        model.zero_grad()
        return found

    for row in rows:
        model(row[None]).logits.square().sum().backward()
    wanted = gradients()
    with stack.rows(lengths):
        logits = model(ids).logits
        sum(logits[place, :length].square().sum() for place, length in enumerate(lengths)).backward()
    found = gradients()
    assert wanted["model.relative_bias.table.weight"].norm() > 0
    for name, value in wanted.items():
        assert float((found[name] - value).norm() / value.norm()) < 1e-5, name


def test_only_the_last_position_is_computed_where_only_it_is_read() -> None:
    """The last layer for a row's last position alone gives what it gives for all."""
    torch.manual_seed(0)
    config = make_config({"model_type": "lamda", **SMALL}, {"num_labels": 3}, None)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    torch.nn.init.normal_(model.model.relative_bias.table.weight)
    stack, lengths = Stack(model), [9, 4, 17]
    ids = torch.zeros(3, 17, dtype=torch.long)
    for place, length in enumerate(lengths):
        ids[place, :length] = torch.randint(1, 60, (length,), generator=torch.Generator().manual_seed(length))
    batch = Batch({"input_ids": ids}, {}, {}, lengths)
    with torch.no_grad():
        assert stack.find_read(lambda batch: model(**batch.inputs).logits.sum(), batch) == "last"
        wanted = model(ids).logits
        with stack.rows(lengths):
            assert torch.allclose(model(ids).logits, wanted, atol=1e-6)


def test_weights_start_as_stated() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        make_config({"model_type": "lamda", **find_preset("lamda-nano").options}, {}, None)
    )
    for name, value in model.named_parameters():
        if "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            residual = "o_proj" in name or "down_proj" in name
            expected = 0.02 / math.sqrt(2 * 4) if residual else 0.02
            assert float(value.detach().std()) == pytest.approx(expected, rel=0.15 if "table" in name else 0.03), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_impossible_buckets_are_one_sentence() -> None:
    with pytest.raises(UserError, match="relative_attention_num_buckets 40 must be at least 2"):
        make_config({"model_type": "lamda", **SMALL, "relative_attention_num_buckets": 40}, {}, None)


def test_a_trained_run_opens_with_plain_transformers_and_trains_on(text_file: Path, tmp_path: Path) -> None:
    """After `import burnish.models.own`; tokens, logits and answers are the run's. Its lowest layers are computed once."""
    given = {"train": {"length": "6 steps", "batch": 4, "sequence": 32, "precision": "fp32"}, "data": str(text_file)}
    run = burnish.train(
        "text-generation",
        terminal=QUIET,
        model={"preset": "lamda-nano", "vocab_size": 300},
        run={"dir": str(tmp_path / "run")},
        **given,
    )
    assert run.predict("The old king", max_tokens=5)["generated"]
    folder = run.path / "model"
    assert "\nimport burnish.models.own\nfrom transformers" in (run.path / "card.md").read_text()
    code = (
        "import burnish.models.own\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"ids = AutoTokenizer.from_pretrained({str(folder)!r})('The old king', return_tensors='pt')['input_ids']\n"
        "print(type(model).__name__, float(model(ids).logits.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.split()
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("The old king", return_tensors="pt")["input_ids"]
    assert name == "LamdaForCausalLM" and float(total) == pytest.approx(
        float(model(ids).logits.detach().sum()), rel=1e-4
    )

    onward = burnish.train(
        "text-generation",
        terminal=QUIET,
        model={"path": str(run.path)},
        freeze={"layers": 2},
        run={"dir": str(tmp_path / "onward")},
        **given,
    )
    assert onward.folder.read_json(onward.folder.plan)["arrangement"] == "packed"
    assert open_model(str(folder)).task.name == "text-generation"
