"""Loading: safetensors, no remote code, no silent mismatch; `.bin` weights converted in a child that reads tensors only."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.errors import UserError
from burnish.models.load import build, make_config
from burnish.models.source import model_folder, read_config, with_safetensors


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


def _build(folder: Path, **options):
    return build("AutoModelForSequenceClassification", make_config(folder, options, None), folder)


def test_says_what_was_loaded_and_what_is_new(copy: Path) -> None:
    _, loaded = _build(copy)
    assert loaded.new == ["classifier.bias", "classifier.weight"] and loaded.left_out == []
    assert loaded.loaded == len(load_file(copy / "model.safetensors"))


def test_says_what_was_left_out(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "cls.predictions.bias": torch.zeros(3)}, copy / "model.safetensors", {"format": "pt"})
    _, loaded = _build(copy)
    assert loaded.left_out == ["cls.predictions.bias"]
    assert any("left out: cls.predictions.bias" in line for line in loaded.lines())


def test_a_hole_in_the_backbone_is_an_error(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit.*encoder\.layer\.1\.output\.dense\.weight"):
        _build(copy)


def test_another_shape_in_the_backbone_is_an_error(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 99}))
    with pytest.raises(UserError, match="of another shape"):
        _build(copy)


def test_a_new_number_of_labels_makes_a_new_head(copy: Path, tmp_path: Path) -> None:
    model, _ = _build(copy, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    _, loaded = _build(tmp_path / "two", num_labels=5)
    assert loaded.new == ["classifier.bias", "classifier.weight"]


def test_damaged_weights(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        _build(copy)


def test_bin_weights_are_converted_once(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    model, loaded = _build(copy)
    assert loaded.new == ["classifier.bias", "classifier.weight"]
    assert torch.equal(model.bert.pooler.dense.weight, weights["pooler.dense.weight"])
    first = with_safetensors(copy)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert with_safetensors(copy) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp


class _Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("variable", ["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_hostile_bin_weights_run_nothing(
    copy: Path, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    (copy / "model.safetensors").unlink()
    with open(copy / "pytorch_model.bin", "wb") as handle:
        pickle.dump({"w": _Payload(tmp_path / "canary")}, handle)
    with pytest.raises(UserError, match="only plain tensors"):
        _build(copy)
    assert not (tmp_path / "canary").exists()


def test_remote_code_is_never_run_nor_asked_for(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    (copy / "evil.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")
    config = json.loads((copy / "config.json").read_text())
    hostile = {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "trust_remote_code": True}
    (copy / "config.json").write_text(json.dumps({**config, **hostile, "_attn_implementation_internal": "evil/kernel"}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    scrubbed = read_config(copy)
    assert not {*hostile, "_attn_implementation_internal"} & set(scrubbed)
    _build(copy)
    (copy / "config.json").write_text(json.dumps({**config, **hostile, "model_type": "evil"}))
    with pytest.raises(UserError, match="never runs code that comes with a model"):
        _build(copy)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("org/not-in-the-cache", "Hub model cannot be had"),
        ("not a valid id!", "Hub model cannot be had"),
    ],
)
def test_models_that_cannot_be_had(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_folder(name, None)


def test_the_nearest_folder_is_named_where_a_run_is_mistyped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs/NAME` may be a Hub id too."""
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^runs/reveiws: no such folder.*Did you mean 'reviews'"):
        model_folder("runs/reveiws", None)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        model_folder(str(tmp_path), None)


def test_an_encoder_has_no_decoder_head(copy: Path) -> None:
    config = make_config({"model_type": "vit"}, {}, None)
    with pytest.raises(UserError, match="has no AutoModelForCausalLM"):
        build("AutoModelForCausalLM", config, None)
