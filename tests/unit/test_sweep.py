"""Prompts that stand for several ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from amused.errors import UserError
from amused.recipe.recipe import Recipe
from amused.recipe.sweep import Sweep, escape, expand, parse

WORDS = {"head": ["fox", "cow", "baked beans", "owl", "whale"], "body": ["red", "teal", "peach", "grey"]}


def sweep(typed: str, *seeds: int, words: dict[str, list[str]] = WORDS) -> Sweep:
    return expand(Recipe("text_to_image", typed, seeds or (8,)), words)


def prompts(typed: str) -> list[str]:
    return [recipe.prompt for recipe in sweep(typed).recipes]


def test_alternatives_are_all_combined_and_each_gets_the_same_seeds() -> None:
    found = sweep("{fox | cow} in {red|blue} glasses", 8, 9)
    assert [recipe.prompt for recipe in found.recipes] == [
        "fox in red glasses",
        "fox in blue glasses",
        "cow in red glasses",
        "cow in blue glasses",
    ]
    assert all(recipe.seeds == (8, 9) for recipe in found.recipes)
    assert found.labels == ("fox, red", "fox, blue", "cow, red", "cow, blue")
    assert found.num_prompts == 4


def test_each_line_is_a_prompt() -> None:
    found = sweep("a fox\n\n  \na {red|blue} cow " + "in snow " * 9 + "\n")
    assert [recipe.prompt[:6] for recipe in found.recipes] == ["a fox", "a red ", "a blue"]
    assert found.labels[0] == "a fox"
    assert found.labels[1].startswith("a red cow in snow") and len(found.labels[1]) == 40


@pytest.mark.parametrize("typed", ["a fox", "", "  ", " a  fox ", "a | b", "¯\\_(ツ)_/¯", "C:\\\t", "a\\"])
def test_a_plain_prompt_stays_as_it_is(typed: str) -> None:
    recipe = Recipe("text_to_image", typed, (8, 9))
    assert expand(recipe, WORDS) == Sweep(1, (recipe,))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (r"a \{fox\|cow\}", ["a {fox|cow}"]),
        (r"{\{|\|\||\}}", ["{", "||", "}"]),
        ("two\\\nlines", ["two\nlines"]),
        (r"\\{a|b}", [r"\a", r"\b"]),
    ],
)
def test_a_backslash_makes_braces_bars_and_line_breaks_plain(typed: str, expected: list[str]) -> None:
    assert prompts(typed) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "{fox|cow}",
        "a\nb\r\n\nc",
        "\\{a|b}\\",
        "\\\\{\\|\\}\\\n",
        "{{head}}",
        "\n",
        "a fox",
        "\\\\",
        "|\\|",
        "¯\\_(ツ)_/¯",
    ],
)
def test_an_escaped_prompt_stands_for_exactly_itself(prompt: str) -> None:
    """As a link or a PNG file fills it in."""
    assert sweep(escape(prompt)) == Sweep(1, (Recipe("text_to_image", prompt, (8,)),))


def test_words_are_drawn_by_the_seed_of_the_image() -> None:
    found = sweep("a {head} on {body}, {head}", *range(30))
    assert [recipe.seeds for recipe in found.recipes] == [(seed,) for seed in range(30)]
    drawn = [label.split(", ") for label in found.labels]
    assert {first for first, _, _ in drawn} == set(WORDS["head"]) and any(first != last for first, _, last in drawn)
    # Links to these images hold the words; the same seeds give the same ones on every machine, now and later.
    assert found.labels[:4] == ("baked beans, peach, cow", "whale, teal, whale", "cow, red, cow", "owl, grey, whale")
    # Neither other words nor other seeds change what is drawn.
    assert sweep("{body} {head}", 2).labels == ("red, cow",)


def test_alternatives_are_compared_with_the_same_words() -> None:
    found = sweep("a {head} {in snow|at sea}", 1, 2)
    assert [recipe.seeds for recipe in found.recipes] == [(1,), (2,), (1,), (2,)]
    words = [label.split(", ")[0] for label in found.labels]
    assert words[:2] == words[2:] and found.num_prompts == 2


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("a {fox", "has no }"),
        ("a {fox\ncow}", "has no }"),
        ("a fox}", "has no {"),
        ("{a|{b|c}}", "cannot be nested"),
        ("{fox|}", "is empty"),
        ("{ }", "is empty"),
        ("{glasses}", r"^\{glasses\} cannot .* as in \{fox\|cow\}, one of \{head\}, \{body\}, or"),
        ("{" + "x" * 5000 + "}", r"x…\} cannot"),
    ],
)
def test_unreadable_braces_are_refused_in_a_sentence(typed: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        sweep(typed)
    assert len(str(refusal.value)) < 200


def test_a_model_without_a_list_of_words_draws_none() -> None:
    with pytest.raises(UserError, match=r"\{head\} cannot be filled in with this model: write alternatives, as in"):
        sweep("{head}", words={})


@pytest.mark.parametrize(
    ("typed", "seeds", "sentence"),
    [
        ("{a|b|c}{d|e}", 11, "^6 prompts × 11 seeds = 66 images: make at most 64 at once"),
        ("{a|b|c}{d|e}\na", 10, "^7 prompts × 10 seeds = 70 images"),
        ("{a|b}" * 7, 1, "^128 prompts × 1 seed = 128 images"),
        ("{a|b}" * 2000, 1, "^More than 9999 prompts"),
        ("\n".join("a" * 5000), 1, "^5000 prompts"),
    ],
)
def test_too_many_images_are_refused_with_the_numbers(typed: str, seeds: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep(typed, *range(seeds))
    assert len(sweep("{a|b|c}{d|e}", *range(10)).recipes) == 6


HOSTILE: dict[str, Callable[[int], str]] = {
    "opened": lambda size: "\\{" * size + "{" + "a|" * size,
    "bars": lambda size: "{" + "a|" * size + "a}",
    "one long option": lambda size: "{" + "\\|" * size + "}",
    "pairs": lambda size: "{a|b}" * size,
    "lines": lambda size: "{a|b}\n" * size,
    "blank lines": lambda size: "\n \n" * size,
    "backslashes": lambda size: "\\" * size,
    "wildcards": lambda size: "{head}" * size,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_parsing_takes_time_linear_in_the_length(text: Callable[[int], str]) -> None:
    def seconds(size: int) -> float:
        typed, best = text(size), 1e9
        for _ in range(5):
            started = time.process_time()
            with contextlib.suppress(UserError):
                parse(typed, WORDS)
            escape(typed)
            best = min(best, time.process_time() - started)
        return best

    once = seconds(20_000)
    assert seconds(80_000) < 10 * once + 0.01


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_prompt_that_a_recipe_may_have_takes_long(text: Callable[[int], str]) -> None:
    started = time.process_time()
    try:
        sweep(text(10_000)[:9_999], 1)
    except UserError as error:
        assert len(str(error)) < 200
    assert time.process_time() - started < 1
