"""What an iteration changes before its update, taken back if the update is never reached."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from textrl.agents.text_env import TextEnv
from textrl.stopping import uninterrupted


@contextmanager
def undone_on_failure(generator: torch.Generator, env: TextEnv) -> Iterator[None]:
    """Set the random generator and the prompts back to the block's beginning if the block fails.

    Ctrl+C, SIGTERM and a reward function that fails are failures. An environment whose prompts
    cannot be set back (a SyncVectorEnv) keeps them as they are.
    """
    state, prompts = generator.get_state(), env.prompt_state()
    try:
        yield
    except BaseException:
        with uninterrupted():  # a second Ctrl+C must not find half of it done
            generator.set_state(state)
            if prompts is not None:
                env.load_prompt_state(prompts)
        raise
