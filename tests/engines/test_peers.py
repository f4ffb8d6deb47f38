"""The same logprobs, rewards and masks through our advantage and loss and through our peers' own code."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drgrpo.advantage import compute_advantages
from drgrpo.loss import policy_loss
from tests.engines.peer_batch import GROUP_SIZE, GROUPS, MASKS, REWARDS, load_model, our_gradient
from tests.engines.peer_oat import LEARNERS, OatBatch, oat_gradient
from tests.engines.process import EngineProcess
from tests.engines.reference import largest_error, relative_error
from tests.engines.samples import LIMIT

pytestmark = pytest.mark.engine

TOLERANCE = 1e-6


@dataclass
class Case:
    """The same objective in TRL's words, in those of `policy_loss` and in those of `compute_advantages`."""

    trl: dict[str, Any]
    loss: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)


DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none"}
SAME = {
    "dr_grpo": Case(DR_GRPO),
    "clip_higher": Case(DR_GRPO | {"epsilon": 0.1, "epsilon_high": 0.3}, {"clip_eps_low": 0.1, "clip_eps_high": 0.3}),
    "kl": Case(DR_GRPO | {"beta": 0.1, "use_bias_correction_kl": False}, {"kl_coef": 0.1}),
    "grpo_without_std": Case({"loss_type": "grpo", "scale_rewards": "none"}, {"aggregation": "sequence_mean"}),
}
SCALED = {
    "grpo": Case(
        {"loss_type": "grpo", "scale_rewards": "group"}, {"aggregation": "sequence_mean"}, {"std_level": "group"}
    ),
    "dr_grpo_with_std": Case({"loss_type": "dr_grpo", "scale_rewards": "group"}, {}, {"std_level": "group"}),
    "batch_std": Case({"loss_type": "dr_grpo", "scale_rewards": "batch"}, {}, {"std_level": "batch"}),
}
CORRECTED = {
    mode: Case(
        DR_GRPO | {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.5} | bound,
        {"correction": ours, "correction_cap": 1.5},
    )
    for mode, ours, bound in (
        ("token_truncate", "token_tis", {}),
        ("sequence_truncate", "sequence_tis", {}),
        ("token_mask", "token_mask", {"vllm_importance_sampling_clip_min": 1 / 1.5}),
        ("sequence_mask", "sequence_mask", {"vllm_importance_sampling_clip_min": 1 / 1.5}),
    )
}
Compare = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trl(tiny_model: Path) -> Iterator[EngineProcess]:
    """TRL in a process of its own, because it changes the environment of the one that imports it."""
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    process = EngineProcess("tests.engines.peer_trl.TrlPeer", tiny_model, environment=offline)
    yield process
    process.close()


@pytest.fixture
def compare(trl: EngineProcess, tiny_model: Path) -> Compare:
    """For each optimizer step of a case: the error of our gradient, its counts of tokens and the ratio of the two."""

    def run(
        case: Case,
        *,
        own_forward: bool = False,
        factor: Tensor | float = 1.0,
        scale: Callable[..., float] = lambda _: 1.0,
    ) -> list[dict[str, Any]]:
        advantages = compute_advantages(torch.tensor(REWARDS), GROUPS, **case.advantage) * factor
        initial, results = load_model(tiny_model), []
        for step in trl.call("steps", case.trl, own_forward=own_forward, sampler="correction" in case.loss):
            model = load_model(tiny_model, step.weights)
            gradient, counts = our_gradient(model, initial, step.rows, advantages, case.loss)
            ours = {name: value * scale(counts["trained"]) for name, value in gradient.items()}
            results.append({**counts, "error": largest_error(ours, step.gradients)})
        print([f"{result['error']:.1e}" for result in results])
        # two of the three steps are off-policy, or a missing clip would not be seen
        assert results[0]["clipped"] == 0
        assert min(result["clipped"] for result in results[1:]) >= 10
        return results

    return run


@pytest.mark.parametrize("case", SAME)
def test_gradients_of_trl_are_ours(case: str, compare: Compare) -> None:
    assert max(step["error"] for step in compare(SAME[case])) <= TOLERANCE


