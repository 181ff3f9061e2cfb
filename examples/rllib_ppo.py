"""RLlib: its own PPO in TextRLHFCandidates-v0, choosing among the reference's likeliest tokens.

Needs `pip install -e '.[rllib]'` (Ray pins an older Gymnasium, so give it an environment of its
own). RLlib makes the environment in its workers from the registered function.
Its PPO pays no half of the KL, so the environment pays none either: the reward is the score.
"""

import gymnasium as gym
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env


def make_env(settings: dict) -> gym.Env:
    """Return the environment; called in RLlib's workers."""
    import textrl  # noqa: F401  # registers TextRLHFCandidates-v0

    return gym.make("TextRLHFCandidates-v0", **settings)


def main(iterations: int = 6) -> tuple[float, float]:
    """Train and return the mean score before and after."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_env("text", make_env)
    config = (
        PPOConfig()
        .environment("text", env_config={"max_completion_tokens": 6})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .training(lr=2e-3, gamma=1.0, train_batch_size_per_learner=1000, minibatch_size=250)
        .training(num_epochs=6, entropy_coeff=0.0)
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    history = []
    for iteration in range(iterations):
        found = algorithm.train()
        history.append(found["env_runners"]["episode_return_mean"])
        print(f"{iteration + 1:3}  score {history[-1]:.3f}", flush=True)
    algorithm.stop()
    ray.shutdown()
    return history[0], history[-1]


if __name__ == "__main__":
    before, after = main()
    print(f"score {before:.3f} before, {after:.3f} after")
