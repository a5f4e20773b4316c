"""Runs the command line in forked children of a process that has everything imported, so that a trial starts at once.

Reads one JSON object a line, `{"args": [...], "root": FOLDER, "kill_at": N or null}`, and answers each with
`{"status": EXIT_CODE or -SIGNAL, "operations": COUNT}`. With `kill_at`, the child kills itself with SIGKILL just before
its N-th file operation under `root`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def warm_up() -> None:
    import matplotlib.backends.backend_svg  # noqa: F401
    import torch
    import torchmetrics.functional.classification  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: F401

    import burnish.api
    import burnish.cli
    import burnish.inference
    import burnish.session  # noqa: F401

    torch.set_num_threads(1)


def watch(root: str, kill_at: int | None, report: int) -> None:
    root = os.path.abspath(root)
    count = 0
    one_at_a_time = threading.Lock()  # checkpoints are written in a thread of their own

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(root):
            return
        with one_at_a_time:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite(report, count.to_bytes(8, "little"), 0)

    sys.addaudithook(hook)


def trial(request: dict, report: int) -> None:
    sys.stdin.close()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    log = os.open(request["root"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    from burnish.cli import main

    watch(request["root"], request["kill_at"], report)
    code = 1
    try:
        main(request["args"])
    except SystemExit as error:
        code = error.code or 0
    finally:
        os._exit(code)


def serve() -> None:
    warm_up()
    report = os.memfd_create("operations")
    for line in sys.stdin:
        request = json.loads(line)
        os.pwrite(report, bytes(8), 0)
        child = os.fork()
        if child == 0:
            trial(request, report)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"status": code, "operations": int.from_bytes(os.pread(report, 8, 0), "little")}), flush=True)


if __name__ == "__main__":
    serve()
