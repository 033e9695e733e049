"""A conversation keeps what was said, as far as it came."""

from __future__ import annotations

from splitpoint.chat.conversation import Conversation


def test_a_conversation_keeps_partial_answers_and_replaces_unanswered_questions() -> None:
    talk = Conversation()
    talk.ask("one")
    talk.answered("half", is_open=False)  # stopped by the user
    assert not talk.ask_again()
    talk.ask("two")
    talk.answered("", is_open=True)  # the server was not there
    assert talk.ask_again()
    talk.answered("lost half", is_open=True)  # lost in the middle
    assert talk.ask_again()
    assert [message["content"] for message in talk.messages] == ["one", "half", "two"]
    talk.ask("three")
    assert [message["content"] for message in talk.messages] == ["one", "half", "three"]
    talk.answered("", is_open=False)  # the model had nothing to say
    assert not talk.ask_again()
    assert talk.messages[-1] == {"role": "assistant", "content": ""}


def test_the_system_message_is_first_replaced_and_survives_clearing() -> None:
    talk = Conversation()
    talk.ask("one")
    talk.answered("yes", is_open=False)
    talk.set_system("be short")
    talk.set_system("be long")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    assert talk.system == "be long"
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "be long"}]
    talk.set_system("")
    assert (talk.messages, talk.num_questions) == ([], 0)
