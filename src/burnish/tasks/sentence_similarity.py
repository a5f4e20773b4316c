"""Sentence similarity: vectors of texts that lie close where the texts belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.tokenizer import encode_texts, fill_up, pad_id
from burnish.errors import UserError
from burnish.run import write_json
from burnish.task import Batch, ComparingTask, Example, Records, Row

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_TEXTS = ("anchor", "positive", "negative")


class SentenceSimilaritySettings(TaskSettings):
    """Give texts vectors whose cosine says how alike they are."""

    scale: float = Field(20.0, gt=0)
    """What cosines are multiplied by before the softmax: one over the temperature."""
    symmetric: bool = False
    """Also find each anchor among all anchors by its positive, and take the mean of both losses."""
    candidates: int = Field(1000, ge=2)
    """Evaluation: how many rows, in their order, form a group in which each anchor's positive is looked for."""


class SentenceSimilarity(ComparingTask):
    """Vectors of texts, the mean of the model's last hidden states, compared by their cosine.

    An anchor's positive should be closer to it than the positives and negatives of all other rows of the step, however
    the step is cut. A text that equals the anchor or its positive counts as no negative. With `data.score`, two texts and
    how alike they are, the cosine itself is learned by its square error: scores beyond [-1, 1] are first brought to
    [0, 1] by the least and the largest of the training rows.

    Source: Henderson et al. 2017, section 4.4 (in-batch negatives); Reimers and Gurevych 2019 (Sentence-BERT), section 3.
    """

    name = "sentence-similarity"
    Settings = SentenceSimilaritySettings
    auto_class = "AutoModel"
    asks = ("anchor",)
    metric_names = ("mrr", "recall_at_1", "loss")

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self._graded = "range" in facts
        if self._graded:
            self.metric_names = ("spearman", "pearson", "loss")

    @property
    def compares(self) -> bool:
        return not self._graded

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        if data.negative and data.score:
            raise UserError("data.score: graded pairs have no negatives; drop --data.negative or --data.score.")
        found = {"anchor": data.anchor, "positive": data.positive, "negative": data.negative, "score": data.score}
        return {name: column for name, column in found.items() if column}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Return the range of the scores, if there are any."""
        if "score" not in next(iter(rows)).values:
            return {}
        values = [_number(row) for row in rows]
        low, high = min(values), max(values)
        if low == high:
            raise UserError(f"data.score: all training rows have the same score, {low:g}.")
        return {"range": [0.0, 1.0] if low >= -1 and high <= 1 else [low, high]}

    def model_options(self) -> dict[str, Any]:
        return {"pad_token_id": pad_id(self.tokenizer)}

    def cuts_long_rows(self) -> bool:
        return True

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        remaining = iter(rows)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            names = [name for name in _TEXTS if name in waiting[0].values]
            texts = [[row.values[name] for row in waiting] for name in names]
            ids = [[one["input_ids"] for one in encode_texts(self.tokenizer, column, sequence)] for column in texts]
            for row, own, written in zip(waiting, zip(*ids, strict=True), zip(*texts, strict=True), strict=True):
                sizes = [len(one) for one in own]
                example = {
                    "input_ids": np.concatenate(own),
                    "sizes": np.array(sizes),
                    "identity": np.array([_identity(text) for text in written]),
                    "cut": np.array([max(sizes) >= sequence]),
                }
                yield example | ({"score": self._score(row)} if self._graded else {}), row.where

    def _score(self, row: Row) -> np.ndarray:
        low, high = self.facts["range"]
        return np.array([(_number(row) - low) / (high - low)], np.float32)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        ids = [part for one in examples for part in np.split(one["input_ids"], np.cumsum(one["sizes"])[:-1])]
        targets = {"identity": torch.from_numpy(np.stack([one["identity"] for one in examples]).astype(np.int64))}
        if self._graded:
            targets["score"] = torch.from_numpy(np.concatenate([one["score"] for one in examples]))
        return self._batch(ids, targets, float(len(examples)))

    def _batch(self, ids: Sequence[np.ndarray], targets: dict[str, torch.Tensor], count: float) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, [{"input_ids": one} for one in ids])
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        return Batch(inputs, targets, {"loss": count}, [len(one) for one in ids])

    def _vectors(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the vector of each text, of length 1: float32 [texts, width]."""
        from torch.nn.functional import normalize

        hidden, real = model(**batch.inputs).last_hidden_state.float(), batch.inputs["attention_mask"][..., None]
        return normalize((hidden * real).sum(1) / real.sum(1), dim=-1)

    def represent(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the vectors of each example's texts: [examples, texts of an example, width]."""
        vectors = self._vectors(model, batch)
        return vectors.view(len(batch.targets["identity"]), -1, vectors.shape[-1])

    def compare(self, represented: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self._losses(represented, targets).sum()}

    def _losses(self, vectors: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each example [examples]."""
        from torch.nn.functional import cross_entropy

        if self._graded:
            return ((vectors[:, 0] * vectors[:, 1]).sum(-1) - targets["score"]).square()
        import torch

        cosines, order = self._cosines(vectors, targets["identity"]), torch.arange(len(vectors), device=vectors.device)
        losses = cross_entropy(self.settings.scale * cosines, order, reduction="none")
        if not self.settings.symmetric:
            return losses
        back = self._cosines(vectors[:, [1, 0]], targets["identity"][:, [1, 0]])
        return (losses + cross_entropy(self.settings.scale * back, order, reduction="none")) / 2

    def _cosines(self, vectors: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        """Return the cosine of each first text with the others of all examples, second ones first: [examples, candidates].

        Those of texts that equal an example's first or second text are minus infinity: they are no negatives of it.
        """
        import torch

        found = vectors[:, 0] @ vectors[:, 1:].transpose(0, 1).flatten(0, 1).T
        candidates = identity[:, 1:].T.flatten()
        same = (candidates == identity[:, :1]) | (candidates == identity[:, 1:2])
        own = torch.eye(*found.shape, dtype=torch.bool, device=found.device)
        return found.masked_fill(same & ~own, -torch.inf)

    def score(self, model: Any, batch: Batch) -> Records:
        """Return the vectors of each example, or the cosine of its two texts."""
        vectors = self.represent(model, batch)
        if not self._graded:
            identity = batch.targets["identity"].cpu().numpy()
            return {"vectors": vectors.cpu().numpy(), "identity": identity}
        return {
            "cosine": (vectors[:, 0] * vectors[:, 1]).sum(-1).cpu().numpy(),
            "score": batch.targets["score"].cpu().numpy(),
            "loss": self._losses(vectors, batch.targets).cpu().numpy(),
        }

    def join(self, records: Records) -> Records:
        """Return at which place each anchor finds its positive within its group, and the loss it has there."""
        import torch

        if self._graded or "vectors" not in records:
            return records
        parts = []
        for start in range(0, len(records["vectors"]), self.settings.candidates):
            group = slice(start, start + self.settings.candidates)
            vectors, identity = (torch.from_numpy(records[name][group]) for name in ("vectors", "identity"))
            cosines = self._cosines(vectors, identity)
            place = 1 + (cosines > cosines.diagonal()[:, None]).sum(1)
            parts.append({"place": place.numpy(), "loss": self._losses(vectors, {"identity": identity}).numpy()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def metrics(self, records: Records) -> dict[str, float]:
        """Mean reciprocal place and share of first places, or correlations of cosines and scores; and the mean loss."""
        loss = {"loss": float(records["loss"].mean())}
        if self._graded:
            return {**_correlations(records["cosine"], records["score"]), **loss}
        place = records["place"]
        return {"mrr": float((1 / place).mean()), "recall_at_1": float((place == 1).mean()), **loss}

    def figures(self, records: Records) -> list[dict[str, Any]]:
        if self._graded:
            return []
        rows = [[f"first {count}", float((records["place"] <= count).mean())] for count in (1, 3, 10, 100)]
        title = f"Positives found among {min(self.settings.candidates, len(records['place'])):,} rows"
        return [{"kind": "table", "title": title, "columns": ["among the", "share"], "rows": rows}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length)
        found = []
        for given in asked:  # each by itself, so a vector does not depend on what else was asked
            ids = [one["input_ids"] for one in encode_texts(self.tokenizer, [given["anchor"]], limit)]
            with torch.inference_mode():
                vector = self._vectors(model, self._batch(ids, {}, 0.0).to(str(model.device)))[0]
            found.append({**given, "embedding": [round(value, 7) for value in vector.tolist()]})
        return found

    def complete(self, folder: Path) -> None:
        """Write what sentence-transformers needs to open the folder: how hidden states become a vector."""
        from burnish.models.load import make_config

        width = make_config(folder, {}, None).get_text_config().hidden_size
        parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
        modules = [
            {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for name, path, kind in parts
        ]
        write_json(folder / "modules.json", modules)
        (folder / "1_Pooling").mkdir()
        write_json(
            folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        )
        (folder / "2_Normalize").mkdir()


def _identity(text: str) -> int:
    """Return a number that equal texts have in common."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big", signed=True)


def _number(row: Row) -> float:
    try:
        value = float("nan" if isinstance(row.values["score"], bool) else row.values["score"])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{row.where}: the score {row.values['score']!r} is no number; give one, such as 0.8.")
    return value


def _correlations(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

    if len(found) < 2 or np.ptp(found) == 0 or np.ptp(wanted) == 0:
        return {"spearman": 0.0, "pearson": 0.0}  # where one side never varies there is none
    pair = torch.from_numpy(found).double(), torch.from_numpy(wanted).double()
    return {"spearman": float(spearman_corrcoef(*pair)), "pearson": float(pearson_corrcoef(*pair))}
