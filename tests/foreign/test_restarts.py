"""Nodes are restarted without anybody's losing anything."""
import os

from upgrade import upgrade


def test_two_nodes_that_are_restarted_one_after_the_other_lose_nothing(broker, tmp_path):
    program = os.readlink(f"/proc/{broker.node_pid()}/exe")
    # Longer than it takes: half of the clients move from the one to the other, and all of them back.
    assert upgrade(tmp_path, program, program, messages=1000) == 0
