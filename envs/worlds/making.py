"""`make_world`: a world from an id, a URL, a factory or a live environment."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium import spaces

from textrl.envs.worlds.factory import FactoryWorld
from textrl.envs.worlds.gem import GemWorld
from textrl.envs.worlds.http_world import HttpWorld
from textrl.envs.worlds.reasoning_gym_world import ReasoningGymWorld
from textrl.envs.worlds.text_arena import TextArenaWorld
from textrl.errors import UserError, did_you_mean, shown

World = gym.Env[str, str]
T = TypeVar("T")
ADAPTERS: dict[str, Callable[..., World]] = {
    "gem": GemWorld,
    "textarena": TextArenaWorld,
    "reasoning_gym": ReasoningGymWorld,
}
"""What stands before the first slash of an id, and the adapter that takes the rest."""


def make_world(world: object, arguments: Mapping[str, Any] | None = None) -> World:
    """Return a world whose spaces are texts.

    Args:
        world: One of these.

            - "gem/ID", "textarena/ID", "reasoning_gym/NAME": another package's, by its adapter.
            - "http://...", "https://...": a server (`HttpWorld`).
            - Any other text: a Gymnasium id, made with Gymnasium's own wrappers but for its
              passive checker, which would look at every text once more.
            - A callable: it is called with the arguments and returns a `gymnasium.Env`, or an
              object for TRL's `environment_factory`, which `FactoryWorld` takes.
            - A `gymnasium.Env`, or an object for TRL's `environment_factory`; no arguments then.
        arguments: Keyword arguments of the adapter, the id or the callable.

    Raises:
        UserError: If there is no such world, its arguments are wrong, or its spaces are not texts.
    """
    given = dict(arguments or {})
    if isinstance(world, str):
        name, made = repr(world), _by_name(world, given)
    else:
        name, made = _called(world), _by_object(world, given)
    for which in ("observation_space", "action_space"):
        found = getattr(made, which, None)
        if not isinstance(found, spaces.Text):
            raise UserError(f"world {name}: its {which} is {found}; expected gymnasium.spaces.Text")
    return made


def _by_name(name: str, given: dict[str, Any]) -> World:
    start, _, rest = name.partition("/")
    if start in ADAPTERS:
        if not rest:
            raise UserError(f"world {name!r}: expected {start}/ and an id")
        return _with(f"world {name!r}", ADAPTERS[start], rest, given)
    if name.startswith(("http://", "https://")):
        return _with(f"world {name!r}", HttpWorld, name, given)
    if start.endswith(":") and "//" in name:
        raise UserError(f"world {name!r}: expected http:// or https://")
    try:
        return _with(f"world {name!r}", _from_gymnasium, name, given)
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        hint = did_you_mean(name, [*gym.registry, *(f"{known}/" for known in ADAPTERS)])
        raise UserError(
            f"no world {name!r}{hint}: expected an id that is registered with Gymnasium, "
            f"{', '.join(f'{known}/ID' for known in ADAPTERS)}, or a URL"
        ) from error
    except gym.error.Error as error:
        raise UserError(f"world {name!r}: {error}") from error


def _from_gymnasium(name: str, **given: Any) -> World:
    return gym.make(name, disable_env_checker=True, **given)


def _by_object(world: object, given: dict[str, Any]) -> World:
    name = _called(world)
    made = world
    if not isinstance(world, gym.Env) and callable(world):
        made = _with(f"world {name}", world, None, given)
    elif given:
        raise UserError(f"world {name} is made already; found arguments {', '.join(given)}")
    if isinstance(made, gym.Env):
        return made
    if callable(getattr(type(made), "reset", None)):
        return FactoryWorld(made)
    raise UserError(
        f"world {name}: {shown(made)}; expected an id, a URL, a gymnasium.Env, an object for TRL's "
        "environment_factory, or a callable that makes one"
    )


def _with(name: str, make: Callable[..., T], first: str | None, given: dict[str, Any]) -> T:
    """Return what the callable makes; arguments that it does not take are the user's mistake."""
    before = () if first is None else (first,)
    try:
        return make(*before, **given)
    except TypeError as error:
        raise UserError(f"{name} with arguments {', '.join(given) or 'none'}: {error}") from error


def _called(world: object) -> str:
    return getattr(world, "__name__", None) or f"of type {type(world).__name__}"
