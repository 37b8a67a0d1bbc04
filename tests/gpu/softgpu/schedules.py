"""Who goes next: schedules of the blocks that a device holds at once.

A schedule is a function of the blocks that have not ended and the launch. All of these are fair: each block gets its
turn again and again, however seldom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import Launch
    from .threads import Block

__all__ = ["SCHEDULES", "Schedule", "fair", "one_after_the_other", "round_robin", "starving"]

Schedule = Callable[["list[Block]", "Launch"], "Block"]


def fair(live: list[Block], launch: Launch) -> Block:
    """Any, each as likely as the others."""
    return live[launch.random.integers(len(live))]


def round_robin() -> Schedule:
    """Each in turn, one step at a time."""
    return lambda live, launch: live[launch.turns % len(live)]


def starving(number: int, every: int = 500) -> Schedule:
    """One block gets a step only once in a while: all others wait for it, if they have to."""

    def choose(live: list[Block], launch: Launch) -> Block:
        slow = [block for block in live if block.number == number]
        rest = [block for block in live if block.number != number]
        return slow[0] if slow and (not rest or launch.turns % every == every - 1) else fair(rest, launch)

    return choose


def one_after_the_other(reverse: bool = False, patience: int = 200) -> Schedule:
    """One block as far as it gets, then the next: the first ones (or the last) wait longest."""
    state: dict[str, int] = {"number": -1, "since": 0}

    def choose(live: list[Block], launch: Launch) -> Block:
        order = sorted(live, key=lambda block: block.number, reverse=reverse)
        numbers = [block.number for block in order]
        if state["number"] not in numbers or launch.turns - state["since"] >= patience:
            at = numbers.index(state["number"]) + 1 if state["number"] in numbers else 0
            state.update(number=numbers[at % len(numbers)], since=launch.turns)
        return order[numbers.index(state["number"])]

    return choose


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "fair": lambda: fair,
    "round robin": round_robin,
    "first starved": lambda: starving(0),
    "last starved": lambda: starving(3),
    "one after the other": one_after_the_other,
    "reversed": lambda: one_after_the_other(reverse=True),
}
