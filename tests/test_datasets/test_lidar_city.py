# SPDX-License-Identifier: Apache-2.0
"""The simulated sensor, the materials and the streets."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('open3d')

from clusterplug.datasets.lidar_city import SUBTYPES
from clusterplug.datasets.lidar_city.meshes.mesh import box, facade, quads, scatter, tube
from clusterplug.datasets.lidar_city.meshes.objects import BUILDERS, Dealer
from clusterplug.datasets.lidar_city.scanner.materials import (
    DETECTION_THRESHOLD,
    MATERIAL_ID,
    detection_probability,
    echo_strength,
    remission,
)
from clusterplug.datasets.lidar_city.scanner.raycasting import Scene
from clusterplug.datasets.lidar_city.scanner.scan import Caster
from clusterplug.datasets.lidar_city.scanner.sensor import (
    RANGE_NOISE,
    SENSOR_HEIGHT,
    beam_directions,
    beam_elevations,
    rotation,
)
from clusterplug.datasets.lidar_city.world.catalogue import CLASSES, LANE_MARKING
from clusterplug.datasets.lidar_city.world.ground import CROSS_LANES, LANES, ZEBRA, Course, Ground, Patch, painted
from clusterplug.datasets.lidar_city.world.plan import Mover
from clusterplug.datasets.lidar_city.world.street import build_street, plan_street

SIZES = {
    'building': {'width': 14.0, 'depth': 9.0},
    'fence': {'length': 5.0},
    'trunk': {'height': 3.0},
    'hedge': {'length': 5.0},
    'broadleaf': {'base': 1.5},
    'conifer': {'base': 1.0},
}


def rays_of(directions, origin=(0.0, 0.0, 0.0)):
    directions = np.asarray(directions, dtype=np.float32).reshape(-1, 3)
    return np.concatenate([np.broadcast_to(np.float32(origin), directions.shape), directions], axis=1)


def flat_street(material='plaster', movers=()):
    """A street with nothing but a level plane 1.73 m below the sensor at the origin."""
    size = 500.0
    mesh = quads([[[-size, -size, 0], [size, -size, 0], [size, size, 0], [-size, size, 0]]], material)
    patch = SimpleNamespace(paint_instance=0, marking=0, marking_width=0.0, marking_origin=0.0)
    ground = SimpleNamespace(
        patches=[patch],
        patch=np.zeros(2, dtype=np.int64),
        street_coordinates=mesh.vertices[:, :2],
        surface=lambda s, d: np.asarray(0.02),
    )
    course = SimpleNamespace(
        start=-100.0, end=100.0, place=lambda s, d: (np.asarray(s), np.asarray(d)), heading=lambda s: 0.0
    )
    return SimpleNamespace(
        course=course,
        vertices=mesh.vertices,
        triangles=mesh.triangles,
        material=mesh.material,
        instance=np.ones(2, dtype=np.int32),
        patch=np.zeros(2, dtype=np.int64),
        ground=ground,
        movers=list(movers),
        label=np.array([0, 40, 252]),
        gain=np.zeros(3, dtype=np.float32),
    )


def sensor_above_plane():
    pose = np.eye(4)
    pose[2, 3] = SENSOR_HEIGHT
    return pose


def test_beams_are_those_of_the_hdl_64e():
    degrees = np.degrees(beam_elevations())
    assert degrees.shape == (64,)
    assert np.all(np.diff(degrees) < 0)
    np.testing.assert_allclose(np.diff(degrees[:32]), -1 / 3, atol=1e-9)
    np.testing.assert_allclose(degrees[[0, 31, 32, 63]], [2.0, -25 / 3, -53 / 6, -24.8], atol=1e-9)


def test_a_turn_starts_behind_the_car_and_runs_clockwise():
    flat = beam_directions(4)[0] / np.cos(np.radians(2.0))
    np.testing.assert_allclose(flat[:, :2], [[-1, 0], [0, 1], [1, 0], [0, -1]], atol=1e-6)
    np.testing.assert_allclose(
        beam_directions(4, 0.5)[0, 0, :2] / np.cos(np.radians(2.0)), [-(0.5**0.5), 0.5**0.5], atol=1e-6
    )


def test_rotation_has_the_signs_of_a_car():
    np.testing.assert_allclose(rotation(np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    assert (rotation(0.0, pitch=0.1) @ [1, 0, 0])[2] < 0, 'positive pitch lowers the nose'
    assert (rotation(0.0, roll=0.1) @ [0, 1, 0])[2] > 0, 'positive roll lifts the left side'


def test_distances_to_a_plane_and_a_wall_by_hand():
    plane = quads([[[-99, -99, -1.73], [99, -99, -1.73], [99, 99, -1.73], [-99, 99, -1.73]]], 'asphalt')
    wall = quads([[[10, -5, -5], [10, 5, -5], [10, 5, 5], [10, -5, 5]]], 'brick')
    directions = beam_directions(4)  # columns look back, left, ahead, right
    elevation = beam_elevations()
    down = Scene(plane.vertices, plane.triangles).cast(rays_of(directions[:, 1]))
    reach = np.isfinite(down.distance)
    assert np.array_equal(reach, (elevation < 0) & (1.73 / np.tan(-np.minimum(elevation, -1e-9)) < 99))
    np.testing.assert_allclose(down.distance[reach], 1.73 / np.sin(-elevation[reach]), rtol=1e-4)
    np.testing.assert_allclose(down.cosine[reach], np.sin(-elevation[reach]), atol=1e-5)
    ahead = Scene(wall.vertices, wall.triangles).cast(rays_of(directions[:, 2]))
    np.testing.assert_allclose(ahead.distance, 10 / np.cos(elevation), rtol=1e-5)
    np.testing.assert_allclose(ahead.cosine, np.cos(elevation), atol=1e-5)


def test_noise_and_dropout_on_a_plane():
    caster = Caster(flat_street())
    scan = caster.scan(sensor_above_plane(), 0.0, 512, np.random.default_rng(0))
    # a plane point at measured range r and elevation e should have r = 1.73 / sin(-e)
    distance = np.linalg.norm(scan.points[:, :3].astype(np.float64), axis=1)
    elevation = np.arcsin(scan.points[:, 2] / distance)
    error = distance - SENSOR_HEIGHT / np.sin(-elevation)
    on_plane = (scan.labels & 0xFFFF) == 40
    near = on_plane & (distance < 20)
    assert near.sum() > 10_000
    assert abs(error[near].mean()) < 0.002
    assert error[near].std() == pytest.approx(RANGE_NOISE, rel=0.05)
    assert on_plane.mean() > 0.998
    assert np.array_equal(np.unique(scan.labels[on_plane] >> 16), [1])
    stray = scan.labels[~on_plane]
    assert len(stray) > 0
    assert np.all(stray == 1), 'stray returns are outliers without instance'
    # grazing beams fade: nothing is lost at 10 m, most is lost beyond 65 m
    rows = 64 * 512
    per_beam = np.bincount(np.abs(elevation[:, None] - beam_elevations()).argmin(axis=1), minlength=64) / 512
    expected = SENSOR_HEIGHT / np.sin(np.maximum(-beam_elevations(), 1e-9))
    assert per_beam[(expected > 4) & (expected < 15)].min() > 0.98
    assert per_beam[(expected > 70)].max() < 0.6
    assert len(scan.points) < rows


def test_moving_things_are_where_their_speed_takes_them():
    mover = Mover(box([1.0, 2.0, 3.0], material='canvas'), instance=2, s0=-10.0, speed=5.0, d=3.0)
    caster = Caster(flat_street(movers=[mover]))
    for time in (0.0, 4.0, 6.0):
        scan = caster.scan(sensor_above_plane(), time, 512, np.random.default_rng(1))
        points = scan.points[scan.labels == (252 | 2 << 16), :3]
        assert len(points) > 30
        middle = -10.0 + 5.0 * time
        np.testing.assert_array_less(np.abs(points[:, 0] - middle), 0.5 + 6 * RANGE_NOISE)
        np.testing.assert_array_less(np.abs(points[:, 1] - 3.0), 1.0 + 6 * RANGE_NOISE)
        assert points[:, 2].max() < 3.0 - SENSOR_HEIGHT + 0.1
        ground = scan.points[(scan.labels & 0xFFFF) == 40]
        inside = (np.abs(ground[:, 0] - middle) < 0.4) & (np.abs(ground[:, 1] - 3.0) < 0.9)
        assert not inside.any(), 'the box hides the ground under it'


def test_moving_and_still_triangles_give_the_same_picture():
    """Reference: the mover's triangles put into the still scene by plain matrix algebra."""
    mesh = BUILDERS['car', 'sedan'](np.random.default_rng(3))
    mover = Mover(mesh, instance=2, s0=9.0, speed=0.0, d=-4.0)
    street, other = flat_street(movers=[mover]), flat_street()
    placed = mesh.moved(9.0, -4.0, 0.0)
    other.vertices = np.concatenate([street.vertices, placed.vertices])
    other.triangles = np.concatenate([street.triangles, placed.triangles + len(street.vertices)])
    other.material = np.concatenate([street.material, placed.material])
    other.instance = np.concatenate([street.instance, np.full(len(placed.triangles), 2, dtype=np.int32)])
    other.patch = np.concatenate([street.patch, np.full(len(placed.triangles), -1)])
    rays = rays_of(beam_directions(256), (0.0, 0.0, SENSOR_HEIGHT))
    one, two = Caster(street), Caster(other)
    moving = one.first_surface(rays, one._traffic.at(0.0, np.array([0.0, 0.0, SENSOR_HEIGHT])))
    still = two.first_surface(rays, [])
    assert (still.instance == 2).sum() > 100
    differs = moving.instance != still.instance  # rays that graze an edge may fall to either side
    assert differs.sum() <= 3
    same = ~differs & np.isfinite(still.distance)
    np.testing.assert_allclose(moving.distance[same], still.distance[same], atol=2e-3)


