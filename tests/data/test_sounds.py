"""Sounds of every kind that people have, and of kinds that nobody should, decoded in a child process with little memory."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from burnish.config import read_recipe
from burnish.data.media import Decoders
from burnish.data.rows import Rows, asked_of, find_parts
from burnish.data.sounds import FLAWS, Sound, flaw_of, sound_of
from burnish.errors import UserError
from burnish.task import BrokenRow, Row
from helpers import session_of
from tones import RATE, folder_of_tones

WAVE = (0.5 * np.sin(np.arange(3 * RATE) * 0.2)).astype(np.float32)


def saved(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    """Return samples as the bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def spoiled(place: int, form: str, value: int) -> bytes:
    """Return a WAV file in whose header a number is another."""
    content = bytearray(saved(WAVE))
    struct.pack_into(form, content, place, value)
    return bytes(content)


def test_samples_come_out_as_they_were_stored() -> None:
    """At the same rate, bit for bit; of two channels their mean; by every codec nearly the same."""
    numbers = np.random.default_rng(0).integers(-(2**15), 2**15, 4_000).astype(np.int16)
    with Decoders(1, RATE, 5) as same, Decoders(1, 2 * RATE, 5) as twice:
        assert np.array_equal(same.decode(Sound("x", saved(numbers)), "sound"), numbers)
        assert not same.decode(Sound("x", saved(np.stack([WAVE, -WAVE], 1))), "sound").any()
        wanted = twice.decode(Sound("x", WAVE, RATE), "sound")
        for kind, tolerance in (("WAV", 1e-3), ("FLAC", 1e-3), ("OGG", 0.1), ("MP3", 0.1)):
            found = twice.decode(Sound("x", saved(WAVE, kind=kind)), "sound")
            assert found.dtype == np.int16 and len(found) == len(wanted) == 2 * len(WAVE)
            apart = np.linalg.norm(found[2_000:-2_000] - wanted[2_000:-2_000].astype(float))
            assert apart <= tolerance * np.linalg.norm(wanted.astype(float)), kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, world", "cannot be decoded ("),
        (saved(WAVE, kind="FLAC")[:300], "cannot be decoded ("),
        (saved(WAVE, kind="AIFF"), "is AIFF; WAV, FLAC, MP3 and OGG are read: convert it once"),
        (saved(WAVE)[:-100], "is cut off: the last 100 bytes that its header promises are not there"),
        (saved(WAVE)[:50], f"is cut off: the last {2 * len(WAVE) - 6:,} bytes that"),
        (saved(WAVE[:0]), "holds no sound: 0 frames"),
        (spoiled(24, "<I", 1), "has 1 samples a second, not 1,000 to 384,000"),
        (spoiled(24, "<I", 10**9), "has 1,000,000,000 samples a second, not 1,000 to 384,000"),
        (spoiled(22, "<H", 10_000), "cannot be decoded ("),
        (saved(np.zeros((400, 64), np.float32)), "has 64 channels, more than 32"),
        (saved(np.zeros(3_600 * 44_100, np.float32), 44_100, "FLAC"), "is longer than 5 seconds; cut it into pieces"),
    ],
    ids=[
        "empty",
        "text",
        "cut",
        "cut wav",
        "cut to little",
        "aiff",
        "no frames",
        "1 Hz",
        "1 GHz",
        "10,000 channels",
        "64 channels",
        "an hour",
    ],
)
def test_what_is_no_sound_for_us_says_why(content: bytes, reason: str) -> None:
    with Decoders(1, 16_000, 5) as decoders:
        found = decoders.decode(Sound("x", content), "sound")
        assert isinstance(found, str) and found.startswith(reason), found
        if decoders._all:
            status = Path(f"/proc/{decoders._all[0]._child.pid}/status").read_text()
            assert int(status.split("VmHWM:")[1].split()[0]) < 100_000  # kB; all of the hour would be ten times as much
        assert isinstance(decoders.decode(Sound("y", saved(WAVE)), "sound"), np.ndarray)


