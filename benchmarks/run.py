"""Run the benchmarks and write docs/benchmarks.md. The entry of `make bench`.

    python -m benchmarks.run [--quick] [--seeds 3] [--threads N] [NAME ...]

NAME is a text task (`RECIPE_OF`), speed (all works of the speed benchmark) or one of those works. Asked for some alone, the
others stay in the page as they are, if they were measured on this machine with these versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import beside_trainer, pretraining, speed, speed_page
from benchmarks.children import run_child
from benchmarks.page import SECTIONS, Measured, Result, failures, render, sections_of
from benchmarks.rows import RECIPES, ROOT, read_split
from benchmarks.trainer_sentiment import SIDES, interleave
from burnish.api import resolve
from burnish.config import normalise, read_recipe
from burnish.data.prepare import find_rows
from burnish.env import machine, versions
from burnish.units import readable_bytes

PAGE = ROOT / "docs" / "benchmarks.md"
RECIPE_OF = {
    "shakespeare": "gpt2-shakespeare.yaml",
    "sentiment": "minilm-sentiment-all.yaml",
    "questions": "minilm-squad.yaml",
    "translation": "transformer-en-de.yaml",
    "clothes": "vit-clothes.yaml",
    "textiles": "dinov2-textiles.yaml",
    "nuclei": "segformer-nuclei.yaml",
    "composites": "rt-detr-composites.yaml",
    "prompts": "whisper-prompts.yaml",
    "gpt3": "gpt3-prose.yaml",
    "bert": "bert-prose.yaml",
}
ASSETS = {
    "shakespeare": ("shakespeare",),
    "sentiment": ("sentiment-all", "minilm"),
    "questions": ("squad-shifts", "minilm"),
    "translation": ("strings",),
    "clothes": ("fashion-mnist",),
    "textiles": ("textiles", "dinov2-small"),
    "nuclei": ("nuclei",),
    "composites": ("composites", "dinov2-small"),
    "prompts": ("asterisk", "whisper-tiny-en"),
    "gpt3": ("prose",),
    "bert": ("prose",),
}
NAMES = (*SECTIONS, *speed.WORKS)

#: With --quick: rows kept of each recipe's data, and settings over the recipe's.
QUICK_ROWS = 300
QUICK_SETTINGS: dict[str, dict[str, Any]] = {
    "shakespeare": {
        "model": {"preset": "gpt2-nano", "vocab_size": 512},
        "schedule": {"warmup": "2 steps"},
        "train": {"length": "12 steps", "batch": 8, "sequence": 64},
    },
    "sentiment": {"train": {"length": "1 epochs"}},
    "questions": {"train": {"length": "2 steps", "batch": 4, "sequence": 128}},
    "translation": {"train": {"length": "2 steps"}, "model": {"preset": "transformer-nano", "vocab_size": 512}},
    "clothes": {"train": {"length": "2 steps"}},
    "textiles": {"train": {"length": "2 steps"}},
    "nuclei": {"train": {"length": "2 steps"}},
    "composites": {"train": {"length": "2 steps"}},
    "prompts": {
        "data": {"train": ".assets/asterisk/test", "test": [], "holdout": "5%"},
        "train": {"length": "2 steps"},
    },
    "gpt3": {"train": {"length": "2 steps", "sequence": 64}, "model": {"preset": "gpt3-nano", "vocab_size": 512}},
    "bert": {"train": {"length": "2 steps", "sequence": 64}, "model": {"preset": "bert-nano", "vocab_size": 512}},
}
#: What of a recipe is measured beside Trainer: all of it would take Trainer an hour or two of one core.
LIGHTER_SETTINGS: dict[str, dict[str, Any]] = {
    "questions": {"train": {"length": "1 epochs"}},
    "translation": {"train": {"length": "8 epochs"}},
    # what Trainer has not of itself is left out: varied images, Muon
    "clothes": {"train": {"length": "2 epochs"}, "optim": {"name": "adamw", "lr": 2e-3}},
    # a fifth of the photographs, the same split; enough of them held out to tell accuracies apart
    "textiles": {"data": {"train": ".assets/textiles/test", "test": [], "holdout": "40%"}},
    "nuclei": {"train": {"length": "200 steps"}, "augment": {"flip": "none", "rotate": 0.0, "color": 0.0}},
    # the 300 photographs of its test side, split, not varied; norms of each batch, as Trainer's are
    "composites": {
        "data": {"train": ".assets/composites/test", "test": [], "holdout": "20%"},
        "train": {"length": "110 steps", "norm_rows": 16},
        "augment": {"flip": "none"},
        "freeze": {"views": 1},
    },
    # two epochs; nothing is held out of the prompts that train, since others are there to be judged by
    "prompts": {
        "data": {"validation": ".assets/asterisk/test", "test": []},
        "train": {"length": "2 epochs"},
    },
}
LIGHTER_TEST_ROWS = 2000
QUICK_NANOGPT = ("--iterations", 40, "--warmup", 12)


def say(text: str) -> None:
    """Report progress, apart from what goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def shakespeare(recipe: Path, *, seeds: int, threads: int, quick: bool) -> list[Result]:
    """Return the results of the n-grams, nanoGPT's recipe, the same with burnish's processor time, and burnish."""
    results = [run_child("benchmarks.ngram", "--recipe", recipe, order, threads=threads) for order in (5, 6)]
    for seed in range(seeds):
        common = ("--seed", seed, "--threads", threads)
        nanogpt = ("benchmarks.nanogpt", "--recipe", recipe, *common)
        own = run_child("benchmarks.burnish_side", recipe, *common, threads=threads)
        published = run_child(*nanogpt, *(QUICK_NANOGPT if quick else ()), threads=threads)
        same_time = (*(QUICK_NANOGPT[2:] if quick else ()), "--cpu-seconds", own["train"]["cpu"])
        results += [own, published, run_child(*nanogpt, *same_time, threads=threads)]
        for result in results[-3:]:
            say(json.dumps(result))
    return results


