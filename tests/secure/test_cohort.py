"""What a round's secrets are bound to."""

from koinon.secure.cohort import Cohort
from koinon.secure.messages import Entry
from koinon.secure.secure_sum import SecureSum

ENTRIES = tuple(Entry(f"n{number}", bytes(32), bytes([number]) * 32, bytes(64)) for number in range(8))


def settings(scheme, entries=ENTRIES, run="run", round=1):
    return [cohort.setting for cohort in Cohort.groups(run, round, scheme, 3, entries)]


def test_secrets_are_bound_to_group_threshold_and_everybodys_keys():
    grouped = SecureSum(clip=1.0, group_size=4)
    (whole,), (first, second) = settings(SecureSum(clip=1.0)), settings(grouped)
    (stricter,) = settings(SecureSum(clip=1.0, corrupt=0.3, dropout=0.1))
    other = Entry("n7", bytes(32), bytes(32), bytes(64))
    (changed,), (again,) = settings(SecureSum(clip=1.0), (*ENTRIES[:-1], other)), settings(SecureSum(clip=1.0))
    assert len({setting.cohort for setting in (whole, first, second, stricter, changed)}) == 5
    assert again == whole


def test_every_client_is_in_one_group():
    groups = Cohort.groups("run", 1, SecureSum(clip=1.0, group_size=3), 3, ENTRIES)
    assert sorted(name for group in groups for name in group.circle) == [entry.name for entry in ENTRIES]
    assert {len(group.circle) for group in groups} == {4}
    assert len({group.ring for group in groups}) == 1
