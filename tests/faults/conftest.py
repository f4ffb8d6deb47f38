"""What the tests of the flows have, a server, a store, the tiny model; and the server's address for other processes."""

from collections.abc import Iterator

import pytest

from tests.flows.conftest import data, empty_store, machine, options, prefect_server, tiny_model

__all__ = ["data", "empty_store", "machine", "options", "prefect_server", "server_address", "tiny_model"]


@pytest.fixture(scope="module")
def server_address(prefect_server: None) -> Iterator[None]:
    """The processes that a test starts use the tests' server."""
    from prefect.settings import PREFECT_API_URL

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        yield
