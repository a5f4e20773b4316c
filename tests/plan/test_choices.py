"""Every automatic choice goes both ways, gives its reason, and is shown before a run and when it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish.api import resolve
from burnish.cli import main
from burnish.engine import checkpoint
from burnish.errors import UserError
from burnish.models.load import build, make_config
from burnish.plan import derive
from burnish.terminal import Terminal
from helpers import session_of, trained
from scripts import families


def config_of(**settings: Any) -> Any:
    return resolve("text-generation", {"preset": "gpt2-nano", **settings})[0]


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_precision(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "has_fast_bf16", lambda device: fast)
    precision, why = derive.choose_precision(config_of(), "cpu")
    assert precision == ("bf16" if fast else "fp32")
    assert why.startswith(
        "this cpu multiplies bfloat16 faster" if fast else "bfloat16 would be emulated and slower on this cpu"
    )
    assert derive.choose_precision(config_of(train={"precision": "fp32"}), "cpu") == ("fp32", "")
    asked, warning = derive.choose_precision(config_of(train={"precision": "bf16"}), "cpu")
    assert asked == "bf16" and ("slower than fp32" in warning) is not fast  # a wish is followed, its price is said


@pytest.mark.parametrize("refuses", [True, False])
def test_a_model_that_refuses_bf16_trains_in_fp32(
    refuses: bool, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried on the built model, whatever the machine."""
    from transformers import GPT2LMHeadModel

    monkeypatch.setattr(derive, "has_fast_bf16", lambda device: True)
    real = GPT2LMHeadModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if refuses and self.transformer.wte.weight.dtype == torch.bfloat16:
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    plan = session_of(
        "text-generation", tmp_path / "run", model={"preset": "gpt2-nano", "vocab_size": 300}, data=str(text_file),
        train={"sequence": 24},
    ).plan  # fmt: skip
    assert plan.precision == ("fp32" if refuses else "bf16")
    assert ("does not compute in bfloat16: expected scalar type" in plan.why["precision"]) is refuses


# -- compile -----------------------------------------------------------------------------------------------------------


def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive.shutil, "which", lambda name: f"/usr/bin/{name}")
    short, long = (derive.choose_compile(config_of(), "cpu", "bf16", flops) for flops in (1e12, 1e16))
    assert short[0] is False and long[0] is True
    for _, why in (short, long):
        assert "of computing, of which it would save" in why and "compiling takes about" in why
    assert derive.choose_compile(config_of(train={"compile": "on"}), "cpu", "bf16", 1.0) == (True, "")
    assert derive.choose_compile(config_of(train={"compile": "off"}), "cpu", "bf16", 1e20) == (False, "")
    assert derive.choose_compile(config_of(), "cuda", "bf16", 1e17)[0] is False
    assert derive.choose_compile(config_of(), "cuda:0", "bf16", 1e19)[0] is True
    assert derive.choose_compile(config_of(), "mps", "bf16", 1e30) == (False, "not tried on mps")
    monkeypatch.setattr(derive.shutil, "which", lambda name: None)
    assert derive.choose_compile(config_of(), "cpu", "bf16", 1e16) == (False, "this machine has no C++ compiler")


def test_graphs_are_for_a_gpu_in_bf16() -> None:
    graphs = config_of(train={"compile": "graphs"})
    assert derive.choose_compile(graphs, "cuda", "bf16", 1.0) == (True, "")
    for device, precision in (("cpu", "bf16"), ("cuda", "fp32")):
        with pytest.raises(UserError, match=f"recorded on an NVIDIA GPU in bf16, and this run computes on {device}"):
            derive.choose_compile(graphs, device, precision, 1.0)


def test_compile_turns_where_it_saves_twice_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive.shutil, "which", lambda name: name)
    for device, (rate, cost, gain) in derive.COMPILES.items():
        turn = 2 * cost / (1 - 1 / gain) * rate
        assert [derive.choose_compile(config_of(), device, "bf16", turn * part)[0] for part in (0.99, 1.01)] == [
            False,
            True,
        ]


