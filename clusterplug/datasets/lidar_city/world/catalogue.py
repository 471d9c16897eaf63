# SPDX-License-Identifier: Apache-2.0
"""The classes of the city and the hidden sub-types of each."""

from __future__ import annotations

from typing import NamedTuple

OUTLIER = 1
LANE_MARKING = 60


class SemanticClass(NamedTuple):
    """Raw SemanticKITTI ids of a class: at rest and, where it can move, moving."""

    label: int
    moving_label: int | None = None


class SubType(NamedTuple):
    """One hidden kind of a class. ``share`` is its weight among the instances of the class."""

    id: int
    class_name: str
    name: str
    share: float


CLASSES: dict[str, SemanticClass] = {
    'car': SemanticClass(10, 252),
    'bicycle': SemanticClass(11),
    'motorcycle': SemanticClass(15),
    'truck': SemanticClass(18, 258),
    'other-vehicle': SemanticClass(20, 259),
    'person': SemanticClass(30, 254),
    'bicyclist': SemanticClass(31, 253),
    'motorcyclist': SemanticClass(32, 255),
    'road': SemanticClass(40),
    'parking': SemanticClass(44),
    'sidewalk': SemanticClass(48),
    'other-ground': SemanticClass(49),
    'building': SemanticClass(50),
    'fence': SemanticClass(51),
    'vegetation': SemanticClass(70),
    'trunk': SemanticClass(71),
    'terrain': SemanticClass(72),
    'pole': SemanticClass(80),
    'traffic-sign': SemanticClass(81),
    'other-object': SemanticClass(99),
}

_SHARES: dict[str, dict[str, float]] = {
    'car': {'sedan': 3, 'hatchback': 3, 'suv': 2, 'van': 2, 'pickup': 1},
    'bicycle': {'city_bike': 2, 'racing_bike': 1, 'cargo_bike': 1},
    'motorcycle': {'scooter': 1, 'naked': 1, 'touring': 1},
    'truck': {'box_truck': 2, 'tanker': 1, 'flatbed': 1},
    'other-vehicle': {'bus': 1, 'caravan': 1, 'tractor': 1},
    'person': {'standing': 2, 'walking': 3, 'child': 1, 'with_stroller': 1},
    'bicyclist': {'upright_rider': 2, 'racing_rider': 1, 'cargo_rider': 1},
    'motorcyclist': {'scooter_rider': 1, 'naked_rider': 1, 'touring_rider': 1},
    'road': {'asphalt': 3, 'cobble': 1, 'concrete': 1, 'lane_marking': 0},
    'parking': {'asphalt_bay': 2, 'gravel_bay': 1, 'grass_paver': 1},
    'sidewalk': {'slab': 2, 'brick': 1, 'tarmac': 1},
    'other-ground': {'gravel_yard': 1, 'tram_track': 1, 'paved_island': 1},
    'building': {'gabled_house': 1, 'apartment_block': 1, 'glass_office': 1, 'shop': 1, 'garage': 1},
    'fence': {'picket': 1, 'chain_link': 1, 'masonry_wall': 1, 'metal_rail': 1},
    'vegetation': {'broadleaf': 3, 'conifer': 1, 'bush': 1, 'hedge': 1},
    'trunk': {'slim': 2, 'thick': 1, 'forked': 1, 'leaning': 1},
    'terrain': {'lawn': 2, 'tall_grass': 1, 'embankment': 1, 'soil': 1},
    'pole': {'street_lamp': 1, 'signal_mast': 1, 'bollard': 1, 'utility_pole': 1, 'sign_post': 1},
    'traffic-sign': {'round': 1, 'triangle': 1, 'rectangle': 1, 'octagon': 1},
    'other-object': {'bin': 1, 'bench': 1, 'cabinet': 1},
}

SUBTYPES: tuple[SubType, ...] = tuple(
    SubType(index, class_name, name, float(share))
    for index, (class_name, name, share) in enumerate(
        (class_name, name, share) for class_name, shares in _SHARES.items() for name, share in shares.items()
    )
)
SUBTYPE_ID = {(subtype.class_name, subtype.name): subtype.id for subtype in SUBTYPES}


def raw_label(class_name: str, subtype: str, moving: bool = False) -> int:
    """The raw SemanticKITTI id of an instance.

    Example:
        >>> raw_label('car', 'sedan'), raw_label('car', 'sedan', moving=True), raw_label('road', 'lane_marking')
        (10, 252, 60)
    """
    if subtype == 'lane_marking':
        return LANE_MARKING
    entry = CLASSES[class_name]
    return entry.moving_label if moving and entry.moving_label is not None else entry.label
