"""One installation for all foreign tests of a run."""
import pytest

from installation import Installation


@pytest.fixture(scope="session")
def wakala(tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("wakala"))
    try:
        installation.set_up()
        yield installation
    finally:
        installation.close()
        installation.write_secrets()
