"""Chat templates: what they refuse, and what they cannot reach."""

import pytest
import vocabularies
from vocabularies import CHAT_TEMPLATE, bart, write

from xattn.errors import PromptError, UnsupportedModelError, UsageError
from xattn.inputs.tokenizers import load_tokenizer

# Chat templates


def chatty(directory, template):
    text = vocabularies.byte_level_json()
    return load_tokenizer(write(directory, tokenizer__json=text, chat_template__jinja=template), {})


def test_a_conversation_needs_a_template_and_messages(tmp_path):
    with pytest.raises(UsageError, match="no chat template"):
        bart(tmp_path / "bart").chat_text([{"role": "user", "content": "Hi"}])
    tokenizer = chatty(tmp_path / "chat", CHAT_TEMPLATE)
    with pytest.raises(PromptError, match="at least one message"):
        tokenizer.chat_text([])
    with pytest.raises(UsageError, match=r"unknown role wizard"):
        tokenizer.chat_text([{"role": "wizard", "content": "Hi"}])
    with pytest.raises(UsageError, match=r"messages\[1\]\['role'\]` must be a string"):
        tokenizer.chat_text([{"role": "user", "content": "Hi"}, {"content": "Hi"}])
    with pytest.raises(UsageError, match=r"messages\[0\]` must be a dict"):
        tokenizer.chat_text(["Hi"])
    with pytest.raises(UsageError, match=r"messages\[0\]` must hold strings"):
        tokenizer.chat_text([{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path, template):
    with pytest.raises(UsageError, match="chat template refuses"):
        chatty(tmp_path, template).chat_text([{"role": "user", "content": "Hi"}])


def test_a_template_that_is_no_jinja_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="not valid Jinja"):
        chatty(tmp_path, "{% for %}").chat_text([{"role": "user", "content": "Hi"}])
