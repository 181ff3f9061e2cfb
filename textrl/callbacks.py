"""SB3's callbacks for trainers, and the forms in which a callback is given to anything here.

An update of a trainer is what a rollout is to SB3: `on_rollout_start`, the update, `on_step` (whose
locals hold the update's "numbers"), `on_rollout_end`. So `num_timesteps` counts updates. What an
agent tells is in `textrl.agents.callbacks`.
"""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

from textrl.errors import UserError
from textrl.updater import Numbers

MaybeCallback = BaseCallback | list[BaseCallback] | Callable[..., bool] | None
"""SB3's forms of a callback: one, a list, a function of (locals, globals), or none."""


def as_callback(callback: MaybeCallback) -> BaseCallback | None:
    """Return a callback of one of SB3's forms as one callback.

    Raises:
        UserError: it is something else.
    """
    if callback is None or isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, list) and all(isinstance(one, BaseCallback) for one in callback):
        return CallbackList(callback)
    if callable(callback):
        return ConvertCallback(callback)
    raise UserError(
        f"callback is {callback!r}; expected a callback of Stable-Baselines3, a list of them or a "
        f"function of (locals, globals) (progress_bar is given by name)"
    )


class OneRow:
    """What SB3's ProgressBarCallback asks an environment for: steps of one row."""

    num_envs = 1


class UpdateCallbacks:
    """The callback of one call of `Trainer.train`, or none, and what it is told.

    It also counts the trainer's updates, in `num_timesteps`.
    """

    def __init__(self, trainer: Any, callback: BaseCallback | None) -> None:
        """Take the trainer and its callback."""
        self._trainer, self._callback = trainer, callback

    def begin(self, done: int, total: int) -> None:
        """Introduce trainer and callback to each other, before update `done + 1` of `total`."""
        self._trainer.num_timesteps = done
        if self._callback is not None:
            self._callback.init_callback(self._trainer)
            self._callback.on_training_start({"self": self._trainer, "total_timesteps": total}, {})

    def before(self) -> bool:
        """Tell of an update that begins; return whether to take it."""
        if self._callback is None:
            return True
        self._callback.on_rollout_start()
        return not any(getattr(one, "stops", False) for one in leaves(self._callback))

    def after(self, update: int, numbers: Numbers) -> bool:
        """Tell of an update that was taken; return whether to go on."""
        self._trainer.num_timesteps = update
        if self._callback is None:
            return True
        self._callback.update_locals({"numbers": numbers})
        goes_on = self._callback.on_step()
        self._callback.on_rollout_end()
        return goes_on

    def end(self) -> None:
        """Tell that the training is over."""
        if self._callback is not None:
            self._callback.on_training_end()


def leaves(callback: BaseCallback) -> list[BaseCallback]:
    """Return the callbacks of a list and of lists in it."""
    if isinstance(callback, CallbackList):
        return [leaf for one in callback.callbacks for leaf in leaves(one)]
    return [callback]
