"""`TextRLHF-v0`, the single environment; the docstring of its class documents the environment.

What it shares with `TextTurns-v0` is in `token_env.py`, the computation in `core.py`.
"""

from typing import Any

import numpy as np

from textrl.envs.attributes import Observation, TextAttributes
from textrl.envs.core import TextCore
from textrl.envs.core_config import CoreConfig, checked_arguments, takes_fields
from textrl.envs.token_env import TokenEnv


class TextRLHFEnv(TextAttributes, TokenEnv):
    """Text generation as a token MDP whose reward is a reward model with reference-KL shaping.

    ## State and observation
    The state is the prompt and the tokens so far. The observation is a `Dict`:
    | key | space | meaning |
    |---|---|---|
    | `input_ids` | `Box(0, V - 1, (L,), int32)` | prompt and completion, right-padded with 0 |
    | `attention_mask` | `Box(0, 1, (L,), int8)` | 1 on real tokens, 0 on padding |
    | `prompt_length` | `Box(0, max_prompt_tokens, (1,), int32)` | number of prompt tokens |

    L = max_prompt_tokens + max_completion_tokens. Right padding makes an observation a prefix of
    every later one.

    ## Action
    `Discrete(V)`: the next token; V is the width of the reference's logits.

    ## Reward
        r_t = kl_coef * log pi_ref(a_t | s_t)  +  [last token] * (score - penalty)
    This is the half of the RLHF objective that the environment can compute. The agent pays the
    other half, -kl_coef * log pi(a_t | s_t), itself or through the wrapper `PolicyKL`. `kl_coef=0`
    turns the shaping off; `kl_coef` may be set on the environment while it runs. This half alone
    rewards an agent for stopping; `TextRLHFCandidates-v0` has shapings for agents that do not pay
    their half.

    ## End of an episode
    An episode ends at an end token (EOS, or one that ends a turn of the model's chats:
    `end_token_ids`) or at the token budget. In both cases it is `terminated`, `finish_reason` in
    `info` is "eos" or "length", and it is scored (`missing_eos_penalty` is subtracted at the
    budget). With `on_length="truncate"` the budget ends the episode as `truncated`, with no score.

    ## Info
    Each step has `ref_logprob` (nats). The last step also has `score`, `finish_reason`,
    `completion` and `text` (prompt and completion).
    A reset has `prompt` (text) and `prompt_index` (None for a prompt given by the caller).

    ## Reset
    `reset(seed=)` alone determines the prompts: shuffled epochs over the prompt set, with each
    prompt `group_size` times in a row. `options={"prompt": text or messages}` or `{"index": i}`
    selects a prompt.
    """

    core: TextCore

    @takes_fields(CoreConfig)
    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Make the environment; without arguments, it is the tiny built-in task.

        Args:
            render_mode: "ansi" (`render` returns the text), "human" (each step prints the new part
                of the text) or None.
            arguments: The fields of `CoreConfig`, which explains them.

        Raises:
            UserError: an argument is unknown or out of range, or a model or prompt does not load.
        """
        super().__init__(
            TextCore(1, checked_arguments(CoreConfig, arguments, type(self))), render_mode
        )

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token; return observation, reward, terminated, truncated and info."""
        observation, reward, terminated, truncated, info = super().step(action)
        if "completion" in info:
            info["text"] = self.core.prompt_texts[0] + info["completion"]
        return observation, reward, terminated, truncated, info
