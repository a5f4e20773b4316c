"""Tokenizers: the model's own, or a byte-level BPE trained on the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import UserError
from burnish.run import save_whole

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")
END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer stored in a folder.

    Raises:
        UserError: the folder holds none, or one that needs remote code.
    """
    from transformers import AutoTokenizer

    if not holds_tokenizer(folder):
        # transformers would make an empty one by the model's type, which knows no word
        raise UserError(f"{folder}: holds no tokenizer ({', '.join(_FILES)}). Give --model.tokenizer.")
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: holds no tokenizer that can be read ({problem}). Give --model.tokenizer."
        ) from error


def holds_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a file of a tokenizer."""
    return any(file for pattern in _FILES for file in folder.glob(pattern))


def train_tokenizer(
    folder: Path, texts: Iterable[str], vocab_size: int, special_tokens: Mapping[str, str] | None = None
) -> Any:
    """Train a byte-level BPE, store it in `folder` whole or not at all, and return it.

    Every string of bytes can be encoded and comes back unchanged. One special token ends a text.

    Args:
        special_tokens: others, by transformers' names (`mask_token`); with `cls_token` and `sep_token` a text is encoded
            between the two.

    Source: Radford et al. 2019, section 2.2; pre-tokenisation as in GPT-2's published code.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    special = dict(special_tokens or {})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if {"cls_token", "sep_token"} <= special.keys():
        first, last = special["cls_token"], special["sep_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **special,
    )
    if "mask_token" in special:  # the word that it hides had the blank before it, too
        mask = AddedToken(special["mask_token"], lstrip=True, special=True, normalized=False)
        wrapped.add_special_tokens({"mask_token": mask})
    try:
        save_whole(wrapped, folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: the tokenizer cannot be kept there ({error.strerror}). Set BURNISH_CACHE to a folder that can "
            "be written and has room."
        ) from error
    return load_tokenizer(folder)


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills rows up, of any tokenizer; decoders without one of their own find a text's end by it."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in ids if number is not None)


def gives_places(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not say which characters its tokens stand for.

    Raises:
        UserError: it does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "model.tokenizer: it does not tell where its tokens stand in a text. Give a folder with a tokenizer.json."
        )


def filled_up(rows: Sequence[np.ndarray], value: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of ids as one array [rows, longest], filled up on the right, and which places are real.

    Args:
        multiple: the length is one of this number, so that few different ones occur: kernels are made for each.

    >>> ids, real = filled_up([np.array([5, 6]), np.array([7])], 0)
    >>> ids.tolist(), real.tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])
    """
    lengths = np.array([len(row) for row in rows])
    real = np.arange(-(-lengths.max() // multiple) * multiple) < lengths[:, None]
    ids = np.full(real.shape, value, np.int64)
    ids[real] = np.concatenate(rows)
    return ids, real


def encode_texts(
    tokenizer: Any, texts: Sequence[str], sequence: int | None = None, pairs: Sequence[str] | None = None
) -> list[dict[str, np.ndarray]]:
    """Return `input_ids` of texts with the tokenizer's special tokens, cut to `sequence`.

    Args:
        pairs: a second text for each; where the model tells the two apart, `token_type_ids` come with them.

    Raises:
        UserError: nothing but special tokens would be left of a text.
    """
    if not texts:
        return []
    least = tokenizer.num_special_tokens_to_add(pair=pairs is not None) + (1 if pairs is None else 2)
    if sequence is not None and sequence < least:
        raise UserError(f"train.sequence: {sequence} leaves no room for text; give at least {least + 7}.")
    cut: dict[str, Any] = {"truncation": True, "max_length": sequence} if sequence else {}
    given = (list(texts),) if pairs is None else (list(texts), list(pairs))
    types = pairs is not None and "token_type_ids" in tokenizer.model_input_names
    found = tokenizer(*given, **cut, return_attention_mask=False, return_token_type_ids=types, verbose=False)
    names = ["input_ids", *(["token_type_ids"] if types else [])]
    return [dict(zip(names, map(np.array, row), strict=True)) for row in zip(*(found[n] for n in names), strict=True)]


def fill_up(
    tokenizer: Any, examples: Sequence[Mapping[str, np.ndarray]], multiple: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return `input_ids`, `attention_mask` and, where there are, `token_type_ids` of a batch, and which places are real."""
    ids, real = filled_up([example["input_ids"] for example in examples], pad_id(tokenizer), multiple)
    inputs = {"input_ids": ids, "attention_mask": real.astype(np.int64)}
    if "token_type_ids" in examples[0]:
        inputs["token_type_ids"] = filled_up([example["token_type_ids"] for example in examples], 0, multiple)[0]
    return inputs, real


def content_of(tokenizer: Any) -> str:
    """Return a text that is the same for tokenizers that encode alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    known = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return f"{known}{tokenizer.chat_template or ''}"