def sentiment(recipe: Path, *, seeds: int, threads: int, quick: bool) -> list[Result]:
    """Return the results of burnish, Trainer, and the baselines without a network."""
    baselines = run_child("benchmarks.tfidf", "--recipe", recipe, threads=threads)
    results = interleave(recipe, sides=SIDES, seeds=seeds, threads=threads, say=say)
    for result in results:
        result["epochs"] = results[0]["rows_learned"] / baselines["train_rows"]
    return [{"side": "baselines", **baselines}, *results]


def text_task(recipe: Path, *, seeds: int, threads: int, quick: bool) -> list[Result]:
    """Return the results of simple rules, burnish and Trainer on a text task."""
    sides = (*beside_trainer.SIDES, beside_trainer.SAME_TIME)
    return beside_trainer.interleave(recipe, sides=sides, seeds=seeds, threads=threads, say=say)


def media_task(recipe: Path, *, seeds: int, threads: int, quick: bool) -> list[Result]:
    """Return the results of burnish and Trainer on a task about images or sounds."""
    more = (beside_trainer.SAME_TIME,) if resolve(str(recipe), {})[1].name == "object-detection" else ()
    sides = (*beside_trainer.SIDES, *more)
    return beside_trainer.interleave(recipe, sides=sides, seeds=seeds, threads=threads, say=say)


def pretrained(recipe: Path, *, seeds: int, threads: int, quick: bool) -> list[Result]:
    """Return the results of counting and of burnish on prose."""
    results = []
    for seed in range(seeds):
        results += pretraining.measure(recipe, seed, threads)
        say(json.dumps(results[-1]))
    return results


BENCHMARKS: dict[str, Callable[..., list[Result]]] = {
    "shakespeare": shakespeare,
    "sentiment": sentiment,
    "questions": text_task,
    "translation": text_task,
    "clothes": media_task,
    "textiles": media_task,
    "nuclei": media_task,
    "composites": media_task,
    "prompts": media_task,
    "gpt3": pretrained,
    "bert": pretrained,
}


