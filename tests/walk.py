"""How far one PPO iteration walks: the files it enters, and the calls back up between them.

`python tests/walk.py` runs two iterations on the built-in task and traces the second. A call goes
back up if it enters a file that imports the caller's, itself or through others (`house.py`).
"""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
from house import ROOT, arrows, modules

from textrl.agents import PPO, PPOConfig
from textrl.envs import tiny_model


def below() -> dict[Path, set[Path]]:
    """Return which files each file imports, itself or through others."""
    found = modules()
    graph, reached = arrows(found), {}

    def reach(module: str) -> set[str]:
        if module not in reached:
            reached[module] = set(graph[module])
            reached[module] |= {far for near in graph[module] for far in reach(near)}
        return reached[module]

    paths = {module: path.resolve() for module, path in found.items()}
    return {path: {paths[other] for other in reach(module)} for module, path in paths.items()}


def trace(work: Any) -> tuple[set[Path], dict[tuple[Path, Path], int]]:
    """Return the files of textrl that some work enters, and the calls from file to file."""
    files = {path.resolve() for path in modules().values()}
    calls: dict[tuple[Path, Path], int] = {}
    entered: set[Path] = set()

    def caller_of(frame: FrameType) -> Path | None:
        above = frame.f_back
        while above is not None:
            path = Path(above.f_code.co_filename).resolve()
            if path in files:
                return path
            above = above.f_back
        return None

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename).resolve()
        if event != "call" or path not in files:
            return
        entered.add(path)
        caller = caller_of(frame)
        if caller is not None and caller != path:
            calls[caller, path] = calls.get((caller, path), 0) + 1

    sys.setprofile(record)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered, calls


def walk() -> tuple[set[Path], dict[tuple[Path, Path], int], list[tuple[Path, Path]]]:
    """Return the files of one PPO iteration, the calls between them, and which go back up."""
    venv = gym.make_vec("TextRLHF-v0", num_envs=8, max_completion_tokens=6)
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=16, minibatch_size=8))
    agent.iterate()
    entered, calls = trace(agent.iterate)
    imports = below()
    return entered, calls, sorted((a, b) for a, b in calls if a in imports[b])


def main() -> None:
    """Print the walk."""
    entered, calls, ups = walk()
    print(f"{len(entered)} files, {len(calls)} arrows walked, {len(ups)} of them back up")
    for path in sorted(entered):
        print(f"  {path.relative_to(ROOT)}")
    for a, b in ups:
        print(f"  up: {a.relative_to(ROOT)} -> {b.relative_to(ROOT)} ({calls[a, b]} calls)")


if __name__ == "__main__":
    main()
