"""A rank that does something wrong, by $STRANGE: `python -m strange_worker` in place of `burnish.worker`."""

from __future__ import annotations

import os
import runpy
from typing import Any

LAST_WORDS = "no such device on this machine"


def averaging(real: Any) -> Any:
    """Return `accumulate` with the mean over two ranks for the sum."""

    def accumulate(model: Any, *arguments: Any) -> Any:
        loss = real(model, *arguments)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= 2
        return loss

    return accumulate


def failing(real: Any) -> Any:
    """Return `accumulate` that fails in the third step."""
    calls = []

    def accumulate(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError(LAST_WORDS)
        return real(*arguments)

    return accumulate


if __name__ == "__main__":
    if os.environ["STRANGE"] == "absent":
        raise SystemExit(LAST_WORDS)
    from burnish.engine import loop

    loop.accumulate = {"averaging": averaging, "failing": failing}[os.environ["STRANGE"]](loop.accumulate)
    runpy.run_module("burnish.worker", run_name="__main__")
