"""Talks to websocket_server.py: URL, and how many seconds of silence it keeps in between.
Prints what came of it, in one line."""

import asyncio
import os
import sys

import websockets


async def talk(connection, pause):
    told = [f"subprotocol={connection.subprotocol}"]
    for message in ("hello", os.urandom(3 << 20), ""):
        await connection.send(message)
        told.append(str(await connection.recv() == message))
    await asyncio.wait_for(await connection.ping(), 5)
    await asyncio.sleep(pause)
    await connection.send("after")
    told.append(await connection.recv())
    await connection.send("close")
    try:
        await connection.recv()
    except websockets.ConnectionClosed as closed:
        told.append(f"closed={closed.code}")
    return " ".join(told)


async def main(url, pause):
    try:
        connecting = websockets.connect(
            url, subprotocols=["chat"], max_size=None, ping_interval=None
        )
        async with connecting as connection:
            return await talk(connection, pause)
    except websockets.InvalidStatusCode as refused:
        return f"refused={refused.status_code}"
    except websockets.ConnectionClosed:
        return "lost"


print(asyncio.run(main(sys.argv[1], float(sys.argv[2]))))
