"""What can be wrong before a run across organisations has begun: each is one line that says what to do."""

import pytest

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from peertune.deploy.job import check_versions, installed  # noqa: E402
from peertune.errors import ConfigError  # noqa: E402

# Versions


def test_the_same_versions_everywhere() -> None:
    check_versions(installed())


@pytest.mark.parametrize(("package", "theirs"), [("peertune", "9.9.9"), ("nvflare", "2.8.0"), ("nvflare", None)])
def test_versions_that_differ(package: str, theirs: str | None) -> None:
    wanted = {name: version for name, version in (installed() | {package: theirs}).items() if version}
    expected = f"{package} {installed()[package]} is installed here, whoever started the run has {theirs or 'none'}"
    with pytest.raises(ConfigError, match=expected) as caught:
        check_versions(wanted)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
