import pytest

from ballast.judges.text import beginning, plain, strip_thinking


@pytest.mark.parametrize(
    ("answer", "visible", "still_thinking"),
    [
        ("No thoughts here.", "No thoughts here.", False),
        ("<think>I can't help with that?</think>\n\nSure, here it is.", "Sure, here it is.", False),
        ("<THINKING>hm</THINKING> Yes.", "Yes.", False),
        ("[THINK]hm[/THINK]Yes.", "Yes.", False),
        ("◁think▷hm◁/think▷Yes.", "Yes.", False),
        ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>Yes.", "Yes.", False),
        ("The opening mark was in the prompt.</think>Yes.", "Yes.", False),
        ("<think>one</think> mid <think>two</think> Yes.", "Yes.", False),
        ("<think>The user wants", "", True),
        ("Well. <think>The user wants", "Well.", True),
        ("<think>one</think>Yes. <think>two", "Yes.", True),
        ("I think < 3 is fine, </b>", "I think < 3 is fine, </b>", False),
    ],
)
def test_thinking_is_removed(answer, visible, still_thinking):
    assert strip_thinking(answer) == (visible, still_thinking)


def test_plain_takes_away_typography():
    assert plain("**I’m sorry**, but I *can’t* do “that”.") == "I'm sorry, but I can't do \"that\"."
    assert plain("## Answer\n- one\n> two\n[three](http://x)") == "Answer\none\ntwo\nthree"
    assert plain("2 * 3 * 4 and snake_case") == "2 * 3 * 4 and snake_case"


def test_beginning_counts_sentences_and_characters():
    text = 'First one. Second one! "Third?" Fourth.'
    assert beginning(text, 1, 100) == "First one."
    assert beginning(text, 2, 100) == "First one. Second one!"
    assert beginning(text, 9, 14) == "First one. Sec"
    assert beginning("Title\nBody text.", 1, 100) == "Title"
