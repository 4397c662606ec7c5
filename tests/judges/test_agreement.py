import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.errors import JudgeError
from ballast.judges import agreement


def test_a_hand_computed_table():
    # Both yes 20, first yes only 5, second yes only 10, both no 15: p_o = 35/50 = 0.7,
    # p_e = (25 * 30 + 25 * 20) / 2500 = 0.5, kappa = 0.2 / 0.5 = 0.4.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    result = agreement(first, second)
    assert result.n == 50
    assert result.agree == pytest.approx(0.7)
    assert result.kappa == pytest.approx(0.4)


def test_three_labels_by_hand():
    # p_o = 3/4; shares of the first: a 2/4, b 1/4, c 1/4; of the second: a 1/4, b 2/4, c 1/4.
    # p_e = (2 * 1 + 1 * 2 + 1 * 1) / 16 = 5/16; kappa = (12 - 5) / (16 - 5) = 7/11.
    assert agreement(["a", "a", "b", "c"], ["a", "b", "b", "c"]).kappa == pytest.approx(7 / 11)


def test_agreement_that_chance_explains_is_zero():
    # 9 of 10 alike looks good, but the second rater always says yes.
    result = agreement(["yes"] * 9 + ["no"], ["yes"] * 10)
    assert result.agree == pytest.approx(0.9)
    assert result.kappa == pytest.approx(0.0)


def test_complete_disagreement_is_minus_one():
    assert agreement(["a", "b"], ["b", "a"]).kappa == pytest.approx(-1.0)


def test_kappa_is_undefined_when_only_one_label_occurs():
    result = agreement(["yes"] * 3, ["yes"] * 3)
    assert result.agree == 1.0
    assert result.kappa is None
    assert agreement([], []).agree is None


def test_different_lengths_are_refused():
    with pytest.raises(JudgeError, match="same rows"):
        agreement(["a"], ["a", "b"])


@given(st.lists(st.tuples(st.sampled_from("rcd"), st.sampled_from("rcd")), min_size=1))
def test_kappa_is_symmetric_and_bounded(pairs):
    first = [one for one, _ in pairs]
    second = [other for _, other in pairs]
    there, back = agreement(first, second), agreement(second, first)
    assert there == back
    if there.kappa is not None:
        assert -1 <= there.kappa <= 1
        assert (there.kappa == 1) == (first == second)
