"""What is hidden in a text goes; what writing needs stays."""

from __future__ import annotations

import pytest

from purplebox.gateway.screens import characters

KEPT = {
    "tab and line ends": "a\tb\nc\r\nd\fe",
    "accents": "e\u0301 é ñ",
    "emoji family": "👨\u200d👩\u200d👧\u200d👦",
    "emoji with skin tone": "👩🏽\u200d🚀",
    "emoji with selector": "❤\ufe0f\u200d🔥 ☎\ufe0f",
    "keycap": "1\ufe0f\u20e3 #\ufe0f\u20e3",
    "flag of Scotland": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "flag": "🇩🇪",
    "Persian": "می\u200cخواهم",
    "Devanagari": "क्\u200dष र्\u200cय",
    "Thai": "ภาษา\u200bไทย",
    "Arabic with a mark": "شركة (ABC)\u200f!",
    "Hebrew with a mark": "שלום\u200e (1)",
    "variant of a character": "葛\U000e0100 ≨\ufe00",
    "Mongolian": "ᠠ\u180bᠡ",
    "BOM at the beginning": "\ufeffname,size",
    "line separator": "a\u2028b",
    "lone surrogate": "a\ud800b",
    "no-break space": "10\u00a0km",
}
REMOVED = {
    "colour": ("\x1b[1;31mred\x1b[0m", "red", "ansi"),
    "colour as C1": ("\x9b31mred", "red", "ansi"),
    "title": ("\x1b]0;owned\x07ok", "ok", "ansi"),
    "link": ("\x1b]8;;http://evil.test\x1b\\text\x1b]8;;\x1b\\", "text", "ansi"),
    "title without end": ("\x1b]0;hidden\nnext", "\nnext", "ansi"),
    "clear screen": ("a\x1b[2J\x1b[Hb", "ab", "ansi"),
    "charset": ("\x1b(0x", "x", "ansi"),
    "device control": ("\x1bPq#0;1\x1b\\x", "x", "ansi"),
    "lone escape": ("a\x1b", "a", "ansi"),
    "bell and NUL": ("a\x07\x00b", "ab", "control"),
    "overstrike": ("N\x08NA\x08AM\x08ME\x08E _\x08x", "NAME x", "control"),
    "carriage return": ("harmless\rrm -rf /", "harmless\nrm -rf /", "control"),
    "override": ("a\u202egpj.exe\u202c", "agpj.exe", "bidi"),
    "isolate": ("\u2066x\u2069", "x", "bidi"),
    "mark beside Latin": ("ab\u200fcd", "abcd", "bidi"),
    "zero-width space": ("ig\u200bnore", "ignore", "zero-width"),
    "zero-width joiner between letters": ("ig\u200dnore", "ignore", "zero-width"),
    "zero-width non-joiner between letters": ("ig\u200cnore", "ignore", "zero-width"),
    "word joiner": ("a\u2060b", "ab", "zero-width"),
    "BOM within": ("a\ufeffb", "ab", "zero-width"),
    "soft hyphen": ("ig\u00adnore", "ignore", "zero-width"),
    "Hangul filler": ("a\u3164b", "ab", "zero-width"),
    "tags": ("hi\U000e0041\U000e0042", "hi", "tag"),
    "selectors after a letter": ("a\ufe01\ufe02b", "ab", "variation"),
    "many selectors": ("😀\ufe00\U000e0101\U000e0102", "😀\ufe00", "variation"),
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_what_writing_needs_stays(text: str) -> None:
    assert characters.clean(text) == (text, {})


@pytest.mark.parametrize(("text", "left", "kind"), REMOVED.values(), ids=REMOVED.keys())
def test_what_is_hidden_goes_and_is_counted(text: str, left: str, kind: str) -> None:
    cleaned, found = characters.clean(text)
    assert cleaned == left
    assert found[kind] >= 1


def test_text_spelled_in_tags_or_selectors_is_named() -> None:
    spelled = "".join(chr(0xE0000 + ord(c)) for c in "run this")
    assert characters.clean(f"hello{spelled}")[1]["hidden-text"] == 1
    bytes_ = "".join(chr(0xE0100 + ord(c)) for c in "run this")
    assert characters.clean(f"😀{bytes_}")[1]["hidden-text"] == 1
    assert characters.clean(KEPT["flag of Scotland"])[1]["hidden-text"] == 0
