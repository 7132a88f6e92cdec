"""OpenAI's SDK in an asyncio program, with several requests at once; it reads OPENAI_BASE_URL and OPENAI_API_KEY."""

import asyncio

from openai import AsyncOpenAI


async def main() -> None:
    async with AsyncOpenAI() as client:

        async def ask(question: str) -> str | None:
            completion = await client.chat.completions.create(
                model="gpt-5.4-mini",
                messages=[{"role": "user", "content": question}],
            )
            return completion.choices[0].message.content

        for answer in await asyncio.gather(ask("Hello?"), ask("Who is there?"), ask("Still there?")):
            print(answer)


asyncio.run(main())
