"""`textrl play`: a person plays a world in the terminal, or its expert does, or a policy.

Finished games may be added to a file of demonstrations. How a policy is watched is in `watch.py`,
which loads torch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

from textrl.cli.words import shown
from textrl.cli.world_options import PlayConfig
from textrl.envs.worlds.experts import expert_of
from textrl.envs.worlds.making import make_world
from textrl.envs.worlds.transcripts import Player, Transcript, Turn, append_game, play_game
from textrl.errors import UserError
from textrl.paths import expanded
from textrl.task_ids import TASKS


class _NoMoreInput(Exception):
    """The input has ended."""


def run_play(config: PlayConfig) -> None:
    """Play games of a world; show them, and add the finished ones to a file."""
    world = world_of(config.world)
    make_world(world).close()  # a misspelt one is known before a file is made
    target = _target(config.save)
    returns = []
    try:
        for game in _games(config, world):
            returns.append(game.total)
            if target is not None:
                append_game(target, game)
    except _NoMoreInput:
        print("\nthe input has ended; the game that was not over is not kept")
    _sum_up(returns, target)


def world_of(name: str) -> str:
    """Return the id of the world of a task; any other name is taken for that of a world.

    Raises:
        UserError: the task has no world.
    """
    if name not in TASKS:
        return name
    world = TASKS[name].world
    if world is None:
        raise UserError(f"{name} is no game, it has one turn; see its texts with `textrl generate`")
    return world


def _games(config: PlayConfig, world: str) -> Iterator[Transcript]:
    """Yield the games, each once it is over."""
    seeds = range(config.seed, config.seed + config.games)
    if config.model is not None:
        from textrl.cli.watch import watched_games

        yield from watched_games(config, world)
        return
    player: Player = _typed if config.player == "person" else expert_of(world)
    shows = config.player == "person" or config.save is None
    made = make_world(world)
    for number, seed in enumerate(seeds, start=1):
        show: Callable[[Turn], None] = _nothing
        if shows:
            print(f"game {number} of {config.games}: {world}, seed {seed}")
            show = _typed_turn if config.player == "person" else _expert_turn
        yield play_game(made, _showing(player) if shows else player, seed=seed, after_turn=show)
    made.close()


def _showing(player: Player) -> Player:
    """Return the player, before whose first turn the world's first text is shown."""

    def play(texts: list[str]) -> str:
        if len(texts) == 1:
            print(shown(texts[0]))
        return player(texts)

    return play


def _typed(texts: list[str]) -> str:
    """Return the next line of the input."""
    try:
        line = input("> ")
        line.encode()  # half a character, which no file of demonstrations can hold
        return line
    except EOFError:
        raise _NoMoreInput from None
    except UnicodeError as error:
        raise UserError(f"the turn is not UTF-8 ({error}); set the terminal to it") from error


def _typed_turn(turn: Turn) -> None:
    print(shown(turn.reply))
    if turn.over or turn.reward:
        print(f"[reward {turn.reward:g}]")


def _expert_turn(turn: Turn) -> None:
    print(f"> {shown(turn.text)}")
    _typed_turn(turn)


def _nothing(turn: Turn) -> None:
    """Show nothing."""


def _target(save: str | None) -> Path | None:
    """Return the file of demonstrations, before anything is played for it in vain."""
    if save is None:
        return None
    path = expanded(save)
    if path.exists() and not path.is_file():
        raise UserError(f"{save} is a folder or a device; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8"):  # it can be written
        return path


def _sum_up(returns: list[float], target: Path | None) -> None:
    kept = "" if target is None else f", added to {target}"
    if returns:
        games = "1 game" if len(returns) == 1 else f"{len(returns)} games"
        print(f"{games}, mean return {fmean(returns):.3f}{kept}")
