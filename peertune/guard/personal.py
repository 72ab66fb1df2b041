"""Personal data in a text, by rules that give the same answer every time: e-mail, phone, card, IBAN, IP address.

Every repetition is bounded, so a text of n characters costs O(n). Not found: names, postal addresses, dates of birth,
which need a model; e-mail addresses that are spelt out; national phone numbers that nothing announces.
"""

import ipaddress
import re
from collections.abc import Iterator

from peertune.guard.spans import Span

# Patterns begin with a character, which `re` searches for fastest; what must not stand before it is a lookbehind.
# A call (`a@b.mean(x)` multiplies matrices) is no address; RFC 5321 bounds the parts.
_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w(-])")
# ITU-T E.164: codes of countries, with their +.
_COUNTRY = (
    r"\+(?<![\w+)\]].)(?:[17]|2(?:[07]|1[12368]|[2-6]\d|9[0179])|3(?:[0-469]|[578]\d)|4(?:[013-9]|2\d)|5(?:[1-8]|[09]\d)"
    r"|6(?:[0-6]|[789]\d)|8(?:[1246]|[058]\d)|9(?:[0-58]|[679]\d))"
)
_PHONES = (
    re.compile(_COUNTRY + r"(?:[ ()/-]{0,2}\d){7,13}(?![\w.]?\d)"),
    re.compile(_COUNTRY + r"(?:\.\d{1,4}){3,6}(?![\w.]?\d)"),
    re.compile(  # North American, by its groups
        r"[(2-9](?<![\w.+].)(?<![02-9A-Za-z_]-.)(?:(?<=\()[2-9]\d\d\) ?|(?<!\()\d\d([-.]))"
        r"[2-9]\d\d[-.]\d{4}(?![\w-]|\.\d)"
    ),
    re.compile(  # national, after what announces it
        r"[pPtThHfFmMwWcC](?<!\w.)(?i:(?<=p)hone|(?<=t)el(?:e(?:phone|fon|fax))?|(?<=h)andy|(?<=f)ax|(?<=m)obile?"
        r"|(?<=w)hatsapp|(?<=c)ell ?phone|(?<=c)all (?:me|us))(?i:[ -]?(?:number|nummer|no))?"
        r"[.:# \t]{1,4}(?:at |on )?(?P<number>\(?\d(?:[ ()./-]{0,2}\d){5,14})(?![\w.]?\d)"
    ),
)
_CARD = re.compile(
    r"[2-6](?<![\w.,-].)\d{3}(?:[ -]?\d{4}[ -]?\d{4}[ -]?\d{1,7}|[ -]?\d{6}[ -]?\d{4,5})(?![\w-]|[.,]\d)"
)
_IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z]\d\d(?=(?P<rest>(?:[ -]?[A-Z0-9]){11,40}))")
_IPV4 = re.compile(r"\d(?<![\w.-].)\d{0,2}(?:\.\d{1,3}){3}(?!\.?\w|-\d)")
_IPV6 = re.compile(r"[23fF](?<![\w:.].)(?:(?<=\d)[0-9a-fA-F]{3}|[cCdD][0-9a-fA-F]{2}):[0-9a-fA-F:.]{1,40}(?<!\.)")

# ISO/IEC 7812: what a number of an issuer begins with, and how many digits it has.
_ISSUERS = re.compile(
    r"(?:4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"  # American Express, Diners Club, JCB
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}|(?:50|5[6-9]|6[0-9])\d{10,17})"  # Discover, UnionPay, Maestro
)
# ISO 13616: the length of each country's IBAN.
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def find_personal(text: str) -> Iterator[Span]:
    """Every find of every rule, in no order; finds of two rules may overlap."""
    if "@" in text:
        yield from (Span(*match.span(), "email") for match in _EMAIL.finditer(text))
    for pattern in _PHONES:
        group = "number" if "number" in pattern.groupindex else 0
        yield from (Span(*match.span(group), "phone") for match in pattern.finditer(text))
    yield from (Span(*match.span(), "card") for match in _CARD.finditer(text) if _is_card(match.group()))
    yield from (Span(match.start(), end, "iban") for match in _IBAN.finditer(text) if (end := _iban_end(match)))
    for pattern in (_IPV4, _IPV6):
        yield from (Span(*match.span(), "ip") for match in pattern.finditer(text) if _is_somebodys(match.group()))


def _is_card(number: str) -> bool:
    """Is it as long as its issuer's numbers, and is its last digit the check digit (Luhn, ISO/IEC 7812-1 Annex B)?"""
    digits = [int(digit) for digit in re.sub(r"\D", "", number)]
    if not _ISSUERS.fullmatch("".join(map(str, digits))):
        return False
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _iban_end(match: re.Match[str]) -> int:
    """Where the IBAN at the start of the match ends; 0 if there is none (ISO 7064, MOD 97-10)."""
    text = match.group() + match["rest"]
    length = _LENGTHS.get(text[:2])
    places = [at for at, character in enumerate(text) if character.isalnum()]
    if not length or len(places) < length:
        return 0
    end = places[length - 1] + 1
    if text[end : end + 1].isalnum():
        return 0
    iban = "".join(text[at] for at in places[:length])
    number = "".join(str(int(character, 36)) for character in iban[4:] + iban[:4])
    return match.start() + end if int(number) % 97 == 1 else 0


def _is_somebodys(address: str) -> bool:
    """An IP address of a host, in its own network or in the world; none that means the same everywhere."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    same = (ip.is_loopback, ip.is_unspecified, ip.is_multicast, ip.is_link_local, ip.is_reserved, ip.packed[0] == 0)
    return not any(same)
