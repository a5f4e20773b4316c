"""Guards: signals that ask the run to stop, numbers that are no numbers, memory and disk that run out."""

from __future__ import annotations

import errno
import gc
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from burnish.env import free_disk_bytes
from burnish.errors import GuardError, Stopped
from burnish.units import readable_bytes

if TYPE_CHECKING:
    from burnish.models.precision import Weights

#: More skipped steps in a row, or in all, mean that the run itself is broken.
MOST_SKIPS_IN_A_ROW = 3
MOST_SKIPS = 0.01


class StopSignal:
    """SIGTERM and SIGINT as a wish to stop.

    Before training there is nothing to save, so the first signal ends the run at once. Inside `deferred()` it only sets
    `asked`, and the loop saves and stops at the next step. A second signal always ends at once; the last checkpoint
    stays valid.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[StopSignal]:
        """Handle the signals while the block runs. Outside the main thread Python cannot, and they are left alone."""
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals wait for the loop while the block runs."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._deferred and self.asked is None:
            self.asked = name
            return
        if self._deferred:
            raise Stopped(f"{name} again: stopped at once. The last checkpoint is valid; the same command continues.")
        raise Stopped(
            f"{name}: stopped outside of training; nothing is lost, the same command starts or continues the run."
        )


@contextmanager
def resources(folder: Path) -> Iterator[None]:
    """Turn a full disk and exhausted memory into a guard's one sentence.

    Raises:
        GuardError: naming the path and the free space, or the settings that need less memory.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise _disk_full(error.filename or folder, folder) from error
    except (RuntimeError, MemoryError, SafetensorError) as error:
        if _is_out_of_memory(error):
            raise GuardError(MEMORY) from error
        if any(f"(os error {number})" in str(error) for number in _DISK_FULL):
            raise _disk_full(folder, folder) from error
        raise


@contextmanager
def held_garbage() -> Iterator[None]:
    """Keep Python's collector from stopping steps at random: what lives already is left alone, `sweep` does the rest."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class OutOfMemory(Exception):
    """A micro-batch did not fit; raised once its tensors are freed."""


@contextmanager
def memory_watched() -> Iterator[None]:
    """Turn exhausted memory into `OutOfMemory`, which holds on to nothing.

    Raises:
        OutOfMemory: the block needed more memory than there is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames hold the tensors
    else:
        return
    raise OutOfMemory


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def make_torch_exact(threads: int) -> None:
    """Let torch compute the same each time, and in float32 where float32 is asked for."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore  (all of it is written first)
    torch.backends.cudnn.allow_tf32 = False  # products' default already; convolutions would round to 10 bits


@contextmanager
def torch_settings_restored() -> Iterator[None]:
    """Give torch's process-wide settings back as they were: a run in a notebook changes nothing for the cells after it."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore  (its module makes it up)
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore
        torch.backends.cudnn.allow_tf32 = tf32


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _disk_full(path: Path | str, folder: Path) -> GuardError:
    return GuardError(
        f"{path}: the disk is full or a limit on file size is reached ({readable_bytes(free_disk_bytes(folder))} free). "
        "Committed checkpoints are valid; free some space and give the same command again."
    )


MEMORY = (
    "Out of memory. Give a smaller --train.micro-batch (the result stays the same), a shorter --train.sequence or a "
    "smaller model; the same command then continues from the last checkpoint."
)


def describe_non_finite(
    weights: Weights, rows: Iterable[int], loss: float, norm: float, learn: Callable[[int], Any]
) -> dict[str, Any]:
    """Return what is known of a step whose loss or gradient is not finite: its rows and the first bad parameter.

    Args:
        rows: of the step.
        loss: the step's loss.
        norm: the step's gradient norm.
        learn: adds the gradient of one row alone to the weights and returns its loss.
    """
    import torch

    def bad_gradient() -> str | None:
        found = ((name, value.grad) for name, value in weights.exact.items() if value.grad is not None)
        return next((name for name, gradient in found if not torch.isfinite(gradient).all()), None)

    weight = next((name for name, value in weights.exact.items() if not torch.isfinite(value).all()), None)
    gradient = bad_gradient()
    bad = []
    for row in sorted(rows):
        weights.forget_gradients()
        if not math.isfinite(float(learn(row))) or bad_gradient():
            bad.append(row)
    weights.forget_gradients()
    return {"loss": str(loss), "grad_norm": str(norm), "rows": bad, "weight": weight, "gradient": gradient}
