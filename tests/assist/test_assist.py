"""The assistant: where speech is, what is done for an intent, what is refused, in a terminal and over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import sys
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import burnish
from burnish.assist.act import Unfit, command_of, reply_of, run
from burnish.assist.chain import Chain, meant, plain
from burnish.assist.command import _blocks, _heard_by_people, _line, _utterances
from burnish.assist.ear import Ear
from burnish.assist.serve import Server
from burnish.assist.settings import Action, Assistant, read_assistant
from burnish.assist.voice import Voice, VoiceNet, load_voice
from burnish.data.sounds import wav_of
from burnish.errors import UserError
from burnish.terminal import Terminal, typed_lines
from forks import forks
from helpers import COMMAND, sentiment_rows
from helpers import burnish as command

QUIET = Terminal(quiet=True)
RATE = 16_000
#: Writes its arguments as JSON; stands for what a home's program does, and for one that speaks.
TELLS = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
SPEAKS = [
    sys.executable,
    "-c",
    "import sys, wave; w = wave.open(sys.stdout.buffer, 'wb'); w.setparams((1, 2, 8000, 0, 'NONE', ''));"
    " w.writeframes(bytes(2 * 80 * len(sys.argv[1])))",
    "{text}",
]


def tone(seconds: float, loudness: float = 0.3) -> np.ndarray:
    return (loudness * np.sin(np.arange(int(seconds * RATE)) * 0.3)).astype(np.float32)


def noise(seconds: float, loudness: float) -> np.ndarray:
    return (loudness * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("background", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("block", [160, 1_600, 16_001])
def test_what_is_said_is_cut_out_whole(background: float, block: int) -> None:
    sound = np.concatenate([0 * tone(1), tone(1.2), 0 * tone(0.9), tone(0.7), 0 * tone(1)])
    sound = sound + noise(len(sound) / RATE, background)[: len(sound)]
    ear, said = Ear(RATE, 0.5), []
    for start in range(0, len(sound), block):
        said += ear.hear(sound[start : start + block])
    assert [len(one) / RATE for one in (*said, *ear.end())] == pytest.approx([1.2 + 0.8, 0.7 + 0.8], abs=0.1)


def test_a_steady_noise_is_nobody_and_a_long_speech_is_cut() -> None:
    ear = Ear(RATE, 0.5)
    assert not list(ear.hear(noise(8, 0.05)))
    endless = np.concatenate([np.concatenate([tone(0.4), 0 * tone(0.2)]) for _ in range(60)])
    [first] = ear.hear(endless)
    assert len(first) / RATE == pytest.approx(30, abs=0.1)


def test_a_judge_says_where_speech_is(tmp_path: Path) -> None:
    """A network that always hears a voice, and one that never does; its probability is made of what it remembers too."""
    sound = noise(4, 0.001)
    for bias, heard in ((9.0, [4]), (-9.0, [])):
        torch.manual_seed(0)
        net = VoiceNet()
        with torch.no_grad():
            net.final_conv.bias.fill_(bias)
        ear = Ear(RATE, 0.5, Voice(net))
        assert [len(one) / RATE for one in (*ear.hear(sound), *ear.end())] == pytest.approx(heard, abs=0.1)
    frames = torch.randn(2, 1, 576)
    with torch.no_grad():
        first, state = net(frames[0], None)
        assert net(frames[1], state)[0] != net(frames[1], None)[0]
    save_file(net.state_dict(), tmp_path / "voice.safetensors")
    given, probability = load_voice(str(tmp_path / "voice.safetensors"))(frames[0], None)[0], first
    assert torch.equal(given, probability)


def test_slots_stay_within_their_words() -> None:
    """A shell would read the first, an option parser the second."""
    assert command_of(["light", "{room}"], {"room": "$(reboot); x"}) == ["light", "$(reboot); x"]
    for value in ("--help", "a\x1bb", "a\nb"):
        with pytest.raises(Unfit):
            command_of(["light", "{room}"], {"room": value})
    with pytest.raises(Unfit, match="room was not named"):
        command_of(["light", "{room}"], {})
    with pytest.raises(Unfit):
        reply_of(Action(reply=("{room} is lit.",)), {"item": "lamp"})


def test_a_program_that_fails_is_reported() -> None:
    assert run([*TELLS, "a b"], 5) == ('["a b"]', "")
    assert run([sys.executable, "-c", "raise SystemExit(3)"], 5) == ("", "ended with 3")
    assert "longer than 0.2 seconds" in run([sys.executable, "-c", "import time; time.sleep(9)"], 0.2)[1]
    assert "cannot be run" in run(["/no/such/program"], 5)[1]


def test_a_program_is_heard_until_it_ends_or_writes_too_much() -> None:
    """One that is done although what it started is not, and one that would fill the memory."""
    begun = time.monotonic()
    assert run(["sh", "-c", "sleep 5 & echo done"], 4) == ("done", "")
    assert run(["sh", "-c", "sleep 5 >&- 2>&- & exec >&- 2>&-; sleep 0.1; exit 3"], 4) == ("", "ended with 3")
    assert run(["yes"], 60) == ("", "wrote more than 64 MiB")
    assert time.monotonic() - begun < 3


def test_values_are_said_as_what_they_stand_for() -> None:
    words = read_assistant(Path("assistants/home.yaml")).understand.words
    for slot, said, wanted in (
        ("minutes", "half", "thirty"),
        ("seconds", "30-second", "30"),
        ("brightness", "20%", "20"),
    ):
        assert meant(said, words[slot]) == wanted
    assert meant("walk-in closet", {}) == "walk-in closet", "as it is where nothing is said of the slot"


def test_texts_become_what_commands_are_in_training() -> None:
    assert plain("  Set IT to 21.5 °C -- please?! ") == "set it to 21.5 °c please"
    assert plain("1/2 hour/ /s") == "1/2 hour s"
    assert plain("What's the baby’s name, e.g. Al-Amin's?") == "what's the baby's name e.g al-amin's"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "understand: give intents"),
        ({"understand": {"intents": "x"}}, "actions: say what is done"),
        (
            {"understand": {"intents": "x"}, "actions": {"go": {"reply": "{a"}}},
            r"actions.go: '{a'.*Write a slot as {name}",
        ),
        (
            {"understand": {"intents": "x"}, "actions": {"go": {"replly": "a"}}},
            "go.replly: unknown setting. Did you mean 'reply'?",
        ),
        ({"understand": {"chat": "x"}, "listen": None}, "listen: give settings by their names, or leave it out"),
        ({"understand": {"chat": "x"}, "actions": {"go": {"reply": "{a:d}"}}}, "a slot is a name and nothing else"),
        (
            {"understand": {"chat": "x"}, "actions": {"go": {"reply": "a", "run": "ls -l"}}},
            "actions.go.run: there is no program 'ls -l'",
        ),
        ({"understand": {"chat": "x"}, "speak": {"play": ["/no/such"]}}, "speak.play: there is no program '/no/such'"),
        (
            {"listen": {"pause": 60}, "understand": {"chat": "x"}},
            "listen.pause: 60 should be less than or equal to 5",
        ),
        ({"understand": {"chat": "x"}, "speak": {"model": "a", "command": ["b"]}}, "speak: give model or command"),
        ({"understand": {"chat": "nowhere/at-all"}}, "understand.chat: nowhere/at-all"),
        (
            {"listen": {"voice": "README.md"}, "understand": {"chat": "nowhere/at-all"}},
            r"listen.voice: README.md is no silero_vad_16k.safetensors \(.*assets.py silero-vad",
        ),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, given: dict, problem: str) -> None:
    path = tmp_path / "home.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match=problem):
        Chain(read_assistant(path))


@pytest.fixture(scope="module")
def intents(tiny_bert: Path, reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that tells positive from negative texts."""
    folder = tmp_path_factory.mktemp("assist") / "intents"
    train = {"length": "60 steps", "batch": 16, "precision": "fp32"}
    given: dict[str, Any] = {"model": str(tiny_bert), "data": str(reviews_file), "optim": {"lr": 5e-3}, "train": train}
    burnish.train("text-classification", terminal=QUIET, run={"dir": str(folder)}, **given)
    return str(folder)


