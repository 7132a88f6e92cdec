"""HTTP/1.1 without I/O: bytes become messages, messages become bytes (RFC 9110, RFC 9112).

Nouns: a `RequestHead` or `AnswerHead` (message.py) comes out of a parser (parser.py, whose fast path only takes
what h11 takes too; gate.py refuses on the raw bytes what h11 would let through); `framing.py` says where a body
ends and `chunked.py` walks one; `fields.py` knows what each field name means to a gateway; `writer.py` makes the
gateway's own answers. Nothing here knows a socket, a clock, a limit or a token.
"""
