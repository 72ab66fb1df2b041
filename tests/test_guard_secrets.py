"""Secrets are found by their form, all of them and nothing else, in time that grows with the text."""

import random
import string
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.guard.secrets import OWN, PLUGINS, find_secrets
from peertune.guard.spans import merged, redacted

ALNUM, LOWER = string.ascii_letters + string.digits, string.ascii_lowercase + string.digits
HEX, UPPER, URL = "0123456789abcdef", string.ascii_uppercase + string.digits, ALNUM + "-_"

# A token is written as literals and (alphabet, length) parts, which are drawn: no file of this repository holds one.
FORMS: dict[str, list[str | tuple[str, int]]] = {
    "age": ["AGE-SECRET-KEY-1", ("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)],
    "airtable": ["pat", (ALNUM, 14), ".", (HEX, 64)],
    "alibaba": ["LTAI", (ALNUM, 20)],
    "anthropic": ["sk-ant-api03-", (URL, 93), "AA"],
    "artifactory": ["AKC", (ALNUM, 70)],
    "atlassian": ["ATATT3xFfGF0", (URL, 180)],
    "aws": ["AKIA", (UPPER, 16)],
    "azure_storage_key": ["AccountKey=", (ALNUM + "+/", 86), "=="],
    "azure": ["SharedAccessKey=", (ALNUM + "+/", 43), "="],
    "azure client": [(ALNUM, 3), "8Q~", (ALNUM, 34)],
    "azure sas": ["&sig=", (ALNUM, 43), "%3D"],
    "bitbucket": ["ATBB", (ALNUM, 32)],
    "braintree": ["access_token$production$", (LOWER, 16), "$", (HEX, 32)],
    "cloudflare": ["v1.0-", (HEX, 24), "-", (HEX, 146)],
    "crates": ["cio", (ALNUM, 31), "7"],
    "databricks": ["dapi", (HEX, 32)],
    "digitalocean": ["dop_v1_", (HEX, 64)],
    "discord": ["M", (ALNUM, 23), ".", (ALNUM, 6), ".", (URL, 27)],
    "discord webhook": ["https://discord.com", "/api/webhooks/", (string.digits, 18), "/", (URL, 68)],
    "docker": ["dckr_pat_", (URL, 27)],
    "doppler": ["dp.pt.", (ALNUM, 43)],
    "facebook": ["EAACEdEose0cBA", (ALNUM, 80)],
    "figma": ["figd_", (URL, 40)],
    "github_token": ["ghp_", (ALNUM, 36)],
    "github": ["github_pat_", (ALNUM, 22), "_", (ALNUM, 59)],
    "gitlab_token": ["glpat-", (ALNUM, 20)],
    "gitlab": ["glpat-", (ALNUM, 27), ".01.", (LOWER, 9)],
    "google": ["AIza", (URL, 35)],
    "google client": ["GOCSPX-", (URL, 28)],
    "google oauth": ["ya29.", (URL, 120)],
    "grafana": ["glsa_", (ALNUM, 32), "_", (HEX, 8)],
    "groq": ["gsk_", (ALNUM, 52)],
    "heroku": ["HRKU-AA", (URL, 58)],
    "huggingface": ["hf_", (string.ascii_letters, 34)],
    "jwt": ["eyJ", (ALNUM, 33), ".eyJ", (ALNUM, 120), ".", (URL, 43)],
    "langsmith": ["lsv2_pt_", (HEX, 32), "_", (HEX, 10)],
    "linear": ["lin_api_", (ALNUM, 40)],
    "mailchimp": [(HEX, 32), "-us12"],
    "mailgun": ["key-", (HEX, 32)],
    "newrelic": ["NRAK-", (UPPER, 27)],
    "notion": ["ntn_", (ALNUM, 46)],
    "npm": ["npm_", (ALNUM, 36)],
    "nvidia": ["nvapi-", (URL, 64)],
    "openai": ["sk-", (ALNUM, 20), "T3BlbkFJ", (ALNUM, 20)],
    "openai project": ["sk-proj-", (URL, 74), "T3BlbkFJ", (URL, 74)],
    "openrouter": ["sk-or-v1-", (HEX, 64)],
    "password hash": ["$2b$12$", (ALNUM + "./", 53)],
    "password hash of crypt": ["$6$rounds=5000$", (ALNUM, 16), "$", (ALNUM + "./", 86)],
    "perplexity": ["pplx-", (ALNUM, 48)],
    "planetscale": ["pscale_tkn_", (URL, 43)],
    "postman": ["PMAK-", (HEX, 24), "-", (HEX, 34)],
    "pulumi": ["pul-", (HEX, 40)],
    "pypi_token": ["pypi-AgEIcHlwaS5vcmc", (URL, 130)],
    "replicate": ["r8_", (ALNUM, 37)],
    "rubygems": ["rubygems_", (HEX, 48)],
    "sendgrid": ["SG.", (URL, 22), ".", (URL, 43)],
    "sentry": ["sntrys_", (ALNUM, 120)],
    "shopify": ["shpat_", (HEX, 32)],
    "slack": ["xoxb-", (string.digits, 12), "-", (string.digits, 12), "-", (ALNUM, 24)],
    "slack app": ["xapp-1-A", (UPPER, 10), "-", (string.digits, 13), "-", (HEX, 64)],
    "slack webhook": ["https://hooks.slack.com", "/services/T", (UPPER, 8), "/B", (UPPER, 8), "/", (ALNUM, 24)],
    "square_oauth": ["sq0csp-", (URL, 43)],
    "square": ["sq0atp-", (URL, 22)],
    "stripe": ["sk_live_", (ALNUM, 24)],
    "stripe of today": ["rk_test_51", (ALNUM, 97)],
    "stripe webhook": ["whsec_", (ALNUM, 32)],
    "supabase": ["sbp_", (HEX, 40)],
    "tailscale": ["tskey-auth-", (ALNUM, 17), "-", (ALNUM, 32)],
    "telegram_token": [(string.digits, 10), ":", (URL, 35)],
    "tencent": ["AKID", (ALNUM, 31), "7"],
    "terraform": [(ALNUM, 14), ".atlasv1.", (URL, 67)],
    "twilio": ["SK", (HEX, 32)],
    "vault": ["hvs.", (URL, 90)],
    "wandb": ["wandb_v1_", (ALNUM, 80)],
    "xai": ["xai-", (ALNUM, 80)],
}
AROUND = ["The key is {}, keep it.", 'KEY = "{}"\n', "curl -H 'X-Key: {}' host", "a\n{}\nb", "{}", "f({})"]


def drawn(form: list[str | tuple[str, int]], seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(part if isinstance(part, str) else "".join(rng.choices(part[0], k=part[1])) for part in form)


def left(text: str) -> str:
    """What is left of a text without its secrets."""
    return redacted(text, merged(find_secrets(text)))


@pytest.mark.parametrize("name", FORMS)
def test_a_token_is_found_in_any_surroundings(name: str) -> None:
    for seed, around in enumerate(AROUND):
        token = drawn(FORMS[name], seed)
        rest = left(around.format(token))
        secret = token[len(token) // 4 :]  # before it may stand a host or an account
        assert not any(secret[at : at + 12] in rest for at in range(len(secret) - 12)), (rest, token)
        assert rest.startswith(around.split("{")[0].split("'")[0]), rest


def test_every_plugin_and_rule_finds_something() -> None:
    found = {span.rule for name in FORMS for span in find_secrets(f" {drawn(FORMS[name])} ")}
    found |= {span.rule for text in CREDENTIALS for span in find_secrets(text.replace("|", ""))}
    assert found >= {name for name, _ in OWN} | set(PLUGINS)


LONG = [name for name, (*_, last) in FORMS.items() if isinstance(last, tuple) and last[1] >= 40]


@pytest.mark.parametrize("name", LONG)
def test_a_long_token_is_found_when_a_fifth_of_it_is_missing(name: str) -> None:
    """A generation may end inside it."""
    *parts, (alphabet, length) = FORMS[name]
    token = drawn([*parts, (str(alphabet), round(int(length) * 0.8))])
    assert token not in left(f"it is {token}\n")


KEY = "".join(random.Random(0).choices(ALNUM + "+/", k=64))
CREDENTIALS = [  # what is between bars must not be left
    "postgres://app:|S3cr$t!pass9|@db.internal:5432/x",
    "redis://default:|hunter22hunter|@cache",
    f"Authorization: Bearer |{KEY[:40].replace('/', '1').replace('+', '2')}|",
    f"'authorization': 'Basic |{KEY[:24].replace('+', '3')}|'",
    f"aws_secret_access_key = |{KEY[:40]}|",
    f'"client_secret": "|{drawn([(ALNUM, 32)])}|"',
    f"DB_PASSWORD=|{drawn([(ALNUM, 20)])}|",
    f"api-key: |{drawn([(HEX, 32)])}|",
    f"settings['SECRET_KEY'] = '|{drawn([(ALNUM, 50)])}|'",
    f"//registry.npmjs.org/:_authToken=|{drawn([(HEX, 36)])}|",
    f"PrivateKey = |{KEY[:43]}|=",
    f"Private-Lines: 8\n|{KEY}|\n|{KEY[::-1]}|\nPrivate-MAC: 0",
    *(
        f"---{dash}BEGIN {kind}---{dash}{gap}|{KEY}|{gap}|{KEY[::-1]}|{gap}{tail}"
        for dash in ("--", "- ")
        for kind in ("RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK")
        for gap in ("\n", "\\n", '\\n"\n    "')
        for tail in ("", "-----END PRIVATE KEY-----")
    ),
    f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n|{KEY}|\n",
]


@pytest.mark.parametrize("text", CREDENTIALS)
def test_credentials_are_found_where_something_announces_them(text: str) -> None:
    parts = text.split("|")
    rest = left("".join(parts))
    assert not any(secret in rest or secret[:16] in rest for secret in parts[1::2]), rest
    assert "[" in rest


ORDINARY = [
    'PEM_HEADER = "-----BEGIN PRIVATE KEY-----"\nPEM_FOOTER = "-----END PRIVATE KEY-----"',
    "token = tokenizer.convert_tokens_to_ids(special_token_2)",
    "secret_key = config.providers.default_secret_key_v2",
    "password = getpass.getpass(prompt_for_user_number_1)",
    "hf_hub_download(repo_id, filename)",
    "class sk-container-id-1 div.sk-parallel-item",
    "https://example.org:8080/path@v2",
    "sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
    "def apply_authentication_token_refresh_v2_handler(request): pass",
    "The capital of France is Paris. Basic understanding of keys is enough.",
    "PRIVATE_KEY_FILE=/etc/ssl/private/server.example.org.key1",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_what_only_looks_like_a_secret_is_left_alone(text: str) -> None:
    assert left(text) == text


def standard_library(lines: int) -> Iterator[str]:
    """Modules of the standard library, so many lines at least."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if lines <= 0:
            return
        text = path.read_text(encoding="utf-8")
        lines -= text.count("\n")
        yield text
    assert lines <= 0, "this Python has a shorter standard library"


def test_there_is_no_secret_in_20_000_lines_of_the_standard_library() -> None:
    assert [span for text in standard_library(20_000) for span in find_secrets(text)] == []


HOSTILE = [
    *("a", "A", "0", " ", "\n", "=", ":", "-", ".", "/", "$1$", "$1$a", "=a1", "token=", "token=a1"),
    *(
        "eyJ",
        "eyJaaaaaaaa.",
        "eyJaaaaaaaa.eyJ",
        "sk-",
        "sk-a",
        "sk-T3BlbkFJ",
        "xoxb-1-",
        "://a",
        "://a:",
        "AKCa",
        "aws",
    ),
    *(
        "//a/:_authToken=",
        "-----BEGIN PRIVATE KEY-----",
        "---- BEGIN PRIVATE KEY ----\n",
        "Aa: b\n",
        "Private-Lines: 1\n",
    ),
    *(
        "ghp_",
        "hf_",
        "secret_",
        "pat",
        "glpat-",
        "12345678:",
        "M" + "a" * 25 + ".",
        "0" * 32 + "-u",
        "bearer a",
        "aws_key ",
    ),
    "-----BEGIN PRIVATE KEY-----\n" + "Aa: b\n" * 5,
]


@pytest.mark.parametrize("unit", HOSTILE, ids=repr)
def test_hostile_text_takes_no_more_than_linear_time(unit: str) -> None:
    """200 000 characters. What grows with the square would take minutes: 20 000 take jwt, npm and openai a second."""
    text = unit * (200_000 // len(unit))
    began = time.process_time()
    for _ in find_secrets(text):
        pass
    assert time.process_time() - began < 3


@given(st.lists(st.sampled_from([*AROUND, *(drawn(FORMS[name]) for name in FORMS)]), max_size=6))
def test_nothing_is_found_in_what_is_left(pieces: list[str]) -> None:
    rest = left(" ".join(pieces))
    assert left(rest) == rest


def test_only_whoever_looks_for_secrets_waits_for_detect_secrets() -> None:
    code = "import sys, peertune.guard.outgoing; print('detect_secrets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
