"""Text from outside is data: one function for each output gives a form that shows the text and can do nothing else.

Control characters, the marks that turn the direction of writing, and half characters are shown as escapes such as
`\\x1b`: a terminal would obey them, a browser would hide what stands beside them, and XML and UTF-8 cannot hold them.
"""

from __future__ import annotations

import html
import re
import shlex

_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)
"""All of them but the line break and the tab."""

_WORD, _WHOLE = 300, 700
"""characters of one word, and of all of a text, that `brief` leaves as they are"""


def for_terminal(text: str) -> str:
    """A text on one line of a terminal."""
    return _visible(text).replace("\n", "\\n").replace("\t", "\\t")


def for_shell(word: str) -> str:
    """A word of a command line that a reader can copy into a shell (a POSIX shell of 2024, bash, zsh) from a terminal."""
    if for_terminal(word) == word:
        return shlex.quote(word)
    letters = (
        f"\\{letter}" if letter in "'\\" else letter if for_terminal(letter) == letter
        else "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", _bytes_of(letter)))
        for letter in word
    )  # fmt: skip
    return f"$'{''.join(letters)}'"


def for_html(text: str) -> str:
    """A text inside an HTML element or a quoted attribute. Line breaks stay."""
    return html.escape(_visible(text))


def for_svg(text: str) -> str:
    """A text on one line of an SVG picture. Whoever writes the SVG escapes the characters of XML."""
    return for_terminal(text)


def for_markdown(text: str) -> str:
    """A text on one line of GitHub-flavoured Markdown, and of HTML that is made from it: no link, picture, tag or list."""
    line = html.escape(_visible(" ".join(text.split())), quote=False)
    line = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", line)
    line = re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", line, flags=re.IGNORECASE)  # GitHub links bare addresses too
    return re.sub(r"^(\d{0,9})([-+.)](?=\s|$)|[-=](?=[-=\s]*$))", r"\1\\\2", line)  # a list, a rule, a heading


def for_yaml(text: str) -> str:
    """A text that becomes a value of YAML. Whoever writes the YAML quotes it."""
    return _visible(" ".join(text.split()))


def brief(text: str) -> str:
    """A message that may quote input, cut in the middle of each overlong word and then of the whole."""
    words = re.sub(rf"\S{{{_WORD + 1},}}", lambda word: short(word[0], _WORD), text)
    return short(words, _WHOLE)


def short(text: str, length: int = 60) -> str:
    """The beginning and the end of a text that a message quotes, `length` characters in all."""
    if len(text) <= length:
        return text
    begin = 2 * length // 3
    return f"{text[:begin]}…{text[len(text) - (length - begin - 1) :]}"


def _visible(text: str) -> str:
    return _UNSHOWN.sub(_escaped, text)


def _bytes_of(half: str) -> str:
    """How a half character is written: those that stand for a byte of a file's name as that byte."""
    return "surrogateescape" if "\udc80" <= half <= "\udcff" else "surrogatepass"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == ord("\r"):
        return "\\r"
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
