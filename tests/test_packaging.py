import configparser
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_two_folders_are_linked_into_the_package() -> None:
    assert setup()["options"]["package_dir"].split() == ["=", "."]
    for name in ("agents", "envs"):
        link = ROOT / "textrl" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


SCRIPT = """
import gymnasium as gym
import textrl
from textrl.agents import PPO
from textrl.envs import TextRLHFEnv

print(textrl.__version__, gym.make("TextRLHF-v0").action_space)
"""


def test_it_is_imported_where_a_folder_of_that_name_lies(tmp_path: Path) -> None:
    """A script beside a clone named textrl: that folder is no package and must not hide ours."""
    (tmp_path / "textrl" / "textrl").mkdir(parents=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0 Discrete(29)"


def test_mypy_finds_the_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type checkers look along the path and run no import hook; py.typed says that they may."""
    from mypy import modulefinder as finder
    from mypy.options import Options

    monkeypatch.chdir(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.path[1:], sep=chr(10))"],
        capture_output=True,
        text=True,
    )
    places = finder.SearchPaths((), (), tuple(found.stdout.split("\n")), ())
    cache = finder.FindModuleCache(places, None, Options())
    for name in ("textrl", "textrl.agents.ppo", "textrl.envs.text_rlhf"):
        assert Path(str(cache.find_module(name))).is_file(), cache.find_module(name)


@pytest.mark.slow
def test_pyright_knows_the_types(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="of the extra dev, which CI installs")
    (tmp_path / "script.py").write_text(SCRIPT + "reveal_type(PPO.load)\n")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert re.search(r'"PPO.load" is ".*venv: VectorEnv.*-> PPO"', done.stdout), done.stdout


def test_every_package_is_listed() -> None:
    listed = set(setup()["options"]["packages"].split())
    found = set()
    for folder, name in (("textrl", ""), ("agents", "textrl."), ("envs", "textrl.")):  # two links
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(name + ".".join(path.parent.relative_to(ROOT).parts))
    assert listed == found


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_bare_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop(name, None)
    with pytest.raises(ModuleNotFoundError, match=f"import textrl.{name}"):
        importlib.import_module(name)


def test_no_machine_and_no_registry_is_named() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True
    ).stdout.split()
    assert tracked
    here = Path(__file__).relative_to(ROOT).as_posix()
    for name in tracked:
        path = ROOT / name
        if path.is_dir() or path.suffix in (".png", ".svg") or name == here:
            continue
        found = re.search(
            r"pypi\.org|huggingface\.co|(?<![\w.])/(work|root|home)/", path.read_text()
        )
        assert found is None, f"{name}: {found}"


@pytest.mark.slow
def test_the_wheel_holds_textrl_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("textrl_gym-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"textrl"}
    for expected in ("textrl/py.typed", "textrl/agents/ppo.py", "textrl/envs/core.py"):
        assert expected in names
    assert not any("test" in name.lower() for name in names)
