"""Checkpoints on disk: whole or ignored, verified by digest, pruned once a newer one is whole. Imports no torch."""

from drgrpo.checkpoints.directory import CheckpointError, FileRecord, checkpoint_path, find_checkpoints, read_manifest
from drgrpo.checkpoints.draft import begin, discard, publish
from drgrpo.checkpoints.files import TensorHeader, read_header, write_json, write_tensors
from drgrpo.checkpoints.keep import best_checkpoint, discard_after, mark_best, prune
from drgrpo.checkpoints.newest import Newest, newest_whole, read_state, read_whole, tensor_shapes

__all__ = [
    "CheckpointError",
    "FileRecord",
    "Newest",
    "TensorHeader",
    "begin",
    "best_checkpoint",
    "checkpoint_path",
    "discard",
    "discard_after",
    "find_checkpoints",
    "mark_best",
    "newest_whole",
    "prune",
    "publish",
    "read_header",
    "read_manifest",
    "read_state",
    "read_whole",
    "tensor_shapes",
    "write_json",
    "write_tensors",
]
