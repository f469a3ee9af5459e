"""Stop strings over token boundaries, and in a stream of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.decoding import StopFilter
from xattn.decoding.stopping import StopStrings
from xattn.errors import UsageError

SPECIAL = 300


class Bytes:
    """Token n is byte n; 300 is a special token."""

    def decode(self, ids, *, skip_special=True):
        kept = [[i] if i < 256 else ([] if skip_special else list(b"<end>")) for i in ids]
        return bytes(b for some in kept for b in some).decode(errors="replace")


TEXTS = st.text(alphabet="ab€", max_size=30)
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), min_size=1, max_size=3)


@given(TEXTS, STOPS)
def test_a_stop_string_is_found_with_the_token_that_completes_it(text, strings):
    stop, tokens = StopStrings(strings, Bytes()), list(text.encode())
    for end in range(1, len(tokens) + 1):
        so_far = Bytes().decode(tokens[:end])
        places = [so_far.find(s) for s in strings if s in so_far]
        assert stop.find(tokens[:end]) == (so_far[: min(places)] if places else None)
        if places:
            break


def test_special_tokens_can_stop_and_leave_no_text():
    tokens = [*b"so ", SPECIAL, *b"it", SPECIAL]
    assert StopStrings(["<end>"], Bytes()).find(tokens[:3]) is None
    assert StopStrings(["<end>"], Bytes()).find(tokens[:4]) == "so "
    assert StopStrings(["it<end>"], Bytes()).find(tokens) == "so "
    assert StopStrings(["o i"], Bytes()).find(tokens[:5]) == "s"


@given(TEXTS, STOPS, st.data())
def test_a_filtered_stream_is_the_text_before_the_first_stop_string(text, strings, data):
    stop, shown, rest = StopFilter(strings), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += stop.push(rest[:size])
        rest = rest[size:]
        assert text.startswith(shown)
    shown += stop.finish()
    # The stream stops at the string that is complete first, as generation would.
    ends = [text.find(s) + len(s) for s in strings if s in text]
    if not ends:
        assert shown == text
        assert not stop.stopped
        return
    assert stop.stopped
    assert not any(s in shown for s in strings)
    assert text[len(shown) :].startswith(tuple(strings))


def test_text_that_begins_no_stop_string_is_not_held_back():
    stop = StopFilter(["###"])
    assert [stop.push(piece) for piece in ("a", "b#", "#", "c")] == ["a", "b", "", "##c"]
    assert [stop.push("d##"), stop.push("#e"), stop.push("f"), stop.finish()] == ["d", "", "", ""]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="`strings` must be non-empty"):
        StopFilter([""])
