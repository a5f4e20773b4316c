"""How what is said is written, so that two ways of writing the same are not counted as an error."""

from __future__ import annotations

import re
import unicodedata

#: Apostrophes that stand inside a word.
_INSIDE = re.compile(r"(?<=\w)[\u2019\u02bc'](?=\w)")


def plain(text: str) -> str:
    """Return a text in lower case, without punctuation and symbols, one blank between words.

    An apostrophe inside a word stays. Compatible characters become one (Unicode's NFKC).

    >>> plain("It\u2019s 5 o'clock -- \u201cReady?\u201d"), plain("\u4f60\u597d\uff0c\u4e16\u754c")
    ("it's 5 o'clock ready", '\u4f60\u597d \u4e16\u754c')
    """
    text = _INSIDE.sub("\0", unicodedata.normalize("NFKC", text).lower())
    kept = (letter if letter == "\0" or unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    return " ".join("".join(kept).replace("\0", "'").split())


def tidy(text: str) -> str:
    """Return a text as it stands, composed (Unicode's NFC) and with one blank between words.

    >>> tidy(" A  cafe\u0301\\n")
    'A caf\xe9'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())
