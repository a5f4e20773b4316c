"""What the LaMDA recipes reach: the ratings against baselines, and the ranking in the eyes of a second rater.

python -m benchmarks.dialogs [--run runs/lamda] [--contexts 80]

The second rater is a pretrained encoder that learned from dialogs which neither the model nor the test has.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import burnish
from benchmarks.rows import ROOT
from burnish.generate.rank import UNSAFE, WEIGHTS, rate, rating_prompt
from burnish.inference import Opened, open_model
from burnish.run import RunFolder

DATA = ROOT / ".assets" / "lamda"
#: Ratings of each kind that the second rater learns from.
JUDGE_ROWS = 1_500
_RESAMPLES = 2_000


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of the dialogs' ratings."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def some(rows: Sequence[Any], count: int) -> list[Any]:
    """Return some rows, the same ones each time."""
    return random.Random(0).sample(list(rows), min(count, len(rows)))


def features(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return how long each answer is, in characters and in words."""
    return np.array([[len(row["reply"]), len(row["reply"].split())] for row in rows])


def ratings(opened: Opened, most: int = 1_000) -> dict[str, dict[str, float]]:
    """Return how often each rating is right on the test's dialogs, beside the commoner one and a model of lengths."""
    found = {}
    for attribute in (*WEIGHTS, UNSAFE):
        learned = [row for row in read("train-ratings.jsonl") if row["attribute"] == attribute]
        tested = some([row for row in read("test-ratings.jsonl") if row["attribute"] == attribute], most)
        true = np.array([row["rating"] for row in tested])
        lengths = LogisticRegression().fit(features(learned), [row["rating"] for row in learned])
        prompts = [rating_prompt(row["context"], row["reply"], attribute) for row in tested]
        chances = np.array(rate(opened.model, opened.task.tokenizer, prompts))
        right = (chances > 0.5) == true
        found[attribute.lower()] = {
            "rows": len(true),
            "accuracy": float(right.mean()),
            "accuracy_low": float(np.quantile(_means(right), 0.025)),
            "auc": float(roc_auc_score(true, chances)),
            "majority": float(max(true.mean(), 1 - true.mean())),
            "length": float((lengths.predict(features(tested)) == true).mean()),
        }
    return found


def _means(values: np.ndarray) -> np.ndarray:
    """Return the means of bootstrap samples."""
    draw = np.random.default_rng(0)
    return values[draw.integers(0, len(values), (_RESAMPLES, len(values)))].mean(1)


def judge(folder: Path) -> Any:
    """Return the second rater, trained if its folder has none: an encoder that reads context, attribute and answer."""
    if RunFolder(folder).is_finished:
        return burnish.load(str(folder))
    rows = []
    for attribute in WEIGHTS:
        rated = [row for row in read("judge-ratings.jsonl") if row["attribute"] == attribute]
        rows += some(rated, JUDGE_ROWS * (2 if attribute == "SENSIBLE" else 1))
    asked = [{**question(row["context"], row["reply"], row["attribute"]), "label": row["rating"]} for row in rows]
    file = folder.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked), encoding="utf-8")
    return burnish.train(
        "text-classification",
        model=str(ROOT / ".assets" / "all-MiniLM-L6-v2"),
        data={"train": str(file), "pair": "pair"},
        freeze={"layers": 2},
        optim={"lr": 2e-4},
        train={"length": "2 epochs", "sequence": 160, "evaluate_every": "2 epochs"},
        run={"dir": str(folder)},
    )


def question(context: str, reply: str, attribute: str) -> dict[str, str]:
    """Return what the second rater is asked."""
    return {"text": context, "pair": f"{attribute.lower()}: {reply}"}


def qualities(second: Any, context: str, texts: Sequence[str]) -> np.ndarray:
    """Return what the second rater thinks of some answers: 3 sensible + specific + interesting."""
    asked = [question(context, text, attribute) for text in texts for attribute in WEIGHTS]
    chances = [answer["scores"]["1"] for answer in second.predict(asked)]
    return np.array(chances).reshape(len(texts), -1) @ np.array(list(WEIGHTS.values()))


def ranking(run: Any, second: Any, contexts: int) -> dict[str, Any]:
    """Return the second rater's mean quality of the answers ranked first, of all candidates, and of what people said."""
    rows = some([row for row in read("test-rows.jsonl") if row["prompt"].endswith(" RESPONSE")], contexts)
    first, middle, people, shown = [], [], [], []
    for row in rows:
        context = row["prompt"].removesuffix(" RESPONSE")
        answer = run.predict(context)
        texts = [one["text"] for one in answer["candidates"]]
        judged = qualities(second, context, [*texts, row["text"].strip()])
        first.append(judged[0])
        middle.append(judged[:-1].mean())
        people.append(judged[-1])
        shown.append({"context": context, "answer": answer["generated"], "last": texts[-1]})
    gain = _means(np.array(first) - np.array(middle))
    return {
        "contexts": len(rows),
        "ranked_first": float(np.mean(first)),
        "any_candidate": float(np.mean(middle)),
        "people": float(np.mean(people)),
        "gain": [float(edge) for edge in np.quantile(gain, [0.025, 0.975])],
        "examples": shown[:5],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/lamda"))
    parser.add_argument("--judge", type=Path, default=Path("runs/lamda-judge"))
    parser.add_argument("--contexts", type=int, default=80)
    given = parser.parse_args(arguments)
    print(json.dumps({"ratings": ratings(open_model(str(given.run)))}, indent=1), flush=True)
    second = judge(given.judge)
    found = ranking(burnish.load(str(given.run)), second, given.contexts)
    print(json.dumps({"judge": second.metrics["validation"], "ranking": found}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
