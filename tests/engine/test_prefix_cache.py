"""The cache of frozen layers: the same bits cold, warm and damaged; what it cannot hold is computed, and why is said."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish.engine import loop, prefix_cache
from burnish.engine.prefix_cache import CacheUnusable, PrefixCache, key_of, make_room
from burnish.session import Session
from helpers import apart, sentiment_rows, session_of, trained, weights_of

CLOSE = 1e-6
"""Relative distance of the final weights from those of a run that computes the frozen layers in every step, float32."""


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reviews") / "few.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in sentiment_rows(60)))
    return path


Train = Callable[..., Session]


@pytest.fixture
def train(reviews: Path, tiny_bert: Path, tmp_path: Path) -> Train:
    """Fine-tune a tiny encoder whose lower one of two layers is frozen: `train(name, group={...}, ...)`."""

    def run(name: str, **settings: dict[str, Any]) -> Session:
        given = settings_of(reviews, tiny_bert)
        for group, values in settings.items():
            given[group] = {**given.get(group, {}), **values}
        given["run"] = {**given.get("run", {}), "dir": str(tmp_path / name)}
        return trained("text-classification", tmp_path / name, **given)

    return run


def settings_of(reviews: Path, tiny_bert: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_bert),
        "data": str(reviews),
        "optim": {"lr": 1e-3},
        "freeze": {"layers": 1},
        "train": {"batch": 8, "length": "2 epochs", "precision": "fp32"},
        "checkpoint": {"every": "1000 steps", "keep": 1},
    }


def same(found: Session, wanted: Session) -> bool:
    """Return whether the weights of two runs are equal to the last bit."""
    one, other = weights_of(found), weights_of(wanted)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)


def distance(found: Session, wanted: Session) -> float:
    return apart(weights_of(found), weights_of(wanted))


def said(run: Session) -> list[str]:
    """Return what the run said of its frozen layers."""
    lines = run.folder.text_log.read_text().splitlines()
    return [line.partition("  ")[2] for line in lines if "frozen layers" in line]


def parts(root: Path) -> list[Path]:
    return sorted(root.glob("prefix/*/part-*"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that the cache had to compute, one number for each time it was written to."""
    counts: list[int] = []
    write = PrefixCache.write

    def counting(self: PrefixCache, rows: Iterator[tuple[bytes, Any]]) -> None:
        found = list(rows)
        counts.append(len(found))
        write(self, iter(found))

    monkeypatch.setattr(PrefixCache, "write", counting)
    return counts


@pytest.fixture
def no_frozen_layer_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a frozen layer is computed in a step."""
    real = loop.gradient_of

    def gradient_of(job: loop.Job, *rest: Any) -> Any:
        stack = job.stack
        assert stack is not None and stack.depth == 1
        inner, stack.inner[0] = stack.inner[0], lambda *_, **__: pytest.fail("a stored layer was computed")
        try:
            return real(job, *rest)
        finally:
            stack.inner[0] = inner

    monkeypatch.setattr(loop, "gradient_of", gradient_of)


# -- the same result --------------------------------------------------------------------------------------------------


def test_cold_warm_and_no_cache_give_the_same_weights(
    train: Train, computed: list[int], no_frozen_layer_in_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = train("cold")
    assert " 0% were there" in said(cold)[0] and "stored in" in said(cold)[0]
    assert len(computed) == 2 and sum(computed) > 50  # the rows of training and of validation, none twice
    warm = train("warm")
    assert all("100% were there" in line for line in said(warm)) and len(said(warm)) == 2
    assert len(computed) == 2
    assert same(warm, cold)
    assert [line["loss"] for line in warm.folder.log_lines() if "loss" in line] == [
        line["loss"] for line in cold.folder.log_lines() if "loss" in line
    ]
    monkeypatch.undo()
    monkeypatch.setenv("BURNISH_CACHE", str(cold.folder.path.parent / "unused"))
    off = train("off", freeze={"cache": "off"})
    assert said(off) == ["frozen layers: computed in every step; freeze.cache is off"]
    assert not parts(cold.folder.path.parent / "unused")
    assert distance(off, cold) <= CLOSE


def test_a_wrong_stored_value_is_not_equal(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance sees one row that is replaced by another of the same length."""
    off = train("off", freeze={"cache": "off"}, train={"dropout": 0.0})
    real = PrefixCache.fetch

    def wrong(self: PrefixCache, digests: list[bytes]) -> Any:
        found = real(self, digests)
        return found.flip(0) if len(digests) == 1 else torch.cat([found[:1], found[:1], found[2:]])

    monkeypatch.setattr(PrefixCache, "fetch", wrong)
    assert distance(train("wrong", train={"dropout": 0.0}), off) > 100 * CLOSE


