"""Feature extractors, and beside them the tokenizers by which what is heard is written; always transformers' own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.data import tokenizer as text
from burnish.data.processor import FILES
from burnish.errors import UserError
from burnish.run import save_whole

#: The token that is no character: nothing new is said. What stands for the blank between words, and for a text's end.
BLANK, BETWEEN, END = "<pad>", "|", "</s>"
#: Positions that a Whisper's encoder has for a second.
_POSITIONS = 50
#: The softest mel that a model learns to say.
_SILENCE = 1e-4


def load_extractor(folder: Path) -> Any:
    """Return the feature extractor stored in a folder.

    Raises:
        UserError: the folder holds none, or one that needs remote code.
    """
    from transformers import AutoFeatureExtractor

    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder}: holds no feature extractor ({FILES[0]}), so it is not known how its model hears.")
    try:
        found = AutoFeatureExtractor.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: holds no feature extractor that can be read ({problem}).") from error
    if not hasattr(found, "sampling_rate"):
        raise UserError(f"{folder}: its model does not hear sounds ({type(found).__name__}). Take one that does.")
    return found


def make_extractor(options: Mapping[str, Any]) -> Any:
    """Return the feature extractor of a model from scratch: log-mel spectra.

    Of one that hears some are one frame, 80 numbers for each; a Whisper hears as many seconds at once as its encoder has
    positions for. One that speaks makes them as SpeechT5 and its vocoders have them, with silence not far below what is
    heard.

    Args:
        options: of the model's config.
    """
    from transformers import SeamlessM4TFeatureExtractor, SpeechT5FeatureExtractor, WhisperFeatureExtractor

    if "max_source_positions" in options:
        seconds = options["max_source_positions"] // _POSITIONS
        return WhisperFeatureExtractor(feature_size=options["num_mel_bins"], chunk_length=seconds)
    if "num_mel_bins" in options:
        return SpeechT5FeatureExtractor(num_mel_bins=options["num_mel_bins"], mel_floor=_SILENCE)
    return SeamlessM4TFeatureExtractor(stride=options["feature_projection_input_dim"] // 80)


def load_writer(folder: Path, extractor: Any) -> Any:
    """Return a feature extractor together with the tokenizer in a folder, as one of transformers' processors.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    return _together(extractor, text.load_tokenizer(folder))


def make_writer(folder: Path, characters: Sequence[str], extractor: Any, ends: bool = False) -> Any:
    """Return a feature extractor together with a tokenizer of single characters, stored in `folder` whole or not at all.

    Args:
        ends: whether a token ends a text.

    Raises:
        UserError: it cannot be written there.
    """
    from tempfile import TemporaryDirectory

    from transformers import Wav2Vec2CTCTokenizer

    end = END if ends else None
    tokens = [BLANK, "<unk>", BETWEEN, *characters, *([END] if ends else [])]
    with TemporaryDirectory() as temporary:
        vocabulary = Path(temporary) / "vocab.json"
        vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False))
        made = Wav2Vec2CTCTokenizer(
            str(vocabulary), bos_token=None, eos_token=end, pad_token=BLANK, word_delimiter_token=BETWEEN
        )
    if not folder.is_dir():
        try:
            save_whole(made, folder)
        except OSError as error:
            raise UserError(
                f"{folder.parent}: the tokenizer cannot be kept there ({error.strerror}). Set BURNISH_CACHE to a folder that "
                "can be written and has room."
            ) from error
    return load_writer(folder, extractor)


def _together(extractor: Any, tokenizer: Any) -> Any:
    import transformers

    kinds = {
        "WhisperTokenizer": "WhisperProcessor",
        "WhisperTokenizerFast": "WhisperProcessor",
        "SeamlessM4TFeatureExtractor": "Wav2Vec2BertProcessor",
        "SpeechT5Tokenizer": "SpeechT5Processor",
    }
    names = [type(part).__name__ for part in (tokenizer, extractor)]
    kind = next((kinds[name] for name in names if name in kinds), "Wav2Vec2Processor")
    return getattr(transformers, kind)(extractor, tokenizer)


def content_of(reader: Any) -> str:
    """Return a text that is the same for readers that make the same of any sound, and write the same."""
    extractor = getattr(reader, "feature_extractor", reader)
    known = repr(sorted((name, str(value)) for name, value in extractor.to_dict().items() if name != "mel_filters"))
    return known + (text.content_of(reader.tokenizer) if extractor is not reader else "")
