"""Paper dolls: drawn people, told apart by clothes, hair, skin, shoes and bag, who can turn and walk.

In: a seed and a name, which make a `Doll`; a `Pose`; a `Place` on a canvas. Out: a `Cutout`, paint and exact part
labels that `synthetic` lays on a scene. With dolls, no licensed photo is needed to test or show anything.

A hat, hair and beard belong to the head; a worn bag belongs to the torso, as a coat's tails do to the upper legs; a
handbag is no part of the body. Every part alone says something of who it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from random import Random
from typing import Final

from hpnet.data.cutouts import (
    CLOTH_COLOURS,
    Cloth,
    Colour,
    Cutout,
    Place,
    Point,
    between,
    box,
    capsule,
    ellipse,
    shade,
    varied,
)
from hpnet.parts import Part

Joint = tuple[float, float, float]  # x, y, and z towards the viewer

_SKINS: Final = ((250, 222, 200), (240, 200, 168), (222, 172, 132), (190, 134, 92), (146, 96, 62), (96, 62, 44))
_HAIR_COLOURS: Final = (
    (26, 22, 24), (64, 42, 30), (110, 68, 38), (168, 108, 52), (226, 190, 110), (170, 62, 28), (168, 166, 168),
    (240, 236, 230), (196, 60, 130), (60, 130, 170),
)  # fmt: skip
HAIR_STYLES: Final = ("bald", "short", "short", "crest", "bob", "long", "bun", "ponytail", "curls")
_HATS: Final = ("none", "none", "none", "cap", "beanie", "brimmed")
_BAGS: Final = ("none", "none", "backpack", "shoulder", "handbag")


@dataclass(frozen=True)
class Doll:
    """A person: all that stays the same from photo to photo."""

    skin: Colour
    hair: str
    hair_colour: Colour
    beard: bool
    glasses: bool
    hat: str
    hat_cloth: Cloth
    upper: Cloth
    cut: str  # "shirt", "jacket" (open over a shirt) or "coat" (over the upper legs too)
    under: Colour
    sleeve: float  # how far down the arm: 0 none, 1 elbow, 2 wrist
    logo: bool
    lower: Cloth
    legwear: str  # "trousers", "shorts" or "skirt"
    cuffs: bool
    socks: Cloth
    sock_height: float  # share of the lower leg
    shoes: Colour
    sole: Colour
    boots: bool
    bag: str
    bag_cloth: Cloth
    bag_side: int  # +1 the body's left, -1 its right
    girth: float
    shoulders: float

    @staticmethod
    def born(seed: int, name: int | str) -> Doll:
        """The doll of this name; the same seed and name give the same doll on every machine."""
        chance = Random(f"doll {seed} {name}")
        cut = chance.choice(("shirt", "shirt", "shirt", "jacket", "coat"))
        return Doll(
            skin=chance.choice(_SKINS),
            hair=chance.choice(HAIR_STYLES),
            hair_colour=varied(chance, chance.choice(_HAIR_COLOURS)),
            beard=chance.random() < 0.2,
            glasses=chance.random() < 0.2,
            hat=chance.choice(_HATS),
            hat_cloth=Cloth.chosen(chance, plain=0.7),
            upper=Cloth.chosen(chance),
            cut=cut,
            under=varied(chance, chance.choice(CLOTH_COLOURS)),
            sleeve=chance.choice((0.0, 0.6, 0.6, 1.2, 2.0)) if cut == "shirt" else 2.0,
            logo=chance.random() < 0.5,
            lower=Cloth.chosen(chance, plain=0.55),
            legwear=chance.choice(("trousers", "trousers", "trousers", "shorts", "skirt")),
            cuffs=chance.random() < 0.3,
            socks=Cloth.chosen(chance, plain=0.5),
            sock_height=chance.choice((0.15, 0.4, 0.75)),
            shoes=varied(chance, chance.choice(CLOTH_COLOURS)),
            sole=chance.choice(((240, 240, 236), (40, 40, 44), (196, 150, 90))),
            boots=chance.random() < 0.3,
            bag=chance.choice(_BAGS),
            bag_cloth=Cloth.chosen(chance, plain=0.7),
            bag_side=chance.choice((-1, 1)),
            girth=chance.uniform(0.9, 1.2),
            shoulders=chance.uniform(0.92, 1.12),
        )


@dataclass(frozen=True)
class Pose:
    """How a doll stands. Angles in radians; heading 0 faces the viewer, pi / 2 faces the picture's right."""

    heading: float
    stride: float = 0.0  # half the angle between the thighs at the widest step
    phase: float = 0.0
    elbows: tuple[float, float] = (0.3, 0.3)  # left, right

    @staticmethod
    def chosen(chance: Random, heading: float) -> Pose:
        """A step of a walk by chance, seldom with an arm raised (a telephone, a cup)."""
        elbows = [chance.uniform(0.1, 0.6) if chance.random() < 0.8 else chance.uniform(1.2, 2.0) for _ in range(2)]
        return Pose(heading, chance.uniform(0.05, 0.5), chance.uniform(0, 2 * pi), (elbows[0], elbows[1]))


