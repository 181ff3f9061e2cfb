"""The adaptive KL controller: it changes kl_coef to keep the KL to the reference near a target."""

from textrl.config import PPOConfig


def adapted_kl_coef(kl_coef: float, kl: float, episodes: int, config: PPOConfig) -> float:
    """Return the next kl_coef, which moves the KL towards kl_target (1909.08593, section 2.2).

        kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)

    >>> adapted_kl_coef(0.1, 12.0, 1000, PPOConfig(kl_target=6.0, kl_horizon=10_000))
    0.10200000000000001
    """
    assert config.kl_target is not None
    error = min(max(kl / config.kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / config.kl_horizon)