def test_bf16_is_stored_in_bf16_and_replayed_bit_for_bit(train: Train, tmp_path: Path) -> None:
    settings = {"train": {"precision": "bf16"}}
    cold = train("cold", **settings)
    positions = sum(int(np.load(part / "rows.npz")["lengths"].sum()) for part in parts(tmp_path / "cache"))
    stored = sum((part / "values.bin").stat().st_size for part in parts(tmp_path / "cache"))
    assert stored == 2 * 32 * positions
    warm = train("warm", **settings)
    assert "100% were there" in said(warm)[0]
    assert same(warm, cold)
    off = train("off", **settings, freeze={"cache": "off"})
    assert distance(off, cold) <= 1e-4  # other rows computed together round otherwise in bfloat16


def _flip_a_byte(part: Path) -> None:
    with open(part / "values.bin", "r+b") as handle:
        handle.seek(-40, os.SEEK_END)
        byte = handle.read(1)
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte[0] ^ 1]))


def _truncate(part: Path) -> None:
    os.truncate(part / "values.bin", (part / "values.bin").stat().st_size // 2 // 128 * 128)


def _truncate_within_a_number(part: Path) -> None:
    os.truncate(part / "values.bin", 1001)


def _empty(part: Path) -> None:
    os.truncate(part / "values.bin", 0)


def _foreign_index(part: Path) -> None:
    (part / "rows.npz").write_bytes(b"\x80\x04 no index of ours" * 9)


def _index_of_another(part: Path) -> None:
    """Well-formed, of other shapes and types."""
    np.savez(
        part / "rows.npz", digests=np.zeros((2, 3)), lengths=np.array(["a"]), checksums=np.zeros(7), seconds=[1, 2]
    )


def _index_that_lies(part: Path) -> None:
    with np.load(part / "rows.npz") as found:
        index = dict(found)
    np.savez(part / "rows.npz", **{**index, "lengths": index["lengths"][::-1] + 1})


def _no_values(part: Path) -> None:
    (part / "values.bin").unlink()


def _no_index(part: Path) -> None:
    (part / "rows.npz").unlink()


#: How a part is damaged, and how many of its rows are lost: one, some or all.
DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_flip_a_byte, "one"), (_truncate, "some"), (_truncate_within_a_number, "all"), (_empty, "all"),
    (_foreign_index, "all"), (_index_of_another, "all"), (_index_that_lies, "all"), (_no_values, "all"), (_no_index, "all"),
]  # fmt: skip


def test_damaged_rows_are_computed_again(train: Train, tmp_path: Path, computed: list[int]) -> None:
    own = {"cache": str(tmp_path / "own")}
    cold = train("cold", freeze=own)
    rows = computed[0]
    shutil.copytree(tmp_path / "own", tmp_path / "whole")
    for damage, lost in DAMAGES:
        shutil.rmtree(tmp_path / "own")
        shutil.copytree(tmp_path / "whole", tmp_path / "own")
        largest = max((tmp_path / "own").glob("*/part-*"), key=lambda part: (part / "values.bin").stat().st_size)
        damage(largest)
        computed.clear()
        again = train(f"after{damage.__name__}", freeze=own)
        assert same(again, cold), damage.__name__
        assert len(computed) == 1, damage.__name__  # the validation rows were whole
        assert computed[0] in {"one": [1], "some": range(2, rows), "all": [rows]}[lost], damage.__name__
        assert "100% were there" not in said(again)[0] and "100% were there" in said(again)[1]


