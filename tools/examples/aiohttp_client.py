"""aiohttp: server-sent events as they come. GATEWAY_URL stands for the API's base URL, GATEWAY_TOKEN for its key."""

import asyncio
import os

import aiohttp


async def main() -> None:
    headers = {"Authorization": f"Bearer {os.environ['GATEWAY_TOKEN']}"}
    asked = {"model": "gpt-5.4-mini", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
        session.post(f"{os.environ['GATEWAY_URL']}/chat/completions", json=asked) as answer,
    ):
        async for line in answer.content:
            if line.strip():
                print(line.decode().strip(), flush=True)


asyncio.run(main())
