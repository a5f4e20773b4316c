"""Rows: read from sources, checked, and split by a hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from burnish.data.boxes import objects_of
from burnish.data.masks import Segments, is_mask, mask_of
from burnish.data.media import Medium
from burnish.data.pictures import picture_of
from burnish.data.sounds import sound_of
from burnish.errors import UserError, nearest
from burnish.run import home_path, refuse_unreadable
from burnish.task import BrokenRow, Row, find_subclasses

#: Above this share of broken rows a run stops: the file is probably not what the user thinks it is.
MOST_BROKEN = 0.01
#: The prompt where it may be messages too, not only text.
GIVEN = "given"
#: What columns of conversations are mostly called.
CONVERSATIONS = frozenset({"messages", "conversations", "conversation"})
#: Columns, by the tasks' names, that hold text.
TEXTS = frozenset({"text", "prompt", "pair", "target", "question", "context", "anchor", "positive", "negative"})
#: Columns, by the tasks' names, that hold an image or a sound, and what makes one of a value; where a row has none of the
#: name, its `file_name` is one.
MEDIA: dict[str, Callable[[Any, str, Path], Medium | str]] = {"image": picture_of, "audio": sound_of}
#: What a table beside images or sounds is called; it has the name of each in the column `file_name`.
METADATA = "metadata"
#: What Kaldi calls its list of sounds; what is said in them stands beside it.
KALDI = "wav.scp"


class Source(ABC):
    """One kind of data. A new kind is one file in `burnish/data/sources` with a subclass of this."""

    name: ClassVar[str]
    """The kind, as `burnish info` lists it."""
    endings: ClassVar[tuple[str, ...]] = ()
    """File endings this source reads; each also with `.gz`."""
    reads: ClassVar[frozenset[str]] = frozenset({"text", "images", "audio"})
    """For which tasks it is (`Task.reads`)."""
    names_files: ClassVar[bool] = False
    """Whether its rows only name the files, which are read when they are needed; such rows are always kept."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        """Yield the rows of one file in order."""

    def files(self, path: Path) -> list[Path]:
        """Return the file and those beside it that say more of its rows."""
        return [path]


def sources() -> dict[str, type[Source]]:
    """Return every source by name."""
    return find_subclasses("burnish.data.sources", Source)


@dataclass(frozen=True)
class Part:
    """One file to read, with the source that reads it."""

    path: Path
    source: Source

    def fingerprint(self) -> str:
        """Return the sha256 of the bytes of the file, and of those that say more of its rows."""
        found = []
        for path in self.source.files(self.path):
            with open(path, "rb") as handle:
                found.append(hashlib.file_digest(handle, "sha256").hexdigest())
        return "+".join(found)


def find_parts(
    names: Sequence[str],
    setting: str,
    fetch: Callable[[str, str], list[Path]],
    reads: str = "text",
    objects: bool = False,
) -> list[Part]:
    """Return the files behind paths, folders and Hub ids, in a fixed order.

    Args:
        names: what the user gave for `setting`.
        fetch: returns the local files of a Hub dataset id; called for names that are no local path.
        reads: what the task's rows are (`Task.reads`).
        objects: whether it is asked what images show, so that annotations in a folder are its rows.

    Raises:
        UserError: a name stands for nothing readable.
    """
    by_ending = {ending: kind for kind in sources().values() for ending in kind.endings if reads in kind.reads}
    parts: list[Part] = []
    for name in names:
        if not name.strip():
            raise UserError(f"{setting}: the name {name!r} is empty. Give a file, a folder or a Hub id.")
        path = home_path(name)
        refuse_unreadable(path, f"{setting}: {name}")
        if os.path.isdir(path):
            _refuse_folder_of_splits(path, setting, reads)
            paths = [file for file in sorted(path.rglob("*")) if _ending(file, by_ending) and file.is_file()]
            paths = [file for file in paths if not any(piece.startswith(".") for piece in file.relative_to(path).parts)]
            if reads != "text":
                paths = _describing(paths, objects, setting)
            # beside other kinds of data a .json describes them, such as the state.json of a stored data set
            paths = [file for file in paths if _ending(file, by_ending) != ".json"] or paths
            if not paths:
                raise UserError(f"{setting}: the folder {name} holds no {', '.join(sorted(by_ending))} file.")
        elif os.path.exists(path):
            if not path.is_file():
                raise UserError(f"{setting}: {name} is a device or a pipe, which may never end; give a file.")
            paths = [path]
        elif _ending(path, by_ending) or name.startswith((".", "/", "~")):
            raise UserError(f"{setting}: {name} does not exist.{_neighbour(path)}")
        else:
            paths = fetch(name, setting)
        for file in paths:
            kind = by_ending.get(_ending(file, by_ending))
            if kind is None:
                known = ", ".join(sorted(by_ending))
                raise UserError(f"{setting}: {file} has an ending burnish does not read; it reads {known} (also .gz).")
            parts.append(Part(file, kind()))
    return parts


def _describing(paths: list[Path], objects: bool, setting: str) -> list[Path]:
    """Return the files that say of a folder's images or sounds what is asked, or those where none does.

    Raises:
        UserError: several files in COCO's format do.
    """
    if tables := [file for file in paths if file.name.partition(".")[0] == METADATA or file.name == KALDI]:
        return tables
    paths = [file for file in paths if not is_mask(file)] or paths
    annotations = [file for file in paths if _ending(file, (".xml",))]
    if not objects:
        return [file for file in paths if file not in annotations] or paths
    coco = [file for file in paths if _ending(file, (".json",)) and _says(file, b'"annotations"')]
    if len(coco) > 1:
        shown = ", ".join(file.name for file in coco[:3])
        raise UserError(
            f"{setting}: {coco[0].parent} holds {len(coco)} files of annotations ({shown}); give one of them."
        )
    return coco or annotations or paths


def _says(file: Path, word: bytes) -> bool:
    """Return whether a word stands in a file that is not packed."""
    return not file.name.endswith(".gz") and word in file.read_bytes()


def _ending(path: Path, known: Iterable[str]) -> str:
    """Return which of the known endings a file has; nothing if it has none of them."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in known if name.endswith(ending)), "")


