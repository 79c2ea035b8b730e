"""Counter-based random numbers: uniform, independent, and pinned to their values."""

import pytest
import torch

from videoar.model.transformer.draws import ONE, bernoulli, random_numbers, threshold

SEEDS = torch.tensor([0, 1, 2, 1 << 31, 1 << 32, (1 << 63) - 1])


def test_numbers_are_those_of_every_device_and_version():
    # Pinned: other values would change every training that is resumed.
    assert random_numbers(SEEDS[-2:], 3, 3).tolist() == [
        [920448179, 894425968, 1173066920],
        [1867166839, 1389980431, 653579329],
    ]


def test_numbers_do_not_depend_on_other_rows_or_on_the_count():
    whole = random_numbers(SEEDS, 2, 100)
    assert torch.equal(whole[3:4], random_numbers(SEEDS[3:4], 2, 100))
    assert torch.equal(whole[:, :7], random_numbers(SEEDS, 2, 7))


@pytest.mark.parametrize("stream", [0, 3, 12])
def test_numbers_are_uniform_within_and_across_rows(stream):
    # 64 bins of 4,096 numbers each: chi-squared with 63 degrees of freedom, mean 63, deviation 11.
    along = random_numbers(torch.arange(4), stream, 1 << 16).flatten()
    across = random_numbers(torch.arange(1 << 16), stream, 4).flatten()
    for numbers in (along, across):
        counts = torch.bincount(numbers >> 25, minlength=64).double()
        chi_squared = ((counts - 4096) ** 2 / 4096).sum()
        assert 25 < chi_squared < 115
        assert len(numbers.unique()) > 0.9998 * len(numbers)


def test_streams_rows_and_neighbours_are_uncorrelated():
    numbers = torch.cat([random_numbers(torch.arange(2), stream, 1 << 15) for stream in range(3)])
    series = torch.cat([numbers, numbers.roll(1, dims=1)]).double()
    correlation = torch.corrcoef(series) - torch.eye(len(series))
    assert correlation.abs().max() < 5 / 2**7.5  # five standard deviations


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_bernoulli_has_its_probability(p):
    share = bernoulli(torch.arange(64), 5, 4096, p).double().mean().item()
    assert share == pytest.approx(p, abs=0.005)
    assert 0 <= threshold(p) <= ONE
