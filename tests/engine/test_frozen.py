"""Frozen models that a task asks: asked once, kept, the same after a stop, and right whatever trains."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.api import evaluate
from burnish.engine import checkpoint
from burnish.engine.frozen import Asked
from burnish.engine.prefix_cache import PrefixCache
from burnish.errors import UserError
from burnish.terminal import Terminal
from helpers import apart, preferences, result_of, session_of, trained, weights_of

TASK = "preference-tuning"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def base(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model: a folder with weights and tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    session = session_of(TASK, folder / "run", **settings_of(pairs_file, preset="gpt2-nano"), task={"loss": "simpo"})
    assert session.fit is not None
    session.fit.model.save_pretrained(str(folder / "model"))
    session.task.tokenizer.save_pretrained(str(folder / "model"))
    return folder / "model"


def settings_of(pairs: Path, **model: Any) -> dict[str, Any]:
    return {
        "model": {**model, **({"vocab_size": 300} if "preset" in model else {})},
        "data": {"train": str(pairs), "prompt": "prompt"},
        "train": {"batch": 8, "sequence": 64, "precision": "fp32", "length": "12 steps", "evaluate_every": "6 steps"},
        "optim": {"lr": 1e-3},
        "checkpoint": {"every": "4 steps", "keep": 99},
        "generate": {"max_tokens": 2},
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows frozen models were asked about, each time that answers were written."""
    counts: list[int] = []
    write = PrefixCache.write

    def counting(self: PrefixCache, rows: Any) -> None:
        found = list(rows)
        counts.append(len(found))
        write(self, iter(found))

    monkeypatch.setattr(PrefixCache, "write", counting)
    return counts


def train(folder: Path, settings: dict[str, Any], **more: Any) -> burnish.Run:
    run = burnish.train(TASK, terminal=Terminal(quiet=True), **settings, run={"dir": str(folder)}, **more)
    assert isinstance(run, burnish.Run)
    return run


@pytest.fixture(scope="module")
def llama(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model whose layers have a form of 4 bits."""
    folder = tmp_path_factory.mktemp("llama")
    session = session_of(TASK, folder / "run", **settings_of(pairs_file, preset="llama3-nano"), task={"loss": "simpo"})
    assert session.fit is not None
    session.fit.model.save_pretrained(str(folder / "model"))
    session.task.tokenizer.save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.mark.parametrize("adapter", ["none", "lora", "dora", "qlora"])
def test_the_reference_is_the_model_as_it_begins(
    pairs_file: Path, base: Path, llama: Path, tmp_path: Path, adapter: str
) -> None:
    """Also with adapters and layers of 4 bits, and on the rows of every split: the first loss is that of no preference."""
    settings = settings_of(pairs_file, path=str(llama if adapter == "qlora" else base))
    session = session_of(TASK, tmp_path / "run", **settings, adapter={"kind": adapter})
    assert session.fit is not None
    for store in session.stores.values():
        for row in range(0, len(store), 7):
            batch = session.task.collate([store[row]])
            with torch.no_grad():
                now = session.task.remember(session.fit.model, batch)[0].numpy()
                loss = session.task.loss(session.fit.model, batch)["loss"]
            assert np.allclose(store[row]["remembered"], now, rtol=1e-5) and (now < 0).all()
            assert float(loss) == pytest.approx(math.log(2), rel=1e-4)


def test_answers_are_kept_for_other_settings_and_asked_again_for_new_rows(
    pairs_file: Path, base: Path, tmp_path: Path, asked: list[int]
) -> None:
    settings = settings_of(pairs_file, path=str(base))
    session = session_of(TASK, tmp_path / "one", **settings)
    assert len(asked) == 2 and sum(asked) == 100  # training and validation rows, each once
    session.build()  # as at the end of a run of several ranks
    assert len(asked) == 2
    session_of(TASK, tmp_path / "two", **settings, task={"beta": 0.5, "loss": "ipo"}, freeze={"layers": 1})
    assert len(asked) == 2
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in [*preferences(100), *preferences(5, seed=3)]))
    session_of(TASK, tmp_path / "three", **{**settings, "data": {"train": str(more), "prompt": "prompt"}})
    assert sum(asked) == 105
    session_of(TASK, tmp_path / "four", **settings, task={"reference": str(base)})
    assert sum(asked) == 105  # the same model, by its weights
    other = settings_of(pairs_file, preset="gpt2-nano")
    session_of(TASK, tmp_path / "five", **{**other, "run": {"dir": str(tmp_path / "five"), "seed": 1}})
    assert sum(asked) == 205


def test_damaged_answers_are_asked_for_again(pairs_file: Path, base: Path, tmp_path: Path, cache: Path) -> None:
    settings = settings_of(pairs_file, path=str(base))
    wanted = session_of(TASK, tmp_path / "one", **settings).stores["train"]
    kept = np.concatenate([wanted[row]["remembered"] for row in range(len(wanted))])
    for values in cache.glob("frozen/*/part-*/values.bin"):
        content = bytearray(values.read_bytes())
        content[5] ^= 0xFF
        values.write_bytes(content)
    found = session_of(TASK, tmp_path / "two", **settings).stores["train"]
    again = np.concatenate([found[row]["remembered"] for row in range(len(found))])
    assert np.allclose(again, kept, rtol=1e-5)


@pytest.mark.parametrize(("adapter", "forget"), [("none", True), ("lora", False)])
def test_a_stopped_run_goes_on_bit_for_bit(
    pairs_file: Path, base: Path, tmp_path: Path, cache: Path, adapter: str, forget: bool
) -> None:
    """Also when the cache is lost meanwhile: the reference is the first model, not the one that was trained so far."""
    settings = {**settings_of(pairs_file, path=str(base)), "adapter": {"kind": adapter}}
    whole = train(tmp_path / "whole", settings)
    stopped = train(tmp_path / "stopped", settings)
    folder = stopped.path / "checkpoints"
    for step in checkpoint.steps(folder):
        if step > 8:
            checkpoint.retire(checkpoint.path_of(folder, step))
    stopped.folder.metrics.unlink()
    if forget:
        shutil.rmtree(cache / "frozen")
    assert result_of(train(tmp_path / "stopped", settings).path) == result_of(whole.path)


def test_a_wrong_reference_is_seen(
    pairs_file: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of the trained model instead of the first one's would pass no test above."""
    settings = settings_of(pairs_file, path=str(base))
    run = train(tmp_path / "run", settings)
    session = session_of(TASK, tmp_path / "one", **settings)
    store, right = session.stores["train"], session.stores["train"][0]["remembered"]
    later = session_of(TASK, tmp_path / "two", **settings, task={"reference": str(run.path)}).stores["train"]
    assert not np.allclose(later[0]["remembered"], right, rtol=1e-2) and len(store) == len(later)


def test_a_changed_frozen_model_is_refused_on_resume(pairs_file: Path, base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "teacher"
    shutil.copytree(base, moved)
    settings = {**settings_of(pairs_file, path=str(base)), "task": {"reference": str(moved)}}
    session = trained(TASK, tmp_path / "run", **settings)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(moved))
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.01)
    model.save_pretrained(str(moved))
    with pytest.raises(UserError, match=r"^task.reference: the frozen model has changed since this run began"):
        session_of(TASK, session.folder.path, **settings)


