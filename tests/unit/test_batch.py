"""Packed micro-batches and the chunked logprobs, against plain torch in float64."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drgrpo.config.overrides import load_config
from drgrpo.trainer import attention
from drgrpo.trainer.batch import PackedBatch, Sample, SegmentLayout, pack
from drgrpo.trainer.layout import KernelLayout
from drgrpo.trainer.logprobs import LogprobHead, logits_gradient, token_statistics
from drgrpo.trainer.objective import Objective, StepScale
from drgrpo.trainer.policy import Policy
from tests.tiny_model import VOCAB_SIZE, build_tiny_model

CPU = torch.device("cpu")


def two_groups() -> list[Sample]:
    return [
        Sample(0, [10, 11, 12], [20, 21, 22]),
        Sample(0, [10, 11, 12], [30]),
        Sample(1, [13, 14], [40, 41]),
    ]


def test_a_packed_row_is_prompts_once_and_completions_without_their_last_token() -> None:
    batch = pack(two_groups(), [[0, 1], [2]], device=CPU)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 13, 14, 40]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.targets.tolist() == [20, 21, 22, 30, 40, 41]
    assert batch.predictors.tolist() == [2, 3, 4, 2, 6, 7]
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.columns.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.layout.segments == (SegmentLayout(0, 3, (2, 0)), SegmentLayout(5, 2, (1,)))


def test_rows_follow_the_plan_and_not_the_list() -> None:
    batch = pack(two_groups(), [[2], [1, 0]], device=CPU)
    assert batch.targets.tolist() == [40, 41, 30, 20, 21, 22]
    assert batch.pad(torch.arange(1.0, 7.0)).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert batch.mask().tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_completions_that_share_a_prompt_do_not_see_each_other() -> None:
    batch = pack([Sample(0, [1, 2], [5, 6, 7]), Sample(0, [1, 2], [8, 9])], [[0, 1]], device=CPU)
    (mask,) = batch.layout.shared_masks
    assert mask is not None
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert pack(two_groups(), [[2]], device=CPU).layout.shared_masks == (None,)


def test_padding_lets_gradients_through_to_each_token_once() -> None:
    batch = pack(two_groups(), [[0, 1], [2]], device=CPU)
    values = torch.arange(6.0, requires_grad=True)
    weights = torch.arange(9.0).reshape(3, 3)
    (batch.pad(values) * weights).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 6.0, 7.0]


def test_an_empty_completion_is_a_row_without_tokens() -> None:
    batch = pack([Sample(0, [1, 2], []), Sample(0, [1, 2], [3])], [[0, 1]], device=CPU)
    assert (batch.input_ids.tolist(), batch.targets.tolist(), batch.num_rows) == ([[1, 2]], [3], 2)
    assert batch.mask().tolist() == [[False], [True]]


def test_different_prompts_cannot_share_a_segment() -> None:
    with pytest.raises(ValueError, match=r"samples \[0, 2\] share a segment but not a prompt"):
        pack(two_groups(), [[0, 2]], device=CPU)


def exact(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies by softmax, nothing else."""
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


