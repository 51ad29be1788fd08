"""What moves in the synthetic street scenes: cars, people on foot, people on bicycles, and the car we sit in."""

from __future__ import annotations

import math
from functools import partial

from hwnas.data.base import IGNORE_LABEL
from hwnas.data.street import (
    BICYCLIST,
    CAR,
    CLOTHES,
    DARK,
    METAL,
    PAINT,
    PEDESTRIAN,
    SKIN,
    Colour,
    Street,
    Things,
    along,
    blend,
    shade,
)

# a bicycle and its rider from the side, bound for +x: bars from (x, y) to (x, y) in metres; limbs with half their width
_REAR, _FORE, _PEDAL, _SADDLE, _STEM = (-0.52, 0.34), (0.52, 0.34), (0.0, 0.3), (-0.1, 0.8), (0.4, 0.85)
_FRAME = ((_REAR, _SADDLE), (_SADDLE, _STEM), (_STEM, _PEDAL), (_PEDAL, _REAR), (_STEM, _FORE), (_PEDAL, _SADDLE))
_THIGH = ((-0.1, 0.9), (0.2, 0.62), 0.1)
_CALF = ((0.2, 0.62), (0.02, 0.2), 0.08)
_BACK = ((-0.12, 0.88), (0.15, 1.45), 0.19)
_ARM = ((0.15, 1.35), (0.45, 0.98), 0.07)
_LIMBS = (_THIGH, _CALF, _BACK, _ARM)


def traffic(s: Street) -> Things:
    """Draw where cars are: parked along the kerbs, and driving."""
    things: Things = []
    for side in (-1, 1):
        if s.uniform() < 0.6:
            z = s.uniform(5, 14)
            while z < 60:
                if s.uniform() < 0.65:
                    things.append((z, partial(_car, s, s.kerb[side] - side * 1.1, z)))
                z += s.uniform(5.2, 8)
        lane = (s.kerb[side] + (s.kerb[-1] + s.kerb[1]) / 2) / 2
        for z in along(s, s.count(0, 2), 8, 60):
            things.append((z, partial(_car, s, lane, z)))
    return things


def people(s: Street) -> Things:
    """Draw where people are: on the pavements, crossing, and cycling."""
    things: Things = []
    for side in (-1, 1):
        for z in along(s, s.count(1, 4), 4.5, 40):
            x = s.kerb[side] + (s.front[side] - s.kerb[side]) * s.uniform(0.2, 0.85)
            things.append((z, partial(_walker, s, x, z)))
        for z in along(s, s.count(0, 2), 5, 28):
            things.append((z, partial(_cyclist, s, s.kerb[side] - side * s.uniform(0.4, 1.4), z)))
    if s.uniform() < 0.4:
        things.append((z := s.uniform(6, 22), partial(_walker, s, s.uniform(s.kerb[-1], s.kerb[1]), z)))
    return things


def bonnet(s: Street) -> None:
    """Paint the bonnet of the car the camera is in: void."""
    z, half, colour = 1.3, s.uniform(0.5, 1.0), s.pick(PAINT)
    top = 1.5 - (s.size[0] * s.uniform(0.9, 0.97) - s.horizon) * z / s.focal
    turns = [math.pi * i / 12 for i in range(13)]
    arc = [(half * math.cos(t), top - 0.14 + 0.14 * math.sin(t), z) for t in turns]
    s.paint([*arc, (-half, -2, z), (half, -2, z)], colour, IGNORE_LABEL)
    s.paint([(0.8 * x, y - 0.02, z) for x, y, _ in arc], blend(colour, s.sky, 0.4), alpha=110)