def shrunk(recipe: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """Return a recipe like another, with the first rows of its data only, of images and sounds all, and other settings."""
    if resolve(str(recipe), {})[1].reads in beside_trainer.MEDIA:
        return lightened(recipe, folder, settings)
    values = normalise(read_recipe(recipe))
    split = read_split(recipe)
    rows = [*split.train[:QUICK_ROWS], *split.held_out[: QUICK_ROWS // 4]]
    data = folder / f"{recipe.stem}{'.txt' if set(rows[0].values) == {'text'} else '.jsonl'}"
    if data.suffix == ".txt":
        data.write_text("\n\n".join(row.values["text"].strip("\n") for row in rows) + "\n", encoding="utf-8")
    else:
        lines = (json.dumps(dict(row.values), ensure_ascii=False) for row in rows)
        data.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    split_by = {name: values["data"][name] for name in ("holdout", "stratify", "group") if name in values["data"]}
    values["data"] = {**{name: name for name in rows[0].values}, **split_by, "train": str(data)}
    for group, changed in settings.items():
        values[group] = {**values.get(group, {}), **changed}
    target = folder / recipe.name
    target.write_text(yaml.safe_dump(values), encoding="utf-8")
    return target


def lightened(recipe: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """Return a recipe like another, with other settings, and at most `LIGHTER_TEST_ROWS` of its test rows of text, evenly
    taken."""
    config, task, _ = resolve(str(recipe), {})
    rows = list(find_rows(config, task).test or ()) if task.reads == "text" else []
    values = normalise(read_recipe(recipe))
    if len(rows) > LIGHTER_TEST_ROWS:
        data = folder / "test.jsonl"
        taken = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, LIGHTER_TEST_ROWS)]
        data.write_text("".join(f"{json.dumps(dict(row.values))}\n" for row in taken), encoding="utf-8")
        settings = {**settings, "data": {"test": str(data)}}
    for group, changed in settings.items():
        values[group] = {**values.get(group, {}), **changed}
    target = folder / recipe.name
    target.write_text(yaml.safe_dump(values), encoding="utf-8")
    return target


def environment() -> dict[str, str]:
    """Return the machine and the versions that figures depend on."""
    here = machine()
    found = {
        "processor": str(here["processor"]),
        "cores": str(here["cores"]),
        "memory": readable_bytes(here["memory_bytes"]),
        "system": str(here["system"]),
    }
    return found | versions() | {name: importlib.metadata.version(name) for name in ("accelerate", "scikit-learn")}


def commit() -> str:
    """Return the short name of the commit, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with local changes" if git("status", "--porcelain", "--", "src", "benchmarks", "recipes") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def measure(name: str, *, seeds: int, threads: int, quick: bool, command: str) -> Measured:
    """Return one benchmark, run."""
    assets = ASSETS.get(name, ())
    subprocess.run([sys.executable, ROOT / "scripts" / "assets.py", *assets], check=True, stdout=sys.stderr)
    load, code = os.getloadavg()[0], commit()
    if name in speed.WORKS:
        threads = 1
        results = measure_speed(name, seeds=seeds, quick=quick)
    else:
        with tempfile.TemporaryDirectory() as folder:
            recipe = RECIPES / RECIPE_OF[name]
            if quick:
                recipe = shrunk(recipe, Path(folder), QUICK_SETTINGS[name])
            elif name in LIGHTER_SETTINGS:
                recipe = lightened(recipe, Path(folder), LIGHTER_SETTINGS[name])
            results = BENCHMARKS[name](recipe, seeds=seeds, threads=threads, quick=quick)
    today = date.today().isoformat()
    return Measured(name, results, threads, seeds, quick, today, command, code, load, environment())


def measure_speed(name: str, *, seeds: int, quick: bool) -> list[Result]:
    """Return the results of a work of the speed benchmark, the peers' environment made first; small if `quick`."""
    if quick:
        return speed.measure(speed.WORKS[name].shrunk(), seeds, say)
    subprocess.run([sys.executable, ROOT / "scripts" / "bench_environments.py"], check=True, stdout=sys.stderr)
    return speed.measure(speed.WORKS[name], seeds, say)


def page_of(measured: list[Measured], before: str = "") -> str:
    """Return the page of what was measured, and of what stays of the page so far."""
    works = [entry for entry in measured if entry.name in speed.WORKS]
    old = sections_of(before, measured[0].environment).get(speed_page.TITLE, "")
    return render(measured, before, [speed_page.section(works, old)] if works or old else [])


def problems_of(measured: list[Measured]) -> list[str]:
    """Return what was not equal work, and which floors of the speed benchmark were missed."""
    works = [entry for entry in measured if entry.name in speed.WORKS]
    return failures(measured) + [
        problem for entry in works for problem in speed_page.failures(entry, speed.WORKS[entry.name])
    ]


def write_page(path: Path, text: str) -> None:
    """Write a page and say so."""
    path.write_text(text, encoding="utf-8")
    say(f"wrote {path.relative_to(ROOT)}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"speed, {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small, one seed, to stdout: a smoke test")
    parser.add_argument("--seeds", type=int, help="of each benchmark; of a work of the speed benchmark, its turns")
    parser.add_argument("--threads", type=int, default=int(machine()["cores"]), help="the speed benchmark has one")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in (*NAMES, "speed")]:
        parser.error(f"no such benchmark: {', '.join(unknown)} (there: speed, {', '.join(NAMES)})")
    asked = given.names or NAMES
    given.names = [name for name in NAMES if name in asked or (name in speed.WORKS and "speed" in asked)]
    return given


def main(arguments: Sequence[str]) -> int:
    """Run and write the page (with --quick: print it). Returns 1 if sides did not do equal work, or a floor was missed."""
    given = parse(arguments)
    os.chdir(ROOT)
    command = " ".join(["python -m benchmarks.run", *arguments])
    seeds = given.seeds or (1 if given.quick else 3)
    measured: list[Measured] = []
    for name in given.names:
        say(f"benchmark {name}")
        measured.append(measure(name, seeds=seeds, threads=given.threads, quick=given.quick, command=command))
        if not given.quick:
            write_page(PAGE, page_of([measured[-1]], PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""))
    if given.quick:
        print(page_of(measured))
    problems = problems_of(measured)
    for problem in problems:
        say(problem)
    return 1 if problems and not given.quick else 0  # so little work is not timed to a tenth


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