def test_the_statistics_of_a_distribution_that_can_be_written_down() -> None:
    logits = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).log1p()  # odds 1 : 2 and 1 : 1
    logprobs, entropy, normalizer = token_statistics(logits, torch.tensor([1, 0]), 1.0)
    assert logprobs.exp().tolist() == pytest.approx([2 / 3, 1 / 2])
    assert entropy.tolist() == pytest.approx([0.636514, 0.693147], abs=1e-6)
    assert normalizer.exp().tolist() == pytest.approx([3.0, 8.0])
    squared = token_statistics(logits, torch.tensor([1, 0]), 0.5)[0]  # odds 1 : 4
    assert squared.exp().tolist() == pytest.approx([4 / 5, 1 / 2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_both_gradients_with_respect_to_logits_are_those_of_autograd(temperature: float) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(7, 33, dtype=torch.float64) * 3).requires_grad_()
    targets, weights, others = torch.randint(33, (7,)), torch.randn(7).double(), torch.randn(7).double()
    logprobs, entropy = exact(logits, targets, temperature)
    (wanted,) = torch.autograd.grad((logprobs * weights).sum(), logits, retain_graph=True)
    (wanted_entropy,) = torch.autograd.grad((entropy * others).sum(), logits)
    plain = logits.detach().float()
    _, found_entropy, normalizer = token_statistics(plain, targets, temperature)
    found = logits_gradient(plain, targets, normalizer, weights.float(), temperature, None)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    trained = (found_entropy, others.float())
    found = logits_gradient(plain, targets, normalizer, weights.float(), temperature, trained)
    torch.testing.assert_close(found.double(), wanted + wanted_entropy, atol=2e-5, rtol=1e-5)
    found = logits_gradient(plain, targets, normalizer, torch.zeros(7), temperature, trained)
    torch.testing.assert_close(found.double(), wanted_entropy, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_chunked_logprobs_and_their_gradients_are_those_of_whole_logits(chunk: int, temperature: float) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(13, 16, dtype=torch.float64), torch.randn(50, 16, dtype=torch.float64)
    targets, a, b = torch.randint(50, (13,)), torch.randn(13).double(), torch.randn(13).double()
    inputs = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
    logprobs, entropy = exact(inputs[0] @ inputs[1].t(), targets, temperature)
    wanted = torch.autograd.grad((logprobs * a + entropy * b).sum(), inputs)

    head = LogprobHead(torch.nn.Parameter(weight.float()), chunk_tokens=chunk, entropy_gradient=True)
    given = hidden.float().requires_grad_()
    found_logprobs, found_entropy = head(given, targets, temperature)
    (found_logprobs * a.float() + found_entropy * b.float()).sum().backward()
    assert given.grad is not None and head.weight.grad is not None
    torch.testing.assert_close(found_logprobs.double(), logprobs.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_entropy.double(), entropy.detach(), atol=5e-5, rtol=1e-5)
    for grad, exact_grad in zip((given.grad, head.weight.grad), wanted, strict=True):
        assert relative_error(grad, exact_grad) < 1e-5


class Products(TorchDispatchMode):
    """Counts matrix products."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("chunk", "recomputed"), [(13, 0), (100, 0), (12, 1), (4, 3)])
def test_the_logits_of_the_last_chunk_are_not_computed_twice(chunk: int, recomputed: int) -> None:
    hidden = torch.randn(13, 16).requires_grad_()
    head = LogprobHead(torch.nn.Parameter(torch.randn(50, 16)), chunk_tokens=chunk, entropy_gradient=False)
    with Products() as products:
        logprobs, _ = head(hidden, torch.randint(50, (13,)), 1.0)
        forward = products.number
        logprobs.sum().backward(retain_graph=True)
    first, head.weight.grad = head.weight.grad, None
    assert products.number - forward == 2 * forward + recomputed  # those of hidden states and weight, each chunk
    logprobs.sum().backward()  # by then they are gone
    torch.testing.assert_close(head.weight.grad, first)


def test_the_reference_scores_before_logits_of_the_policy_are_kept() -> None:
    batch, asked = pack(two_groups(), [[0, 1], [2]], device=CPU), []

    def score(of: str) -> Any:
        return lambda *_: asked.append(of) or (torch.zeros(len(batch.targets), requires_grad=of == "policy"),) * 2

    objective = Objective(load_config({"loss": {"kl_coef": 0.1}}), score("policy"), score("reference"), CPU)
    objective.loss(two_groups(), batch, [0, 1, 2], old={}, scale=StepScale(3, 6))
    assert asked == ["reference", "policy"]


class VocabularyTensors(TorchDispatchMode):
    """Keeps the rows and type of every new tensor [rows, vocabulary] that an operation makes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.made = vocabulary, set[tuple[int, torch.dtype]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in (result,) if isinstance(result, torch.Tensor) else ():
            if not func.is_view and tensor.ndim == 2 and tensor.shape[1] == self.vocabulary:
                self.made.add((tensor.shape[0], tensor.dtype))
        return result


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_than_a_chunk_of_logits_exists_at_once(dtype: torch.dtype, entropy_gradient: bool) -> None:
    hidden, weight = (
        torch.randn(13, 16, dtype=dtype).requires_grad_(),
        torch.nn.Parameter(torch.randn(50, 16).to(dtype)),
    )
    head = LogprobHead(weight, chunk_tokens=4, entropy_gradient=entropy_gradient)
    with VocabularyTensors(50) as seen:
        logprobs, entropy = head(hidden, torch.randint(50, (13,)), 1.0)
        forward = set(seen.made)
        seen.made.clear()
        (logprobs.sum() + entropy.sum()).backward()
    for made in (forward, seen.made):
        assert {rows for rows, _ in made} == {4, 1}  # 13 rows in chunks of 4
        assert {torch.float32, dtype} <= {kind for _, kind in made}
    with VocabularyTensors(50) as seen:  # the mode sees whole logits where there are some
        torch.log_softmax((hidden @ weight.t()).float(), -1)
    assert (13, torch.float32) in seen.made


def test_an_entropy_that_is_only_watched_has_no_gradient() -> None:
    torch.manual_seed(2)
    weight = torch.nn.Parameter(torch.randn(20, 8))
    hidden, targets = torch.randn(5, 8), torch.randint(20, (5,))
    logprobs, entropy = LogprobHead(weight, chunk_tokens=2, entropy_gradient=False)(hidden, targets, 1.0)
    assert logprobs.requires_grad and not entropy.requires_grad
    trained = LogprobHead(weight, chunk_tokens=2, entropy_gradient=True)(hidden, targets, 1.0)[1]
    assert trained.requires_grad and torch.equal(trained, entropy)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    logprobs, entropy, normalizer = token_statistics(logits, torch.tensor([2]), 1.0)
    assert (logprobs.item(), entropy.item()) == (-2e4, 0.0)
    trained = (entropy, torch.ones(1))
    assert torch.isfinite(logits_gradient(logits, torch.tensor([2]), normalizer, torch.ones(1), 1.0, trained)).all()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("batch-model"))


def groups(num_groups: int = 3, group_size: int = 4) -> list[Sample]:
    rng = random.Random(0)
    samples = []
    for group in range(num_groups):
        prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(2, 9))]
        for _ in range(group_size):
            samples.append(Sample(group, prompt, [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 12))]))
    return samples


