"""scripts/prune: choices within a budget, their gradient, and what is learnt of them."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolitefocus.config import BundleConfig, ScheduleConfig, UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.objective import Batch, NoiseLoss
from audiolitefocus.training.settings import Finetuning
from scripts.prune import gates, masks
from scripts.prune.choices import Choices
from scripts.prune.gates import MaskedInputs, MaskedUNet, draw, within_budget
from scripts.prune.objective import TEACHING, DistillationLoss
from scripts.reuse.costs import Costs
from tests.support.checkpoints import randomize
from tests.support.compare import assert_same, seeded

pytest.importorskip("peft")

TINY = UNetConfig(
    channels=(16, 32), heads=(1, 2), attention_levels=(1,), resnets=1, loa_dim=8, t5_dim=8,
    norm_groups=8,
)  # fmt: skip
CONFIG = BundleConfig(name="tiny", unet=TINY)
SECONDS = 0.32


@pytest.fixture(scope="module")
def choices() -> Choices:
    return Choices(CONFIG, SECONDS, "dense", 0.7)


def tiny_unet() -> UNet:
    return randomize(UNet(TINY), 0).eval().requires_grad_(False)


def condition(entries: int, seed: int = 0) -> Condition:
    generator = seeded(seed)
    loa, t5 = (torch.randn(entries, n, 8, generator=generator) for n in (4, 3))
    return Condition(loa, t5)


def batch(clips: int = 2, seed: int = 0) -> Batch:
    generator = seeded(seed)
    latents, noise = (torch.randn(clips, 8, 8, 16, generator=generator) for _ in range(2))
    steps = torch.randint(1000, (clips,), generator=generator)
    return Batch(latents, noise, condition(clips, seed), steps, seed)


def random_scores(choices: Choices, seed: int) -> torch.Tensor:
    return torch.randn(choices.costs.shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("budget", [0.55, 0.7, 0.95])
def test_the_best_choices_are_those_of_all_that_keep_to_the_budget(choices, budget):
    choices = copy.copy(choices)
    choices.budget = budget
    scores = random_scores(choices, 0)
    found = choices.best(scores)
    operations = np.array(choices.operations)
    numbers = np.array(list(itertools.product(range(8), repeat=len(choices.places))))
    places = np.arange(len(choices.places))
    fixed = choices.total - operations[:, -1].sum()
    stays = choices.subsets.numpy()[numbers]  # choices of all places, places, contexts
    allowed = fixed + operations[places, numbers].sum(-1) <= budget * choices.total
    allowed &= stays[..., 1:].any(1).all(-1)  # of loa and t5 one each
    totals = scores.numpy()[places, numbers].sum(-1)
    assert tuple(numbers[np.where(allowed, totals, -np.inf).argmax()]) == found
    assert choices.cost(found) <= budget


def test_the_last_text_of_a_source_stays_however_unlikely(choices):
    scores = torch.zeros_like(choices.costs)
    scores -= 100 * choices.subsets[:, 1]  # each loa
    made = choices.best(scores)
    assert sum(float(choices.subsets[number, 1]) for number in made) == 1.0


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match="budget 0.2: must be from 0.[0-9]*, where one"):
        Choices(CONFIG, SECONDS, "dense", 0.2)
    pruned = replace(CONFIG, unet=replace(TINY, absent=("middle.stage.transformers.0",)))
    with pytest.raises(ValueError, match="tiny was pruned: give the model that it was made of"):
        Choices(pruned, SECONDS, "dense", 0.7)


def test_the_expected_cost_is_the_budget_and_its_gradient_is_that_of_differences():
    logits, costs = (torch.rand(4, 8, generator=seeded(s), dtype=torch.float64) for s in (0, 1))
    logits = (4 * logits).requires_grad_()
    least, most = (float(getattr(costs, end)(-1).values.sum()) for end in ("min", "max"))
    for share in (0.1, 0.5, 0.9):
        budget = least + share * (most - least)
        found = within_budget(logits, costs, budget)
        assert float((found.detach().exp() * costs).sum()) == pytest.approx(budget, abs=1e-9)
        assert torch.autograd.gradcheck(lambda x, b=budget: within_budget(x, costs, b), logits)
        # more of everything is not asked for: the direction in which only the price changes
        (slope,) = torch.autograd.grad(
            (found * torch.rand(4, 8, dtype=torch.float64)).sum(), logits
        )
        assert float((slope * costs).sum()) == pytest.approx(0, abs=1e-9)


def test_choices_are_drawn_as_often_as_is_likely():
    likely = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]], dtype=torch.float64)
    drawn = draw(likely.log(), 20_000, 1.0, seeded())
    assert set(drawn.round(decimals=12).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000, 2, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), likely, rtol=0, atol=0.015)  # 4 standard deviations


@pytest.mark.parametrize("temperature", [4.0, 0.5])
def test_the_gradient_is_that_of_the_relaxed_choice(temperature):
    """Against differences of Gumbel-softmax as numpy computes it, with the same random numbers."""
    logits, weights = (
        torch.randn(3, 2, 4, generator=seeded(s), dtype=torch.float64) for s in (0, 1)
    )
    logits = logits[0].log_softmax(-1).requires_grad_()
    (draw(logits, 3, temperature, seeded(5)) * weights).sum().backward()
    uniform = torch.rand(3, 2, 4, dtype=torch.float64, generator=seeded(5)).numpy()

    def relaxed(values: np.ndarray) -> float:
        noisy = np.exp((values - np.log(-np.log(uniform))) / temperature)
        return float((noisy / noisy.sum(-1, keepdims=True) * weights.numpy()).sum())

    values, expected, step = logits.detach().numpy(), np.zeros((2, 4)), 1e-6
    for at in np.ndindex(2, 4):
        change = np.zeros((2, 4))
        change[at] = step
        expected[at] = (relaxed(values + change) - relaxed(values - change)) / (2 * step)
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_every_clip_gets_the_unet_of_its_own_choices(choices, monkeypatch):
    unet, given = tiny_unet(), batch()
    made = [choices.best(random_scores(choices, seed)) for seed in (1, 2)]
    assert made[0] != made[1]
    fixed = torch.nn.functional.one_hot(torch.tensor(made), len(choices.subsets)).double()
    monkeypatch.setattr(gates, "draw", lambda *_: fixed)
    inputs = given.latents, given.steps, given.condition
    options = {"attention": "dense", "generator": seeded()}
    found = MaskedUNet(unet, choices)(*inputs, **options)
    for clip, numbers in enumerate(made):
        pruned = UNet(replace(TINY, absent=tuple(choices.absent(numbers)))).eval()
        weights = unet.state_dict()
        pruned.load_state_dict({name: weights[name] for name in pruned.state_dict()})
        expected = pruned(*inputs, **options)
        assert_same(found[clip], expected[clip].detach())
        assert not torch.allclose(found[clip], expected[1 - clip], atol=0.01)


def test_the_gradient_of_masks_is_that_of_differences(choices):
    unet, given = tiny_unet().double(), batch(1)
    names = [name for place in choices.places for name in place]
    text = Condition(given.condition.loa.double(), given.condition.t5.double())
    prepared = unet.time_biases(given.steps), *unet.cross_kv(text), {}

    def error(masks: torch.Tensor) -> torch.Tensor:
        stays = {unet.get_submodule(n): m for n, m in zip(names, masks, strict=True)}
        inputs = MaskedInputs(*prepared, stays=stays)
        return unet.evaluate(given.latents.double(), inputs).square().mean()

    masks = torch.rand(len(names), 1, 1, 1, 1, generator=seeded(), dtype=torch.float64)
    assert torch.autograd.gradcheck(error, masks.requires_grad_())


def test_the_loss_is_that_of_the_paper_but_for_a_constant():
    unet, teacher = (randomize(UNet(TINY), seed) for seed in (0, 1))
    given, schedule = batch(3), ScheduleConfig()
    distilled = DistillationLoss(unet, copy.deepcopy(teacher), schedule, "dense", 5.0)
    plain = NoiseLoss(unet, schedule, "dense", 5.0)
    with torch.no_grad():
        alpha = plain.alphas[given.steps][:, None, None, None]
        noisy = alpha.sqrt() * given.latents + (1 - alpha).sqrt() * given.noise
        wanted = teacher(noisy, given.steps, given.condition)
    student = unet(noisy, given.steps, given.condition)
    error = plain.weights[given.steps] * (student - wanted).square().mean((1, 2, 3))
    paper = TEACHING * error + (1 - TEACHING) * plain(given)
    slopes = [
        torch.autograd.grad(loss.sum(), unet.conv_out.weight)[0]
        for loss in (distilled(given), paper)
    ]
    assert_same(*slopes)
    constant = (paper - distilled(given)).detach()
    expected = TEACHING * (1 - TEACHING) * (wanted - given.noise).square().mean((1, 2, 3))
    torch.testing.assert_close(constant, plain.weights[given.steps] * expected)


class Model:
    """As much of a pipeline as the learning of masks looks at, with a tiny UNet."""

    config, device = CONFIG, torch.device("cpu")

    def __init__(self, unet: UNet):
        self.unet = unet


def learning_in(folder, unet: UNet, choices: Choices, rate: float, **settings):
    examples = [
        Encoded(torch.randn(8, 8, 16, generator=seeded(n)), condition(1, n)) for n in range(16)
    ]
    chosen = Finetuning(rank=2, seconds=(SECONDS,), learning_rate=1e-3, **settings)
    return masks.MaskLearning(Model(unet), examples, chosen, rate, choices, "dense", folder)


@pytest.fixture
def without_text(monkeypatch):
    monkeypatch.setattr(masks, "unconditional", lambda pipe: condition(1, 9))


@pytest.mark.slow  # it takes some updates until all choices are learnt
def test_what_adds_nothing_is_what_is_left_out(without_text, tmp_path):
    """Four transformers of twelve do nothing, and the budget is what the other eight cost."""
    unet, names = tiny_unet(), list(TINY.transformers)
    free = [names[1], names[5], names[6], names[8]]
    for name in free:
        for parameter in unet.get_submodule(name).proj_out.parameters():
            parameter.zero_()
    counted = Costs(CONFIG, SECONDS, "dense", branches=1).counted
    left = counted.total - sum(counted.within[name] for name in free)
    choices = Choices(CONFIG, SECONDS, "dense", left / counted.total + 1e-6)
    learning = learning_in(tmp_path, unet, choices, 0.2, steps=24, batch_size=8)
    learning.run()
    assert sorted(choices.absent(learning.chosen())) == sorted(free)
    # as the choices that are likeliest before it are not
    assert sorted(choices.absent(choices.best(torch.zeros_like(choices.costs)))) != sorted(free)


def test_learning_that_was_cut_off_ends_as_one_that_was_not(choices, without_text, tmp_path):
    class Killed(Exception):
        pass

    def kill(update, loss):
        if len(losses := found[-1].losses) == 3:
            raise Killed(losses)

    found = []
    for name in ("whole", "parts", "parts"):
        (tmp_path / name).mkdir(exist_ok=True)
        settings = {"steps": 4, "batch_size": 2, "save_every": 2}
        found.append(learning_in(tmp_path / name, tiny_unet(), choices, 0.1, **settings))
        if len(found) == 2:
            with pytest.raises(Killed):
                found[1].run(kill)
        else:
            found[-1].run()
    whole, _, parts = found
    assert whole.losses == parts.losses and len(whole.losses) == 4
    for name, weight in whole.updates.parameters.items():
        assert torch.equal(weight, parts.updates.parameters[name])
    (tmp_path / "parts" / "state.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="state.pt is damaged or of another training"):
        learning_in(tmp_path / "parts", tiny_unet(), choices, 0.1)
