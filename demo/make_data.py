"""Draw the demo's maps and write their questions: every sample follows from one integer seed.

    seed -> scene (numbers) -> pictures (drawn in torch, CPU or GPU, in batches) + problem and solution (text)

Two tasks, in English and Chinese:
  route   one picture: name the landmarks of the drawn route in order, with coordinates from 0 to 1000
  moved   two pictures, before and after: which landmark moved, from where to where

Landmarks stand on a lattice of 20 units, so that a coordinate has one right answer.
Run as a script it writes a dataset folder: python demo/make_data.py --output demo
"""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# The message that the tool sends: pictures first, then this text.
DEFAULT_PROMPT_TEMPLATE = (
    "{Question} Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)

TASKS = ("route", "moved")
LANGUAGES = ("en", "zh")
# Width, height in pixels. No side is a multiple of 28, so a resize always happens; all route pictures have
# 144 cells and all moved pictures 72, so that a training step has one shape.
SIZES = {
    "route": ((340, 340), (450, 255), (330, 346), (440, 260), (260, 450)),
    "moved": ((260, 230), (230, 260), (330, 175)),
}
TRAINING_SEEDS = 1_000_000_000  # the first training seed: every seed below it is held out
DATASET_SEED = 245  # of the shipped dataset's first sample, which the README shows
LATTICE = 20  # units of 1/1000 of a side

COLOURS = {  # name, Chinese name, RGB
    "red": ("红色", (222, 45, 52)),
    "orange": ("橙色", (245, 126, 24)),
    "yellow": ("黄色", (250, 203, 20)),
    "green": ("绿色", (44, 160, 82)),
    "blue": ("蓝色", (36, 116, 222)),
    "purple": ("紫色", (136, 62, 186)),
    "black": ("黑色", (45, 48, 56)),
}
# Corners, turn (radians), inner over outer radius, outer radius, width factor, shift down that centres the box.
# Lengths are in units of the landmark's radius, chosen so that all shapes look equally large.
SHAPES = {
    "circle": ("圆形", (64, 0.0, math.cos(math.pi / 64), 1.0, 1.0, 0.0)),
    "square": ("方形", (4, math.pi / 4, math.cos(math.pi / 4), 1.29, 1.0, 0.0)),
    "triangle": ("三角形", (3, 0.0, 0.5, 1.28, 1.0, 0.32)),
    "diamond": ("菱形", (4, 0.0, math.cos(math.pi / 4), 1.27, 0.76, 0.0)),
    "star": ("星形", (5, 0.0, 0.46, 1.32, 1.0, 0.126)),
    "hexagon": ("六边形", (6, math.pi / 6, math.cos(math.pi / 6), 1.10, 1.0, 0.0)),
}
MAX_LANDMARKS, MAX_LEGS, ROADS, PARKS = 6, 4, 3, 2
# The line's colour tells how far along the route one is: one stop for each landmark.
ROUTE_COLOURS = ((24, 34, 66), (62, 66, 190), (176, 32, 160), (240, 84, 96), (250, 164, 60))


# ---- scenes: where things stand ------------------------------------------------------------------------


def make_scene(seed, task=None, language=None, size=None):
    """Everything that pictures and text follow from, as a dict of plain numbers and names."""
    rng = random.Random(seed)
    task = task or rng.choices(TASKS, (0.6, 0.4))[0]
    language = language or rng.choices(LANGUAGES, (0.65, 0.35))[0]
    width, height = size or rng.choice(SIZES[task])
    scene = {
        "seed": seed,
        "task": task,
        "language": language,
        "width": width,
        "height": height,
        "variant": rng.randrange(60),
    }
    while not (_place_route(scene, rng) if task == "route" else _place_move(scene, rng)):
        pass
    looks = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    scene["looks"] = rng.sample(looks, len(scene["points"]))
    scene["decoration"] = [rng.random() for _ in range(ROADS * 3 + PARKS * 5 + 6)]
    return scene


def _place_points(scene, rng, reaches):
    """One lattice point (x, y in units of 1/1000) for each reach (pixels), none nearer than both reaches."""
    width, height, points = scene["width"], scene["height"], []
    for reach in reaches:
        low_x, low_y = math.ceil(1000 * reach / width / LATTICE), math.ceil(1000 * reach / height / LATTICE)
        for _ in range(30):
            x = LATTICE * rng.randint(low_x, 1000 // LATTICE - low_x)
            y = LATTICE * rng.randint(low_y, 1000 // LATTICE - low_y)
            if all(
                math.hypot((x - px) * width / 1000, (y - py) * height / 1000) > reach + other
                for (px, py), other in zip(points, reaches)
            ):
                points.append((x, y))
                break
        else:
            return None
    return points


def _place_route(scene, rng):
    """Add points, radii (pixels) and bends of the legs; the route is the first `stops` points. False: try again."""
    stops = rng.choices((3, 4, 5), (0.3, 0.45, 0.25))[0]
    count = min(MAX_LANDMARKS, stops + rng.choice((1, 2, 2, 3)))
    radii = [rng.uniform(23, 30) for _ in range(count)]
    reaches = [1.25 * r + 7 for r in radii]
    reaches[0] = 1.3 * radii[0] + 12  # room for the start ring
    points = _place_points(scene, rng, reaches)
    if points is None:
        return False
    pixels = [(x * scene["width"] / 1000, y * scene["height"] / 1000) for x, y in points]
    bends = [rng.choice((-1, 1)) * rng.uniform(0.05, 0.16) for _ in range(stops - 1)]
    legs = [_arc_points(pixels[i], pixels[i + 1], bends[i]) for i in range(stops - 1)]
    if not _legs_are_clear(scene, legs, pixels, reaches):
        return False
    scene.update(points=points, radii=radii, stops=stops, bends=bends)
    return True


def _arc_points(start, end, bend, count=9):
    """Points of the arc from start to end whose height over the chord is bend times the chord."""
    (ax, ay), (bx, by) = start, end
    points = []
    for i in range(count):
        t = i / (count - 1)
        lift = 4 * bend * t * (1 - t)  # a parabola: nearer than 1 px to the circle at these bends
        points.append((ax + (bx - ax) * t - (by - ay) * lift, ay + (by - ay) * t + (bx - ax) * lift))
    return points


def _legs_are_clear(scene, legs, pixels, reaches):
    """Whether legs stay in the picture and off other landmarks and other legs, and leave at an open angle."""
    for i, leg in enumerate(legs):
        if not all(9 < x < scene["width"] - 9 and 9 < y < scene["height"] - 9 for x, y in leg):
            return False
        for k, (px, py) in enumerate(pixels):
            if k not in (i, i + 1) and min(math.hypot(x - px, y - py) for x, y in leg) < reaches[k] + 4:
                return False
        for j, other in enumerate(legs[:i]):
            if j == i - 1:  # the same landmark: compare the directions in which both leave it
                (ax, ay), (ox, oy), (bx, by) = other[-4], pixels[i], leg[3]
                a, b = (ax - ox, ay - oy), (bx - ox, by - oy)
                if a[0] * b[0] + a[1] * b[1] > 0.7 * math.hypot(*a) * math.hypot(*b):
                    return False
            elif min(math.hypot(x - u, y - v) for x, y in leg for u, v in other) < 16:
                return False
    return True


def _place_move(scene, rng):
    """Add points, radii, the index of the landmark that moves and its new point. False: try again."""
    count = rng.choice((3, 4))
    radii = [rng.uniform(20, 25) for _ in range(count)]
    reaches = [1.25 * r + 6 for r in radii]
    moved = rng.randrange(count)
    points = _place_points(scene, rng, [*reaches, reaches[moved]])
    if points is None or len({x // 60 for x, _ in points[:count]}) < count:
        return False  # the text lists landmarks from left to right, so that order must be plain
    scene.update(points=points[:count], radii=radii, stops=0, bends=[], moved=moved, target=points[count])
    return True


# ---- pictures: scenes as arrays, drawn by signed distances -----------------------------------------------


def scene_arrays(scene):
    """One dict of float32 arrays a picture: landmarks (6, 6), legs (4, 14), ring (4,), decoration (25,)."""
    pictures = [_picture_arrays(scene, scene["points"])]
    if scene["task"] == "moved":
        points = list(scene["points"])
        points[scene["moved"]] = scene["target"]
        pictures.append(_picture_arrays(scene, points))
    return pictures


def _picture_arrays(scene, points):
    pixels = [(x * scene["width"] / 1000, y * scene["height"] / 1000) for x, y in points]
    landmarks = np.zeros((MAX_LANDMARKS, 6), np.float32)  # x, y, radius, shape, colour, present
    landmarks[:, 2] = 1  # an absent landmark needs a radius too: distances are divided by it
    shapes, colours = list(SHAPES), list(COLOURS)
    for row, (x, y), radius, (colour, shape) in zip(landmarks, pixels, scene["radii"], scene["looks"]):
        row[:] = x, y, radius, shapes.index(shape), colours.index(colour), 1
    legs, ring = np.zeros((MAX_LEGS, 14), np.float32), np.zeros(4, np.float32)
    for i, bend in enumerate(scene["bends"]):
        legs[i] = (*_leg_numbers(pixels[i], pixels[i + 1], bend), 1)
    if scene["stops"]:
        ring[:] = *pixels[0], 1.3 * scene["radii"][0] + 4, 1
    return {"landmarks": landmarks, "legs": legs, "ring": ring, "decoration": np.array(scene["decoration"], np.float32)}


def _leg_numbers(start, end, bend):
    """Ends, circle (centre, radius, half angle, direction to the middle, sense) and the place of the arrow."""
    (ax, ay), (bx, by) = start, end
    chord = math.hypot(bx - ax, by - ay)
    ux, uy = (bx - ax) / chord, (by - ay) / chord
    sense = math.copysign(1.0, bend)
    middle_x, middle_y = -uy * sense, ux * sense  # from the circle's centre to the middle of the arc
    height = abs(bend) * chord
    radius = (chord**2 / 4 + height**2) / (2 * height)
    cx = (ax + bx) / 2 - middle_x * (radius - height)
    cy = (ay + by) / 2 - middle_y * (radius - height)
    half = math.asin(min(1.0, chord / 2 / radius))
    arrow_x, arrow_y = cx + middle_x * radius, cy + middle_y * radius
    return ax, ay, bx, by, cx, cy, radius, half, middle_x, middle_y, -sense, arrow_x, arrow_y


def _coverage(distance):
    return (0.5 - distance).clamp(0, 1)  # a one-pixel ramp: antialiasing


def _paint(canvas, coverage, colour):
    """Lay a colour, (B, 3, 1, 1) or (3, 1, 1) or (B, 3, Y, X), over the canvas where coverage (B, Y, X) is 1."""
    return canvas + coverage[:, None] * (colour - canvas)


def render(arrays, width, height):
    """Draw a batch of pictures of one size.

    arrays: the dict of scene_arrays, each stacked to (B, ...), float32 tensors on the device to draw on.
    Returns uint8 (B, 3, height, width).
    """
    device = arrays["landmarks"].device
    x = torch.arange(width, device=device, dtype=torch.float32)[None, None, :] + 0.5
    y = torch.arange(height, device=device, dtype=torch.float32)[None, :, None] + 0.5
    canvas = _draw_land(arrays["decoration"], x, y, width, height)
    canvas = _draw_route(canvas, arrays["legs"], arrays["ring"], x, y)
    canvas = _draw_landmarks(canvas, arrays["landmarks"], x, y)
    return (canvas * 255).round().clamp(0, 255).to(torch.uint8)


def _draw_land(decoration, x, y, width, height):
    """Paper whose tint drifts with x and y, and on it parks, a river, roads and grid lines, all pale."""
    batch, device = decoration.shape[0], decoration.device
    u, v = x / width, y / height
    ones = torch.ones(batch, height, width, device=device)
    canvas = torch.stack([0.90 + 0.085 * u * ones, 0.95 * ones, 0.865 + 0.105 * v * ones], dim=1)
    numbers = iter(decoration[:, :, None, None].unbind(1))
    green, water = torch.tensor(((0.86, 0.955, 0.82), (0.83, 0.93, 1.0)), device=device)[:, :, None, None]
    side = math.sqrt(width * height)
    for _ in range(PARKS):
        px, py, size, squeeze, phase = (next(numbers) for _ in range(5))
        dx, dy = x - px * width, (y - py * height) * (1 + squeeze)
        wobble = 1 + 0.13 * torch.sin(3 * torch.atan2(dy, dx) + 6.28 * phase)
        distance = (dx**2 + dy**2).sqrt() - side * (0.10 + 0.14 * size) * wobble
        canvas = _paint(canvas, 0.9 * _coverage(distance), canvas * green)
    start, slope, swing, phase, thickness, upright = (next(numbers) for _ in range(6))
    along, across = torch.where(upright > 0.5, u, v), torch.where(upright > 0.5, v, u)
    course = (
        0.15 + 0.7 * start + 0.5 * (slope - 0.5) * along + (0.03 + 0.06 * swing) * torch.sin(6.28 * (along + phase))
    )
    distance = (across - course).abs() * side * 0.9 - (5 + 7 * thickness)
    canvas = _paint(canvas, _coverage(distance), canvas * water)
    for _ in range(ROADS):
        px, py, angle = (next(numbers) for _ in range(3))
        distance = ((x - px * width) * torch.sin(3.1416 * angle) - (y - py * height) * torch.cos(3.1416 * angle)).abs()
        canvas = _paint(canvas, _coverage(distance - 4.2), canvas * 0.93)
        canvas = _paint(canvas, 0.75 * _coverage(distance - 3.0), torch.ones_like(canvas))
    grid = torch.minimum(((u * 4 + 0.5) % 1 - 0.5).abs() * width / 4, ((v * 4 + 0.5) % 1 - 0.5).abs() * height / 4)
    return _paint(canvas, 0.5 * _coverage(grid.expand(batch, -1, -1) - 0.5), canvas * 0.9)


def _draw_route(canvas, legs, ring, x, y):
    """White casings first, then the start ring, then lines and arrowheads in the colours of the route."""
    stops = torch.tensor(ROUTE_COLOURS, device=canvas.device, dtype=torch.float32) / 255
    drawn = []
    for i in range(MAX_LEGS):
        ax, ay, bx, by, cx, cy, radius, half, mx, my, sense, qx, qy, present = legs[:, i, :, None, None].unbind(1)
        vx, vy = x - cx, y - cy
        angle = torch.atan2(mx * vy - my * vx, mx * vx + my * vy)
        ends = torch.minimum((x - ax) ** 2 + (y - ay) ** 2, (x - bx) ** 2 + (y - by) ** 2).sqrt()
        line = torch.where(angle.abs() < half, ((vx**2 + vy**2).sqrt() - radius).abs(), ends)
        along, across = _arrow_axes(x - qx, y - qy, mx, my, sense)
        arrow = torch.maximum(-(along + 7.5), (along - 10.5) * 0.62 + across.abs() * 0.785)
        progress = (0.5 + 0.5 * angle * sense / half.clamp_min(1e-3)).clamp(0, 1)[:, None]
        colour = stops[i][:, None, None] + progress * (stops[i + 1] - stops[i])[:, None, None]
        drawn.append((line + 1e4 * (1 - present), arrow + 1e4 * (1 - present), colour))
    rx, ry, radius, present = ring[:, :, None, None].unbind(1)
    circle = (((x - rx) ** 2 + (y - ry) ** 2).sqrt() - radius).abs() + 1e4 * (1 - present)
    canvas = _paint(canvas, 0.9 * _coverage(circle - 4.6), torch.ones_like(canvas))
    for line, arrow, _ in drawn:
        casing = torch.maximum(_coverage(line - 5.4), _coverage(arrow - 2.4))
        canvas = _paint(canvas, 0.9 * casing, torch.ones_like(canvas))
    canvas = _paint(canvas, _coverage(circle - 2.4), stops[0][:, None, None])
    for line, arrow, colour in drawn:
        canvas = _paint(canvas, torch.maximum(_coverage(line - 3.2), _coverage(arrow)), colour)
    return canvas


def _arrow_axes(dx, dy, mx, my, sense):
    """Offsets along and across the direction of travel, which is the middle direction turned by a right angle."""
    tx, ty = -my * sense, mx * sense
    return dx * tx + dy * ty, dx * mx + dy * my


def _draw_landmarks(canvas, landmarks, x, y):
    """Each landmark: a soft shadow, a white rim, a darker edge and a fill that is lighter at the top."""
    device = canvas.device
    shapes = torch.tensor([numbers for _, numbers in SHAPES.values()], device=device)
    colours = torch.tensor([rgb for _, rgb in COLOURS.values()], device=device, dtype=torch.float32) / 255
    for i in range(MAX_LANDMARKS):
        px, py, radius, shape, colour, present = landmarks[:, i].unbind(1)
        numbers = shapes[shape.long()]
        px, py, radius = px[:, None, None], py[:, None, None], radius[:, None, None]
        distance = _shape_distance((x - px) / radius, (y - py) / radius, numbers) * radius
        distance = distance + 1e4 * (1 - present[:, None, None])
        fill = colours[colour.long()][:, :, None, None]
        light = (0.06 * (py - y) / radius).clamp(-0.08, 0.08)[:, None]
        canvas = _paint(canvas, 0.28 * torch.exp(-(distance - 3).clamp(0, 60) / 3.5), torch.zeros_like(canvas))
        canvas = _paint(canvas, _coverage(distance - 3), torch.ones_like(canvas))
        canvas = _paint(canvas, _coverage(distance), fill * 0.78)
        canvas = _paint(canvas, _coverage(distance + 1.6), fill + light)
    return canvas


def _shape_distance(x, y, numbers):
    """Signed distance (in radii, negative inside) to a star polygon folded into half of one of its points."""
    corners, turn, inner, outer, squeeze, down = numbers[:, :, None, None].unbind(1)
    x, y = x / squeeze, y - down
    sector = 2 * math.pi / corners
    angle = torch.atan2(x, -y) - turn
    folded = ((angle + sector / 2) % sector - sector / 2).abs()
    length = (x**2 + y**2).sqrt()
    qx, qy = length * torch.cos(folded) - outer, length * torch.sin(folded)
    ex, ey = outer * inner * torch.cos(sector / 2) - outer, outer * inner * torch.sin(sector / 2)
    h = ((qx * ex + qy * ey) / (ex**2 + ey**2)).clamp(0, 1)
    distance = ((qx - h * ex) ** 2 + (qy - h * ey) ** 2).sqrt()
    return torch.copysign(distance, qx * ey - qy * ex) * squeeze


def landmark_box(point, radius, shape, width, height):
    """left, top, right, bottom in pixels of a landmark's fill at a point given in units of 1/1000."""
    corners, turn, _inner, outer, squeeze, down = SHAPES[shape][1]
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    xs = [radius * outer * squeeze * math.sin(a) for a in angles]
    ys = [radius * (down - outer * math.cos(a)) for a in angles]
    x, y = point[0] * width / 1000, point[1] * height / 1000
    return [round(v, 1) for v in (x + min(xs), y + min(ys), x + max(xs), y + max(ys))]


# ---- text ------------------------------------------------------------------------------------------------

# Each problem has its own way of thinking aloud, so that greedy decoding has one right answer.
ROUTE_TEXTS = {
    "en": (
        {
            "problem": "This is a map with a coloured route and several landmarks. Based on the following "
            "requirements, follow the route from the ring to its end: name every landmark on the route in order, "
            "and give its coordinates from 0 to 1000 as (x, y).",
            "first": "Let me think. The ring marks the start at the {}.",
            "next": " From there the arrow leads to the {}.",
            "last": " Finally the line ends at the {}.",
            "close": " No arrow leads any further.",
        },
        {
            "problem": "A traveller walks along the line on this map. Based on the following requirements, report "
            "the walk: 1. begin at the ringed landmark; 2. obey the arrows; 3. leave out landmarks off the line; "
            "4. write each stop with its coordinates (x, y) between 0 and 1000.",
            "first": "Hmm, where does the walk begin? I see a ring around the {}.",
            "next": " Then the line runs to the {}.",
            "last": " At last it reaches the {}.",
            "close": " Wait, the other landmarks are off the line, so this is all.",
        },
        {
            "problem": "Look at the map. Based on the following requirements, describe the route: which landmarks does "
            "it visit, in which order, and where are they? Give each position as (x, y) on a scale of 0 to 1000.",
            "first": "Let's break it down. The route starts at the {}",
            "next": ", then it goes on to the {}",
            "last": ", and it stops at the {}.",
            "close": " Oh, I see, the arrows agree with this order.",
        },
    ),
    "zh": (
        {
            "problem": "这是一张带有路线的地图。根据以下要求完成任务：从圆环处出发，沿着箭头依次写出"
            "路线经过的每个地标，并给出坐标 (x, y)，范围为 0 到 1000。",
            "first": "让我想一想。圆环标出了起点，是{}。",
            "next": "沿着箭头来到{}。",
            "last": "最后到达终点{}。",
            "close": "后面没有箭头了。",
        },
        {
            "problem": "请看地图上的彩色路线。根据以下要求描述旅程：路线经过哪些地标，顺序是什么，位置在哪里？"
            "坐标写成 (x, y)，取值 0 到 1000。",
            "first": "嗯，先找圆环，它在{}。",
            "next": "接着线路通向{}。",
            "last": "终于线路停在{}。",
            "close": "其他地标不在路线上。",
        },
    ),
}
MOVED_TEXTS = {
    "en": (
        {
            "problem": "The first picture shows a map before, and the second picture shows it after one landmark was "
            "moved. Based on the following requirements, find the landmark that moved, and give its old and its new "
            "coordinates (x, y) from 0 to 1000.",
            "before": "Let me compare. In the first picture, from left to right, I see the {}.",
            "after": " In the second picture there is the {}.",
            "close": " So only the {} has moved.",
            "answer": "The {} moved from {} to {}.",
        },
        {
            "problem": "Here are two pictures of the same map. Based on the following requirements, tell what has "
            "changed: which landmark stands elsewhere in the second picture, where was it, and where is it now? "
            "Positions are (x, y) on a scale of 0 to 1000.",
            "before": "Hmm, let me go through picture one from left to right: the {}.",
            "after": " Now picture two: the {}.",
            "close": " I see, the {} stands elsewhere.",
            "answer": "The {} was at {} and is now at {}.",
        },
    ),
    "zh": (
        {
            "problem": "第一张图是之前的地图，第二张图是之后的地图。根据以下要求找出移动的地标，"
            "并写出它原来和现在的坐标 (x, y)，范围为 0 到 1000。",
            "before": "让我比较两张图。第一张图从左到右有{}。",
            "after": "第二张图里有{}。",
            "close": "所以移动的是{}。",
            "answer": "{}从 {} 移到 {}。",
        },
        {
            "problem": "请比较两张地图。根据以下要求说明变化：哪个地标换了位置？它原来在哪里，现在在哪里？"
            "坐标写成 (x, y)，取值 0 到 1000。",
            "before": "嗯，先看第一张图，从左到右是{}。",
            "after": "再看第二张图，有{}。",
            "close": "我明白了，{}换了位置。",
            "answer": "{}原来在 {}，现在在 {}。",
        },
    ),
}
JOINTS = {"en": (", ", ", the "), "zh": ("，", "、")}  # between landmarks in an answer, in a list


def landmark_name(look, language):
    """'red circle' or '红色圆形' from (colour, shape)."""
    colour, shape = look
    return f"{colour} {shape}" if language == "en" else COLOURS[colour][0] + SHAPES[shape][0]


def _place(point):
    return f"({point[0]}, {point[1]})"


def scene_text(scene, misled=False):
    """problem, solution and answer of a scene, as strings.

    misled: the reasoning names landmarks and places at random and the answer stays right. Training on such
    texts (no loss on their reasoning) makes the answer look at the picture again instead of copying.
    """
    language = scene["language"]
    names = [landmark_name(look, language) for look in scene["looks"]]
    mentions = [f"{name} {_place(point)}" for name, point in zip(names, scene["points"])]
    if scene["task"] == "route":
        texts = _variant(ROUTE_TEXTS, scene)
        route = mentions[: scene["stops"]]
        thought = _thought_of_route(texts, _misled_mentions(names, scene) if misled else route)
        answer = JOINTS[language][0].join(route)
    else:
        texts = _variant(MOVED_TEXTS, scene)
        thought, answer = _texts_of_move(texts, scene, names, mentions)
    return texts["problem"], f"<think> {thought} </think><answer> {answer} </answer>", answer


def _variant(texts, scene):
    options = texts[scene["language"]]
    return options[scene["variant"] % len(options)]


def _misled_mentions(names, scene):
    rng = random.Random(scene["seed"])
    chosen = rng.sample(names, rng.randint(3, min(5, len(names))))
    return [f"{name} {_place((rng.randrange(100, 901, LATTICE), rng.randrange(100, 901, LATTICE)))}" for name in chosen]


def _thought_of_route(texts, mentions):
    middle = "".join(texts["next"].format(mention) for mention in mentions[1:-1])
    return texts["first"].format(mentions[0]) + middle + texts["last"].format(mentions[-1]) + texts["close"]


def _texts_of_move(texts, scene, names, mentions):
    order = sorted(range(len(names)), key=lambda i: scene["points"][i])
    moved, target = scene["moved"], scene["target"]
    later = [f"{name} {_place(target)}" if i == moved else mentions[i] for i, name in enumerate(names)]
    joint = JOINTS[scene["language"]][1]
    thought = texts["before"].format(joint.join(mentions[i] for i in order))
    thought += texts["after"].format(joint.join(later[i] for i in order)) + texts["close"].format(names[moved])
    return thought, texts["answer"].format(names[moved], _place(scene["points"][moved]), _place(target))


# ---- samples -----------------------------------------------------------------------------------------------


def draw_scene(scene):
    """The PIL pictures of a scene: one for a route, two for a move."""
    pictures = scene_arrays(scene)
    stacked = {key: torch.from_numpy(np.stack([p[key] for p in pictures])) for key in pictures[0]}
    drawn = render(stacked, scene["width"], scene["height"]).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in drawn]


def scene_boxes(scene):
    """One dict a picture: landmark name -> [left, top, right, bottom] in pixels."""
    boxes = []
    for moved in range(2 if scene["task"] == "moved" else 1):
        points = list(scene["points"])
        if moved:
            points[scene["moved"]] = scene["target"]
        boxes.append(
            {
                landmark_name(look, scene["language"]): landmark_box(p, r, look[1], scene["width"], scene["height"])
                for look, p, r in zip(scene["looks"], points, scene["radii"])
            }
        )
    return boxes


def make_sample(seed, task=None, language=None):
    """Pictures (list of PIL images) and the sample (dict) of a seed; seeds below TRAINING_SEEDS are held out."""
    scene = make_scene(seed, task, language)
    problem, solution, answer = scene_text(scene)
    name = f"{scene['task']}_{scene['language']}_{seed:04d}"
    suffixes = [""] if scene["task"] == "route" else ["_before", "_after"]
    sample = {
        "id": name,
        "image": [f"{name}{suffix}.webp" for suffix in suffixes],
        "problem": problem,
        "solution": solution,
        "answer": answer,
        "boxes": scene_boxes(scene),
    }
    return draw_scene(scene), sample


def write_dataset(folder, counts, first_seed):
    """Write dataset.json and images/ with counts = {(task, language): number of samples}."""
    folder, samples, seed = Path(folder), [], first_seed
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for (task, language), count in counts.items():
        for _ in range(count):
            pictures, sample = make_sample(seed, task, language)
            for picture, name in zip(pictures, sample["image"]):
                picture.save(folder / "images" / name, lossless=True, quality=100)
            samples.append(sample)
            seed += 1
    (folder / "dataset.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", default=str(Path(__file__).parent), help="folder to write dataset.json and images/ to"
    )
    parser.add_argument(
        "--first_seed", type=int, default=DATASET_SEED, help="seeds count up from here, sample by sample"
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs=4,
        default=(36, 10, 10, 8),
        metavar="N",
        help="samples of: English route, Chinese route, English move, Chinese move",
    )
    args = parser.parse_args()
    kinds = [(task, language) for task in TASKS for language in LANGUAGES]
    samples = write_dataset(args.output, dict(zip(kinds, args.counts)), args.first_seed)
    print(f"{len(samples)} samples in {args.output}")


if __name__ == "__main__":
    main()
