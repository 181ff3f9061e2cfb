"""The trainers on fixed data sets: SFT, reward model and DPO."""

from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.trainers.dpo import DPOTrainer
from textrl.trainers.reward import RewardTrainer, reward_model_from
from textrl.trainers.sft import SFTTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "reward_model_from",
]