def _car(s: Street, x: float, z: float) -> None:
    van = s.uniform() < 0.18
    half, length = s.uniform(0.8, 0.9), s.uniform(3.8, 4.6)
    waist, roof = (1.15, s.uniform(2.0, 2.6)) if van else (s.uniform(0.85, 0.98), s.uniform(1.38, 1.55))
    body, glass = s.pick(PAINT), blend(DARK, s.sky, s.uniform(0.1, 0.45))
    lit = 1.15 if s.sunny else 1.0
    s.floor((x - half - 0.15, x + half + 0.15), (z - 0.25, z + length + 0.2), (10, 10, 14), alpha=140)
    _flank(s, x, z, half, length, (waist, roof), shade(body, 0.82 * lit), glass)
    inset = 0.04 if van else 0.16
    cabin = [(x - half, waist, z), (x - half + inset, roof, z), (x + half - inset, roof, z), (x + half, waist, z)]
    s.paint(cabin, shade(body, lit), CAR)
    k = 0.8
    s.paint([(x + k * (px - x), waist + 0.05 + (py - waist) * 0.82, z) for px, py, _ in cabin], glass)
    s.box((x - half + 0.03, x - half + 0.25), (0, 0.4), z, DARK, CAR)
    s.box((x + half - 0.25, x + half - 0.03), (0, 0.4), z, DARK, CAR)
    s.box((x - half, x + half), (0.25, waist), z, shade(body, lit), CAR)
    s.box((x - half, x + half), (0.25, 0.48), z, shade(body, 0.6))
    towards = s.uniform() < 0.5
    lamp: Colour = (216, 214, 196) if towards else (168, 34, 30)
    for side in (-1, 1):
        s.box((x + side * half - 0.14, x + side * half + 0.14), (waist - 0.3, waist - 0.12), z, lamp, CAR)
    s.box((x - 0.26, x + 0.26), (0.52, 0.65), z, (206, 202, 190) if towards else (196, 168, 60))


def _flank(
    s: Street, x: float, z: float, half: float, length: float, y: tuple[float, float], body: Colour, glass: Colour
) -> None:
    """The side of a car that the camera sees, roof and bonnet."""
    waist, roof = y
    near = x - math.copysign(half, x)
    inner = x - math.copysign(half - 0.14, x)
    cabin = (z + 0.1, z + 0.72 * length)
    s.floor((x - half, x + half), (z, z + length), shade(body, 1.1), CAR, y=waist)
    s.wall(near, (0.25, waist), (z, z + length), body, CAR)
    s.paint([(near, waist, z), (inner, roof, z), (inner, roof, cabin[1]), (near, waist, cabin[1] + 0.5)], body, CAR)
    s.floor((x - half + 0.14, x + half - 0.14), (z, cabin[1]), shade(body, 1.2), CAR, y=roof)
    low, high = waist + 0.06, roof - 0.1
    for part in (0.05, 0.52):
        a, b = cabin[0] + part * (cabin[1] - cabin[0]), cabin[0] + (part + 0.42) * (cabin[1] - cabin[0])
        s.paint([(near, low, a), (inner, high, a), (inner, high, b), (near, low, b)], glass)
    for at in (0.18, 0.8):
        turns = [2 * math.pi * i / 10 for i in range(10)]
        tyre = [(near, 0.32 + 0.32 * math.sin(t), z + at * length + 0.32 * math.cos(t)) for t in turns]
        s.paint(tyre, DARK, CAR)
        hub = z + at * length
        s.paint([(a, (b + 0.32) / 2, (c + hub) / 2) for a, b, c in tyre], (120, 120, 124))


def _walker(s: Street, x: float, z: float) -> None:
    k = s.uniform(0.88, 1.08)  # of a person of 1.75 m
    stride, width = s.uniform(0.09, 0.28), s.uniform(0.2, 0.28) * k
    legs, coat, skin = s.pick(CLOTHES), s.pick(CLOTHES), s.pick(SKIN)
    s.floor((x - 0.3, x + 0.3), (z - 0.15, z + 0.15), (10, 10, 14), alpha=110)
    for side in (-1, 1):
        foot = x + side * stride
        hip = x + side * 0.08 * k
        leg = [(hip - 0.1, 0.9 * k, z), (hip + 0.1, 0.9 * k, z), (foot + 0.07, 0, z), (foot - 0.07, 0, z)]
        s.paint(leg, shade(legs, 1 - 0.12 * (side == 1)), PEDESTRIAN)
        s.box((foot - 0.09, foot + 0.09), (0, 0.08 * k), z, DARK, PEDESTRIAN)
    _torso(s, x, (0.82 * k, 1.47 * k), z, width, coat, PEDESTRIAN)
    swing = s.uniform(-0.15, 0.15)
    for side in (-1, 1):
        hand = x + side * (width + 0.03) + swing * side
        shoulder = x + side * (width - 0.04)
        arm = [(shoulder - 0.05, 1.4 * k, z), (shoulder + 0.05, 1.4 * k, z), (hand + 0.04, 0.8 * k, z)]
        s.paint([*arm, (hand - 0.04, 0.8 * k, z)], shade(coat, 0.85), PEDESTRIAN)
    _head(s, x, 1.6 * k, z, skin, PEDESTRIAN)