def test_rows_of_a_frozen_prefix_are_replayed_pair_by_pair(pairs_file: Path, base: Path, tmp_path: Path) -> None:
    """An example of two rows: the cache of frozen layers holds both, and the weights come out as without it."""
    settings = settings_of(pairs_file, path=str(base))
    settings["train"]["length"] = "2 epochs"
    on, off = (
        trained(TASK, tmp_path / cache, **settings, freeze={"layers": 2, "cache": cache}) for cache in ("auto", "off")
    )
    assert on.replays.found and not off.replays.found
    assert apart(weights_of(on), weights_of(off)) <= 1e-6


def test_evaluation_asks_about_new_rows(pairs_file: Path, base: Path, tmp_path: Path, cache: Path) -> None:
    run = train(tmp_path / "run", settings_of(pairs_file, path=str(base)))
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in preferences(12, seed=9)))
    found = run.evaluate(str(new))["metrics"]
    shutil.rmtree(cache)
    assert run.evaluate(str(new))["metrics"] == pytest.approx(found, rel=1e-6)
    assert found["margin"] > 0
    with pytest.raises(
        UserError, match=r"^task.reference: only a run knows the model it began with; give --task.reference"
    ):
        evaluate(
            str(run.path / "model"),
            task=TASK,
            data={"test": str(new), "prompt": "prompt"},
            terminal=Terminal(quiet=True),
        )


def test_what_cannot_be_asked_is_refused(
    pairs_file: Path, base: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(pairs_file, path=str(base))
    with pytest.raises(UserError, match=r"^task.reference: .*nowhere: no such folder"):
        session_of(TASK, tmp_path / "run", **settings, task={"reference": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"^task.reference: .*tiny-bert has other tokens than the run's model"):
        session_of(TASK, tmp_path / "run", **settings, task={"reference": str(tiny_bert)})
    headless = tmp_path / "headless"
    shutil.copytree(base, headless)
    from transformers import AutoModel

    AutoModel.from_pretrained(str(base)).save_pretrained(str(headless))
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"^task.reference: .*headless has no trained layer for preference-tuning"):
        session_of(TASK, tmp_path / "run", **settings, task={"reference": str(headless)})
    monkeypatch.setattr("burnish.engine.prefix_cache.free_disk_bytes", lambda folder: 10)
    with pytest.raises(UserError, match=r"^task.reference: what the frozen model answers cannot be kept, since "):
        session_of(TASK, tmp_path / "run", **{**settings, "task": {"reference": str(base)}})


def test_padded_answers_are_those_of_rows_end_to_end(pairs_file: Path, base: Path, tmp_path: Path) -> None:
    session = session_of(TASK, tmp_path / "run", **settings_of(pairs_file, path=str(base)))
    found = session.task.frozen_model()
    assert found is not None and session.fit is not None
    answers = []
    for packing in ("auto", "off"):
        model = session._first_model()[0]
        frozen = Asked(model, found, session.task, session.stores["train"], "cpu")
        assert frozen.settle(packing, "fp32") == "fp32"
        assert frozen.stack is not None and frozen.stack.packed == (packing == "auto")
        answers.append(torch.cat(list(frozen.answer(frozen.together))))
    assert torch.allclose(*answers, rtol=1e-5)
