"""`textrl doctor`: what is wrong with a run, how one knows, and what to try.

`records.py` reads a run's folder. `progress_rules.py`, `reward_rules.py` and `policy_rules.py` (of
agents) and `trainer_rules.py` hold one function for each illness. `diagnose.py` asks them all and
puts it into words. `machine.py` looks at the machine.
"""
