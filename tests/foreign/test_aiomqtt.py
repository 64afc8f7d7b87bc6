"""A general broker and a client that is written for asyncio: aiomqtt, in both versions, at each QoS, retained and kept.

    scripts/test foreign
"""
import asyncio

import aiomqtt
import pytest

VERSIONS = [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5]


async def hear(client, count):
    heard = []
    async with asyncio.timeout(30):
        async for message in client.messages:
            heard.append((str(message.topic), message.payload, message.qos, message.retain))
            if len(heard) == count:
                return heard


@pytest.mark.parametrize("version", VERSIONS, ids=["3.1.1", "5"])
def test_each_qos_and_retained(broker, version):
    async def talk():
        name, at = f"aio-{version.value}", {"hostname": "127.0.0.1", "port": broker.port, "protocol": version}
        async with aiomqtt.Client(identifier=f"{name}-listens", **at) as listens:
            await listens.subscribe(f"{name}/#", qos=2)
            async with aiomqtt.Client(identifier=f"{name}-speaks", **at) as speaks:
                for qos in [0, 1, 2]:
                    await speaks.publish(f"{name}/{qos}", f"at {qos}", qos=qos, retain=qos == 1)
            assert await hear(listens, 3) == [(f"{name}/{qos}", f"at {qos}".encode(), qos, False) for qos in [0, 1, 2]]
        async with aiomqtt.Client(identifier=f"{name}-later", **at) as later:
            await later.subscribe(f"{name}/1", qos=1)
            assert await hear(later, 1) == [(f"{name}/1", b"at 1", 1, True)]
            await later.publish(f"{name}/1", None, qos=1, retain=True)

    asyncio.run(talk())


def test_a_kept_session_has_its_messages(broker):
    async def talk():
        at = {"hostname": "127.0.0.1", "port": broker.port, "protocol": aiomqtt.ProtocolVersion.V311}
        async with aiomqtt.Client(identifier="aio-kept", clean_session=False, **at) as kept:
            await kept.subscribe("aio/kept", qos=1)
        async with aiomqtt.Client(identifier="aio-speaks", **at) as speaks:
            for n in range(50):
                await speaks.publish("aio/kept", str(n), qos=1)
        async with aiomqtt.Client(identifier="aio-kept", clean_session=False, **at) as kept:
            assert [payload for _, payload, _, _ in await hear(kept, 50)] == [str(n).encode() for n in range(50)]

    asyncio.run(talk())
