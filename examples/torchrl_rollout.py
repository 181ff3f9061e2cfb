"""TorchRL: TextRLHF-v0 behind its GymWrapper, its checks passed, and a REINFORCE loop on top.

Needs `pip install torchrl`. The environment comes as it is; `TextRLHFCandidates-v0` is a state
vector and a few choices, so that an ordinary TorchRL network can act in it. Its reward is the score
alone, since this loop pays no half of the KL.
"""

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import GymWrapper, RewardSum, TransformedEnv, check_env_specs
from torchrl.modules import ProbabilisticActor
from torchrl.modules.distributions import OneHotCategorical

import textrl  # noqa: F401  # registers the environments


def make_env() -> TransformedEnv:
    """Return the environment, with the sum of each episode's rewards."""
    env = gym.make("TextRLHFCandidates-v0", max_completion_tokens=6)
    return TransformedEnv(GymWrapper(env), RewardSum())


def main(iterations: int = 40, episodes: int = 24) -> tuple[float, float]:
    """Train and return the mean score before and after."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    check_env_specs(GymWrapper(gym.make("TextRLHF-v0", max_completion_tokens=6)))
    env = make_env()
    check_env_specs(env)
    env.set_seed(0)
    network = nn.Sequential(nn.LazyLinear(64), nn.Tanh(), nn.Linear(64, 8))
    logits = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    policy = ProbabilisticActor(
        logits,
        spec=env.action_spec,
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    env.rollout(1, policy)  # gives the lazy layer its size
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    history = []
    for iteration in range(iterations):
        with torch.no_grad():
            played = [env.rollout(6, policy) for _ in range(episodes)]
        returns = torch.stack([one["next", "episode_reward"][-1, 0] for one in played])
        advantages = (returns - returns.mean()) / (returns.std() + 1e-6)
        losses = [
            -(advantage * policy.get_dist(one).log_prob(one["action"].float())).mean()
            for advantage, one in zip(advantages, played, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        history.append(float(returns.mean()))
        if iteration % 10 == 9:
            print(f"{iteration + 1:3}  score {history[-1]:.3f}", flush=True)
    return sum(history[:5]) / 5, sum(history[-5:]) / 5


if __name__ == "__main__":
    before, after = main()
    print(f"score {before:.3f} before, {after:.3f} after")
