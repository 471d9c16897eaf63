# SPDX-License-Identifier: Apache-2.0
"""People, bicycles, motorcycles and their riders. Builders take a random generator; the subject faces +x."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, box, ellipsoid, loft, merge, tube


def _limb(points, radii, material: str = 'cloth') -> Mesh:
    return tube(points, radii, material, sides=6)


def _body(height: float, lean: float, legs, hands, build: float = 1.0) -> Mesh:
    """A person from joints.

    Args:
        height: body height if upright, meters.
        lean: angle of the trunk from vertical towards +x, radians.
        legs: two (hip, knee, foot) triples of points.
        hands: two points.
        build: factor on the girth.
    """
    hip = (np.asarray(legs[0][0], dtype=float) + np.asarray(legs[1][0])) / 2
    trunk = np.array([np.sin(lean), 0.0, np.cos(lean)])
    chest, neck = hip + 0.26 * height * trunk, hip + 0.33 * height * trunk
    head = neck + 0.10 * height * np.array([np.sin(lean * 0.5), 0.0, np.cos(lean * 0.5)])
    girth = 0.095 * height * build
    parts = [
        tube([hip - 0.05 * trunk, chest, neck], [girth, girth * 1.25, girth * 0.75], 'cloth', sides=8),
        ellipsoid(head, [0.058 * height, 0.048 * height, 0.07 * height], 'skin'),
    ]
    for leg in legs:
        parts.append(_limb(leg, [0.05 * height * build, 0.036 * height, 0.028 * height]))
        foot = np.asarray(leg[2], dtype=float)
        parts.append(box([0.26 * height / 1.75, 0.09, 0.07], foot + [0.05, 0, -0.04], 'rubber'))
    for side, hand in zip((-1.0, 1.0), hands):
        shoulder = neck + np.array([0.0, side * 0.115 * height * build, -0.03 * height])
        elbow = (shoulder + np.asarray(hand)) / 2 + np.array([-0.04, side * 0.03, -0.05]) * height / 1.75
        parts.append(_limb([shoulder, elbow, hand], [0.03 * height, 0.025 * height, 0.02 * height]))
    return merge(*parts)


def standing(rng: np.random.Generator) -> Mesh:
    """An adult on both feet, arms down, half of them with a bag."""
    height = rng.uniform(1.58, 1.92)
    hip, foot = 0.5 * height, 0.06
    legs = [[[0, s * 0.09, hip], [0, s * 0.1, hip / 2], [0, s * 0.12, foot]] for s in (-1, 1)]
    hands = [[0.05, s * 0.27, 0.45 * height] for s in (-1, 1)]
    person = _body(height, 0.02, legs, hands, rng.uniform(0.9, 1.25))
    if rng.random() < 0.5:
        person = merge(person, box([0.3, 0.12, 0.3], [0.05, 0.32, 0.45 * height - 0.35], 'cloth'))
    return person


def walking(rng: np.random.Generator) -> Mesh:
    """An adult in mid-stride."""
    height, stride = rng.uniform(1.58, 1.92), rng.uniform(0.26, 0.4)
    hip, lead = 0.49 * height, 1 if rng.random() < 0.5 else -1
    legs = [
        [[0, s * 0.09, hip], [0.6 * s * lead * stride + 0.06, s * 0.09, hip / 2], [s * lead * stride, s * 0.08, 0.07]]
        for s in (-1, 1)
    ]
    hands = [[-s * lead * 0.3, s * 0.24, 0.5 * height] for s in (-1, 1)]
    return _body(height, 0.08, legs, hands, rng.uniform(0.9, 1.2))


def child(rng: np.random.Generator) -> Mesh:
    """A child of about one meter, large head, satchel on the back."""
    height = rng.uniform(0.95, 1.25)
    hip = 0.46 * height
    legs = [[[0, s * 0.07, hip], [s * 0.05, s * 0.07, hip / 2], [s * 0.1, s * 0.08, 0.06]] for s in (-1, 1)]
    hands = [[0.1 * s, s * 0.2, 0.45 * height] for s in (-1, 1)]
    satchel = box([0.18, 0.3, 0.34], [-0.2, 0, hip + 0.04], 'cloth')
    head = ellipsoid([0.02, 0, height * 0.92], [0.1, 0.09, 0.11], 'skin')
    return merge(_body(height, 0.04, legs, hands, 1.1), satchel, head)


def with_stroller(rng: np.random.Generator) -> Mesh:
    """An adult pushing a pram (labeled as one person, as in the recordings)."""
    height = rng.uniform(1.6, 1.85)
    hip = 0.49 * height
    legs = [[[0, s * 0.09, hip], [0.1 * s, s * 0.09, hip / 2], [0.2 * s, s * 0.08, 0.07]] for s in (-1, 1)]
    adult = _body(height, 0.12, legs, [[0.45, -0.2, 1.02], [0.45, 0.2, 1.02]])
    pram = merge(
        loft([[0.6, 0.24, 0.27, 0.5, 0.95], [1.0, 0.24, 0.27, 0.45, 0.85], [1.35, 0.2, 0.25, 0.55, 0.75]], 'cloth'),
        ellipsoid([0.78, 0, 0.9], [0.25, 0.25, 0.28], 'cloth'),
        tube([[0.45, 0, 1.02], [0.8, 0, 0.5]], 0.03, 'steel', 5),
        *[_ring((x, y, 0.16), 0.16) for x in (0.65, 1.25) for y in (-0.25, 0.25)],
    )
    return merge(adult, pram)


def _ring(at, radius: float, thickness: float = 0.028, sides: int = 14) -> Mesh:
    """A thin wheel rim in the x-z plane."""
    angle = 2 * np.pi * np.arange(sides + 1) / sides
    points = np.stack([radius * np.cos(angle), np.zeros(sides + 1), radius * np.sin(angle)], axis=1) + np.asarray(at)
    spokes = [tube([points[i], points[i + sides // 2]], 0.006, 'steel', 3, capped=False) for i in range(0, 7, 2)]
    return merge(tube(points, thickness, 'rubber', sides=5, capped=False), *spokes)


def _frame(joints) -> Mesh:
    return merge(*[tube([a, b], radius, 'steel', 5, capped=False) for a, b, radius in joints])


def city_bike(rng: np.random.Generator) -> Mesh:
    """Upright bicycle: wide bars, low step-through frame, mudguards and rack."""
    crank, seat, head = (-0.05, 0, 0.3), (-0.28, 0, 0.86), (0.4, 0, 0.9)
    frame = _frame(
        [(crank, seat, 0.025), (crank, head, 0.03), ((-0.53, 0, 0.35), crank, 0.02), ((-0.53, 0, 0.35), seat, 0.018)]
        + [(head, (0.56, 0, 0.35), 0.022), (head, (0.34, 0, 1.1), 0.02)]
    )
    bars = tube([[0.2, -0.32, 1.08], [0.36, 0, 1.12], [0.2, 0.32, 1.08]], 0.018, 'steel', 5)
    saddle = box([0.26, 0.18, 0.07], [-0.3, 0, 0.9], 'rubber')
    rack = box([0.4, 0.16, 0.03], [-0.58, 0, 0.74], 'steel')
    parts = [_ring((-0.53, 0, 0.35), 0.34), _ring((0.56, 0, 0.35), 0.34), frame, bars, saddle, rack]
    if rng.random() < 0.5:
        parts.append(box([0.34, 0.4, 0.26], [0.58, 0, 0.86], 'wire'))
    return merge(*parts).moved(scale=rng.uniform(0.95, 1.06))


def racing_bike(rng: np.random.Generator) -> Mesh:
    """Light bicycle: diamond frame, drop bars, no attachments."""
    crank, seat, head = (-0.02, 0, 0.28), (-0.24, 0, 0.92), (0.42, 0, 0.88)
    frame = _frame(
        [(crank, seat, 0.016), (crank, head, 0.02), (seat, head, 0.016), ((-0.48, 0, 0.34), crank, 0.012)]
        + [((-0.48, 0, 0.34), seat, 0.01), (head, (0.54, 0, 0.34), 0.015)]
    )
    drops = merge(*[tube([[0.46, 0, 0.92], [0.56, s, 0.9], [0.52, s, 0.76]], 0.014, 'steel', 4) for s in (-0.2, 0.2)])
    saddle = box([0.26, 0.11, 0.05], [-0.26, 0, 0.94], 'rubber')
    wheels = merge(_ring((-0.48, 0, 0.34), 0.33, 0.014), _ring((0.54, 0, 0.34), 0.33, 0.014))
    return merge(frame, drops, saddle, wheels).moved(scale=rng.uniform(0.97, 1.05))


def cargo_bike(rng: np.random.Generator) -> Mesh:
    """Long bicycle with a box between handlebar and front wheel."""
    crank, seat, head = (-0.45, 0, 0.3), (-0.68, 0, 0.88), (-0.05, 0, 0.95)
    frame = _frame(
        [(crank, seat, 0.028), (crank, head, 0.03), ((-0.92, 0, 0.34), crank, 0.02), ((-0.92, 0, 0.34), seat, 0.02)]
        + [(crank, (1.05, 0, 0.35), 0.04), (head, (-0.1, 0, 1.12), 0.02), (head, (-0.02, 0, 0.35), 0.03)]
    )
    bars = tube([[-0.22, -0.32, 1.1], [-0.1, 0, 1.13], [-0.22, 0.32, 1.1]], 0.018, 'steel', 5)
    length, width = rng.uniform(0.75, 0.95), rng.uniform(0.55, 0.68)
    bin_ = loft([[0.05, 0.2, width / 2, 0.3, 0.85], [0.05 + length, 0.2, width / 2, 0.35, 0.78]], 'wood')
    saddle = box([0.26, 0.18, 0.07], [-0.7, 0, 0.9], 'rubber')
    wheels = merge(_ring((-0.92, 0, 0.34), 0.33), _ring((1.2, 0, 0.25), 0.24))
    return merge(frame, bars, bin_, saddle, wheels)


def scooter(rng: np.random.Generator) -> Mesh:
    """Small wheels, flat footwell, leg shield."""
    return merge(
        tube([[-0.55, -0.06, 0.23], [-0.55, 0.06, 0.23]], 0.23, 'rubber', 10),
        tube([[0.65, -0.06, 0.23], [0.65, 0.06, 0.23]], 0.23, 'rubber', 10),
        loft([[-0.85, 0.14, 0.1, 0.4, 0.72], [-0.5, 0.2, 0.16, 0.32, 0.8], [-0.1, 0.18, 0.14, 0.25, 0.74]], 'paint'),
        box([0.5, 0.34, 0.1], [0.12, 0, 0.24], 'paint'),
        loft([[0.36, 0.22, 0.2, 0.25, 0.95], [0.44, 0.2, 0.16, 0.25, 1.0]], 'paint'),
        tube([[0.62, 0, 0.25], [0.4, 0, 1.05]], 0.05, 'paint', 6),
        tube([[0.3, -0.33, 1.05], [0.38, 0, 1.1], [0.3, 0.33, 1.05]], 0.022, 'steel', 5),
        box([0.62, 0.28, 0.1], [-0.42, 0, 0.76], 'rubber'),
        box([0.02, 0.2, 0.16], [-0.9, 0, 0.5], 'plate'),
    ).moved(scale=rng.uniform(0.97, 1.06))


def _heavy_wheels(front: float, rear: float) -> Mesh:
    return merge(
        tube([[rear, -0.09, 0.32], [rear, 0.09, 0.32]], 0.32, 'rubber', 12),
        tube([[front, -0.06, 0.31], [front, 0.06, 0.31]], 0.31, 'rubber', 12),
    )


def naked(rng: np.random.Generator) -> Mesh:
    """Motorcycle without fairing: open engine, round lamp, short tail."""
    return merge(
        _heavy_wheels(0.72, -0.7),
        loft([[0.3, 0.1, 0.12, 0.72, 0.98], [0.05, 0.16, 0.14, 0.7, 1.02], [-0.2, 0.12, 0.1, 0.7, 0.86]], 'paint'),
        box([0.55, 0.36, 0.42], [0.05, 0, 0.3], 'steel'),
        loft([[-0.2, 0.13, 0.13, 0.7, 0.83], [-0.95, 0.08, 0.1, 0.82, 0.92]], 'rubber'),
        tube([[0.72, -0.1, 0.31], [0.42, -0.1, 1.0]], 0.03, 'chrome', 5),
        tube([[0.72, 0.1, 0.31], [0.42, 0.1, 1.0]], 0.03, 'chrome', 5),
        tube([[0.28, -0.4, 1.08], [0.4, 0, 1.05], [0.28, 0.4, 1.08]], 0.022, 'steel', 5),
        ellipsoid([0.52, 0, 0.92], [0.1, 0.1, 0.1], 'chrome'),
        tube([[-0.1, -0.2, 0.35], [-0.85, -0.22, 0.45]], 0.06, 'chrome', 6),
        box([0.02, 0.2, 0.16], [-0.98, 0, 0.6], 'plate'),
    ).moved(scale=rng.uniform(0.97, 1.05))


def touring(rng: np.random.Generator) -> Mesh:
    """Large motorcycle with fairing, wind shield, side cases and top case."""
    return merge(
        _heavy_wheels(0.85, -0.78),
        loft(
            [
                [0.8, 0.15, 0.12, 0.6, 0.95],
                [0.55, 0.36, 0.3, 0.42, 1.15],
                [0.2, 0.34, 0.26, 0.3, 1.05],
                [-0.2, 0.24, 0.18, 0.3, 0.9],
            ]
        ),
        loft([[0.62, 0.22, 0.24, 1.1, 1.15], [0.35, 0.22, 0.24, 1.12, 1.5]], 'glass'),
        loft([[-0.1, 0.18, 0.18, 0.65, 0.85], [-0.75, 0.18, 0.18, 0.7, 0.9]], 'rubber'),
        box([0.6, 0.26, 0.4], [-0.7, -0.38, 0.42]),
        box([0.6, 0.26, 0.4], [-0.7, 0.38, 0.42]),
        box([0.42, 0.56, 0.36], [-0.98, 0, 0.95]),
        tube([[0.3, -0.42, 1.12], [0.42, 0, 1.1], [0.3, 0.42, 1.12]], 0.025, 'steel', 5),
        box([0.02, 0.2, 0.16], [-1.08, 0, 0.6], 'plate'),
    ).moved(scale=rng.uniform(0.98, 1.05))


def _rider(height: float, seat, foot, hands, lean: float, spread: float = 0.1) -> Mesh:
    """A seated body: hips on ``seat``, feet at ``foot``, hands on the bars."""
    legs = []
    for side, lift in ((-1, 0.0), (1, 0.16)):
        hip = np.array([seat[0], side * 0.09, seat[1] + 0.06])
        sole = np.array([foot[0], side * spread, foot[1] + lift])
        knee = (hip + sole) / 2 + np.array([0.22, side * 0.04, 0.1])
        legs.append([hip, knee, sole])
    return _body(height, lean, legs, [[hands[0], s * hands[1], hands[2]] for s in (-1, 1)])


def upright_rider(rng: np.random.Generator) -> Mesh:
    """Rider sitting up on a city bike."""
    return merge(city_bike(rng), _rider(rng.uniform(1.6, 1.85), (-0.28, 0.95), (-0.02, 0.18), (0.22, 0.3, 1.1), 0.15))


def racing_rider(rng: np.random.Generator) -> Mesh:
    """Rider bent low over drop bars, with a helmet."""
    rider = _rider(rng.uniform(1.65, 1.88), (-0.25, 0.98), (0.0, 0.16), (0.5, 0.2, 0.85), 0.95)
    return merge(racing_bike(rng), rider)


def cargo_rider(rng: np.random.Generator) -> Mesh:
    """Rider on a cargo bike, a child in the box."""
    rider = _rider(rng.uniform(1.6, 1.85), (-0.68, 0.95), (-0.42, 0.18), (-0.2, 0.3, 1.12), 0.18)
    passenger = merge(
        ellipsoid([0.5, 0, 0.85], [0.16, 0.18, 0.28], 'cloth'), ellipsoid([0.5, 0, 1.18], [0.1, 0.09, 0.11], 'skin')
    )
    return merge(cargo_bike(rng), rider, passenger)


def _helmet(seat_x: float, z: float) -> Mesh:
    return ellipsoid([seat_x, 0, z], [0.15, 0.13, 0.15], 'paint')


def scooter_rider(rng: np.random.Generator) -> Mesh:
    """Rider on a scooter, feet on the footwell."""
    rider = _rider(rng.uniform(1.6, 1.8), (-0.35, 0.85), (0.2, 0.36), (0.3, 0.32, 1.08), 0.08, 0.14)
    return merge(scooter(rng), rider, _helmet(-0.28, 1.68))


def naked_rider(rng: np.random.Generator) -> Mesh:
    """Rider leaning forward on an unfaired motorcycle."""
    rider = _rider(rng.uniform(1.68, 1.88), (-0.35, 0.85), (-0.15, 0.38), (0.28, 0.36, 1.06), 0.45, 0.22)
    return merge(naked(rng), rider, _helmet(0.02, 1.58))


def touring_rider(rng: np.random.Generator) -> Mesh:
    """Rider and passenger on a touring motorcycle."""
    rider = _rider(rng.uniform(1.68, 1.88), (-0.2, 0.86), (0.1, 0.38), (0.3, 0.4, 1.1), 0.15, 0.28)
    passenger = _rider(rng.uniform(1.6, 1.75), (-0.62, 0.95), (-0.3, 0.45), (-0.25, 0.25, 1.1), 0.1, 0.3)
    return merge(touring(rng), rider, passenger, _helmet(-0.1, 1.72), _helmet(-0.55, 1.78))
