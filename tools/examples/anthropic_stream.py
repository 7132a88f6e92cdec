"""A streamed answer with Anthropic's SDK: each word as it comes. The environment is that of anthropic_sync.py."""

from anthropic import Anthropic

client = Anthropic()
with client.messages.stream(
    model="claude-haiku-5-5",
    max_tokens=64,
    messages=[{"role": "user", "content": "Hello?"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