def cut_out(doll: Doll, pose: Pose, place: Place, canvas: tuple[int, int], light: float = 0.0) -> Cutout:
    """Draw a doll: paint and part labels on an otherwise empty canvas of (height, width) pixels."""
    cutout = Cutout(canvas, place)
    _Figure(doll, pose, cutout).draw()
    return cutout.shaded(light)


class _Figure:
    """One doll being drawn. Joints live in 3-D (side, y, forward), so that turning moves everything as it should."""

    def __init__(self, doll: Doll, pose: Pose, cutout: Cutout) -> None:
        self.doll, self.pose, self.cutout = doll, pose, cutout
        self.ahead, self.across = cos(pose.heading), sin(pose.heading)
        self.drop = 0.0
        self.legs = [self._leg(side) for side in (1, -1)]
        # The lower foot stands on the ground, however long the step.
        self.drop = 0.94 - max(ankle[1] for _, _, ankle in self.legs)
        self.legs = [self._leg(side) for side in (1, -1)]
        self.arms = [self._arm(side) for side in (1, -1)]

    def draw(self) -> None:
        """Paint far things first."""
        away = self.ahead < 0
        far = [index for index, (_, elbow, _) in enumerate(self.arms) if elbow[2] < -0.05]
        for index in far:
            self._draw_arm(index)
        if not away:
            self._draw_fall()
            self._draw_backpack()
        for _, leg in sorted((leg[1][2], leg) for leg in self.legs):
            self._draw_leg(leg)
        self._draw_pelvis()
        self._draw_torso()
        if away:
            self._draw_backpack()
        for index in {0, 1}.difference(far):
            self._draw_arm(index)
        self._draw_head()

    # Where things are

    def at(self, side: float, y: float, forward: float) -> Joint:
        """A point of the body (side: towards its left) as x, y, z; a little is seen from above."""
        z = forward * self.ahead - side * self.across
        return side * self.ahead + forward * self.across, y + self.drop + 0.1 * z, z

    def _girdle(self, rings: Sequence[tuple[float, float, float]]) -> list[Point]:
        """The outline of a stack of rings (y, half width, half depth), as seen from this side."""
        halves = [(y + self.drop, hypot(w * self.ahead, d * self.across) * self.doll.girth) for y, w, d in rings]
        return [(-half, y) for y, half in halves] + [(half, y) for y, half in reversed(halves)]

    def _leg(self, side: int) -> tuple[Joint, Joint, Joint]:
        swing = side * self.pose.stride * sin(self.pose.phase)
        bend = 0.08 + 1.3 * self.pose.stride * max(0.0, side * cos(self.pose.phase))
        out = side * 0.052 * self.doll.girth
        knee_y, knee_forward = 0.5 + 0.225 * cos(swing), 0.225 * sin(swing)
        ankle_y, ankle_forward = knee_y + 0.215 * cos(swing - bend), knee_forward + 0.215 * sin(swing - bend)
        return self.at(out, 0.5, 0.0), self.at(out * 1.05, knee_y, knee_forward), self.at(out, ankle_y, ankle_forward)

    def _arm(self, side: int) -> tuple[Joint, Joint, Joint]:
        swing = -0.9 * side * self.pose.stride * sin(self.pose.phase)
        bent = swing + self.pose.elbows[0 if side > 0 else 1]
        shoulder = side * 0.108 * self.doll.girth * self.doll.shoulders
        elbow_y, elbow_forward = 0.215 + 0.15 * cos(swing), 0.15 * sin(swing)
        wrist_y, wrist_forward = elbow_y + 0.135 * cos(bent), elbow_forward + 0.135 * sin(bent)
        return (
            self.at(shoulder, 0.215, 0.0),
            self.at(shoulder + side * 0.022, elbow_y, elbow_forward),
            self.at(shoulder + side * 0.028, wrist_y, wrist_forward),
        )

    # Limbs

    def _draw_leg(self, leg: tuple[Joint, Joint, Joint]) -> None:
        doll, fill = self.doll, self.cutout.fill
        hip, knee, ankle = leg
        covered = doll.legwear == "trousers"
        wide = doll.girth
        fill(
            capsule(hip, knee, 0.056 * wide, 0.042 * wide), doll.lower if covered else doll.skin, Part.UPPER_LEGS.label
        )
        if doll.legwear == "shorts":
            fill(capsule(hip, between(hip, knee, 0.8), 0.062 * wide, 0.056 * wide), doll.lower, Part.UPPER_LEGS.label)
        fill(capsule(knee, ankle, 0.040 * wide, 0.028), doll.lower if covered else doll.skin, Part.LOWER_LEGS.label)
        if not covered:
            fill(
                capsule(between(ankle, knee, doll.sock_height), ankle, 0.034, 0.028),
                doll.socks,
                Part.LOWER_LEGS.label,
            )
        elif doll.cuffs:
            fill(capsule(between(ankle, knee, 0.3), ankle, 0.036, 0.030), doll.lower.second, Part.LOWER_LEGS.label)
        if doll.boots:
            fill(capsule(between(ankle, knee, 0.4), ankle, 0.038, 0.031), doll.shoes, Part.LOWER_LEGS.label)
        heel = (ankle[0] - 0.012 * self.across, ankle[1] + 0.030)
        toe = (ankle[0] + 0.085 * self.across, ankle[1] + 0.034 + 0.012 * self.ahead)
        sole = [(x, y + 0.010) for x, y in (heel, toe)]
        fill(capsule(sole[0], sole[1], 0.026, 0.024), doll.sole, Part.LOWER_LEGS.label)
        fill(capsule(heel, toe, 0.028, 0.023), doll.shoes, Part.LOWER_LEGS.label)

    def _draw_arm(self, index: int) -> None:
        doll, fill, label = self.doll, self.cutout.fill, Part.TORSO.label
        shoulder, elbow, wrist = self.arms[index]
        hand = between(elbow, wrist, 1.12)
        if doll.bag == "handbag" and doll.bag_side == (1, -1)[index]:
            self._draw_handbag(hand)
        fill(capsule(shoulder, elbow, 0.034, 0.027), doll.skin, label)
        fill(capsule(elbow, wrist, 0.026, 0.020), doll.skin, label)
        fill(ellipse(hand, 0.023, 0.026), doll.skin, label)
        if doll.sleeve > 0:
            loose = 0.006 if doll.cut == "shirt" else 0.012
            end = between(shoulder, elbow, min(1.0, doll.sleeve))
            if doll.sleeve > 1:
                below = between(elbow, wrist, doll.sleeve - 1)
                fill(capsule(elbow, below, 0.026 + loose, 0.022 + loose), doll.upper, label)
            fill(capsule(shoulder, end, 0.034 + loose, 0.029 + loose), doll.upper, label)

    def _draw_handbag(self, hand: Point) -> None:
        x, y = hand
        size = 0.055
        self.cutout.fill(box(x - 0.012, y - 0.01, x + 0.012, y + 0.05), shade(self.doll.bag_cloth.colour, 0.7))
        self.cutout.fill(box(x - size, y + 0.04, x + size, y + 0.15), self.doll.bag_cloth)

    # Trunk

    def _draw_pelvis(self) -> None:
        doll, label = self.doll, Part.UPPER_LEGS.label
        self.cutout.fill(
            self._girdle([(0.46, 0.088, 0.066), (0.50, 0.105, 0.078), (0.55, 0.09, 0.07)]), doll.lower, label
        )
        spread = 0.225 * self.pose.stride * abs(sin(self.pose.phase))
        if doll.legwear == "skirt":
            hem = [(0.46, 0.085, 0.065), (0.52, 0.11, 0.085), (0.70, 0.135, 0.10 + spread)]
            self.cutout.fill(self._girdle(hem), doll.lower, label)
        if doll.cut == "coat":
            hem = [(0.47, 0.11, 0.085), (0.55, 0.118, 0.092), (0.64, 0.125, 0.09 + 0.7 * spread)]
            self.cutout.fill(self._girdle(hem), doll.upper, label)

    def _draw_torso(self) -> None:
        doll, label = self.doll, Part.TORSO.label
        broad, loose = doll.shoulders, 0.008 if doll.cut != "shirt" else 0.0
        outline = self._girdle([
            (0.165, 0.035, 0.035), (0.187, 0.085 * broad, 0.045), (0.215, 0.118 * broad + loose, 0.06 + loose),
            (0.29, 0.112 * broad + loose, 0.078 + loose), (0.40, 0.093 + loose, 0.07 + loose),
            (0.485, 0.102 + loose, 0.078 + loose),
        ])  # fmt: skip
        self.cutout.fill(outline, doll.upper, label)
        if self.ahead > 0.15:
            self._draw_front()
        if doll.bag == "shoulder":
            self._draw_shoulder_bag()
        if doll.bag == "backpack" and self.ahead > 0:
            for side in (0.06, -0.06):
                strap = [self.at(side, 0.19, 0.04)[:2], self.at(side * 1.1, 0.36, 0.06)[:2]]
                self.cutout.line(strap, shade(doll.bag_cloth.colour, 0.85), 0.02)

    def _draw_front(self) -> None:
        doll, label, middle = self.doll, Part.TORSO.label, self.at(0.0, 0.3, 0.07)[0]
        narrow = self.ahead * doll.girth
        if doll.cut == "shirt":
            if doll.logo:
                logo = (middle, 0.29 + self.drop)
                self.cutout.fill(ellipse(logo, 0.042 * narrow, 0.038), doll.under, label)
            return
        top, low = 0.185 + self.drop, 0.485 + self.drop
        opening = [(middle - 0.05 * narrow, top), (middle + 0.05 * narrow, top), (middle + 0.025 * narrow, low),
                   (middle - 0.025 * narrow, low)]  # fmt: skip
        self.cutout.fill(opening, doll.under, label)

    def _draw_shoulder_bag(self) -> None:
        doll, side = self.doll, self.doll.bag_side
        front = 0.075 if self.ahead > 0 else -0.075
        strap = [
            self.at(-side * 0.09, 0.19, 0.0)[:2],
            self.at(0.0, 0.33, front)[:2],
            self.at(side * 0.11, 0.47, 0.0)[:2],
        ]
        self.cutout.line(strap, shade(doll.bag_cloth.colour, 0.8), 0.018)
        x, y, z = self.at(side * 0.125, 0.50, 0.0)
        if z > -0.06:
            half = hypot(0.035 * self.ahead, 0.075 * self.across)
            self.cutout.fill(box(x - half, y - 0.05, x + half, y + 0.06), doll.bag_cloth, Part.TORSO.label)

    def _draw_backpack(self) -> None:
        doll = self.doll
        if doll.bag != "backpack":
            return
        x, y, _ = self.at(0.0, 0.32, -0.10)
        half = hypot(0.085 * self.ahead, 0.055 * self.across)
        pack = [(x - half, y - 0.09), (x - half * 0.6, y - 0.125), (x + half * 0.6, y - 0.125), (x + half, y - 0.09),
                (x + half, y + 0.10), (x - half, y + 0.10)]  # fmt: skip
        self.cutout.fill(pack, doll.bag_cloth, Part.TORSO.label)
        pocket = box(x - half * 0.7, y + 0.02, x + half * 0.7, y + 0.08)
        self.cutout.fill(pocket, shade(doll.bag_cloth.colour, 0.8), Part.TORSO.label)

    # Head

    def _draw_fall(self) -> None:
        """Hair that hangs down from the head, behind everything or, seen from behind, over everything."""
        doll, (x, y, _) = self.doll, self.at(0.0, 0.09, -0.02)
        length = {"bob": 0.085, "long": 0.20}.get(doll.hair)
        if length is not None:
            wide = hypot(0.074 * self.ahead, 0.062 * self.across)
            fall = [(x - wide, y), (x + wide, y), (x + wide * 1.05, y + length * 0.85), (x + wide * 0.6, y + length),
                    (x - wide * 0.6, y + length), (x - wide * 1.05, y + length * 0.85)]  # fmt: skip
            self.cutout.fill(fall, doll.hair_colour, Part.HEAD.label)
        if doll.hair == "ponytail":
            root, end = self.at(0.0, 0.05, -0.07), self.at(0.0, 0.22, -0.10)
            self.cutout.fill(capsule(root, end, 0.022, 0.014), doll.hair_colour, Part.HEAD.label)

    def _draw_head(self) -> None:
        doll, fill, label = self.doll, self.cutout.fill, Part.HEAD.label
        x, y, _ = self.at(0.0, 0.088, 0.01)
        fill(capsule((x, y + 0.05), (x, y + 0.105), 0.030, 0.034), doll.skin, label)
        volume = {"curls": 1.4, "bob": 1.15, "long": 1.12, "bald": 1.0}.get(doll.hair, 1.08)
        hair = doll.skin if doll.hair == "bald" else doll.hair_colour
        if doll.hair == "bun" and doll.hat == "none":
            fill(ellipse(self.at(0.0, 0.0, -0.03)[:2], 0.034, 0.03), hair, label)
        if doll.hair == "crest" and doll.hat == "none":
            fill(
                [
                    (x - 0.04, y - 0.05),
                    (x - 0.045, y - 0.115),
                    (x, y - 0.10),
                    (x + 0.045, y - 0.118),
                    (x + 0.04, y - 0.05),
                ],
                hair,
                label,
            )
        fill(ellipse((x - 0.008 * self.across, y), 0.064 * volume, 0.078 * volume), hair, label)
        self._draw_face(x, y)
        if self.ahead < 0:
            self._draw_fall()
        self._draw_hat(x, y)

    def _draw_face(self, x: float, y: float) -> None:
        doll, fill, label = self.doll, self.cutout.fill, Part.HEAD.label
        seen = min(1.0, 0.58 + 0.5 * self.ahead)
        if seen < 0.2:
            return
        middle = (x + 0.032 * self.across, y + 0.016)
        fill(ellipse(middle, 0.056 * seen, 0.064), doll.skin, label, seam=False)
        if doll.beard:
            fill(ellipse((middle[0], y + 0.05), 0.046 * seen, 0.032), doll.hair_colour, label, seam=False)
        eyes = [eye for eye in (self.at(side, 0.095, 0.052) for side in (0.024, -0.024)) if eye[2] > 0.012]
        for eye in eyes:
            fill(ellipse(eye, 0.0085, 0.010), (30, 26, 30), label, seam=False)
            if doll.glasses:
                rim = ellipse(eye, 0.021, 0.019)
                self.cutout.line([*rim, rim[0]], (20, 20, 24), 0.007)
        mouth = self.at(0.0, 0.128, 0.054)
        if eyes and mouth[2] > 0.01:
            self.cutout.line(
                [(mouth[0] - 0.016 * seen, mouth[1]), (mouth[0] + 0.016 * seen, mouth[1])], (150, 62, 60), 0.009
            )

    def _draw_hat(self, x: float, y: float) -> None:
        doll, label = self.doll, Part.HEAD.label
        if doll.hat == "none":
            return
        brow = y - 0.022
        dome = [(x + 0.072 * cos(turn), brow - 0.072 * sin(turn)) for turn in (pi * step / 12 for step in range(13))]
        self.cutout.fill(dome, doll.hat_cloth, label)
        if doll.hat == "beanie":
            self.cutout.fill(box(x - 0.074, brow - 0.022, x + 0.074, brow + 0.006), doll.hat_cloth.second, label)
            self.cutout.fill(ellipse((x, brow - 0.08), 0.02, 0.02), doll.hat_cloth.second, label)
        if doll.hat == "brimmed":
            self.cutout.fill(ellipse((x, brow), 0.115, 0.02), doll.hat_cloth, label)
        if doll.hat == "cap" and self.ahead > -0.5:
            peak = (x + 0.075 * self.across, brow + 0.004)
            self.cutout.fill(ellipse(peak, 0.058, 0.016), shade(doll.hat_cloth.colour, 0.75), label)
