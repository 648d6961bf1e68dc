"""Says every WebSocket message back; "close" ends the connection with a code of its own."""

import asyncio
import sys

import websockets


async def echo(connection):
    async for message in connection:
        if message == "close":
            return await connection.close(4001, "asked")
        await connection.send(message)


async def main():
    host, port = "0.0.0.0", int(sys.argv[1])
    async with websockets.serve(echo, host, port, max_size=None, subprotocols=["chat"]):
        await asyncio.Future()


asyncio.run(main())
