"""What a killed process leaves on the machine: its id is in each such name of ours, so that it can be removed."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

_OF_SHARED_MEMORY = re.compile(r"(?:drgrpo-staging-|deepspeed_allreduce_buffer_\d+_drgrpo-)(\d+)[-_]")


def staging_prefix() -> str:
    """How this process's staging buffers in shared memory begin."""
    return f"drgrpo-staging-{os.getpid()}-"


def buffer_owner(pid: int) -> str:
    """What DeepSpeed is told as its address, because it names its all-reduce buffers by that; `pid` is rank 0's."""
    return f"drgrpo-{pid}"


def reduce_buffer(pid: int, port: int, rank: int) -> Path:
    """A rank's all-reduce buffer, 66 MB; `pid` and `port` are rank 0's."""
    return SHARED_MEMORY / f"deepspeed_allreduce_buffer_{os.getuid()}_{buffer_owner(pid)}_{port}_{rank}"


def orphans(folder: Path = SHARED_MEMORY, pattern: re.Pattern[str] = _OF_SHARED_MEMORY) -> Iterator[Path]:
    """This user's paths in `folder` whose names begin with `pattern`, where its group is the id of a process that is
    gone."""
    for path in folder.iterdir():
        owner = pattern.match(path.name)
        if owner is None or Path(f"/proc/{owner[1]}").exists():
            continue
        with suppress(FileNotFoundError):
            if path.lstat().st_uid == os.getuid():
                yield path
