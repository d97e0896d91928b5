"""Which keys are drawn: how many, from where, how often, and by whose random numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolitefocus.attention.litefocus import sample_compensation
from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from audiolitefocus.attention.token_merging import sample_destinations
from audiolitefocus.config import AttentionRule
from tests.support.compare import seeded

many = settings(max_examples=60, deadline=None, derandomize=True)
grids = st.tuples(st.integers(1, 8), st.integers(1, 60), st.integers(1, 4))
ratios = st.one_of(st.sampled_from([0.1, 0.5, 1.0]), st.floats(0, 1))
# Two in a million independent counts lie further than this many standard deviations from the mean.
DEVIATIONS = 4.75


def draw(variant: LiteFocus | TokenMerging, *arguments) -> torch.Tensor:
    if isinstance(variant, TokenMerging):
        return sample_destinations(*arguments)
    return sample_compensation(variant, *arguments)


@many
@given(grids, ratios)
def test_uniform_draws_without_replacement_from_all_tokens(grid, ratio):
    rows, length, calls = grid
    sampled = sample_compensation(
        LiteFocus(sparse_ratio=ratio, uniform=True), rows, length, calls, seeded()
    )
    tokens = rows * length
    if int(ratio * tokens) == 0:
        assert sampled is None
        return
    assert sampled.shape == (calls, int(ratio * tokens))
    assert sampled.min() >= 0 and sampled.max() < tokens
    assert all(call.unique().numel() == call.numel() for call in sampled)


@many
@given(grids, ratios)
def test_stratified_draws_alike_from_every_row(grid, ratio):
    rows, length, calls = grid
    sampled = sample_compensation(LiteFocus(sparse_ratio=ratio), rows, length, calls, seeded())
    if int(ratio * length) == 0:
        assert sampled is None
        return
    assert sampled.shape == (calls, rows, int(ratio * length))
    assert torch.equal(sampled // length, torch.arange(rows)[:, None].expand_as(sampled))
    assert all(call.unique().numel() == call.numel() for call in sampled)


@pytest.mark.parametrize("uniform, shape", [(True, (2, 1)), (False, (2, 3, 1))])
def test_without_the_row_at_least_one_key_is_sampled(uniform, shape):
    lite = LiteFocus(same_frequency=False, sparse_ratio=0.1, uniform=uniform)
    assert sample_compensation(lite, 3, 2, 2, seeded()).shape == shape


@pytest.mark.parametrize("uniform", [False, True])
def test_every_token_is_drawn_equally_often(uniform):
    rows, length, calls, ratio = 4, 20, 5000, 0.25
    lite = LiteFocus(sparse_ratio=ratio, uniform=uniform)
    counts = (
        sample_compensation(lite, rows, length, calls, seeded())
        .flatten()
        .bincount(minlength=rows * length)
    )
    deviation = (calls * ratio * (1 - ratio)) ** 0.5
    assert (counts - calls * ratio).abs().max() < DEVIATIONS * deviation


def test_uniform_draws_pairs_equally_often():
    """A sample of 3 out of 8 tokens holds a given pair with probability 3/8 * 2/7."""
    calls, share = 8000, 3 / 8 * 2 / 7
    sampled = sample_compensation(
        LiteFocus(sparse_ratio=3 / 8, uniform=True), 2, 4, calls, seeded()
    )
    member = torch.zeros(calls, 8).scatter_(1, sampled, 1)
    together = (member.T @ member)[~torch.eye(8, dtype=torch.bool)]
    assert (together - calls * share).abs().max() < DEVIATIONS * (
        calls * share * (1 - share)
    ) ** 0.5


@pytest.mark.parametrize("variant", [LiteFocus(), LiteFocus(uniform=True), TokenMerging()])
def test_indices_depend_on_the_generator_alone_and_are_fresh(variant):
    generator = seeded(3)
    first, second = (draw(variant, 8, 40, 2, generator) for _ in range(2))
    assert torch.equal(draw(variant, 8, 40, 2, seeded(3)), first)
    assert not torch.equal(second, first)  # fresh in the next step
    assert not torch.equal(first[0], first[1])  # and in the next attention
    assert not torch.equal(draw(variant, 8, 40, 2, seeded(4)), first)


def test_longer_clips_get_sparser_and_more_levels():
    seconds = [10.24, 20.48, 40.96, 80, 160, 320, 640]
    rule = [LiteFocus.for_duration(s, seed=5) for s in seconds]
    ratios = [lite.sparse_ratio for lite in rule]
    levels = [len(lite.levels) for lite in rule]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] == ratios[3] == 0.1
    assert ratios[-1] == pytest.approx(0.1 * 8 * 10.24 / 640)
    assert levels == sorted(levels) and rule[0].levels == (1,)
    assert all(lite.seed == 5 for lite in rule)


def test_a_model_has_its_own_rule():
    rule = AttentionRule(sparse_ratio=0.2, weight=1.0, lengths=1.0)
    longer = [LiteFocus.for_duration(2.56 * n, trained_seconds=2.56, rule=rule) for n in (2, 8)]
    assert [lite.sparse_ratio for lite in longer] == [0.1, 0.025]  # as many keys
    assert all(lite.weight == 1.0 for lite in longer)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_duration_that_is_not_positive_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds"):
        LiteFocus.for_duration(seconds)
