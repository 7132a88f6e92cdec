"""httpx: GATEWAY_URL is the base URL in place of the API's, GATEWAY_TOKEN the key. A 429 says when to come back."""

import os
import sys

import httpx

headers = {"Authorization": f"Bearer {os.environ['GATEWAY_TOKEN']}"}
with httpx.Client(base_url=os.environ["GATEWAY_URL"], headers=headers) as client:
    answer = client.get("/models")
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        sys.exit(f"the limit is reached; there is a place in {answer.headers['Retry-After']} s")
    answer.raise_for_status()
    for model in answer.json()["data"]:
        print(model["id"])
