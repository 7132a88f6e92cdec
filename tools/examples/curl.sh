#!/bin/sh
# curl: GATEWAY_URL stands for the API's base URL, GATEWAY_TOKEN for its key. `--retry` waits as long as a 429 says.
set -eu

# The token comes through a pipe: whoever is on the machine can read a command line.
printf 'Authorization: Bearer %s\n' "$GATEWAY_TOKEN" |
    curl --silent --show-error --fail-with-body --retry 3 --header @- "$GATEWAY_URL/models"
