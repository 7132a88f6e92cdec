"""Requests that are refused for their first line: its parts, its target, where that leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.http1.message import MAX_LINE_BYTES
from tests.conformance.case import SMUGGLED, Refused, get

if TYPE_CHECKING:
    from tests.conformance.faults import Cases


def starts(**lines: bytes) -> Cases:
    return {name.replace("_", "-"): get(start=line) for name, line in lines.items()}


def targets(**values: bytes) -> Cases:
    return starts(**{name: b"GET " + value + b" HTTP/1.1" for name, value in values.items()})


START_LINES: Final = (
    Refused(
        "request-line",
        "RFC 9112 §3",
        starts(
            two_spaces=b"GET  /api/x HTTP/1.1",
            two_spaces_behind=b"GET /api/x  HTTP/1.1",
            tab=b"GET\t/api/x HTTP/1.1",
            tab_behind=b"GET /api/x\tHTTP/1.1",
            vertical_tab=b"GET\x0b/api/x HTTP/1.1",
            form_feed=b"GET /api/x\x0cHTTP/1.1",
            no_break_space=b"GET\xa0/api/x HTTP/1.1",
            next_line=b"GET /api/x\x85HTTP/1.1",
            space_before=b" GET /api/x HTTP/1.1",
            space_at_the_end=b"GET /api/x HTTP/1.1 ",
            tab_at_the_end=b"GET /api/x HTTP/1.1\t",
            four_parts=b"GET /api/x y HTTP/1.1",
            a_version_too_many=b"GET /api/x HTTP/1.1 HTTP/1.1",
            only_a_method=b"GET",
            no_version=b"GET /api/x",
            no_version_but_a_space=b"GET /api/x ",
            no_target=b"GET HTTP/1.1",
            no_target_but_its_spaces=b"GET  HTTP/1.1",
            nul=b"GET /api/x\x00 HTTP/1.1",
            a_status_line=b"HTTP/1.1 200 OK",
            a_field_first=b"Host: gateway.test",
        ),
    ),
    Refused(
        "method",
        "RFC 9110 §9.1",
        starts(
            parenthesis=b"GE(T /api/x HTTP/1.1",
            colon=b"GET: /api/x HTTP/1.1",
            comma=b"GET, /api/x HTTP/1.1",
            slash=b"GE/T /api/x HTTP/1.1",
            at=b"G@T /api/x HTTP/1.1",
            bracket=b"[GET] /api/x HTTP/1.1",
            quoted=b'"GET" /api/x HTTP/1.1',
            utf_8=b"G\xc3\x89T /api/x HTTP/1.1",
            byte_order_mark=b"\xef\xbb\xbfGET /api/x HTTP/1.1",
            high_bytes=b"\xff\xfe /api/x HTTP/1.1",
            none=b" /api/x HTTP/1.1",
            nul=b"\x00GET /api/x HTTP/1.1",
            delete=b"GET\x7f /api/x HTTP/1.1",
        )
        | {"high-bytes-without-a-line-end": b"\x80\xae\xfe\xff" * 4, "no-token-without-a-line-end": b"{GET}"},
    ),
    Refused(
        "version-malformed",
        "RFC 9112 §2.3",
        starts(
            lower_case=b"GET /api/x http/1.1",
            mixed_case=b"GET /api/x Http/1.1",
            no_minor=b"GET /api/x HTTP/1",
            no_minor_but_a_point=b"GET /api/x HTTP/1.",
            no_major=b"GET /api/x HTTP/.1",
            two_digits=b"GET /api/x HTTP/1.10",
            zero_before=b"GET /api/x HTTP/01.1",
            comma=b"GET /api/x HTTP/1,1",
            letter_behind=b"GET /api/x HTTP/1.1x",
            letter=b"GET /api/x HTTP/1.x",
            plus=b"GET /api/x HTTP/+1.1",
            space=b"GET /api/x HTTP/ 1.1",
            space_for_slash=b"GET /api/x HTTP 1.1",
            no_slash=b"GET /api/x HTTP1.1",
            three_parts=b"GET /api/x HTTP/1.1.1",
            https=b"GET /api/x HTTPS/1.1",
            another_name=b"GET /api/x XHTTP/1.1",
            arabic_digit=b"GET /api/x HTTP/\xd9\xa1.1",
            semicolon=b"GET /api/x HTTP/1.1;q=1",
        ),
    ),
    Refused(
        "version-other",
        "RFC 9110 §15.6.6",
        starts(
            v0_9=b"GET /api/x HTTP/0.9",
            v0_0=b"GET /api/x HTTP/0.0",
            v1_2=b"GET /api/x HTTP/1.2",
            v1_9=b"GET /api/x HTTP/1.9",
            v2_0=b"GET /api/x HTTP/2.0",
            v3_0=b"GET /api/x HTTP/3.0",
            v9_9=b"GET /api/x HTTP/9.9",
        ),
        status=505,
    ),
    Refused(
        "http2-preface",
        "RFC 9113 §3.4",
        {
            "alone": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "with-settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        },
        status=505,
    ),
    Refused(
        "target-bytes",
        "RFC 9112 §3.2",
        targets(
            fragment=b"/api/x#y",
            fragment_in_the_query=b"/api/x?y#z",
            nothing_but_a_fragment=b"#",
            utf_8=b"/api/\xc3\xa9",
            latin_1=b"/api/\xe9",
            no_break_space=b"/api/\xa0x",
            next_line=b"/api/\x85x",
            ff=b"/api/x\xff",
            delete=b"/api/x\x7f",
            control=b"/api/\x01x",
            escape=b"/api/\x1b[2Jx",
            tab=b"/api/\tx",
            utf_8_in_the_query=b"/api/x?y=\xc3\xa9",
            fragment_of_a_url=b"http://api.test:8080/v1/x#y",
        ),
    ),
    Refused(
        "target-form",
        "RFC 9112 §3.2",
        targets(
            no_slash=b"api/x",
            query_only=b"?x",
            backslash=b"\\api\\x",
            asterisk_for_get=b"*",
            asterisk_and_more=b"*/api/x",
            two_asterisks=b"**",
            authority_for_get=b"gateway.test:80",
            percent=b"%2fapi/x",
            another_scheme=b"ftp://api.test:8080/v1/x",
            script=b"javascript:alert(1)",
            file=b"file:///etc/passwd",
            no_host=b"http:///v1/x",
            nothing_but_a_scheme=b"http://",
            one_slash=b"http:/v1/x",
            no_slashes=b"http:v1/x",
            port_only=b"http://:8080/v1/x",
            user=b"http://user@api.test:8080/v1/x",
            user_and_password=b"http://user:word@api.test:8080/v1/x",
            letters_for_port=b"http://api.test:http/v1/x",
            open_bracket=b"http://[::1/v1/x",
            no_ipv6=b"http://[::1::2]/v1/x",
            backslash_in_the_host=b"http://api.test\\@evil.test/v1/x",
        )
        | starts(asterisk_for_post=b"POST * HTTP/1.1", asterisk_for_an_odd_method=b"M-SEARCH * HTTP/1.1"),
    ),
    Refused(
        "connect-malformed",
        "RFC 9112 §3.2.3",
        starts(
            path=b"CONNECT /api/x HTTP/1.1",
            root=b"CONNECT / HTTP/1.1",
            no_port=b"CONNECT api.test HTTP/1.1",
            empty_port=b"CONNECT api.test: HTTP/1.1",
            asterisk=b"CONNECT * HTTP/1.1",
            url=b"CONNECT http://api.test:8080/ HTTP/1.1",
            user=b"CONNECT user@api.test:443 HTTP/1.1",
            path_behind=b"CONNECT api.test:443/x HTTP/1.1",
        ),
    ),
    Refused(
        "connect",
        "RFC 9110 §9.3.6",
        starts(
            name=b"CONNECT api.test:443 HTTP/1.1",
            ipv4=b"CONNECT 127.0.0.1:6379 HTTP/1.1",
            ipv6=b"CONNECT [::1]:443 HTTP/1.1",
            in_1_0=b"CONNECT api.test:443 HTTP/1.0",
        )
        | {"bytes-behind-it": get(start=b"CONNECT api.test:443 HTTP/1.1") + SMUGGLED},
        status=501,
    ),
    Refused(
        "trace",
        "RFC 9110 §9.3.8",
        starts(plain=b"TRACE /api/x HTTP/1.1", in_1_0=b"TRACE /api/x HTTP/1.0")
        | {"max-forwards": get(b"Max-Forwards: 0\r\n", b"TRACE /api/x HTTP/1.1")},
        status=405,
        closes=False,
    ),
    Refused(
        "url-of-no-target",
        "RFC 9110 §7.4",
        targets(
            another_host=b"http://evil.test/v1/x",
            another_port=b"http://api.test:8081/v1/x",
            another_path=b"http://api.test:8080/v2/x",
            the_gateway=b"http://gateway.test/api/x",
            path_that_only_begins_so=b"http://api.test:8080/v11/x",
            the_targets_name_in_the_path=b"http://evil.test/http://api.test:8080/v1/x",
            no_path=b"http://evil.test",
            query_only=b"http://evil.test?x",
            upper_case=b"HTTP://EVIL.TEST/",
            https=b"https://evil.test/v1/x",
            ipv6=b"http://[::1]:80/",
            metadata=b"http://169.254.169.254/latest/meta-data/",
        ),
        status=403,
        closes=False,
    ),
    Refused(
        "path-of-no-target",
        "RFC 9110 §15.5.5",
        targets(
            root=b"/",
            two_slashes=b"//api/x",
            upper_case=b"/API/x",
            longer=b"/apix",
            percent=b"/%61pi/x",
            slash_percent=b"/api%2fx",
            dot_first=b"/./api/x",
            dots_that_lead_in=b"/x/../api/x",
            parameter=b"/api;/x",
            a_url_behind_the_slash=b"/http://api.test:8080/v1/x",
        )
        | starts(asterisk=b"OPTIONS * HTTP/1.1"),
        status=404,
        closes=False,
    ),
    Refused(
        "dot-segments",
        "RFC 3986 §5.2.4",
        targets(
            plain=b"/api/../x",
            at_the_end=b"/api/..",
            with_a_query=b"/api/..?x",
            percent=b"/api/%2e%2e/x",
            percent_upper_case=b"/api/%2E%2E/x",
            half_percent=b"/api/.%2e/x",
            other_half=b"/api/%2e./x",
            deep=b"/api/a/../../x",
            deeper=b"/api/a/b/../../../x",
            slash_percent=b"/api/..%2fx",
            slash_percent_before=b"/api/a%2f..%2f..%2fx",
            slash_percent_that_is_none=b"/api/a%2fb/../../x",
            backslash_that_is_none=b"/api/a\\b/../../x",
            backslash=b"/api/..\\x",
            backslash_percent=b"/api/..%5cx",
            parameter=b"/api/..;/x",
            parameter_with_value=b"/api/..;a=b/x",
            one_dot_first=b"/api/./../x",
            empty_segments=b"/api//../../x",
            back_in=b"/api/../api/x",
            to_the_endpoints=b"/api/../register",
        ),
    ),
    Refused(
        "target-too-long",
        "RFC 9112 §3",
        {
            "by-one": get(start=b"GET /api/" + b"x" * (MAX_LINE_BYTES - 17) + b" HTTP/1.1"),
            "by-far": get(start=b"GET /api/" + b"x" * 40_000 + b" HTTP/1.1"),
            "without-end": b"GET /api/" + b"x" * MAX_LINE_BYTES,
            "without-end-by-far": b"GET /api/" + b"x" * 100_000,
            "a-method": get(start=b"G" * MAX_LINE_BYTES + b" /api/x HTTP/1.1"),
        },
        status=414,
    ),
)