def test_echo_and_detection_by_hand():
    assert echo_strength(np.array(0.4), np.array(0.5), np.array(5.0)) == pytest.approx(0.8)
    chance = detection_probability(DETECTION_THRESHOLD * np.array([0.5, 1.0, 2.0, 1e6, 0.0]))
    np.testing.assert_allclose(chance, [1 / 9, 0.5, 8 / 9, 1.0, 0.0], atol=1e-6)


def test_remission_is_quantised_bounded_and_falls_with_distance():
    def mean(material, cosine, distance):
        count = 4000
        value = remission(
            np.full(count, MATERIAL_ID[material]),
            np.ones(count, dtype=np.float32),
            np.full(count, cosine, dtype=np.float32),
            np.full(count, distance, dtype=np.float32),
            np.random.default_rng(0),
        )
        assert value.dtype == np.float32
        assert value.min() >= 0
        assert value.max() < 1
        np.testing.assert_allclose(value * 100, np.round(value * 100), atol=1e-4)
        return value.mean()

    assert mean('sign_face', 1.0, 10) > 2 * mean('plaster', 1.0, 10) > 2 * mean('rubber', 1.0, 10)
    assert mean('plaster', 1.0, 10) > mean('plaster', 0.2, 10)
    assert mean('plaster', 1.0, 10) > mean('plaster', 1.0, 60)
    assert mean('paint', 1.0, 10) > mean('paint', 0.8, 10) + 0.2, 'gloss shows at normal incidence only'


