import pytest

from koinon.wire.certificates import Authority, make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))
