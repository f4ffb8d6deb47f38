"""Health gates of a run: what each watches, where its limit lies, what happens beyond it.

The defaults only warn, at limits that a run which learns does not reach.
"""

from pydantic import Field

from drgrpo.config.section import Section
from drgrpo.health import Action, Rule
from drgrpo.health.readings import STEP_TOKENS_PER_S
from drgrpo.health.rule import Kind


class Gate(Section):
    """What every gate has."""

    action: Action = Field(
        "warn",
        description="Beyond the limit: nothing, a warning, a wait for a person's decision in Prefect, the end of the "
        "run, or a return to an earlier checkpoint with a lower learning rate",
    )
    patience: int = Field(3, ge=1, description="Measured steps in a row beyond the limit")


class TruncatedShareGate(Gate):
    """Completions that were cut at the limit."""

    limit: float = Field(0.8, ge=0, le=1, description="Largest share of truncated completions")


class ZeroVarianceShareGate(Gate):
    """Groups whose rewards are all equal, and which give no gradient."""

    limit: float = Field(0.9, ge=0, le=1, description="Largest share of groups without signal")
    patience: int = Field(5, ge=1, description="Measured steps in a row beyond the limit")


class EntropyGate(Gate):
    """Collapse of the policy's entropy."""

    limit: float = Field(0.02, ge=0, description="Smallest mean entropy of a token in nats")


class MismatchGate(Gate):
    """Sampler against trainer."""

    limit: float = Field(
        0.01, ge=0, description="Largest KL (k3, nats per token) of the step's tokens; needs rollout.sampler_logprobs"
    )
    probe_limit: float = Field(
        0.1, ge=0, description="Largest mean |Δ log p| in nats on the fixed tokens that every push measures"
    )
    patience: int = Field(2, ge=1, description="Measured steps in a row beyond the limit")


class RewardDropGate(Gate):
    """Held-out accuracy (avg@k) against its best value so far."""

    limit: float = Field(0.1, ge=0, le=1, description="Largest fall below the best evaluation, as a share of 1")
    patience: int = Field(2, ge=1, description="Evaluations in a row beyond the limit")


class GradNormGate(Gate):
    """Gradient norm against its running median; a norm that is not finite lies beyond any limit."""

    limit: float = Field(10.0, ge=1, description="Largest gradient norm as a multiple of the running median")
    patience: int = Field(2, ge=1, description="Measured steps in a row beyond the limit")
    window: int = Field(20, ge=2, description="Steps of the running median; judged from half of it on")


class ThroughputDropGate(Gate):
    """Completion tokens per second of the whole step against their running median."""

    limit: float = Field(0.5, ge=0, le=1, description="Smallest throughput as a share of the running median")
    patience: int = Field(5, ge=1, description="Measured steps in a row beyond the limit")
    window: int = Field(20, ge=2, description="Steps of the running median; judged from half of it on")


class HealthConfig(Section):
    """Gates that watch the run."""

    truncated_share: TruncatedShareGate = Field(default_factory=TruncatedShareGate, description="Truncation")
    zero_variance_share: ZeroVarianceShareGate = Field(
        default_factory=ZeroVarianceShareGate, description="Groups without signal"
    )
    entropy: EntropyGate = Field(default_factory=EntropyGate, description="Entropy collapse")
    mismatch_kl: MismatchGate = Field(default_factory=MismatchGate, description="Sampler against trainer")
    reward_drop: RewardDropGate = Field(default_factory=RewardDropGate, description="Falling evaluation")
    grad_norm: GradNormGate = Field(default_factory=GradNormGate, description="Exploding gradient")
    throughput_drop: ThroughputDropGate = Field(default_factory=ThroughputDropGate, description="Falling throughput")
    rollback_lr_factor: float = Field(0.5, gt=0, le=1, description="Learning rate is multiplied by this at a rollback")
    max_rollbacks: int = Field(2, ge=0, description="Rollbacks of a run; a gate that wants one more stops it")
    pause_timeout_s: int = Field(
        86_400, ge=1, le=2_592_000, description="Seconds that a paused run waits for a decision; then it stops"
    )

    def rules(self) -> list[Rule]:
        """The gates as the functions of `drgrpo.health` take them."""
        cut, equal, entropy, mismatch = self.truncated_share, self.zero_variance_share, self.entropy, self.mismatch_kl
        drop, norm, speed = self.reward_drop, self.grad_norm, self.throughput_drop
        return [
            _rule("truncated_share", "rollout/truncated_share", "above", cut, cut.limit),
            _rule("zero_variance_share", "rollout/zero_variance_share", "above", equal, equal.limit),
            _rule("entropy", "update/entropy", "below", entropy, entropy.limit),
            _rule("mismatch_kl", "update/mismatch_k3", "above", mismatch, mismatch.limit),
            _rule("mismatch_kl", "update/invalid_sampler_logprobs", "above", mismatch, 0.0),
            _rule("mismatch_kl", "sync/mean_abs_logprob_diff", "above", mismatch, mismatch.probe_limit),
            _rule("reward_drop", "evaluation/avg_at_k", "below_best", drop, drop.limit),
            _rule("grad_norm", "update/grad_norm", "times_median", norm, norm.limit, norm.window),
            _rule("throughput_drop", STEP_TOKENS_PER_S, "share_of_median", speed, speed.limit, speed.window),
        ]


def _rule(gate: str, metric: str, kind: Kind, section: Gate, limit: float, window: int = 0) -> Rule:
    return Rule(gate, metric, kind, section.action, limit, section.patience, window)