@pytest.mark.parametrize("case", CORRECTED)
def test_corrections_of_the_samplers_mismatch_in_trl_are_ours(case: str, compare: Compare) -> None:
    steps = compare(CORRECTED[case])
    assert sum(step["corrected"] for step in steps) >= 50
    assert max(step["error"] for step in steps) <= TOLERANCE


@pytest.mark.parametrize("case", SCALED)
def test_the_standard_deviation_of_trl_is_ours_plus_1e_4_instead_of_1e_8(case: str, compare: Compare) -> None:
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    std = rewards.view(-1, GROUP_SIZE).std(dim=1).repeat_interleave(GROUP_SIZE)
    if SCALED[case].advantage["std_level"] == "batch":
        std = rewards.std().expand_as(rewards)
    assert max(step["error"] for step in compare(SCALED[case], factor=(std + 1e-8) / (std + 1e-4))) <= TOLERANCE
    assert 1e-4 < max(step["error"] for step in compare(SCALED[case])) < 1e-3


def test_dapo_in_trl_divides_every_step_by_the_mean_tokens_of_the_rollouts_steps(compare: Compare) -> None:
    case = Case({"loss_type": "dapo", "scale_rewards": "none"}, {"aggregation": "token_mean"})
    mean_tokens = sum(map(sum, MASKS)) / 3
    assert max(step["error"] for step in compare(case, scale=lambda tokens: tokens / mean_tokens)) <= TOLERANCE
    assert max(step["error"] for step in compare(case)) > 0.1


def test_gradients_are_ours_with_trls_own_forward_pass_too_as_far_as_float32_goes(compare: Compare) -> None:
    # its prompts are padded and its logprobs come from a fused kernel
    assert max(step["error"] for step in compare(SAME["dr_grpo"], own_forward=True)) <= 1e-5


OAT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "drgrpo": ({"critic_type": "drgrpo"}, {}, {}),
    "grpo": ({"critic_type": "grpo"}, {"aggregation": "sequence_mean"}, {"std_level": "group"}),
    "truncated_importance": (
        {"critic_type": "drgrpo", "tis_c": 1.5},
        {"correction": "token_tis", "correction_cap": 1.5},
        {},
    ),
    "kl": ({"critic_type": "drgrpo", "beta": 0.1}, {"kl_coef": 0.1}, {}),
}


def oat_batch() -> OatBatch:
    """Six groups of four; the last completion of each group is left out of the loss, as one that was cut."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(REWARDS), LIMIT)
    # the peer keeps frozen logprobs in float32
    old = -3 * torch.rand(shape, generator=generator)
    logprobs, sampler, ref = (old + size * torch.randn(shape, generator=generator) for size in (0.3, 0.6, 0.5))
    lengths = torch.randint(1, LIMIT + 1, shape[:1], generator=generator)
    mask = torch.arange(LIMIT) < lengths[:, None]
    trained = torch.arange(len(REWARDS)) % GROUP_SIZE != GROUP_SIZE - 1
    return OatBatch(logprobs.double(), old, sampler, ref, mask, trained, REWARDS)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("case", OAT)
def test_gradients_of_the_authors_learner_are_ours(learner: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, options, levels = OAT[case]
    batch = oat_batch()
    fixed = {"num_samples": GROUP_SIZE, "generate_max_length": LIMIT, "tis_c": None, "beta": 0.0}
    theirs = oat_gradient(learner, batch, fixed | settings, monkeypatch)
    logprobs = batch.logprobs.clone().requires_grad_()
    loss, metrics = policy_loss(
        logprobs,
        batch.old,
        compute_advantages(torch.tensor(REWARDS), GROUPS, **levels),
        batch.mask & batch.trained[:, None],
        num_sequences=len(REWARDS),
        max_completion_tokens=LIMIT,
        sampler_logprobs=batch.sampler if "correction" in options else None,
        ref_logprobs=batch.ref if "kl_coef" in options else None,
        **options,
    )
    loss.backward()
    error = relative_error(logprobs.grad, theirs)
    print(f"{error:.1e}")
    assert metrics["clip_low_sum"] + metrics["clip_high_sum"] >= 10
    assert error <= TOLERANCE
