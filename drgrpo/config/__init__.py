"""Training configuration: one frozen pydantic model, dotted overrides, checks that name field, value and remedy."""

from drgrpo.config.train import TrainConfig

__all__ = ["TrainConfig"]
