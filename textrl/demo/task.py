"""`TextRLHF/Reviews-v0`: the movie reviews as a task id, with the models of `textrl demo`.

The reference is the demo's SFT model, the reward its reward model, trained on people's rankings,
and the prompts are the first words of the reviews. None of them is in the repository.
"""

from pathlib import Path
from typing import Any

from textrl.demo.config import DemoConfig
from textrl.demo.presets import TINY
from textrl.demo.reviews import load_reviews, review_prompts, split_reviews
from textrl.envs import TextRLHFEnv, TextRLHFVectorEnv
from textrl.errors import UserError
from textrl.paths import expanded


def reviews(
    *, models: str | Path = DemoConfig.output_dir, heldout: bool = False, **settings: Any
) -> TextRLHFEnv:
    """Return the single environment of `gym.make("TextRLHF/Reviews-v0")`.

    Args:
        models: The folder of a run of `textrl demo`.
        heldout: Whether the prompts are those that no model of the demo was trained on.
        settings: Other arguments of `TextRLHFEnv`.

    Raises:
        UserError: the folder has no models of the demo, or the reviews cannot be downloaded.
    """
    return TextRLHFEnv(**_arguments(models, heldout) | settings)


def vector_reviews(
    num_envs: int = 1,
    *,
    models: str | Path = DemoConfig.output_dir,
    heldout: bool = False,
    **settings: Any,
) -> TextRLHFVectorEnv:
    """Return the vector environment of `gym.make_vec("TextRLHF/Reviews-v0")`; see `reviews`."""
    return TextRLHFVectorEnv(num_envs=num_envs, **_arguments(models, heldout) | settings)


def _arguments(models: str | Path, heldout: bool) -> dict[str, Any]:
    folder = expanded(models)
    for name in ("sft", "reward_model"):
        if not (folder / name / "config.json").exists():
            raise UserError(
                f"{folder / name} holds no model; train the models of this task once with `textrl "
                f"demo --output_dir {models}`, or name the folder of such a run, "
                f'gym.make("TextRLHF/Reviews-v0", models=FOLDER)'
            )
    train, kept = split_reviews(load_reviews())
    return {
        "reference": folder / "sft",
        "reward": folder / "reward_model",
        "prompts": review_prompts(kept if heldout else train, TINY.prompt_words),
        "kl_coef": TINY.kl_coef,
        "max_prompt_tokens": TINY.max_prompt_tokens,
        "max_completion_tokens": TINY.max_completion_tokens,
    }
