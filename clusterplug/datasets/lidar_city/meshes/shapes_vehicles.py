# SPDX-License-Identifier: Apache-2.0
"""Cars, trucks and other vehicles. Every builder takes a random generator and returns one mesh, nose towards +x."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh, box, boxes, loft, merge, tube, wheel


def _wheels(front: float, rear: float, half_track: float, radius: float, width: float = 0.22) -> Mesh:
    hubs = [(x, y, radius) for x in (front, rear) for y in (-half_track, half_track)]
    return merge(*[wheel(hub, radius, width) for hub in hubs])


def _plates(front: float, rear: float, z: float) -> Mesh:
    return boxes([[0.02, 0.5, 0.12]] * 2, [[front, 0.0, z], [rear, 0.0, z]], 'plate')


def _mirrors(x: float, y: float, z: float) -> Mesh:
    return boxes([[0.12, 0.2, 0.14]] * 2, [[x, -y - 0.1, z], [x, y + 0.1, z]], 'paint')


class CarShape(NamedTuple):
    """What tells one kind of passenger car from another; lengths in meters, x towards the nose, 0 in the middle.

    Args:
        length: (least, most) of the whole car.
        width: (least, most), without mirrors.
        height: (least, most) of the roof.
        belt: Height of the window sill.
        hood: Height of the front edge of the bonnet.
        tail: Height of the boot lid, or of the tail where there is none.
        windscreen: x of its foot and of its top.
        rear_window: x of its foot and of its top; with ``hatch`` counted from the tail instead of the middle.
        hatch: Whether the rear window stands at the tail, however long the car is.
        clearance: Height of the sill above the ground.
        wheel_radius: Of all four.
    """

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    belt: float
    hood: float
    tail: float
    windscreen: tuple[float, float]
    rear_window: tuple[float, float]
    hatch: bool
    clearance: float
    wheel_radius: float


_CARS = {
    'sedan': CarShape(
        length=(4.5, 4.95), width=(1.76, 1.88), height=(1.40, 1.48), belt=0.92, hood=0.72, tail=0.98,
        windscreen=(0.85, 0.15), rear_window=(-1.55, -0.85), hatch=False, clearance=0.2, wheel_radius=0.32,
    ),
    'hatchback': CarShape(
        length=(3.6, 4.1), width=(1.65, 1.78), height=(1.46, 1.54), belt=0.93, hood=0.76, tail=0.93,
        windscreen=(0.95, 0.3), rear_window=(0.12, 0.45), hatch=True, clearance=0.2, wheel_radius=0.3,
    ),
    'suv': CarShape(
        length=(4.5, 4.9), width=(1.85, 1.98), height=(1.70, 1.86), belt=1.12, hood=0.98, tail=1.12,
        windscreen=(0.9, 0.35), rear_window=(0.1, 0.35), hatch=True, clearance=0.3, wheel_radius=0.38,
    ),
}  # fmt: skip


def _passenger_car(shape: CarShape, rng: np.random.Generator) -> Mesh:
    """A body up to the belt line with a glazed cabin on it."""
    length, width, height = (rng.uniform(*each) for each in (shape.length, shape.width, shape.height))
    belt, hood, clearance = shape.belt, shape.hood, shape.clearance
    half, nose, tail = width / 2, length / 2, -length / 2
    back = tail if shape.hatch else 0.0
    # (front, rear) x of the ends of the cabin at the belt line, and of those of the roof
    cabin = shape.windscreen[0], back + shape.rear_window[0]
    cabin_top = shape.windscreen[1], back + shape.rear_window[1]
    body = loft(
        [
            [nose, half * 0.80, half * 0.72, clearance + 0.12, hood - 0.12],
            [nose - 0.15, half * 0.96, half * 0.86, clearance, hood],
            [cabin[0], half, half * 0.93, clearance, belt],
            [cabin[1], half, half * 0.93, clearance, belt],
            [tail + 0.12, half * 0.97, half * 0.88, clearance, shape.tail],
            [tail, half * 0.85, half * 0.8, clearance + 0.15, shape.tail - 0.1],
        ]
    )
    sill, roof = half * 0.93, half * 0.74
    cabin_hull = loft(
        [
            [cabin[0], sill, sill * 0.98, belt - 0.02, belt],
            [cabin_top[0], sill, roof, belt - 0.02, height - 0.03],
            [(cabin_top[0] + cabin_top[1]) / 2, sill, roof, belt - 0.02, height],
            [cabin_top[1], sill, roof, belt - 0.02, height - 0.03],
            [cabin[1], sill, sill * 0.98, belt - 0.02, belt],
        ],
        sides='glass',
        top='glass',
    )
    roof_panel = loft(
        [
            [cabin_top[0] + 0.05, roof + 0.02, roof, height - 0.06, height - 0.02],
            [(cabin_top[0] + cabin_top[1]) / 2, roof + 0.02, roof, height - 0.05, height + 0.01],
            [cabin_top[1] - 0.05, roof + 0.02, roof, height - 0.06, height - 0.02],
        ]
    )
    pillars = [
        tube([[foot, y * sill, belt], [top, y * roof, height - 0.03]], 0.05, 'paint', sides=4, capped=False)
        for foot, top in ((cabin[0], cabin_top[0]), ((cabin[0] + cabin[1]) / 2,) * 2, (cabin[1], cabin_top[1]))
        for y in (-1.0, 1.0)
    ]
    axle = length * 0.3
    return merge(
        body,
        cabin_hull,
        roof_panel,
        *pillars,
        _wheels(axle, -axle, half - 0.12, shape.wheel_radius),
        _plates(nose + 0.01, tail - 0.01, clearance + 0.3),
        _mirrors(cabin[0] - 0.1, half * 0.93, belt),
    )


def sedan(rng: np.random.Generator) -> Mesh:
    """Three boxes: bonnet, low cabin, boot."""
    return _passenger_car(_CARS['sedan'], rng)


def hatchback(rng: np.random.Generator) -> Mesh:
    """Short car with a steep tail."""
    return _passenger_car(_CARS['hatchback'], rng)


def suv(rng: np.random.Generator) -> Mesh:
    """Tall, long-roofed car with large wheels."""
    return _passenger_car(_CARS['suv'], rng)


def van(rng: np.random.Generator) -> Mesh:
    """Delivery van: one tall box with a short sloping nose."""
    length, half, height = rng.uniform(4.8, 5.6), rng.uniform(0.95, 1.02), rng.uniform(1.95, 2.4)
    nose, tail = length / 2, -length / 2
    hull = loft(
        [
            [nose, half * 0.85, half * 0.8, 0.3, 0.85],
            [nose - 0.15, half, half * 0.9, 0.22, 1.0],
            [nose - 0.8, half, half * 0.95, 0.22, 1.15],
            [nose - 1.45, half, half * 0.9, 0.22, height - 0.05],
            [nose - 1.8, half, half * 0.9, 0.22, height],
            [tail, half, half * 0.9, 0.3, height],
        ]
    )
    screen = loft(
        [
            [nose - 0.82, half * 0.8, half * 0.8, 1.17, 1.19],
            [nose - 1.36, half * 0.8, half * 0.8, 1.2, height - 0.2],
        ],
        sides='glass',
    )
    side_windows = boxes(
        [[0.8, 0.04, 0.5]] * 2, [[nose - 1.75, -half + 0.02, 1.2], [nose - 1.75, half - 0.02, 1.2]], 'glass'
    )
    axle = length * 0.31
    return merge(
        hull,
        screen.moved(x=0.06),
        side_windows,
        _wheels(axle, -axle, half - 0.12, 0.34),
        _plates(nose + 0.01, tail - 0.01, 0.55),
        _mirrors(nose - 1.0, half, 1.25),
    )


def pickup(rng: np.random.Generator) -> Mesh:
    """Cabin in front of an open load bed."""
    length, half = rng.uniform(5.1, 5.5), rng.uniform(0.9, 0.97)
    nose, tail, height, belt = length / 2, -length / 2, rng.uniform(1.72, 1.85), 1.1
    body = loft(
        [
            [nose, half * 0.85, half * 0.8, 0.45, 0.85],
            [nose - 0.15, half, half * 0.9, 0.36, 1.0],
            [0.9, half, half * 0.94, 0.36, belt],
            [-0.75, half, half * 0.94, 0.36, belt],
        ]
    )
    cabin = loft(
        [
            [0.9, half * 0.94, half * 0.9, belt - 0.02, belt],
            [0.35, half * 0.94, half * 0.78, belt - 0.02, height],
            [-0.6, half * 0.94, half * 0.78, belt - 0.02, height],
            [-0.75, half * 0.94, half * 0.9, belt - 0.02, belt],
        ],
        sides='glass',
        top='paint',
    )
    bed_middle, bed_length = (tail - 0.75) / 2, -0.75 - tail
    bed = merge(
        box([bed_length, 2 * half, 0.1], [bed_middle, 0, 0.62]),
        boxes([[bed_length, 0.07, 0.7]] * 2, [[bed_middle, -half, 0.4], [bed_middle, half, 0.4]], 'paint'),
        box([0.07, 2 * half, 0.7], [tail, 0, 0.4]),
    )
    axle = length * 0.31
    return merge(
        body,
        cabin,
        bed,
        _wheels(axle, -axle, half - 0.1, 0.39, 0.26),
        _plates(nose + 0.01, tail - 0.04, 0.62),
        _mirrors(0.8, half * 0.95, belt),
    )


def _truck_cab(front: float, half: float, height: float) -> Mesh:
    hull = loft(
        [
            [front, half, half * 0.96, 0.4, height - 0.1],
            [front - 0.25, half, half * 0.96, 0.4, height],
            [front - 1.9, half, half * 0.96, 0.4, height],
        ]
    )
    glazing = merge(
        box([0.04, 1.8 * half, 0.8], [front + 0.01, 0, 1.55], 'glass'),
        boxes([[0.9, 0.04, 0.7]] * 2, [[front - 0.8, -half, 1.6], [front - 0.8, half, 1.6]], 'glass'),
    )
    return merge(hull, glazing, _mirrors(front - 0.1, half + 0.1, 1.7))


def _truck_chassis(front: float, rear: float, half: float, rear_axles: int) -> Mesh:
    frame = box([front - rear, 0.9, 0.25], [(front + rear) / 2, 0, 0.65], 'rubber')
    axles = [front - 1.2] + [rear + 1.3 + 1.3 * index for index in range(rear_axles)]
    wheels = [wheel((x, y, 0.5), 0.5, 0.32) for x in axles for y in (-half + 0.17, half - 0.17)]
    return merge(frame, *wheels)


def box_truck(rng: np.random.Generator) -> Mesh:
    """Lorry with a closed box."""
    length, half, top = rng.uniform(7.0, 9.5), 1.22, rng.uniform(3.2, 3.7)
    front, rear = length / 2, -length / 2
    load = length - 2.1
    return merge(
        _truck_cab(front, half, rng.uniform(2.6, 2.9)),
        _truck_chassis(front, rear, half, 1),
        box([load, 2.5, top - 0.95], [rear + load / 2, 0, 0.95], 'canvas'),
        _plates(front + 0.03, rear - 0.02, 0.6),
    )


def tanker(rng: np.random.Generator) -> Mesh:
    """Lorry with a lying round tank."""
    length, half, radius = rng.uniform(8.0, 10.0), 1.22, rng.uniform(1.0, 1.15)
    front, rear = length / 2, -length / 2
    axis = [[rear + 0.1, 0, 1.0 + radius], [rear + 0.4, 0, 1.0 + radius], [front - 2.6, 0, 1.0 + radius]]
    axis.append([front - 2.3, 0, 1.0 + radius])
    return merge(
        _truck_cab(front, half, rng.uniform(2.6, 2.9)),
        _truck_chassis(front, rear, half, 2),
        tube(axis, [0.7 * radius, radius, radius, 0.7 * radius], 'chrome', sides=14),
        boxes([[0.4, 0.4, 0.15]] * 2, [[-1.5, 0, 0.98 + 2 * radius], [0.3, 0, 0.98 + 2 * radius]], 'chrome'),
        _plates(front + 0.03, rear - 0.02, 0.6),
    )


def flatbed(rng: np.random.Generator) -> Mesh:
    """Lorry with low boards and some load."""
    length, half = rng.uniform(6.5, 8.5), 1.2
    front, rear = length / 2, -length / 2
    load = length - 2.2
    middle = rear + load / 2
    boards = merge(
        box([load, 2.4, 0.1], [middle, 0, 0.95], 'wood'),
        boxes([[load, 0.05, 0.5]] * 2, [[middle, -1.2, 1.0], [middle, 1.2, 1.0]], 'paint'),
        box([0.05, 2.4, 0.5], [rear, 0, 1.0]),
        box([0.08, 2.3, 1.4], [rear + load, 0, 1.0]),
    )
    count = int(rng.integers(1, 4))
    places = np.stack([rng.uniform(rear + 0.8, rear + load - 0.8, count), rng.uniform(-0.5, 0.5, count)], axis=1)
    load_boxes = boxes(
        rng.uniform([0.8, 0.8, 0.3], [1.4, 1.3, 1.0], (count, 3)), np.c_[places, np.full(count, 1.05)], 'wood'
    )
    return merge(
        _truck_cab(front, half, rng.uniform(2.4, 2.7)), _truck_chassis(front, rear, half, 1), boards, load_boxes
    )


def bus(rng: np.random.Generator) -> Mesh:
    """City bus: a long box with a band of windows."""
    length, half, top = rng.uniform(10.5, 12.0), 1.27, rng.uniform(2.95, 3.15)
    front, rear = length / 2, -length / 2
    lower = loft([[front, half, half, 0.3, 1.15], [rear, half, half, 0.3, 1.15]])
    band = loft([[front, half, half * 0.99, 1.1, top - 0.45], [rear, half, half * 0.99, 1.1, top - 0.45]], 'glass')
    roof = loft([[front - 0.05, half, half * 0.85, top - 0.5, top], [rear, half, half * 0.85, top - 0.5, top]])
    posts_x = np.arange(rear + 0.6, front, 1.5)
    posts = boxes([[0.12, 0.05, 1.5]], [[x, y, 1.1] for x in posts_x for y in (-half - 0.01, half + 0.01)], 'paint')
    return merge(
        lower,
        band,
        roof,
        posts,
        box([3.0, 1.6, 0.3], [rear + 2.5, 0, top]),
        _wheels(front - 2.6, rear + 3.0, half - 0.14, 0.48, 0.3),
        _mirrors(front + 0.1, half, 2.0),
    )


def caravan(rng: np.random.Generator) -> Mesh:
    """Caravan with a draw bar."""
    length, half, top = rng.uniform(4.6, 5.8), rng.uniform(1.05, 1.2), rng.uniform(2.4, 2.65)
    front, rear = length / 2, -length / 2
    hull = loft(
        [
            [front, half, half * 0.97, 0.75, top - 1.0],
            [front - 0.55, half, half * 0.97, 0.4, top - 0.1],
            [front - 1.3, half, half * 0.97, 0.4, top],
            [rear + 0.5, half, half * 0.97, 0.4, top],
            [rear, half, half * 0.97, 0.6, top - 0.45],
        ],
        sides='canvas',
    )
    windows = boxes([[1.2, 0.03, 0.6]] * 2, [[0.4, -half, 1.35], [0.4, half, 1.35]], 'glass')
    drawbar = merge(
        tube([[front - 0.2, -0.5, 0.5], [front + 1.2, 0, 0.45]], 0.05, 'steel', 5),
        tube([[front - 0.2, 0.5, 0.5], [front + 1.2, 0, 0.45]], 0.05, 'steel', 5),
        tube([[front + 1.1, 0, 0.0], [front + 1.1, 0, 0.6]], 0.04, 'steel', 5),
    )
    wheels = merge(wheel((-0.2, -half + 0.1, 0.32), 0.32, 0.2), wheel((-0.2, half - 0.1, 0.32), 0.32, 0.2))
    return merge(hull, windows, drawbar, wheels, _plates(front, rear - 0.02, 0.7))


def tractor(rng: np.random.Generator) -> Mesh:
    """Farm tractor: narrow bonnet, high glass cabin, two very large rear wheels."""
    scale = rng.uniform(0.95, 1.1)
    bonnet = loft([[1.9, 0.3, 0.28, 0.75, 1.35], [0.3, 0.4, 0.36, 0.75, 1.6]])
    cabin = loft([[0.3, 0.55, 0.7, 1.2, 2.55], [-1.2, 0.65, 0.72, 1.2, 2.55]], 'glass')
    posts = boxes([[0.08, 0.08, 1.4]], [[x, y, 1.2] for x in (0.3, -1.2) for y in (-0.68, 0.68)], 'paint')
    roof = box([1.9, 1.6, 0.15], [-0.45, 0, 2.55])
    wheels = merge(
        wheel((-0.8, -0.85, 0.85), 0.85, 0.5, sides=14),
        wheel((-0.8, 0.85, 0.85), 0.85, 0.5, sides=14),
        wheel((1.4, -0.75, 0.5), 0.5, 0.36),
        wheel((1.4, 0.75, 0.5), 0.5, 0.36),
    )
    exhaust = tube([[0.9, 0.3, 1.4], [0.9, 0.3, 2.5]], 0.05, 'steel', 6)
    chassis = box([2.8, 0.5, 0.4], [0.4, 0, 0.55], 'rubber')
    return merge(bonnet, cabin, posts, roof, wheels, exhaust, chassis).moved(scale=scale)
