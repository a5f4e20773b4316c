"""The assistant: where speech is, what is done for an intent, what is refused, in a terminal and over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import burnish
from burnish.assist.act import Unfit, command_of, reply_of, run
from burnish.assist.chain import Chain, plain
from burnish.assist.ear import Ear
from burnish.assist.serve import Server
from burnish.assist.settings import Action, read_assistant
from burnish.assist.voice import Voice, VoiceNet, load_voice
from burnish.data.sounds import wav_of
from burnish.errors import UserError
from burnish.terminal import Terminal
from helpers import sentiment_rows

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


def test_texts_become_what_commands_are_in_training() -> None:
    assert plain("  Set IT to 21.5 °C -- please?! ") == "set it to 21.5 °c please"
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
        ({"understand": {"intents": "x"}, "actions": {"go": {"replly": "a"}}}, "actions.go.replly"),
        (
            {"listen": {"pause": 60}, "understand": {"chat": "x"}},
            "listen.pause: Input should be less than or equal to 5",
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
    assert [event["stage"] for event in other] == ["understood", "reply", "spoke", "done"]
    assert other[0]["intent"] is None and other[1]["text"] == chain.assistant.refuse
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
    first = next(Chain(read_assistant(tmp_path / "home.yaml")).respond(texts["positive"]))
    assert first["intent"] is None and first["score"] < 1


def test_a_part_for_another_task_is_named(intents: str, tmp_path: Path) -> None:
    path = tmp_path / "home.yaml"
    path.write_text(yaml.safe_dump({"understand": {"chat": intents}}))
    with pytest.raises(
        UserError, match=r"understand.chat: .* does text-classification; text-generation is needed there"
    ):
        Chain(read_assistant(path))
    said = {"understand": {"intents": intents, "guard": intents}, "actions": {"positive": {"reply": "Yes."}}}
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(UserError, match=r"understand\.guard: its labels are negative, positive; one is to be 'unsafe'"):
        Chain(read_assistant(path))


def test_what_is_heard_is_understood(songs_folder: Path, intents: str, tmp_path: Path) -> None:
    """Sounds go through recognition; silence is answered, and samples of a microphone are cut where it is quiet."""
    ears = burnish.train(
        "automatic-speech-recognition",
        terminal=QUIET,
        run={"dir": str(tmp_path / "ears")},
        preset="w2v-bert-nano",
        data={"train": str(songs_folder)},
        task={"seconds": 2},
        train={"length": "22 steps", "batch": 8, "precision": "fp32"},
        optim={"lr": 2e-3},
    )
    path = tmp_path / "home.yaml"
    given = {
        "listen": {"model": str(ears.path)},
        "understand": {"intents": intents},
        "actions": {"positive": {"reply": "Yes."}},
    }
    path.write_text(yaml.safe_dump(given))
    sound = np.concatenate([0 * tone(0.5), tone(1.0), 0 * tone(1.0), tone(1.0), 0 * tone(1)])
    silence = tmp_path / "silence.wav"
    silence.write_bytes(wav_of(0 * tone(1), RATE))
    samples = (sound * 32767).astype("<i2").tobytes()
    command = [sys.executable, "-m", "burnish", "assist", str(path), "--json"]
    streamed = subprocess.run([*command, "--microphone"], input=samples, capture_output=True, check=True).stdout
    stages = [json.loads(line)["stage"] for line in streamed.decode().splitlines()]
    assert stages.count("heard") == stages.count("done") == 2
    shown = subprocess.run(
        [*command, str(silence), "the good old king"], capture_output=True, text=True, check=True
    ).stdout
    events = [json.loads(line) for line in shown.splitlines()]
    assert events[0]["text"] == "I did not hear anything." and events[2]["intent"] in ("positive", None)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nothing")
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True)
    assert done.returncode == 2 and "broken.wav" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with Server(Chain(read_assistant(home)), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


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
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert asked(server, "POST", "/talk", said, Content_Type="text/plain", **headers)[0] == 403
    assert asked(server, "POST", "/talk", said, Content_Type="application/json")[0] == 415
    assert asked(server, "POST", "/talk", b"", Content_Type="text/plain")[0] == 413
    assert asked(server, "POST", "/talk", said, Content_Type="text/plain", Content_Length=str(2**40))[0] == 413
    assert asked(server, "GET", "/../../etc/passwd")[0] == 404 and asked(server, "DELETE", "/talk")[0] == 501
    assert asked(server, "GET", "/health")[0] == 200, "it still answers"