LAYOUTS = {
    "shared prompts": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
    "own prompts": [[i] for i in range(12)],
    "mixed": [[8, 3 + 8], [0], [5, 7], [9, 10], [6], [1, 3, 2], [4]],
}


def plain_kernel(q: Tensor, k: Tensor, v: Tensor, layout: KernelLayout, scale: float) -> Tensor:
    """What the variable-length kernel computes: causal within a sequence, the last query seeing the last key."""
    outputs, queries, keys = [], layout.cu_queries.diff().tolist(), layout.cu_keys.diff().tolist()
    assert (max(queries), max(keys)) == (layout.max_queries, layout.max_keys)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for one_q, one_k, one_v in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        scores = torch.einsum("qhd,khd->hqk", one_q, one_k) * scale
        offset = len(one_k) - len(one_q)
        hidden = torch.ones(len(one_q), len(one_k)).triu(offset + 1).bool()
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), one_v))
    return torch.cat(outputs)


@pytest.mark.parametrize("one_kernel", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_model_gives_what_the_model_gives_for_each_sequence_alone(
    model_path: Path, layout: str, one_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_flash_attention", plain_kernel)
    samples, temperature = groups(), 0.8
    coefficients = [(0.3 + 0.1 * i) * (-1) ** i for i in range(len(samples))]
    wanted, gradients = reference(model_path, samples, coefficients, temperature)

    policy = Policy(model_path, dtype=torch.float32, chunk_tokens=5, checkpointing=False, entropy_gradient=True)
    segments = LAYOUTS[layout]
    batch = pack(samples, segments, device=CPU, one_kernel=one_kernel)
    logprobs, entropy = policy(batch, temperature)
    order = [i for segment in segments for i in segment]
    padded = batch.pad(logprobs)
    for row, index in enumerate(order):
        own = padded[row, : samples[index].completion_len]
        torch.testing.assert_close(own.double(), wanted[index], atol=2e-5, rtol=0)
    weights = torch.tensor([coefficients[i] for i in order])[batch.rows]
    (weights * (logprobs + 0.2 * entropy)).sum().backward()
    for name, parameter in policy.named_parameters():
        exact_name = policy.checkpoint_name(name)
        if exact_name is not None:
            assert parameter.grad is not None and relative_error(parameter.grad, gradients[exact_name]) < 1e-5, name


def reference(
    path: Path, samples: list[Sample], coefficients: list[float], temperature: float
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logprobs of each completion, and the gradient of the weighted sum, one sequence at a time in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    found = []
    for sample, coefficient in zip(samples, coefficients, strict=True):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(input_ids=ids).logits[0, sample.prompt_len - 1 : -1]
        logprobs, entropy = exact(logits, torch.tensor(sample.completion_ids), temperature)
        (coefficient * (logprobs + 0.2 * entropy)).sum().backward()
        found.append(logprobs.detach())
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def test_one_kernel_sees_a_shared_prompt_once_for_each_completion() -> None:
    samples = [Sample(0, [1, 2, 3], [5, 6, 7]), Sample(0, [1, 2, 3], [8]), Sample(0, [1, 2, 3], [9, 10])]
    kernel = pack([*samples, Sample(1, [4], [5, 6])], [[0, 1, 2], [3]], device=CPU, one_kernel=True).layout.kernel
    assert kernel is not None and kernel.keys is not None
    # Positions: prompt 0 to 2, inputs of the completions 3 and 4, none, and 5; then the second segment, 6 and 7.
    assert kernel.cu_queries.tolist() == [0, 3, 5, 6, 8]
    assert kernel.cu_keys.tolist() == [0, 3, 8, 12, 14]
    assert kernel.keys.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert (kernel.max_queries, kernel.max_keys) == (3, 5)
    alone = pack(samples, [[0], [1]], device=CPU, one_kernel=True).layout.kernel
    assert alone is not None and alone.keys is None and alone.cu_keys.tolist() == [0, 5, 8]


def test_a_plan_covers_what_it_packs(model_path: Path) -> None:
    samples = groups()
    batches: list[PackedBatch] = [pack(samples, plan, device=CPU) for plan in LAYOUTS.values()]
    assert {batch.targets.numel() for batch in batches} == {sum(sample.completion_len for sample in samples)}
    shared, alone, _ = (batch.input_ids.numel() for batch in batches)
    assert alone - shared == sum(3 * samples[4 * group].prompt_len for group in range(3))
