"""The child process that decodes for `burnish.data.media`: it knows no file and little memory is allowed to it.

It reads from standard input a kind (1 byte: c, r, m or s), of a sound the samples a second that it shall have and the most
seconds that it may take (4 bytes each), a size (8 bytes) and as many bytes of a file. It writes height and width (of a
sound 1 and its samples, 4 bytes each), a size (8 bytes) and the pixels or samples; height 0 means that words follow
instead, of why there are none.
"""

from __future__ import annotations

import resource
import struct
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

#: Pixels that are decoded at once: PIL keeps each in 4 bytes, twice where the image is turned.
MOST_PIXELS = 25_000_000
#: What the process may map in all; a file within the limits needs less (tests/data/test_pictures.py).
MOST_MEMORY = 400 * 2**20
#: Rows of pixels that are written at once.
_STRIP_BYTES = 1 << 20

_KINDS = ("PNG", "JPEG", "WEBP")

#: Samples a second and channels that a sound may have.
RATES, MOST_CHANNELS = (1_000, 384_000), 32
#: Size of a WAV file's samples from which it says that it was written while nobody knew how many there will be.
_UNKNOWN_BYTES = 0x7FFF0000
#: Numbers that are decoded at once, of all channels.
_BLOCK = 1 << 18
_SOUNDS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")


class _Unfit(Exception):
    """Why a file has no pixels or samples for us."""


def opened(content: bytes, kind: str) -> Any:
    """Return the decoded image: upright RGB, or for a mask the stored numbers as 16 bits.

    Args:
        kind: "c", "m", or "r": as "c", but a JPEG that is too large is decoded at a half, a quarter or an eighth of its size.

    Raises:
        _Unfit: it cannot be used.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(BytesIO(content))
    except Image.DecompressionBombError:
        raise _Unfit(f"has more than {MOST_PIXELS / 1e6:.0f} megapixels; make it smaller") from None
    if image.format not in _KINDS:
        raise _Unfit(f"is {image.format}; PNG, JPEG and WebP are read: convert it once")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise _Unfit(f"is animated, {frames} pictures; give one")
    for scale in (2, 4, 8) if kind == "r" and image.format == "JPEG" else ():
        if image.width * image.height > MOST_PIXELS:
            image.draft("RGB", (image.width // scale, image.height // scale))
    if image.width * image.height > MOST_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise _Unfit(f"has {megapixels:.0f} megapixels, more than {MOST_PIXELS / 1e6:.0f}; make it smaller")
    image.load()
    if kind == "m":
        return _numbers(image)
    image = _colors(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _colors(image: Any) -> Any:
    """Return an image of any mode as RGB; 16 bits become 8, and what is transparent shows white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        from PIL import Image

        image = image if image.mode == "RGBA" else image.convert("RGBA")
        below = Image.new("RGB", image.size, "white")
        below.paste(image, mask=image.getchannel("A"))
        below.info = {name: value for name, value in image.info.items() if name != "transparency"}
        return below
    return image if image.mode == "RGB" else image.convert("RGB")


