"""Whose turn it is."""

from collections import Counter

from remuda_bench.migration.plan import Round, Tool, rounds


def test_each_round_has_both_tools_go_the_same_way_and_the_next_one_goes_back() -> None:
    found = list(rounds(7))
    assert [turn.number for turn in found] == list(range(8))
    assert [turn.warm_up for turn in found] == [True, *[False] * 7]
    assert all(set(turn.order) == set(Tool) for turn in found)
    where = "host1"
    for turn in found:
        assert turn.source == where
        where = turn.target
        assert where != turn.source


def test_without_a_warm_up_every_round_counts() -> None:
    assert [turn.number for turn in rounds(2, warm_up=False)] == [1, 2]
    assert [turn.source for turn in rounds(2, warm_up=False)] == ["host1", "host2"]


def test_neither_the_order_nor_the_direction_favours_a_tool() -> None:
    def first(found: list[Round]) -> Counter[tuple[str, Tool]]:
        return Counter((turn.source, turn.order[0]) for turn in found)

    assert set(first(list(rounds(7))).values()) == {2}
    assert set(first(list(rounds(16, warm_up=False))).values()) == {4}
