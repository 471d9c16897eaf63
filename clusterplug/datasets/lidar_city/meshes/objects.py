# SPDX-License-Identifier: Apache-2.0
"""From a sub-type's name to its mesh."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clusterplug.datasets.lidar_city.meshes import (
    shapes_buildings,
    shapes_people,
    shapes_plants,
    shapes_street,
    shapes_vehicles,
)
from clusterplug.datasets.lidar_city.meshes.mesh import Mesh
from clusterplug.datasets.lidar_city.world.catalogue import SUBTYPES

BUILDERS: dict[tuple[str, str], Callable[..., Mesh]] = {
    **{('car', name): getattr(shapes_vehicles, name) for name in ('sedan', 'hatchback', 'suv', 'van', 'pickup')},
    **{('truck', name): getattr(shapes_vehicles, name) for name in ('box_truck', 'tanker', 'flatbed')},
    **{('other-vehicle', name): getattr(shapes_vehicles, name) for name in ('bus', 'caravan', 'tractor')},
    **{('bicycle', name): getattr(shapes_people, name) for name in ('city_bike', 'racing_bike', 'cargo_bike')},
    **{('motorcycle', name): getattr(shapes_people, name) for name in ('scooter', 'naked', 'touring')},
    **{('person', name): getattr(shapes_people, name) for name in ('standing', 'walking', 'child', 'with_stroller')},
    **{('bicyclist', name): getattr(shapes_people, name) for name in ('upright_rider', 'racing_rider', 'cargo_rider')},
    **{
        ('motorcyclist', name): getattr(shapes_people, name)
        for name in ('scooter_rider', 'naked_rider', 'touring_rider')
    },
    **{
        ('building', name): getattr(shapes_buildings, name)
        for name in ('gabled_house', 'apartment_block', 'glass_office', 'shop', 'garage')
    },
    **{
        ('fence', name): getattr(shapes_street, name) for name in ('picket', 'chain_link', 'masonry_wall', 'metal_rail')
    },
    **{
        ('pole', name): getattr(shapes_street, name)
        for name in ('street_lamp', 'signal_mast', 'bollard', 'utility_pole', 'sign_post')
    },
    **{
        ('traffic-sign', name): getattr(shapes_street, f'{name}_sign')
        for name in ('round', 'triangle', 'rectangle', 'octagon')
    },
    **{('trunk', name): getattr(shapes_plants, f'{name}_trunk') for name in ('slim', 'thick', 'forked', 'leaning')},
    ('vegetation', 'broadleaf'): shapes_plants.broadleaf_crown,
    ('vegetation', 'conifer'): shapes_plants.conifer_crown,
    ('vegetation', 'bush'): shapes_plants.bush,
    ('vegetation', 'hedge'): shapes_plants.hedge,
    ('other-object', 'bin'): shapes_street.litter_bin,
    ('other-object', 'bench'): shapes_street.bench,
    ('other-object', 'cabinet'): shapes_street.cabinet,
}


class Dealer:
    """Deals sub-types so that their numbers follow the shares of the catalogue even in one short street.

    Each class has a shuffled pack with as many cards of a sub-type as its share says; a new pack begins when the old
    one is used up. The first pack of street n starts at the n-th card, so that classes with one or two instances a
    street still go through all their sub-types from street to street.
    """

    def __init__(self, rng: np.random.Generator, street: int):
        self._rng = rng
        self._street = street
        self._packs: dict[str, list[str]] = {}

    def deal(self, class_name: str, among: tuple[str, ...] | None = None) -> str:
        """The next sub-type of a class, or the next one among the given names."""
        key = class_name if among is None else f'{class_name}:{",".join(among)}'
        pack = self._packs.get(key)
        if not pack:
            cards = [
                subtype.name
                for subtype in SUBTYPES
                if subtype.class_name == class_name and (among is None or subtype.name in among)
                for _ in range(int(subtype.share))
            ]
            if pack is None:  # the same order in every street, but each street cuts the pack elsewhere
                order = np.random.default_rng(len(cards)).permutation(len(cards))
                cut = self._street % len(cards)
                pack = [cards[index] for index in np.roll(order, -cut)]
            else:
                pack = [cards[index] for index in self._rng.permutation(len(cards))]
            self._packs[key] = pack
        return pack.pop(0)
