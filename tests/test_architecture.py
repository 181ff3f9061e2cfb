"""Who may import whom, and that files and functions stay readable in one sitting (DESIGN 3, 8)."""

import ast
import importlib
import shutil
from pathlib import Path

import pytest
from house import ROOT, arrows, cycles, imported, modules, room_arrows, room_of

ALLOWED = {
    "textrl": "ground",
    "ground": "",
    "maths": "ground",
    "labels": "ground",
    "texts": "ground labels",
    "models": "ground maths",
    "training": "ground models",
    "judging": "ground models texts labels",
    "envs": "ground maths models texts judging",
    "agents": "ground maths models texts judging training",
    "trainers": "ground maths models texts judging training",
    "feedback": "textrl ground models texts judging labels",
    "demo": "textrl ground models judging training envs agents trainers doctor report",
    "benchmark": "ground models judging training envs agents",
    "doctor": "ground models training",
    "report": "ground training doctor benchmark",
    "cli": "textrl ground models texts judging training envs agents trainers feedback demo "
    "benchmark doctor report",
}
"""Which rooms a room may import (`house.py` says which modules are in a room)."""
PURE = ("masking", "logprobs", "advantages", "losses", "preference_losses")
LIGHT = (
    "errors",
    "bounds",
    "config",
    "loss_names",
    "rows",
    "task_config",
    "task_ids",
    "cli.options",
    "cli.agent_options",
)
LIGHT += ("demo.config", "benchmark.config", "feedback.config", "cli.world_options")
LIGHT += ("cli.report_options", "cli.push_options")
OPTIONAL = {"datasets": 1, "gguf": 1, "vaderSentiment": 1, "peft": 1, "uvicorn": 1, "matplotlib": 2}
OPTIONAL |= {"gem": 1, "nltk": 1, "reasoning_gym": 1, "textarena": 1}
WEB = {"fastapi", "starlette", "pydantic", "uvicorn"}
MODULES = modules()


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycles(arrows(MODULES)) == []


def test_rooms_import_what_they_may() -> None:
    found = room_arrows(MODULES, arrows(MODULES))
    assert {room: targets - set(ALLOWED[room].split()) for room, targets in found.items()} == {
        room: set() for room in found
    }
    unused = {room: set(ALLOWED[room].split()) - targets for room, targets in found.items()}
    assert unused == {room: set() for room in found}, "allowed, but nobody does"


def test_a_cycle_is_seen(tmp_path: Path) -> None:
    """Two imports inside functions, in a copy of the sources: across rooms and within one."""
    for folder in ("textrl", "agents", "envs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("static"))
    for path, line in (
        ("textrl/labels/store.py", "from textrl.data import load_records"),
        ("textrl/masking.py", "import textrl.losses"),
    ):
        with (tmp_path / path).open("a") as file:
            file.write(f"\n\ndef later() -> None:\n    {line}\n")
    found = modules(tmp_path)
    across, within = cycles(arrows(found))
    assert {"textrl.data", "textrl.labels.export", "textrl.labels.store"} <= set(across)
    assert {"textrl.losses", "textrl.masking"} <= set(within)
    assert "texts" in room_arrows(found, arrows(found))["labels"]


def test_every_module_has_a_room() -> None:
    for module, path in MODULES.items():
        assert room_of(module, path) in ALLOWED, f"{module} has no room: name it in house.py"
        assert not packages(path) & {"agents", "envs"}, f"{path}: they are textrl's"


def test_the_maths_is_pure() -> None:
    allowed = {"torch", "collections", "dataclasses", "math"}
    own = {f"textrl.{name}" for name in (*PURE, "errors", "loss_names")}
    for name in PURE:
        for used in imported(MODULES[f"textrl.{name}"]):
            assert used.split(".")[0] in allowed or used.rpartition(".")[0] in own, (name, used)


def test_configurations_need_the_standard_library_only() -> None:
    for name in LIGHT:
        found = packages(MODULES[f"textrl.{name}"])
        assert not found & {"torch", "numpy", "transformers", "gymnasium"}, name


def test_optional_packages_are_imported_in_one_file_each() -> None:
    for package, most in OPTIONAL.items():
        users = [module for module, path in MODULES.items() if package in packages(path)]
        assert 1 <= len(users) <= most, (package, users)


def test_the_web_stays_in_feedback_and_the_database_with_the_labels() -> None:
    for module, path in MODULES.items():
        room = room_of(module, path)
        assert room == "feedback" or not packages(path) & WEB, path
        assert room in ("labels", "feedback") or "sqlalchemy" not in packages(path), path
        if room == "feedback":  # it catches the database's errors and writes no SQL
            used = {name for name in imported(path) if name.startswith("sqlalchemy")}
            assert used <= {"sqlalchemy.exc.SQLAlchemyError"}, path


READ_IN_ONE_SITTING = [
    *MODULES.values(),
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("examples/*.py"),
]


@pytest.mark.parametrize("path", READ_IN_ONE_SITTING, ids=lambda path: str(path)[-40:])
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path}: too long for one sitting"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_nothing_draws_from_global_generators() -> None:
    """torch.manual_seed appears only inside fork_rng; numpy's global functions nowhere.

    But for SB3's rollout buffer: SB3 draws from numpy's global generator, which its seed sets. And
    where foreign games draw from it: they get a state of their own, and the caller's is put back.
    """
    for module, path in MODULES.items():
        text = path.read_text()
        assert text.count("torch.manual_seed") == text.count("torch.random.fork_rng")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np.random":
                known = ("Generator", "SeedSequence", "default_rng")
                known += ("permutation",) if module == "textrl.envs.sb3_buffer" else ()
                if module == "textrl.envs.worlds.foreign":
                    known += ("seed", "get_state", "set_state")
                assert node.attr in known, (path, node.attr)


def test_scripts_import_what_is_there() -> None:
    """The benchmarks and examples are not type-checked, and a moved name must not break them."""
    missing = []
    for path in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("textrl"):
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    there = hasattr(module, name) or f"{node.module}.{name}" in MODULES
                    missing += [] if there else [(path.name, name)]
    assert missing == []
