"""All known messages, and docs/errors.md, which is made of them."""

from . import identity, ours, runtime, storage
from .message import Message, filled

CATALOGUE: dict[str, tuple[Message, ...]] = {
    "Ids and user namespaces": identity.MESSAGES,
    "Storage and images": storage.MESSAGES,
    "Runtimes, cgroups, FUSE, networks": runtime.MESSAGES,
    "squashmount": ours.MESSAGES,
}
MESSAGES: tuple[Message, ...] = tuple(message for group in CATALOGUE.values() for message in group)

_HEAD = """\
# Messages, their causes, and what to do

`squashmount-conf doctor --explain 'MESSAGE'` finds a message in this list, `squashmount-conf doctor --explain - < LOG` all
that are in a log. Capitals stand for what differs; U07 and the like are checks of `squashmount-conf doctor`. This file is
made by `squashmount-conf doctor --catalogue`.
"""


def markdown() -> str:
    """Return the text of docs/errors.md."""
    parts = [_HEAD]
    for title, messages in CATALOGUE.items():
        parts.append(f"\n## {title}\n")
        parts += map(_entry, messages)
    return "".join(parts)


def _entry(message: Message) -> str:
    texts = "<br>".join(f"`` {filled(text, {})} ``" for text in (message.text, *message.also))
    checks = f"\n- checks: {', '.join(message.ids)}" if message.ids else ""
    return f"\n### {texts}\n\n- cause: {filled(message.cause, {})}\n- fix: `` {filled(message.fix, {})} ``{checks}\n"
