"""The built-in agents, and the registry for other agents. Import them as `textrl.agents`."""

if __name__ == "agents":
    raise ModuleNotFoundError("import textrl.agents, not agents: this folder is mapped into textrl")

from textrl.agents.base import Agent, make_agent, register, registered
from textrl.agents.best_of_n import BestOfN
from textrl.agents.callbacks import HeldoutEvaluation
from textrl.agents.grpo import GRPO
from textrl.agents.online_dpo import OnlineDPO
from textrl.agents.ppo import PPO
from textrl.agents.reinforce import Reinforce
from textrl.agents.rloo import RLOO
from textrl.config import (
    BestOfNConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)

__all__ = [
    "GRPO",
    "PPO",
    "RLOO",
    "Agent",
    "BestOfN",
    "BestOfNConfig",
    "GRPOConfig",
    "HeldoutEvaluation",
    "OnlineDPO",
    "OnlineDPOConfig",
    "PPOConfig",
    "RLOOConfig",
    "Reinforce",
    "ReinforceConfig",
    "make_agent",
    "register",
    "registered",
]

register("ppo", PPO)
register("rloo", RLOO)
register("grpo", GRPO)
register("reinforce", Reinforce)
register("online_dpo", OnlineDPO)
register("best_of_n", BestOfN)