def _refuse_folder_of_splits(path: Path, setting: str, reads: str) -> None:
    """Refuse a folder of images or sounds whose parts are the splits: taken as one, it would train on what it is tested on.

    Raises:
        UserError: it is one.
    """
    splits = [name for name in ("train", "validation", "val", "valid", "test") if (path / name).is_dir()]
    if reads != "text" and len(splits) > 1 and "train" in splits:
        raise UserError(
            f"{setting}: {path} holds the folders {', '.join(splits)}; give one for each split: {path / 'train'}."
        )


def _endings(reads: str) -> list[str]:
    """Return the file endings that sources read."""
    return [ending for kind in sources().values() for ending in kind.endings if reads in kind.reads]


def _neighbour(path: Path) -> str:
    try:
        return nearest(path.name, [file.name for file in path.parent.iterdir()])
    except OSError:
        return ""


#: Files of at most this size in all are read once.
KEPT_BYTES = 32_000_000


class Rows:
    """The good rows of some parts. Large files are read again at each iteration, so that memory stays flat.

    Args:
        parts: the files.
        columns: the task's names for what it needs, to the user's column names.
        extra: further columns every row must have (the group column).
    """

    def __init__(self, parts: Sequence[Part], columns: Mapping[str, str], extra: Sequence[str] = ()):
        self.parts, self.columns, self.extra = list(parts), dict(columns), list(extra)
        self._kept: list[Row] | None = None

    def __iter__(self) -> Iterator[Row]:
        return iter(self._kept) if self._kept is not None else (row for row in self.read() if isinstance(row, Row))

    def read(self) -> Iterator[Row | BrokenRow]:
        """Yield good rows, their columns under the task's names, and broken ones."""
        for part in self.parts:
            for row in part.source.read(part.path):
                yield self.checked(row, part.path.parent) if isinstance(row, Row) else row

    def checked(self, row: Row, folder: Path = Path()) -> Row | BrokenRow:
        """Return the row with its columns under the task's names, or why it cannot be used.

        Args:
            folder: from which the names of files are taken.
        """
        values = {}
        for name, column in [*self.columns.items(), *((column, column) for column in self.extra)]:
            if name in MEDIA and column not in row.values and "file_name" in row.values:
                column = "file_name"
            if column not in row.values:
                chats = CONVERSATIONS & row.values.keys() if name == "text" else ()
                hint = "".join(f"; for conversations give --data.messages {found}" for found in sorted(chats)[:1])
                return BrokenRow(row.where, f"has no column {column!r} (its columns: {_names(row.values)}{hint})")
            value = row.values[column]
            if (
                value is None
                or (isinstance(value, float) and value != value)
                or (isinstance(value, str) and not value.strip())
            ):
                return BrokenRow(row.where, f"{column!r} is empty")
            if name in MEDIA:
                value = MEDIA[name](value, row.where, folder)
                if isinstance(value, str):
                    return BrokenRow(row.where, f"{column!r} {value}")
            if name == "mask":
                value = mask_of(value, row.where, folder)
                if isinstance(value, str):
                    return BrokenRow(row.where, f"{column!r} {value}")
            if name == "objects":
                value = objects_of(value)
                if isinstance(value, str):
                    return BrokenRow(row.where, value)
            if name in TEXTS and not isinstance(value, str):
                return BrokenRow(row.where, f"{column!r} is {type(value).__name__}, not text")
            for text in _texts_in(value):
                if problem := text_problem(text):
                    return BrokenRow(row.where, f"{column!r} {problem}")
            values[name] = value
        return Row(values, row.where, row.document)

    def _options(self) -> str:
        """Return the settings that name these columns."""
        names = ["prompt" if name == GIVEN else name for name in self.columns] + ["group"] * bool(self.extra)
        return ", ".join(f"--data.{name}" for name in names)

    def fingerprint(self) -> list[Any]:
        """Return what identifies these rows: the content of the files and of the media they name, and the columns."""
        own = {file for part in self.parts for file in part.source.files(part.path)}
        named = []
        for row in self if self.columns.keys() & MEDIA.keys() else ():
            mask = row.values.get("mask")
            media = [row.values.get(name) for name in MEDIA] + [mask.picture if isinstance(mask, Segments) else mask]
            files = [one for one in media if isinstance(one, Medium) and isinstance(one.content, Path)]
            named += [one.digest for one in files if one.content not in own]
        return [[part.fingerprint() for part in self.parts], self.columns, self.extra, *([named] if named else [])]

    def check(self, setting: str, on_bad_row: str) -> list[BrokenRow]:
        """Read everything once and return the broken rows.

        Raises:
            UserError: there is no good row, or more broken ones than allowed; names the first few with file and line.
        """
        good, broken = 0, []
        size = sum(part.path.stat().st_size for part in self.parts if not part.source.names_files)
        kept: list[Row] | None = [] if size <= KEPT_BYTES else None
        for row in self.read():
            if isinstance(row, Row):
                good += 1
                if kept is not None:
                    kept.append(row)
            else:
                broken.append(row)
                if on_bad_row == "stop":
                    raise UserError(f"{row.where}: {row.reason}. Mend the row, or give --data.on-bad-row skip.")
        if good == 0 and not broken:
            raise UserError(f"{setting}: {', '.join(str(part.path) for part in self.parts)} holds no rows.")
        remedy = f"Mend the file or name the right columns ({self._options()})."
        refuse_broken(setting, broken, good, on_bad_row, remedy)
        self._kept = kept
        return broken


