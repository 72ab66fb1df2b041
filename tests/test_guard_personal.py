"""Personal data is found by rules that can be checked by hand: check digits, lengths, groups."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.guard.personal import _LENGTHS, find_personal
from peertune.guard.spans import merged, redacted


def left(text: str) -> str:
    return redacted(text, merged(find_personal(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to joe.bloggs+x@sub.example.co.uk.", "Write to [email]."),
        ("<müller@büro.de>, a_b@c-d.org;", "<[email]>, [email];"),
        ("return 'anna@clinic.org'", "return '[email]'"),
        ("mailto:anna@clinic.org?subject=x", "mailto:[email]?subject=x"),
        ("+49 30 1234567, +1 (415) 555-2671", "[phone], [phone]"),
        ("+4915112345678 or +33.1.42.68.53.00 or +44 (0)20 7946 0958", "[phone] or [phone] or [phone]"),
        ("(415) 555-2671, 415-555-2671, 415.555.2671, 1-800-555-0199", "[phone], [phone], [phone], 1-[phone]"),
        ("Tel.: 030/1234567\nPhone: 020 7946 0958", "Tel.: [phone]\nPhone: [phone]"),
        ("Fax 01 23 45 67 89, mobile: 07700 900123", "Fax [phone], mobile: [phone]"),
        ("Telefonnummer 0171 1234567; call me at 555 867 5309", "Telefonnummer [phone]; call me at [phone]"),
        ("4111 1111 1111 1111, 5500-0000-0000-0004", "[card], [card]"),  # Visa, Mastercard
        ("378282246310005 3782 822463 10005", "[card] [card]"),  # American Express
        ("6011111111111117, 30569309025904, 3530111333300000", "[card], [card], [card]"),  # Discover, Diners, JCB
        ("DE89 3704 0044 0532 0130 00 Bank", "[iban] Bank"),
        ("GB29NWBK60161331926819, NO9386011117947", "[iban], [iban]"),
        ("FR1420041010050500013M02606.", "[iban]."),
        ("from 192.168.1.10 to 8.8.8.8:53", "from [ip] to [ip]:53"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334 fd12:3456:789a::1", "[ip] [ip]"),
    ],
)
def test_what_is_found(text: str, expected: str) -> None:
    assert left(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "@property\ndef norm(self): return weights@features.mean(axis=0) + x@y.T",
        "user@localhost, a@b, 1@2.3",
        "1.5 +4.06149627 -2.26105874e+10, 2024-05-17 12:30:45, +0100",
        "[200, 415, 555, 2671], 415-5555-2671, 115-555-2671",
        "room 12345678 of the hotel 12345678, order 0049 30 1234567",
        "4111111111111112, 0.4111111111111111, 1234567890123456, 9111111111111111",
        "DE88370400440532013000, DE8937040044053201300, DE893704004405320130001, XX89370400440532013000",
        "version 1.2.3, v1.2.3.4, 1.2.3.4.5, 256.1.1.1, 1.2.3.04x",
        "127.0.0.1, 0.0.0.0, 255.255.255.0, 224.0.0.1, 169.254.1.1, ::1, fe80::1",
        "x[::2], x[1::2], std::vector, aa:bb:cc:dd:ee:ff, 12:30:45, dead:beef",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert left(text) == text


def with_check_digit(digits: str) -> str:
    """Luhn, the other way round than the rule: the digit that makes the sum a multiple of ten."""
    total = sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


@given(st.from_regex(r"(4[0-9]{14}|5[1-5][0-9]{13}|3[47][0-9]{12})", fullmatch=True), st.data())
def test_a_card_is_found_by_its_check_digit(digits: str, data: st.DataObject) -> None:
    card = with_check_digit(digits)
    assert left(f"card {card}.") == "card [card]."
    at = data.draw(st.integers(2, len(card) - 1))
    wrong = card[:at] + str((int(card[at]) + data.draw(st.integers(1, 9))) % 10) + card[at + 1 :]
    assert left(f"card {wrong}.") == f"card {wrong}."


@given(st.sampled_from(sorted(_LENGTHS)), st.data())
def test_an_iban_is_found_by_its_length_and_check_digits(country: str, data: st.DataObject) -> None:
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    account = data.draw(st.text(alphabet, min_size=_LENGTHS[country] - 4, max_size=_LENGTHS[country] - 4))
    remainder = int("".join(str(alphabet.index(letter)) for letter in f"{account}{country}00")) % 97
    iban = f"{country}{98 - remainder:02}{account}"
    grouped = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))
    assert left(f"<{iban}>") == left(f"<{grouped}>") == "<[iban]>"
    at = data.draw(st.integers(4, len(iban) - 1))
    alike = alphabet[:10] if iban[at].isdigit() else alphabet[10:]
    other = data.draw(st.sampled_from(alike.replace(iban[at], "")))
    assert "iban" not in {span.rule for span in find_personal(iban[:at] + other + iban[at + 1 :])}


PIECES = [
    "joe@x.org",
    "+49 30 1234567",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "10.1.2.3",
    "tel ",
    "1",
    "@",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_nothing_is_found_in_what_is_left(pieces: list[str]) -> None:
    rest = left(" ".join(pieces))
    assert left(rest) == rest


HOSTILE = [
    *("a", "a@", "a.", "@a.", "1", "1 ", "1.", "1-", "+1", "+1 ", "A1", "AA11", "AA11 ", "1:", "2001:", "::", "(2"),
    *("tel ", "tel 1", "phone 1 ", "4111 ", "4111", "415-555-", "DE89 3704 ", "10.1.", "a@a.", "é", "call me "),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_no_more_than_linear_time(unit: str) -> None:
    """200 000 characters; 0.2 s at most where this was written."""
    text = unit * (200_000 // len(unit))
    began = time.process_time()
    for _ in find_personal(text):
        pass
    assert time.process_time() - began < 3
