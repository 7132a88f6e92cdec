// Node's fetch: GATEWAY_URL stands for the API's base URL, GATEWAY_TOKEN for its key.

const { GATEWAY_URL, GATEWAY_TOKEN } = process.env;
const answer = await fetch(`${GATEWAY_URL}/chat/completions`, {
  method: "POST",
  headers: { authorization: `Bearer ${GATEWAY_TOKEN}`, "content-type": "application/json" },
  body: JSON.stringify({ model: "gpt-5.4-mini", messages: [{ role: "user", content: "Hello?" }] }),
});
const said = await answer.json();
if (!answer.ok) throw new Error(`${answer.status}: ${said.error.message}`);
console.log(said.choices[0].message.content);
