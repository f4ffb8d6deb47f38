"""Settings in one word of the command line: `tokens=16384,recompute` is {"tokens": 16384, "recompute": 1}."""

Options = dict[str, float]


def parse_options(text: str) -> Options:
    """Names and numbers of comma-separated `name=number`; a bare name is 1. Raises ValueError for another value."""
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: float(value) if value else 1.0 for name, _, value in pairs}
