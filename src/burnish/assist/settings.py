"""What an assistant is made of and what it can do, as its YAML file says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from burnish.config import Settings, Texts, read_recipe
from burnish.errors import UserError, nearest


class Listening(Settings):
    """How it hears."""

    model: str = ""
    """A run of automatic-speech-recognition or a model for it. Default: it reads only."""
    voice: str = ""
    """Silero's silero_vad_16k.safetensors, which tells speech from other sounds. Default: what is loud is speech."""
    pause: float = Field(0.5, ge=0.1, le=5)
    """Seconds of quiet that end what is said."""


class Understanding(Settings):
    """How it finds out what is wanted."""

    intents: str = ""
    """A run of text-classification whose labels are intents. One that no action is for is declined."""
    slots: str = ""
    """A run of token-classification whose entities are slots."""
    words: dict[str, dict[str, str]] = {}
    """What words in a slot's value stand for, by slot; an empty text leaves one out: `minutes: {half: thirty, minute: ""}`."""
    certain: float = Field(0.5, ge=0, le=1)
    """A less likely intent is declined."""
    chat: str = ""
    """A run of text-generation that answers where no intent is certain. Default: nothing does."""
    guard: str = ""
    """A run of text-classification with the label `unsafe`: what it calls so is declined, whatever it is."""


class Speaking(Settings):
    """How it talks."""

    model: str = ""
    """A run of text-to-speech. Default: it writes only."""
    command: Texts = ()
    """A program that writes a WAV file of `{text}` to its output instead, word by word: [espeak-ng, --stdout, "{text}"]."""
    play: Texts = ()
    """A program that plays a WAV file from its input: [aplay, -q]."""


class Action(Settings):
    """What is done for an intent."""

    reply: Annotated[Texts, BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
    """What is said: the first text whose slots, such as `{name}`, were all named; `{output}` is what the program wrote."""
    run: Texts = ()
    """A program with its words, in which slots are filled in too. No shell reads them."""
    seconds: float = Field(10, gt=0, le=600)
    """Longest that the program may take."""


class Assistant(Settings):
    """An assistant."""

    listen: Listening = Listening()
    understand: Understanding = Understanding()
    speak: Speaking = Speaking()
    actions: dict[str, Action] = {}
    """What it does, by intent."""
    refuse: str = "I am sorry, I cannot help with that."
    """What is said where nothing fits, or to what is not safe."""
    failed: str = "I am sorry, that did not work."
    """What is said where a program fails, or where the reply cannot be spoken."""
    silent: str = "I did not hear anything."
    """What is said where no words are heard."""


def read_assistant(path: Path) -> Assistant:
    """Return the assistant that a YAML file describes.

    Raises:
        UserError: the file cannot be read, a setting is wrong, a program is missing, or there is nothing to understand with.
    """
    values = read_recipe(path)
    try:
        found = Assistant.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_sentence(dict(problem)) for problem in error.errors())
        raise UserError(f"{path}: {' '.join(problems)}") from error
    if not (found.understand.intents or found.understand.chat):
        raise UserError(
            f"{path}: understand: give intents, a run of text-classification, or chat, one of text-generation."
        )
    if found.understand.intents and not found.actions:
        raise UserError(f"{path}: actions: say what is done for which intent, such as `turn_on: {{reply: Done.}}`.")
    if found.speak.model and found.speak.command:
        raise UserError(f"{path}: speak: give model or command, not both.")
    for intent, action in found.actions.items():
        if not action.reply:
            raise UserError(f"{path}: actions.{intent}.reply: give a text.")
        for text in (*action.reply, *action.run):
            slots_of(text, f"{path}: actions.{intent}")
    programs = {f"actions.{intent}.run": action.run for intent, action in found.actions.items()}
    for place, words in {**programs, "speak.command": found.speak.command, "speak.play": found.speak.play}.items():
        if words and shutil.which(words[0]) is None:
            raise UserError(
                f"{path}: {place}: there is no program {words[0]!r}. Write a program and its words as a list."
            )
    return found


def _sentence(problem: dict[str, Any]) -> str:
    """Return what pydantic found as a sentence that names the setting and, for an unknown one, the nearest known."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        groups = (Assistant, Listening, Understanding, Speaking, Action)
        known = [setting for group in groups for setting in group.model_fields]
        return f"{name}: unknown setting.{nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "model_type":
        return f"{name}: give settings by their names, or leave it out."
    return f"{name}: {problem['input']!r} {problem['msg'].removeprefix('Input ')}."


def slots_of(text: str, where: str = "") -> list[str]:
    """Return the slots that a text has room for.

    Raises:
        UserError: braces do not pair, or hold more than a name.

    >>> slots_of("{name} in the {area}")
    ['name', 'area']
    """
    try:
        fields = [field for field in Formatter().parse(text) if field[1] is not None]
        for _, name, form, turned in fields:
            if form or turned or not re.fullmatch(r"[^\W\d][\w-]*", str(name)):
                raise ValueError("a slot is a name and nothing else")
        return [str(name) for _, name, _, _ in fields]
    except ValueError as error:
        raise UserError(f"{where}: {text!r}: {error}. Write a slot as {{name}}, a brace as {{{{.") from error
