"""Which budgets a token's requests are reserved under, and what a refusal by one of them says."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from gateway.admission import MAX_BUDGETS, Admission
from gateway.budgets.book import NEVER_US
from gateway.budgets.family import GatewayBudgets
from gateway.budgets.grammar import parse_budgets, written
from gateway.budgets.spending import Ask, Mark, Settlement
from gateway.errors import BudgetExceeded, RateLimited, TokenInvalid, TokenRevoked
from gateway.limits import parse_limits
from gateway.stores import REVOKED
from gateway.stores.ledger import SpendVerdict
from gateway.stores.memory import MemoryStore
from gateway.tokens import Claims, TokenSigner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget
    from gateway.limits import Policy
    from gateway.stores import Verdict, Waiter
    from gateway.stores.ledger import Ledger, SpendPlan, SpendStore

LIMITS = parse_limits("5/minute")
AT_MAPS = parse_limits("7/hour")
BUDGETS = GatewayBudgets(parse_budgets("5 USD/day"), parse_budgets("100 USD/month", shared=True))
ASK = Ask("r1", {"USD": 1000})
SETTLED = Settlement({"USD": 900}, Mark.EXACT, "{}")


class Spends:
    """A store that only notes what it is asked to reserve and settle, and refuses as it is told."""

    def __init__(self) -> None:
        self._limits = MemoryStore()
        self.plan = self._limits.plan
        self.note = self._limits.note
        self.plans: list[tuple[str, list[str], list[str]]] = []
        self.reserved: list[tuple[SpendPlan, Ask]] = []
        self.settled: list[tuple[SpendPlan, Ask, int, Settlement]] = []

    @property
    def ledger(self) -> Ledger:
        return cast("Ledger", self)

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> SpendPlan:
        labels = [policy.label for policy in policies], [f"{one.label}: {written(one)}" for one in budgets]
        self.plans.append((subject, *labels))
        return cast("SpendPlan", self.plans[-1])

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        self.reserved.append((plan, ask))
        waiter.on_verdict(refused(0, 0, 0))

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        self.settled.append((plan, ask, granted, settlement))


class Asked:
    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_store_loss(self, error: Exception) -> None:
        raise error


def refused(policy: int, reset_us: int, *used: int) -> SpendVerdict:
    verdict = SpendVerdict(admitted=False, policy=policy, remaining=0, reset_us=reset_us, at_us=0)
    verdict.used = used
    return verdict


def made(budgets: GatewayBudgets = BUDGETS) -> tuple[Admission, Spends]:
    store = Spends()
    signer = TokenSigner([b"s" * 32])
    return Admission(cast("SpendStore", store), signer, LIMITS, (), None, budgets=budgets), store


def test_a_request_is_reserved_under_limits_and_budgets_by_a_plan_that_is_made_when_it_is_needed() -> None:
    admission, store = made()
    token, claims = admission.issue(0.0)
    subject = admission.authenticate(token.encode(), 0.0)
    assert store.plans == []
    asked = Asked()
    for _ in range(2):
        admission.reserve(subject, ASK, asked)
    admission.settle(subject, ASK, 7, SETTLED)
    plan = (claims.id, ["minute"], ["day-USD: 5 USD/day", "global-month-USD: 100 USD/month"])
    assert store.plans == [plan]
    assert store.reserved == [(plan, ASK)] * 2
    assert store.settled == [(plan, ASK, 7, SETTLED)]
    assert len(asked.verdicts) == 2


def test_a_token_brings_its_own_and_a_childs_count_for_its_parents() -> None:
    admission, _ = made()
    parent = admission.authenticate(admission.issue(0.0, budgets=["1 USD/hour"])[0].encode(), 0.0)
    child, claims = admission.issue_child(parent, 0.0, budgets=["9 tokens/minute", "2 USD/week"])
    assert (claims.budgets, claims.above_budgets) == (("9 tokens/minute", "2 USD/week"), (("1 USD/hour",),))
    subject = admission.authenticate(child.encode(), 0.0)
    assert [budget.label for budget in subject.budgets] == [
        "1m-tokens",
        "week-USD",
        "parent-1h-USD",
        "global-month-USD",
    ]
    # A family of which nobody has budgets of its own says nothing of them: its tokens stay as short as they were.
    plain = admission.authenticate(admission.issue(0.0)[0].encode(), 0.0)
    assert admission.issue_child(plain, 0.0)[1].above_budgets == ()
    middle = admission.authenticate(admission.issue_child(plain, 0.0, budgets=["1 USD/day"])[0].encode(), 0.0)
    assert admission.issue_child(middle, 0.0)[1].above_budgets == (None, ("1 USD/day",))


def test_a_target_has_limits_of_its_own_and_the_same_budgets_and_a_reload_has_others() -> None:
    admission, store = made()
    token = admission.issue(0.0)[0].encode()
    at_maps = admission.beside("maps", AT_MAPS)
    renewed = admission.renewed(
        TokenSigner([b"s" * 32]), LIMITS, (), None, shadow=False, budgets=GatewayBudgets(parse_budgets("6 USD/day"))
    )
    for one in (at_maps, renewed, renewed.beside("maps", AT_MAPS)):
        one.reserve(one.authenticate(token, 0.0), ASK, Asked())
    assert [(limits, budgets) for _, limits, budgets in store.plans] == [
        (["minute", "hour"], ["day-USD: 5 USD/day", "global-month-USD: 100 USD/month"]),
        (["minute"], ["day-USD: 6 USD/day"]),
        (["minute", "hour"], ["day-USD: 6 USD/day"]),
    ]


@pytest.mark.parametrize("budgets", [["many"], [], ["5 EUR/day"], ["1 USD/day", "2 USD/day"], ["1,000 USD/day"]])
def test_no_token_is_issued_with_what_is_no_budget(budgets: list[str]) -> None:
    admission, _ = made()
    with pytest.raises(ValueError, match=r"; e\.g\. 5 USD/day"):
        admission.issue(0.0, budgets=budgets)


def eight(generation: int) -> list[str]:
    return [f"1 unit{generation}{number}/day" for number in range(8)]


def test_no_token_is_issued_or_taken_that_is_under_more_budgets_than_are_checked_at_once() -> None:
    admission, _ = made(GatewayBudgets())
    parent = admission.authenticate(admission.issue(0.0, budgets=eight(1))[0].encode(), 0.0)
    child = admission.authenticate(admission.issue_child(parent, 0.0, budgets=eight(2))[0].encode(), 0.0)
    with pytest.raises(ValueError, match=r"under 24 budgets, .* no more than 20 are checked at once"):
        admission.issue_child(child, 0.0, budgets=eight(3))
    good, _ = admission.issue_child(child, 0.0, budgets=eight(3)[:4])
    assert len(admission.authenticate(good.encode(), 0.0).budgets) == MAX_BUDGETS
    with pytest.raises(TokenInvalid, match="more than 20 budgets"):
        made()[0].authenticate(good.encode(), 0.0)


def test_a_token_with_a_budget_of_another_version_is_refused_and_not_free_of_it() -> None:
    token = TokenSigner([b"s" * 32]).issue(Claims(id="a", issued_at_s=0, budgets=("5 USD/century",)))
    with pytest.raises(TokenInvalid, match="limits or budgets that this version"):
        made()[0].authenticate(token.encode(), 0.0)


def test_a_token_with_a_budget_that_would_be_forgotten_is_not_issued_and_not_taken() -> None:
    forgetful, _ = made(GatewayBudgets(forgets=True))
    with pytest.raises(ValueError, match="a budget of a day or longer"):
        forgetful.issue(0.0, budgets=["5 USD/day"])
    token, _ = made()[0].issue(0.0, budgets=["5 USD/day"])
    with pytest.raises(TokenInvalid, match=r"^The token has a budget of a day or longer, .* to outlive a restart\.$"):
        forgetful.authenticate(token.encode(), 0.0)


def test_a_refusal_names_the_budget_and_a_limits_the_limit() -> None:
    admission, _ = made()
    subject = admission.authenticate(admission.issue(0.0)[0].encode(), 0.0)
    error = admission.refusal(subject, refused(2, 7_200_000_000, 0, 99_500_000_000), 0.0)
    assert isinstance(error, BudgetExceeded)
    assert (error.budget, error.used, error.limit, error.reset) == (
        "global-month-USD",
        99.5,
        100,
        "1970-01-01T02:00:00Z",
    )
    error = admission.refusal(subject, refused(1, NEVER_US, 0, 0))
    assert isinstance(error, BudgetExceeded)
    assert (error.budget, error.retry_after_us, error.reset) == ("day-USD", None, None)
    error = admission.refusal(subject, refused(0, 1_000_000, 0, 0))
    assert isinstance(error, RateLimited)
    assert error.policy == "minute"
    assert isinstance(admission.refusal(subject, refused(REVOKED, 0)), TokenRevoked)
    # How the limits stand is not known where a budget refuses.
    assert subject.limit_lines(refused(1, 1, 0, 0)) == b'\r\nRateLimit-Policy: "minute";q=5;w=60'


def test_what_is_kept_of_a_token_for_people_says_its_budgets() -> None:
    admission, _ = made()
    parent = admission.authenticate(admission.issue(0.0, budgets=["1 USD/hour", "2 USD/day"])[0].encode(), 0.0)
    child = admission.authenticate(admission.issue_child(parent, 0.0)[0].encode(), 0.0)
    assert parent.about()["budgets"] == "1 USD/hour,2 USD/day"
    assert child.about()["above_budgets"] == '["1 USD/hour,2 USD/day"]'
    assert "budgets" not in child.about()
