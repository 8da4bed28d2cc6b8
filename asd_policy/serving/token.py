"""The token that a server may ask for: one word, given alike to it and to its clients."""

from __future__ import annotations

from asd_policy.errors import InputError

TOKEN = "ASD_POLICY_TOKEN"  # the environment variable of clients


def one_word(token: object, name: str) -> str:
    """A token without the white space around it, with which a file ends.

    Raises:
        ValueError: it is no word of ASCII characters. The message does not hold it.
    """
    if not isinstance(token, str):
        raise InputError(f"{name} must be a text (str), got {type(token).__name__}")
    word = token.strip()
    if not word or not word.isascii() or not word.isprintable() or " " in word:
        raise InputError(f"{name} must hold one word of ASCII characters")
    return word
