"""The agents: PPO, online DPO, and the door for any other. Import them as `textrl.agents`."""

if __name__ == "agents":
    raise ModuleNotFoundError("import textrl.agents, not agents: this folder is mapped into textrl")

from textrl.agents.base import Agent, make_agent, register, registered
from textrl.agents.online_dpo import OnlineDPO
from textrl.agents.ppo import PPO
from textrl.config import OnlineDPOConfig, PPOConfig

__all__ = [
    "PPO",
    "Agent",
    "OnlineDPO",
    "OnlineDPOConfig",
    "PPOConfig",
    "make_agent",
    "register",
    "registered",
]

register("ppo", PPO)
register("online_dpo", OnlineDPO)