def _torso(s: Street, x: float, y: tuple[float, float], z: float, width: float, coat: Colour, label: int) -> None:
    low, high = y
    neck = high - 0.08
    shape = [(-0.85, low), (-1, neck), (-0.6, high), (0.6, high), (1, neck), (0.85, low)]
    s.paint([(x + a * width, b, z) for a, b in shape], coat, label)
    s.paint([(x + (0.5 * a + 0.45 * s.sun_side) * width, b, z) for a, b in shape], shade(coat, 1.2), alpha=90)


def _head(s: Street, x: float, y: float, z: float, skin: Colour, label: int) -> None:
    s.disc((x, y, z), 0.11, 0.15, skin, label)
    s.disc((x, y + 0.06, z), 0.12, 0.1, s.pick(((36, 28, 24), (84, 60, 40), (150, 124, 80), (60, 60, 62))), label)


def _cyclist(s: Street, x: float, z: float) -> None:
    """A person on a bicycle; the mask of a wheel is the whole disc, as annotators draw it."""
    coat, legs, skin, frame = s.pick(CLOTHES), s.pick(CLOTHES), s.pick(SKIN), s.pick((*PAINT, *METAL))
    s.floor((x - 0.5, x + 0.5), (z - 0.15, z + 0.15), (10, 10, 14), alpha=110)
    if s.uniform() < 0.5:  # seen from behind
        s.box((x - 0.05, x + 0.05), (0, 0.7), z, DARK, BICYCLIST)
        s.box((x - 0.3, x + 0.3), (0.98, 1.03), z, frame, BICYCLIST)
        for side in (-1, 1):
            knee = s.uniform(0.25, 0.6)
            s.box((x + side * 0.13 - 0.08, x + side * 0.13 + 0.08), (knee, 1.0), z, legs, BICYCLIST)
        _torso(s, x, (0.9, 1.5), z, 0.24, coat, BICYCLIST)
        _head(s, x, 1.64, z, skin, BICYCLIST)
        return
    way = s.side()
    for wheel in (-0.52, 0.52):
        s.disc((x + wheel, 0.34, z), 0.34, 0.34, DARK, BICYCLIST, alpha=0)
        _ring(s, x + wheel, z)
    for a, b in _FRAME:
        _bar(s, (x + way * a[0], a[1]), (x + way * b[0], b[1]), z, 0.03, frame)
    limbs = (legs, legs, coat, shade(coat, 0.85))
    for (a, b, half), colour in zip(_LIMBS, limbs, strict=True):
        _bar(s, (x + way * a[0], a[1]), (x + way * b[0], b[1]), z, half, colour)
    _head(s, x + way * 0.24, 1.6, z, skin, BICYCLIST)


def _bar(s: Street, a: tuple[float, float], b: tuple[float, float], z: float, half: float, colour: Colour) -> None:
    """A limb or tube of a cyclist from a to b, both (x, y)."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    k = half / math.hypot(dx, dy)
    ox, oy = -dy * k, dx * k
    corners = [(a[0] + ox, a[1] + oy), (b[0] + ox, b[1] + oy), (b[0] - ox, b[1] - oy), (a[0] - ox, a[1] - oy)]
    s.paint([(x, y, z) for x, y in corners], colour, BICYCLIST)


def _ring(s: Street, x: float, z: float) -> None:
    """A tyre that shows what lies behind it."""
    for i in range(10):
        a, b = 2 * math.pi * i / 10, 2 * math.pi * (i + 1) / 10
        corners = [(k * math.cos(t), k * math.sin(t)) for k, t in ((0.34, a), (0.34, b), (0.28, b), (0.28, a))]
        s.paint([(x + u, 0.34 + v, z) for u, v in corners], DARK)
