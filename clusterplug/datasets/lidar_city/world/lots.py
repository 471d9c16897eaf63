# SPDX-License-Identifier: Apache-2.0
"""What stands beside the street: one function per kind of lot.

Every function gets the plan and a :class:`Lot` and fills the strip between the sidewalk and the backdrop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clusterplug.datasets.lidar_city.world.plan import Plan

BACK = 30.0  # depth of a lot, meters


@dataclass
class Lot:
    """A piece of one side of the street.

    Attributes:
        s0, s1: extent along the street, meters.
        side: +1 left, -1 right.
        front: distance of the sidewalk's outer edge from the center line, meters.
    """

    s0: float
    s1: float
    side: int
    front: float

    @property
    def width(self) -> float:
        return self.s1 - self.s0

    @property
    def middle(self) -> float:
        return (self.s0 + self.s1) / 2

    def d(self, behind: float) -> float:
        """Street coordinate of a place ``behind`` meters beyond the sidewalk."""
        return self.side * (self.front + behind)

    @property
    def facing(self) -> float:
        """Yaw of a building whose front looks at the street."""
        return 0.0 if self.side > 0 else np.pi

    @property
    def towards_street(self) -> float:
        """Yaw of an object whose nose points at the street."""
        return -np.pi / 2 * self.side


def _cover(plan: Plan, lot: Lot, near: float, far: float, class_name: str, subtype: str | None = None, **form) -> str:
    return plan.pave(lot.s0, lot.s1, lot.d(near), lot.d(far), class_name, subtype, **form)


def _plants(plan: Plan, lot: Lot, near: float, far: float, trees: int, bushes: int) -> None:
    for _ in range(trees):
        plan.put_tree(plan.rng.uniform(lot.s0 + 1, lot.s1 - 1), lot.d(plan.rng.uniform(near, far)))
    for _ in range(bushes):
        s, d = plan.rng.uniform(lot.s0 + 1, lot.s1 - 1), lot.d(plan.rng.uniform(near, far))
        plan.put_bush(s, d, plan.rng.uniform(0, 6.28))


def _border(
    plan: Plan, lot: Lot, behind: float, gap: tuple[float, float] | None, class_name: str, subtype=None
) -> None:
    """A fence or hedge along the street with a gap for the entrance."""
    runs = [(lot.s0, lot.s1)] if gap is None else [(lot.s0, gap[0]), (gap[1], lot.s1)]
    if class_name == 'vegetation':
        subtype = 'hedge'
    subtype = subtype or plan.dealer.deal(class_name)
    for start, end in runs:
        if end - start > 1.5:
            plan.put_run(class_name, (start + end) / 2, lot.d(behind), 0.0, end - start - 0.3, subtype)


def _bicycles(plan: Plan, s: float, d: float, count: int) -> None:
    """Bicycles side by side in a rack."""
    for index in range(count):
        plan.put('bicycle', s + 0.9 * index, d, np.pi / 2 + plan.rng.normal(0, 0.1))


def house(plan: Plan, lot: Lot) -> None:
    """Detached house with garden, border and driveway."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', lift=0.14)
    setback = rng.uniform(4.0, 8.0)
    drive = lot.s0 + 1.0 if rng.random() < 0.5 else lot.s1 - 4.2
    plan.pave(drive, drive + 3.2, lot.d(0), lot.d(setback + 5), 'parking', lift=0.1)
    if rng.random() < 0.6:
        plan.put('car', drive + 1.6, lot.d(setback - 0.5), lot.towards_street * rng.choice([-1, 1]))
    width = float(np.clip(lot.width - 6.5, 7.0, 12.0))
    s = lot.middle + (1.8 if drive < lot.middle else -1.8)
    plan.put('building', s, lot.d(setback), lot.facing, 'gabled_house', width=width, depth=rng.uniform(8, 11))
    border = 'vegetation' if rng.random() < 0.5 else 'fence'
    if rng.random() < 0.95:
        _border(plan, lot, 0.4, (drive - 0.2, drive + 3.4), border)
    if rng.random() < 0.8:
        plan.put_run(str(rng.choice(['fence', 'vegetation'])), lot.s1, lot.d(1 + setback / 2), np.pi / 2, setback + 1)
    _plants(plan, lot, 1.5, setback - 0.8, int(rng.integers(1, 4)), int(rng.integers(2, 6)))
    _plants(plan, lot, setback + 12, BACK, 2, 1)
    if rng.random() < 0.35:
        plan.put('other-object', drive + 3.8, lot.d(0.9), lot.towards_street, 'bin')
    if rng.random() < 0.25:
        plan.put('bicycle', s, lot.d(setback - 0.7), rng.normal(0, 0.1))


