"""Commands in forked children of one process that has imported what takes long, so that each begins at once.

As a program it is that process: it reads one JSON object a line and answers each with the exit code of a child, minus a
signal's number, or null where the child stands still before a file operation. `Forks` starts it and asks it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Forks:
    """The warm process of this worker."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _ask(self, **request: Any) -> int | None:
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def run(self, code: str, *arguments: object, cwd: Path | None = None, input: str = "") -> Any:
        """Run Python code as `python -c` does and return the finished process."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
            Path(streams[0]).write_text(input)
            words = [str(word) for word in arguments]
            status = self._ask(code=code, arguments=words, cwd=str(cwd or os.getcwd()), streams=streams)
            said = [Path(stream).read_text() for stream in streams[1:]]
        assert status is not None
        return subprocess.CompletedProcess(words, status, *said)

    def operations(self, code: str, *arguments: object, folder: Path) -> Iterator[None]:
        """Run Python code, and yield before each file operation below a folder: all its threads stand still meanwhile."""
        words = [str(word) for word in arguments]
        status = self._ask(code=code, arguments=words, cwd=os.getcwd(), streams=[os.devnull] * 3, watched=str(folder))
        while status is None:
            yield
            status = self._ask()
        assert status == 0


@cache
def forks() -> Forks:
    """Return the warm process, which ends with this one."""
    return Forks()


# -- the process -------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until there are no more. One without code lets the child that stands still go on."""
    warm_up()
    still: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            child = os.fork()
            if child == 0:
                os._exit(child_of(request))
        else:
            child = still.pop()
            os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            still.append(child)
        print(json.dumps(None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)), flush=True)


def warm_up() -> None:
    """Import what most commands need."""
    import matplotlib.backends.backend_svg  # noqa: F401
    import torch
    import torchmetrics.functional.classification  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoTokenizer, BertModel, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: F401

    import burnish.api
    import burnish.cli
    import burnish.inference
    import burnish.session  # noqa: F401

    torch.set_num_threads(1)


def child_of(request: dict[str, Any]) -> int:
    """Run the code of a request and return the exit code."""
    os.chdir(request["cwd"])
    for number, path in enumerate(request["streams"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (the old one has read ahead)
    sys.argv, sys.path[0] = ["-c", *request["arguments"]], ""
    if request.get("watched"):
        stand_still_in(os.path.abspath(request["watched"]))
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def stand_still_in(folder: str) -> None:
    """Stop this process before each file operation in a folder, until it is told to go on."""
    one_at_a_time = threading.Lock()  # checkpoints are written in a thread of their own

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(folder):
            with one_at_a_time:
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()
