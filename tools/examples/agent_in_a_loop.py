"""An agent that never finds it is done, and sends all that was said so far each time: its token's budget stops it."""

from openai import OpenAI, RateLimitError
from openai.types.chat import ChatCompletionMessageParam

client = OpenAI()
said: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Make all tests pass, and say DONE."}]
turns = 0
answer = ""
try:
    while "DONE" not in answer:
        completion = client.chat.completions.create(
            model="gpt-5.5",
            messages=said,
            max_completion_tokens=500,
        )
        answer = completion.choices[0].message.content or ""
        said.append({"role": "assistant", "content": answer})
        said.append({"role": "user", "content": "One test still fails. Look at its output, and go on."})
        turns += 1
except RateLimitError as error:
    if error.code != "budget_exceeded":
        raise
    print(f"Stopped after {turns} turns: {error.response.json()['detail']}")
