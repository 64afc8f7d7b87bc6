"""One bank and one general broker for all foreign tests of a run."""
import pytest

from installation import ROOT, VAR, Installation, Node, free_port, papers


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
    """A general broker, of config/open.toml, that takes WebSockets too."""
    folder = tmp_path_factory.mktemp("broker")
    papers(folder)
    port, ws, wss = free_port(), free_port(), free_port()
    environment = {
        "WAKALA_LISTENER__TLS__ADDRESS": f"127.0.0.1:{free_port()}",
        "WAKALA_LISTENER__TLS__FILES__CERTIFICATE": str(folder / "server.pem"),
        "WAKALA_LISTENER__TLS__FILES__KEY": str(folder / "server.key"),
        "WAKALA_LISTENER__WEBSOCKET__PLAIN": f"127.0.0.1:{ws}",
        "WAKALA_LISTENER__WEBSOCKET__TLS": f"127.0.0.1:{wss}",
    }
    profile = ["--config", ROOT / "config/open.toml", "--port", str(port)]
    node = Node(folder, VAR / "foreign-broker", "wakala_open", *profile, **environment)
    node.port, node.ws, node.wss, node.authority = port, ws, wss, folder / "ca.pem"
    try:
        node.start_node(first=True)
        yield node
    finally:
        node.close()
