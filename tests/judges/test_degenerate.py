import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.judges.degenerate import degenerate


@pytest.mark.parametrize("text", ["", "   \n", "...", "```\n```", "!?!"])
def test_empty(text):
    assert degenerate(text) == "empty"


@pytest.mark.parametrize(
    "text",
    [
        "Boil an egg: Boil an egg: Boil an egg: Boil an egg: Boil an egg:",
        "1. 1. 1. 1. 1. 1. 1. 1. 1. 1. 1. 1. 1. 1.",
        "1. Vienna\n2. Vienna\n3. Vienna\n4. Vienna\n5. Vienna\n6. Vienna\n7. Vienna\n8. Vienna",
        "The lake is deep. " + "I have seen it too. " * 6,
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "I can't help with that.\n\n" * 5,
        "你好吗朋友" * 8,
    ],
)
def test_looping(text):
    assert degenerate(text) == "looping"


@pytest.mark.parametrize(
    "text",
    [
        "xkcdq zrtw pqlm vbnh kjwq zzxt mnbv wrtp",
        ")(*&^ %$#@ ,,;; {}[] <<>> //|| ~~ == ++ word",
        "iIxXqQzZ aBcDeFgH xYzXyZaA qWeRtYuI",
        "the\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd",
        "aйbцcуdк eеfнgг hшiщjз kхlъmф",
    ],
)
def test_gibberish(text):
    assert degenerate(text) == "gibberish"


@pytest.mark.parametrize(
    "text",
    [
        "56",
        "No.",
        "Sorry, but I can't help with that.",
        "To boil an egg, bring water to the boil, lower the egg into it with a spoon and wai",  # cut by the limit
        "Ha ha ha ha!",
        "1. Tomatoes\n2. Cucumbers\n3. Red onions\n4. Feta\n5. Olives",
        "1. **Plan**: write a list.\n2. **Prepare**: read the list.\n3. **Begin**: follow the list.",
        "def f(x):\n    return {k: v for k, v in x.items() if v > 0}\n\nprint(f({'a': 1, 'b': -1}))",
        "3 + 4 * 2 / (1 - 5) = 1\n12 / 4 = 3",
        "3.14159265358979323846264338327950288",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
        "Der schlecht gelaunte Angstschweiß tropft auf Rechtsschutzversicherungsgesellschaften.",
        "Простите, но я не могу помочь с этой просьбой.",
        "申し訳ありませんが、そのご依頼にはお応えできません。",
        "عذرًا، لا أستطيع المساعدة في هذا الطلب.",
        "Tôi rất tiếc, nhưng tôi không thể giúp bạn việc này.",
        "The NHS, the BBC and the HTML5 API of iPhones and YouTube.",
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    ],
)
def test_answers_are_not_degenerate(text):
    assert degenerate(text) is None


def test_a_loop_at_the_end_of_a_longer_answer_is_tolerated():
    answer = (
        "Bring a pot of water to the boil, put in the egg with a spoon, wait for seven minutes, and cool it in ice. "
    )
    assert degenerate(answer + "Enjoy your egg! " * 4) is None
    assert degenerate(answer + "Enjoy your egg! " * 9) == "looping"


@settings(max_examples=50)
@given(st.text(alphabet=st.characters(categories=["L"]), min_size=1, max_size=40), st.integers(30, 60))
def test_anything_said_thirty_times_is_a_loop(unit, times):
    assert degenerate((unit + " ") * times) == "looping"


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_any_text_gets_one_of_four_results(text):
    assert degenerate(text) in {None, "empty", "looping", "gibberish"}
