"""Arrows point downwards, no module is a tangle, and the public names are complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import burnish
from helpers import ROOT


def test_import_layers() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_public_names_are_complete_and_documented() -> None:
    for name in burnish.__all__:
        value = getattr(burnish, name)
        assert name == "__version__" or value.__doc__, name
    assert set(dir(burnish)) >= set(burnish.__all__)


def test_the_way_to_the_optimizer_is_short() -> None:
    """From `burnish train` to `optimizer.step()` a reader needs the command line, api, session, loop, step and hooks."""
    files = ("cli.py", "api.py", "session.py", "engine/loop.py", "engine/step.py", "engine/hooks.py")
    source = ROOT / "src" / "burnish"
    code = [line for name in files for line in (source / name).read_text().splitlines() if line.strip()]
    assert len(code) < 1500


def test_a_wrong_setting_is_refused_before_torch_is_imported() -> None:
    """All tasks are known and the settings read by then; torch is imported later, out of the collector's sight."""
    code = (
        "import sys\nfrom burnish.api import resolve\n"
        "resolve('text-generation', {'preset': 'gpt2-nano', 'model': {'compute': 1e13}, 'data': 'x'})\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_models_are_listed_once_and_the_list_is_complete() -> None:
    """transformers reads all its files for the list of its models; burnish lets it do so once."""

    def listed(first: str) -> list[str]:
        code = (
            "import sys\nread = []\n"
            "sys.addaudithook(lambda event, given: event == 'open' and str(given[0]).endswith('.py') and read.append(0))\n"
            f"{first}\nimport transformers.models as models\n"
            "print(len(read), *sorted(models._class_to_module.items()), *sorted(models._modules), sep='\\n')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    (once, *ours), (twice, *theirs) = listed("from burnish.env import load_torch; load_torch()"), listed("")
    assert ours == theirs and len(ours) > 1000
    assert int(once) < 0.6 * int(twice)
