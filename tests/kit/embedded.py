"""`python -m tests.kit.embedded`: a program with a gateway in it, on asyncio's own loop; started like the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from gateway import Gateway
from gateway.config import load


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with Gateway(load(arguments={}, environ=os.environ, file=None)) as gateway:
        await stopping.wait()
        await gateway.drain()


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(main())