def apartments(plan: Plan, lot: Lot) -> None:
    """Block of flats behind a lawn."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', lift=0.14)
    setback = rng.uniform(3.0, 6.5)
    plan.pave(lot.middle - 1, lot.middle + 1, lot.d(0), lot.d(setback), 'sidewalk', lift=0.15)
    width = lot.width - rng.uniform(1.5, 5.0)
    plan.put(
        'building', lot.middle, lot.d(setback), lot.facing, 'apartment_block', width=width, depth=rng.uniform(10, 13)
    )
    if rng.random() < 0.8:
        border = 'vegetation' if rng.random() < 0.6 else 'fence'
        _border(plan, lot, 0.5, (lot.middle - 1.2, lot.middle + 1.2), border)
    _plants(plan, lot, 1.2, setback - 1.0, int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    if rng.random() < 0.6:
        _bicycles(plan, lot.middle + 2.0, lot.d(setback - 1.6), int(rng.integers(2, 4)))
    if rng.random() < 0.4:
        plan.put('other-object', lot.middle - 2.5, lot.d(1.4), lot.towards_street, 'bench')


def office(plan: Plan, lot: Lot) -> None:
    """Glass office behind a paved forecourt."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'sidewalk', lift=0.14)
    setback = rng.uniform(3.0, 6.0)
    plan.put(
        'building',
        lot.middle,
        lot.d(setback),
        lot.facing,
        'glass_office',
        width=lot.width - 2,
        depth=rng.uniform(12, 16),
    )
    for s in np.arange(lot.s0 + 2, lot.s1 - 2, rng.uniform(2.2, 3.5)):
        plan.put('pole', s, lot.d(0.4), 0.0, 'bollard')
    for s in (lot.s0 + 3, lot.s1 - 3):
        plan.pave(s - 1, s + 1, lot.d(1.4), lot.d(2.6), 'terrain', 'soil', lift=0.45)
        plan.put_bush(s, lot.d(2.0))
    if rng.random() < 0.6:
        _bicycles(plan, lot.middle + 1, lot.d(setback - 1.3), int(rng.integers(2, 5)))
    if rng.random() < 0.4:
        plan.put('person', lot.middle - 2, lot.d(setback - 1.8), rng.uniform(0, 6.28))


def shops(plan: Plan, lot: Lot) -> None:
    """Terraced house with a shop, right at the sidewalk."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', 'soil', lift=0.12)
    plan.put('building', lot.middle, lot.d(0.15), lot.facing, 'shop', width=lot.width, depth=rng.uniform(9, 13))
    if rng.random() < 0.3:
        plan.put('bicycle', lot.middle + rng.uniform(-3, 3), lot.d(-0.45), rng.normal(0, 0.1))
    if rng.random() < 0.25:
        plan.put('person', lot.middle + rng.uniform(-3, 3), lot.d(-0.9), rng.uniform(0, 6.28))


def garages(plan: Plan, lot: Lot) -> None:
    """Row of garages with a yard in front."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', lift=0.12)
    setback = rng.uniform(5.5, 7.0)
    plan.pave(lot.s0 + 0.5, lot.s1 - 0.5, lot.d(0), lot.d(setback), 'parking', lift=0.1)
    plan.put(
        'building', lot.middle, lot.d(setback), lot.facing, 'garage', width=lot.width - 1, depth=rng.uniform(5.5, 7)
    )
    if rng.random() < 0.5:
        plan.put('car', lot.middle + rng.uniform(-2, 2), lot.d(2.8), lot.towards_street)
    if rng.random() < 0.6:
        plan.put('motorcycle', lot.s0 + 1.6, lot.d(2.5), lot.towards_street)
    _plants(plan, lot, setback + 8, BACK, 3, 2)


