"""Whether a moment of a sound is speech, by a small trained network: Silero's voice activity detector."""

from __future__ import annotations

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from burnish.errors import UserError
from burnish.run import home_path

#: Samples a second, samples of a frame, samples before it that are heard with it, and samples of a spectrum.
RATE, FRAME, _CONTEXT, _WINDOW = 16_000, 512, 64, 256
#: Probability from which speech begins, and under which it has ended.
_BEGINS, _ENDS = 0.5, 0.35


class VoiceNet(nn.Module):
    """The probability of speech in each frame of 32 ms: a spectrum, four convolutions, and a state that remembers.

    Source: Silero VAD 5, the weights of its package `silero-vad` (silero_vad_16k.safetensors).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, _WINDOW + 2, _WINDOW, stride=_WINDOW // 2, bias=False)
        self.conv1 = nn.Conv1d(_WINDOW // 2 + 1, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(
        self, frame: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the probability [rows] of frames with their context [rows, 576], and the state after them."""
        spectrum = self.stft_conv(F.pad(frame, (0, _CONTEXT), "reflect")[:, None])
        real, imaginary = spectrum.chunk(2, 1)
        hidden = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = layer(hidden).relu()
        remembered, cell = self.lstm_cell(hidden.squeeze(-1), state)
        return self.final_conv(remembered.relu()[..., None]).sigmoid().flatten(), (remembered, cell)


def load_voice(path: str) -> VoiceNet:
    """Return the network with the weights of a file.

    Raises:
        UserError: it cannot be read, or holds another model.
    """
    net = VoiceNet()
    try:
        net.load_state_dict(load_file(home_path(path)))
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(
            f"listen.voice: {path} is no silero_vad_16k.safetensors ({problem}). `python scripts/assets.py silero-vad` gets it."
        ) from error
    return net.eval()


class Voice:
    """Says of each frame of a stream whether somebody speaks in it; `net` is asked with what it remembers of those before."""

    size = FRAME

    def __init__(self, net: VoiceNet):
        self._net, self._state, self._speaks = net, None, False
        self._context = np.zeros(_CONTEXT, np.float32)

    @torch.inference_mode()
    def __call__(self, frame: np.ndarray) -> bool:
        """Return whether a frame, float32 [512], is speech."""
        given = np.concatenate([self._context, frame])
        self._context = frame[-_CONTEXT:]
        probability, self._state = self._net(torch.from_numpy(given)[None], self._state)
        self._speaks = float(probability) >= (_ENDS if self._speaks else _BEGINS)
        return self._speaks
