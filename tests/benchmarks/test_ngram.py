"""The n-gram model against probabilities worked out by hand, and against a second, slow implementation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.ngram import NGram


def slow(text: bytes, order: int, context: bytes, byte: int) -> float:
    """Return the probability by the recursive definition, counting anew each time."""
    found = 1 / 256
    for size in range(order):
        history = context[len(context) - size :] if size else b""
        if size > len(context):
            break
        after = [text[i + size] for i in range(len(text) - size) if text[i : i + size] == history]
        if after:
            kinds = len(set(after))
            found = (after.count(byte) + kinds * found) / (len(after) + kinds)
    return found


def test_probabilities_worked_out_by_hand():
    model = NGram(2, b"abab")
    # One byte: a twice, b twice, so 4 in all of 2 kinds.
    of_a = of_b = (2 + 2 / 256) / 6
    of_c = (0 + 2 / 256) / 6
    first = model.next_byte(b"")
    assert first[ord("a")] == pytest.approx(of_a)
    assert first[ord("c")] == pytest.approx(of_c)
    # After a: b twice, of 1 kind. After b: a once, of 1 kind. After c: nothing was seen.
    after_a, after_b, after_c = model.next_byte(b"a"), model.next_byte(b"b"), model.next_byte(b"c")
    assert after_a[ord("b")] == pytest.approx((2 + of_b) / 3)
    assert after_a[ord("c")] == pytest.approx((0 + of_c) / 3)
    assert after_b[ord("a")] == pytest.approx((1 + of_a) / 2)
    assert after_c == pytest.approx(first)


def test_bits_per_byte_worked_out_by_hand():
    of_a = of_b = (2 + 2 / 256) / 6
    expected = -(math.log2(of_a) + math.log2((2 + of_b) / 3) + math.log2((1 + of_a) / 2)) / 3
    assert NGram(2, b"abab").bits_per_byte(b"aba") == pytest.approx(expected)


@pytest.mark.parametrize("context", [b"", b"t", b"the ", b"to be or", b"\xff\x00", b"zzzzzz"])
@pytest.mark.parametrize("order", [1, 3, 6])
def test_the_256_probabilities_sum_to_one(order: int, context: bytes):
    model = NGram(order, b"the quality of mercy is not strained, it droppeth as the gentle rain " * 3)
    found = model.next_byte(context)
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()


def test_agrees_with_a_slow_implementation():
    draw = random.Random(0)
    text = bytes(draw.choice(b"abc\xff") for _ in range(200))
    held_out = bytes(draw.choice(b"abcd\xff\x00") for _ in range(60))
    expected = [slow(text, 4, held_out[max(0, i - 3) : i], byte) for i, byte in enumerate(held_out)]
    assert np.allclose(NGram(4, text).probabilities(held_out), expected)


def test_without_training_text_every_byte_costs_eight_bits():
    assert NGram(3, b"").bits_per_byte(b"anything") == pytest.approx(8)
    assert NGram(3, b"abc").bits_per_byte(b"") == 0


def test_refuses_an_order_that_does_not_fit_in_a_number():
    with pytest.raises(ValueError, match="between 1 and 8"):
        NGram(9, b"abc")
