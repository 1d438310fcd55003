"""What a host knows of its copies, from boot to boot."""

from remuda_agent.quarantine import Standing
from remuda_agent.quarantine.standing import MOST_RELEASED, begin
from remuda_core.ids import Epoch, InstanceId

WEB, DB = InstanceId("web"), InstanceId("db")
ONE, TWO, THREE = Epoch(1), Epoch(2), Epoch(3)
FRESH = Standing(boot_id="boot-1")


def test_nothing_may_run_before_it_is_confirmed_for_exactly_its_epoch() -> None:
    assert not FRESH.may_run(WEB, ONE)
    standing = FRESH.confirm(WEB, TWO)
    assert [standing.may_run(WEB, epoch) for epoch in (ONE, TWO, THREE)] == [False, True, False]
    assert not standing.may_run(DB, TWO)


def test_a_restart_within_one_boot_goes_on_as_it_was() -> None:
    standing = FRESH.confirm(WEB, ONE).release(DB, TWO)
    assert begin(standing, "boot-1", []) == standing


def test_after_another_boot_nothing_is_confirmed() -> None:
    standing = begin(FRESH.confirm(WEB, ONE), "boot-2", [WEB])
    assert standing == Standing(boot_id="boot-2")


def test_what_was_released_stays_so_over_boots_while_a_copy_is_there() -> None:
    standing = FRESH.release(WEB, TWO).release(DB, ONE)
    assert begin(standing, "boot-2", [WEB]) == Standing(boot_id="boot-2", released={WEB: TWO})


def test_a_release_is_for_good_and_for_all_older_epochs() -> None:
    standing = FRESH.confirm(WEB, TWO).release(WEB, TWO)
    assert not standing.may_run(WEB, TWO)
    assert standing.is_released(WEB, ONE)
    assert standing.confirm(WEB, TWO) == standing
    assert standing.release(WEB, ONE) == standing


def test_a_later_placement_on_a_host_that_released_it_may_run() -> None:
    standing = FRESH.release(WEB, ONE).confirm(WEB, THREE)
    assert standing.may_run(WEB, THREE)
    # The release of the older copy, heard late, does not take it back.
    assert standing.release(WEB, TWO).may_run(WEB, THREE)


def test_a_removed_copy_may_be_made_again_with_its_epoch() -> None:
    standing = FRESH.confirm(WEB, ONE).forget(WEB, ONE)
    assert not standing.may_run(WEB, ONE)
    assert standing.confirm(WEB, ONE).may_run(WEB, ONE)


def test_the_removal_of_an_older_copy_leaves_the_newer_confirmed() -> None:
    assert FRESH.confirm(WEB, TWO).forget(WEB, ONE).may_run(WEB, TWO)


def test_only_so_many_releases_are_kept_and_the_oldest_go_first() -> None:
    standing = FRESH
    for number in range(MOST_RELEASED + 2):
        standing = standing.release(InstanceId(str(number)), ONE)
    assert len(standing.released) == MOST_RELEASED
    assert not standing.is_released(InstanceId("1"), ONE)
    assert standing.is_released(InstanceId("2"), ONE)
    # Unknown again, it is refused all the same.
    assert not standing.may_run(InstanceId("1"), ONE)