def test_paint_by_hand():
    s, d = np.array([1.0, 4.0, 1.0, 1.0]), np.array([0.0, 0.0, 3.25, 2.0])
    flat = np.zeros(4)
    assert painted(flat + LANES, flat + 3.5, flat, s, d).tolist() == [True, False, True, False]
    assert painted(flat + ZEBRA, flat, flat, s, np.array([0.2, 0.7, 1.2, -0.3])).tolist() == [True, False, True, False]
    across = painted(
        flat + CROSS_LANES, flat + 3.5, flat + 20, np.array([20.0, 20.0, 23.25, 22.0]), np.array([1, 4, 1, 1])
    )
    assert across.tolist() == [True, False, True, False]
    assert not painted(flat, flat + 3.5, flat, s, d).any()


def test_curbs_stand_between_patches():
    course = Course(np.random.default_rng(0), -10.0, 10.0)
    patches = [
        Patch(-10, 10, -62, 62, 'terrain', 'lawn', 'grass', bump=0.0, instance=1),
        Patch(-10, 10, -4, 4, 'road', 'asphalt', 'asphalt', bump=0.0, instance=2),
        Patch(-10, 10, 4, 6, 'sidewalk', 'slab', 'slab', lift=0.13, bump=0.0, instance=3),
    ]
    ground = Ground(course, patches)
    rise = ground.surface(np.array([0.0]), np.array([4.01])) - ground.surface(np.array([0.0]), np.array([3.99]))
    assert rise[0] == pytest.approx(0.13, abs=0.002)
    curbs = ground.mesh.material == MATERIAL_ID['curb']
    assert set(ground.instance[curbs]) == {3}
    corners = ground.mesh.vertices[ground.mesh.triangles[curbs]]
    heights = corners[..., 2].max(axis=1) - corners[..., 2].min(axis=1)
    assert heights.max() < 0.2
    # no hole: a ray straight down hits everywhere, and hits what `surface` says
    s, d = np.random.default_rng(1).uniform([[-9.5], [-60]], [[9.5], [60]], (2, 500))
    x, y = course.place(s, d)
    rays = np.stack([x, y, np.full(500, 50.0), *np.zeros((2, 500)), -np.ones(500)], axis=1).astype(np.float32)
    found = 50.0 - Scene(ground.mesh.vertices, ground.mesh.triangles).cast(rays).distance
    np.testing.assert_allclose(found, ground.surface(s, d), atol=0.03)