def _numbers(image: Any) -> Any:
    if image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"):
        raise _Unfit("is a mask in colours; give one number to each pixel: a greyscale or palette image")
    if image.mode == "1":
        image = image.convert("L").point(lambda value: value // 255)
    return image.getchannel(0) if len(image.getbands()) > 1 else image


def _strips(image: Any, kind: str) -> Iterator[bytes]:
    rows = max(1, _STRIP_BYTES // (4 * image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if kind != "m":
            yield strip.tobytes()
        elif strip.mode.startswith("I;16"):
            yield strip.tobytes("raw", "I;16")
        elif strip.mode == "I":
            yield struct.pack(f"<{strip.width * strip.height}H", *(value & 0xFFFF for value in strip.getdata()))
        else:  # 8 bits: indices of a palette as they are
            eight = strip.tobytes()
            wide = bytearray(2 * len(eight))
            wide[::2] = eight
            yield bytes(wide)


def heard(content: bytes, rate: int, seconds: int) -> bytes:
    """Return the mean of a sound's channels at `rate`, as int16.

    Raises:
        _Unfit: it cannot be used, or is longer than `seconds`.
    """
    import numpy as np
    import soundfile
    import soxr

    with soundfile.SoundFile(BytesIO(_measured(content))) as file:
        if file.format not in _SOUNDS:
            raise _Unfit(f"is {file.format}; WAV, FLAC, MP3 and OGG are read: convert it once")
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise _Unfit(f"has {file.samplerate:,} samples a second, not {RATES[0]:,} to {RATES[1]:,}")
        if file.channels > MOST_CHANNELS:
            raise _Unfit(f"has {file.channels:,} channels, more than {MOST_CHANNELS}")
        if file.frames == 0:
            raise _Unfit("holds no sound: 0 frames")
        turned = soxr.ResampleStream(file.samplerate, rate, 1) if file.samplerate != rate else None
        pieces, done = [], 0
        while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)):
            done += len(block)
            if done > seconds * file.samplerate:
                raise _Unfit(f"is longer than {seconds} seconds; cut it into pieces")
            block = block.mean(1)
            if not np.isfinite(block).all():
                raise _Unfit("holds values that are no numbers")
            pieces.append(sixteen(turned.resample_chunk(block) if turned else block))
        if turned:
            pieces.append(sixteen(turned.resample_chunk(np.zeros(0, np.float32), last=True)))
    samples = b"".join(pieces)
    if not samples:
        raise _Unfit("holds no sound")
    return samples


def _measured(content: bytes) -> bytes:
    """Return a file; if it is a WAV file that was never closed, so that its header has no sizes, with that of its samples.

    Raises:
        _Unfit: a WAV file has less than its header says, which libsndfile does not mind.
    """
    place = 12
    while content[:4] == b"RIFF" and place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if name == b"data":
            there = len(content) - place
            if there < size < _UNKNOWN_BYTES:
                raise _Unfit(f"is cut off: the last {size - there:,} bytes that its header promises are not there")
            [end] = struct.unpack_from("<I", content, 4)
            closed = size or end + 8 > place
            return content if closed else content[: place - 4] + struct.pack("<I", there) + content[place:]
        place += size + size % 2
    return content


def sixteen(samples: Any) -> Any:
    """Return samples from -1 to 1 as int16, cut off where they are louder."""
    import numpy as np

    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def main() -> None:
    """Answer until there is nothing more to read."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    warnings.simplefilter("ignore")
    read, write = sys.stdin.buffer, sys.stdout.buffer
    while header := read.read(17):
        letter, rate, seconds, size = struct.unpack("<cIIQ", header)
        kind, content = letter.decode(), read.read(size)
        try:
            found = heard(content, rate, seconds) if kind == "s" else opened(content, kind)
        except MemoryError:
            raise
        except Exception as error:  # the boundary of a process: whatever a decoder says of a file is its reason
            known = str(error) if isinstance(error, _Unfit) else f"cannot be decoded ({_short(error)})"
            words = known.encode()
            write.write(struct.pack("<IIQ", 0, 0, len(words)) + words)
        else:
            if isinstance(found, bytes):
                write.write(struct.pack("<IIQ", 1, len(found) // 2, len(found)))
                write.write(found)
            else:
                size = found.width * found.height * (2 if kind == "m" else 3)
                write.write(struct.pack("<IIQ", found.height, found.width, size))
                for strip in _strips(found, kind):
                    write.write(strip)
            del found  # before the next one needs the memory
        write.flush()


def _short(error: Exception) -> str:
    """Return what a decoder says of a file, without what it says of itself."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.rpartition("BytesIO object at ")[2].partition(">: ")[2] or text  # after soundfile's "Error opening"
    return "no image of a known kind" if text.startswith("cannot identify") else text[:120]


if __name__ == "__main__":
    main()
