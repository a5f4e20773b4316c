"""What `make demo` does: get data and model by package name, run both recipes, show the results beside baselines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

JOBS = {
    "gpt2-shakespeare": "1 of 2  GPT-2 from raw text: tokenizer trained, model from scratch, 5 MB of Shakespeare",
    "minilm-sentiment": "2 of 2  MiniLM fine-tuned: 4 of 6 layers frozen, a classification layer, 5,000 rated sentences",
}


def main() -> None:
    """Run both jobs; finished ones are recognised and left as they are."""
    print("burnish demo: two jobs on this machine, no GPU needed", flush=True)
    from assets import COMMON, get

    for name in COMMON:
        get(name)
    for recipe, title in JOBS.items():
        print(f"\n{title}", flush=True)
        done = subprocess.run([sys.executable, "-m", "burnish", "train", f"recipes/{recipe}.yaml"], cwd=ROOT)
        if done.returncode:
            sys.exit(done.returncode)
    show()


def show() -> None:
    """Print the figures that matter, the baselines, and where to look."""
    language = json.loads((ROOT / "runs/gpt2-shakespeare/metrics.json").read_text())
    sentiment = json.loads((ROOT / "runs/minilm-sentiment/metrics.json").read_text())
    print("\nResults on held-out text")
    print(
        f"  GPT-2      {language['validation']['bits_per_byte']:.3f} bits per byte (6-gram model: see docs/benchmarks.md)"
    )
    print(f"  sentiment  {sentiment['validation']['accuracy']:.3f} accuracy", end="", flush=True)
    baseline = baselines()
    print(f"   (majority class {baseline['majority']:.3f}, TF-IDF and logistic regression {baseline['tfidf']:.3f})")
    print("\nLook at")
    for run in JOBS:
        print(f"  runs/{run}/report.html")
    print("Try")
    print('  .venv/bin/burnish predict runs/minilm-sentiment "the plot is thin but the cast shines"')
    print('  .venv/bin/burnish predict runs/gpt2-shakespeare "ROMEO."')


def baselines() -> dict[str, Any]:
    """Return the accuracy of the majority class and of TF-IDF with logistic regression; computed once, then kept."""
    kept = ROOT / "runs/minilm-sentiment/baselines.json"
    if not kept.is_file():
        from benchmarks.tfidf import baselines as compute

        kept.write_text(json.dumps(compute(ROOT / "recipes/minilm-sentiment.yaml")))
    return json.loads(kept.read_text())


if __name__ == "__main__":
    main()
