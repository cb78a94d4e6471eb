"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.host.records import Tier
from edgesmith.ledger import Measurement
from edgesmith.report import format as written
from edgesmith.report.svg import Scale, clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (written.format_bytes(0), "0 B"),
        (written.format_bytes(999), "999 B"),
        (written.format_bytes(999.9), "1.00 kB"),
        (written.format_bytes(22_900_000), "22.9 MB"),
        (written.format_bytes(3e15), "3,000 TB"),
        (written.format_count(22_713_216), "22.7 M"),
        (written.format_count(12), "12"),
        (written.format_milliseconds(0.0421), "0.0421 ms"),
        (written.format_milliseconds(1234.5), "1,234 ms"),
        (written.format_factor(2.5833), "2.58×"),
        (written.format_decibels(math.inf), "equal"),
        (written.format_decibels(-3.25), "−3.2 dB"),
        (written.format_seconds(0.8), "0.80 s"),
        (written.format_seconds(200), "3 min 20 s"),
        (written.format_seconds(7260), "2 h 1 min"),
        (written.format_value(97.3, "%"), "97.30 %"),
        (written.format_value(math.inf, "dB"), "∞ dB"),
        (written.format_change(-0.22, "%"), "−0.22 points"),
        (written.format_change(0.0, "%"), "±0.00 points"),
        (written.format_change(1.5, ""), "+1.500"),
        (written.format_number(1e-12), "1.00e-12"),
    ],
)
def test_written_form(text: str, expected: str):
    assert text == expected


@given(st.text(max_size=60), st.integers(3, 40))
def test_shortened_names_keep_both_ends(text: str, length: int):
    short = written.shorten(text, length)
    assert len(short) <= length
    assert short == text or (short[0] == text[0] and short[-1] == text[-1])


def test_spread_is_written_with_the_decimals_of_the_median():
    number = Measurement(value=1.013, unit="x", tier=Tier.REFERENCE, low=0.9985, high=1.0312)
    assert written.format_spread(number) == "1.00 to 1.03"
    assert written.format_spread(Measurement(value=1, unit="x", tier=Tier.REFERENCE)) == ""


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20), st.booleans())
def test_scales_keep_order_and_stay_inside(values: list, logarithmic: bool):
    scale = Scale(values, 10, 110, may_be_logarithmic=logarithmic)
    positions = [scale(value) for value in sorted(values)]
    assert positions == sorted(positions)
    assert all(10 <= position <= 110 for position in positions)
    for tick, text in scale.ticks(5):
        assert 9.99 <= scale(tick) <= 110.01 and text


@given(st.text())
def test_cleaned_text_has_only_characters_that_documents_may_hold(text: str):
    found = clean(text)
    assert len(found) == len(text)
    assert not [character for character in found if character < " " and character not in "\t\n\r"]
    assert not {"\ufffe", "\uffff"} & set(found)
