"""The plan of the house: modules, rooms, and who imports whom, read from the sources.

`python tests/house.py [CHECKOUT]` prints files, lines and arrows of each room, and the cycles.
`test_architecture.py` holds the plan.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"textrl": "textrl", "agents": "textrl.agents", "envs": "textrl.envs"}
FLOORS = {
    "ground": "errors bounds paths rows types config resolve loss_names task_config task_ids "
    "durable stopping locks time_limit machine",
    "maths": "masking logprobs advantages losses preference_losses",
    "models": "finite digests precision packing policy decoding trunks limits heads adapters "
    "models generation devices trainable",
    "texts": "data data_files chat turns seams encoding shared_prompts",
    "training": "memory engine metrics checkpoint run_folder updater callbacks resuming loop "
    "trackers",
    "judging": "classifiers reward_kinds reward_calls scorer people rewards informative evaluation",
}
"""The rooms that are no folders: which modules of `textrl/` belong together."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the path of every module by its name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("").parts
            if folder == "textrl" and inner[0] in FOLDERS:  # links to the two folders
                continue
            name = ".".join((package, *inner))
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str, path: Path) -> str:
    """Return the room of a module: its folder, or for a file of `textrl/` its floor."""
    parts = module.split(".")
    if len(parts) > 2 or (len(parts) == 2 and path.name == "__init__.py"):
        return parts[1]
    if len(parts) == 1:
        return "textrl"
    if parts[1] == "__main__":
        return "cli"
    return next((room for room, names in FLOORS.items() if parts[1] in names.split()), parts[1])


def imported(path: Path) -> Iterator[str]:
    """Yield the names that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return which of the modules each module imports."""

    def target(name: str) -> str | None:
        while name and name not in found:
            name = name.rpartition(".")[0]
        return name or None

    graph = {}
    for module, path in found.items():
        targets = {target(name) for name in imported(path)}
        graph[module] = {name for name in targets if name is not None and name != module}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import one another, each sorted.

    >>> cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    [['b', 'c']]
    """

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in graph[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    reached = {module: reach(module) for module in graph}
    circles = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return [list(circle) for circle in sorted(circles)]


def room_arrows(found: Mapping[str, Path], graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return which rooms the modules of each room import."""
    rooms: dict[str, set[str]] = {room_of(*item): set() for item in found.items()}
    for module, targets in graph.items():
        room = room_of(module, found[module])
        rooms[room] |= {room_of(target, found[target]) for target in targets} - {room}
    return rooms


def main() -> None:
    """Print the plan of a checkout."""
    found = modules(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    graph = arrows(found)
    rooms = room_arrows(found, graph)
    for room, targets in rooms.items():
        paths = [path for module, path in found.items() if room_of(module, path) == room]
        lines = sum(path.read_text().count("\n") for path in paths)
        print(f"{room}: {len(paths)} files, {lines} lines -> {' '.join(sorted(targets))}")
    count = sum(map(len, rooms.values()))
    print(
        f"{len(rooms)} rooms, {count} arrows between rooms, {sum(map(len, graph.values()))} between"
    )
    print(f"modules; cycles of modules {cycles(graph)}, of rooms {cycles(rooms)}")


if __name__ == "__main__":
    main()
