"""Every configuration with any value in any field: made as asked for, or refused in a line."""

import functools
import math
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from inputs import attempt, fuzz, json_values, python_values, scalars, texts

from textrl import config as configs
from textrl.benchmark.config import BenchmarkConfig
from textrl.cli import (
    agent_options,
    options,
    parse,
    parser,
    push_options,
    report_options,
    world_options,
)
from textrl.cli.parser import COMMANDS
from textrl.demo.config import DemoConfig
from textrl.envs.core_config import CoreConfig
from textrl.errors import UserError
from textrl.feedback.config import BackupConfig, CollectConfig, ExportConfig

ALONE = (
    *(configs.SFTConfig, configs.RewardConfig, configs.DPOConfig, configs.PPOConfig),
    *(configs.RLOOConfig, configs.GRPOConfig, configs.ReinforceConfig, configs.OnlineDPOConfig),
    *(configs.BestOfNConfig, CoreConfig, DemoConfig, CollectConfig, ExportConfig),
    *(agent_options.StatesConfig, agent_options.DemonstrationsConfig, options.NormalizeConfig),
    *(agent_options.HeldoutConfig, report_options.DoctorConfig),
)
"""The configurations in which every field has a default."""
CLASSES: dict[type, dict[str, Any]] = {
    **{kind: {} for kind in ALONE},
    BackupConfig: {"output": "o"},
    BenchmarkConfig: {"agents": "ppo"},
    agent_options.OutsideAgentConfig: {"agent": "a:B"},
    agent_options.AgentRunConfig: {"model": "m", "total_timesteps": 5},
    world_options.ProbeConfig: {"agent": "ppo"},
    world_options.PlayConfig: {"world": "w"},
    report_options.ReportConfig: {"runs": ["r"]},
    push_options.PushConfig: {"model": "m", "repo": "ann/policy"},
    options.ModelConfig: {"model": "m", "data": "d"},
    options.RunConfig: {"output_dir": "o"},
    options.EnvConfig: {"prompts": "p", "reward": "r"},
    options.GenerateConfig: {"model": "m", "prompts": "p"},
    options.BestOfConfig: {"model": "m", "reward": "r", "prompts": "p"},
    options.EvaluateConfig: {"model": "m", "reference": "r", "reward": "w", "prompts": "p"},
}
OBJECTS = ("reference", "reward", "prompts", "tokenizer", "device", "dtype")
"""The arguments of an environment that are no plain values and are checked by who uses them."""
WORDS = ("none", "bfloat16", "sigmoid", "simpo", "exact", "mask", "truncate", "true", "null", "~")
plain = st.one_of(st.sampled_from(WORDS), scalars, json_values)


def settings_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[type, dict[str, Any]]]:
    """Return a strategy of (class of a configuration, up to three of its fields with values)."""

    def given(kind: type) -> st.SearchStrategy[tuple[type, dict[str, Any]]]:
        names = [field.name for field in fields(kind) if field.name not in OBJECTS]
        return st.tuples(
            st.just(kind), st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3)
        )

    return st.sampled_from(list(CLASSES)).flatmap(given)


