"""`gateway reconcile`: an invoice against the ledger, by the upstream's request ids, to the last digit."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.spending import Mark
from gateway.cli import main
from gateway.ledger.invoice import Billed, InvoiceError, read_invoice, reconcile
from gateway.ledger.reconcile import usd
from tests.kit.ledger import FakeLedger, entry, reserved, serving_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CENT = Fraction(1, 100)


def read(text: str, id_column: str | None = None, cost_column: str | None = None) -> list[Billed]:
    return read_invoice(io.StringIO(text, newline=""), id_column, cost_column)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "request_id,cost_usd\nreq_a,0.01\n",
        "\ufeffrequest_id,cost_usd\r\nreq_a,0.01\r\n",
        '"Request ID","Cost"\n"req_a","$0.01"\n',
        "time;model;X-Request-Id;Amount\n1;m;req_a;.01\n",
        "id\trequest_id\tcost\n7\treq_a\t1e-2",
        'note,id,amount\n"two\nlines",req_a,0.010\n\n',
        "\n\nrequest_id,cost_usd\n\nreq_a,0.01\n,\n",
    ],
)
def test_what_programs_and_spreadsheets_write(text: str) -> None:
    ((upstream_id, amount, _),) = read(text)
    assert (upstream_id, amount) == ("req_a", CENT)


def test_columns_by_name() -> None:
    text = "request_id,cost,Ref No,net\nx,1,req_a,0.01\n"
    assert read(text, "ref no", "Net")[0][:2] == ("req_a", CENT)


def test_several_lines_of_a_request_are_added_up() -> None:
    text = "request_id,cost\na,0.1\nb,1\na,0.2\na,-0.05\n"
    assert read(text) == [Billed("a", Fraction(1, 4), (2, 4, 5)), Billed("b", Fraction(1), (3,))]


def test_the_line_of_a_row_is_where_it_begins() -> None:
    text = 'request_id,cost,note\na,1,"x\ny\nz"\n\nb,2,\n'
    assert [one.lines for one in read(text)] == [(2,), (6,)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not even a head"),
        ("when,what\n1,2\n", "line 1: no column seems to have the request ids"),
        ("request_id,what\n1,2\n", "line 1: no column seems to have the costs"),
        ("request_id,cost,Cost\n1,2,3\n", "line 1: two columns are named 'cost'"),
        ("request_id,cost\na,0.01\nb,12 cents\n", "line 3, column 'cost': '12 cents' is not an amount"),
        ("request_id,cost\na,\n", "line 2, column 'cost': '' is not an amount"),
        ("request_id;cost\na;0,01\n", "line 2, column 'cost': '0,01' is not an amount"),
        ("request_id,cost\na,nan\n", "'nan' is not an amount"),
        ("request_id,cost\na,1e999999\n", "is not an amount"),
        ("request_id,cost\na,1,2\n", "line 2: 3 columns, not the 2 of the head"),
        ('request_id,cost\na,1\n"b,2\n', "line 3: unexpected end of data"),
        ('request_id,cost\n"b"x,2\n', "line 2: "),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(InvoiceError) as caught:
        read(text)
    assert says in str(caught.value)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(InvoiceError, match="line 1: no column is named 'net'"):
        read("request_id,cost\na,1\n", None, "net")


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_amounts_are_spelled_exactly(digits: int, places: int) -> None:
    amount = Fraction(digits, 10**places)
    assert read(f"id,cost\na,{usd(amount)}\n")[0].usd == amount


# --- comparing -------------------------------------------------------------------------------------------------------


def test_who_agrees() -> None:
    held = [
        entry("a", cost={"USD": 12_346}),  # rounded up: the ledger has no smaller parts
        entry("b", cost={}, mark=Mark.RELEASED),
        entry("c", cost={"USD": 0}, status=500),
        entry("d", cost={"tokens": 12}),
    ]
    billed = read("request_id,cost\nreq_a,0.0000123456789\nreq_b,0\n")
    compared = reconcile(billed, held)
    assert (compared.agrees, compared.agreed) == (True, 2)


def test_who_does_not() -> None:
    held = [
        entry("same"),
        entry("less", cost={"USD": 10_000_001}),
        entry("mine"),
        entry("cut", upstream_id="", mark=Mark.ESTIMATED),
        entry("free", cost={"USD": 0}),
    ]
    billed = read("request_id,cost\nreq_same,0.01\nreq_less,0.01\nreq_free,0.000000001\nreq_yours,0.5\n,0.25\n")
    compared = reconcile(billed, held)
    assert [one.id for one in compared.only_held] == ["mine", "cut"]
    assert [(one.upstream_id, one.lines) for one in compared.only_billed] == [("req_yours", (5,)), ("", (6,))]
    assert [pair.billed.upstream_id for pair in compared.different] == ["req_less", "req_free"]
    assert (compared.agrees, compared.agreed, compared.held) == (False, 1, 40_000_001)
    assert compared.billed_usd == Fraction("0.770000001")


def test_a_request_that_was_billed_twice_differs() -> None:
    compared = reconcile(read("request_id,cost\nreq_a,0.01\nreq_a,0.01\n"), [entry("a")])
    assert ([pair.billed.lines for pair in compared.different], compared.repeated) == ([(2, 3)], 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**12)), max_size=30))
@settings(max_examples=100, deadline=None)
def test_an_invoice_of_what_is_held_agrees_however_it_is_cut(costs: list[tuple[int, int]]) -> None:
    held = [entry(f"{number}", upstream_id=f"u{name}", cost={"USD": c}) for number, (name, c) in enumerate(costs)]
    lines = [f"u{name},{usd(Fraction(c, 10**9))}" for name, c in costs]
    compared = reconcile(read("\n".join(["id,cost", *lines])), held)
    assert compared.agrees
    assert compared.billed_usd * 10**9 == compared.held


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served_once() -> Iterator[tuple[FakeLedger, str]]:
    ledger = FakeLedger()
    with serving_ledger(ledger) as url:
        yield ledger, url


def run(url: str, invoice: Path, *arguments: str) -> int:
    return main(["reconcile", str(invoice), "--url", url, *arguments])


def test_agreeing_is_0_and_differing_1(
    served_once: tuple[FakeLedger, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, url = served_once
    ledger.settled, ledger.reserved = [entry("a"), entry("b")], [reserved("c")]
    invoice = tmp_path / "invoice.csv"
    invoice.write_text("request_id,cost_usd\nreq_a,0.01\nreq_b,0.01\n", encoding="utf-8")
    assert run(url, invoice) == 0
    assert capsys.readouterr().out == (
        "2 requests agree, 0 do not\nbilled 0.02 USD, held 0.02 USD: as much\n1 open: 0.02 USD held, and not compared\n"
    )
    ledger.settled, ledger.reserved = [entry("a"), entry("b", mark=Mark.ESTIMATED), entry("d")], []
    invoice.write_text("request_id,cost_usd\nreq_a,0.01\nreq_b,0.003\nreq_\x1b[2J,1\nreq_a,0\n", encoding="utf-8")
    assert run(url, invoice) == 1
    at = "1970-01-01T01:00:00Z"
    assert capsys.readouterr().out.splitlines() == [
        "billed and not held: 1",
        "  req_?[2J  1 USD  line 4",
        "",
        "held and not billed: 1",
        f"  req_d  0.01 USD  exact  request d  token agent  {at}",
        "",
        "different amounts: 1",
        f"  req_b  billed 0.003 USD  held 0.01 USD  estimated  request b  token agent  {at}  line 3",
        "",
        "1 requests agree, 3 do not (1 of several lines, added up)",
        "billed 1.013 USD, held 0.03 USD: 0.983 USD more billed than held",
    ]


def test_only_what_was_settled_then_is_compared(
    served_once: tuple[FakeLedger, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, url = served_once
    ledger.settled, ledger.reserved = [entry(str(second), second * 1_000_000) for second in (1, 3600, 7200)], []
    invoice = tmp_path / "invoice.csv"
    invoice.write_text("id,cost\nreq_3600,0.01\n", encoding="utf-8")
    assert run(url, invoice, "--since", "1970-01-01T01:00:00Z", "--until", "1970-01-01T02:00:00Z") == 0
    assert run(url, invoice, "--since", "1970-01-01") == 1
    assert "held and not billed: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"id,cost\na,1\nb\xff,2\n", "line 3: is not UTF-8"), (b"id,cost\na,x\n", "line 2, column 'cost'")],
)
def test_an_invoice_that_cannot_be_read_is_one_line(
    content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invoice = tmp_path / "invoice.csv"
    invoice.write_bytes(content)
    assert run("http://127.0.0.1:1", invoice) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_an_invoice_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", tmp_path / "none.csv") == 1
    assert "none.csv" in capsys.readouterr().err