def test_operations_of_a_position_by_hand() -> None:
    """Two layers of width 8: four matrices of 8 x 8 and two of 8 x 32 each, an output layer of 300, two positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    layers = 2 * (4 * 8 * 8 + 2 * 8 * 32)
    attention = 12 * 2 * 8 * 2
    assert derive.flops_per_position(model, model.config, 2) == 6 * (layers + 300 * 8) + attention
    for layer in model.transformer.h:
        layer.requires_grad_(False)
    assert derive.flops_per_position(model, model.config, 2) == 2 * layers + 6 * 300 * 8 + attention


# -- memory: micro-batch and recomputation (how they shrink: tests/engine/test_memory.py) ------------------------------


@pytest.mark.parametrize(("recompute", "rows"), [("none", 8), ("none", 5), ("selective", 4), ("full", 4), ("full", 1)])
def test_micro_batch_and_recomputation(
    recompute: str, rows: int, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of a run on a machine that has memory for so many rows, and that it is what is then computed."""
    monkeypatch.setattr("burnish.plan.make.refuse_what_cannot_fit", lambda *arguments: None)

    def session_with(free: float) -> Any:
        monkeypatch.setattr(derive, "_free_memory", lambda device: int(free))
        return session_of(
            "text-generation", tmp_path / "run", model={"preset": "gpt2-nano", "vocab_size": 300}, data=str(text_file),
            train={"sequence": 256, "batch": 8, "precision": "fp32"},
        )  # fmt: skip

    plenty = session_with(1e12)
    layers, width = plenty.model_config.n_layer, plenty.model_config.n_embd
    numbers = {"none": 34 * layers, "selective": 18 * layers, "full": layers + 34}[recompute]
    session = session_with(sum(plenty.plan.memory.values()) + 2 * (rows + 0.1) * 256 * width * 4 * numbers)
    plan = session.plan
    assert (plan.recompute, plan.micro_batch) == (recompute, rows)
    assert plan.why["recompute"].startswith("activations fit" if recompute == "none" else "more activations would not")
    assert plan.why["micro_batch"].startswith("the whole batch fits" if rows == 8 else "about ")
    assert ("checkpoint" in repr(session.fit.stack.inner[0])) is (recompute != "none")
    session.join()
    assert session.job.loader.micro_batch == rows


# -- arrangement -------------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(tiny_bert: Path, tmp_path: Path) -> Callable[[str], str]:
    """A folder with a small model of a family and the tokenizer of the tiny encoder."""

    def make(family: str) -> str:
        folder = tmp_path / family
        torch.manual_seed(0)
        config = make_config({"model_type": family, **families.FAMILIES[family]}, {"num_labels": 2}, 0.0)
        build("AutoModelForSequenceClassification", config, None)[0].save_pretrained(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_bert / name, folder / name)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("family", "packing", "arrangement", "why"),
    [
        ("distilbert", "auto", "packed", "end to end without padding; tried: each row comes out as it does alone"),
        (
            "mpnet",
            "auto",
            "padded",
            "end to end this model does not take them: its layers take masks of their own making",
        ),
        ("distilbert", "off", "padded", "rows of like length together; train.packing is off"),
    ],
)
def test_arrangement(
    classifier: Callable[[str], str],
    reviews_file: Path,
    tmp_path: Path,
    family: str,
    packing: str,
    arrangement: str,
    why: str,
) -> None:
    session = session_of(
        "text-classification", tmp_path / "run", model=classifier(family), data=str(reviews_file),
        train={"packing": packing, "precision": "fp32"},
    )  # fmt: skip
    assert session.plan.arrangement == arrangement
    assert why in session.plan.why["arrangement"]
    session.join()
    assert session.job.loader.padded is (arrangement == "padded")
    assert session.job.stack is not None and session.job.stack.packed is (arrangement == "packed")