@pytest.mark.parametrize("size", [0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFF00, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_sound_written_before_its_length_was_known_is_whole(size: int) -> None:
    """As arecord, sox, ffmpeg and Python's wave write to a pipe, some with words before the samples."""
    file, unknown = saved(WAVE), struct.pack("<I", size)
    words = struct.pack("<4sI", b"LIST", 3) + b"abc\0"
    with Decoders(1, RATE, 5) as decoders:
        wanted = decoders.decode(Sound("x", file), "sound")
        for between in (b"", words):
            sent = file[:4] + unknown + file[8:36] + between + file[36:40] + unknown + file[44:]
            assert np.array_equal(decoders.decode(Sound("x", sent), "sound"), wanted)
        closed = file[:40] + struct.pack("<I", 0) + words
        assert decoders.decode(Sound("x", closed), "sound") == "holds no sound: 0 frames"


def test_values_of_a_row_that_stand_for_a_sound(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(saved(WAVE))
    assert (
        sound_of("a.wav", "t:2", tmp_path).digest
        == sound_of({"bytes": saved(WAVE), "path": None}, "p", tmp_path).digest
    )
    assert sound_of({"array": WAVE, "sampling_rate": RATE}, "x", tmp_path).rate == RATE
    assert "is no file" in sound_of("b.wav", "x", tmp_path)
    assert "is an address" in sound_of("https://example.org/a.wav", "x", tmp_path)
    assert "has 0 samples a second" in sound_of({"array": WAVE, "sampling_rate": 0}, "x", tmp_path)
    assert "not finite floats" in sound_of(np.array([1.0, np.nan]), "x", tmp_path)
    assert "not finite floats" in sound_of(np.zeros(9, np.int16), "x", tmp_path)
    assert "is int" in sound_of(7, "x", tmp_path)


def test_folders_tables_parquet_and_kaldi_give_the_same_sounds(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder_of_tones(tmp_path / "classes", 6).rglob("*.wav"))
    for name in ("table", "kaldi"):
        (tmp_path / name).mkdir()
    for file in files:
        (tmp_path / "table" / file.name).write_bytes(file.read_bytes())
    lines = [f"{file.name},{file.parent.name}" for file in files]
    (tmp_path / "table" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    texts = [file.parent.name for file in files]
    sounds = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pq.write_table(pa.table({"audio": sounds, "text": texts}), tmp_path / "rows.parquet")
    (tmp_path / "kaldi" / "wav.scp").write_text("".join(f"u{n} {file}\n" for n, file in enumerate(files)))
    (tmp_path / "kaldi" / "text").write_text("".join(f"u{n}\t{text}\n" for n, text in enumerate(texts)))

    def rows_of(path: Path, text: str = "text") -> list[tuple[str, str]]:
        parts = find_parts([str(path)], "data.train", lambda *_: [], "audio")
        rows = Rows(parts, {"audio": "audio", "text": text})
        return sorted((row.values["audio"].digest, row.values["text"]) for row in rows.read() if isinstance(row, Row))

    wanted = rows_of(tmp_path / "classes", "label")
    assert len(wanted) == 6
    assert wanted == rows_of(tmp_path / "table") == rows_of(tmp_path / "rows.parquet") == rows_of(tmp_path / "kaldi")
    (tmp_path / "kaldi" / "segments").write_text("u0-1 u0 0 0.5\n")
    with pytest.raises(UserError, match="segments: parts of sounds are not read"):
        rows_of(tmp_path / "kaldi")


def test_a_command_in_place_of_a_file_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"a touch {tmp_path / 'ran'} |\n")
    [part] = find_parts([str(tmp_path)], "data.train", lambda *_: [], "audio")
    [row] = Rows([part], {"audio": "audio"}).read()
    assert isinstance(row, BrokenRow) and "a command in its place is not run" in row.reason
    assert not (tmp_path / "ran").exists()


def test_silent_and_clipped_sounds_are_named_and_learned_from(tmp_path: Path) -> None:
    from burnish.plan.show import left_out_rows

    assert FLAWS[flaw_of(np.zeros(RATE, np.int16))] == "silent"
    folder = folder_of_tones(tmp_path / "tones", 12)
    soundfile.write(folder / "low" / "still.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder / "high" / "loud.wav", np.sign(WAVE[:RATE]), RATE)
    given = {
        "model": {"preset": "w2v-bert-nano"},
        "data": {"train": str(folder), "holdout": "0%"},
        "task": {"seconds": 2},
    }
    session = session_of("audio-classification", tmp_path / "run", **given)
    rows = left_out_rows(session.splits, session.stores["train"], session.plan, False)
    assert [(name, Path(where).name) for name, _, where in rows] == [("silent", "still.wav"), ("clipped", "loud.wav")]
    assert len(session.stores["train"]) == 14
    (folder / "low" / "half.wav").write_bytes(saved(WAVE)[: -WAVE.size])
    with pytest.raises(UserError, match=r"half\.wav is cut off: the last 24,000 bytes"):
        session_of("audio-classification", tmp_path / "again", **given)


def test_settings_for_images_are_refused(tones_folder: Path, tmp_path: Path) -> None:
    given = {"model": {"preset": "w2v-bert-nano"}, "data": {"train": str(tones_folder)}, "augment": {"flip": "both"}}
    with pytest.raises(UserError, match=r"augment\.flip: audio-classification is about audio"):
        session_of("audio-classification", tmp_path / "run", **given)
    with pytest.raises(UserError, match=r"model\.preset: vit-nano reads images"):
        session_of(
            "audio-classification", tmp_path / "run", **{**given, "augment": {}, "model": {"preset": "vit-nano"}}
        )


def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    """A device says that it is empty, and a pipe waits for somebody who writes."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.wav", "zero.wav"):
        with pytest.raises(UserError, match=f"{name} is a device or a pipe, which may never end; give a file"):
            asked_of(str(tmp_path / name), {"audio": "audio"}, "audio")
        with Decoders(1, RATE, 5) as decoders:
            assert "device or a pipe" in str(decoders.decode(Sound(name, tmp_path / name), "sound"))
    with pytest.raises(UserError, match="a recipe is a file; this is a device or a pipe"):
        read_recipe(tmp_path / "zero.yaml")
