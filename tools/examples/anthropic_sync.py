"""Anthropic's SDK as it is: it reads ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, here the gateway's address and a token.

The gateway needs TARGET_API_URL=https://api.anthropic.com and TARGET_API_AUTH=header:x-api-key.
"""

from anthropic import Anthropic

client = Anthropic()
message = client.messages.create(
    model="claude-haiku-5-5",
    max_tokens=64,
    messages=[{"role": "user", "content": "Hello?"}],
)
print("".join(part.text for part in message.content if part.type == "text"))
