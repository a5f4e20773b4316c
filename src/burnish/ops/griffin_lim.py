"""From a spectrum back to samples, by finding phases that fit."""

from __future__ import annotations

import torch

#: Rounds by which magnitudes are found that have the given mels, and phases that fit those.
_MAGNITUDE_ROUNDS, _PHASE_ROUNDS = 50, 60
#: How far each phase goes on in the direction of the last change. Source: Perraudin et al. 2013, section 4.
_MOMENTUM = 0.99


def magnitudes_of(mels: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Return magnitudes [frequencies, frames] whose mels are near the given ones, none of them negative.

    Args:
        mels: not their logarithm, [mels, frames].
        filters: [frequencies, mels].

    Source: Lee and Seung 2001, theorem 1 (multiplicative updates).

    >>> filters = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    >>> found = magnitudes_of(torch.tensor([[2.0], [3.0]]), filters)
    >>> (filters.T @ found).round(decimals=3).flatten().tolist()
    [2.0, 3.0]
    """
    wanted = filters @ mels
    found = wanted.clone()
    for _ in range(_MAGNITUDE_ROUNDS):
        found *= wanted / (filters @ (filters.T @ found)).clamp_min(1e-12)
    return found


def griffin_lim(magnitudes: torch.Tensor, window: torch.Tensor, hop: int, seed: int) -> torch.Tensor:
    """Return samples whose short-time spectra have nearly these magnitudes, a function of them and the seed.

    Args:
        magnitudes: [frequencies, frames].
        window: of the transform, as long as it is.
        hop: samples between frames, which lie around their middle.
        seed: of the phases at the beginning.

    Returns:
        float32 [(frames - 1) * hop].

    Source: Griffin and Lim 1984, section III; Perraudin et al. 2013, algorithm 2.
    """
    size, frames = len(window), magnitudes.shape[1]
    if frames <= size // hop:  # fewer than a window has are followed by silence
        longer = torch.nn.functional.pad(magnitudes, (0, size // hop + 1 - frames))
        return griffin_lim(longer, window, hop, seed)[: (frames - 1) * hop]
    draw = torch.Generator().manual_seed(seed)
    angles = torch.rand(magnitudes.shape, generator=draw).to(magnitudes.device) * (2 * torch.pi)
    phases, before = torch.polar(torch.ones_like(angles), angles), None
    for _ in range(_PHASE_ROUNDS):
        samples = torch.istft(magnitudes * phases, size, hop, window=window)
        found = torch.stft(samples, size, hop, window=window, return_complex=True)
        ahead = found if before is None else found + _MOMENTUM * (found - before)
        phases, before = ahead / ahead.abs().clamp_min(1e-12), found
    return torch.istft(magnitudes * phases, size, hop, window=window)
