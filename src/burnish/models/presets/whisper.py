"""Whisper (Radford et al. 2022), and smaller ones for two CPU cores: an encoder of spectra, a decoder that writes."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers of encoder and decoder, heads, width, seconds heard at once, tokens: written at most, and known; parameters
_SIZES = {
    "whisper-nano": (3, 2, 4, 128, 10, 256, 64, 1_308_672),
    "whisper-micro": (4, 3, 4, 256, 15, 448, 64, 6_899_456),
    "whisper-tiny": (4, 4, 6, 384, 30, 448, 51_864, 37_760_256),
    "whisper-base": (6, 6, 8, 512, 30, 448, 51_864, 72_593_408),
}


class Whisper(Family):
    """As published for English, but writing the characters of the texts it learns from; the small ones hear less at once."""

    name = "whisper"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "whisper",
                {
                    "vocab_size": known,
                    "pad_token_id": 0,
                    "decoder_start_token_id": 0,
                    "encoder_layers": encoder,
                    "decoder_layers": decoder,
                    "encoder_attention_heads": heads,
                    "decoder_attention_heads": heads,
                    "d_model": width,
                    "encoder_ffn_dim": 4 * width,
                    "decoder_ffn_dim": 4 * width,
                    "num_mel_bins": 80,
                    "max_source_positions": 50 * seconds,
                    "max_target_positions": tokens,
                },
                parameters,
                "Radford et al. 2022, table 1" if seconds == 30 else "the same architecture, smaller",
                "AutoModelForSpeechSeq2Seq",
            )
            for name, (encoder, decoder, heads, width, seconds, tokens, known, parameters) in _SIZES.items()
        ]
