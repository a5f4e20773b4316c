"""FastSpeech 2 (Ren et al. 2021) for two CPU cores: characters become a spectrum all at once."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers on characters, layers on frames, width, parameters
_SIZES = {
    "fastspeech-nano": (2, 3, 128, 1_059_153),
    "fastspeech-micro": (3, 4, 192, 3_251_793),
    "fastspeech-mini": (4, 6, 256, 8_128_849),
}


class FastSpeech(Family):
    """Layers of attention and convolution, without predictors of pitch and energy and without dropout."""

    name = "fastspeech"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "fastspeech",
                {
                    "encoder_layers": encoder,
                    "num_hidden_layers": decoder,
                    "hidden_size": width,
                    "intermediate_size": 2 * width,
                    "num_mel_bins": 80,
                },
                parameters,
                "Ren et al. 2021, section 2.2, smaller and without its predictors of pitch and energy",
                "AutoModelForTextToSpectrogram",
            )
            for name, (encoder, decoder, width, parameters) in _SIZES.items()
        ]
