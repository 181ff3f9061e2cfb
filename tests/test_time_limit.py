"""A limit on the time of other people's code, a chat template's among them."""

import threading
import time

import pytest

from textrl import chat
from textrl.chat import Chat
from textrl.envs import tiny_tokenizer
from textrl.errors import UserError
from textrl.time_limit import TooLongError, time_limit

FOREVER = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
)


def test_a_template_that_never_ends_is_one_line(monkeypatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FOREVER
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"x\.jsonl:3: the chat template refuses .* it takes longer than 0\.2 s"
    ):
        chat.render(tokenizer, Chat(messages=[{"role": "user", "content": "a"}]), "x.jsonl:3")
    assert time.monotonic() - began < 30


def test_it_is_raised_in_the_thread_that_set_it() -> None:
    found = []

    def work() -> None:
        try:
            with time_limit(0.05):
                while True:
                    pass
        except TooLongError:
            found.append(threading.current_thread().name)

    thread = threading.Thread(target=work, name="other")
    thread.start()
    thread.join(30)
    assert found == ["other"]


def test_nothing_comes_late() -> None:
    for _ in range(20):
        with time_limit(0.01):
            pass
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
