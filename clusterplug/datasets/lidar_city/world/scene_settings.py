# SPDX-License-Identifier: Apache-2.0
"""What can be asked of one street and of the weather and sensor that it is scanned with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clusterplug.core.checks import check_choice, check_number

SENSOR_HEIGHT = 1.73

STREETS = ('mixed', 'residential', 'downtown', 'suburb')
# Bounds of the random number that decides what stands in a bay: car, motorcycles, truck, other vehicle, nothing.
BAYS = {
    'mixed': (0.56, 0.66, 0.71, 0.75),
    'cars': (0.75, 0.75, 0.75, 0.75),
    'heavy': (0.15, 0.20, 0.50, 0.75),
    'two_wheelers': (0.10, 0.67, 0.70, 0.75),
}
# What drives in the oncoming lane, and ahead, where the mix is not the street's own.
DRIVEN = {
    'cars': ('car',),
    'heavy': ('truck', 'other-vehicle', 'truck', 'car'),
    'two_wheelers': ('motorcyclist', 'motorcyclist', 'motorcyclist', 'car'),
}
LEVELS = {
    'traffic': {'none': 0.0, 'light': 0.5, 'normal': 1.0, 'dense': 2.0},
    'parked': {'none': 0.0, 'light': 0.4, 'normal': 1.0, 'full': 4 / 3},
    'people': {'none': 0.0, 'few': 0.4, 'normal': 1.0, 'many': 3.0},
    'greenery': {'bare': 0.1, 'sparse': 0.5, 'normal': 1.0},
    'sensor_height': {'low': 1.3, 'normal': SENSOR_HEIGHT, 'high': 2.6},
}
_MOST = {'traffic': 3.0, 'parked': 4 / 3, 'people': 5.0, 'greenery': 1.0, 'sensor_height': 4.0}


class Weather(NamedTuple):
    """What the air does to an echo.

    Attributes:
        extinction: share of the light that a meter of air takes away, one way.
        clutter: chance that a pulse comes back from a drop or flake near the sensor.
        reach: mean distance of those returns behind the shortest range, meters.
        wet: share of the light that horizontal ground mirrors away.
    """

    extinction: float
    clutter: float
    reach: float
    wet: float


WEATHER: dict[str, Weather | None] = {
    'clear': None,
    'rain': Weather(extinction=0.020, clutter=0.01, reach=4.0, wet=0.6),
    'snow': Weather(extinction=0.045, clutter=0.05, reach=6.0, wet=0.0),
    'fog': Weather(extinction=0.100, clutter=0.02, reach=3.0, wet=0.2),
}
BEAMS = (64, 32, 16)


class SceneSettings(NamedTuple):
    """One street: defaults are the city without wishes, to the last bit.

    Attributes:
        street: kind of all its blocks; ``'mixed'`` goes through the kinds.
        objects: which vehicles are common.
        traffic, parked, people, greenery: factors on what a street has without wishes.
        weather: a name of :data:`WEATHER`.
        sensor_height: of the sensor over the ground, meters.
        beams: of 64, how many are used.
    """

    street: str = 'mixed'
    objects: str = 'mixed'
    traffic: float = 1.0
    parked: float = 1.0
    people: float = 1.0
    greenery: float = 1.0
    weather: str = 'clear'
    sensor_height: float = SENSOR_HEIGHT
    beams: int = 64


NO_WISHES = SceneSettings()


def scene_settings(wishes: Mapping, name: str = 'scene') -> SceneSettings:
    """Settings of a street from names of levels (``traffic='dense'``) or numbers (``traffic=2.0``).

    Args:
        wishes: values by the names of :class:`SceneSettings`; what is not named keeps its default.
        name: of the argument, for messages.

    Raises:
        TypeError, ValueError: a name or a value that there is not.

    Example:
        >>> scene_settings({'weather': 'fog', 'traffic': 'dense', 'sensor_height': 2.0})[2:8]
        (2.0, 1.0, 1.0, 1.0, 'fog', 2.0)
    """
    if not isinstance(wishes, Mapping):
        raise TypeError(f'{name} must be a dict of settings, got {type(wishes).__name__} ({wishes!r:.80})')
    for key in wishes:
        check_choice(key, f'a setting of {name}', SceneSettings._fields)
    found = dict(wishes)
    for key, allowed in (('street', STREETS), ('objects', BAYS), ('weather', WEATHER)):
        if key in found:
            check_choice(found[key], f'{name}[{key!r}]', allowed)
    for key, levels in LEVELS.items():
        value = found.get(key)
        if isinstance(value, str):
            found[key] = levels[check_choice(value, f'{name}[{key!r}]', levels, ' or a number')]
        elif key in found:
            least = 0.5 if key == 'sensor_height' else 0.0
            found[key] = check_number(value, f'{name}[{key!r}]', least, _MOST[key])
    if 'beams' in found:
        number = check_number(found['beams'], f'{name}["beams"]')
        if number not in BEAMS:
            raise ValueError(f'{name}["beams"] must be one of {BEAMS}, got {found["beams"]!r}')
        found['beams'] = int(number)
    return SceneSettings(**found)
