"""Lists of numbers as text: seeds that a person types, and ranges in links. Parsed and formatted only here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from amused.errors import UserError
from amused.limits import MAX_SEEDS
from amused.recipe.recipe import MAX_CELLS, MAX_SEED, whole

LENGTH_PER_NUMBER = 40  # characters: two numbers of ten digits, and generous space
RANGE = re.compile(r"([0-9]{1,30})(?:-([0-9]{1,30}))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse a list of seeds: "8, 15, 100-115" is 8, 15 and 100 to 115.

    Raises:
        UserError: the text is no such list, a seed is out of range, or there are too many.
    """
    return parse_ranges(text, "seed", MAX_SEED, MAX_SEEDS)


def parse_cells(text: str) -> tuple[int, ...]:
    """Parse the token indices of a link.

    Raises:
        UserError: the text is no list of ranges, or no image has such tokens.
    """
    return parse_ranges(text, "cell", MAX_CELLS - 1, MAX_CELLS)


def format_seeds(seeds: Sequence[int]) -> str:
    """Format seeds for the seeds field: consecutive ones as the first alone, as their number has a field of its own."""
    first = seeds[0]
    return str(first) if tuple(seeds) == tuple(range(first, first + len(seeds))) else format_ranges(seeds)


def format_ranges(numbers: Sequence[int]) -> str:
    """Format 1, 2, 3, 8 as "1-3,8", in the given order."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_ranges(text: str, name: str, highest: int, most: int) -> tuple[int, ...]:
    """Parse at most `most` numbers from 0 to `highest`, each called a `name` in errors."""
    if not isinstance(text, str):
        raise UserError(f'Give {name}s as text, for example "8, 15, 100-115".')
    too_many = UserError(f"Give at most {most} {name}s.")
    if len(text) > LENGTH_PER_NUMBER * most:
        raise too_many
    text = re.sub(r"\s+", " ", text).replace(" -", "-").replace("- ", "-")
    numbers: list[int] = []
    for part in re.split(r"[,; ]+", text.strip(",; ")):
        match = RANGE.fullmatch(part)
        if match is None:
            raise UserError(
                f'Give {name}s as whole numbers and ranges, for example "8, 15, 100-115".'
                if part
                else f"Give at least one {name}."
            )
        first = whole(name, int(match[1]), 0, highest)
        last = whole(name, int(match[2] or match[1]), 0, highest)
        if last < first:
            raise UserError(f"The range {part} runs backwards: put the smaller {name} first.")
        if len(numbers) + last - first + 1 > most:
            raise too_many
        numbers.extend(range(first, last + 1))
    return tuple(numbers)