@pytest.fixture(scope="module")
def home(intents: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assistant that does something for positive texts, and nothing for negative ones."""
    path = tmp_path_factory.mktemp("home") / "home.yaml"
    said = {"reply": ["{nothing} is on.", "Done: {output}"], "run": [*TELLS, "on", "a; b"]}
    assistant = {"understand": {"intents": intents}, "actions": {"positive": said}, "speak": {"command": SPEAKS}}
    path.write_text(yaml.safe_dump(assistant))
    return path


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {label: text for text, label in sentiment_rows(40)}


def test_a_request_is_carried_out_or_declined(home: Path, texts: dict[str, str]) -> None:
    chain = Chain(read_assistant(home))
    done = list(chain.respond(texts["positive"]))
    assert [event["stage"] for event in done] == ["understood", "ran", "reply", "spoke", "done"]
    assert done[0]["intent"] == "positive" and done[1]["command"][-2:] == ["on", "a; b"]
    assert done[2]["text"] == 'Done: ["on", "a; b"]'
    with wave.open(io.BytesIO(done[3]["wav"])) as sound:
        assert sound.getnframes() == 80 * len(done[2]["text"])
    assert done[4]["seconds"] >= sum(event["seconds"] for event in done[:4]) - 0.01
    other = list(chain.respond(texts["negative"]))
    assert [event["stage"] for event in other] == ["understood", "declined", "reply", "spoke", "done"]
    assert other[0]["intent"] is None and other[1]["why"] == "there is no action for 'negative'"
    assert other[2]["text"] == chain.assistant.refuse
    assert next(chain.respond(" ?! ")) | {"seconds": 0} == {
        "stage": "reply",
        "text": chain.assistant.silent,
        "seconds": 0,
    }
    with pytest.raises(UserError, match="reads only"):
        from burnish.assist.serve import utterances

        list(utterances(chain, object()))  # type: ignore[arg-type]


def test_an_uncertain_intent_is_declined(home: Path, texts: dict[str, str], tmp_path: Path) -> None:
    given = yaml.safe_load(home.read_text())
    given["understand"]["certain"] = 1.0
    (tmp_path / "home.yaml").write_text(yaml.safe_dump(given))
    first, second, *_ = Chain(read_assistant(tmp_path / "home.yaml")).respond(texts["positive"])
    assert first["intent"] is None and first["score"] < 1
    assert second["why"].startswith("positive is not certain enough (0.")


def test_a_part_for_another_task_is_named(intents: str, tmp_path: Path) -> None:
    path = tmp_path / "home.yaml"
    path.write_text(yaml.safe_dump({"understand": {"chat": intents}}))
    with pytest.raises(
        UserError, match=r"understand.chat: .* does text-classification; text-generation is needed there"
    ):
        Chain(read_assistant(path))
    said = {"understand": {"intents": intents, "guard": intents}, "actions": {"positive": {"reply": "Yes."}}}
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(UserError, match=r"understand\.guard: .* negative, positive, and 'unsafe' is none"):
        Chain(read_assistant(path))


def test_a_classifier_that_cannot_tell_the_intents_is_named(intents: str, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": float(label == "positive")} for text, label in sentiment_rows(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"data": str(tmp_path / "rows.jsonl"), "task": {"kind": "regression"}}
    number = run_of("text-classification", tmp_path / "number", 2, 1e-3, model=str(tiny_bert), **given)
    for judge, intent, problem in (
        (number, "positive", r"understand\.intents: it learned with task\.kind regression; single is needed there"),
        (intents, "positiv", r"negative, positive, and 'positiv' is none of them\. Did you mean 'positive'\?"),
    ):
        said = {"understand": {"intents": judge}, "actions": {intent: {"reply": "Yes."}}}
        (tmp_path / "home.yaml").write_text(yaml.safe_dump(said))
        with pytest.raises(UserError, match=problem):
            Chain(read_assistant(tmp_path / "home.yaml"))


def test_any_line_is_a_request(
    home: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long for a file name, of nobody's home, of no text at all; a sound that is missing is a problem of its own."""
    chain = Chain(read_assistant(home))
    said = ("x" * 300, "~nobody is there", "a\0b", "good \udcff king", "")
    assert [list(_utterances(chain, given)) for given in said] == [[one] for one in (*said[:3], "good \ufffd king", "")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good \xff king\nRIFF\0"), "utf-8"))
    lines = typed_lines("type", "Name a sound.")
    assert list(_utterances(chain, next(lines))) == ["good \ufffd king"]
    with pytest.raises(UserError, match=r"Standard input is no text\. Name a sound"):
        next(lines)
    missing = f"{tmp_path / 'nothing.wav'}"
    done = forks().run(COMMAND, "assist", home, "--json", input=f"{missing}\n{texts['positive']}\n")
    stages = [json.loads(line) for line in done.stdout.splitlines()]
    assert stages[0]["text"] == f"{missing}: no such file." and stages[-1]["stage"] == "done"
    assert done.returncode == 2 and "1 of 2 requests could not be answered" in done.stderr
    assert _line({"stage": "reply", "seconds": 0, "text": "a\x1b[2J\nb"}, False).isprintable()
    for words, problem in ((("--serve", 99_999), "from 0 to 65535"), (("a", "--serve", 1), "one of the three")):
        done = command("assist", home, *words)
        assert done.returncode == 2 and problem in done.stderr and "Traceback" not in done.stderr


def test_a_player_that_fails_is_told(tmp_path: Path) -> None:
    found = _heard_by_people(b"sound", ("false",), str(tmp_path), 1)
    assert found == {"wav": str(tmp_path / "1.wav"), "problem": "speak.play: false ended with 1"}
    assert _heard_by_people(b"sound", ("true",), None, 1) == {"wav": "5 bytes"}


def run_of(task: str, folder: Path, steps: int, lr: float, /, **settings: Any) -> str:
    """Train a run for a few steps and return its folder."""
    train = {"length": f"{steps} steps", "batch": 8, "precision": "fp32"}
    burnish.train(task, terminal=QUIET, run={"dir": str(folder)}, train=train, optim={"lr": lr}, **settings)
    return str(folder)


@pytest.fixture(scope="module")
def whole(
    intents: str, songs_folder: Path, tiny_bert: Path, tagged_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An assistant whose every part is a run; it hears and says letters from a to d, and finds waters."""
    folder, songs = tmp_path_factory.mktemp("whole"), {"data": {"train": str(songs_folder)}, "task": {"seconds": 2}}
    ears = run_of("automatic-speech-recognition", folder / "ears", 3, 1e-4, preset="w2v-bert-nano", **songs)
    slots = run_of("token-classification", folder / "slots", 40, 5e-3, model=str(tiny_bert), data=str(tagged_file))
    voice = run_of("text-to-speech", folder / "voice", 8, 1e-2, preset="fastspeech-nano", **songs)
    given = {
        "listen": {"model": ears},
        "understand": {"intents": intents, "slots": slots, "words": {"PERSON": {"old": "cold"}}, "certain": 0},
        "speak": {"model": voice},
        "actions": {label: {"reply": ["{WATER}", "{PERSON}", "dad"]} for label in ("positive", "negative")},
        "failed": "bad",
    }
    (folder / "home.yaml").write_text(yaml.safe_dump(given))
    return folder / "home.yaml"


def found_by(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events without how long they took, and the sound."""
    return [{name: value for name, value in event.items() if name not in ("seconds", "wav")} for event in events]


def test_each_stage_takes_what_the_one_before_found(whole: Path, tmp_path: Path) -> None:
    """From sound to sound, the same in a terminal and over HTTP; what is heard is understood as if it were read."""
    sound = wav_of(np.concatenate([0 * tone(0.5), tone(1), 0 * tone(1)]), RATE)
    (tmp_path / "said.wav").write_bytes(sound)
    said = tmp_path / "said.wav", "the king saw a river", "the old garden"
    done = command("assist", whole, "--json", "--replies", tmp_path, *said)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    heard, read, half_said = events[:5], events[5:9], events[9:]
    with served(whole) as server:
        streamed = talked(server, sound, "audio/wav")
        written = talked(server, heard[0]["text"].encode(), "text/plain")
    assert [event["stage"] for event in heard] == ["heard", "understood", "reply", "spoke", "done"]
    assert found_by(streamed) == found_by(heard) == [{"stage": "heard", "text": heard[0]["text"]}, *found_by(written)]
    voice = burnish.load(whole.parent / "voice")
    dad, bad = (wav_of(voice.predict(text)["samples"], RATE) for text in ("dad", "bad"))
    assert heard[2]["text"] == "dad" and base64.b64decode(streamed[3]["wav"]) == dad != bad
    assert (tmp_path / "1.wav").read_bytes() == dad
    assert read[0]["slots"]["WATER"] == "river" and read[1]["text"] == "river"
    assert "'river' holds nothing that this model can say" in read[2]["problem"]
    assert (tmp_path / "2.wav").read_bytes() == bad, "said instead"
    assert (
        half_said[0]["slots"]["PERSON"] == half_said[1]["text"] == "cold"
        and half_said[2]["left_out"] == "lo"
        and "left_out" not in heard[3]
    )


def test_what_fits_no_intent_is_answered_by_the_chat(intents: str, tiny_bert: Path, tmp_path: Path) -> None:
    """In words that it learned, unless a guard calls what was asked, or the answer, unsafe; here, what is good."""
    asked = ("Was the king bad?", "Was it awful?", "Was the king good?")
    learned = [{"question": text, "answer": "A good king."} for text in 8 * asked]
    told = [{"text": text, "label": {"positive": "unsafe"}.get(label, "safe")} for text, label in sentiment_rows(100)]
    for name, rows in (("chat", learned), ("guard", told)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat: dict[str, Any] = {
        "model": {"preset": "gpt2-nano", "vocab_size": 260},
        "data": {"train": str(tmp_path / "chat.jsonl"), "prompt": "question", "text": "answer", "holdout": 0},
        "generate": {"max_tokens": 20, "temperature": 0},
    }
    judge: dict[str, Any] = {"model": str(tiny_bert), "data": str(tmp_path / "guard.jsonl")}
    chats = run_of("text-generation", tmp_path / "chat", 40, 3e-3, **chat)
    guards = run_of("text-classification", tmp_path / "guard", 60, 5e-3, **judge)

    def answers(**more: str) -> list[dict[str, Any]]:
        said = {"understand": {"intents": intents, "certain": 1, "chat": chats, **more}}
        (tmp_path / "home.yaml").write_text(yaml.safe_dump(said | {"actions": {"positive": {"reply": "Yes."}}}))
        chain = Chain(read_assistant(tmp_path / "home.yaml"))
        return [event for text in (asked[0], asked[2]) for event in chain.respond(text) if event["stage"] != "done"]

    understood, answer, _, again = answers()
    assert understood["intent"] is None and answer["text"] == again["text"] == "A good king."
    safe, first, refused, unsafe, second, declined = answers(guard=guards)
    assert "unsafe" not in safe and refused["text"] == declined["text"] == Assistant().refuse, "the answer is not"
    assert first["why"] == "the guard calls the chat's answer unsafe"
    assert unsafe["unsafe"] and second["why"] == "the guard calls it unsafe"


def test_slots_that_no_model_finds_are_named(whole: Path, tmp_path: Path) -> None:
    given = yaml.safe_load(whole.read_text())
    for group, name, value, problem in (
        (
            "understand",
            "words",
            {"WATR": {"half": "thirty"}},
            r"understand\.words: .*, and no 'WATR'\. Did you mean 'WATER'",
        ),
        (
            "actions",
            "positive",
            {"reply": "{BRIDGE}"},
            r"actions\.positive: understand.slots finds PERSON, WATER, and no 'B",
        ),
    ):
        (tmp_path / "home.yaml").write_text(yaml.safe_dump({**given, group: {**given[group], name: value}}))
        with pytest.raises(UserError, match=problem):
            Chain(read_assistant(tmp_path / "home.yaml"))


def test_a_microphone_and_silence(whole: Path, tmp_path: Path) -> None:
    """Samples are cut where it is quiet; silence is answered, and a broken file is named."""
    sound = np.concatenate([0 * tone(0.5), tone(1.0), 0 * tone(1.0), tone(1.0), 0 * tone(1)])
    (tmp_path / "samples").write_bytes((sound * 32767).astype("<i2").tobytes() + b"1")
    microphone = f"import sys; sys.stdin = open({str(tmp_path / 'samples')!r}); {COMMAND}"
    streamed = forks().run(microphone, "assist", whole, "--json", "--microphone").stdout
    stages = [json.loads(line)["stage"] for line in streamed.splitlines()]
    assert stages.count("heard") == stages.count("done") == 2
    (tmp_path / "silence.wav").write_bytes(wav_of(0 * tone(1), RATE))
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "cut.wav").write_bytes(wav_of(tone(1), RATE)[:-100])
    done = command("assist", whole, "--json", *(tmp_path / f"{name}.wav" for name in ("broken", "cut", "silence")))
    broken, cut, silent, *_ = map(json.loads, done.stdout.splitlines())
    assert cut["stage"] == "problem" and "cut.wav is cut off: the last 100 bytes" in cut["text"]
    assert broken["stage"] == "problem" and "broken.wav cannot be decoded" in broken["text"]
    assert silent["text"] == "I did not hear anything." and done.returncode == 2 and "Traceback" not in done.stderr


def test_what_a_microphone_may_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples with an odd byte after them, or with a WAV file's header before them if that is whole and of such samples."""

    def heard(sent: bytes) -> list[int]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(sent))))
        return (np.concatenate([*_blocks(RATE), []]) * 32768).astype(int).tolist()

    file = wav_of(np.full(9, 0.5), RATE)
    endless = file[:40] + b"\x00\xff\xff\x7f" + file[44:]
    for sent in (file[44:], file[44:] + b"1", file, endless):
        assert heard(sent) == [16383] * 9
    assert heard(b"") == heard(b"1") == []
    for sent, problem in (
        (
            file[:30],
            r"header is broken \(it ends early\)\. Give one channel of 16 bits at 16,000 samples a second: arecord",
        ),
        (wav_of(tone(0.1), 8_000), "has 1 channels of 16 bits at 8,000 samples a second"),
    ):
        with pytest.raises(UserError, match=problem):
            heard(sent)
    assert [len(one) for one in Ear(RATE, 0.5).utterances([])] == [0], "nothing is answered too"


