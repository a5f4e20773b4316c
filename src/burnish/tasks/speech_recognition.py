"""Automatic speech recognition: what is said, by a model that names a character at each frame (CTC), or by one that writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings, refuse_unused
from burnish.data.media import Decode, Decoders
from burnish.data.sounds import Sound
from burnish.data.spelling import plain, tidy
from burnish.data.tokenizer import filled_up
from burnish.errors import UserError
from burnish.generate.alignment import begins
from burnish.generate.ctc import aligned, beam_search, best_path, words_of
from burnish.task import Batch, Example, Records, Row, Task
from burnish.tasks.sounds import AudioTask

if TYPE_CHECKING:
    import torch

#: The longest sound that a prediction is made of, in seconds.
_MOST_SECONDS = 3_600
#: Long sounds are cut where it is quietest in the last part of what a model hears at once: this share of it.
_LAST = 0.3
#: How long a quiet moment is, in seconds.
_MOMENT = 0.1
#: Answers in the report.
_SHOWN = 20
#: Most tokens of an answer in evaluations: this many for each of the longest reference, and some more.
_LONGEST, _LEAST = 2, 20
#: How tokenizers write the blank before a word.
_BLANKS = ("Ġ", "▁")
#: Where the multilingual ones of Whisper's vocabularies begin.
_MULTILINGUAL = 51_865


class SpeechRecognitionSettings(TaskSettings):
    """Write what is said."""

    seconds: int = Field(30, ge=1, le=600)
    """The longest sound that is learned from; a longer one is left out and listed. Predictions cut long sounds there."""
    normalise: Literal["auto", "plain", "none"] = "auto"
    """plain: texts are learned and compared in lower case and without punctuation. none: as they stand. auto: a model that
    writes learns them as they stand, CTC plain ones, and both are compared plain."""
    language: str | None = None
    """Language of the sounds, such as `en`, for a Whisper of several."""
    translate: bool = False
    """A Whisper of several languages writes English, whatever is said."""


class Recognition(AudioTask):
    """A text for each sound, by CTC: at each frame a character or none. Judged by word and character errors.

    The loss of a step is -log of the probability of each text, all paths that give it summed, per character.

    Source: Graves et al. 2006 (CTC), section 4.
    """

    Settings = SpeechRecognitionSettings
    auto_class = "AutoModelForCTC"
    writes = True
    metric_names = ("wer", "cer", "loss")
    lower_is_better = frozenset({"wer", "cer", "loss"})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self.words = tokenizer.tokenizer
        """The tokenizer by which texts are written."""
        unused = "only a Whisper of several languages has it. Leave it out."
        if not self.several:
            refuse_unused("task", settings, ("language", "translate"), unused)

    @property
    def several(self) -> bool:
        """Whether the model is told which language it hears."""
        return False

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"audio": data.audio, "text": data.text}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: SpeechRecognitionSettings) -> dict[str, Any]:
        """Return the characters of the texts."""
        return {
            "characters": sorted({letter for row in rows for letter in cls.rule(settings)(row.values["text"])} - {" "})
        }

    @classmethod
    def rule(cls, settings: SpeechRecognitionSettings) -> Callable[[str], str]:
        """Return what makes a text one to learn."""
        return tidy if settings.normalise == "none" else plain

    def model_options(self) -> dict[str, Any]:
        return super().model_options() | {
            "vocab_size": len(self.words),
            "pad_token_id": self.blank,
            "ctc_loss_reduction": "sum",
        }

    @property
    def blank(self) -> int:
        """The token that says nothing new."""
        return self.words.pad_token_id

    # -- texts -------------------------------------------------------------------------------------------------------

    def learned(self, text: str) -> str:
        """Return a text as the model shall write it."""
        text, known = self.rule(self.settings)(text), self.words.get_vocab()
        shouts = self.settings.normalise != "none" and "A" in known and "a" not in known
        return text.upper() if shouts else text

    def compared(self, text: str) -> str:
        """Return a text as it is compared."""
        return tidy(text) if self.settings.normalise == "none" else plain(text)

    def ids_of(self, text: str) -> list[int] | str:
        """Return the tokens of a text, or why there are none."""
        text = self.learned(text)
        ids = list(self.words(text, add_special_tokens=False)["input_ids"])
        if self.words.unk_token_id in ids:
            known = self.words.get_vocab()
            strange = sorted({letter for letter in text if letter not in known and letter != " "})
            return f"holds {' '.join(strange[:10])}, which the model has no token for"
        return ids or "says nothing but punctuation"

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without repeats and blanks."""
        between = getattr(self.words, "word_delimiter_token", None)
        if between is None:
            return self.words.decode(list(ids), skip_special_tokens=True).strip()
        return "".join(self.words.convert_ids_to_tokens(list(ids))).replace(between, " ").strip()

    # -- rows to examples --------------------------------------------------------------------------------------------

    def example(self, row: Row, decode: Decode) -> Example | str:
        heard, ids = self.heard(row.values["audio"], decode), self.ids_of(row.values["text"])
        if isinstance(heard, str):
            return heard
        name = row.values["audio"].name
        if isinstance(ids, str):
            return f"{name}: its text {ids}"
        if problem := self.misfit(heard, ids):
            return f"{name}: {problem}"
        text = np.frombuffer(row.values["text"].encode(), np.uint8)
        return {**heard, "labels": np.array(ids), "text": text}

    def misfit(self, heard: Example, ids: Sequence[int]) -> str | None:
        """Return why a text does not fit into its sound or the model, or None."""
        needed, there = _needed(ids), self.positions(int(heard["frames"][0]))
        if needed <= there:
            return None
        return f"its text needs {needed} frames and the sound gives {there}; see whether they belong together"

    def vary(self, example: Example, draw: int, following: Example | None = None) -> Example:
        found = self.varied(example, draw, self.augment)
        if self.misfit(found, example["labels"].tolist()) is None:
            return found
        return self.varied(example, draw, self.augment.model_copy(update={"speed": 0.0}))  # too fast for its text

    # -- batches -----------------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        labels = [example["labels"] for example in examples]
        lengths = self.lengths(examples)
        targets = {
            "labels": torch.from_numpy(np.concatenate(labels).astype(np.int64)),
            "sizes": torch.tensor([len(ids) for ids in labels]),
            "frames": torch.tensor(lengths),
            **_texts_of(examples),
        }
        return Batch(self.inputs(examples), targets, {"loss": float(len(targets["labels"]))}, lengths)

    def _scores(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return log-probabilities: float32 [rows, frames, tokens]."""
        return model(**batch.inputs).logits.float().log_softmax(-1)

    def _losses(self, scores: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return -log of the probability of each row's text [rows]."""
        from torch.nn import functional

        given = targets["labels"], targets["frames"], targets["sizes"]
        return functional.ctc_loss(scores.transpose(0, 1), *given, blank=self.blank, reduction="none")

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self._losses(self._scores(model, batch), batch.targets).sum()}

    def score(self, model: Any, batch: Batch) -> Records:
        scores = self._scores(model, batch)
        nats = self._losses(scores, batch.targets).double().cpu().numpy()
        frames = batch.targets["frames"].tolist()
        paths = [best_path(row[:count].cpu().numpy(), self.blank) for row, count in zip(scores, frames, strict=True)]
        return {
            "nats": nats,
            "targets": batch.targets["sizes"].cpu().numpy(),
            "answer": _objects([self.spell(path) for path in paths]),
            "truth": _objects(_truth(batch)),
        }

    # -- figures -----------------------------------------------------------------------------------------------------

    def join(self, records: Records) -> Records:
        """Add the errors of each row and what they are counted by."""
        import jiwer

        counts = {name: [] for name in ("word_errors", "words", "character_errors", "characters")}
        for answer, truth in zip(records["answer"], records["truth"], strict=True):
            answer, truth = self.compared(answer), self.compared(truth)
            for unit, judge in (("word", jiwer.process_words), ("character", jiwer.process_characters)):
                if not truth:  # all that is heard is too much
                    size = len(answer.split()) if unit == "word" else len(answer)
                    counts[f"{unit}_errors"].append(size)
                    counts[f"{unit}s"].append(0)
                    continue
                found = judge(truth, answer)
                counts[f"{unit}_errors"].append(found.substitutions + found.deletions + found.insertions)
                counts[f"{unit}s"].append(found.hits + found.substitutions + found.deletions)
        return records | {name: np.array(values, np.float64) for name, values in counts.items()}

    def metrics(self, records: Records) -> dict[str, float]:
        """Word and character error rates of greedy answers (substitutions, deletions and insertions over what is said; 0 is
        none), and the mean loss of a token of the reference."""
        total = lambda name: float(records[name].sum())  # noqa: E731
        return {
            "wer": total("word_errors") / max(total("words"), 1.0),
            "cer": total("character_errors") / max(total("characters"), 1.0),
            "loss": total("nats") / max(total("targets"), 1.0),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        worst = np.argsort(-records["word_errors"], kind="stable")[:_SHOWN]
        rows = [
            [records["truth"][row], records["answer"][row], self._marked(records["truth"][row], records["answer"][row])]
            for row in worst.tolist()
            if records["word_errors"][row]
        ]
        columns = ["said", "heard", "words [said -> heard]"]
        return [{"kind": "table", "title": "Answers with the most errors", "columns": columns, "rows": rows}]

    def _marked(self, truth: str, answer: str) -> str:
        """Return an answer beside what was said, aligned: where they differ, both."""
        import jiwer

        truth, answer = self.compared(truth), self.compared(answer)
        if not truth:
            return f"[ -> {answer}]"
        found, pieces = jiwer.process_words(truth, answer), []
        said, heard = found.references[0], found.hypotheses[0]
        for chunk in found.alignments[0]:
            first = " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx])
            second = " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
            pieces.append(first if chunk.type == "equal" else f"[{first} -> {second}]")
        return " ".join(pieces)

    # -- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        answers = []
        with Decoders(1, self.rate, _MOST_SECONDS) as decoders:
            for sound, samples in self.asked_media(asked, decoders, "sound"):
                said = [
                    self._said(model, sound, samples[start:end], start / self.rate, settings)
                    for start, end in pieces(samples, self.rate, self.seconds)
                ]
                text = " ".join(text for text, _ in said if text)
                chunks = [chunk for _, some in said for chunk in some]
                answers.append({"audio": sound.name, "text": text, "chunks": chunks})
        return answers

    def _said(
        self, model: Any, sound: Sound, samples: np.ndarray, start: float, settings: GenerateSettings
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the text of a piece of a sound, and its words, each with the seconds between which it is said.

        Args:
            start: of the piece, in seconds.
        """
        import torch

        example = self.whole(sound, samples)
        inputs = {name: value.to(model.device) for name, value in self.inputs([example]).items()}
        with torch.inference_mode():
            scores = model(**inputs).logits.float().log_softmax(-1)[0].cpu().numpy()
        between = getattr(self.words, "word_delimiter_token_id", None)
        if settings.beams > 1:
            judge = words_of(settings.words) if settings.words else None
            given = scores, self.blank, settings.beams, self.spell, between, judge, settings.words_weight
            ids = beam_search(*given)
        else:
            unused = "only beams are judged by words; give --generate.beams."
            refuse_unused("generate", settings, ("words", "words_weight"), unused)
            ids = best_path(scores, self.blank)
        frames, second, found = aligned(scores, ids, self.blank), len(samples) / self.rate / len(scores), []
        word: list[int] = []
        for place, token in enumerate([*ids, between]):
            if token != between:
                word.append(place)
            elif word:
                text = self.spell([ids[one] for one in word])
                found.append(_chunk(text, start + frames[word[0]] * second, start + (frames[word[-1]] + 1) * second))
                word = []
        return " ".join(chunk["text"] for chunk in found), found


class _Writing(Recognition):
    """A text for each sound, written a token after another by a decoder that sees what an encoder hears."""

    version = 2
    auto_class = "AutoModelForSpeechSeq2Seq"
    ends = True
    _heard: tuple[Batch, dict[str, Any]] | None = None

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        if self.several:
            if settings.language is None:  # type: ignore  (of this task's class)
                raise UserError("task.language: this Whisper knows several; give the one of the sounds, such as en.")
            task = "translate" if self.settings.translate else "transcribe"
            try:
                self.words.set_prefix_tokens(language=self.settings.language, task=task, predict_timestamps=False)
                _ = self.words.prefix_tokens
            except ValueError as error:
                raise UserError(f"task.language: {' '.join(str(error).split())[:200]}") from error

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: SpeechRecognitionSettings) -> dict[str, Any]:
        return super().learn(rows, settings) if cls._new() else {}  # else its tokenizer comes with it

    @classmethod
    def rule(cls, settings: SpeechRecognitionSettings) -> Callable[[str], str]:
        return plain if settings.normalise == "plain" else tidy

    @classmethod
    def _new(cls) -> bool:
        """Return whether the model is from scratch, so that it has no tokens of its own."""
        return cls.config.bos_token_id is None

    @property
    def several(self) -> bool:
        return self.config.model_type == "whisper" and self.config.vocab_size >= _MULTILINGUAL

    @cached_property
    def before(self) -> list[int]:
        """The tokens before an answer."""
        first = self.blank if self._new() else self.config.decoder_start_token_id
        return list(getattr(self.words, "prefix_tokens", None) or [first])

    @property
    def _lead(self) -> str:
        """What stands before a text: a Whisper was taught to write a blank there, as before any word of a sentence."""
        spells = hasattr(self.words, "word_delimiter_token")
        return " " if self.config.model_type == "whisper" and not spells else ""

    @property
    def room(self) -> int:
        """How many tokens fit into the decoder."""
        limits = (getattr(self.config, name, None) for name in ("max_target_positions", "max_position_embeddings"))
        return next((limit for limit in limits if isinstance(limit, int)), 448)

    def model_options(self) -> dict[str, Any]:
        own = {"bos_token_id": self.blank, "pad_token_id": self.blank, "decoder_start_token_id": self.blank}
        own |= {"vocab_size": len(self.words), "eos_token_id": self.words.eos_token_id}
        own |= {"suppress_tokens": None, "begin_suppress_tokens": None}
        return AudioTask.model_options(self) | (own if self._new() else {})

    def check(self, model: Any) -> None:
        from burnish.models.logits import whole_logits

        AudioTask.check(self, model)
        whole_logits(model)

    def largest(self, features: np.ndarray) -> dict[str, torch.Tensor]:
        import torch

        return {**super().largest(features), "decoder_input_ids": torch.zeros(1, 8, dtype=torch.long)}

    def ids_of(self, text: str) -> list[int] | str:
        ids = list(self.words(self._lead + self.learned(text), add_special_tokens=False)["input_ids"])
        if self.words.unk_token_id in ids and self.words.unk_token_id != self.words.eos_token_id:
            return "holds characters that the tokenizer does not know"
        return [*ids, self.words.eos_token_id] if self.spell(ids) else "says nothing"

    def misfit(self, heard: Example, ids: Sequence[int]) -> str | None:
        needed = len(self.before) + len(ids) - 1
        return None if needed <= self.room else f"its text has {needed} tokens, the model has room for {self.room}"

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        first = self.before
        written = [np.concatenate([first, example["labels"][:-1]]).astype(np.int64) for example in examples]
        ids, _ = filled_up(written, self.words.eos_token_id)
        sizes = [len(example["labels"]) for example in examples]
        longest = ids.shape[1]
        places = [row * longest + len(first) - 1 + np.arange(size) for row, size in enumerate(sizes)]
        # No mask of the decoder: what fills it up stands on the right, where causal attention never looks.
        targets = {
            "labels": torch.from_numpy(np.concatenate([example["labels"] for example in examples]).astype(np.int64)),
            "places": torch.from_numpy(np.concatenate(places)),
            "row": torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
            **_texts_of(examples),
        }
        inputs = {**self.inputs(examples), "decoder_input_ids": torch.from_numpy(ids)}
        return Batch(inputs, targets, {"loss": float(sum(sizes))}, self.lengths(examples))

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from burnish.models.logits import loss_sum

        return {"loss": loss_sum(model, batch.inputs, batch.targets["labels"], batch.targets["places"])}

    def score(self, model: Any, batch: Batch) -> Records:
        from burnish.models.logits import losses

        inputs = {"decoder_input_ids": batch.inputs["decoder_input_ids"], **self._encoded_once(model, batch)}
        nats = losses(model, inputs, batch.targets["labels"], batch.targets["places"]).double().cpu().numpy()
        row, rows = batch.targets["row"].cpu().numpy(), len(batch.inputs["decoder_input_ids"])
        sums = {"nats": np.bincount(row, nats, rows), "targets": np.bincount(row, minlength=rows)}
        return {**sums, "truth": _objects(_truth(batch))}

    def write(self, model: Any, batch: Batch) -> Records:
        longest = int(batch.targets["row"].bincount().max())
        settings = GenerateSettings(max_tokens=_LEAST + _LONGEST * longest)
        rows = len(batch.inputs["decoder_input_ids"])
        heard, self._heard = self._encoded_once(model, batch), None
        return {"answer": _objects(list(map(self.spell, self._written(model, heard, rows, settings))))}

    def _encoded_once(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Return what the encoder makes of a batch, which is scored and then written of."""
        if self._heard is None or self._heard[0] is not batch:
            inputs = {name: value for name, value in batch.inputs.items() if name != "decoder_input_ids"}
            self._heard = batch, self._encoded(model, inputs)
        return self._heard[1]

    def _encoded(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the encoder makes of sounds, as the model takes it."""
        mask = {name: value for name, value in inputs.items() if name == "attention_mask"}
        return {"encoder_outputs": model.get_encoder()(**inputs), **mask}

    def _written(self, model: Any, heard: Mapping[str, Any], rows: int, settings: GenerateSettings) -> list[list[int]]:
        """Return the tokens that the model writes of each of some rows that it hears."""
        import torch
        from transformers import GenerationMixin

        from burnish.generate.sample import generation_config
        from burnish.models.load import quiet

        most = self.room - len(self.before)
        if "max_tokens" in settings.model_fields_set:  # else a text that is said fast would be cut
            most = min(most, settings.max_tokens)
        config = generation_config(model, self.words, settings, most, 0.0)
        special = set(self.words.all_special_ids) | {*self.words.get_added_vocab().values()}
        special -= {self.words.eos_token_id, getattr(self.words, "word_delimiter_token_id", None)}
        config.suppress_tokens = [*(config.suppress_tokens or []), *sorted(special)] or None
        first = torch.tensor([self.before] * rows, device=model.device)
        with torch.inference_mode(), quiet():  # transformers' own of any model: Whisper's has rules beside these
            output = GenerationMixin.generate(model, **heard, decoder_input_ids=first, generation_config=config)
        ends = {self.words.eos_token_id, self.words.pad_token_id}
        answers = output[:, len(self.before) :].tolist()
        return [list(takewhile(lambda token: token not in ends, ids)) for ids in answers]

    def _said(
        self, model: Any, sound: Sound, samples: np.ndarray, start: float, settings: GenerateSettings
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the text of a piece of a sound, and its words as blanks set them apart, each with its seconds."""
        import torch

        refuse_unused("generate", settings, ("words", "words_weight"), "only CTC is judged by words. Leave it out.")
        inputs = {name: value.to(model.device) for name, value in self.inputs([self.whole(sound, samples)]).items()}
        with torch.inference_mode():
            heard = self._encoded(model, inputs)
        [ids] = self._written(model, heard, 1, settings)
        if not self.spell(ids):
            return "", []
        frames = heard["encoder_outputs"][0].shape[1]
        second = (self.extractor.n_samples if self.window else len(samples)) / self.rate / frames
        sounding = min(frames, math.ceil(len(samples) / self.rate / second))
        times = [start + second * frame for frame in begins(model, heard, self.before, ids, sounding)]
        words = [(self.spell(ids[first:end]), times[first], times[end]) for first, end in self._words(ids)]
        return self.spell(ids), [_chunk(*word) for word in words if word[0]]

    def _words(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return between which tokens each word stands: a token that begins with a blank begins a word."""
        tokens = self.words.convert_ids_to_tokens(list(ids))
        blanks = (*_BLANKS, getattr(self.words, "word_delimiter_token", _BLANKS[0]))
        starts = [place for place, token in enumerate(tokens) if not place or token.startswith(blanks)]
        return list(pairwise([*starts, len(ids)]))


class SpeechRecognition(Recognition):
    """A text for each sound, by CTC or by a decoder; judged by word and character errors."""

    name = "automatic-speech-recognition"
    auto_classes = ("AutoModelForSpeechSeq2Seq",)

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        if not config.is_encoder_decoder:
            return super().suited(config, settings)
        writing: type[Task] = type(cls.__name__, (_Writing,), {"name": cls.name, "__doc__": _Writing.__doc__})
        return writing.suited(config, settings)


def pieces(samples: np.ndarray, rate: int, seconds: int) -> list[tuple[int, int]]:
    """Return where a sound is cut into pieces of at most some seconds: where it is quietest near the end of each.

    >>> loud = np.full(250, 900, np.int16); loud[90:94] = 0
    >>> pieces(loud, 10, 10)
    [(0, 92), (92, 192), (192, 250)]
    """
    most, moment, found, start = seconds * rate, max(1, round(_MOMENT * rate)), [], 0
    while len(samples) - start > most:
        last = samples[start + int((1 - _LAST) * most) : start + most].astype(np.float64)
        power = np.convolve(np.square(last), np.ones(moment), "same")
        lowest = power.min()
        quiet = np.flatnonzero(power <= lowest)
        flat = lowest >= power.max()
        cut = start + most if flat else start + most - len(last) + int(quiet[len(quiet) // 2])
        found.append((start, cut))
        start = cut
    return [*found, (start, len(samples))]


def _needed(ids: Sequence[int]) -> int:
    """Return the fewest frames in which CTC can say tokens: between two that are equal there is one that says nothing."""
    return len(ids) + sum(first == second for first, second in pairwise(ids))


def _chunk(text: str, start: float, end: float) -> dict[str, Any]:
    return {"text": text, "start": round(start, 2), "end": round(end, 2)}


def _texts_of(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return the texts of examples as bytes, with their lengths, so that they can be told apart."""
    import torch

    texts = [example["text"].tobytes() for example in examples]
    joined = np.frombuffer(b"".join(texts), np.uint8).copy()
    return {"texts": torch.from_numpy(joined), "text_sizes": torch.tensor([len(text) for text in texts])}


def _truth(batch: Batch) -> list[str]:
    whole, ends = batch.targets["texts"].cpu().numpy().tobytes(), batch.targets["text_sizes"].cumsum(0).tolist()
    return [whole[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


def _objects(texts: Sequence[str]) -> np.ndarray:
    """Return texts as an array of objects, which holds them whole."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array
