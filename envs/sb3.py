"""All that Stable-Baselines3 and sb3-contrib need to train a language model; import it from here.

`TextVecEnv` (`sb3_vec_env.py`) is the environment as SB3 sees it; `CausalLMPolicy` and
`SubtractPolicyKL` (`sb3_policy.py`) and `EpisodeRolloutBuffer` (`sb3_buffer.py`) go into SB3's own
PPO and A2C and sb3-contrib's TRPO; the two Maskable classes (`sb3_masked.py`) into its MaskablePPO.
"""

from typing import Any

from textrl.envs.sb3_buffer import EpisodeRolloutBuffer
from textrl.envs.sb3_policy import CausalLMPolicy, SubtractPolicyKL
from textrl.envs.sb3_vec_env import TextVecEnv
from textrl.errors import UserError

__all__ = [
    "CausalLMPolicy",
    "EpisodeRolloutBuffer",
    "MaskableCausalLMPolicy",  # noqa: F822  # below
    "MaskableEpisodeRolloutBuffer",  # noqa: F822  # lazily, see __getattr__
    "SubtractPolicyKL",
    "TextVecEnv",
]


def __getattr__(name: str) -> Any:
    """Import what needs sb3-contrib only when somebody asks for it."""
    if not name.startswith("Maskable"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from textrl.envs import sb3_masked
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs sb3-contrib: pip install 'textrl-gym[contrib]'") from error
    return getattr(sb3_masked, name)
