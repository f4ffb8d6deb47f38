"""An MLflow store for the tests of tracking."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database; migrating takes seconds, copying does not."""
    from drgrpo.tracking import check_tracking_uri

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    check_tracking_uri(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    """Address of an empty store."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
