"""Cutting the UNet: its pieces, their operations, and the cut that balances them best."""

import itertools
from dataclasses import replace

import pytest
import torch

from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.parallel.parts import cut, piece_operations
from scripts.benchmark.operations import operations
from tests.support.denoising import CONFIG, clip_noise, tiny_condition

COUNTED = 0.03  # of the operations: the number of a prompt's tokens, sampled keys in whole numbers


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_cut_is_the_best_of_all(count):
    costs = torch.randint(1, 100, (11,), generator=torch.Generator().manual_seed(count)).tolist()
    ranges = cut(costs, count)
    assert [n for own in ranges for n in own] == list(range(len(costs)))
    largest = max(sum(costs[n] for n in own) for own in ranges)
    choices = [
        max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *ends, len(costs))))
        for ends in itertools.combinations(range(1, len(costs)), count - 1)
    ]
    assert len(ranges) == count and largest == min(choices)


def test_more_parts_than_pieces_are_refused():
    with pytest.raises(ValueError, match="4 parts: the UNet has only 3 pieces"):
        cut([1.0, 2.0, 3.0], 4)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        UNetConfig(),
        replace(CONFIG, resnets=2, contexts=("self", "loa")),
        replace(CONFIG, absent=tuple(CONFIG.transformers)[::2]),
    ],
)
def test_pieces_run_in_their_order_and_take_what_they_say(config):
    """Every piece that another one takes is computed, and no value but those is ever looked at."""
    with torch.device("meta"):
        unet = UNet(config)
    order: list = []

    class Watching(StepInputs):
        def output_of(self, unit, compute):
            if unit in pieces:
                order.append(unit)
            return compute()

    pieces = unet.pieces()
    latents = torch.empty(1, 8, 16, 16, device="meta")
    loa, t5 = (torch.empty(1, 4, n, device="meta") for n in (config.loa_dim, config.t5_dim))
    condition = replace(tiny_condition(1, 0), loa=loa, t5=t5)
    biases = unet.time_biases(torch.empty(1, device="meta"))
    unet.evaluate(latents, Watching(biases, *unet.cross_kv(condition), {}))
    assert order == list(pieces)
    for n, piece in enumerate(order[1:], start=1):
        assert pieces[piece][0] is order[n - 1] and set(pieces[piece]) <= set(order[:n])


def test_a_piece_needs_nothing_but_what_it_takes(unet):
    """Each computed alone, all others being absent, gives what it does in a whole evaluation."""
    latents, pieces = clip_noise(2, frames=13), unet.pieces()
    prepared = unet.time_biases(torch.tensor([500])), *unet.cross_kv(tiny_condition(4, 1)), {}
    whole = StepInputs(*prepared, recorded=dict.fromkeys(pieces))
    unet.evaluate(latents, whole)
    absent = torch.empty(0, device="meta")
    for piece, taken in pieces.items():
        others = {other: absent for other in pieces if other is not piece}
        given = {other: whole.recorded[other] for other in taken}
        alone = StepInputs(*prepared, reused=others | given, recorded={piece: None})
        unet.evaluate(latents, alone)
        assert torch.equal(alone.recorded[piece], whole.recorded[piece])


@pytest.mark.parametrize(
    "attention, branches, absent",
    [
        ("dense", 1, ()),
        ("dense", 2, ()),
        ("dense", 2, tuple(CONFIG.transformers)[1::2]),
        (LiteFocus(levels=(1, 2)), 2, ()),
        (LiteFocus(uniform=True), 2, ()),
        (LiteFocus(duplicates=True), 2, ()),
        (LiteFocus(same_frequency=False), 2, ()),
        (TokenMerging(), 2, ()),
    ],
)
def test_operations_are_those_that_torch_counts(attention, branches, absent):
    """Merging searches besides, in as many operations as half of its attention."""
    frames, config = 400, replace(CONFIG, absent=absent)
    counted = operations(config, (1, 8, frames, 16), attention, branches=branches, device="meta")
    with torch.device("meta"):
        unet = UNet(config)
    names = {module: name for name, module in unet.named_modules()}
    found = piece_operations(unet, frames, 16, attention, branches)
    bound = 0.5 if isinstance(attention, TokenMerging) else COUNTED
    for piece, multiplications in zip(unet.pieces(), found, strict=True):
        exact = counted.within[names[piece]]
        assert abs(2 * multiplications - exact) <= bound * exact, names[piece]
