"""`textrl/HiddenFact-v0`: a user who leaves out a fact until asked for it. With its expert."""

import re
from typing import Any

from textrl.envs.worlds.base import Reply, World, checked_whole, read, verdict, whole_number
from textrl.errors import UserError, did_you_mean, shown

PRICES = {"Rome": 3, "Oslo": 5, "Lima": 4, "Bern": 7}
WORDS = ("city", "where")
"""A question with one of these words gets the city for an answer."""


class HiddenFact(World):
    r"""A user wants to know what a ticket costs, and says where to only when asked.

    | what | text |
    |---|---|
    | first text | "Ticket price? Rome 3, Oslo 5, Lima 4, Bern 7\n" |
    | turn that asks | one with a question mark and "city" or "where", such as "Which city?" |
    | reply to it | the city, such as "Oslo\n" |
    | turn that answers | a whole number, such as "5" |
    | reply to it | "yes\n" or "no, 5\n" |
    | reply to any other turn | "a price?\n" |

    The reward is 1.0 for the right price and 0.0 otherwise. An answer ends the game, and so does
    the last of the `max_turns` turns, where any turn counts as the answer. Asking costs a turn and
    nothing else. Whoever does not ask is right in a quarter of the games. `info` has "turns" and
    "won". `reset(options={"city": "Oslo"})` sets the city.
    """

    options_known = ("city",)

    def __init__(
        self,
        *,
        max_turns: int = 3,
        fixed_prices: bool = True,
        render_mode: str | None = None,
    ) -> None:
        """Make the world.

        Args:
            max_turns: Number of turns with the answer, at least 2.
            fixed_prices: Whether a city has the same price in every game. Otherwise each game draws
                four different prices from 1 to 9, so that they must be read.
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.max_turns = checked_whole("max_turns", max_turns, 2, 100)
        if not isinstance(fixed_prices, bool):
            raise UserError(f"fixed_prices is {shown(fixed_prices)}; expected True or False")
        self.fixed_prices = fixed_prices
        self._prices = dict(PRICES)
        self._city = ""

    def _check(self, options: dict[str, Any]) -> None:
        city = options.get("city", "Rome")
        if not isinstance(city, str) or city not in PRICES:
            wanted = f"{', '.join(PRICES)}{did_you_mean(str(city), PRICES)}"
            raise UserError(f"options['city'] is {shown(city)}; expected one of {wanted}")

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = list(PRICES)[self.np_random.integers(len(PRICES))]
        self._city = options.get("city", drawn)
        if not self.fixed_prices:
            prices = self.np_random.permutation(9)[: len(PRICES)] + 1
            self._prices = {city: int(price) for city, price in zip(PRICES, prices, strict=True)}
        table = ", ".join(f"{city} {price}" for city, price in self._prices.items())
        return f"Ticket price? {table}\n"

    def _reply(self, turn: str) -> Reply:
        price = self._prices[self._city]
        answer = whole_number(turn)
        if answer is not None or self.turns >= self.max_turns:
            return verdict(answer == price, price)
        asked = "?" in turn and any(word in turn.lower() for word in WORDS)
        return Reply(f"{self._city}\n" if asked else "a price?\n")


def expert(texts: list[str]) -> str:
    """Return the question for the city, then its price; `experts.py` says what `texts` are."""
    (table,) = read(r"Ticket price\? (.+)\n", texts[0])
    prices = dict(re.findall(r"(\w+) (\d+)", table))
    named = [reply.strip() for reply in texts[2::2] if reply.strip() in prices]
    return prices[named[-1]] if named else "Which city?"
