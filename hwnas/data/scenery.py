"""What stands still in the synthetic street scenes: ground, houses, fences, trees, lamps, signs."""

from __future__ import annotations

import math
from functools import partial

from hwnas.data.base import IGNORE_LABEL
from hwnas.data.street import (
    BUILDING,
    DARK,
    FENCE,
    GREY,
    LEAVES,
    METAL,
    NEAREST,
    PAINT,
    PAVEMENT,
    PAVING,
    POLE,
    ROAD,
    SIGN,
    SIGNS,
    TREE,
    WALLS,
    WHITE,
    Colour,
    Span,
    Street,
    Things,
    along,
    blend,
    shade,
)
from hwnas.data.traffic import bonnet, people, traffic

_FARTHEST = 75.0  # metres, of house fronts


def paint_scene(s: Street) -> None:
    """Paint a whole scene: far things, ground, house fronts, then all that stands before them, far to near."""
    _backdrop(s)
    _ground(s)
    for side in (-1, 1):
        _fronts(s, side)
    things = [*_furniture(s), *traffic(s), *people(s)]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    if s.uniform() < 0.35:
        bonnet(s)


def _backdrop(s: Street) -> None:
    z, x = 110.0, -140.0
    while x < 140:
        width = s.uniform(6, 22)
        if s.uniform() < 0.6:
            s.box((x, x + width), (0, s.uniform(5, 16)), z, s.pick(WALLS), BUILDING)
        else:
            for _ in range(6):
                centre = (x + s.uniform(0, width), s.uniform(1, 6), z)
                s.disc(centre, s.uniform(3, 6), s.uniform(2, 5), s.pick(LEAVES[:5]), TREE)
        x += width * s.uniform(0.7, 1.1)


def _ground(s: Street) -> None:
    z = (NEAREST, 400.0)
    left, right = s.kerb[-1], s.kerb[1]
    s.floor((-400, 400), z, s.pick(PAVING), PAVEMENT)
    s.floor((left, right), z, s.pick(GREY), ROAD)
    for side in (-1, 1):
        kerb = s.kerb[side]
        s.floor((kerb, kerb + side * 0.18), z, s.pick(GREY[2:4]))
        if s.uniform() < 0.5:
            s.floor((kerb - side * 0.45, kerb - side * 0.3), z, (176, 150, 60), alpha=150)
    middle, start = (left + right) / 2, s.uniform(1, 4)
    for i in range(14):
        s.floor((middle - 0.07, middle + 0.07), (start + 5 * i, start + 5 * i + 2.5), WHITE, alpha=200)
    if s.uniform() < 0.3:
        crossing, n = s.uniform(7, 20), int((right - left) / 1.1)
        for i in range(n):
            s.floor((left + 1.1 * i + 0.3, left + 1.1 * i + 0.85), (crossing, crossing + 2.8), WHITE, alpha=190)
    if s.sunny:  # the row of houses on the side of the sun shades the street, gable by gable
        far, side = _FARTHEST, s.sun_side
        while far > 2:
            near = far * s.uniform(0.6, 0.9)
            s.floor((s.front[side], s.front[side] - side * s.uniform(0.5, 7)), (near, far), (12, 14, 26), alpha=105)
            far = near


def _fronts(s: Street, side: int) -> None:
    x, far = s.front[side], _FARTHEST
    while far > 1.5:
        near = max(NEAREST, far - s.uniform(6, 14))
        if s.uniform() < 0.74:
            _house(s, side, x + side * s.uniform(0, 0.8), (near, far))
        else:
            _yard(s, side, x, (near, far))
        far = near


def _house(s: Street, side: int, x: float, z: Span) -> None:
    lit = 1.12 if s.sunny and side != s.sun_side else 0.8 if s.sunny else 0.95
    storeys, storey = s.count(2, 5), s.uniform(2.7, 3.3)
    top, wall = storeys * storey, shade(s.pick(WALLS), lit)
    if s.uniform() < 0.5:
        ridge, roof = top + s.uniform(1.5, 3), shade(s.pick(WALLS[4:9]), 0.7)
        eaves, peak = (x, top, z[0]), (x + side * 4, ridge, z[0])
        s.paint([eaves, peak, (x + side * 8, top, z[0])], shade(wall, 0.85), BUILDING)
        s.paint([eaves, peak, (x + side * 4, ridge, z[1]), (x, top, z[1])], roof, BUILDING)
    s.box((x, x + side * 14), (0, top), z[0], shade(wall, 0.85 if side != s.sun_side else 1.05), BUILDING)
    s.wall(x, (0, top), z, wall, BUILDING)
    s.wall(x, (top - 0.25, top), z, shade(wall, 0.8))
    _windows(s, x, z, storeys, storey, wall)