def car_park(plan: Plan, lot: Lot) -> None:
    """Parking lot with two rows of bays."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', lift=0.12)
    subtype = plan.dealer.deal('parking')
    lines = {} if subtype == 'gravel_bay' else {'marking': 4, 'marking_width': 2.6, 'marking_origin': lot.s0 + 1}
    _cover(plan, lot, 1.2, 6.4, 'parking', subtype, lift=0.05, **lines)
    _cover(plan, lot, 6.4, 12.6, 'parking', subtype, lift=0.05)
    _cover(plan, lot, 12.6, 18.0, 'parking', subtype, lift=0.05, **lines)
    plan.pave(lot.middle - 3, lot.middle + 3, lot.d(0), lot.d(1.2), 'parking', subtype, lift=0.06)
    for behind, heading in ((3.8, 1.0), (15.2, -1.0)):
        for s in np.arange(lot.s0 + 2.3, lot.s1 - 1, 2.6):
            if (behind < 5 and abs(s - lot.middle) < 4.3) or rng.random() > 0.55:
                continue
            kind = rng.random()
            yaw = lot.towards_street * heading * rng.choice([-1, 1]) + rng.normal(0, 0.03)
            if kind < 0.88:
                plan.put('car', s, lot.d(behind), yaw)
            elif kind < 0.97:
                plan.put('motorcycle', s - 0.4, lot.d(behind), yaw)
            else:
                plan.put('other-vehicle', s, lot.d(behind), yaw, 'caravan')
    border = 'vegetation' if rng.random() < 0.5 else 'fence'
    _border(plan, lot, 0.6, (lot.middle - 3.2, lot.middle + 3.2), border)
    _plants(plan, lot, 19.5, BACK, 4, 2)


def park(plan: Plan, lot: Lot) -> None:
    """Green with trees, a path and perhaps a bank."""
    rng = plan.rng
    first = plan.dealer.deal('terrain', ('lawn', 'tall_grass'))
    _cover(plan, lot, 0, 8, 'terrain', first, lift=0.13)
    rise = rng.uniform(0.1, 0.35)
    back = plan.dealer.deal('terrain', ('embankment', 'tall_grass', 'lawn'))
    _cover(plan, lot, 8, 62, 'terrain', back, lift=0.13, rise=rise if back == 'embankment' else 0.02)
    path = rng.uniform(lot.s0 + 4, lot.s1 - 4)
    plan.pave(path - 1, path + 1, lot.d(0), lot.d(8), 'sidewalk', lift=0.13)
    _plants(plan, lot, 2, 7.5, int(rng.integers(2, 5)), int(rng.integers(3, 7)))
    _plants(plan, lot, 9, 28, int(rng.integers(5, 10)), int(rng.integers(6, 12)))
    if rng.random() < 0.7:
        plan.put('other-object', path + 1.8, lot.d(3.0), rng.choice([0.0, np.pi]), 'bench')
    if rng.random() < 0.6:
        plan.put('person', path, lot.d(rng.uniform(1, 7)), rng.uniform(0, 6.28))
    if rng.random() < 0.5:
        _border(plan, lot, 0.5, (path - 1.2, path + 1.2), 'fence', plan.dealer.deal('fence', ('metal_rail', 'picket')))
    else:
        _border(plan, lot, 0.8, (path - 1.2, path + 1.2), 'vegetation')


def yard(plan: Plan, lot: Lot) -> None:
    """Fenced gravel yard of a builder or a farm."""
    rng = plan.rng
    _cover(plan, lot, 0, BACK, 'terrain', 'tall_grass', lift=0.12)
    _cover(plan, lot, 1.5, 20, 'other-ground', 'gravel_yard', lift=0.06)
    plan.pave(lot.middle - 2.5, lot.middle + 2.5, lot.d(0), lot.d(1.5), 'other-ground', 'gravel_yard', lift=0.06)
    _border(
        plan,
        lot,
        1.0,
        (lot.middle - 2.7, lot.middle + 2.7),
        'fence',
        plan.dealer.deal('fence', ('chain_link', 'metal_rail', 'masonry_wall')),
    )
    plan.put('truck', lot.s0 + 6.5, lot.d(rng.uniform(4, 6)), rng.choice([0, np.pi]) + rng.normal(0, 0.1))
    plan.put(
        'other-vehicle',
        lot.s1 - 5.0,
        lot.d(rng.uniform(8, 10)),
        rng.uniform(0, 6.28),
        plan.dealer.deal('other-vehicle', ('caravan', 'tractor')),
    )
    if rng.random() < 0.6:
        plan.put(
            'car',
            lot.middle,
            lot.d(rng.uniform(10, 12)),
            rng.uniform(0, 6.28),
            plan.dealer.deal('car', ('pickup', 'van')),
        )
    plan.put('building', lot.middle, lot.d(20.5), lot.facing, 'garage', width=lot.width * 0.7, depth=8.0)
    plan.put('person', lot.middle + rng.uniform(-2, 2), lot.d(rng.uniform(2, 7)), rng.uniform(0, 6.28))


LOTS: dict[str, tuple[Callable[[Plan, Lot], None], float, float]] = {
    'house': (house, 15.0, 22.0),
    'apartments': (apartments, 18.0, 30.0),
    'office': (office, 18.0, 28.0),
    'shops': (shops, 9.0, 14.0),
    'garages': (garages, 9.5, 15.0),
    'car_park': (car_park, 22.0, 32.0),
    'park': (park, 20.0, 36.0),
    'yard': (yard, 20.0, 28.0),
}
CHARACTERS: dict[str, dict[str, float]] = {
    'residential': {'house': 0.55, 'apartments': 0.2, 'garages': 0.08, 'park': 0.14, 'car_park': 0.03},
    'downtown': {'shops': 0.5, 'office': 0.2, 'apartments': 0.2, 'car_park': 0.1},
    'suburb': {'house': 0.25, 'yard': 0.2, 'park': 0.25, 'car_park': 0.15, 'garages': 0.15},
}


def fill_side(plan: Plan, s0: float, s1: float, side: int, front: float, character: str) -> None:
    """Cut one side of a block into lots and build on them."""
    kinds = CHARACTERS[character]
    weights = np.array(list(kinds.values())) / sum(kinds.values())
    position = s0
    while s1 - position > 8.5:
        name = str(plan.rng.choice(list(kinds), p=weights))
        build, low, high = LOTS[name]
        width = plan.rng.uniform(low, high)
        left = s1 - position
        if left < low:
            fitting = [other for other in ('shops', 'garages') if LOTS[other][1] <= left] if left < 15 else ['house']
            if not fitting:
                break
            build, low, high = LOTS[fitting[-1] if character != 'downtown' else fitting[0]]
            width = min(left, high)
        elif left - width < 8.5:
            width = left if left <= high * 1.25 else left / 2 if left / 2 >= low else width
        build(plan, Lot(position, position + width, side, front))
        position += width
