"""Make `.bench-venv`: the peers of the speed benchmark in an environment of their own, with the same torch. Standard library.

    python scripts/peers.py        (what `make bench` runs; does nothing if all is there)

What is in it: benchmarks/peers/requirements.txt, and constraints.txt, so torch and transformers are those of `.venv`.
"""

from __future__ import annotations

import hashlib
import venv

import bootstrap

VENV = bootstrap.ROOT / ".bench-venv"
REQUIREMENTS = "benchmarks/peers/requirements.txt"


def main() -> None:
    """Bring the environment up to date."""
    bootstrap.PYTHON = VENV / bootstrap.PYTHON.relative_to(bootstrap.VENV)  # what its functions install into
    stamp = VENV / ".ready"
    files = (bootstrap.ROOT / REQUIREMENTS, bootstrap.ROOT / "constraints.txt")
    wanted = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not bootstrap.PYTHON.is_file():
        bootstrap.say(f"making the peers' environment in {VENV.name}")
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    bootstrap.install_torch()
    bootstrap.say("installing the peers")
    bootstrap.pip("install", "-c", "constraints.txt", "-r", REQUIREMENTS)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
