"""The environments: text generation behind Gymnasium's interface. Import them as `textrl.envs`.

The names load when they are first used: the worlds in `worlds/` need no torch, and this file runs
before theirs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ == "envs":
    raise ModuleNotFoundError("import textrl.envs, not envs: this folder is mapped into textrl")

if TYPE_CHECKING:
    from textrl.envs.candidates import CandidateActions, VectorCandidateActions
    from textrl.envs.tasks import (
        tiny_character_model,
        tiny_character_tokenizer,
        tiny_model,
        tiny_prompts,
        tiny_score,
        tiny_tokenizer,
    )
    from textrl.envs.text_rlhf import TextRLHFEnv
    from textrl.envs.text_turns import TextTurnsEnv, TextTurnsVectorEnv
    from textrl.envs.vector import TextRLHFVectorEnv
    from textrl.envs.wrappers import PolicyKL

__all__ = [
    "CandidateActions",
    "PolicyKL",
    "TextRLHFEnv",
    "TextRLHFVectorEnv",
    "TextTurnsEnv",
    "TextTurnsVectorEnv",
    "VectorCandidateActions",
    "tiny_character_model",
    "tiny_character_tokenizer",
    "tiny_model",
    "tiny_prompts",
    "tiny_score",
    "tiny_tokenizer",
]

_MODULES = {
    "CandidateActions": "candidates",
    "PolicyKL": "wrappers",
    "TextRLHFEnv": "text_rlhf",
    "TextRLHFVectorEnv": "vector",
    "TextTurnsEnv": "text_turns",
    "TextTurnsVectorEnv": "text_turns",
    "VectorCandidateActions": "candidates",
    "tiny_character_model": "tasks",
    "tiny_character_tokenizer": "tasks",
    "tiny_model": "tasks",
    "tiny_prompts": "tasks",
    "tiny_score": "tasks",
    "tiny_tokenizer": "tasks",
}
"""The module of each name; a test holds it against `__all__`."""


def __getattr__(name: str) -> Any:
    """Return the class or function of that name, and load its module the first time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"textrl.envs.{_MODULES[name]}"), name)
