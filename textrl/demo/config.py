"""The options of `textrl demo`.

Standard library only, as `textrl/config.py`; the text under each field is its help.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import Positive, Seed, check_fields, require


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on the movie reviews: SFT, reward model, PPO, DPO, evaluation, report."""

    output_dir: str = "runs/demo"
    """Folder of everything; must be new or empty."""
    preset: Literal["quick", "tiny", "smollm2"] = "tiny"
    """tiny: a 4M Llama from nothing; quick: half its updates; smollm2: SmolLM2-135M and MiniLM."""
    seed: Seed[int] = 0
    """Seed of everything."""
    threads: Positive[int] = 2
    """CPU threads; more than there are free cores is far slower."""
    resume: bool = False
    """Continue the run that lies there, stage by stage."""
    overwrite: bool = False
    """Delete what lies there first."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
        require(self, "threads", self.threads >= 1, "at least 1")
