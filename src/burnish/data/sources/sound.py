"""Sound files, and Kaldi's lists of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burnish.data.files import open_lines
from burnish.data.rows import KALDI, Source
from burnish.data.sounds import Sound
from burnish.errors import UserError
from burnish.task import BrokenRow, Row


class SoundSource(Source):
    """WAV, FLAC, MP3 and OGG files; the label of a sound is the name of its folder.

    Source: the layout `audiofolder` of `datasets`.
    """

    name = "sound"
    endings = (".wav", ".flac", ".mp3", ".ogg")
    reads = frozenset({"audio"})
    names_files = True

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        yield Row({"audio": Sound(str(path), path), "label": path.resolve().parent.name}, str(path))


class KaldiSource(Source):
    """The file `wav.scp`, a name and the file of its sound on each line, with what is said beside it: `text`, and who
    says it: `utt2spk`, the column `speaker`. Commands in place of files are refused, never run; so are `segments` of them.

    Source: "Data preparation" in Kaldi's documentation.
    """

    name = "kaldi"
    endings = (KALDI,)
    reads = frozenset({"audio"})

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        if path.with_name("segments").is_file():
            raise UserError(
                f"{path.with_name('segments')}: parts of sounds are not read. Write each to a file of its own, name those in "
                f"{KALDI} and remove this one."
            )
        beside = {"text": _pairs(path.with_name("text")), "speaker": _pairs(path.with_name("utt2spk"))}
        for number, line in open_lines(path):
            where = f"{path}:{number}"
            if isinstance(line, BrokenRow):
                yield line
                continue
            name, file = _first(line)
            if not name:
                continue
            if not file or file.endswith("|"):
                yield BrokenRow(where, "names no file; a command in its place is not run: write its sounds to files")
                continue
            said = {column: known[name] for column, known in beside.items() if name in known}
            yield Row({"audio": file, **said}, where)

    def files(self, path: Path) -> list[Path]:
        return [path, *(file for file in map(path.with_name, ("text", "utt2spk")) if file.is_file())]


def _pairs(path: Path) -> dict[str, str]:
    """Return the lines of a file by their first word; nothing where there is no such file."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in open_lines(path):
        if isinstance(line, BrokenRow):
            raise UserError(f"{path}:{number}: {line.reason}.")
        name, rest = _first(line)
        if name:
            found[name] = rest
    return found


def _first(line: str) -> tuple[str, str]:
    """Return the first word of a line, and the rest."""
    name, rest, *_ = [*line.split(maxsplit=1), "", ""]
    return name, rest.strip()
