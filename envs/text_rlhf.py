"""`TextRLHF-v0`, the single environment; the docstring of its class documents the environment.

The computation is in `core.py`; the vector environment is in `vector.py`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from textrl.envs.attributes import (
    Observation,
    TaskAttributes,
    as_array,
    checked_options,
    chosen_prompt,
    observation_space,
    observe,
    render_row,
)
from textrl.envs.core import TextCore
from textrl.envs.core_config import core_config, takes_core_config
from textrl.envs.texts import PromptStream
from textrl.errors import UserError


class TextRLHFEnv(TaskAttributes, gym.Env[Observation, np.int64]):
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

    metadata = {"render_modes": ["human", "ansi"], "render_fps": 4}

    @takes_core_config
    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Make the environment; without arguments, it is the tiny built-in task.

        Args:
            render_mode: "ansi" (`render` returns the text), "human" (each step prints the new part
                of the text) or None.
            arguments: The fields of `CoreConfig`, which explains them.

        Raises:
            UserError: an argument is unknown or out of range, or a model or prompt does not load.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode is {render_mode!r}; expected 'ansi', 'human' or None")
        self.core = TextCore(1, core_config(arguments, type(self)))
        self.render_mode = render_mode
        # Gymnasium's Dict space is typed by its subspaces, Env by the observation's type.
        # a spaces.Dict, which Gymnasium types as Space[dict]
        self.observation_space = observation_space(self.core)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self.core.lm.vocab_size)
        self._stream: PromptStream | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see the class docstring for options."""
        chosen = None
        if options := checked_options(options):
            chosen = self.core.looked_up(chosen_prompt(options, 0))
        super().reset(seed=seed)
        self.core.shaping = "exact"  # a wrapper with another shaping sets it again after a reset
        if seed is not None or self._stream is None:
            repeats = self.core.config.group_size
            self._stream = PromptStream(self.np_random, len(self.core.prompts), repeats)
        self.core.start(0, self._stream.next() if chosen is None else chosen)
        info = {"prompt": self.core.prompt_texts[0], "prompt_index": self.core.prompt_indices[0]}
        if self.render_mode == "human":
            print(f"\n{info['prompt']}|", end="", flush=True)
        return self._observation(), info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token; return observation, reward, terminated, truncated and info."""
        before = self.core.completion_text(0) if self.render_mode == "human" else ""
        token = np.atleast_1d(np.squeeze(as_array(action, "the action")))
        result = self.core.step(token, np.array([True]))
        if self.render_mode == "human":
            print(self.core.completion_text(0)[len(before) :], end="", flush=True)
        info: dict[str, Any] = {"ref_logprob": float(result.ref_logprobs[0, 0])}
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        if terminated or truncated:
            info["finish_reason"] = result.finish_reason[0]
            info["completion"] = result.completion[0]
            info["text"] = self.core.prompt_texts[0] + info["completion"]
        if terminated:
            info["score"] = float(result.score[0])
            if self.render_mode == "human":
                print(f"  [score {info['score']:.3g}]", flush=True)
        return self._observation(), float(result.rewards[0, 0]), terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Return 1 for the tokens that are sensible next, int8 [V], as `action_space.sample` takes.

        The name is sb3-contrib's. Where the mask is 0, `step` refuses the token, except for ids
        beyond the tokenizer.
        """
        masks: np.ndarray = self.core.action_masks()[0]
        return masks

    def render(self) -> str | None:
        """Return the prompt and the completion so far, in render mode "ansi"."""
        return render_row(self.core, 0) if self.render_mode == "ansi" else None

    def _observation(self) -> Observation:
        return {name: array[0] for name, array in observe(self.core).items()}
