"""The load-balancing loss of experts: transformers' own for a row alone, blind to padding and to other rows, and it balances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

import burnish
from burnish.errors import UserError
from burnish.models.load import build, make_config
from burnish.models.router import Routed, coefficient, routers
from burnish.models.scratch import find_preset
from burnish.models.stack import Stack
from burnish.plan.derive import flops_per_position, limits_of_exactness
from burnish.terminal import Terminal
from helpers import session_of

QUIET = Terminal(quiet=True)
LENGTHS = [7, 3, 24, 12]


def model_of(kind: str = "qwen3_moe", **options: Any) -> Any:
    torch.manual_seed(0)
    given = {**find_preset("qwen3-moe-nano").options, "vocab_size": 60, "router_aux_loss_coef": 0.5, **options}
    if kind == "mixtral":
        given = {
            "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5,
        }  # fmt: skip
    model = build("AutoModelForCausalLM", make_config({"model_type": kind, **given}, {}, None), None)[0].eval()
    with torch.no_grad():
        for router in routers(model):
            router.weight.normal_(0, 1)  # routers that prefer some experts
    return model


def ids() -> torch.Tensor:
    return torch.randint(1, 60, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_transformers_loss_of_each_row_alone(kind: str, packed: bool) -> None:
    """End to end, where idle positions follow the rows, and padded; loss and gradient of every router."""
    model, rows = model_of(kind), ids()
    total = 0.0
    for row, length in zip(rows, LENGTHS, strict=True):
        found = model(row[None, :length], output_router_logits=True)
        aux = load_balancing_loss_func(found.router_logits, found.router_logits[0].shape[-1], 2)
        total = total + 0.5 * aux
        assert float(aux.detach()) == pytest.approx(float(found.aux_loss.detach()), rel=1e-6)
    wanted = torch.autograd.grad(total, [router.weight for router in routers(model)])
    with Routed(model).seen() as routed:
        if packed:
            with Stack(model).rows(LENGTHS):
                model(rows)
                loss = routed.loss(LENGTHS)
        else:
            model(rows)
            loss = routed.loss(LENGTHS)
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, [r.weight for r in routers(model)]), wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_a_loss_over_the_whole_batch_is_another() -> None:
    """What the row-by-row loss avoids: transformers' loss of all rows is not the mean of theirs."""
    model, rows = model_of(), ids()
    whole = model(rows, output_router_logits=True).aux_loss
    each = [model(row[None], output_router_logits=True).aux_loss for row in rows]
    assert abs(float(whole) - float(sum(each)) / len(each)) > 1e-3


def test_only_routers_that_train_and_count_have_it() -> None:
    assert len(routers(model_of())) == 4
    assert routers(model_of(router_aux_loss_coef=0.0)) == []
    frozen = model_of()
    frozen.model.layers[:3].requires_grad_(False)
    assert routers(frozen) == [frozen.model.layers[3].mlp.gate]
    dense = build(
        "AutoModelForCausalLM",
        make_config({"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2}, {}, None),
        None,
    )[0]
    assert routers(dense) == [] and coefficient(dense.config) == 0


def settings(text_file: Path, folder: Path, **train: Any) -> dict[str, Any]:
    return {
        "model": {"preset": "qwen3-moe-nano", "vocab_size": 300}, "data": {"train": str(text_file)},
        "train": {"length": "25 steps", "batch": 8, "sequence": 32, "precision": "fp32", **train}, "run": {"dir": str(folder)},
    }  # fmt: skip


def test_it_trains_and_says_what_is_exact(text_file: Path, tmp_path: Path) -> None:
    run = burnish.train("text-generation", terminal=QUIET, **settings(text_file, tmp_path / "run"))
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert run.history[0]["targets"] == 8 * 32  # tokens, not rows
    session = session_of("text-generation", tmp_path / "other", **settings(text_file, tmp_path / "other"))
    assert "row by row" in limits_of_exactness(session.model_config)
    assert session.task.collate([session.stores["train"][0]]).weights == {"loss": 32.0, "router": 1.0}


def test_the_loss_balances_the_experts(text_file: Path, tmp_path: Path) -> None:
    """With a hundred times the usual weight, routers that began unequal use their experts more alike; without, less so."""
    shares = []
    for weight in (0.0, 0.1):
        session = session_of("text-generation", tmp_path / "run", **settings(text_file, tmp_path / "run"))
        model = session.fit.model
        model.config.router_aux_loss_coef = weight
        session.task.check(model)
        session.join()
        job = session.job
        from burnish.engine.step import accumulate

        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(20):
            optimizer.zero_grad()
            accumulate(model, job.stack, job.task, job.loader.step(step), "cpu", 0)
            optimizer.step()
        model.config.router_aux_loss_coef = 1.0
        batch = session.task.collate([session.stores["train"][row] for row in range(16)])
        with torch.no_grad(), Routed(model).seen() as routed:
            model(**batch.inputs)
        shares.append(float(routed.loss(batch.lengths)) / 16)
    assert 2.0 <= shares[1] < shares[0] - 0.005


def test_compiled_layers_are_refused_by_name(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.compile: a mixture of experts is not supported"):
        burnish.train(
            "text-generation", terminal=QUIET, dry_run=True, **settings(text_file, tmp_path / "run", compile="on")
        )


def test_only_the_chosen_experts_count_as_computing() -> None:
    """Of a layer's 8 experts a position passes 2."""
    model = model_of(num_hidden_layers=1)
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    rest = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    rest += model.model.embed_tokens.weight.numel()  # the output layer is tied to it
    assert flops_per_position(model, model.config, 0) == pytest.approx(6 * (experts * 2 / 8 + rest))
