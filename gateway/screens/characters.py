"""Characters that are not seen, or change how others are: taken out where nothing needs them. Pure.

Kept: tab, newline, form feed, CR LF; joiners inside emoji and in scripts that write with them;
ZWSP in scripts without spaces; one variation selector after what can have one; flags of regions;
LRM, RLM and ALM beside right-to-left text; a BOM at the beginning. Sources: UTS #51 (emoji ZWJ and
tag sequences), Unicode 16 ch. 23.2 "Layout Controls", UTS #55 "Source Code Handling", ECMA-48.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter

# C0 but \t \n \f \r, DEL, C1; then what Unicode calls default-ignorable or a format character.
_HIDDEN = (
    "\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SUSPECT = re.compile(f"[{_HIDDEN}]|\r(?!\n)")
_ANY_HIDDEN = re.compile(f"[{_HIDDEN}]")  # a class alone is searched twice as fast
_ASCII_SUSPECTS = bytes([*range(9), 0x0B, *range(0x0E, 0x20), 0x7F])
# ECMA-48: CSI with its parameters; OSC, DCS, SOS, PM, APC up to their terminator, or where that is
# missing to the end of the line; then any other escape.
_ANSI = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]*[0-~]?"
)
# How grotty, and so `man`, prints bold and underlined on a typewriter: X BS X, _ BS X.
_OVERSTRUCK = re.compile("(?:[^\n\x08]\x08)+([^\n\x08])")
_ESCAPES = re.compile("[\x1b\x80-\x9f]")
_LEAST_SPELLED = 4  # so many tags or variation selectors in a row spell something
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
ZWSP, ZWNJ, ZWJ, BOM = "\u200b", "\u200c", "\u200d", "\ufeff"
_MARKS = "\u200e\u200f\u061c"


def _ranges(*pairs: tuple[int, int]) -> tuple[list[int], list[int]]:
    return [low for low, _ in pairs], [high for _, high in pairs]


# Arabic, Syriac, Mandaic, N'Ko, Brahmic scripts of India, Tibet and South-East Asia, Mongolian.
_JOINING = _ranges(
    (0x0600, 0x08FF), (0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1700, 0x18AF), (0x1A20, 0x1AAF),
    (0x1B00, 0x1CFF), (0xA840, 0xA9FF), (0xAA60, 0xAADF), (0xABC0, 0xABFF), (0xFB50, 0xFDFF),
    (0xFE70, 0xFEFC), (0x10A00, 0x10AFF), (0x11000, 0x11FFF), (0x1E900, 0x1E95F),
)  # fmt: skip
# Thai, Lao, Myanmar, Khmer, Tai scripts.
_SPACELESS = _ranges(
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAADF),
)  # fmt: skip
_EMOJI = _ranges(
    (0xA9, 0xA9), (0xAE, 0xAE), (0x203C, 0x203C), (0x2049, 0x2049), (0x2122, 0x2122),
    (0x2139, 0x2139), (0x2190, 0x21FF), (0x2300, 0x23FF), (0x24C2, 0x24C2), (0x25A0, 0x27BF),
    (0x2900, 0x297F), (0x2B00, 0x2BFF), (0x3030, 0x303D), (0x3297, 0x3299), (0x1F000, 0x1FAFF),
)  # fmt: skip
_HAN = _ranges((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def _in(ranges: tuple[list[int], list[int]], character: str) -> bool:
    if not character:
        return False
    lows, highs = ranges
    index = bisect_right(lows, ord(character)) - 1
    return index >= 0 and ord(character) <= highs[index]


def is_suspect(text: str) -> bool:
    """Whether `clean` could change anything; fast, so that ordinary text costs no more than this."""
    if text.isascii():
        data = text.encode()
        if len(data.translate(None, _ASCII_SUSPECTS)) != len(data):
            return True
    elif _ANY_HIDDEN.search(text) is not None:
        return True
    return "\r" in text and text.count("\r") != text.count("\r\n")


def clean(text: str) -> tuple[str, Counter[str]]:
    """`text` without what is hidden in it, and how much of which kind that was.

    Kinds: ansi, control, bidi, zero-width, tag, variation; `hidden-text` counts runs in which tags or
    variation selectors spell something. A lone CR becomes a newline: a terminal would write over the
    line.
    """
    found: Counter[str] = Counter()
    if not is_suspect(text):
        return text, found
    if _ESCAPES.search(text):
        text, count = _ANSI.subn("", text)
        found["ansi"] += count
    if "\x08" in text:
        text, count = _OVERSTRUCK.subn(r"\1", text)
        found["control"] += count
    flags: set[int] = set()
    if "\U0001f3f4" in text:
        flags = {i for m in _FLAG.finditer(text) for i in range(*m.span())}
    run = last = 0  # length and end of the run of tags or selectors that was seen last

    def judged(match: re.Match[str]) -> str:
        nonlocal run, last
        at, character = match.start(), match[0]
        if at in flags or _is_needed(text, at, character):
            return character
        kind = _kind(character)
        found[kind] += 1
        if kind in ("tag", "variation"):
            run, last = run + 1 if at == last else 1, at + 1
            if run == _LEAST_SPELLED:
                found["hidden-text"] += 1
        return "\n" if character == "\r" else ""

    text = _SUSPECT.sub(judged, text)
    return text, +found


def _is_needed(text: str, at: int, character: str) -> bool:
    """Whether writing correctly needs this character here."""
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if character == ZWJ and _in(_EMOJI, after):
        back = at - 1
        while back > 0 and (text[back] == "\ufe0f" or "\U0001f3fb" <= text[back] <= "\U0001f3ff"):
            back -= 1
        return back >= 0 and _in(_EMOJI, text[back])
    if character in (ZWJ, ZWNJ):
        return _in(_JOINING, before) and (_in(_JOINING, after) or character == ZWJ)
    if character == ZWSP:
        return _in(_SPACELESS, before) and _in(_SPACELESS, after)
    if character == BOM:
        return at == 0
    if character in _MARKS:
        near = text[max(0, at - 8) : at] + text[at + 1 : at + 9]
        rtl = any(
            unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in near if c not in _MARKS
        )
        return rtl and before not in _MARKS
    if "\ufe00" <= character <= "\ufe0f":
        if character >= "\ufe0e" and before and before in "0123456789#*":
            return True  # keycaps
        return before > "\x7f" and unicodedata.category(before)[0] in "LSP"
    if "\U000e0100" <= character <= "\U000e01ef":
        return _in(_HAN, before)
    if "\u180b" <= character <= "\u180f":
        return "\u1800" <= before <= "\u18af"
    if character in "\u115f\u1160":  # fillers of incomplete syllables
        return "\u1100" <= before <= "\u11ff" or "\u1100" <= after <= "\u11ff"
    return False


def _kind(character: str) -> str:
    if character < "\xa0":
        return "control"
    if (
        "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        or character in _MARKS
    ):
        return "bidi"
    if "\U000e0000" <= character <= "\U000e007f":
        return "tag"
    if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
        return "variation"
    return "zero-width"
