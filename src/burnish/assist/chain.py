"""The chain from what is said to what is answered, stage by stage, each with the time it took."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from burnish.assist.act import OUTPUT, Failed, Unfit, command_of, finished, reply_of, run
from burnish.assist.ear import Ear
from burnish.assist.settings import Assistant, slots_of
from burnish.assist.voice import RATE, Voice, load_voice
from burnish.data.sounds import wav_of
from burnish.errors import BurnishError, UserError, nearest
from burnish.inference import Opened, open_model

Event = dict[str, Any]
"""What a stage found: its name in `stage`, its `seconds`, and more; `wav` of speech is the bytes of a file, `left_out` the
letters that are not in it. What went wrong is in `problem`."""

#: The label of a guard for what is declined.
UNSAFE = "unsafe"
#: Longest that a program may take to speak.
_SPEAKING_SECONDS = 30.0
_PARTS = {
    "listen.model": "automatic-speech-recognition",
    "understand.intents": "text-classification",
    "understand.slots": "token-classification",
    "understand.chat": "text-generation",
    "understand.guard": "text-classification",
    "speak.model": "text-to-speech",
}


def plain(text: str) -> str:
    """Return a text as commands are written in training: small letters, no marks but those inside words and numbers.

    >>> plain("Turn on the Kitchen light, please!  Set it to 72.5%.")
    'turn on the kitchen light please set it to 72.5%'
    """
    text = text.lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w\s%°'.:/-]|[.:'/-](?!\w)|(?<!\w)[.:'/-]", " ", text).split())


def meant(value: str, words: Mapping[str, str]) -> str:
    """Return a slot's value with each of its words, or marks but hyphens, as what it stands for.

    >>> words = {"half": "thirty", "minute": "", "%": ""}
    >>> [meant(value, words) for value in ("half", "5-minute", "20%", "twenty-one minute")]
    ['thirty', '5', '20', 'twenty one']
    """
    if not words:
        return value
    return " ".join(filter(None, (words.get(word, word) for word in re.findall(r"[\w.,:/']+|[^\w\s-]", value))))


class Chain:
    """An assistant with its models opened.

    Raises:
        UserError: a part is missing, or is for another task than its place.
    """

    def __init__(self, assistant: Assistant):
        self.assistant = assistant
        self._voice = load_voice(assistant.listen.voice) if assistant.listen.voice else None
        self._parts = {place: part for place in _PARTS if (part := self._open(place)) is not None}
        if self._voice and self.hears and self.rate != RATE:
            raise UserError(f"listen.voice: it hears {RATE:,} samples a second, and listen.model {self.rate:,}.")
        for place, wanted in (("understand.guard", (UNSAFE,)), ("understand.intents", assistant.actions)):
            if place in self._parts:
                self._check_labels(place, wanted)
        if "understand.slots" in self._parts:
            self._check_slots()

    def _open(self, place: str) -> Opened | None:
        group, _, name = place.partition(".")
        target = getattr(getattr(self.assistant, group), name)
        if not target:
            return None
        try:
            part = open_model(target)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if part.task_class.name != _PARTS[place]:
            raise UserError(f"{place}: {target} does {part.task_class.name}; {_PARTS[place]} is needed there.")
        if len(part.asks) > 1:
            raise UserError(f"{place}: {target} asks for {', '.join(part.asks.values())}; there is one text only.")
        return part

    def _check_labels(self, place: str, wanted: Iterable[str]) -> None:
        """Raise an error unless a classifier gives a text one label, and the wanted ones are among its labels."""
        task: Any = self._parts[place].task  # text-classification
        if task.kind != "single":
            raise UserError(f"{place}: it learned with task.kind {task.kind}; single is needed there.")
        for label in wanted:
            if label not in task.names:
                near = nearest(label, task.names)
                raise UserError(
                    f"{place}: its labels are {', '.join(task.names)}, and {label!r} is none of them.{near}"
                )

    def _check_slots(self) -> None:
        """Raise an error unless the model for slots finds every slot that the file names."""
        known = {re.sub("^[BI]-", "", label) for label in self._parts["understand.slots"].task.facts["labels"]}
        named = [("understand.words", slot) for slot in self.assistant.understand.words]
        for intent, action in self.assistant.actions.items():
            named += [(f"actions.{intent}", slot) for text in (*action.reply, *action.run) for slot in slots_of(text)]
        for place, slot in named:
            if slot not in known | {OUTPUT}:
                slots = ", ".join(sorted(known - {"O"}))
                raise UserError(f"{place}: understand.slots finds {slots}, and no {slot!r}.{nearest(slot, known)}")

    @property
    def hears(self) -> bool:
        """Whether it takes sounds."""
        return "listen.model" in self._parts

    @property
    def rate(self) -> int:
        """Samples a second that it hears."""
        task: Any = self._parts["listen.model"].task  # automatic-speech-recognition
        return task.rate

    def ear(self) -> Ear:
        """Return what cuts a stream of samples into utterances."""
        return Ear(self.rate, self.assistant.listen.pause, Voice(self._voice) if self._voice else None)

    # -- the stages --------------------------------------------------------------------------------------------------

    def answers(self, said: Iterable[str | np.ndarray]) -> Iterator[Event]:
        """Yield what the stages find for one text or utterance after another; an error ends it, as the stage `problem`."""
        try:
            for one in said:
                yield from self.respond(one)
        except BurnishError as error:
            yield {"stage": "problem", "text": str(error), "seconds": 0.0}

    def respond(self, said: str | np.ndarray) -> Iterator[Event]:
        """Yield what each stage finds, as soon as it does; the last is `done`, with the seconds of all.

        Args:
            said: a text, or float32 samples [samples] of one utterance, `rate` a second.
        """
        begun = time.perf_counter()
        for stage in self._stages(said):
            before = time.perf_counter()
            for event in stage:
                now = time.perf_counter()
                yield {**event, "seconds": round(now - before, 3)}
                before = now
        yield {"stage": "done", "seconds": round(time.perf_counter() - begun, 3)}

    def _stages(self, said: str | np.ndarray) -> Iterator[Iterator[Event]]:
        self._reply = ""
        self._text = said if isinstance(said, str) else ""
        if not isinstance(said, str) and len(said):
            yield self._recognise(said)
        if plain(self._text):
            yield self._understand()
        else:
            self._reply = self.assistant.silent
            yield iter([{"stage": "reply", "text": self._reply}])
        if self._reply.strip() and ("speak.model" in self._parts or self.assistant.speak.command):
            yield self._speak()

    def _recognise(self, samples: np.ndarray) -> Iterator[Event]:
        [heard] = self._ask("listen.model", samples)
        self._text = heard["text"].strip()
        yield {"stage": "heard", "text": self._text}

    def _understand(self) -> Iterator[Event]:
        text, assistant = plain(self._text), self.assistant
        if self._is_unsafe(text):
            yield {"stage": "understood", "intent": None, "unsafe": True}
            yield {"stage": "declined", "why": "the guard calls it unsafe"}
            yield self._say(assistant.refuse)
            return
        intent, score, why = self._intent(text)
        slots = self._slots(text) if intent is not None else {}
        yield {"stage": "understood", "intent": intent, "score": score, "slots": slots}
        if intent is not None:
            yield from self._act(intent, slots)
            return
        if "understand.chat" in self._parts:
            [answer] = self._ask("understand.chat", self._text)
            generated = answer["generated"].strip()
            if generated and not self._is_unsafe(plain(generated)):
                yield self._say(generated)
                return
            why = "the guard calls the chat's answer unsafe" if generated else "the chat has no answer"
        yield {"stage": "declined", "why": why}
        yield self._say(assistant.refuse)

    def _act(self, intent: str, slots: dict[str, str]) -> Iterator[Event]:
        action = self.assistant.actions[intent]
        try:
            reply = reply_of(action, slots)
            words = command_of(action.run, slots)
        except Unfit as error:
            yield {"stage": "declined", "why": str(error)}
            yield self._say(self.assistant.refuse)
            return
        written = problem = ""
        if words:
            written, problem = run(words, action.seconds)
            yield {"stage": "ran", "command": words, **({"problem": problem} if problem else {})}
        yield self._say(self.assistant.failed if problem else reply.format_map({**slots, OUTPUT: written}))

    def _speak(self) -> Iterator[Event]:
        """Say the reply; what cannot be said is a `problem`, and `failed` is said instead, unless that cannot be either."""
        event: Event = {"stage": "spoke"}
        for text in (self._reply, self.assistant.failed):
            try:
                event |= self._spoken(text)
                break
            except UserError as error:
                event.setdefault("problem", str(error))
        yield event

    def _spoken(self, text: str) -> Event:
        """Return a text as a sound in `wav`, and those of its letters that the voice does not know in `left_out`.

        Raises:
            UserError: it cannot be said.
        """
        if "speak.model" not in self._parts:
            return {"wav": self._sound_of_program(text)}
        [answer] = self._ask("speak.model", text)
        left_out = {"left_out": answer["left_out"]} if "left_out" in answer else {}
        return {"wav": wav_of(answer["samples"], answer["rate"]), **left_out}

    def _sound_of_program(self, text: str) -> bytes:
        """Return the WAV file that a program writes of a text.

        Raises:
            UserError: it writes none.
        """
        spoken = "".join(letter if letter.isprintable() else " " for letter in text)  # no program gets a zero byte
        spoken = spoken.lstrip("- ")  # it would take it for an option
        words = [word.replace("{text}", spoken) for word in self.assistant.speak.command]
        try:
            code, sound, _ = finished(words, _SPEAKING_SECONDS)
        except Failed as error:
            raise UserError(f"speak.command: {words[0]} {error}.") from error
        if code or not sound:
            raise UserError(f"speak.command: {words[0]} ended with {code} and wrote {len(sound)} bytes.")
        return sound

    # -- what the stages ask -----------------------------------------------------------------------------------------

    def _say(self, text: str) -> Event:
        self._reply = text
        return {"stage": "reply", "text": text}

    def _ask(self, place: str, asked: Any) -> list[dict[str, Any]]:
        return self._parts[place].predict([asked], {}, 0)

    def _is_unsafe(self, text: str) -> bool:
        if "understand.guard" not in self._parts:
            return False
        return self._ask("understand.guard", text)[0]["label"] == UNSAFE

    def _intent(self, text: str) -> tuple[str | None, float | None, str]:
        """Return the intent that there is an action for, or None and why, and the probability of what was found."""
        if "understand.intents" not in self._parts:
            return None, None, "nothing finds intents"
        [found] = self._ask("understand.intents", text)
        label, score, least = found["label"], found["score"], self.assistant.understand.certain
        if label not in self.assistant.actions:
            return None, score, f"there is no action for {label!r}"
        if score < least:
            return None, score, f"{label} is not certain enough ({score:.2f}, understand.certain is {least:g})"
        return label, score, ""

    def _slots(self, text: str) -> dict[str, str]:
        """Return the first value of each slot that the text names, in the words that it stands for."""
        if "understand.slots" not in self._parts:
            return {}
        [found] = self._ask("understand.slots", text)
        slots: dict[str, str] = {}
        for entity in found["entities"]:
            name = entity["type"]
            if value := meant(entity["text"], self.assistant.understand.words.get(name, {})):
                slots.setdefault(name, value)
        return slots
