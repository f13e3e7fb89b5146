"""What a reply to a command can be. A server that says anything else is failing, whatever it is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Shape = Callable[[Any], bool]


def anything(reply: Any) -> bool:  # noqa: ARG001 - the signature of a shape
    """Accept every reply: it is not used."""
    return True


def is_number(reply: Any) -> bool:
    """Tell whether a reply is a whole number."""
    return type(reply) is int


def is_text(reply: Any) -> bool:
    """Tell whether a reply is a string."""
    return type(reply) is bytes


def is_text_or_nothing(reply: Any) -> bool:
    """Tell whether a reply is a string, or says that there is none."""
    return reply is None or type(reply) is bytes


def is_empty(reply: Any) -> bool:
    """Tell whether a reply is a list without members."""
    return _is_list(reply) and not reply


def is_pong(reply: Any) -> bool:
    """Tell whether a reply is that to PING."""
    return bool(reply == b"PONG")


def is_pair_of_numbers(reply: Any) -> bool:
    """Tell whether a reply is that to WAITAOF: how many local and how many replicas' disks."""
    return _is_list(reply) and len(reply) == 2 and all(map(is_number, reply))


def are_texts(reply: Any) -> bool:
    """Tell whether a reply is a list of strings."""
    return _is_list(reply) and all(map(is_text, reply))


def are_pairs(reply: Any) -> bool:
    """Tell whether a reply is a list of names and values in turn."""
    return are_texts(reply) and len(reply) % 2 == 0


def values(count: int) -> Shape:
    """Return the shape of the values of so many fields."""
    return lambda reply: _is_list(reply) and len(reply) == count and all(map(is_text_or_nothing, reply))


def sequence(*shapes: Shape) -> Shape:
    """Return the shape of a list whose members have these shapes, one each."""
    return lambda reply: (
        _is_list(reply)
        and len(reply) == len(shapes)
        and all(shape(part) for shape, part in zip(shapes, reply, strict=True))
    )


def either(*shapes: Shape) -> Shape:
    """Return the shape of a reply that has one of these."""
    return lambda reply: any(shape(reply) for shape in shapes)


def _is_list(reply: Any) -> bool:
    return type(reply) is list
