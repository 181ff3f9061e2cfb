"""The public classes with which Stable-Baselines3 and sb3-contrib train a language model.

`TextVecEnv` (`sb3_vec_env.py`) is the environment behind SB3's interface. `CausalLMPolicy` and
`SubtractPolicyKL` (`sb3_policy.py`) and `EpisodeRolloutBuffer` (`sb3_buffer.py`) are for SB3's PPO
and A2C and sb3-contrib's TRPO. The two Maskable classes (`sb3_masked.py`) are for its MaskablePPO.
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
    """Import the classes that need sb3-contrib on first access."""
    if not name.startswith("Maskable"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from textrl.envs import sb3_masked
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs sb3-contrib: pip install 'textrl-gym[contrib]'") from error
    return getattr(sb3_masked, name)
