"""The whole training configuration and the quantities that follow from it."""

from pydantic import Field

from drgrpo.config.health import HealthConfig
from drgrpo.config.section import Section
from drgrpo.config.sections import (
    AdvNormConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    RewardConfig,
    RolloutConfig,
    TrainerConfig,
)


class TrainConfig(Section):
    """Everything that changes the numbers of a run."""

    total_steps: int = Field(100, ge=1, description="Iterations (rollout, reward, advantage, update)")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of data order and sampling")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Initial weights")
    data: DataConfig = Field(default_factory=DataConfig, description="Problems and prompts")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Sampling")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="Scoring")
    adv_norm: AdvNormConfig = Field(default_factory=AdvNormConfig, description="Advantages")
    loss: LossConfig = Field(default_factory=LossConfig, description="Policy loss")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig, description="Update")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Held-out evaluation")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Checkpoints and export")
    health: HealthConfig = Field(default_factory=HealthConfig, description="Gates that watch the run")
    placement: PlacementConfig = Field(default_factory=PlacementConfig, description="Devices")

    @property
    def completions_per_step(self) -> int:
        """Completions of one rollout: prompts times group size."""
        return self.data.prompts_per_step * self.rollout.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps per rollout."""
        return self.completions_per_step // self.trainer.completions_per_update

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and completion together, in tokens."""
        return self.data.max_prompt_tokens + max(
            self.rollout.max_completion_tokens, self.evaluation.max_completion_tokens
        )
