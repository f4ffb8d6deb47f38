"""The policy as the trainer sees it: packed tokens in, logprobs and entropies of the completion tokens out."""

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from drgrpo.architecture import unsupported_parts
from drgrpo.trainer import attention
from drgrpo.trainer.batch import PackedBatch
from drgrpo.trainer.decoder_layer import fuse_layers
from drgrpo.trainer.gather import gather
from drgrpo.trainer.logprobs import LogprobHead


class Policy(nn.Module):
    """A causal language model whose head returns logprobs of given tokens instead of logits."""

    def __init__(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        chunk_tokens: int,
        checkpointing: float,
        entropy_gradient: bool = False,
        fused_kernels: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention.NAME,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        reasons = unsupported_parts(model.config.to_dict())
        if getattr(model.lm_head, "bias", None) is not None:
            reasons.append("its output head has a bias")
        if reasons:
            raise ValueError(f"model.path = {str(path)!r}: not supported, because {' and '.join(reasons)}")
        model.config.use_cache = False
        if fused_kernels:
            fuse_kernels(model, model.config.model_type)
            fuse_layers(model.model.layers)
        self.decoder = model.model
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            self.set_checkpointing(checkpointing)
        self.head = LogprobHead(model.lm_head.weight, chunk_tokens=chunk_tokens, entropy_gradient=entropy_gradient)
        self.tied = model.lm_head.weight is model.get_input_embeddings().weight

    def forward(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies of the batch's completion tokens, each [C] float32, in the order of its targets."""
        hidden = self.decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            use_cache=False,
            packed_layout=batch.layout,
        ).last_hidden_state[0]
        logprobs, entropy = self.head(gather(hidden, batch.predictors), batch.targets, temperature)
        return logprobs, entropy

    def set_checkpointing(self, share: float) -> None:
        """Have the first `share` of the layers recompute; the others' memory is free again by the time they do."""
        layers = self.decoder.layers
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = index < round(share * len(layers))

    def checkpoint_name(self, name: str) -> str | None:
        """The Hugging Face name of one of our parameters; None for a tied head, which checkpoints leave out."""
        if name == "head.weight":
            return None if self.tied else "lm_head.weight"
        return "model." + name.removeprefix("decoder.")


def fuse_kernels(model: nn.Module, model_type: str) -> None:
    """Replace RoPE, RMSNorm and SwiGLU by Liger's Triton kernels, for the architectures that Liger knows.

    Of these, a layer with a forward pass of our own uses RoPE, and norms of queries and keys where it has them.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if apply is None:
        return
    wanted = {
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    known = inspect.signature(apply).parameters
    apply(model=model, **{name: value for name, value in wanted.items() if name in known})
