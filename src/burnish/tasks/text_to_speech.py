"""Text to speech: a log-mel spectrum of each text, and samples of that."""

from __future__ import annotations

import hashlib
import re
import textwrap
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings, refuse_unused
from burnish.data.media import Decode, Decoders
from burnish.data.sounds import FULL, wav_of
from burnish.data.spelling import plain, tidy
from burnish.data.tokenizer import filled_up
from burnish.errors import UserError
from burnish.run import write_atomic
from burnish.task import Batch, Example, Records, Row, Task
from burnish.tasks.media import MediaTask
from burnish.tasks.sounds import LEAST_SECONDS

if TYPE_CHECKING:
    import torch

#: How far the durations of a text may be from the length of its sound, in seconds.
_SLACK = 0.1
#: Where sentences end.
_ENDS = re.compile(r"(?<=[.?!:;])\s+")


class TextToSpeechSettings(TaskSettings):
    """Say texts."""

    seconds: int = Field(20, ge=1, le=60)
    """The longest sound that is learned from; a longer one is left out and listed."""
    vocoder: str | None = None
    """A SpeechT5's HiFi-GAN, a folder or Hub id, that makes samples of its spectra. Default: Griffin and Lim's way."""


class Speech(MediaTask):
    """What every way to speak shares: rows of a text and its sound, spectra, and what is asked for.

    Samples are found by Griffin and Lim's way, a function of text, weights and seed, where no vocoder is given.
    """

    reads = "audio"
    writes = True
    use_settings = " --generate.sounds spoken"
    Settings = TextToSpeechSettings
    auto_class = "AutoModelForTextToSpectrogram"
    characters: frozenset[str]
    """Those that can be said."""
    at_once = 160
    """Longest text that is said at once, in characters; a longer one is cut after a sentence or between words."""

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self.extractor, self.words = tokenizer.feature_extractor, tokenizer.tokenizer
        self.rate: int = self.extractor.sampling_rate
        """Samples a second."""
        self.hop: int = self.extractor.sample_stride
        """Samples between frames."""

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"text": data.text, "audio": data.audio}

    @staticmethod
    def said(text: str) -> str:
        """Return a text as a model learns to say it."""
        return tidy(text)

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: TextToSpeechSettings) -> dict[str, Any]:
        """Return the characters of the texts, and the sign with which most of them end, if that is one."""
        texts = [cls.said(row.values["text"]) for row in rows]
        [(last, _)] = Counter(text[-1] for text in texts).most_common(1)
        return {"characters": sorted(set().union(*texts) - {" "}), "end": "" if last.isalnum() else last}

    # -- rows to examples --------------------------------------------------------------------------------------------

    def decoders(self, count: int | None = None) -> Decoders:
        return Decoders(count, self.rate, self.settings.seconds)

    def example(self, row: Row, decode: Decode) -> Example | str:
        sound, text = row.values["audio"], self.said(row.values["text"])
        samples = decode(sound, "sound")
        if isinstance(samples, str):
            return f"{sound.name} {samples}"
        if len(samples) > self.settings.seconds * self.rate:  # decoded by whoever gave it
            return f"{sound.name} is longer than {self.settings.seconds} seconds; cut it into pieces"
        if len(samples) < LEAST_SECONDS * self.rate:
            return f"{sound.name} is too short, {len(samples) / self.rate:.3f} seconds"
        if strange := sorted(set(text) - self.characters):
            return f"{sound.name}: its text holds {' '.join(strange[:10])}, which the model has no token for"
        found = self.learned(row, text, samples)
        return f"{sound.name}: {found}" if isinstance(found, str) else found

    @abstractmethod
    def learned(self, row: Row, text: str, samples: np.ndarray) -> Example | str:
        """Return what is learned of a text of known characters and its int16 samples, or why there is nothing."""

    def mels(self, samples: np.ndarray) -> np.ndarray:
        """Return the log-mel spectrum of int16 samples: float32 [frames, mels]."""
        heard = samples.astype(np.float32) / FULL
        found = self.extractor(audio_target=heard, sampling_rate=self.rate, return_tensors="np")
        return found["input_values"][0].astype(np.float32)

    # -- predictions -------------------------------------------------------------------------------------------------

    def asked_columns(self, data: DataSettings) -> dict[str, str]:
        return {"text": data.text}

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        answers = []
        for given in asked:
            pieces, left_out = self.pieces(given["text"])
            samples = np.concatenate([self.spoken(model, piece, seed) for piece in pieces])
            answer: dict[str, Any] = {"text": given["text"], "seconds": round(len(samples) / self.rate, 2)}
            if left_out:
                answer["left_out"] = left_out
            if settings.sounds is None:
                answer |= {"samples": samples.tolist()}
            else:
                answer["file"] = str(self._written(samples, given["text"], Path(settings.sounds)))
            answers.append(answer | {"rate": self.rate})
        return answers

    def pieces(self, text: str) -> tuple[list[str], str]:
        """Return what is said of a text, a sentence or less at once, and its characters that cannot be.

        Raises:
            UserError: none can be said.
        """
        whole = self._digits_named(self.said(text))
        left_out = "".join(sorted(set(whole) - self.characters))
        whole = tidy("".join(letter if letter in self.characters else " " for letter in whole))
        whole = re.sub(r" (?=[.,?!:;])", "", whole)
        if not any(letter.isalnum() for letter in whole):
            raise UserError(f"The text {text[:40]!r} holds nothing that this model can say.")
        found = [piece for sentence in _ENDS.split(whole) for piece in textwrap.wrap(sentence, self.at_once)]
        end = self.facts.get("end", "")
        return [piece + end if piece[-1].isalnum() else piece for piece in found], left_out

    def _digits_named(self, text: str) -> str:
        """Return a text with the name of each digit in English, where digits are not learned and the name can be spelled."""

        def named(found: re.Match[str]) -> str:
            word = "point" if found[0] == "." else unicodedata.name(found[0]).split()[-1].lower()
            return f" {word} " if set(word) <= self.characters else found[0]

        digits = r"\d|(?<=\d)\.(?=\d)"
        return text if any(letter.isdigit() for letter in self.characters) else re.sub(digits, named, text)

    @abstractmethod
    def spoken(self, model: Any, text: str, seed: int) -> np.ndarray:
        """Return the samples of a text of known characters: float32 from -1 to 1."""

    @cached_property
    def vocoder(self) -> Any:
        """What makes samples of spectra; None: Griffin and Lim's way.

        Raises:
            UserError: it is no vocoder for these spectra.
        """
        from burnish.models.speaking import load_vocoder

        name = self.settings.vocoder
        return None if name is None else load_vocoder(name, self.extractor.num_mel_bins, self.rate)

    def samples_of(self, mels: torch.Tensor, seed: int) -> np.ndarray:
        """Return samples with a log-mel spectrum [frames, mels]: float32 from -1 to 1, a function of it and the seed.

        Raises:
            UserError: the vocoder that is to make them is none.
        """
        import torch

        from burnish.ops.griffin_lim import griffin_lim, magnitudes_of

        if self.vocoder is not None:
            with torch.inference_mode():
                return self.vocoder(mels).clamp(-1, 1).numpy()
        filters = torch.from_numpy(self.extractor.mel_filters).float()
        magnitudes = magnitudes_of(10**mels.T, filters)
        window = torch.from_numpy(self.extractor.window).float()
        return griffin_lim(magnitudes, window, self.hop, seed).clamp(-1, 1).numpy()

    def _written(self, samples: np.ndarray, text: str, folder: Path) -> Path:
        """Write samples into a folder, whole, under a name made of their text and themselves, and return their file.

        Raises:
            UserError: it cannot be written.
        """
        digest = hashlib.sha256(text.encode() + samples.tobytes()).hexdigest()[:6]
        file = folder / f"{'-'.join(plain(text).replace(chr(39), '').split())[:40]}-{digest}.wav"
        try:
            write_atomic(file, wav_of(samples, self.rate))
        except OSError as error:
            raise UserError(f"generate.sounds: {file} cannot be written ({error.strerror}).") from error
        return file