def test_a_program_that_cannot_speak_is_named(home: Path, texts: dict[str, str], tmp_path: Path) -> None:
    assert Chain(read_assistant(home))._sound_of_program("-a\0b").startswith(b"RIFF"), "a zero byte is left out"
    given = yaml.safe_load(home.read_text())
    given["speak"]["command"] = [sys.executable, "-c", "raise SystemExit(3)", "{text}"]
    (tmp_path / "home.yaml").write_text(yaml.safe_dump(given))
    *_, reply, spoke, _ = Chain(read_assistant(tmp_path / "home.yaml")).respond(texts["positive"])
    assert reply["text"].startswith("Done: ")
    assert "python" in spoke["problem"] and "ended with 3 and wrote 0 bytes" in spoke["problem"] and "wav" not in spoke


@contextmanager
def served(assistant: Path) -> Iterator[Server]:
    with Server(Chain(read_assistant(assistant)), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with served(home) as serving:
        yield serving


def talked(server: Server, body: bytes, kind: str) -> list[dict[str, Any]]:
    """Return the events that the server answers a sound or a text with."""
    return [json.loads(line) for line in asked(server, "POST", "/talk", body, Content_Type=kind)[1].splitlines()]


def asked(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_it_answers_over_http_and_strangers_are_refused(server: Server, texts: dict[str, str]) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page = asked(server, "GET", "/")
    assert status == 200 and b"<title>burnish assist</title>" in page
    said = texts["positive"].encode()
    status, body = asked(server, "POST", "/talk", said, Content_Type="text/plain; charset=utf-8")
    events = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and [event["stage"] for event in events] == ["understood", "ran", "reply", "spoke", "done"]
    assert base64.b64decode(events[3]["wav"]).startswith(b"RIFF")
    status, body = asked(server, "POST", "/talk", wav_of(tone(1), RATE), Content_Type="audio/wav")
    assert json.loads(body)["stage"] == "problem" and b"reads only" in body
    for headers in (
        {"Origin": "https://evil.example"},
        {"Host": "evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
    ):
        assert asked(server, "POST", "/talk", said, Content_Type="text/plain", **headers)[0] == 403
    assert asked(server, "POST", "/talk", said, Content_Type="application/json")[0] == 415
    assert asked(server, "POST", "/talk", b"", Content_Type="text/plain")[0] == 413
    assert asked(server, "POST", "/talk", said, Content_Type="text/plain", Content_Length=str(2**40))[0] == 413
    assert asked(server, "GET", "/../../etc/passwd")[0] == 404 and asked(server, "DELETE", "/talk")[0] == 501
    assert asked(server, "GET", "/health")[0] == 200, "it still answers"


def test_broken_requests_leave_it_alive(
    server: Server, texts: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A body that ends early is not acted on; clients that go away and those that come at once are each answered."""
    said = texts["positive"].encode()
    head = "POST /talk HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n"

    def sent(body: bytes, size: object) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", server.server_port), timeout=30)
        client.sendall(head.format(size).encode() + body)
        return client

    with sent(said, len(said) + 1) as client:
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    assert b" 400 " in answer and f"ended after {len(said)} of its {len(said) + 1} bytes".encode() in answer
    with sent(b"", "9" * 5_000) as client:
        assert b" 413 " in client.makefile("rb").read()
    for size in (len(said), len(said) + 1):
        client = sent(said, size)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        client.close()
    assert asked(server, "POST", "/talk", b"a" * 2_001, Content_Type="text/plain")[0] == 413
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: talked(server, text, "text/plain"), [said, b"?", said, b"?"]))
    assert [[event["stage"] for event in events][-3:-1] for events in answers] == [["reply", "spoke"]] * 4
    assert [events[-3]["text"][:4] for events in answers] == ["Done", "I di"] * 2
    assert "Traceback" not in capfd.readouterr().err
