"""A gateway inside an asyncio program: each worker has a token and limits of its own, none of them has the key."""

import asyncio
import os

from openai import AsyncOpenAI

from gateway import Config, Gateway

CONFIG = Config(
    target_api_url=os.environ.get("TARGET_API_URL", "https://api.openai.com/v1"),
    target_api_key=os.environ["TARGET_API_KEY"],
    global_rate_limit="100/minute",
)


async def work(base_url: str, token: str, question: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key=token) as client:
        completion = await client.chat.completions.create(
            model="gpt-5.4-mini",
            messages=[{"role": "user", "content": question}],
        )
    print(completion.choices[0].message.content)


async def main() -> None:
    async with Gateway(CONFIG) as gateway, asyncio.TaskGroup() as workers:
        for name in ("one", "two"):
            token = gateway.issue_token(name=name, limits=["10/second"])
            workers.create_task(work(f"{gateway.url}/api", token, f"Hello from {name}?"))


asyncio.run(main())
