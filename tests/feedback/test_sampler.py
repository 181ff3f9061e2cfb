"""What the sampler of `textrl collect --model` shows to people."""

import pytest

from textrl.chat import Chat
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.feedback import sampler
from textrl.feedback.sampler import SamplerSettings, different_outputs


def test_tools_and_variables_of_a_row_reach_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def sample(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        return [f"output {number}" for number, _ in enumerate(prompts)]

    monkeypatch.setattr(sampler, "sample_completions", sample)
    chat = [{"role": "user", "content": "hello"}]
    row = {"prompt": chat, "tools": [{"name": "add"}], "chat_template_kwargs": {"thinking": True}}
    settings = SamplerSettings(
        **{"model": "m", "prompts": "p.jsonl", "database": "sqlite:///x.db", "seed": 0},
        **{
            "samples": 2,
            "max_completion_tokens": 4,
            "temperature": 1.0,
            "overlap": 1,
            "chooser": None,
        },
    )
    found = different_outputs(tiny_model(), tiny_tokenizer(), row, "p.jsonl:1", settings)
    assert found == ["output 0", "output 1"]
    whole = Chat(messages=chat, tools=[{"name": "add"}], variables={"thinking": True})
    assert asked == [whole, whole]
    different_outputs(tiny_model(), tiny_tokenizer(), {"prompt": "a"}, "p.jsonl:2", settings)
    assert asked[2:] == ["a", "a"]
    assert settings.source(row) != settings.source({"prompt": chat})
    assert settings.source({"prompt": "a", "topic": "t"}) == settings.source({"prompt": "a"})
