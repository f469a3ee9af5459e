"""Where the target language goes: after the start token, or in its place."""

from dataclasses import replace

import pytest
import tiny

import xattn
from xattn.decoding import Settings
from xattn.decoding.asking import Asker, Question
from xattn.errors import UsageError

SOURCE = [5, 6, 7, 2]
CODES = {"ro_RO": 50, "en_XX": 51}


class Codes:
    """What a request needs of a multilingual tokenizer."""

    languages = CODES

    def __init__(self, *, starts: bool) -> None:
        self.language_starts_decoding = starts


@pytest.fixture
def model(tmp_path) -> xattn.Model:
    tiny.make("mbart", tmp_path)
    return xattn.load(tmp_path)


def request(model, codes, prompt=None, language=None, **settings):
    question = Question(prompt=prompt, target_language=language)
    asker = Asker(model.network, codes, model.name)
    return asker.request((model.encode(SOURCE),), question, Settings.resolve({}, **settings))


def test_it_is_forced_after_the_start_token(model):
    found, settings = request(model, Codes(starts=False), language="ro_RO")
    assert (found.prompt, settings.forced_bos_token_id) == ((2,), 50)


@pytest.mark.parametrize("prompt", [[7, 8], [2, 7, 8]])
def test_it_comes_before_a_prefix(model, prompt):
    codes = Codes(starts=False)
    found, settings = request(model, codes, prompt, "ro_RO", forced_bos_token_id=51)
    assert (found.prompt, settings.forced_bos_token_id) == ((2, 50, 7, 8), None)


@pytest.mark.parametrize(("prompt", "want"), [(None, (51,)), ([7, 8], (51, 7, 8))])
def test_mbart_begins_with_it(model, prompt, want):
    assert request(model, Codes(starts=True), prompt, "en_XX")[0].prompt == want


def test_a_checkpoint_without_a_start_token_asks_for_it(model):
    tokens = replace(model.spec.tokens, decoder_start=None)
    model.network.spec = replace(model.spec, tokens=tokens)
    codes = Codes(starts=True)
    with pytest.raises(UsageError, match="names no decoder start token: give `target_language`"):
        request(model, codes)
    assert request(model, codes, language="ro_RO")[0].prompt == (50,)


def test_an_unknown_one_is_refused(model):
    with pytest.raises(UsageError, match=r"`target_language` must be one of ro_RO, en_XX"):
        request(model, Codes(starts=False), language="xx_XX")
