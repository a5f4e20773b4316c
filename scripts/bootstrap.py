"""Make `.venv` with burnish and everything its demo and tests need. Standard library only; Python 3.11 or newer.

    python scripts/bootstrap.py        (what `make` runs; does nothing if all is there)

Which torch is taken: `BURNISH_TORCH=cpu|cuda|keep` if set; else a wheel of the pinned version that pip already knows
locally; else the registry's CUDA build where an NVIDIA driver is found; else PyTorch's own CPU index on Linux and Windows,
and the registry on macOS.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
QUIET = ["--quiet", "--disable-pip-version-check"]


def main() -> None:
    """Bring the environment up to date and say what was done."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before anything has checked it)
        sys.exit(
            f"burnish needs Python 3.11 or newer; this is {sys.version.split()[0]}. Give another: make PY=python3.12 ..."
        )
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    if not PYTHON.is_file():
        say("making the environment in .venv")
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    install("--upgrade", "pip>=25.1")  # dependency groups need it
    install_torch()
    say("installing burnish and its tools")
    install("-c", "constraints.txt", "-e", ".", "--group", "dev")
    # Its exit code tells of files that are no Python of this version, such as templates.
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-j", "0", VENV], stdout=subprocess.DEVNULL)
    STAMP.write_text(wanted)
    say(f"ready in {time.monotonic() - started:.0f} s")


def fingerprint() -> str:
    """Return what changes when the environment must be made again."""
    files = (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def install_torch() -> None:
    """Install the torch build that fits this machine."""
    choice = os.environ.get("BURNISH_TORCH", "")
    if choice not in ("", "cpu", "cuda", "keep"):
        sys.exit(f"BURNISH_TORCH is {choice!r}; allowed are cpu, cuda and keep.")
    installed = subprocess.run([PYTHON, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    if installed.returncode == 0 and choice in ("", "keep"):
        return
    pinned = next(line.strip() for line in (ROOT / "constraints.txt").open() if line.startswith("torch=="))
    local = subprocess.run(
        [PYTHON, "-m", "pip", "install", *QUIET, "--dry-run", "--no-index", "--no-deps", pinned], capture_output=True
    )
    if choice == "" and local.returncode == 0:
        say(f"installing {pinned} from a local wheel")
        install(pinned)
    elif choice == "cuda" or (choice == "" and (shutil.which("nvidia-smi") or sys.platform == "darwin")):
        say(f"installing {pinned}, the registry's build")
        install(pinned)
    else:
        say(f"installing {pinned}, the CPU build")
        if not install(pinned, "--index-url", CPU_INDEX, must=choice == "cpu"):
            say("PyTorch's CPU index cannot be reached; taking the registry's build")
            install(pinned)


def install(*arguments: str, must: bool = True) -> bool:
    """Let pip install in the environment and return whether it worked; where it must, end with its last words.

    Bytecode comes last: pip would make it on one core, a file after the other.
    """
    command = [PYTHON, "-m", "pip", "install", "--no-compile", *arguments, *QUIET]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode and must:
        sys.exit(f"pip install {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.returncode == 0


def say(text: str) -> None:
    """Print a line at once."""
    print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    main()
