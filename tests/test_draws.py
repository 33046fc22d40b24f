"""Draws of a step: the same from the generator and from a tape; a tape refuses a step that draws otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cadiff.draws import Tape, drawn

CPU = torch.device("cpu")


def step(generator: torch.Generator, rows: int = 3) -> tuple[Tensor, Tensor]:
    uniform = drawn(lambda g: torch.rand(rows, 2, generator=g), generator, CPU)
    normal = drawn(lambda g: torch.randn(rows, generator=g), generator, CPU)
    return uniform, normal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_a_tape_a_draw_is_what_the_generator_gives() -> None:
    g = seeded(1)
    expected = torch.rand(3, 2, generator=g), torch.randn(3, generator=g)
    for got, want in zip(step(seeded(1)), expected, strict=True):
        assert torch.equal(got, want)


def test_a_filled_tape_plays_what_the_step_would_have_drawn_in_the_same_memory() -> None:
    tape = Tape()
    with tape.recording():
        recorded = step(seeded(1))
    for got, want in zip(recorded, step(seeded(1)), strict=True):
        assert torch.equal(got, want)  # recording changes nothing
    places = set()
    for seed in (2, 3):
        tape.fill(seeded(seed))
        with tape.playing():
            played = step(seeded(99))  # this generator is not asked
        for got, want in zip(played, step(seeded(seed)), strict=True):
            assert torch.equal(got, want)
        places.add(tuple(value.data_ptr() for value in played))
    assert len(places) == 1


def test_a_recorded_draw_is_not_the_buffer_that_later_steps_overwrite() -> None:
    tape = Tape()
    with tape.recording():
        recorded = step(seeded(1))
    before = [value.clone() for value in recorded]
    tape.fill(seeded(2))
    assert all(torch.equal(a, b) for a, b in zip(recorded, before, strict=True))


@pytest.mark.parametrize("times", [0, 2])
def test_a_step_that_draws_more_or_less_than_the_recorded_one_is_an_error(times: int) -> None:
    tape = Tape()
    with tape.recording():
        step(seeded(1))
    with pytest.raises(RuntimeError, match="draws"), tape.playing():
        for _ in range(times):
            step(seeded(1))


def test_after_an_error_draws_are_free_again() -> None:
    with pytest.raises(ZeroDivisionError), Tape().recording():
        raise ZeroDivisionError
    assert torch.equal(step(seeded(4))[0], torch.rand(3, 2, generator=seeded(4)))