@pytest.mark.parametrize('key', sorted(BUILDERS), ids='-'.join)
def test_every_sub_type_has_a_sensible_mesh(key):
    size = SIZES.get(key[0], SIZES.get(key[1], {}))
    one, again, *others = (BUILDERS[key](np.random.default_rng(seed), **size) for seed in (0, 0, 1, 2))
    assert np.array_equal(one.vertices, again.vertices), 'the same generator gives the same mesh'
    assert any(not np.array_equal(one.vertices, other.vertices) for other in others), 'no two are alike'
    assert len(one.triangles) == len(one.material) > 0
    assert one.triangles.min() >= 0
    assert one.triangles.max() < len(one.vertices)
    assert np.isfinite(one.vertices).all()
    low, high = one.vertices.min(axis=0), one.vertices.max(axis=0)
    assert low[2] > -1.0
    assert high[2] < 30.0
    assert np.abs(one.vertices[:, :2]).max() < 20.0


def test_every_class_has_three_sub_types_and_every_placed_one_a_builder():
    names = {class_name: [entry.name for entry in SUBTYPES if entry.class_name == class_name] for class_name in CLASSES}
    assert min(map(len, names.values())) >= 3
    assert [entry.id for entry in SUBTYPES] == list(range(len(SUBTYPES)))
    ground = {'road', 'parking', 'sidewalk', 'other-ground', 'terrain'}
    assert {key[0] for key in BUILDERS} == set(CLASSES) - ground
    for class_name, name in BUILDERS:
        assert name in names[class_name]


def test_dealer_follows_the_shares():
    dealer = Dealer(np.random.default_rng(0), 0)
    shares = {entry.name: entry.share for entry in SUBTYPES if entry.class_name == 'car'}
    cards = [dealer.deal('car') for _ in range(int(3 * sum(shares.values())))]
    assert {name: cards.count(name) for name in shares} == {name: 3 * share for name, share in shares.items()}
    assert {Dealer(np.random.default_rng(s), s).deal('motorcyclist') for s in range(3)} == {
        'scooter_rider',
        'naked_rider',
        'touring_rider',
    }


def test_streets_show_every_class_and_sub_type():
    plans = [plan_street(0, sequence, 95.0) for sequence in range(4)]
    seen = {(entry.class_name, entry.subtype) for plan in plans for entry in plan.instances}
    assert seen == {(entry.class_name, entry.name) for entry in SUBTYPES}
    for plan in plans:
        present = {entry.class_name for entry in plan.instances}
        assert len(present) >= 18
        assert len(plan.instances) < 2**15, 'instance ids stay positive in a signed 32-bit label'


def test_a_street_is_one_of_its_seed_and_number():
    one, same, other, seeded = (build_street(*key, 20.0) for key in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert np.array_equal(one.vertices, same.vertices)
    assert np.array_equal(one.instance, same.instance)
    assert one.vertices.shape != other.vertices.shape or not np.allclose(one.vertices, other.vertices)
    assert one.vertices.shape != seeded.vertices.shape or not np.allclose(one.vertices, seeded.vertices)
    heights = one.vertices[np.unique(one.triangles[: len(one.ground.patch)])][:, 2]
    assert np.ptp(heights) > 0.3, 'the ground is not flat'
    assert LANE_MARKING in one.label
    assert one.instance.max() < len(one.label)
    assert one.instance.min() >= 1


def test_primitives_by_hand():
    cube = box([2.0, 2.0, 2.0])
    corners = cube.vertices[cube.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    assert area == pytest.approx(24.0)
    pipe = tube([[0, 0, 0], [0, 0, 3]], 0.5, 'steel', sides=64)
    corners = pipe.vertices[pipe.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    assert area == pytest.approx(2 * np.pi * 0.5 * 3 + 2 * np.pi * 0.25, rel=5e-3)
    turned = box([2.0, 1.0, 1.0]).moved(x=5.0, yaw=np.pi / 2)
    np.testing.assert_allclose(np.ptp(turned.vertices, axis=0), [1, 2, 1], atol=1e-12)
    leaves = scatter(np.zeros((50, 3)), 0.3, np.random.default_rng(0), 'leaf')
    assert np.linalg.norm(leaves.vertices, axis=1).max() < 0.3
    # one window of 1 x 1 m in a wall of 3 x 3 m, 0.2 m deep
    opening = np.zeros((3, 3), dtype=bool)
    opening[1, 1] = True
    lines = np.array([0.0, 1.0, 2.0, 3.0])
    wall = facade(lines, lines, np.where(opening, 0.2, 0.0), opening, 'brick', 'window')
    corners = wall.vertices[wall.triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    glass = wall.material == MATERIAL_ID['window']
    assert area[glass].sum() == pytest.approx(1.0)
    assert area[~glass].sum() == pytest.approx(8.0 + 4 * 0.2)
    np.testing.assert_allclose(wall.vertices[np.unique(wall.triangles[glass])][:, 1], 0.2)
