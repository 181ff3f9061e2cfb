"""Damaged folders of agents and runs: what is loaded is what was saved, or one line names a file.

A pickle lies in the place of every file that is read, and none is ever opened as one.
"""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import strategies as st
from inputs import attempt, fuzz, json_values
from safetensors.torch import load_file

from textrl.agents import RLOO, RLOOConfig
from textrl.checkpoint import Checkpoints
from textrl.cli import main
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.models import load_causal_lm, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
Weights = dict[str, torch.Tensor]


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


def environment() -> Any:
    """Return an environment of the tiny task."""
    return gym.make_vec("TextRLHF-v0", num_envs=4, group_size=2, autoreset_mode="Disabled")


@pytest.fixture(scope="module")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an agent that has trained an iteration."""
    folder = tmp_path_factory.mktemp("agents") / "agent"
    agent = RLOO(tiny_model(), environment(), RLOOConfig(episodes_per_iteration=4))
    agent.learn(1)
    agent.save(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, a model, a run that was stopped, and one that was not."""
    place = tmp_path_factory.mktemp("runs")
    tiny_model().save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    (place / "d.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in "abcdefgh"))
    main(training(place, "whole"))
    saves = []

    def stop(self: Checkpoints, step: int, write: Callable[[Path], None]) -> None:
        SAVE(self, step, write)
        saves.append(step)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(SystemExit):
            main(training(place, "run"))
    assert (place / "run" / "checkpoints" / "latest").exists()
    return place


SAVE = Checkpoints.save


def training(place: Path, output: str, *more: str) -> list[str]:
    """Return the command of an SFT run of four updates, each of them saved."""
    return [
        *("sft", f"--model={place / 'model'}", f"--data={place / 'd.jsonl'}"),
        *(f"--output_dir={place / output}", "--minibatch_size=2", "--save_every=1", *more),
    ]


mutations = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 2**20)),
    st.tuples(st.just("write"), st.binary(max_size=40)),
    st.tuples(st.just("json"), json_values),
    st.tuples(st.just("key"), st.integers(0, 40), json_values),
    st.tuples(st.just("drop"), st.integers(0, 40)),
    st.sampled_from([("pickle",), ("torch",), ("gone",), ("folder",), ("empty",)]),
)


def damage(path: Path, how: tuple[Any, ...], sprung: Path) -> bool:
    """Change a file; return False where the change cannot be made."""
    name, *rest = how
    content = path.read_bytes()
    if name in ("gone", "folder"):
        path.unlink()
        path.mkdir() if name == "folder" else None
    elif name in ("pickle", "torch"):
        trap = Trap(sprung)
        torch.save(trap, path) if name == "torch" else path.write_bytes(pickle.dumps(trap))
    elif name == "flip":
        place = rest[0] % max(len(content), 1)
        path.write_bytes(
            content[:place] + bytes(b ^ rest[1] for b in content[place:][:1]) + content[place + 1 :]
        )
    elif name in ("cut", "empty"):
        path.write_bytes(content[: rest[0] % max(len(content), 1) if rest else 0])
    elif name == "write":
        path.write_bytes(rest[0])
    else:
        return _damage_json(path, name, rest)
    return path.is_dir() or not path.exists() or path.read_bytes() != content


def _damage_json(path: Path, name: str, rest: list[Any]) -> bool:
    """Change the JSON of a file: all of it, or the value of one key, or leave out a key."""
    try:
        found = json.loads(path.read_text())
        value = rest[-1]
        if name == "json":
            path.write_text(json.dumps(value))
        elif isinstance(found, dict) and found:
            key = list(found)[rest[0] % len(found)]
            found = {k: v for k, v in found.items() if k != key}
            path.write_text(json.dumps(found if name == "drop" else found | {key: value}))
        else:
            return False
    except (ValueError, RecursionError):
        return False
    return True


def files(folder: Path) -> list[Path]:
    """Return the files of a folder and of those in it, in one order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def equal(first: Weights, second: Weights) -> bool:
    """Return whether two models have the same weights, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@fuzz(fast=8, long=900, number=st.integers(0, 40), how=mutations)
def test_a_saved_agent(agent_folder: Path, number: int, how: tuple[Any, ...]) -> None:
    folder = agent_folder.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(agent_folder, folder)
    sprung = agent_folder.with_name("sprung")
    listed = files(folder)
    file = listed[number % len(listed)]
    if not damage(file, how, sprung):
        return
    env = environment()
    taken, found = attempt(lambda: RLOO.load(folder, env))
    assert not sprung.exists(), file
    if taken:
        intact = load_file(agent_folder / "model.safetensors")
        assert equal({k: found.policy.state_dict()[k] for k in intact}, intact), file
        assert found.iteration == 1
        assert found.config == RLOOConfig(episodes_per_iteration=4), file
    else:
        assert str(folder) in found, (file, found)
    for load in (load_causal_lm, load_tokenizer):
        attempt(lambda load=load: load(folder))
        assert not sprung.exists(), file


@fuzz(fast=2, long=300, number=st.integers(0, 60), how=mutations)
def test_a_stopped_run(run_folder: Path, capsys: Any, number: int, how: tuple[Any, ...]) -> None:
    run, sprung = run_folder / "damaged", run_folder / "sprung"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(run_folder / "run", run)
    listed = files(run)
    file = listed[number % len(listed)]
    if not damage(file, how, sprung):
        return
    capsys.readouterr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(training(run_folder, "damaged", "--resume"))
        status: Any = 0
    except SystemExit as end:
        status = end.code
    written = capsys.readouterr().err
    assert not sprung.exists(), file
    if status == 0:
        whole = load_file(run_folder / "whole" / "model.safetensors")
        assert equal(load_file(run / "model.safetensors"), whole), file
    else:
        assert status == 2, (file, status)
        said = [line for line in written.splitlines() if line.startswith("textrl: error")]
        assert len(said) == 1, (file, written)
        assert str(run) in said[0], (file, said)
