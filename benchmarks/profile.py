"""What a GPU and its host spent their time on."""

from collections.abc import Callable


def profile(work: Callable[[], object]) -> str:
    """Run `work`; the kernels that took the device longest, then the calls that took the host longest."""
    import torch

    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profiler:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    orders = ("self_device_time_total", "self_cpu_time_total")
    return "\n".join(averages.table(sort_by=key, row_limit=40, max_name_column_width=80) for key in orders)
