"""Make the environments of the speed benchmark, all with the same torch. Standard library.

    python scripts/bench_environments.py        (what `make bench` runs; does nothing if all is there)

.bench-venv         the peers: benchmarks/peers/requirements.txt
.bench-own-venv     burnish as a user installs it: without the tools of its developers, some of which transformers imports
                    wherever it finds them

constraints.txt holds both to the versions of `.venv`.
"""

from __future__ import annotations

import hashlib
import venv

import bootstrap

ENVIRONMENTS = {".bench-venv": ["-r", "benchmarks/peers/requirements.txt"], ".bench-own-venv": ["-e", "."]}


def main() -> None:
    """Bring both environments up to date."""
    own_place = bootstrap.PYTHON.relative_to(bootstrap.VENV)
    for name, packages in ENVIRONMENTS.items():
        folder = bootstrap.ROOT / name
        stamp = folder / ".ready"
        files = (packages[1] if packages[0] == "-r" else "pyproject.toml", "constraints.txt")
        wanted = hashlib.sha256(b"\0".join((bootstrap.ROOT / file).read_bytes() for file in files)).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            continue
        bootstrap.PYTHON = folder / own_place  # what its functions install into
        if not bootstrap.PYTHON.is_file():
            bootstrap.say(f"making the benchmark's environment {name}")
            venv.create(folder, with_pip=True, clear=folder.exists())
        bootstrap.install_torch()
        bootstrap.say(f"installing {' '.join(packages)}")
        bootstrap.install("-c", "constraints.txt", *packages)
        stamp.write_text(wanted)


if __name__ == "__main__":
    main()
