"""Where attention goes, on weights written out."""

import pytest
import torch
from torch.testing import assert_close

from audiolitefocus.attention import watch
from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.watch import Watch, first_of_every_level, steps_between

FLOAT32 = 1e-6  # averages of softmax weights, summed in another order


@pytest.mark.parametrize("elements", [1, 1000, 2**24])
def test_shares_and_map_of_all_weights(monkeypatch, elements):
    monkeypatch.setattr(watch, "ELEMENTS", elements)
    monkeypatch.setattr(watch, "BINS", 5)
    b, f, t, h, d = 2, 4, 12, 3, 8
    q, k = torch.randn(2, b, f, t, h, d, generator=torch.Generator().manual_seed(0))
    seen, own = watch.attention_by_row(q, k)

    scores = torch.einsum("bfthd,bgshd->bhftgs", q, k) * d**-0.5
    weights = scores.flatten(4).softmax(-1).view_as(scores).mean((0, 1))  # f t g s
    in_row = sum(weights[i, :, i].sum(-1).mean() for i in range(f)) / f
    assert_close(own, float(in_row), rtol=0, atol=FLOAT32)

    bins = torch.arange(t) * 5 // t
    corner = weights[1, bins == 2][:, 3, bins == 4]  # queries of row 1, keys of row 3
    assert_close(seen[1 * 5 + 2, 3 * 5 + 4], corner.mean() * f * t, rtol=0, atol=FLOAT32 * f * t)


def test_even_attention_is_one_everywhere():
    q, k = torch.zeros(2, 1, 2, 100, 1, 4)
    seen, own = watch.attention_by_row(q, k)
    assert_close(seen, torch.ones_like(seen))
    assert own == pytest.approx(0.5)


def test_all_attentions_are_seen_in_the_steps_asked_for_and_nothing_stays_behind(pipe):
    blocks = first_of_every_level(pipe.unet)
    with Watch(pipe.unet, blocks, [1]) as watcher:
        pipe("rain", audio_length_in_s=0.64, num_inference_steps=2, callback=watcher.next_step)
    names = [n for n, m in pipe.unet.named_modules() if isinstance(m, SelfAttention)]
    assert [share.block for share in watcher.shares] == names
    assert set(watcher.maps) == {(block, 1) for block in blocks}
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_a_block_that_does_not_exist_is_named(pipe):
    with pytest.raises(ValueError, match=r"no self-attention \['nonesuch'\]: there are down"):
        Watch(pipe.unet, ["nonesuch"], [0])


@pytest.mark.parametrize(("steps", "found"), [(1, [0]), (3, [0, 1, 2]), (20, [0, 5, 10, 14, 19])])
def test_steps_are_spread_from_the_first_to_the_last(steps, found):
    assert steps_between(steps) == found
