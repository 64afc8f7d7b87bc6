"""One bank and one general broker for all foreign tests of a run."""
import pytest

from installation import ROOT, VAR, Installation, Node, free_port


@pytest.fixture(scope="session")
def wakala(tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("wakala"))
    try:
        installation.set_up()
        yield installation
    finally:
        installation.close()
        installation.write_secrets()


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """A general broker, of config/open.toml."""
    port = free_port()
    profile = ["--config", ROOT / "config/open.toml", "--port", str(port)]
    node = Node(tmp_path_factory.mktemp("broker"), VAR / "foreign-broker", "wakala_open", *profile)
    node.port = port
    try:
        node.start_node(first=True)
        yield node
    finally:
        node.close()
