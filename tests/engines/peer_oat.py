"""The authors' own learning step (oat, and the paper's script on top of it) on given logprobs, rewards and masks."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

MINIBATCH = 4
LEARNERS = {"oat.algorithms.ppo": "PPOLearner", "train_zero_math": "ZeroMathLearner"}


@dataclass
class OatBatch:
    """Logprobs [B, T] at the completion's positions, masks [B, T], `trained` [B]: False leaves a sequence out."""

    logprobs: Tensor
    old: Tensor
    sampler: Tensor
    ref: Tensor
    mask: Tensor
    trained: Tensor
    rewards: Sequence[float]


def import_learner(name: str) -> ModuleType:
    """The peer's module, or the test is skipped."""
    module: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed")
    return module


def oat_gradient(name: str, batch: OatBatch, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Gradient with respect to `batch.logprobs` of one optimizer step of the learner in module `name`."""
    learner = _learner(name, settings, monkeypatch)
    new = batch.logprobs.clone().requires_grad_()
    num_rows, width = batch.mask.shape

    def given_logprobs(
        model: Any, input_ids: Tensor, att_mask: Tensor, temperature: float, compute_entropy: bool
    ) -> Any:
        source = batch.ref if model == "reference" else new if compute_entropy else batch.old
        part = source[input_ids[:, 0], : input_ids.shape[1] - 1]
        return part, torch.zeros_like(part) if compute_entropy else None

    # every sequence starts with its row number, and a prompt of one token
    attention = torch.cat([torch.ones(num_rows, 1, dtype=torch.int64), batch.mask.long()], dim=1)
    ids = torch.arange(num_rows)[:, None].expand(-1, width + 1)
    learner.get_batch_logps = given_logprobs
    learner.learning_step(
        {
            "input_ids": ids,
            "attention_mask": attention,
            "prompt_ids_lens": [1] * num_rows,
            "rewards": [[reward] for reward in batch.rewards],
            "action_logprobs": [row[mask].tolist() for row, mask in zip(batch.sampler, batch.mask, strict=True)],
            "loss_masks": batch.trained.tolist(),
        }
    )
    assert new.grad is not None
    # DeepSpeed divides each mini-batch by the number that are accumulated
    return new.grad / (num_rows // MINIBATCH)


def _learner(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module = import_learner(name)
    ppo = importlib.import_module("oat.algorithms.ppo")
    monkeypatch.setattr(ppo.RLLearner, "_init", lambda *_: None)
    monkeypatch.setattr(module, "load_from_disk", lambda *_: {}, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    kind = getattr(module, LEARNERS[name])
    learner = kind.__new__(kind)
    names = ("cliprange", "reinforce_update", "reward_scale", "temperature", "num_ppo_epochs", "kl_penalty_coef")
    defaults = {name: field.default for name, field in ppo.PPOArgs.__dataclass_fields__.items() if name in names}
    fixed = {"train_batch_size_per_device": MINIBATCH, "eval_data": "", "test_split": "all"}
    learner._init(SimpleNamespace(**(defaults | fixed | settings)), [])
    learner.model, learner.optimizer, learner.scheduler, learner.critic = "policy", None, None, None
    learner.ref_model = "reference" if settings["beta"] else None
    learner.strategy = SimpleNamespace(
        grad_acc_step=1,
        backward=lambda loss, *_: loss.backward(),
        get_gradient_norm=lambda _: 0.0,
        optimizer_step=lambda *_: None,
    )
    return learner