def refuse_broken(
    setting: str, broken: Sequence[BrokenRow], good: int, on_bad_row: str, remedy: str = "Mend or remove them."
) -> None:
    """Refuse rows of which too many are broken.

    Raises:
        UserError: names the first few with file and line.
    """
    if broken and on_bad_row == "stop":
        raise UserError(f"{broken[0].where}: {broken[0].reason}. Mend the row, or give --data.on-bad-row skip.")
    if len(broken) <= MOST_BROKEN * (good + len(broken)):
        return
    reasons = Counter(row.reason for row in broken)
    shown = "; ".join(f"{row.where}: {row.reason}" for row in broken[:3])
    if len(reasons) == 1 and good == 0:
        shown = f"{broken[0].where}: {broken[0].reason}"
    more = "; ..." if len(broken) > 3 and good else ""
    raise UserError(
        f"{setting}: {len(broken)} of {good + len(broken)} rows are broken, more than 1 %: {shown}{more}. {remedy}"
    )


def _names(values: Mapping[str, Any]) -> str:
    names = [str(name) for name in values]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _texts_in(value: Any) -> Iterator[str]:
    """Yield every text inside a value: in a list of words, in the messages of a conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)


def text_problem(text: str) -> str | None:
    """Return what makes a string unfit as text, or None."""
    if "\x00" in text:
        return "holds a NUL character: is this binary data?"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds bytes that are no UTF-8, or half of a surrogate pair, which is no valid Unicode"
    return None


@dataclass(frozen=True)
class Side:
    """The rows of one side of a held-out split. Re-iterable.

    A row's side is a pure function of its own content (or of its group), so adding, removing or reordering other rows
    never moves it, and equal rows are never on both sides.
    """

    rows: Iterable[Row]
    holdout: Holdout
    held_out: bool

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if self.holdout.takes(row) == self.held_out)


#: Contents or groups that are few.
_FEW = 100


class Holdout:
    """Decides which rows are held out: those whose content hash, as a number in [0, 1), lies below a threshold.

    The threshold is the share, so that a row stays on its side when others are added; of few contents or groups it is set
    so that it gives the share of them, but at least one on each side.

    Args:
        rows: the rows to split.
        share: share of the rows to hold out.
        group: column whose equal values stay together; None: each row for itself.
        stratify: hold out the same share of every label; the threshold is then set per label, exact to one row.
    """

    def __init__(self, rows: Iterable[Row], share: float, group: str | None, stratify: bool):
        self.share, self.group = share, group
        self.thresholds: dict[str, float] = {}
        if stratify:
            by_label: dict[str, list[float]] = {}
            for row in rows:
                by_label.setdefault(str(row.values["label"]), []).append(self._position(row))
            for label, positions in by_label.items():
                positions.sort()
                cut = round(share * len(positions))
                self.thresholds[label] = positions[cut] if cut < len(positions) else 1.0
            return
        few: set[float] = set()
        for row in rows:
            few.add(self._position(row))
            if len(few) > _FEW:
                return
        if len(few) > 1:
            self.share = sorted(few)[min(max(1, round(share * len(few))), len(few) - 1)]

    def _position(self, row: Row) -> float:
        # By the first column: seeing one answer to a prompt in training would give the others away.
        content = next(iter(row.values.values()))
        content = content.digest if isinstance(content, Medium) else str(content).strip()
        key = str(row.values[self.group]) if self.group else content
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64

    def takes(self, row: Row) -> bool:
        """Return whether the row is held out."""
        threshold = self.thresholds.get(str(row.values.get("label")), self.share) if self.thresholds else self.share
        return self._position(row) < threshold


def asked_of(given: str, columns: Mapping[str, str], reads: str = "text") -> list[dict[str, Any]]:
    """Return the inputs that an argument of `predict` stands for.

    Args:
        given: a file (txt: an input a line), a JSON object of columns, or plain text for the first column; of images and
            sounds a file or a folder of them.
        columns: what an input needs: the task's names, to the names in files.
        reads: what the task's rows are (`Task.reads`).

    Raises:
        UserError: an input lacks a column or has no usable text; nothing is left out silently.
    """
    path, endings = Path(given), _endings(reads)
    if reads == "text" and os.path.isdir(given):
        raise UserError(f"{given}: is a folder; give a text, or a file of rows ({', '.join(sorted(endings))}).")
    if not os.path.exists(given):  # unlike Path's, it takes any text for a name, however long
        if len(given.split()) == 1 and _ending(path, endings):
            raise UserError(f"{given}: no such file.{_neighbour(path)}")
        return [_asked(given, columns)]
    parts = find_parts([given], "input", lambda name, setting: [], reads)
    if parts[0].source.name != "text":
        rows: Iterable[Any] = Rows(parts, columns).read()
    else:
        from burnish.data.files import open_lines

        rows = (
            line if isinstance(line, BrokenRow) else Row(_asked(line.rstrip("\n"), columns), f"{path}:{number}")
            for number, line in open_lines(path)
            if isinstance(line, BrokenRow) or line.strip()
        )
    found = []
    for row in rows:
        if isinstance(row, BrokenRow):
            raise UserError(f"{row.where}: {row.reason}.")
        found.append(dict(row.values))
    return found


def _asked(given: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return one input from plain text, which only the first column may be given as, or from a JSON object of columns."""
    shown = given if len(given) <= 40 else given[:40] + "..."
    if problem := text_problem(given):
        raise UserError(f"The text {shown!r} {problem}.")
    try:
        values = json.loads(given) if given.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        values = None
    known = isinstance(values, dict) and not values.keys().isdisjoint([*columns, *columns.values()])
    if len(columns) == 1 and not known:
        return {next(iter(columns)): given}
    example = json.dumps({column: "..." for column in columns.values()})
    if not isinstance(values, dict):
        raise UserError(f"{shown!r}: give a JSON object with the columns, such as {example}, or a file with them.")
    return checked_input(values, columns, shown)


def checked_input(values: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return an input with the task's names for its columns; it may be given with them, or with the files' names.

    Raises:
        UserError: a column is missing, or not what it should be.
    """
    named = {column: values.get(column, values.get(name)) for name, column in columns.items()}
    missing = [column for column, value in named.items() if value is None]
    if missing:
        raise UserError(f"{where}: has no {missing[0]!r}; an input needs {', '.join(columns.values())}.")
    row = Rows([], columns).checked(Row(named, where))
    if isinstance(row, BrokenRow):
        raise UserError(f"{row.where}: {row.reason}.")
    return dict(row.values)
