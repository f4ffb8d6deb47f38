"""The sampler's draw on a GPU: its frequencies are those of softmax, and seeds, places and temperature count."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu

Draw = Callable[..., Tensor]


@pytest.fixture(scope="module")
def draw(device: torch.device) -> Draw:
    """The kernel; Triton runs on a GPU only."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    found: Draw = importlib.import_module("drgrpo.rollout.draw_kernel").draw
    return found


def drawn(draw: Draw, logits: Tensor, *, seed: int = 0, temperature: float = 1.0, first: int = 0) -> Tensor:
    """A token of each row, all of one request, at places from `first`."""
    rows = torch.arange(len(logits), device=logits.device)
    requests = torch.ones(len(logits), dtype=torch.int32, device=logits.device)
    temperatures = torch.tensor([1.0, temperature], device=logits.device)
    return draw(logits, requests, temperatures, torch.tensor([99, seed], device=logits.device), rows + first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [300, 4096, 20_001])  # less than a block, one, and several with a rest
def test_frequencies_are_those_of_softmax(
    draw: Draw, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(vocabulary, device=device) * 2).to(dtype)
    num_rows, num_calls = 4096, 250
    counts = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    for call in range(num_calls):
        tokens = drawn(draw, logits.expand(num_rows, -1).contiguous(), first=call * num_rows)
        counts += torch.bincount(tokens, minlength=vocabulary)
    wanted = logits.double().softmax(-1) * num_rows * num_calls
    frequent = wanted > 20
    cells = torch.cat([wanted[frequent], wanted[~frequent].sum()[None]])
    found = torch.cat([counts[frequent], counts[~frequent].sum()[None]])
    kept = cells > 0
    statistic = float(((found - cells)[kept] ** 2 / cells[kept]).sum())
    degrees = int(kept.sum()) - 1
    # The statistic has mean `degrees` and variance twice that.
    assert abs(statistic - degrees) < 5 * (2 * degrees) ** 0.5


def test_a_seed_and_a_place_give_the_same_token_and_others_another(draw: Draw, device: torch.device) -> None:
    logits = torch.zeros(512, 151_936, device=device, dtype=torch.bfloat16)
    tokens = drawn(draw, logits, seed=5)
    assert torch.equal(tokens, drawn(draw, logits, seed=5))
    for other in (drawn(draw, logits, seed=6), drawn(draw, logits, seed=5, first=512)):
        assert int((tokens == other).sum()) <= 3  # by chance 512 / 151,936
    assert len(tokens.unique()) > 500
    assert abs(float(tokens.double().mean()) / 151_936 - 0.5) < 5 * (1 / 12 / 512) ** 0.5


def test_at_temperature_zero_the_largest_logit_wins(draw: Draw, device: torch.device) -> None:
    logits = torch.randn(64, 151_936, device=device)
    assert torch.equal(drawn(draw, logits, temperature=0.0), logits.argmax(-1))
    assert torch.equal(drawn(draw, logits.add(-1e4).scatter(1, logits.argmin(-1)[:, None], 0.0)), logits.argmin(-1))


def test_what_is_masked_is_never_drawn(draw: Draw, device: torch.device) -> None:
    logits = torch.full((4096, 20_001), float("-inf"), device=device)
    kept = [4095, 4096, 20_000]  # the ends of a block, and a block of its own
    logits[:, kept] = torch.tensor([0.0, 1.0, 2.0], device=device)
    counts = torch.bincount(drawn(draw, logits), minlength=20_001)
    assert int(counts.sum()) == int(counts[kept].sum())
    wanted = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).softmax(0) * 4096
    assert float(((counts[kept].cpu() - wanted) ** 2 / wanted).sum()) < 20  # chi squared of two degrees: 1 in 20,000


def test_infinities_and_nan_give_a_token_of_the_vocabulary(draw: Draw, device: torch.device) -> None:
    logits = torch.randn(64, 20_001, device=device)
    largest = logits.clone()
    largest[:, 15_000] = float("inf")
    assert (drawn(draw, largest) == 15_000).all()
    hole = logits.clone()
    hole[:, 77] = float("nan")
    assert (drawn(draw, hole) != 77).all()
    for temperature in (0.0, 1.0):  # 20,001 is no multiple of a block
        tokens = drawn(draw, torch.full_like(logits, float("nan")), temperature=temperature)
        assert ((tokens >= 0) & (tokens < 20_001)).all()
