"""Where the target language goes: after the start token, or in its place."""

from dataclasses import replace

import pytest
import tiny

import xattn
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


def request(model, prompt=None, language=None, **settings):
    memory = model.encode(SOURCE)
    resolved = model._settings(settings)
    return model._request((memory,), prompt, resolved, None, language, "transcribe")


def test_it_is_forced_after_the_start_token(model):
    model._tokenizer = Codes(starts=False)
    found, settings = request(model, language="ro_RO")
    assert (found.prompt, settings.forced_bos_token_id) == ((2,), 50)


@pytest.mark.parametrize("prompt", [[7, 8], [2, 7, 8]])
def test_it_comes_before_a_prefix(model, prompt):
    model._tokenizer = Codes(starts=False)
    found, settings = request(model, prompt, "ro_RO", forced_bos_token_id=51)
    assert (found.prompt, settings.forced_bos_token_id) == ((2, 50, 7, 8), None)


@pytest.mark.parametrize(("prompt", "want"), [(None, (51,)), ([7, 8], (51, 7, 8))])
def test_mbart_begins_with_it(model, prompt, want):
    model._tokenizer = Codes(starts=True)
    assert request(model, prompt, "en_XX")[0].prompt == want


def test_a_checkpoint_without_a_start_token_asks_for_it(model):
    tokens = replace(model.spec.tokens, decoder_start=None)
    model.network.spec = replace(model.spec, tokens=tokens)
    model._tokenizer = Codes(starts=True)
    with pytest.raises(UsageError, match="names no decoder start token: give `target_language`"):
        request(model)
    assert request(model, language="ro_RO")[0].prompt == (50,)


def test_an_unknown_one_is_refused(model):
    model._tokenizer = Codes(starts=False)
    with pytest.raises(UsageError, match=r"`target_language` must be one of ro_RO, en_XX"):
        request(model, language="xx_XX")
