"""What no neural network reaches on a recipe's labelled texts: the commonest label, and a linear model of words.

python -m benchmarks.tfidf [--recipe recipes/minilm-sentiment-all.yaml]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from benchmarks.clock import Moment
from benchmarks.rows import RECIPES, digest, labels, read_split, texts

#: Inverse strengths of the regularisation to choose from, by cross-validation on the training rows alone.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def baselines(recipe: Path | str) -> dict[str, Any]:
    """Return the accuracy on the held-out rows of the commonest training label, and of TF-IDF with logistic regression.

    Source: Salton and Buckley 1988 (weights of words and pairs of words); the regularisation is chosen by five-fold
    cross-validation on the training rows, so that the baseline is not weaker than it need be.
    """
    split = read_split(recipe)
    wanted, held_out = labels(split.train), labels(split.held_out)
    commonest, _ = Counter(wanted).most_common(1)[0]
    started = Moment.now()
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=5)
    search.fit(texts(split.train), wanted)
    spent = Moment.now().since(started)
    return {
        "majority": held_out.count(commonest) / len(held_out),
        "majority_label": commonest,
        "tfidf": float(search.score(texts(split.held_out), held_out)),
        "tfidf_macro_f1": float(f1_score(held_out, search.predict(texts(split.held_out)), average="macro")),
        "strength": search.best_params_["logisticregression__C"],
        "features": len(search.best_estimator_[0].vocabulary_),
        "train": spent,
        "train_rows": len(split.train),
        "held_out_rows": len(split.held_out),
        "rows": {"train": digest(split.train), "held_out": digest(split.held_out)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the baselines as a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "minilm-sentiment-all.yaml")
    print(json.dumps(baselines(parser.parse_args(arguments).recipe)), flush=True)


if __name__ == "__main__":
    main()
