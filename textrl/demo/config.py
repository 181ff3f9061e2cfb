"""The options of `textrl demo`. The text under each field is its help.

This module imports the standard library only.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import Positive, Seed, check_fields, require


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on the movie reviews: SFT, reward model, PPO, DPO, evaluation, report."""

    output_dir: str = "runs/demo"
    """Folder of all output. It must be new or empty unless --resume or --overwrite is given."""
    preset: Literal["quick", "tiny", "smollm2"] = "tiny"
    """Models and length of the demo. `tiny` trains a Llama of 4M parameters from scratch; `quick`
    does so with half the updates; `smollm2` trains SmolLM2-135M and MiniLM."""
    seed: Seed[int] = 0
    """Seed of all random numbers."""
    threads: Positive[int] = 2
    """Number of CPU threads. More threads than free cores are far slower."""
    resume: bool = False
    """Continue the unfinished run in output_dir, stage by stage."""
    overwrite: bool = False
    """Delete what is in output_dir before the run starts."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
        require(self, "threads", self.threads >= 1, "at least 1")
