"""A streamed answer with OpenAI's SDK: each word as it comes. It reads OPENAI_BASE_URL and OPENAI_API_KEY."""

from openai import OpenAI

client = OpenAI()
stream = client.chat.completions.create(
    model="gpt-5.4-mini",
    messages=[{"role": "user", "content": "Hello?"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
