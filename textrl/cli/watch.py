"""`watched_games`: a policy plays a world, and each turn shows its KL to the reference."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from textrl.cli.agent_commands import check_same_tokens
from textrl.cli.words import shown
from textrl.cli.world_options import PlayConfig
from textrl.envs import TextTurnsVectorEnv
from textrl.envs.worlds.transcripts import Transcript
from textrl.generation import Conversation, ModelSampler, Samples
from textrl.models import load_causal_lm, load_tokenizer, split_lm
from textrl.task_ids import task_of_world

FOR_A_TEMPLATE = 128
"""Tokens that a chat template may write around the first text, and around all replies."""


def watched_games(config: PlayConfig, world: str) -> Iterator[Transcript]:
    """Yield games of a policy, each once it is over, and print its turns meanwhile.

    A game has the seed and the first text that a person would have in it.
    """
    assert config.model is not None
    reference = config.reference or config.model
    check_same_tokens(config.model, reference)
    tokenizer = load_tokenizer(config.model)
    venv = TextTurnsVectorEnv(
        world=world,
        reference=reference,
        tokenizer=tokenizer,
        kl_coef=0.0,
        autoreset_mode="Disabled",
        **_lengths(world, tokenizer),
    )
    lm = split_lm(load_causal_lm(config.model, dtype="float32"))
    sampler, generator = ModelSampler(lm), torch.Generator().manual_seed(config.seed)
    for number, seed in enumerate(range(config.seed, config.seed + config.games), start=1):
        print(f"game {number} of {config.games}: {world}, seed {seed}")
        conversation = sampler.converse(1, venv.core.max_length, generator)
        messages, total = _watched(venv, conversation, seed)
        yield Transcript(world=world, seed=seed, messages=messages, total=total)


def _lengths(world: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the lengths of the world's task, if it has one, with room for a chat template."""
    task, more = task_of_world(world), FOR_A_TEMPLATE if tokenizer.chat_template else 0
    if task is None:
        return {"max_prompt_tokens": 64 + more, "max_completion_tokens": 192 + more}
    return {
        "max_turn_tokens": task.max_turn_tokens,
        "max_prompt_tokens": task.max_prompt_tokens + more,
        "max_completion_tokens": task.max_completion_tokens + more,
    }


def _watched(
    venv: TextTurnsVectorEnv, conversation: Conversation, seed: int
) -> tuple[list[dict[str, str]], float]:
    """Print a game turn by turn; return its messages and its return."""
    observation, infos = venv.reset(options={"index": seed})
    print(shown(infos["prompt"][0]))
    while True:
        ids = torch.as_tensor(observation["input_ids"]).long()
        lengths = torch.as_tensor(observation["attention_mask"]).sum(1).long()
        room = (ids.shape[1] - lengths).clamp_max(venv.max_turn_tokens)
        samples = conversation.sample(
            torch.arange(1),
            ids,
            lengths,
            max_new_tokens=room,
            end_ids=venv.end_token_ids,
            temperature=venv.temperature,
            allowed=venv.allowed,
        )
        _, infos = venv.step_sequence(samples.completion_ids.numpy(), samples.mask.numpy())
        _show_turn(venv, samples, infos)
        if infos["terminated"][0] or infos["truncated"][0]:
            return list(infos["messages"][0]), float(infos["score"][0])
        observation = infos["observation"]


def _show_turn(venv: TextTurnsVectorEnv, samples: Samples, infos: dict[str, Any]) -> None:
    """Print a turn, the log-ratio of each of its tokens, and what the world answered."""
    ratios = samples.logprobs[0].numpy().astype(np.float64) - infos["ref_logprobs"][0]
    tokens = [str(venv.tokenizer.decode([token])) for token in samples.completion_ids[0].tolist()]
    pieces = (f"{_piece(t)} {r:+.2f}" for t, r in zip(tokens, ratios, strict=True))
    print(f"> {shown(infos['turn_text'][0])}")
    print(f"  [KL {ratios.sum():+.2f}, reward {infos['turn_reward'][0]:g}: {'  '.join(pieces)}]")
    print(shown(infos["reply"][0]))
    if infos["finish_reason"][0] == "length":
        print("[there is no room for more]")


def _piece(token: str) -> str:
    r"""Return a token between quotes where it would not be seen.

    >>> _piece("a"), _piece("\n")
    ('a', "'\\n'")
    """
    return token if token.strip() == token and token.isprintable() else repr(token)
