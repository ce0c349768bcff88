"""Secrets and personal data in text: found by their own form, so that little else is hit.

Patterns of one kind each, with a checksum where the kind has one. detect-secrets and Presidio know more kinds and
more languages; they read a few hundred records a second, against tens of thousands here (docs/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SECRETS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "OpenAI or Anthropic key": re.compile(r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "Slack token": re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in a URL": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]{3,}@[\w.-]+"),
}
_HINT_OF_A_SECRET = re.compile(r"-----BEGIN|sk-|AKIA|ASIA|gh[pousr]_|github_pat_|AIza|xox|hf_|eyJ|://")


def _luhn(digits: str) -> bool:
    doubled = [sum(divmod(2 * int(d), 10)) if place % 2 else int(d) for place, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return len(set(digits)) > 1 and _luhn(digits)


def _chinese_identity(match: re.Match[str]) -> bool:
    """The check digit of GB 11643-1999."""
    digits = match.group()
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(w * int(d) for w, d in zip(weights, digits[:17], strict=True)) % 11] == digits[17].upper()


def _real_address(match: re.Match[str]) -> bool:
    """Domains set aside for examples by RFC 2606 belong to nobody."""
    domain = match.group().rpartition("@")[2].lower()
    return not re.search(r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", domain)


def _always(_: re.Match[str]) -> bool:
    return True


_PERSONAL: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    (
        "e-mail address",
        re.compile(r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+%-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
        _real_address,
    ),
    ("identity number", re.compile(r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{9}[\dXx](?!\d)"), _chinese_identity),
    ("card number", re.compile(r"(?<![\d.-])(?:\d{4}[ -]?){3}\d{4}(?![\d.-])"), _card),
    ("phone number", re.compile(r"(?<![\d+])1[3-9]\d{9}(?!\d)"), _always),
    (
        "phone number",
        re.compile(r"(?<![\w+])\+\d{1,3}[ -]?(?:\(\d{1,4}\)|\d{1,4})(?:[ -]?\d{2,4}){2,4}(?!\d)"),
        _always,
    ),
    ("phone number", re.compile(r"(?<![\w-])\(?[2-9]\d{2}\)?[ -][2-9]\d{2}-\d{4}(?![\w-])"), _always),
)
_HINT_OF_A_PERSON = re.compile(r"@|\d[\d ()+-]{8,}")


def find_secret(text: str) -> str | None:
    """The kind of the first secret in a text, "AWS key" say; None where there is none."""
    if not _HINT_OF_A_SECRET.search(text):
        return None
    return next((kind for kind, pattern in _SECRETS.items() if pattern.search(text)), None)


def redact_personal_data(text: str) -> str:
    """The text with each address or number of a person replaced by its kind in brackets; else the same object."""
    if not _HINT_OF_A_PERSON.search(text):
        return text
    for kind, pattern, is_one in _PERSONAL:
        found = [match.span() for match in pattern.finditer(text) if is_one(match)]
        for start, end in reversed(found):
            text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


_ABOUT = re.compile(
    r"e-?mail address|phone number|telephone|contact (?:info|details)|credit card|card number"
    r"|邮箱|电子邮件地址|手机号|电话号|身份证",
    re.IGNORECASE,
)


def is_about_personal_data(instruction: str) -> bool:
    """Whether a task is about addresses or numbers, so that it makes no sense without them."""
    return _ABOUT.search(instruction) is not None