# -- parts, without a run ---------------------------------------------------------------------------------------------


def rows_of(count: int, seed: int = 0) -> list[tuple[bytes, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(bytes([seed, row]) * 8, torch.randn(row + 2, 8, generator=draw)) for row in range(count)]


def test_any_changed_byte_is_seen(tmp_path: Path) -> None:
    """Each byte of the index and each seventh of the values: a row is as it was, or it is not there."""
    rows = rows_of(5)
    cache = PrefixCache.open(tmp_path / "key", 8, torch.float32)
    cache.write(iter(rows))
    (part,) = (tmp_path / "key").glob("part-*")
    lost = 0
    for name, stride in (("rows.npz", 1), ("values.bin", 7)):
        whole = (part / name).read_bytes()
        for place in range(0, len(whole), stride):
            changed = bytearray(whole)
            changed[place] ^= 0xFF
            (part / name).write_bytes(changed)
            found = PrefixCache.open(tmp_path / "key", 8, torch.float32)
            known = [(digest, hidden) for digest, hidden in rows if digest in found]
            assert all(torch.equal(found.fetch([digest]), hidden) for digest, hidden in known), (name, place)
            assert len(found._where) == len(known), (name, place)  # no row that nobody stored
            lost += len(known) < len(rows)
        (part / name).write_bytes(whole)
    assert lost > 300
    assert len(PrefixCache.open(tmp_path / "key", 8, torch.float32)._where) == len(rows)


def test_a_kill_at_any_file_operation_leaves_all_or_nothing(tmp_path: Path) -> None:
    """A forked child ends itself by SIGKILL just before its n-th operation below the folder."""
    rows = rows_of(6, seed=1)
    folder, point, outcomes = tmp_path / "key", 0, []
    while not outcomes or outcomes[-1] != "finished":
        point += 1
        prefix_cache.remove_folder(folder)
        cache = PrefixCache.open(folder, 8, torch.float32)
        child = os.fork()
        if child == 0:
            _kill_at(str(folder), point)
            cache.write(iter(rows))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = PrefixCache.open(folder, 8, torch.float32)
        held = [digest for digest, _ in rows if digest in found]
        assert held in ([], [digest for digest, _ in rows]), point
        assert all(torch.equal(found.fetch([digest]), hidden) for digest, hidden in rows if digest in found)
        outcomes.append("finished" if code == 0 else "all" if held else "nothing")
        assert code in (0, -signal.SIGKILL)
    assert outcomes.count("nothing") >= 4  # the folder, two files, the rename


def _kill_at(folder: str, point: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        if isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(folder):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_process_killed_while_it_fills(train: Train, reviews: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """The real command, killed half through the values; the next run computes all and ends with the same weights."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from burnish.cli import main
        from burnish.engine.prefix_cache import PrefixCache

        write = PrefixCache.write

        def dying(self, rows):
            def some():
                for number, row in enumerate(rows):
                    yield row
                    if number == 20:
                        os.kill(os.getpid(), signal.SIGKILL)

            write(self, some())

        PrefixCache.write = dying
        main(sys.argv[1:])
        """
    )
    arguments = [
        "train", "text-classification", "--model", tiny_bert, "--data.train", reviews, "--optim.lr", "1e-3",
        "--freeze.layers", "1", "--train.batch", "8", "--train.length", "2 epochs", "--train.precision", "fp32",
        "--checkpoint.every", "1000 steps", "--checkpoint.keep", "1", "--run.dir", tmp_path / "killed",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert parts(tmp_path / "cache") == []
    (left,) = (tmp_path / "cache").glob("prefix/*/.tmp-*")
    again = train("killed")  # goes on with the killed run
    assert " 0% were there" in said(again)[0]
    assert same(again, train("whole"))
    for path in (left, *left.iterdir()):
        os.utime(path, (1, 1))
    train("later", run={"seed": 1})
    assert not left.exists()  # what the dead left behind does not fill the disk for ever


# -- which cache -------------------------------------------------------------------------------------------------------


def test_another_rate_and_seed_find_the_same_rows(train: Train, tmp_path: Path) -> None:
    train("first")
    before = parts(tmp_path / "cache")
    other = train("other", optim={"lr": 3e-4}, run={"seed": 7}, train={"batch": 5})
    assert all("100% were there" in line for line in said(other))
    assert parts(tmp_path / "cache") == before


def test_the_key_names_what_the_frozen_layers_compute(reviews: Path, tiny_bert: Path, tmp_path: Path) -> None:
    def key(precision: str = "fp32", change: str = "", layers: Any = 1, **settings: Any) -> str:
        given = settings_of(reviews, tiny_bert)
        given |= {"train": {"precision": precision}, "freeze": {"layers": layers}, **settings}
        session = joined("text-classification", tmp_path / "none", **given)
        assert session.fit is not None and session.fit.prefix_refusal() is None
        stack, model = session.fit.stack, session.fit.model
        assert stack is not None and stack.depth == (2 if layers == "all" else layers)
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if change:
            with torch.no_grad():
                named[change].view(-1)[0] += 1
        return key_of(stack, model, precision)

    own = key()
    assert key(optim={"lr": 1e-5}, run={"seed": 3, "dir": str(tmp_path / "none")}, schedule={"name": "linear"}) == own
    assert key(change="classifier.weight") == own  # it trains
    assert key(change="bert.encoder.layer.1.output.dense.weight") == own
    others = {
        "a frozen weight": key(change="bert.encoder.layer.0.output.dense.weight"),
        "an embedding": key(change="bert.embeddings.word_embeddings.weight"),
        "depth": key(layers="all"),
        "precision": key(precision="bf16"),
    }
    assert len({own, *others.values()}) == 5, others


# -- where there is none -----------------------------------------------------------------------------------------------


def test_one_epoch_is_stored_only_where_a_folder_is_given(train: Train, tmp_path: Path) -> None:
    once = train("once", train={"length": "1 epochs"})
    assert said(once) == ["frozen layers: not stored, since nothing is seen twice"]
    assert not parts(tmp_path / "cache")
    given = train("given", train={"length": "1 epochs"}, freeze={"cache": str(tmp_path / "own")})
    assert " 0% were there" in said(given)[0]
    assert len(list((tmp_path / "own").glob("*/part-*"))) == 2
    assert distance(given, once) <= CLOSE


def test_a_run_shorter_than_an_epoch_computes_only_its_rows(train: Train, tmp_path: Path, computed: list[int]) -> None:
    short = train("short", train={"length": "2 steps"}, freeze={"cache": str(tmp_path / "own")})
    assert computed[0] == 16
    off = train("off", train={"length": "2 steps"}, freeze={"cache": "off"})
    assert distance(short, off) <= CLOSE


def test_padded_rows_are_refused_by_name(train: Train, tmp_path: Path) -> None:
    padded = train("padded", train={"packing": "off"})
    assert said(padded) == ["frozen layers: computed in every step; rows are padded"]
    assert not parts(tmp_path / "cache")


def joined(task: str, folder: Path, **settings: Any) -> Session:
    session = session_of(task, folder, **settings)
    session.join()
    return session


def test_trained_embeddings_and_dropout_are_refused_by_name(
    reviews: Path, tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    settings = {"model": str(tiny_bert), "data": str(reviews), "train": {"precision": "fp32"}}
    trained = joined("text-classification", tmp_path / "none", freeze={"pattern": "*layer.0.*"}, **settings)
    assert trained.fit is not None
    assert trained.fit.prefix_refusal() == "something below the frozen layers trains"
    upper = joined("text-classification", tmp_path / "none", freeze={"pattern": "*layer.1.*"}, **settings)
    assert upper.fit is not None and upper.fit.prefix_refusal() == "the lowest layer trains"
    # A GPT-2 drops out beside its embeddings, in a module without parameters: a pattern does not put it at rest.
    dropping = joined(
        "text-generation",
        tmp_path / "none",
        model={"preset": "gpt2-nano", "vocab_size": 300},
        data=str(text_file),
        freeze={"pattern": ("transformer.wte.*", "transformer.wpe.*", "transformer.h.0.*")},
        train={"precision": "fp32", "sequence": 24, "dropout": 0.3},
    )
    assert dropping.fit is not None
    assert dropping.fit.prefix_refusal() == "the frozen layers draw random numbers"
    assert dropping.fit.stack is not None and dropping.fit.stack.depth == 0


def test_a_folder_that_cannot_be_written_is_done_without(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = train("off", freeze={"cache": "off"})
    (tmp_path / "file").write_text("in the way")
    blocked = train("blocked", freeze={"cache": str(tmp_path / "file")})
    (line,) = said(blocked)
    assert line.startswith("frozen layers: computed in every step, since ") and "cannot be used" in line
    assert same(blocked, off)

    real = Path.write_bytes

    def refused(self: Path, data: bytes) -> int:
        if "prefix" in self.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", refused)  # what a read-only file system answers, also to root
    (line,) = said(frozen := train("read-only"))
    assert "cannot be used (Read-only file system)" in line
    assert same(frozen, off)


def test_a_disk_that_runs_full_is_done_without(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the full disk while the cache is filled: its values are larger."""
    real, before = Session._replay, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Session) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        try:
            return real(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Session, "_replay", limited)
    full = train("full")
    assert "cannot be written (File too large)" in said(full)[0]
    assert not parts(tmp_path / "cache") and not list((tmp_path / "cache").glob("prefix/*/.tmp-*"))
    assert same(full, train("off", freeze={"cache": "off"}))


def test_a_disk_without_room_is_done_without(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "free_disk_bytes", lambda path: 1000)
    small = train("small")
    assert "GB would be stored, and half of the free disk is" in said(small)[0]
    assert not parts(tmp_path / "cache")
    monkeypatch.undo()
    assert same(small, train("off", freeze={"cache": "off"}))


def test_the_least_recently_used_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "prefix"
    names = [letter * 32 for letter in "abcd"]
    for age, name in enumerate(names):
        cache = PrefixCache.open(root / name, 8, torch.float32)
        cache.write(iter(rows_of(4, seed=age)))
        cache.write(iter(rows_of(3, seed=age + 10)))
        os.utime(root / name, (1000 * age + 1000, 1000 * age + 1000))
    PrefixCache.open(root / names[0], 8, torch.float32)  # the oldest is used again
    foreign = root / "table" / "part-00000"  # somebody's own data, called alike
    foreign.mkdir(parents=True)
    (foreign / "data.parquet").write_text("precious")
    os.utime(root / "table", (1, 1))
    there = lambda: [name for name in names if (root / name).exists()]  # noqa: E731
    monkeypatch.setattr(prefix_cache, "free_disk_bytes", lambda path: 200 * (5 - len(there())))
    own = PrefixCache.open(root / ("e" * 32), 8, torch.float32)
    make_room(own.folder, 80)
    assert there() == names  # there is room
    make_room(own.folder, 150)
    assert there() == [names[0], names[2], names[3]]
    make_room(own.folder, 400)
    assert there() == [names[0]]
    with pytest.raises(CacheUnusable, match="would be stored, and half of the free disk"):
        make_room(own.folder, 1000)
    assert there() == [] and own.folder.exists()
    assert (foreign / "data.parquet").read_text() == "precious"