def _windows(s: Street, x: float, z: Span, storeys: int, storey: float, wall: Colour) -> None:
    pane = s.pick(((40, 46, 56), (60, 70, 84), (30, 30, 34), (120, 134, 150)))
    bays = max(1, round((z[1] - z[0]) / s.uniform(2.4, 4.2)))
    bay = (z[1] - z[0]) / bays
    for i in range(bays):
        near = z[0] + (i + 0.28) * bay
        across = (near, near + 0.45 * bay)
        if s.pixels(abs(x), across[0]) - s.pixels(abs(x), across[1]) < 1.5:
            break  # narrower than a pixel from here on
        for k in range(1, storeys):
            s.wall(x, (k * storey + 0.7, k * storey + 2.2), across, blend(pane, s.sky, s.uniform(0, 0.5)))
            if s.pixels(0.1, near) > 0.7:
                s.wall(x, (k * storey + 0.6, k * storey + 0.7), across, shade(wall, 1.25))
        if i % 2 == 0:
            s.wall(x, (0, 2.2), across, s.pick(PAINT))
        else:
            s.wall(x, (0.9, 2.2), across, pane)
    if s.uniform() < 0.5:  # a shop
        s.wall(x, (0.4, 2.4), (z[0] + 0.6, z[1] - 0.6), pane)
        s.wall(x, (2.5, 3.0), (z[0] + 0.3, z[1] - 0.3), s.pick(SIGNS))


def _yard(s: Street, side: int, x: float, z: Span) -> None:
    for _ in range(2):
        _tree(s, x + side * s.uniform(2, 6), s.uniform(*z))
    _railing(s, x, z, s.uniform(1.1, 2.0), solid=s.uniform() < 0.5)


def _railing(s: Street, x: float, z: Span, height: float, solid: bool) -> None:
    """A fence along the street: boards, or bars that show what lies behind; its mask is the whole of it."""
    colour = s.pick(METAL)
    s.wall(x, (0, height), z, colour, FENCE, alpha=255 if solid else 40)
    posts = min(40, round((z[1] - z[0]) / (0.5 if solid else 0.28)))
    for i in range(posts + 1):
        at = z[0] + (z[1] - z[0]) * i / max(1, posts)
        s.wall(x, (0, height), (at, at + 0.06), shade(colour, 0.75 if solid else 1.0), FENCE)
    for y in (0.15, height - 0.08):
        s.wall(x, (y, y + 0.08), z, shade(colour, 1.1), FENCE)


def _tree(s: Street, x: float, z: float) -> None:
    height, radius = s.uniform(4, 9), s.uniform(1.2, 2.6)
    trunk, leaves = s.uniform(0.1, 0.2), s.pick(LEAVES)
    bark = s.pick(METAL[:5] + LEAVES[3:])
    tip = 0.6 * trunk
    s.paint([(x - trunk, 0, z), (x + trunk, 0, z), (x + tip, height, z), (x - tip, height, z)], bark, TREE)
    blobs = max(8, min(48, round(s.pixels(radius, z) / 1.5)))
    for i in range(blobs):
        turn, out = s.uniform(0, 2 * math.pi), math.sqrt(s.uniform())
        up = math.sin(turn) * out
        centre = (x + radius * out * math.cos(turn), height + 1.1 * radius * up, z)
        size = radius * (0.42 if 3 * i < blobs else 0.2) * s.uniform(0.7, 1.2)
        side_light = 0.15 * s.sun_side * out * math.cos(turn) if s.sunny else 0.0
        colour = shade(leaves, s.uniform(0.8, 1.1) + 0.22 * up + side_light)
        s.disc(centre, size, size * s.uniform(0.7, 1), colour, TREE)


