"""TRL's own GRPOTrainer on given completions, rewards and masks, and what each of its optimizer steps computed."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.engines.peer_batch import GROUP_SIZE, MASKS, REWARDS, SAMPLES, completion_logprobs, load_model, sampler_noise
from tests.engines.samples import LIMIT

MICROBATCH = 4
MICROBATCHES_PER_STEP = 2
NUM_STEPS = 3

# The rest of the configuration: no scaler, no clipping of the norm, nothing written.
_PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "optim": "adamw_torch",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


@dataclass
class PeerStep:
    """One optimizer step: its samples by index, and every parameter before it with its gradient, as arrays."""

    rows: list[int] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Any] = field(default_factory=dict)


class TrlPeer:
    """Runs many cases on the model at `model_path` in one process; one rollout and three optimizer steps each."""

    def __init__(self, model_path: Path) -> None:
        torch.set_num_threads(1)
        self.model_path = model_path

    def steps(self, settings: Mapping[str, Any], *, own_forward: bool, sampler: bool) -> list[PeerStep]:
        """What `GRPOConfig(**settings)` does; `sampler` gives it logprobs of a sampler that disagrees.

        With `own_forward` the logprobs are the peer's own; otherwise ours, so that both sides start at the same ones.
        """
        out = tempfile.mkdtemp()
        recorder = _Recorder()
        trainer = _Trainer(
            recorder,
            own_forward,
            model=load_model(self.model_path),
            processing_class=AutoTokenizer.from_pretrained(self.model_path),
            args=GRPOConfig(
                out,
                max_steps=NUM_STEPS,
                num_generations=GROUP_SIZE,
                max_completion_length=LIMIT,
                per_device_train_batch_size=MICROBATCH,
                gradient_accumulation_steps=MICROBATCHES_PER_STEP,
                steps_per_generation=MICROBATCHES_PER_STEP * NUM_STEPS,
                **{**_PLAIN, **settings},
            ),
            train_dataset=Dataset.from_list([{"prompt": str(g)} for g in range(len(SAMPLES) // GROUP_SIZE)]),
            reward_funcs=_given_rewards,
            rollout_func=_given_completions,
        )
        if sampler:
            trainer.expect_sampler_logprobs()
        trainer.train()
        shutil.rmtree(out)
        return recorder.steps[:-1]


class _Recorder(TrainerCallback):
    def __init__(self) -> None:
        self.steps = [PeerStep()]

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            self.steps[-1].weights[name] = parameter.detach().numpy().copy()
            self.steps[-1].gradients[name] = parameter.grad.numpy().copy()
        self.steps.append(PeerStep())


class _Trainer(GRPOTrainer):
    """The peer's advantage, loss and accumulation; only the forward pass may be replaced."""

    def __init__(self, recorder: _Recorder, own_forward: bool, **kwargs: Any) -> None:
        super().__init__(callbacks=[recorder], **kwargs)
        self.recorder, self.own_forward = recorder, own_forward
        self.index = {(*s.prompt_ids, *s.completion_ids): i for i, s in enumerate(SAMPLES)}
        assert len(self.index) == len(SAMPLES)

    def expect_sampler_logprobs(self) -> None:
        """Take the branch of a run with vLLM, whose engine is not there."""
        self.use_vllm, self._last_loaded_step = True, 0
        self.vllm_generation: Any = SimpleNamespace(sync_weights=lambda: None)

    def rows(self, input_ids: Tensor, attention_mask: Tensor) -> list[int]:
        """Indices of the samples in padded tensors."""
        rows = zip(input_ids, attention_mask.bool(), strict=True)
        return [self.index[tuple(ids[mask].tolist())] for ids, mask in rows]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self.own_forward:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        model, input_ids, attention_mask, width = args[:4]
        logprobs = completion_logprobs(model, self.rows(input_ids, attention_mask))[:, :width]
        return logprobs, torch.zeros_like(logprobs), None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        self.recorder.steps[-1].rows += self.rows(ids, mask)
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss


def _given_completions(prompts: list[str], trainer: _Trainer) -> dict[str, Any]:
    rows = _asked(prompts)
    logprobs = None
    if trainer.use_vllm:
        with torch.no_grad():
            policy, noise = completion_logprobs(trainer.model, rows), sampler_noise()
        logprobs = [(policy[i, : len(noise[row])] + noise[row]).tolist() for i, row in enumerate(rows)]
    return {
        "prompt_ids": [list(SAMPLES[row].prompt_ids) for row in rows],
        "completion_ids": [list(SAMPLES[row].completion_ids) for row in rows],
        "env_mask": [MASKS[row] for row in rows],
        "logprobs": logprobs,
    }


def _given_rewards(prompts: list[str], **_: Any) -> list[float]:
    return [REWARDS[row] for row in _asked(prompts)]


def _asked(prompts: Sequence[str]) -> list[int]:
    """Samples of `prompts`, each a group's number, as often as it is sampled."""
    return [int(prompt) * GROUP_SIZE + list(prompts[:i]).count(prompt) for i, prompt in enumerate(prompts)]
