"""Games of GEM and TextArena: a model over characters learns to guess numbers, token by token.

Needs `pip install -e '.[worlds]'` and `pip install --no-deps textarena==0.7.4`. A game of another
package is a world like any other: `world="textarena/GuessTheNumber-v0"`. The policy starts as
random weights that can only write digits, so it learns what there is to learn without reading much:
numbers that are in the range, and those that win most often.
"""

import string

import gymnasium as gym
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textrl  # noqa: F401  # registers TextTurns-v0
from textrl.agents import PPO, PPOConfig
from textrl.envs import tiny_character_tokenizer
from textrl.envs.worlds.making import make_world


def model(vocab_size: int) -> LlamaForCausalLM:
    """Return a two-layer Llama with random weights; what these games say is long."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


class Boxed(gym.ActionWrapper[str, str, str]):
    r"""Writes a turn as GEM reads it: 5 becomes \boxed{5}."""

    def action(self, action: str) -> str:
        r"""Return the turn in a box."""
        return rf"\boxed{{{action}}}"


def gem_game() -> gym.Env[str, str]:
    """Return GEM's guess-the-number, whose answers are put in boxes."""
    return Boxed(make_world("gem/game:GuessTheNumber-v0-easy"))


GAMES = {
    "GEM": {"world": gem_game},
    "TextArena": {
        "world": "textarena/GuessTheNumber-v0",
        "world_arguments": {"max_number": 5},
    },
}


def learn(game: dict, iterations: int = 20) -> tuple[float, float]:
    """Train on a game; return the mean score of the first and of the last two iterations."""
    tokenizer = tiny_character_tokenizer()
    digits = set(tokenizer.convert_tokens_to_ids(list(string.digits[1:])))
    others = set(range(len(tokenizer))) - digits - {tokenizer.eos_token_id}
    venv = gym.make_vec(
        "TextTurns-v0",
        num_envs=64,
        reference=model(len(tokenizer)),
        tokenizer=tokenizer,
        kl_coef=0.0,  # the reference is random weights: there is nothing to stay near to
        banned_token_ids=sorted(others),
        max_prompt_tokens=800,
        max_completion_tokens=1200,
        max_turn_tokens=2,
        autoreset_mode="Disabled",
        **game,
    )
    config = PPOConfig(episodes_per_iteration=64, minibatch_size=32, learning_rate=5e-3)
    agent = PPO(model(len(tokenizer)), venv, config)
    scores = [agent.iterate()["rollout/score"] for _ in range(iterations)]
    return sum(scores[:2]) / 2, sum(scores[-2:]) / 2


def main() -> tuple[float, float]:
    """Train on all games; return the mean scores before and after."""
    torch.set_num_threads(1)
    found = []
    for name, game in GAMES.items():
        found.append(learn(game))
        print(f"{name}: score {found[-1][0]:.3f} before, {found[-1][1]:.3f} after", flush=True)
        assert found[-1][1] > found[-1][0], name
    return sum(a for a, _ in found) / len(found), sum(b for _, b in found) / len(found)


if __name__ == "__main__":
    before, after = main()
    print(f"score {before:.3f} before, {after:.3f} after")
