"""The worlds: games, tools and users as turn-level environments over text. `textrl.envs.worlds`.

A world is a `gymnasium.Env[str, str]`: `step` takes a turn of the agent and returns what the world
says. Importing a world loads neither torch nor transformers. `base.py` holds what ours share,
`experts.py` holds an expert for each; `textrl/__init__.py` holds their ids and thresholds.
`foreign.py` holds what the adapters to other people's share, and `making.py` makes any of them.
"""