def numbers_in(value: Any) -> Iterator[float]:
    """Yield the numbers of a field, those of a mix of losses too."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from value.values()


@fuzz(fast=100, long=6_000, chosen=settings_of(st.one_of(plain, python_values)))
def test_from_python(chosen: tuple[type, dict[str, Any]]) -> None:
    kind, values = chosen
    taken, config = attempt(lambda: kind(**(CLASSES[kind] | values)))
    if taken:
        for name, value in values.items():
            kept = getattr(config, name)
            rounded = float(value) if isinstance(value, Fraction) else value
            assert kept == rounded or name == "banned_token_ids"
            assert all(map(math.isfinite, numbers_in(kept)))
            default = next(field.default for field in fields(kind) if field.name == name)
            if isinstance(default, float | bool) or type(default) is int:
                assert isinstance(kept, bool) == isinstance(default, bool)


KINDS_OF = {name: kinds for name, (_, kinds) in COMMANDS.items()}
NEEDED = {
    "model": "m",
    "data": "d",
    "output_dir": "o",
    "prompts": "p",
    "reward": "r",
    "reference": "x",
    "total_timesteps": "10",
    "agents": "ppo",
    "agent": "a:B",
    "output": "o",
    "repo": "ann/policy",
}


def required(command: str) -> list[str]:
    """Return the options without which a command is refused."""
    names = [field.name for kind in KINDS_OF[command] for field in fields(kind)]
    return [name for name in names if name in NEEDED]


@st.composite
def command_and_values(draw: Any, values: st.SearchStrategy[Any]) -> tuple[str, dict[str, Any]]:
    command = draw(st.sampled_from(sorted(COMMANDS)))
    names = [field.name for kind in KINDS_OF[command] for field in fields(kind)]
    return command, draw(st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3))


@pytest.fixture(scope="module", autouse=True)
def one_parser() -> Iterator[None]:
    """Build the parser once: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "make_parser", functools.cache(parser.make_parser))
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the place of the one file of each input."""
    return tmp_path_factory.mktemp("configs") / "c.yaml"


@fuzz(fast=12, long=2_000, given=command_and_values(plain))
def test_from_yaml(file: Path, given: tuple[str, dict[str, Any]]) -> None:
    command, values = given
    try:
        text = yaml.safe_dump(values, allow_unicode=True)
    except (RecursionError, yaml.YAMLError):
        return
    file.write_bytes(text.encode(errors="surrogatepass"))
    missing = [f"--{name}={NEEDED[name]}" for name in required(command) if name not in values]
    taken, found = attempt(lambda: parse([command, f"--config={file}", *missing]))
    if taken:
        kept = {f.name: getattr(part, f.name) for part in found[1] for f in fields(part)}
        for name, value in yaml.safe_load(text).items():
            number = isinstance(value, int | float) and not isinstance(kept[name], str)
            assert kept[name] == value or (not number and type(value) is not type(kept[name]))


@fuzz(fast=12, long=1_000, content=st.one_of(st.text(max_size=60), st.binary(max_size=40), texts))
def test_any_bytes_as_the_file_of_a_configuration(file: Path, content: Any) -> None:
    is_text = isinstance(content, str)
    file.write_bytes(content.encode(errors="surrogatepass") if is_text else content)
    attempt(lambda: parse(["sft", "--model=m", "--data=d", "--output_dir=o", f"--config={file}"]))


YAML_TRAPS = (
    "[" * 10_000,
    "{a: " * 5_000,
    "- " * 3_000,
    "a: &a [*a]",
    "seed: 2001-99-99",
    "seed: !!python/object/apply:os.system ['touch sprung']",
    "seed: !!int x",
    "seed: !!binary x",
    "seed: 0b",
    "seed: 0x_",
    "seed: 1:99:99",
    "? [a]: b",
    "? {a: b}\n: c",
    "seed: .inf",
    "learning_rate: .nan",
    "<<: [1]",
    "<<: {seed: 1}",
    "config: c.yaml",
    "a: 1\n---\nb: 2",
    "%YAML 9.9\n---\nseed: 1",
    "model: " + "9" * 5000,
    "seed: " + "9" * 5000,
    "learning_rate: 1" + "0" * 400,
    "\tseed: 1",
    "!!set {a, b}",
    "resume: 'false'",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    "model: [*d,*d,*d,*d,*d,*d,*d,*d,*d]",
)


@pytest.mark.parametrize("text", YAML_TRAPS, ids=lambda text: text[:12])
def test_yaml_that_traps_readers(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    line = ["sft", "--model=m", "--data=d", "--output_dir=o", "--config=c.yaml"]
    _, found = attempt(lambda: parse(line))
    assert not Path("sprung").exists()
    assert len(str(found)) < 3000


def test_every_configuration_is_tried() -> None:
    tried = set(CLASSES)
    assert {kind for kinds in KINDS_OF.values() for kind in kinds if fields(kind)} <= tried
    for name in ("SFTConfig", "PPOConfig", "BestOfNConfig"):
        assert getattr(configs, name) in tried
    with pytest.raises(UserError):
        configs.SFTConfig(seed=10**400)
