"""Secrets and personal data in text: found by their own form, so that little else is hit.

Patterns of one kind each, with a checksum where the kind has one. detect-secrets and Presidio know more kinds and
more languages; they read a few hundred records a second, against tens of thousands here (docs/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

# No \b: Han characters are word characters, and a key may stand right behind one.
_SECRETS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "OpenAI or Anthropic key": re.compile(r"(?<![A-Za-z0-9])sk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}"),
    "Stripe key": re.compile(r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    "AWS key": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"),
    "GitHub token": re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "GitLab token": re.compile(r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
    "Google key": re.compile(r"(?<![A-Za-z0-9])(?:AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,})"),
    "Slack token": re.compile(r"(?<![A-Za-z0-9])xox[abprs]-[0-9A-Za-z-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w+"),
    "SendGrid key": re.compile(r"(?<![A-Za-z0-9])SG\.[\w-]{22}\.[\w-]{43}"),
    "package registry token": re.compile(r"(?<![A-Za-z0-9])(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})"),
    "Telegram token": re.compile(r"(?<!\d)\d{8,10}:AA[\w-]{33}"),
    "Hugging Face token": re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
    "JSON web token": re.compile(r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in a URL": re.compile(r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]{3,}@[\w.-]+"),
    "password or key": re.compile(  # of twelve signs and more, both cases and a digit: not "my_password_here"
        r"(?i:passw(?:or)?d|passwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|密码|密钥|口令)[\"']?\s*(?:[:=：]|是|为)\s*"
        r"[\"']?(?=[^\s\"']*\d)(?=[^\s\"']*[a-z])(?=[^\s\"']*[A-Z])[A-Za-z0-9!@#$%^&*+/=._-]{12,}"
    ),
}
_HINT_OF_A_SECRET = re.compile(
    r"-----BEGIN|[rs]k[-_]|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|AIza|ya29|xox|hooks\.slack|SG\.|npm_|pypi-|:AA|hf_"
    r"|eyJ|://|assw|ASSW|ecret|ECRET|[_-][kK]ey|KEY|[_-]token|TOKEN|密码|密钥|口令"
)


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
    (
        "identity number",
        re.compile(r"(?<![\d.-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-]|\.\d)"),
        _always,
    ),
    ("card number", re.compile(r"(?<![\d.-])(?:\d{4}[ -]?){3}\d{4}(?![\d-]|\.\d)"), _card),
    ("phone number", re.compile(r"(?<![\d+.-])1[3-9]\d(?:\d{8}|([ -])\d{4}\1\d{4})(?!\d)"), _always),
    (  # a Chinese landline, whose area code begins with 0
        "phone number",
        re.compile(r"(?<![A-Za-z0-9.+-])(?:0\d{2,3}[ -]|[(（]0\d{2,3}[)）] ?)\d{7,8}(?![A-Za-z0-9-]|\.\d)"),
        _always,
    ),
    (
        "phone number",
        re.compile(r"(?<![\w+])\+\d{1,3}[ -]?(?:\(\d{1,4}\)|\d{1,4})(?:[ -]?\d{2,4}){2,4}(?!\d)"),
        _always,
    ),
    ("phone number", re.compile(r"(?<![\w-])\(?[2-9]\d{2}\)?[ -][2-9]\d{2}-\d{4}(?![\w-])"), _always),
)
_HINT_OF_A_PERSON = re.compile(r"@|\d[\d ()（）+-]{8,}")


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
