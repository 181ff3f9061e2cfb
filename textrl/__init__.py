"""textrl: reinforcement learning from human feedback as a Gymnasium problem.

Importing this package registers `TextRLHF-v0` and `TextRLHFCandidates-v0`. It loads neither torch
nor transformers; import the parts by name (`from textrl.agents import PPO`).
"""

import gymnasium as gym

__version__ = "0.1.0"

if "TextRLHF-v0" not in gym.registry:  # importing twice (tests, reloads) must not warn
    gym.register(
        id="TextRLHF-v0",
        entry_point="textrl.envs.text_rlhf:TextRLHFEnv",
        vector_entry_point="textrl.envs.vector:TextRLHFVectorEnv",
    )
    gym.register(
        id="TextRLHFCandidates-v0",
        entry_point="textrl.envs.candidates:TextCandidatesEnv",
        vector_entry_point="textrl.envs.candidates:vector_candidates",
    )
    gym.register(
        id="TextTurns-v0",
        entry_point="textrl.envs.text_turns:TextTurnsEnv",
        vector_entry_point="textrl.envs.text_turns:TextTurnsVectorEnv",
    )
