# SPDX-License-Identifier: Apache-2.0
"""One street: cross streets, sidewalks, curb-side things, traffic, and the triangles of it all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clusterplug.datasets.lidar_city.meshes.objects import Dealer
from clusterplug.datasets.lidar_city.scanner.materials import SPREAD
from clusterplug.datasets.lidar_city.world.ground import CROSS_LANES, HALF_WIDTH, LANES, ZEBRA, Course, Ground
from clusterplug.datasets.lidar_city.world.lots import CHARACTERS, fill_side
from clusterplug.datasets.lidar_city.world.plan import Instance, Mover, Plan
from clusterplug.datasets.lidar_city.world.scene_settings import BAYS, DRIVEN, NO_WISHES, SceneSettings

MARGIN = 75.0  # how far the street goes on before and behind the drive, meters
STRIP = 2.1  # width of the strip between road and sidewalk: parking bays, verge or more sidewalk, meters
EGO_SPEED = 8.0  # meters a second
LANE = 1.75  # distance of a lane's middle from the center line, meters


@dataclass
class Street:
    """A finished street.

    Attributes:
        course: center line and hills.
        vertices: (V, 3) float32, meters; the first rows are the ground's.
        triangles: (T, 3) uint32.
        material, instance: (T,) int.
        patch: (T,) row of ``ground.patches``, -1 where no paint can be.
        ground: patches and their street coordinates.
        movers: what moves.
        instances: entry n describes instance n + 1.
        label: (I + 1,) raw label of each instance.
        gain: (I + 1,) float32, a standard normal of each instance; materials turn it into a brightness.
    """

    course: Course
    vertices: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    instance: np.ndarray
    patch: np.ndarray
    ground: Ground
    movers: list[Mover]
    instances: list[Instance]
    label: np.ndarray
    gain: np.ndarray


def _cross_streets(rng: np.random.Generator, start: float, end: float) -> list[tuple[float, float]]:
    """Middle and half width of the cross streets."""
    crossings, s = [], start + rng.uniform(25.0, 70.0)
    while s < end - 20.0:
        crossings.append((s, rng.uniform(3.0, 4.0)))
        s += rng.uniform(60.0, 95.0)
    return crossings


def _blocks(crossings, start: float, end: float) -> list[tuple[float, float]]:
    edges = [start, *[e for s, half in crossings for e in (s - half - 2.0, s + half + 2.0)], end]
    return list(zip(edges[0::2], edges[1::2]))


def _strip_kind(rng: np.random.Generator, character: str) -> str:
    shares = {
        'residential': {'parking': 0.5, 'verge': 0.35, 'walk': 0.15},
        'downtown': {'parking': 0.5, 'walk': 0.35, 'tram': 0.15},
        'suburb': {'parking': 0.3, 'verge': 0.6, 'tram': 0.1},
    }[character]
    return str(rng.choice(list(shares), p=list(shares.values())))


def _lay_side(plan: Plan, block, side: int, half: float, walk: float, character: str) -> str:
    """Sidewalk and strip of one side of a block; returns the kind of strip."""
    s0, s1 = block
    kind = _strip_kind(plan.rng, character)
    near, far = side * half, side * (half + STRIP)
    plan.pave(s0, s1, near, side * (half + STRIP + walk), 'sidewalk', lift=0.13)
    inner = (s0 + 4.0, s1 - 4.0)
    if kind == 'parking':
        plan.pave(*inner, near, far, 'parking', lift=0.0, marking=4, marking_width=6.0, marking_origin=inner[0])
    elif kind == 'verge':
        plan.pave(
            *inner,
            near + side * 0.15,
            far,
            'terrain',
            plan.dealer.deal('terrain', ('lawn', 'tall_grass', 'soil')),
            lift=0.12,
        )
    elif kind == 'tram':
        plan.pave(s0, s1, near, far, 'other-ground', 'tram_track', lift=0.03)
        for rail in (half + 0.35, half + 1.75):  # rails stand proud of the gravel; they belong to the track
            plan.pave(s0, s1, side * rail, side * (rail + 0.08), 'other-ground', 'tram_track', lift=0.16)
    else:
        for s in np.arange(s0 + 6, s1 - 4, plan.rng.uniform(9, 14)):
            plan.pave(s - 0.7, s + 0.7, near + side * 0.35, near + side * 1.75, 'terrain', 'soil', lift=0.11)
            plan.put_tree(s, side * (half + STRIP / 2))
    if kind == 'verge':
        for s in np.arange(s0 + 5, s1 - 4, plan.rng.uniform(8, 13)):
            plan.put_tree(s + plan.rng.uniform(-1, 1), side * (half + STRIP / 2 + 0.1))
            if plan.rng.random() < 0.5:
                plan.put_bush(s + 3.5, side * (half + STRIP / 2 + 0.1), plan.rng.uniform(0, 6.28))
    return kind


def _park_cars(plan: Plan, block, side: int, half: float) -> None:
    """Vehicles in the bays along the curb."""
    rng, s = plan.rng, block[0] + 7.0
    parked, (cars, motorcycles, trucks, others) = plan.scene.parked, BAYS[plan.scene.objects]
    yaw = 0.0 if side < 0 else np.pi
    while s < block[1] - 8.0:
        kind, length = rng.random(), 6.0
        kind = kind / parked if parked else 1.0
        place = (side * (half + STRIP / 2), yaw + rng.normal(0, 0.02))
        if kind < cars:
            plan.put('car', s, *place)
        elif kind < motorcycles:
            for shift in (-1.6, 0.0, 1.6)[: int(rng.integers(1, 4))]:
                plan.put('motorcycle', s + shift, place[0], yaw + side * 0.9 + rng.normal(0, 0.1))
        elif kind < trucks:
            length = 10.0
            plan.put('truck', s + 2.5, *place)
        elif kind < others:
            length = 12.0
            plan.put('other-vehicle', s + 3.5, *place)
        s += length + rng.uniform(0.0, 0.6)


def _curb_side(plan: Plan, block, side: int, half: float, walk: float, character: str) -> None:
    """Lamps, signs, masts, cabinets along the curb; people and bicycles on the sidewalk."""
    rng, (s0, s1) = plan.rng, block
    pole_line, walk_line = side * (half + STRIP + 0.3), side * (half + STRIP + walk * 0.55)
    inwards = -np.pi / 2 * side
    oncoming = np.pi if side < 0 else 0.0
    lamp = 'utility_pole' if character == 'suburb' and rng.random() < 0.6 else 'street_lamp'
    for s in np.arange(s0 + rng.uniform(6, 14), s1 - 3, rng.uniform(22, 30)):
        plan.put('pole', s, pole_line, inwards, lamp)
    for s in (s0 + 2.0, s1 - 2.0):
        if rng.random() < 0.4:
            plan.put('pole', s, pole_line, oncoming, 'signal_mast')
        if rng.random() < 0.75:
            plan.put_sign(s + (1.1 if s < s0 + 3 else -1.1), pole_line, oncoming + rng.normal(0, 0.1))
    for _ in range(rng.poisson((s1 - s0) / 28.0)):
        plan.put_sign(rng.uniform(s0 + 5, s1 - 5), pole_line, oncoming + rng.normal(0, 0.15))
    if rng.random() < 0.5:
        plan.put('other-object', rng.uniform(s0 + 4, s1 - 4), pole_line, inwards, str(rng.choice(['cabinet', 'bin'])))
    busy = {'downtown': 22.0, 'residential': 45.0, 'suburb': 60.0}[character]
    people = plan.scene.people
    for _ in range(rng.poisson((s1 - s0) / busy * people)):
        plan.put('person', rng.uniform(s0, s1), walk_line + rng.uniform(-0.4, 0.4), rng.uniform(0, 6.28))
    for _ in range(rng.poisson((s1 - s0) / busy * people)):
        direction = rng.choice([-1.0, 1.0])
        plan.send('person', rng.uniform(s0, s1), direction * rng.uniform(0.9, 1.5), walk_line + rng.uniform(-0.4, 0.4))
    for class_name, metres in (('bicycle', 35.0), ('motorcycle', 90.0)):
        for _ in range(rng.poisson((s1 - s0) / metres * people)):
            plan.put(class_name, rng.uniform(s0 + 3, s1 - 3), pole_line + side * 0.35, rng.normal(0, 0.15))


def _backdrop(plan: Plan, crossings, start: float, end: float) -> None:
    """Large blocks and trees behind the lots: what far beams hit."""
    rng = plan.rng
    for side in (-1, 1):
        s = start + rng.uniform(0, 15)
        while s < end - 10:
            width = rng.uniform(14, 26)
            free = all(abs(s + width / 2 - middle) > width / 2 + half + 3 for middle, half in crossings)
            if free and rng.random() < 0.45:
                facing = 0.0 if side > 0 else np.pi
                name = str(rng.choice(['apartment_block', 'gabled_house']))
                size = {'width': width if name == 'apartment_block' else 11.0, 'depth': 11.0}
                plan.put('building', s + width / 2, side * rng.uniform(42, 48), facing, name, **size)
            elif free:
                for _ in range(5):
                    plan.put_tree(s + rng.uniform(0, width), side * rng.uniform(36, 56), low=True)
                for _ in range(4):
                    plan.put_bush(s + rng.uniform(0, width), side * rng.uniform(34, 50))
            s += width + rng.uniform(3, 14)


def _traffic(plan: Plan, length: float, half: float) -> None:
    """Vehicles in both lanes, cyclists at the edge of the road."""
    rng, duration = plan.rng, length / EGO_SPEED
    oncoming, s = 9.0, rng.uniform(14.0, 30.0)
    heavy = iter(rng.permutation(['truck', 'other-vehicle', 'motorcyclist', 'motorcyclist']))
    traffic, driven = plan.scene.traffic, DRIVEN.get(plan.scene.objects)
    while traffic and s < length + oncoming * duration + 40.0:
        name = 'car' if rng.random() < 0.6 else str(next(heavy, 'car'))
        name = name if driven is None else str(rng.choice(driven))
        plan.send(name, s, -oncoming, LANE, 'bus' if name == 'other-vehicle' else None)
        s += max(rng.uniform(24.0, 50.0) / traffic, 11.0)
    for ahead in (rng.uniform(14, 24), rng.uniform(36, 55), -rng.uniform(13, 24)):
        if rng.random() < 0.6 * traffic:
            name = str(rng.choice(driven or ['car', 'car', 'motorcyclist', 'truck']))
            plan.send(name, ahead, EGO_SPEED, -LANE)
    for _ in range(round(int(rng.integers(2, 5)) * plan.scene.people)):
        direction, meeting = rng.choice([-1.0, -1.0, 1.0]), rng.uniform(0.0, 1.0)
        speed = direction * rng.uniform(3.5, 6.0)
        place = meeting * length + rng.uniform(-10, 10) - speed * meeting * duration
        plan.send('bicyclist', place, speed, -direction * (half - 0.45))


def _pave_roads(plan: Plan, crossings, blocks, half: float, start: float, end: float) -> None:
    for middle, width in crossings:
        for edge in (middle - width - 2.0, middle + width):
            plan.pave(edge, edge + 2.0, -HALF_WIDTH, HALF_WIDTH, 'sidewalk', lift=0.13)
        subtype = plan.dealer.deal('road')
        paint = (
            {} if subtype == 'cobble' else {'marking': CROSS_LANES, 'marking_width': width, 'marking_origin': middle}
        )
        plan.pave(middle - width, middle + width, -HALF_WIDTH, HALF_WIDTH, 'road', subtype, **paint)
    joints = [start, *[middle for middle, _ in crossings], end]
    for s0, s1 in pairwise(joints):
        subtype = plan.dealer.deal('road')
        paint = {} if subtype == 'cobble' else {'marking': LANES, 'marking_width': half}
        plan.pave(s0, s1, -half, half, 'road', subtype, **paint)
    for middle, width in crossings:
        plan.pave(middle - width, middle + width, -half, half, 'road', 'asphalt')
        for s in (middle - width - 4.5, middle + width + 1.5):
            if plan.rng.random() < 0.6:
                plan.pave(s, s + 3.0, -half, half, 'road', 'asphalt', marking=ZEBRA)
    driven = max(blocks, key=lambda block: min(block[1], end - MARGIN) - max(block[0], start + MARGIN))
    for s0, s1 in blocks:  # the block that is driven through for longest always has an island
        if s1 - s0 > 30 and ((s0, s1) == driven or plan.rng.random() < 0.4):
            s = plan.rng.uniform(s0 + 8, s1 - 14)
            plan.pave(s, s + 6.0, -0.5, 0.5, 'other-ground', 'paved_island', lift=0.16)
            plan.put_sign(s + 0.6, 0.0, 0.0, 'round')
            plan.put('pole', s + 5.4, 0.0, 0.0, 'bollard')


def plan_street(seed: int, sequence: int, length: float, scene: SceneSettings = NO_WISHES) -> Plan:
    """Lay out a street.

    Args:
        seed: seed of the city.
        sequence: number of the street; every street has its own stream of random numbers.
        length: length of the drive, meters.
        scene: what is asked of the street; by default nothing.
    """
    rng = np.random.default_rng([seed, sequence, 0])
    start, end = -MARGIN, length + MARGIN
    plan = Plan(rng, Course(rng, start, end), Dealer(rng, sequence), scene)
    plan.pave(
        start, end, -HALF_WIDTH, HALF_WIDTH, 'terrain', plan.dealer.deal('terrain', ('lawn', 'tall_grass')), lift=0.12
    )
    crossings = _cross_streets(rng, start, end)
    blocks = _blocks(crossings, start, end)
    half, walks = rng.uniform(3.6, 4.6), rng.uniform(2.0, 3.4, 2)
    names = [str(name) for name in rng.permutation(list(CHARACTERS))]
    for index, block in enumerate(blocks):
        character = names[index % len(names)] if scene.street == 'mixed' else scene.street
        for side, walk in zip((-1, 1), walks):
            fill_side(plan, *block, side, half + STRIP + walk, character)
            kind = _lay_side(plan, block, side, half, walk, character)
            if kind == 'parking':
                _park_cars(plan, block, side, half)
            _curb_side(plan, block, side, half, walk, character)
    _pave_roads(plan, crossings, blocks, half, start, end)
    _backdrop(plan, crossings, start, end)
    _traffic(plan, length, half)
    return plan


def build_street(seed: int, sequence: int, length: float, scene: SceneSettings = NO_WISHES) -> Street:
    """Lay out a street and turn it into triangles; see :func:`plan_street` for the arguments."""
    plan = plan_street(seed, sequence, length, scene)
    ground = Ground(plan.course, plan.patches)
    vertices, triangles = [ground.mesh.vertices], [ground.mesh.triangles]
    material, instance = [ground.mesh.material], [ground.instance]
    count = len(ground.mesh.vertices)
    s, d = np.array([[p.s, p.d] for p in plan.placements]).T
    x, y = plan.course.place(s, d)
    z = ground.surface(s, d)
    heading = plan.course.heading(s)
    for index, p in enumerate(plan.placements):
        mesh = p.mesh.moved(x[index], y[index], z[index] + p.above - 0.02, heading[index] + p.yaw)
        vertices.append(mesh.vertices)
        triangles.append(mesh.triangles + count)
        material.append(mesh.material)
        instance.append(np.full(len(mesh.triangles), p.instance))
        count += len(mesh.vertices)
    all_instances = np.concatenate(instance)
    patch = np.full(len(all_instances), -1)
    patch[: len(ground.patch)] = ground.patch
    rng = np.random.default_rng([seed, sequence, 3])
    label = np.array([0] + [entry.label for entry in plan.instances])
    return Street(
        plan.course,
        np.concatenate(vertices).astype(np.float32),
        np.concatenate(triangles).astype(np.uint32),
        np.concatenate(material),
        all_instances,
        patch,
        ground,
        plan.movers,
        plan.instances,
        label,
        np.clip(rng.standard_normal(len(label)), -2.0, 2.0).astype(np.float32),
    )


def brightness(material: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Brightness factor of hits from their material's spread and their instance's number."""
    return np.exp(SPREAD.take(material) * gain)