def _lit_tree(s: Street, x: float, z: float) -> None:
    if s.sunny:
        for _ in range(5):
            at, near = x - s.sun_side * s.uniform(1, 5), z + s.uniform(-1.5, 1.5)
            s.floor((at - 0.9, at + 0.9), (near - 0.6, near + 0.6), (12, 14, 26), alpha=60)
    _tree(s, x, z)


def _lamp(s: Street, x: float, z: float, side: int) -> None:
    height, half, colour = s.uniform(5, 8), s.uniform(0.06, 0.11), s.pick(METAL)
    s.box((x - half, x + half), (0, height), z, colour, POLE)
    s.box((x - half, x - half / 3), (0, height), z, shade(colour, 1.2))
    s.box((x - 1.7 * half, x + 1.7 * half), (0, 0.9), z, shade(colour, 0.9), POLE)
    if s.uniform() < 0.7:
        arm = sorted((x, x - side * 1.5))
        s.box((arm[0], arm[1]), (height - 0.1, height + 0.06), z, colour, POLE)
        s.disc((x - side * 1.5, height - 0.05, z), 0.3, 0.12, shade(colour, 1.3), POLE)
    elif s.uniform() < 0.6:
        _lights(s, x, z)


def _lights(s: Street, x: float, z: float) -> None:
    """Traffic lights: signs, as CamVid counts them."""
    s.box((x - 0.22, x + 0.22), (2.3, 3.4), z, DARK, SIGN)
    lit = s.count(0, 2)
    for i, colour in enumerate(((210, 50, 40), (220, 160, 40), (60, 200, 110))):
        s.disc((x, 3.2 - 0.35 * i, z), 0.12, 0.12, colour if i == lit else (44, 44, 46))


def _sign(s: Street, x: float, z: float) -> None:
    height, radius, kind = s.uniform(2.1, 2.9), s.uniform(0.35, 0.55), s.uniform()
    s.box((x - 0.045, x + 0.045), (0, height), z, s.pick(METAL), POLE)
    colour, inner = s.pick(SIGNS), s.pick((WHITE, *SIGNS))
    if kind < 0.4:
        s.disc((x, height, z), radius, radius, colour, SIGN)
        s.disc((x, height, z), 0.7 * radius, 0.7 * radius, inner)
    elif kind < 0.6:
        for k, c, label in ((1.0, colour, SIGN), (0.6, inner, None)):
            r, y = k * radius, height - 0.12 * radius
            s.paint([(x - r, y - 0.7 * r, z), (x + r, y - 0.7 * r, z), (x, y + 1.1 * r, z)], c, label)
    else:
        wide, tall = radius * s.uniform(1, 2.2), radius * s.uniform(0.7, 1.4)
        s.box((x - wide, x + wide), (height - tall, height + tall), z, colour, SIGN)
        for i in range(3):
            y = height + tall * (0.5 - 0.5 * i)
            s.box((x - 0.7 * wide, x + wide * s.uniform(0, 0.7)), (y - 0.08 * tall, y + 0.1 * tall), z, inner)


def _bin(s: Street, x: float, z: float) -> None:
    """Bins and boxes: void, as in CamVid."""
    half, height, colour = s.uniform(0.25, 0.45), s.uniform(0.8, 1.3), s.pick(PAINT)
    s.box((x - half, x + half), (0, height), z, colour, IGNORE_LABEL)
    s.box((x - half, x + half), (0.8 * height, height), z, shade(colour, 1.3))


def _furniture(s: Street) -> Things:
    things: Things = []
    for side in (-1, 1):
        x = s.kerb[side] + side * 0.5
        if s.uniform() < 0.4:
            near = s.uniform(3, 12)
            things.append((near, partial(_railing, s, x, (near, near + s.uniform(4, 12)), 1.05, solid=False)))
        for z in along(s, s.count(0, 2), 8, 50):
            things.append((z, partial(_lit_tree, s, (x + s.front[side]) / 2, z)))
        for z in along(s, s.count(1, 3), 4.5, 45):
            things.append((z, partial(_lamp, s, x, z, side)))
        for z in along(s, s.count(1, 3), 4.5, 30):
            things.append((z, partial(_sign, s, x, z)))
        for z in along(s, s.count(0, 2), 5, 30):
            things.append((z, partial(_bin, s, x + side * 0.4, z)))
    return things
