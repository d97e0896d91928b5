"""Attention handed down to the UNet: which modules run it, with which indices, what repeats."""

import functools
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from audiolitefocus.checkpoints.limits import check_config
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from tests.support.compare import seeded

SMALL = UNetConfig(
    channels=(32, 64, 96, 128), heads=(1, 2, 3, 4), resnets=1, loa_dim=24, t5_dim=40, norm_groups=8
)
# Large models: two layers in each transformer, and a second context-free transformer.
LARGE = replace(SMALL, depth=2, contexts=("self", "loa", "t5", "self"))
SPEECH = replace(SMALL, contexts=("self", "loa"))

FLOAT32 = 1e-5  # another batch size lets the kernels add in another order
STEP = torch.tensor(500)
VARIANTS = {
    "dense": "dense",
    "tome": "tome",
    "litefocus": LiteFocus(sparse_ratio=0.2),
    "uniform": LiteFocus(sparse_ratio=0.2, uniform=True),
    "duplicates": LiteFocus(sparse_ratio=0.2, duplicates=True),
    "row only": LiteFocus(cross_frequency=False),
    "sample only": LiteFocus(same_frequency=False, sparse_ratio=0.5),
    "all levels": LiteFocus(sparse_ratio=0.5, levels=(1, 2, 3)),
}
SAMPLED = [name for name in VARIANTS if name not in ("dense", "row only")]


@functools.cache  # a network remembers nothing
def build(config: UNetConfig = SMALL) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval()


@pytest.fixture(scope="module")
def unet() -> UNet:
    return build()


