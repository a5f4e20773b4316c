"""Names that the system refuses: too long, of users that there are not, in folders that may not be written or read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from burnish.api import resolve
from burnish.data.rows import Rows, asked_of, find_parts
from burnish.errors import UserError
from burnish.models.source import model_folder
from burnish.run import RunFolder, refuse_missing
from burnish.task import BrokenRow, Row

LONG = "a" * 300


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "file" / "x"), "/proc/x", str(tmp_path / LONG)):
        with pytest.raises(UserError, match=r"run.dir: .* cannot be written"), RunFolder.wanted(name).locked():
            pass
    for name, reason in ((str(tmp_path / "file"), "is a file"), ("~nobody-of-this-name/x", "there is no such user")):
        with pytest.raises(UserError, match=f"run.dir: .*{reason}"):
            RunFolder.wanted(name)


def test_a_name_that_no_recipe_can_hold_is_refused() -> None:
    given = {"model": {"preset": "gpt2-nano"}, "data": {"train": "b\udcff.txt"}, "run": {"dir": "r\udcff"}}
    with pytest.raises(
        UserError, match=r"2 settings are wrong:\n  data\.train: .* holds bytes that are no UTF-8"
    ) as caught:
        resolve("text-generation", given)
    assert "run.dir: 'r\\udcff' holds bytes" in str(caught.value)


@pytest.mark.parametrize("name", [f"./{LONG}", "~nobody-of-this-name/x", f"/{LONG}/x"])
def test_what_cannot_be_there_is_not_there(name: str) -> None:
    for refused in (refuse_missing, lambda name: model_folder(name, None)):
        with pytest.raises(UserError, match="no such folder"):
            refused(name)
    with pytest.raises(UserError, match="does not exist"):
        find_parts([name], "data.train", lambda *_: [])


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (f"{LONG}.wav", "is no file"),
        ("~nobody-of-this-name/x.wav", "is no file"),
        ({"array": [[1.0], [2.0, 3.0]], "sampling_rate": 8000}, "channels are not equally long"),
        ({"array": ["a"], "sampling_rate": 8000}, "not finite floats"),
    ],
)
def test_a_row_that_names_no_sound_is_left_out(audio: object, reason: str) -> None:
    row = Rows([], {"audio": "audio"}).checked(Row({"audio": audio}, "rows:1"))
    assert isinstance(row, BrokenRow) and reason in row.reason


def test_a_folder_that_may_not_be_read_is_said() -> None:
    """In a child that is nobody: what is forbidden to others is not to root."""

    def tried() -> int:
        if os.geteuid() == 0:
            os.setuid(65534)
        for refused in (
            refuse_missing,
            RunFolder.wanted,
            lambda name: model_folder(name, None),
            lambda name: find_parts([name], "data.train", lambda *_: []),
            lambda name: asked_of(name, {"audio": "audio"}, "audio"),
        ):
            try:
                refused(str(closed))
            except UserError as error:
                if "cannot be read (permission denied)" not in str(error):
                    return 1
            else:
                return 2
        return 0

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0)
        if not (child := os.fork()):
            code = 3
            try:
                code = tried()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        closed.chmod(0o755)
    assert code == 0
