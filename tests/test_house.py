"""Every module has its place in the README's list, is short, and imports downwards only."""

from __future__ import annotations

import house
import pytest

FLOOR = {name: level for level, names in enumerate(house.floors().values()) for name in names}


def test_the_readme_lists_every_room_once():
    listed = [name for names in house.floors().values() for name in names]
    assert sorted(listed) == sorted(house.rooms())


@pytest.mark.parametrize("name", house.rooms())
def test_a_room_is_short_enough_to_see_whole(name):
    lines = house.rooms()[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= house.MOST_LINES


@pytest.mark.parametrize("name", house.rooms())
def test_no_arrow_leads_up(name):
    above = {other for other in house.arrows()[name] if FLOOR[other] > FLOOR[name]}
    assert not above


def test_no_rooms_import_each_other_in_a_circle():
    assert house.order() is not None
