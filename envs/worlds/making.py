"""Making a world."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym


def make_world(world: Any, arguments: Mapping[str, Any] | None = None) -> gym.Env[str, str]:
    """Return a world."""
    if isinstance(world, gym.Env):
        return world
    if isinstance(world, str):
        return gym.make(world, disable_env_checker=True, **(arguments or {}))
    return world(**(arguments or {}))