def inputs(batch: int = 2, length: int = 24, config: UNetConfig = SMALL):
    """Latents and a condition whose last T5 token is masked in the first clip."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 8, length, 16, generator=generator)
    loa = torch.randn(batch, 8, config.loa_dim, generator=generator)
    t5 = torch.randn(batch, 5, config.t5_dim, generator=generator)
    mask = torch.ones(batch, 5)
    mask[0, -1] = 0
    return latents, Condition(loa, t5, mask)


@torch.inference_mode()
def evaluate(
    unet: UNet, latents: torch.Tensor, condition: Condition, attention="dense", generator=None
) -> torch.Tensor:
    return unet(latents, STEP, condition, attention=attention, generator=generator)


def sparse_modules(unet: UNet, attention) -> set[str]:
    """Names of the self-attentions that a plan has functions for."""
    plan = unet.plan(attention, torch.empty(1, 8, 16, 16))
    return {name for name, module in unet.named_modules() if module in plan}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_seed_repeats_and_indices_are_fresh(unet, name):
    first, second = [], []
    for outputs in (first, second):
        generator = seeded()
        outputs += [evaluate(unet, *inputs(), VARIANTS[name], generator) for _ in range(2)]
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])


def test_another_seed_is_another_sample(unet):
    outputs = []
    for seed in (0, 1):
        outputs.append(evaluate(unet, *inputs(), LiteFocus(seed=seed)))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("name", VARIANTS)
def test_both_halves_of_the_guidance_see_the_same_keys(unet, name):
    latents, condition = inputs(1)
    twice = Condition(*(x.repeat_interleave(2, 0) for x in vars(condition).values()))
    first, second = evaluate(unet, latents.repeat(2, 1, 1, 1), twice, VARIANTS[name])
    assert_close(first, second, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clip_does_not_depend_on_its_batch(unet, name):
    latents, condition = inputs(3)
    outputs = []
    for clips in (slice(0, 3), slice(1, 2)):
        outputs.append(evaluate(unet, latents[clips], condition[clips], VARIANTS[name]))
    assert_close(outputs[0][1:2], outputs[1], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("config", [SMALL, LARGE, SPEECH, replace(SMALL, resnets=2)])
@pytest.mark.parametrize("levels", [(), (1,), (2,), (3,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("kind", [LiteFocus, TokenMerging])
def test_every_self_attention_of_a_level_is_planned_and_no_other(config, levels, kind):
    unet = build(config)
    prefixes = [f"down.{i}." for i in levels] + [f"up.{3 - i}." for i in levels]
    prefixes += ["middle."] if 3 in levels else []
    stages = len(levels) * (2 * config.resnets + 1) + (3 in levels)
    selves = sum(2 if context == "self" else 1 for context in config.contexts)

    planned = sparse_modules(unet, kind(levels=levels))
    assert len(planned) == stages * selves * config.depth
    assert all(name.startswith(tuple(prefixes)) for name in planned)
    assert not sparse_modules(unet, "dense")


@pytest.mark.parametrize("config", [SMALL, LARGE])
def test_every_planned_attention_gets_indices_of_its_own(config):
    unet = build(config)
    settings = LiteFocus(sparse_ratio=0.5, levels=(1, 2))
    plan = unet.plan(settings, inputs(config=config)[0])
    assert all(isinstance(module, SelfAttention) for module in plan)
    drawn = [attend.keywords["compensation"] for attend in plan.values()]
    assert {tuple(x.shape) for x in drawn} == {(8, 6), (4, 3)}  # half of every row
    assert len({tuple(x.flatten().tolist()) for x in drawn if len(x) == 8}) == sum(
        len(x) == 8 for x in drawn
    )


@pytest.mark.parametrize("attention", ["fast", "auto", "", None, 0.1, {"sparse_ratio": 0.1}])
def test_unknown_attention_is_refused(unet, attention):
    with pytest.raises(ValueError, match="attention"):
        evaluate(unet, *inputs(), attention)


def test_attention_is_given_as_text_too(unet):
    text = evaluate(unet, *inputs(), "litefocus:0.5:levels=1-3")
    settings = LiteFocus(sparse_ratio=0.5, levels=(1, 2, 3))
    assert torch.equal(text, evaluate(unet, *inputs(), settings))


@pytest.mark.parametrize("levels", [(0,), (4,), (1, 7), (-1,)])
def test_levels_without_attention_are_refused(unet, levels):
    with pytest.raises(ValueError, match="levels"):
        evaluate(unet, *inputs(), LiteFocus(levels=levels))


@pytest.mark.parametrize("name", VARIANTS)
def test_prepared_inputs_give_the_same(unet, name):
    latents, condition = inputs()
    expected = evaluate(unet, latents, condition, VARIANTS[name])
    with torch.inference_mode():
        biases = unet.time_biases(torch.tensor([1, 500, 996]))
        biases = {block: bias[1:2] for block, bias in biases.items()}
        attend = unet.plan(VARIANTS[name], latents)
        prepared = StepInputs(biases, *unet.cross_kv(condition), attend)
        assert_close(unet.evaluate(latents, prepared), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("config", [SMALL, LARGE, SPEECH], ids=["full", "large", "speech"])
def test_several_conditions_share_what_comes_before_the_text(config, name):
    """As if the latents had been given once for each."""
    unet, clips = build(config), 2
    latents = inputs(clips)[0]
    condition = inputs(3 * clips)[1]
    outputs = []
    for given in (latents, torch.cat([latents] * 3)):
        outputs.append(evaluate(unet, given, condition, VARIANTS[name]))
    assert len(outputs[0]) == 3 * clips
    assert_close(*outputs, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("change", [{"contexts": ("self",)}, {"attention_levels": ()}])
def test_a_unet_without_text_attention_is_refused(change):
    with pytest.raises(ValueError, match="none attends to text"):
        check_config(replace(SMALL, **change), "unet")


@pytest.mark.parametrize(("clips", "entries", "steps"), [(2, 3, 1), (2, 1, 1), (2, 4, 2)])
def test_batches_that_do_not_go_together_are_refused(unet, clips, entries, steps):
    with pytest.raises(ValueError, match=f"{clips} latents, {steps} timesteps, {entries} cond"):
        unet(inputs(clips)[0], torch.full((steps,), 500), inputs(entries)[1])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("length", [8, 21, 50])
def test_any_length(unet, name, length):
    latents, condition = inputs(length=length)
    out = evaluate(unet, latents, condition, VARIANTS[name])
    assert out.shape == latents.shape and out.isfinite().all()


def test_a_full_sample_is_dense(unet):
    outputs = []
    for attention in ("dense", LiteFocus(sparse_ratio=1.0, levels=(1, 2, 3))):
        outputs.append(evaluate(unet, *inputs(), attention))
    assert_close(*outputs, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_global_random_states_are_left_alone(unet, name):
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    evaluate(unet, *inputs(), VARIANTS[name])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


TINY = replace(
    SMALL, channels=(32, 64), heads=(1, 2), attention_levels=(1,), contexts=("self", "t5")
)


@torch.inference_mode()
def check_one_graph(attention, backend: str):
    """Compiled and eager agree, and new indices do not compile it again."""
    unet = build(TINY)
    latents, condition = inputs(length=16)
    torch._dynamo.reset()
    torch.compiler.allow_in_graph(rearrange)  # or einops itself is traced, which takes a minute
    compiled = torch.compile(unet.evaluate, fullgraph=True, dynamic=False, backend=backend)
    cross_kv, mask = unet.cross_kv(condition)
    generator = seeded()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timestep in (500, 20):
            time = unet.time_biases(torch.tensor(timestep))
            attend = unet.plan(attention, latents, generator)
            prepared = StepInputs(time, cross_kv, mask, attend)
            expected = unet.evaluate(latents, prepared)
            assert_close(compiled(latents, prepared), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", ["dense", "litefocus"])
def test_evaluation_is_one_graph(name):
    check_one_graph(VARIANTS[name], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "all levels"])
def test_compiled_evaluation_gives_the_same(name):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    check_one_graph(VARIANTS[name], "inductor")