# -- cache of frozen layers (more in tests/engine/test_prefix_cache.py) ------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "length", "line"),
    [
        ({"layers": 1}, "2 epochs", " train rows: 0% were there, "),
        ({"layers": 1}, "1 epochs", "frozen layers: not stored, since nothing is seen twice"),
        ({"layers": 1, "cache": "off"}, "2 epochs", "frozen layers: computed in every step; freeze.cache is off"),
        ({}, "2 epochs", None),
    ],
)
def test_cache(
    freeze: dict[str, Any], length: str, line: str | None, tiny_bert: Path, reviews_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    session = trained(
        "text-classification", tmp_path / "run", model=str(tiny_bert), data=str(reviews_file), freeze=freeze,
        train={"length": length, "precision": "fp32", "batch": 64}, optim={"lr": 1e-3},
    )  # fmt: skip
    said = [text.partition("  ")[2] for text in session.folder.text_log.read_text().splitlines()]
    found = [text for text in said if text.startswith("frozen layers")]
    assert len(found) == (0 if line is None else 2 if "train rows" in line else 1)
    assert line is None or line in found[0]
    if line and "train rows" in line:
        assert all(word in found[0] for word in ("stored in", "saved"))


# -- checkpoints in the background -------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [10**15, 1000])
def test_background(free: int, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "free_memory_bytes", lambda: free)
    session = trained(
        "text-generation", tmp_path / "run", model={"preset": "gpt2-nano", "vocab_size": 300}, data=str(text_file),
        train={"sequence": 24, "batch": 4, "precision": "fp32", "length": "2 steps"}, checkpoint={"every": "1 steps"},
    )  # fmt: skip
    said = session.folder.text_log.read_text()
    reason = session.job.writer.reason
    if free > 10**9:
        assert reason is None and "while the run waited" not in said
    else:
        assert "to save in the background" in str(reason)
        assert f"checkpoints were written while the run waited: {reason}" in said


# -- what a person sees ------------------------------------------------------------------------------------------------

SHOWN = ["precision", "compiled", "recomputed", "batch", "rows", "memory", "device", "exactness", "evaluation"]


def test_a_dry_run_and_the_start_show_every_choice_and_why(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train", "text-generation", "--preset", "gpt2-nano", "--model.vocab-size", "300", "--data.train", text_file,
        "--train.sequence", "24", "--train.batch", "4", "--train.length", "1 steps", "--generate.max-tokens", "2",
        "--run.dir", tmp_path / "run",
    ]  # fmt: skip
    texts = {}
    for name, more in (("dry", ["--dry-run"]), ("start", [])):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in [*arguments, *more]])
        assert ended.value.code == 0
        texts[name] = capsys.readouterr().out
        assert (tmp_path / "run").exists() is (name == "start")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    for name, text in texts.items():
        lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.split()}
        assert set(SHOWN) <= set(lines), name
        whole = " ".join(text.split())
        for choice in ("precision", "compile", "recompute", "micro_batch"):
            assert plan["why"][choice].split(",")[0] in whole, (name, choice)
        assert plan["precision"] in lines["precision"]
        assert ("yes" if plan["compile"] else "no") in lines["compiled"]
        assert plan["recompute"] in lines["recomputed"]
        assert f"{plan['micro_batch']} at once" in lines["batch"]
    assert "tried when the model is built" in texts["dry"]
    assert "packed" in texts["start"] and plan["why"]["arrangement"].split(";")[0] in " ".join(texts["start"].split())


def test_a_continued_run_keeps_its_choices(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine would choose otherwise; the run goes on as it began."""
    settings: dict[str, Any] = {
        "model": {"preset": "gpt2-nano", "vocab_size": 300},
        "data": str(text_file),
        "train": {"sequence": 24, "batch": 4, "length": "2 steps"},
    }
    monkeypatch.setattr(derive, "has_fast_bf16", lambda device: True)
    first = trained("text-generation", tmp_path / "run", **settings).plan.to_json()
    monkeypatch.setattr(derive, "has_fast_bf16", lambda device: False)
    monkeypatch.setattr(derive, "_free_memory", lambda device: 3 * 10**7)
    again = session_of("text-generation", tmp_path / "run", **settings)
    assert again.resuming and again.plan.to_json() == first and first["precision"] == "bf16"
    other = burnish.train(
        "text-generation", dry_run=True, terminal=Terminal(quiet=True), run={"dir": str(tmp_path / "other")}, **settings
    )
    assert isinstance(other, dict) and other["precision"] == "fp32"
