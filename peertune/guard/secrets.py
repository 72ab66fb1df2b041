"""Secrets in a text: keys, tokens and passwords that are known by their form.

Two sources: the pattern plugins of detect-secrets that know a form (not a variable's name) and take linear time, and
rules of our own for what these miss. Every repetition is bounded, so a text of n characters costs O(n). Not found:
short passwords, what is encoded once more, and secrets without a form of their own that no name announces.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from peertune.guard.spans import Span

# Modules of detect_secrets.plugins, and the detector in each. Left out: those that fire on prose (entropy) or on code
# (keywords), take quadratic time (jwt, npm, openai), find less than the secret (private_key) or more (artifactory), or
# know a variable's name, which `_NAME` does (ibm, cloudant, softlayer).
PLUGINS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "mailchimp": "MailchimpDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
# Forms as their issuers document them, without the last characters: a generation may end inside a token. A pattern
# begins with its literal, which `re` searches for fastest; what must not stand before it follows as a lookbehind.
OWN = (
    ("age", r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{30,200}"),
    ("airtable", r"pat(?<![A-Za-z0-9]pat)[A-Za-z0-9]{14}\.[0-9a-f]{32,64}"),
    ("alibaba", r"LTAI(?<![A-Za-z0-9+/]LTAI)[A-Za-z0-9]{16,24}(?![A-Za-z0-9+/=])"),
    ("anthropic", r"sk-ant-[a-z0-9]{2,12}-[\w-]{20,200}"),
    ("artifactory", r"AKC(?<![A-Za-z0-9+/]AKC)(?=[A-Za-z]{0,40}\d)[A-Za-z0-9]{30,100}(?![A-Za-z0-9+/=])"),
    ("atlassian", r"AT(?<![A-Za-z0-9+/]AT)(?:ATT3|CTT3|BB)[A-Za-z0-9_=-]{28,250}"),
    ("azure", r"SharedAccessKey=[A-Za-z0-9+/]{30,90}={0,2}"),
    ("azure", r"sig=(?<=[?&]sig=)(?P<secret>[A-Za-z0-9%+/]{40,90})"),
    ("azure", r"Q~(?<=[A-Za-z0-9_.~-]{3}\dQ~)[A-Za-z0-9_.~-]{28,36}"),
    ("braintree", r"access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{20,32}"),
    ("cloudflare", r"v1\.0-[0-9a-f]{24}-[0-9a-f]{40,146}"),
    ("crates", r"cio(?<![A-Za-z0-9+/]cio)(?=[A-Za-z]{0,31}\d)[A-Za-z0-9]{32}(?![A-Za-z0-9+/=])"),
    ("databricks", r"dapi(?<![A-Za-z0-9]dapi)[0-9a-f]{32}(?:-\d)?"),
    ("digitalocean", r"do(?<![A-Za-z0-9]do)[opr]_v1_[0-9a-f]{40,64}"),
    ("discord", r"/api/webhooks/(?<=discord\.com/api/webhooks/)\d{5,25}/[\w-]{30,100}"),
    ("discord", r"/api/webhooks/(?<=discordapp\.com/api/webhooks/)\d{5,25}/[\w-]{30,100}"),
    ("docker", r"dckr_[po]at_[\w-]{20,40}"),
    ("doppler", r"dp\.(?<![A-Za-z0-9]dp\.)(?:ct|pt|st|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{30,44}"),
    ("facebook", r"EAACEdEose0cBA[0-9A-Za-z]{10,300}"),
    ("figma", r"figd_[\w-]{30,60}"),
    ("github", r"github_pat_[A-Za-z0-9_]{30,100}"),
    ("github", r"gh[opusr]_(?<![A-Za-z0-9]gh[opusr]_)[A-Za-z0-9]{30,255}"),
    ("gitlab", r"gl(?<![A-Za-z0-9]gl)(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas|ffct)-[\w.-]{20,300}"),
    ("google", r"AIza[\w-]{33,35}"),
    ("google", r"GOCSPX-[\w-]{20,28}"),
    ("google", r"ya29\.[\w-]{30,300}"),
    ("google", r"1//0(?<![\w/]1//0)[\w-]{40,120}"),
    ("grafana", r"gl(?<![A-Za-z0-9]gl)(?:sa_[A-Za-z0-9]{30,32}(?:_[0-9a-f]{8})?|c_[A-Za-z0-9+/]{32,400}={0,2})"),
    ("groq", r"gsk_(?<![A-Za-z0-9]gsk_)[A-Za-z0-9]{40,60}"),
    ("heroku", r"HRKU-(?:AA)?[\w-]{32,80}"),
    ("huggingface", r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,40}"),
    ("huggingface", r"api_org_[A-Za-z0-9]{30,40}"),
    ("jwt", r"eyJ(?<![\w+/=-]eyJ)[\w-]{8,4000}={0,2}\.eyJ[\w-]{4,8000}={0,2}(?:\.[\w-]{0,2000})?"),
    ("langsmith", r"lsv2_(?:pt|sk)_[0-9a-f]{32}(?:_[0-9a-f]{10})?"),
    ("linear", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,64}"),
    ("mailgun", r"key-(?<![A-Za-z0-9-]key-)[0-9a-f]{32}(?![0-9a-f])"),
    ("newrelic", r"NR(?:AK|II|JS|RA)-[A-Za-z0-9]{24,40}"),
    ("notion", r"ntn_(?<![A-Za-z0-9]ntn_)[A-Za-z0-9]{30,50}"),
    ("notion", r"secret_(?=[A-Za-z]{0,42}\d)[A-Za-z0-9]{43}(?![A-Za-z0-9])"),
    ("npm", r"npm_(?<![A-Za-z0-9]npm_)[A-Za-z0-9]{30,40}"),
    ("npm", r":_authToken=(?P<secret>(?=[\w+/.=-]{0,40}\d)[\w+/.=-]{20,400})"),
    ("nvidia", r"nvapi-[\w-]{50,80}"),
    ("openai", r"sk-(?<![A-Za-z0-9]sk-)(?:proj|svcacct|admin|or-v1)-(?=[A-Za-z_-]{0,60}\d)[\w-]{20,200}"),
    ("openai", r"sk-(?<![A-Za-z0-9]sk-)(?=[A-Za-z]{0,40}\d)[A-Za-z0-9]{32,64}"),
    ("perplexity", r"pplx-[A-Za-z0-9]{30,60}"),
    ("planetscale", r"pscale_(?:tkn|oauth|pw)_[\w.=-]{30,64}"),
    ("postman", r"PMAK-[0-9a-f]{24}-[0-9a-f]{20,34}"),
    ("private_key", r"---- ?BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)? ?----(?:-|\\[rn]|[\s\"'+]){1,40}"
     r"(?:[A-Z][\w-]{1,20}: [^\n]{1,100}\n\s{0,8}){0,5}[A-Za-z0-9+/=]{16}[A-Za-z0-9+/=\s\\\"']{0,20000}"
     r"(?:-?---- ?END [A-Z0-9 ]{0,40}-?----)?"),
    ("private_key", r"Private-Lines: \d{1,3}\s{1,4}(?:[A-Za-z0-9+/=]{1,64}\s{0,3}){1,300}"),
    ("pulumi", r"pul-(?<![A-Za-z0-9-]pul-)[0-9a-f]{30,40}"),
    ("pypi", r"pypi-AgE[\w-]{50,400}"),
    ("replicate", r"r8_(?<![A-Za-z0-9]r8_)[A-Za-z0-9]{37,40}"),
    ("rubygems", r"rubygems_[0-9a-f]{32,48}"),
    ("sendgrid", r"SG\.(?<![A-Za-z0-9]SG\.)[\w-]{22}\.[\w-]{20,43}"),
    ("sentry", r"sntry[su]_[A-Za-z0-9+/=_]{40,400}"),
    ("shopify", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    ("slack", r"xox[abcdeoprs](?:\.xox[abp])?-(?=[A-Za-z-]{0,40}\d)[A-Za-z0-9%/+-]{10,400}"),
    ("slack", r"xapp-\d-[A-Za-z0-9-]{20,200}"),
    ("square", r"sq0(?:atp|csp|idp)-[\w-]{22,43}"),
    ("stripe", r"sk_(?<![A-Za-z0-9]sk_)(?:live|test)_[A-Za-z0-9]{16,250}"),
    ("stripe", r"rk_(?<![A-Za-z0-9]rk_)(?:live|test)_[A-Za-z0-9]{16,250}"),
    ("stripe", r"whsec_[A-Za-z0-9+/]{24,64}"),
    ("supabase", r"sbp_[0-9a-f]{30,40}"),
    ("supabase", r"sb_secret_[\w-]{20,60}"),
    ("tailscale", r"tskey-(?:[a-z]{2,12}-)?[A-Za-z0-9]{8,40}-[A-Za-z0-9]{16,60}"),
    ("tencent", r"AKID(?<![A-Za-z0-9+/]AKID)(?=[A-Za-z]{0,40}\d)[A-Za-z0-9]{32,36}(?![A-Za-z0-9+/=])"),
    ("terraform", r"\.atlasv1\.(?<=[A-Za-z0-9]{14}\.atlasv1\.)[\w-]{40,90}"),
    ("vault", r"hv[sbr]\.(?<![A-Za-z0-9]hv[sbr]\.)[\w-]{24,300}"),
    ("wandb", r"wandb_v\d_\w{30,120}"),
    ("xai", r"xai-(?<![A-Za-z0-9]xai-)[A-Za-z0-9]{60,90}"),
    ("password_hash", r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{30,53}"),
    ("password_hash", r"\$argon2(?:id|i|d)\$[\w$=,+/.-]{40,300}"),
    ("password_hash", r"\$[156y]\$(?:rounds=\d{1,9}\$)?[./A-Za-z0-9$]{1,60}\$[./A-Za-z0-9]{22,86}"),
    ("url_password", r"://[^\s/?#:@'\"<>{}$%]{1,64}:(?P<secret>(?=[^\s@]{0,60}?\d)[^\s/?#:@'\"<>{}]{6,128})@"),
    ("bearer", r"earer (?<=[Bb]earer )(?P<secret>(?=[A-Za-z._~+/-]{0,200}\d)[\w.~+/-]{20,2000}={0,2})"),
    ("basic_auth", r"asic (?<=[Bb]asic )(?P<secret>(?=[A-Za-z+/]{0,200}\d)[A-Za-z0-9+/]{16,500}={0,2})(?![\w.-])"),
)  # fmt: skip
# A value long enough to be a key that is given to something, and what announces that it is one, before it.
_VALUE = re.compile(
    r"[=:][\s\"']{0,4}(?P<secret>(?=[A-Za-z_+/.~-]{0,199}\d)[\w+/.~-]{16,200}={0,2})(?![\w(\[.])", re.ASCII
)
_NAME = re.compile(
    r"(?:secret|(?<!publickey)token|passw(?:or)?d|passphrase|pwd|credential"
    r"|(?:api|access|account|private|auth|client|encryption|signing)[_-]?key)[\w.-]{0,24}[\"'\]]{0,2}\s{0,3}:?\Z",
    re.ASCII | re.IGNORECASE,
)
_REACH = 64  # characters before a value in which its name ends


def find_secrets(text: str) -> Iterator[Span]:
    """Every find of every rule, in no order; finds of two rules may overlap."""
    for name, pattern in _patterns():
        group = "secret" if "secret" in pattern.groupindex else 0
        for match in pattern.finditer(text):
            yield Span(*match.span(group), name)
    for match in _VALUE.finditer(text):
        if _NAME.search(text, max(0, match.start() - _REACH), match.start()) and _looks_drawn(match["secret"]):
            yield Span(*match.span("secret"), "named")


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """The plugins', then our own. detect-secrets takes 0.14 s to import: only whoever looks for secrets pays that."""
    modules = ((name, importlib.import_module(f"detect_secrets.plugins.{name}")) for name in PLUGINS)
    theirs = [(name, pattern) for name, module in modules for pattern in getattr(module, PLUGINS[name]).denylist]
    return [*theirs, *((name, re.compile(pattern, re.ASCII)) for name, pattern in OWN)]


def _looks_drawn(value: str) -> bool:
    """Do letters, capitals and digits alternate as in a random string, and not as in a word or an identifier?"""
    if re.fullmatch(r"[0-9a-fA-F]{32,}", value):
        return len(set(value)) > 8
    changes = [{_sort(one), _sort(other)} for one, other in pairwise(value)]
    beside_digits = sum(change in ({"0", "a"}, {"0", "A"}) for change in changes)
    return beside_digits >= 5 or beside_digits + changes.count({"a", "A"}) >= 0.4 * len(changes)


def _sort(character: str) -> str:
    if character.isdigit():
        return "0"
    return "-" if not character.isalpha() else "A" if character.isupper() else "a"
