"""The speed benchmark on one NVIDIA GPU, into docs/benchmarks-gpu.md. The entry of `make bench-gpu`.

    python -m benchmarks.gpu [--turns 3] [NAME ...]          works: gpt2 chat-1b

Model FLOPs utilisation is (6 N + 12 L H T) x tokens per second / peak, for N parameters in matrix products (a tied output
layer once, an input embedding not), L layers of width H, T positions of a sequence. Source: Chowdhery et al. 2022 (PaLM),
appendix B; the term of attention is that without a causal mask.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks import speed_page
from benchmarks.page import Measured, environment_table, of_side, table
from benchmarks.rows import ROOT
from benchmarks.run import commit, environment, say, write_page
from benchmarks.speed import SIDES, Goal, Small, Work, measure
from benchmarks.speed_rows import SHAPES, Data

PAGE = ROOT / "docs" / "benchmarks-gpu.md"
#: Dense bf16 operations a second, by a part of the device's name. Source: NVIDIA's data sheets, SXM versions.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

_SMALL = Small(
    {
        "train": 16,
        "held_out": 4,
        "positions": 31,
        "vocabulary": 512,
        "shape": "llama",
        "model": {"hidden_size": 36, "num_hidden_layers": 2, "vocab_size": 600},
    },
    {"train": {"length": "4 steps", "batch": 4}},
)

WORKS: dict[str, Work] = {
    "gpt2": Work(
        "GPT-2 124M from scratch, sequences of 1,024, bf16",
        Data("stream", train=960, held_out=4, positions=1023, shape="gpt2"),
        {"train": {"batch": 32, "length": "120 steps"}},
        (Goal("trainer-compiled", 1.4, 1.2), Goal("loop", 1.25, 1.1)),
        _SMALL,
        untimed=20,
        device="cuda",
    ),
    "chat-1b": Work(
        "1B shape, all parameters train, chat rows of up to 1,024 tokens",
        Data("chat", train=480, held_out=4, positions=1023, shape="llama-1b"),
        {"train": {"batch": 8, "length": "60 steps"}, "checkpoint": {"every": "1000 hours", "keep": 1}},
        (Goal("trl", 3, 2), Goal("trl-grouped"), Goal("trainer-bf16")),
        _SMALL,
        untimed=20,
        device="cuda",
    ),
}


def flops_per_token(work: Work) -> float:
    """Return the operations one token of training needs, see the head of this file."""
    from transformers import AutoConfig

    from burnish.models.load import parameter_count, skeleton

    config = AutoConfig.for_model(**{**SHAPES[work.data.shape], **work.data.model})
    model = skeleton("AutoModelForCausalLM", config)
    input_only = sum(
        value.numel()
        for name, value in model.named_parameters()
        if name.endswith("wpe.weight") or (name.endswith("embed_tokens.weight") and not config.tie_word_embeddings)
    )
    attention = 12 * config.num_hidden_layers * config.hidden_size * work.data.positions
    return 6 * (parameter_count(model) - input_only) + attention


def utilisation(measured: Sequence[Measured], device: str) -> str:
    """Return the table of rates and utilisation."""
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    rows = []
    for entry in measured:
        needed = flops_per_token(WORKS[entry.name])
        for name in dict.fromkeys(result["side"] for result in entry.results):
            best = max(map(speed_page.rate, of_side(entry.results, name)))
            share = f"{best * needed / peak:.1%}" if peak else "unknown peak"
            rows.append([WORKS[entry.name].title, SIDES[name].title, f"{best:,.0f}", share])
    return table(["work", "side", "tokens a second", "model FLOPs utilisation"], rows)


def page_of(measured: Sequence[Measured], device: str) -> str:
    """Return the page."""
    head = f"# Benchmarks on a GPU\n\nMeasured by `make bench-gpu` on one {device}; times are those on the wall."
    tables = speed_page.tables(measured, WORKS)
    parts = [head, environment_table(measured[0].environment), utilisation(measured, device), *tables]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page. Returns 1 if sides did not do equal work, or a floor was missed."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*WORKS], metavar="NAME")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    if unknown := next((name for name in given.names if name not in WORKS), None):
        parser.error(f"there is no work {unknown!r}; works: {' '.join(WORKS)}")
    if not torch.cuda.is_available():
        say("make bench-gpu needs an NVIDIA GPU that torch can use; nothing was measured.")
        return 1
    os.chdir(ROOT)
    for script, *names in (["assets.py", "shakespeare"], ["bench_environments.py"]):
        subprocess.run([sys.executable, Path("scripts") / script, *names], check=True, stdout=sys.stderr)
    command, device = " ".join(["python -m benchmarks.gpu", *arguments]), torch.cuda.get_device_name()
    measured = []
    for name in given.names:
        say(f"benchmark {name} on {device}")
        load, code = os.getloadavg()[0], commit()
        results = measure(WORKS[name], given.turns, say)
        today, here = date.today().isoformat(), environment() | {"device": device}
        measured.append(Measured(name, results, 1, given.turns, False, today, command, code, load, here))
    write_page(PAGE, page_of(measured, device))
    problems = [problem for entry in measured for problem in speed_page.failures(entry, WORKS[entry.name])]
    for problem in problems:
        say(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
