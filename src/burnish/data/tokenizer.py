"""Tokenizers: the model's own, or a byte-level BPE trained on the data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from burnish.errors import UserError
from burnish.run import remove_folder, replace_folder

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")
END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer stored in a folder.

    Raises:
        UserError: the folder holds none, or one that needs remote code.
    """
    from transformers import AutoTokenizer

    if not any(file for pattern in _FILES for file in folder.glob(pattern)):
        # transformers would make an empty one by the model's type, which knows no word
        raise UserError(f"{folder}: holds no tokenizer ({', '.join(_FILES)}). Give --model.tokenizer.")
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: holds no tokenizer that can be read ({problem}). Give --model.tokenizer."
        ) from error


def train_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE, store it in `folder` whole or not at all, and return it.

    Every string of bytes can be encoded and comes back unchanged. The one special token ends a text.
    Source: Radford et al. 2019, section 2.2; pre-tokenisation as in GPT-2's published code.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    store_tokenizer(wrapped, folder)
    return load_tokenizer(folder)


def store_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer to `folder`, whole or not at all."""
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    remove_folder(temporary)
    temporary.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(str(temporary))
        replace_folder(temporary, folder)
    finally:
        remove_folder(temporary)


def content_of(tokenizer: Any) -> str:
    """Return a text that is the same for tokenizers that encode alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
