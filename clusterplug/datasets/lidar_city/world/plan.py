# SPDX-License-Identifier: Apache-2.0
"""A street while it is being laid out: patches of ground, things to stand on it, things that move."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clusterplug.datasets.lidar_city.meshes.mesh import Mesh
from clusterplug.datasets.lidar_city.meshes.objects import BUILDERS, Dealer
from clusterplug.datasets.lidar_city.world.catalogue import SUBTYPE_ID, raw_label
from clusterplug.datasets.lidar_city.world.ground import Course, Patch
from clusterplug.datasets.lidar_city.world.scene_settings import NO_WISHES, SceneSettings

SURFACES = {
    ('road', 'asphalt'): ('asphalt', 0.004),
    ('road', 'cobble'): ('cobble', 0.02),
    ('road', 'concrete'): ('concrete', 0.003),
    ('parking', 'asphalt_bay'): ('asphalt', 0.005),
    ('parking', 'gravel_bay'): ('gravel', 0.03),
    ('parking', 'grass_paver'): ('grass', 0.02),
    ('sidewalk', 'slab'): ('slab', 0.004),
    ('sidewalk', 'brick'): ('brick_paving', 0.012),
    ('sidewalk', 'tarmac'): ('asphalt', 0.006),
    ('other-ground', 'gravel_yard'): ('gravel', 0.06),
    ('other-ground', 'tram_track'): ('gravel', 0.04),
    ('other-ground', 'paved_island'): ('brick_paving', 0.0),
    ('terrain', 'lawn'): ('grass', 0.03),
    ('terrain', 'tall_grass'): ('tall_grass', 0.08),
    ('terrain', 'embankment'): ('grass', 0.06),
    ('terrain', 'soil'): ('soil', 0.07),
}


@dataclass
class Instance:
    """What the hidden ground truth says about one instance."""

    class_name: str
    subtype: str
    moving: bool = False

    @property
    def label(self) -> int:
        return raw_label(self.class_name, self.subtype, self.moving)

    @property
    def subtype_id(self) -> int:
        return SUBTYPE_ID[self.class_name, self.subtype]


@dataclass
class Placement:
    """A mesh at street coordinates; ``above`` lifts its origin over the ground."""

    mesh: Mesh
    instance: int
    s: float
    d: float
    yaw: float
    above: float = 0.0


@dataclass
class Mover:
    """A mesh that drives or walks along the street: ``s = s0 + speed * t`` on the line ``d``."""

    mesh: Mesh
    instance: int
    s0: float
    speed: float
    d: float


@dataclass
class Plan:
    """Everything that makes up one street, before it is turned into triangles.

    Attributes:
        rng: the street's own source of randomness.
        course: center line and hills.
        dealer: chooses sub-types.
        scene: what was asked of the street.
        instances: entry n describes instance n + 1 (0 stays free for unlabeled points).
    """

    rng: np.random.Generator
    course: Course
    dealer: Dealer
    scene: SceneSettings = NO_WISHES
    patches: list[Patch] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    movers: list[Mover] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)

    def new_instance(self, class_name: str, subtype: str, moving: bool = False) -> int:
        """Register an instance and return its id."""
        self.instances.append(Instance(class_name, subtype, moving))
        return len(self.instances)

    def pave(self, s0, s1, d0, d1, class_name: str, subtype: str | None = None, **form) -> str:
        """Cover a rectangle of ground; returns the sub-type."""
        subtype = subtype or self.dealer.deal(class_name)
        material, bump = SURFACES[class_name, subtype]
        d0, d1 = min(d0, d1), max(d0, d1)
        patch = Patch(s0, s1, d0, d1, class_name, subtype, material, bump=bump, **form)
        patch.instance = self.new_instance(class_name, subtype)
        if patch.marking:  # lane paint is an instance of its own; white bay lines belong to their parking place
            is_road = class_name == 'road'
            patch.paint_instance = self.new_instance('road', 'lane_marking') if is_road else patch.instance
        self.patches.append(patch)
        return subtype

    def put(self, class_name: str, s, d, yaw=0.0, subtype: str | None = None, above: float = 0.0, **size) -> str:
        """Stand an object on the ground; returns the sub-type. ``yaw`` is relative to the street."""
        subtype = subtype or self.dealer.deal(class_name)
        mesh = BUILDERS[class_name, subtype](self.rng, **size)
        instance = self.new_instance(class_name, subtype)
        self.placements.append(Placement(mesh, instance, float(s), float(d), float(yaw), above))
        return subtype

    def put_run(self, class_name: str, s, d, yaw, length: float, subtype: str | None = None) -> None:
        """A fence or hedge of any length as one instance, in pieces that follow the ground."""
        subtype = subtype or ('hedge' if class_name == 'vegetation' else self.dealer.deal(class_name))
        instance = self.new_instance(class_name, subtype)
        pieces = max(1, round(length / 5.0))
        state = self.rng.integers(2**63)
        for index in range(pieces):  # each piece from the same state: one height and one pattern over the whole run
            along = (index + 0.5) / pieces * length - length / 2
            mesh = BUILDERS[class_name, subtype](np.random.default_rng(state), length / pieces)
            place = (s + along * np.cos(yaw), d + along * np.sin(yaw))
            self.placements.append(Placement(mesh, instance, float(place[0]), float(place[1]), float(yaw)))

    def grows(self) -> bool:
        """Whether one more plant is set; draws nothing from the street's random numbers without a wish."""
        return self.scene.greenery >= 1.0 or self.rng.random() < self.scene.greenery

    def put_bush(self, s, d, yaw=0.0) -> None:
        """A bush, where there are any."""
        if self.grows():
            self.put('vegetation', s, d, yaw, 'bush')

    def put_tree(self, s, d, crown: str | None = None, low: bool = False) -> None:
        """Trunk and crown: two instances of two classes; ``low`` branches begin near the ground (edge of a wood)."""
        rng = self.rng
        if not self.grows():
            return
        crown = crown or self.dealer.deal('vegetation', ('broadleaf', 'conifer'))
        trunk = self.dealer.deal('trunk')
        clear = rng.uniform(0.4, 1.0) if low else rng.uniform(0.8, 1.7) if crown == 'conifer' else rng.uniform(1.3, 2.5)
        yaw = rng.uniform(0, 2 * np.pi)
        self.put('trunk', s, d, yaw, trunk, height=clear + 0.7)
        self.put('vegetation', s, d, yaw, crown, base=clear, detail=0.4 if low else 1.0)

    def put_sign(self, s, d, yaw, subtype: str | None = None) -> None:
        """A traffic sign on its post: two instances of two classes."""
        height = self.rng.uniform(2.3, 2.9)
        self.put('pole', s, d, yaw, 'sign_post', height=height)
        self.put('traffic-sign', s, d, yaw, subtype, above=height - 0.4)

    def send(self, class_name: str, s0, speed, d, subtype: str | None = None) -> None:
        """Let an object move along the street."""
        subtype = subtype or self.dealer.deal(class_name)
        mesh = BUILDERS[class_name, subtype](self.rng)
        instance = self.new_instance(class_name, subtype, moving=True)
        self.movers.append(Mover(mesh, instance, float(s0), float(speed), float(d)))
