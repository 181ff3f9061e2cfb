"""Steering kl_coef so that the policy keeps a chosen distance from the reference."""

from textrl.config import PPOConfig


def adapted_kl_coef(kl_coef: float, kl: float, episodes: int, config: PPOConfig) -> float:
    """Return kl_coef steered towards kl_target (1909.08593, section 2.2).

        kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)

    >>> adapted_kl_coef(0.1, 12.0, 1000, PPOConfig(kl_target=6.0, kl_horizon=10_000))
    0.10200000000000001
    """
    assert config.kl_target is not None
    error = min(max(kl / config.kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / config.kl_horizon)
