"""Anthropic's SDK in an asyncio program, several requests at once. The environment is that of anthropic_sync.py."""

import asyncio

from anthropic import AsyncAnthropic


async def main() -> None:
    async with AsyncAnthropic() as client:

        async def ask(question: str) -> str:
            message = await client.messages.create(
                model="claude-haiku-5-5",
                max_tokens=64,
                messages=[{"role": "user", "content": question}],
            )
            return "".join(part.text for part in message.content if part.type == "text")

        for answer in await asyncio.gather(ask("Hello?"), ask("Who is there?"), ask("Still there?")):
            print(answer)


asyncio.run(main())
