"""An echo server on asyncio: greets first, then sends back what it gets."""

import asyncio
import sys


async def serve(reader, writer):
    writer.write(b"220 asyncio\r\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


asyncio.run(main())
