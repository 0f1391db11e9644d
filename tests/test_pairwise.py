import itertools

from pairwise import pairs, pairwise


def test_every_two_values_that_may_meet_do_meet_in_far_fewer_cases():
    full = [
        dict(zip("abcd", values, strict=True)) for values in itertools.product(range(4), range(3), "xy", [None, 1.0]) if values[:2] != (0, 0)
    ]
    few = pairwise(full)
    assert set().union(*map(pairs, few)) == set().union(*map(pairs, full))
    assert len(few) <= 18 < len(full)
    assert all(case in full for case in few)
    assert pairwise(full) == few


def test_a_single_knob_keeps_all_its_values():
    assert sorted(case["a"] for case in pairwise({"a": i} for i in range(5))) == list(range(5))