class TextToSpeech(Speech):
    """A sound for each text: how long each character is, a spectrum of all at once, and samples that have it.

    The loss of a step is the absolute error of the log-mel spectrum, a mean over its bands, per frame, and the squared error
    of log(1 + frames) per character.

    Source: Ren et al. 2021 (FastSpeech 2), sections 2.2 and 2.3.
    """

    name = "text-to-speech"
    metric_names = ("mel_error", "duration_error", "loss")
    lower_is_better = frozenset({"mel_error", "duration_error", "loss"})

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        if config.model_type == "speecht5":
            from burnish.tasks.speech_t5 import SpeechT5

            return type(cls.__name__, (SpeechT5,), {"name": cls.name, "config": config, "__doc__": SpeechT5.__doc__})
        if config.model_type != "fastspeech":
            raise UserError(
                f"model: a {config.model_type} does not learn {cls.name} here. Give --preset fastspeech-micro, a SpeechT5, or "
                "a run of one."
            )
        refuse_unused("task", settings, ("vocoder",), "a fastspeech's spectra are not those it knows. Leave it out.")
        return cls

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        known: dict[str, int] = self.words.get_vocab()
        self._known = {letter: number for letter, number in known.items() if len(letter) == 1}
        self._known[" "] = self._known.pop(self.words.word_delimiter_token)
        self.characters = frozenset(self._known)

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        refuse_unused("data", data, ("speaker",), "a fastspeech learns one voice. Leave it out.")
        return super().columns(data) | {"durations": data.durations}

    @staticmethod
    def said(text: str) -> str:
        """Return a text as a model learns to say it: in lower case, one blank between words, apostrophes straight.

        >>> TextToSpeech.said(" It\u2019s  5 O'Clock!")
        "it's 5 o'clock!"
        """
        return tidy(text).lower().replace("\u2019", "'")

    def model_options(self) -> dict[str, Any]:
        return {
            "vocab_size": len(self.words),
            "pad_token_id": self.words.pad_token_id,
            "num_mel_bins": self.extractor.num_mel_bins,
        }

    def sight(self, model: Any) -> Any:
        import torch

        from burnish.models.vision import hear

        frames = self.settings.seconds * self.rate // self.hop
        ids, places = torch.zeros(1, frames // 4, dtype=torch.long), torch.zeros(1, frames, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "places": places}
        return hear(model, inputs, self.settings.seconds)

    # -- rows to examples --------------------------------------------------------------------------------------------

    def learned(self, row: Row, text: str, samples: np.ndarray) -> Example | str:
        mels = self.mels(samples)
        frames = self.frames_of(row.values["durations"], text, len(samples) / self.rate, len(mels))
        if isinstance(frames, str):
            return frames
        ids = np.array([self._known[letter] for letter in text])
        return {"ids": ids, "durations": frames, "mels": mels.ravel(), "positions": np.array([len(mels)])}

    def frames_of(self, durations: Any, text: str, seconds: float, frames: int) -> np.ndarray | str:
        """Return the frames of each character of a text, all of them together those of its sound, or why there are none.

        Args:
            durations: seconds of each character, as a row has them.
            seconds: of the sound.
        """
        try:
            given = np.asarray(durations, np.float64)
        except (TypeError, ValueError):
            given = np.empty(0)
        if given.shape != (len(text),):
            return f"its durations are not a list of {len(text)} numbers, the seconds of each character of its text"
        if not (given >= 0).all() or not abs(given.sum() - seconds) <= _SLACK:  # also where one is not a number
            return f"its durations are {given.sum():.2f} seconds together, its sound is {seconds:.2f}"
        ends = np.rint(given.cumsum() * self.rate / self.hop).astype(np.int64).clip(max=frames)
        ends[-1] = frames
        return np.diff(ends, prepend=0)

    # -- examples to batches -----------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        ids, mask = filled_up([example["ids"] for example in examples], self.words.pad_token_id)
        sizes = [int(example["positions"][0]) for example in examples]
        places = np.full((len(sizes), max(sizes)), -1)
        mels = np.zeros((len(sizes), max(sizes), self.extractor.num_mel_bins), np.float32)
        for row, (example, size) in enumerate(zip(examples, sizes, strict=True)):
            places[row, :size] = np.repeat(np.arange(len(example["ids"])), example["durations"])
            mels[row, :size] = example["mels"].reshape(size, -1)
        inputs = {"input_ids": ids, "attention_mask": mask, "places": places}
        characters = sum(len(example["ids"]) for example in examples)
        return Batch(
            {name: torch.as_tensor(value, dtype=torch.long) for name, value in inputs.items()},
            {"mels": torch.from_numpy(mels)},
            {"mel": float(sum(sizes)), "duration": float(characters)},
            sizes,
        )

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: value.sum() for name, value in self._errors(model, batch).items() if name != "seconds"}

    def score(self, model: Any, batch: Batch) -> Records:
        sums = {name: value.double().cpu().numpy() for name, value in self._errors(model, batch).items()}
        frames, characters = (batch.inputs["places"] >= 0).sum(1), batch.inputs["attention_mask"].sum(1)
        return sums | {"frames": frames.cpu().numpy(), "characters": characters.cpu().numpy()}

    def _errors(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return how far a model is from each row, summed over its frames or characters."""
        import torch

        output, places, mask = model(**batch.inputs), batch.inputs["places"], batch.inputs["attention_mask"]
        real, counts = places >= 0, torch.zeros_like(mask)
        counts = counts.scatter_add_(1, places.clamp_min(0), real.long())
        off = (output.spectrogram.float() - batch.targets["mels"]).abs().mean(2)
        lengths = output.log_durations.float()
        seconds = (lengths.detach().expm1().clamp_min(0) - counts).abs() * (self.hop / self.rate)
        return {
            "mel": (off * real).sum(1),
            "duration": ((lengths - counts.log1p()).square() * mask).sum(1),
            "seconds": (seconds * mask).sum(1),
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """Return the mean error of a log10-mel, with the true durations, and of a character's duration, in seconds."""
        frames, characters = records["frames"].sum(), records["characters"].sum()
        mel = float(records["mel"].sum() / frames)
        return {
            "mel_error": mel,
            "duration_error": float(records["seconds"].sum() / characters),
            "loss": mel + float(records["duration"].sum() / characters),
        }

    # -- predictions -------------------------------------------------------------------------------------------------

    def spoken(self, model: Any, text: str, seed: int) -> np.ndarray:
        """Return the samples of a text of known characters: float32 from -1 to 1."""
        import torch

        ids = torch.tensor([[self._known[letter] for letter in text]], device=model.device)
        with torch.inference_mode():
            mels = model(input_ids=ids).spectrogram[0].float().cpu()
        return self.samples_of(mels, seed)
