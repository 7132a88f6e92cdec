"""OpenAI's SDK as it is: it reads OPENAI_BASE_URL and OPENAI_API_KEY, here the gateway's address and a token."""

from openai import OpenAI

client = OpenAI()
completion = client.chat.completions.create(
    model="gpt-5.4-mini",
    messages=[{"role": "user", "content": "Hello?"}],
)
print(completion.choices[0].message.content)
