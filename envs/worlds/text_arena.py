"""TextArena's games (`textarena`, MIT) as worlds: one player, or two with a fixed opponent.

TextArena requires `chess`, which is under the GPL, and only its chess games import it. To go
without: `pip install --no-deps textarena==0.7.4`, and what it imports by
`pip install 'textrl-gym[worlds]'`.
"""

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from textrl.envs.worlds.foreign import ForeignWorld, making
from textrl.errors import UserError, did_you_mean, shown

Opponent = Callable[[str], str]
"""A text, all that the opponent has seen in this game, to its move."""
LONGEST_WAIT = 1000
"""Number of moves the opponent may make before it is our turn again."""
MOVE = re.compile(r"\[[^\[\]\n]+\]")
SWAPPED = re.compile(r"^Invalid Move: (-?[0-9.]+)$")
"""The reason that a few games of 0.7.4 give when they swap it with the reward (ThreeCardMonte)."""
SENDER = re.compile(r"^\[[^\[\]\n]+\] ")


class TextArenaWorld(ForeignWorld):
    """A game of one player, `TextArenaWorld("GuessTheNumber-v0")`, or of two against a fixed one.

    The second kind is `TextArenaWorld("TicTacToe-v0", opponent="random")`.

    An observation is what is new for our player, one message a line or more, each after the name of
    its sender: "[GAME] The target number is higher." Our own move is not said again. TextArena's
    observation wrappers, which repeat the whole game, are passed by; its action wrappers, which put
    a move in brackets, stay, so `5` is `[5]` where the game's id says so. The last observation ends
    with the game's reason for the outcome. The reward is our player's, paid at the end.

    Equal seeds and actions give equal games, of a fixed opponent that draws nothing. A move that
    the game does not allow is answered, and a second one in a row loses most games.

    Args:
        game: An id of TextArena's registry; the variants "-raw" and "-train" make no difference
            but for the action wrappers.
        opponent: None for a game of one player. A function from all that the opponent has seen to
            its move; a list of moves, repeated from the start when it is used up; or "random",
            which takes any of the moves in brackets on the last line that holds some.
        player: Our seat, 0 or 1; in most games player 0 begins.
        settings: What `textarena.make` takes beside the id.
    """

    def __init__(
        self,
        game: str,
        *,
        opponent: Opponent | Sequence[str] | str | None = None,
        player: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(f"TextArena's {game}")
        self._players = 1 if opponent is None else 2
        if player not in range(self._players):
            raise UserError(
                f"{self.who}: player {shown(player)}; expected 0, or 1 with an opponent"
            )
        self._player = player
        self._opponent = opponent
        self._check_opponent()
        with self.isolated():
            self._fresh = _made(self.who, game, settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the rules and all that our player sees before its first move."""
        self.no_options(options)
        number = self.begin(seed)
        with self.isolated(number):
            # A copy, since some games (KuhnPoker's deck) begin where their last episode ended.
            self._game = copy.deepcopy(self._fresh)
            self._base = _unwrapped(self._game)
            self._begin_game(number)
        self._moves = self._opponents_moves(number)
        self._seen = ""
        done, info = self._until_our_turn(False, {})
        if done:
            raise UserError(f"{self.who}: the game of seed {number} was over before our first move")
        return self.started(self._news(self._player), info)

    def _begin_game(self, number: int) -> None:
        try:
            self._game.reset(num_players=self._players, seed=number)
        except Exception as error:  # an assertion mostly, and anything else
            if type(error) is LookupError:
                raise
            remedy = "give opponent=" if self._players == 1 else "give no opponent"
            raise UserError(
                f"{self.who} does not begin with {self._players} player(s): "
                f"{type(error).__name__}: {error}; {remedy}, if that is what it needs"
            ) from error

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return what our player sees after its move and the opponent's, and the reward."""
        action = self.taken(action)
        with self.isolated():
            done, info = self._game.step(action=action)
        done, info = self._until_our_turn(done, info)
        text = self._news(self._player)
        if not done:
            return self.replied(text, 0.0, False, False, info)
        with self.isolated():
            rewards, facts = self._game.close()
        if not isinstance(rewards, dict) or self._player not in rewards:
            raise UserError(f"{self.who} ended with rewards {shown(rewards)}; expected a number")
        mine, paid = copy.deepcopy(facts[self._player]), rewards[self._player]
        reason = str(mine.get("reason") or "")
        swapped = SWAPPED.match(reason)
        if isinstance(paid, str) and swapped:
            reason, paid = f"Invalid Move: {paid}", float(swapped.group(1))
            mine["reason"] = reason
        if reason and reason not in text:
            text += f"\n[GAME] {reason}" if text else f"[GAME] {reason}"
        return self.replied(text, paid, True, False, {**info, **mine})

    def _until_our_turn(self, done: bool, info: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Return whether the game is over, and its info, after the opponent's moves."""
        waited = 0
        while not done and self._base.state.current_player_id != self._player:
            waited += 1
            if waited > LONGEST_WAIT:
                raise UserError(f"{self.who}: the opponent moved {LONGEST_WAIT} times in a row")
            rival = self._base.state.current_player_id
            if self._opponent is None:
                raise UserError(f"{self.who}: player {rival} is to move; give opponent=")
            news = self._news(rival)
            self._seen += f"\n{news}" if self._seen and news else news
            move = self._moves(self._seen)  # not isolated: it may be the caller's own code
            if not isinstance(move, str):
                raise UserError(f"{self.who}: the opponent gave {shown(move)}; expected a text")
            with self.isolated():
                done, info = self._game.step(action=move)
        return bool(done), copy.deepcopy(dict(info))

    def _news(self, player: int) -> str:
        """Return what a player has not seen yet, all of it, and note that it has now."""
        state = self._base.state
        with self.isolated():
            if state.current_player_id == player and not state.done:
                _, messages = self._base.get_observation()  # some games add their board here
            else:
                messages, state.observations[player] = state.observations[player], []
        lines = []
        for sender, message, kind in messages:
            if sender == player and kind.name == "PLAYER_ACTION":
                continue
            name = "GAME" if sender == -1 else state.role_mapping.get(sender, f"Player {sender}")
            body = str(message).strip("\n")  # not the blanks: a board may begin with one
            lines.append(f"[{name}] {body}")
        return "\n".join(lines)

    def _check_opponent(self) -> None:
        given = self._opponent
        if isinstance(given, str):
            good = given == "random"
        elif isinstance(given, Sequence):
            good = bool(given) and all(isinstance(move, str) for move in given)
        else:
            good = given is None or callable(given)
        if not good:
            raise UserError(
                f"{self.who}: opponent {shown(given)}; expected None, 'random', a list of moves or "
                "a function from a text to a move"
            )

    def _opponents_moves(self, seed: int) -> Opponent:
        """Return the opponent of one game: what is fixed begins anew with each."""
        given = self._opponent
        if given is None or isinstance(given, str):  # None is never asked
            return _random_opponent(self.who, random.Random(seed))
        if callable(given):
            return given
        moves, count = given, iter(range(10**9))
        return lambda text: moves[next(count) % len(moves)]


def _made(who: str, game: str, settings: dict[str, Any]) -> Any:
    """Return the game as its id makes it."""
    try:
        import textarena
        from textarena.envs.registration import ENV_REGISTRY
    except ImportError as error:
        raise UserError(
            f"{error}; pip install 'textrl-gym[worlds]' and pip install --no-deps textarena==0.7.4"
        ) from error
    if game not in ENV_REGISTRY:
        hint = did_you_mean(game, ENV_REGISTRY)
        raise UserError(f"TextArena has no game {game!r}{hint}; it has {len(ENV_REGISTRY)}")
    with making(who):
        return textarena.make(game, **settings)


def _unwrapped(game: Any) -> Any:
    """Return the game without any wrapper."""
    import textarena

    while isinstance(game, textarena.Wrapper):
        game = game.env
    return game


def _random_opponent(who: str, draw: random.Random) -> Opponent:
    """Return an opponent that takes any of the moves which the game last put before it."""

    def move(text: str) -> str:
        for line in reversed(text.splitlines()):
            moves = MOVE.findall(SENDER.sub("", line))
            if moves:
                return str(draw.choice(moves))
        raise UserError(f"{who} names no moves in brackets; give opponent= a function")

    return move
