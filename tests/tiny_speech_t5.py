"""A SpeechT5 of the published form, of 79,000 new weights, and a vocoder for it; folders as the Hub has them."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    SpeechT5Config,
    SpeechT5FeatureExtractor,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SpeechT5Tokenizer,
)

SPEAKER = 8


def tiny_speech_t5(folder: Path, letters: str = "abcdefghij .,?'") -> Path:
    """Write the model with its tokenizer of characters and its feature extractor, and return the folder."""
    folder.mkdir(parents=True)
    known = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([letters, " ".join(letters)] * 20),
        model_writer=known,
        model_type="char",
        vocab_size=len(letters) + 6,
        hard_vocab_limit=False,
        character_coverage=1.0,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    (folder / "spm_char.model").write_bytes(known.getvalue())
    tokenizer = SpeechT5Tokenizer(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    SpeechT5FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        speech_decoder_prenet_units=24,
        speech_decoder_postnet_units=24,
        speech_decoder_postnet_layers=3,
        speaker_embedding_dim=SPEAKER,
        conv_dim=(16,) * 7,
        max_text_positions=60,
        max_speech_positions=200,
    )
    model = SpeechT5ForTextToSpeech(config)
    for module in model.modules():  # statistics and scales as training would leave them: each row is another
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    model.save_pretrained(folder)
    return folder


def tiny_vocoder(folder: Path, bands: int = 80) -> Path:
    """Write a HiFi-GAN of new weights and return the folder."""
    options = {"upsample_initial_channel": 16, "resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1,),)}
    torch.manual_seed(0)
    SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=bands, **options)).save_pretrained(folder)
    return folder
