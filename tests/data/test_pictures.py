"""Images of every kind that people have, decoded in a child process with little memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import burnish
from burnish.config import Config
from burnish.data import media
from burnish.data.media import Decoder, Decoders
from burnish.data.pictures import Picture, picture_of
from burnish.data.rows import Rows, find_parts
from burnish.errors import UserError
from burnish.task import BrokenRow, Row
from burnish.terminal import Terminal
from helpers import bars

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a small file of a large picture in one colour, written row by row."""
    packed = zlib.compressobj(9)
    row = b"\0" + b"\x80" * (3 * width)
    content = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def decoder() -> object:
    made = Decoder()
    yield made
    made.close()


def turned(kind: int) -> bytes:
    """Return a file that says in its EXIF data how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = kind
    return saved(Image.fromarray(PIXELS), "PNG", exif=exif)


def test_colours_come_out_as_they_were_stored(decoder: Decoder) -> None:
    image = Image.fromarray(PIXELS)
    assert np.array_equal(decoder.decode(saved(image), "color"), PIXELS)
    assert np.array_equal(decoder.decode(saved(image, "WEBP", lossless=True), "color"), PIXELS)
    jpeg = saved(image, "JPEG")
    assert np.array_equal(decoder.decode(jpeg, "color"), np.asarray(Image.open(io.BytesIO(jpeg))))
    grey = decoder.decode(saved(image.convert("L")), "color")
    assert np.array_equal(grey, np.asarray(image.convert("L").convert("RGB")))


def test_other_modes_become_colours(decoder: Decoder) -> None:
    image = Image.fromarray(PIXELS)
    palette = image.quantize(16)
    assert np.array_equal(decoder.decode(saved(palette), "color"), np.asarray(palette.convert("RGB")))
    cmyk = saved(image.convert("CMYK"), "JPEG")
    assert np.array_equal(decoder.decode(cmyk, "color"), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    found = decoder.decode(saved(Image.fromarray(deep)), "color")
    assert np.abs(found[..., 0].astype(int) - deep // 256).max() <= 1  # 16 bits are scaled, not cut off
    clear = np.dstack([PIXELS, np.zeros((20, 30), np.uint8)])
    assert (decoder.decode(saved(Image.fromarray(clear)), "color") == 255).all()


def test_a_picture_is_turned_upright(decoder: Decoder) -> None:
    assert np.array_equal(decoder.decode(turned(6), "color"), np.rot90(PIXELS, -1))
    assert np.array_equal(decoder.decode(turned(3), "color"), PIXELS[::-1, ::-1])


def test_a_mask_keeps_its_numbers(decoder: Decoder) -> None:
    numbers = RANDOM.integers(0, 7, (20, 30)).astype(np.uint8)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette(list(range(255, 234, -1)))
    assert np.array_equal(decoder.decode(saved(palette), "mask"), numbers)
    assert np.array_equal(decoder.decode(saved(Image.fromarray(numbers)), "mask"), numbers)
    many = RANDOM.integers(0, 60000, (20, 30)).astype(np.uint16)
    assert np.array_equal(decoder.decode(saved(Image.fromarray(many)), "mask"), many)
    yes_no = Image.fromarray(numbers > 3)
    assert np.array_equal(decoder.decode(saved(yes_no), "mask"), numbers > 3)
    assert "is a mask in colours" in decoder.decode(saved(Image.fromarray(PIXELS)), "mask")


ANIMATED = saved(
    Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)], lossless=True
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, world", "cannot be decoded (no image of a known kind)"),
        (saved(Image.fromarray(PIXELS))[:-200], "cannot be decoded ("),
        (saved(Image.fromarray(PIXELS), "JPEG")[:300], "cannot be decoded ("),
        (ANIMATED, "is animated, 2 pictures; give one"),
        (saved(Image.fromarray(PIXELS), "GIF"), "is GIF; PNG, JPEG and WebP are read: convert it once"),
        (saved(Image.fromarray(PIXELS), "TIFF"), "is TIFF; PNG, JPEG and WebP are read: convert it once"),
        (png(9000, 9000), "has 81 megapixels, more than 25; make it smaller"),
        (png(15000, 15000), "has more than 25 megapixels; make it smaller"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "animated", "gif", "tiff", "81 megapixels", "225 megapixels"],
)
def test_what_is_no_picture_for_us_says_why(content: bytes, reason: str) -> None:
    with Decoders(1) as decoders:
        found = decoders.decode(Picture("x", content))
        assert isinstance(found, str) and found.startswith(reason)
        assert isinstance(decoders.decode(Picture("y", saved(Image.fromarray(PIXELS)))), np.ndarray)


def test_the_largest_pictures_fit_into_300_megabytes() -> None:
    """Also turned, with transparency, and a JPEG of a camera's size; the child's peak is asked of the system."""
    made = Decoder()
    exif = Image.Exif()
    exif[0x0112] = 6
    camera = saved(Image.new("RGB", (9000, 6700), "red"), "JPEG")
    turned_jpeg = saved(Image.new("RGB", (5000, 4999), "red"), "JPEG", exif=exif)
    clear = saved(Image.new("RGBA", (4999, 5000), (1, 2, 3, 4)), compress_level=1)
    deep = saved(Image.fromarray(np.full((4999, 5000), 40_000, np.uint16)), compress_level=1)
    for content in (png(5000, 5000), turned_jpeg, camera, clear, deep):
        found = made.decode(content, "reduced")
        assert isinstance(found, np.ndarray), found
    status = Path(f"/proc/{made._child.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    made.close()
    assert peak < 300_000, f"{peak:,} kB"
    with Decoders(1) as whole:  # where places in it count, as boxes do, it is not shown smaller than it is
        assert "has 60 megapixels" in whole.decode(Picture("x", camera))


def test_a_decoder_that_hangs_or_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made, good = Decoder(), saved(Image.fromarray(PIXELS))
    assert isinstance(made.decode(good, "color"), np.ndarray)
    made._child.kill()
    made._child.wait()
    assert isinstance(made.decode(good, "color"), np.ndarray), "a dead child is noticed before it is used"
    monkeypatch.setattr(media, "MOST_SECONDS", 0.0)
    assert "within the memory and time" in made.decode(png(4000, 4000), "color")
    monkeypatch.undo()
    assert isinstance(made.decode(good, "color"), np.ndarray)
    made.close()


def test_pictures_come_in_order_from_several_decoders() -> None:
    shades = [Image.new("L", (8, 8), shade) for shade in range(0, 250, 5)]
    given = [Picture(str(number), saved(shade)) for number, shade in enumerate(shades)]
    with Decoders(2) as decoders:
        found = list(decoders.each(given, lambda picture, decode: int(decode(picture, "color")[0, 0, 0])))
    assert found == list(range(0, 250, 5))


def test_values_of_a_row_that_stand_for_a_picture(tmp_path: Path) -> None:
    content = saved(Image.fromarray(PIXELS))
    (tmp_path / "a.png").write_bytes(content)
    assert picture_of("a.png", "t.csv:2", tmp_path).digest == picture_of({"bytes": content}, "p:1", tmp_path).digest
    assert picture_of(PIXELS, "x", tmp_path).content is PIXELS
    assert np.array_equal(picture_of(Image.fromarray(PIXELS), "x", tmp_path).content, PIXELS)
    assert picture_of("b.png", "x", tmp_path) == f"'{tmp_path / 'b.png'}' is no file"
    assert "is an address" in picture_of("https://example.org/a.png", "x", tmp_path)
    assert "is int" in picture_of(7, "x", tmp_path)
    assert "float64" in picture_of(np.zeros((3, 3, 3)), "x", tmp_path)


def test_folders_tables_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bars(tmp_path / "classes", 4)
    files = sorted((tmp_path / "classes").rglob("*.png"))
    labels = [file.parent.name for file in files]
    table = tmp_path / "table"
    table.mkdir()
    for file in files:
        (table / file.name).write_bytes(file.read_bytes())
    lines = [f"{file.name},{label}" for file, label in zip(files, labels, strict=True)]
    (table / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "rows.parquet")

    def rows_of(path: Path) -> list[tuple[str, str]]:
        rows = Rows(
            find_parts([str(path)], "data.train", lambda *_: [], "images"), {"image": "image", "label": "label"}
        )
        assert rows.check("data.train", "skip") == []
        return [(row.values["image"].digest, row.values["label"]) for row in rows]

    wanted = rows_of(tmp_path / "classes")
    assert len(wanted) == 8 and {label for _, label in wanted} == {"lying", "standing"}
    assert rows_of(table) == wanted and rows_of(tmp_path / "rows.parquet") == wanted


def test_a_folder_of_splits_is_not_taken_for_one_set(tmp_path: Path) -> None:
    bars(tmp_path / "train", 1)
    bars(tmp_path / "test", 1)
    with pytest.raises(UserError, match=r"holds the folders train, test; give one for each split: .*train"):
        find_parts([str(tmp_path)], "data.train", lambda *_: [], "images")


def test_a_missing_file_of_a_table_is_a_broken_row(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "label": "a"}\n')
    rows = Rows(
        find_parts([str(tmp_path)], "data.train", lambda *_: [], "images"), {"image": "image", "label": "label"}
    )
    [found] = rows.read()
    assert isinstance(found, BrokenRow) and found.where.endswith("metadata.jsonl:1")
    assert found.reason == f"'file_name' '{tmp_path / 'gone.png'}' is no file"


def trained(folder: Path, run: Path, **data: object) -> burnish.Run:
    return burnish.train(
        "image-classification",
        terminal=Terminal(quiet=True),
        model={"preset": "vit-nano", "image_size": 16},
        data={"train": str(folder), **data},
        train={"length": "2 steps", "batch": 8},
        run={"dir": str(run)},
    )


def test_one_bad_image_is_left_out_and_many_stop_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "bars"
    bars(folder, 60)
    bad = folder / "lying" / "001.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    run = trained(folder, tmp_path / "run")
    [rejected] = (run.path / "rejects.jsonl").read_text().splitlines()
    assert str(bad) in rejected and "cannot be decoded" in rejected
    plan = run.folder.read_json(run.folder.plan)
    assert sum(plan["data"]["rows"].values()) == sum(plan["data"]["examples"].values()) == 119
    again = trained(folder, tmp_path / "again")  # now from what was encoded before
    assert (again.path / "rejects.jsonl").read_text().splitlines() == [rejected]

    with pytest.raises(UserError, match=r"001\.png.* cannot be decoded .*--data\.on-bad-row skip"):
        trained(folder, tmp_path / "stopped", on_bad_row="stop")
    for number in (3, 5, 7):
        (folder / "lying" / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.(train|validation): \d of \d+ rows are broken, more than 1 %"):
        trained(folder, tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_idx_files(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (3, 5, 4), np.uint8)
    (tmp_path / "t-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, *images.shape) + images.tobytes())
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + bytes([1, 0, 1]))
    rows = [
        row
        for part in find_parts([str(tmp_path)], "data.train", lambda *_: [], "images")
        for row in part.source.read(part.path)
    ]
    assert [row.values["label"] for row in rows if isinstance(row, Row)] == ["1", "0", "1"]
    assert np.array_equal(np.stack([row.values["image"].content for row in rows]), images)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    [part] = find_parts([str(tmp_path)], "data.train", lambda *_: [], "images")
    assert [row.values["label"] for row in part.source.read(part.path)] == ["dog", "cat", "dog"]

    file = tmp_path / "t-images-idx3-ubyte"
    whole = file.read_bytes()
    for content, reason in (
        (whole[:-1], "is not as long as its first bytes say"),
        (whole + b"x", "is not as long as its first bytes say"),
        (b"\0\0\x08\x01" + whole[4:], "is no IDX file"),
        (whole[:4] + b"\xff" * 12 + whole[16:], "says that it holds"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            list(part.source.read(part.path))
    file.write_bytes(whole)
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([1, 0]))
    with pytest.raises(UserError, match=r"holds 3 images, and .* 2 labels"):
        list(part.source.read(part.path))
    (tmp_path / "t-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="its labels are missing"):
        list(part.source.read(part.path))


def test_images_are_a_setting_of_image_tasks_only(tmp_path: Path, text_file: Path) -> None:
    assert Config().augment.flip == "none"
    for given, reason in (
        ({"augment": {"flip": "both"}}, "augment.flip: only images and sounds are varied"),
        ({"model": {"preset": "gpt2-nano", "image_size": 32}}, "model.image_size: text-generation reads text"),
        ({"model": {"preset": "vit-nano"}}, "model.preset: vit-nano reads images, and text-generation is about text"),
    ):
        settings = {"model": {"preset": "gpt2-nano"}, "data": {"train": str(text_file)}, **given}
        with pytest.raises(UserError, match=reason):
            burnish.train("text-generation", dry_run=True, terminal=Terminal(quiet=True), **settings)


def test_images_in_two_splits_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars(tmp_path / "train", 20)
    bars(tmp_path / "test", 5, seed=1)
    copied = sorted((tmp_path / "train").rglob("*.png"))[3]
    (tmp_path / "test" / "lying" / "copy.png").write_bytes(copied.read_bytes())
    burnish.train(
        "image-classification",
        dry_run=True,
        model={"preset": "vit-nano", "image_size": 16},
        data={"train": str(tmp_path / "train"), "test": str(tmp_path / "test")},
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "1 test images are training images too" in said and "copy.png" in said


def test_an_image_that_changes_under_its_table_is_other_data(tmp_path: Path) -> None:
    """What was encoded of the old one must not be taken for it."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\n")

    def fingerprint() -> list:
        return Rows(
            find_parts([str(tmp_path)], "data.train", lambda *_: [], "images"), {"image": "image"}
        ).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    Image.fromarray(255 - PIXELS).save(tmp_path / "a.png")
    assert fingerprint() != before
