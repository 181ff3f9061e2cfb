"""All that Stable-Baselines3 needs to train a language model; import it from here.

`TextVecEnv` (`sb3_vec_env.py`) is the environment as SB3 sees it; `CausalLMPolicy`,
`EpisodeRolloutBuffer` and `SubtractPolicyKL` (`sb3_policy.py`) go into SB3's own PPO and A2C.
"""

from textrl.envs.sb3_policy import CausalLMPolicy, EpisodeRolloutBuffer, SubtractPolicyKL
from textrl.envs.sb3_vec_env import TextVecEnv

__all__ = ["CausalLMPolicy", "EpisodeRolloutBuffer", "SubtractPolicyKL", "TextVecEnv"]
