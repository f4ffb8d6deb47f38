"""Records of a dataset on the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

from drgrpo.data.errors import DataError
from drgrpo.data.files import Record


def download_records(source: str, *, subset: str, split: str, field: str) -> Iterator[Record]:
    """The rows of one split of a Hub dataset; a copy in the local cache is used where the Hub is out of reach.

    Raises:
        DataError: No such dataset, subset or split, no permission, or neither Hub nor cached copy.
    """
    import datasets
    import huggingface_hub

    cached = Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")
    try:
        if not cached.exists():
            # One request without retries: load_dataset tries for half a minute where there is no network.
            huggingface_hub.HfApi().dataset_info(source, timeout=10)
        dataset = datasets.load_dataset(source, subset or None, split=split)
    except Exception as error:
        raise DataError(
            f"{field} = {source!r}: cannot load subset {subset!r}, split {split!r} from the Hub: {error}; check the "
            f"id, data.subset, {field}_split and the network, set HF_TOKEN for a gated dataset, or name a local "
            f"directory with {split}.jsonl or {split}.parquet, a file, or reasoning_gym:<name>"
        ) from error
    return ((f"{source} row {index}", row) for index, row in enumerate(dataset))
