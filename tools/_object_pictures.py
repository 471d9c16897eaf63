# SPDX-License-Identifier: Apache-2.0
"""Pictures of clustered objects: scans from above, and a sheet of the units of each cluster."""

import numpy as np


def colors_of(labels):
    """A color for each label, gray for none."""
    from clusterplug.visualization import subclass_colors

    return subclass_colors(np.zeros(len(labels), np.int64), labels, max(int(labels.max(initial=0)) + 1, 1))


def draw(args, scans, labels):
    from clusterplug.visualization import birds_eye
    from clusterplug.visualization.likelihood_figures import save_contact_sheet

    first = 0
    for number, scan in enumerate(scans):
        own = labels[first : first + len(scan['classes'])]
        first += len(own)
        if number < args.pictures:
            of_points = np.where(scan['unit'] >= 0, np.append(own, -1)[scan['unit']], -1)
            colors = shades(of_points, labels)
            picture = birds_eye(scan['points'], colors)
            save_contact_sheet(
                args.out / f'birds_eye_{scan["name"]}.png', [lambda picture=picture: picture],
                [f'{scan["name"]}: {len(own)} units'], columns=1,
            )  # fmt: skip
    where = [(scan, row) for scan in scans for row in range(len(scan['classes']))]
    features = np.concatenate([scan['feature'] for scan in scans])
    shown, titles = [], []
    for label in np.unique(labels[labels >= 0])[:10]:
        rows = np.flatnonzero(labels == label)
        order = rows[np.linalg.norm(features[rows] - features[rows].mean(0), axis=1).argsort(kind='stable')]
        for row in order[:4]:
            shown.append(lambda row=row: picture_of(*where[row]))
            titles.append(f'cluster {label}, {where[row][0]["name"]}')
    if shown:
        save_contact_sheet(args.out / 'contact_sheet.png', shown, titles)


def shades(of_points, labels):
    table = colors_of(np.arange(int(labels.max(initial=-1)) + 2))
    return np.where((of_points >= 0)[:, None], table[np.maximum(of_points, 0)], np.array([70, 70, 70], np.uint8))


def picture_of(scan, row):
    """A unit from above, bright by height, in its surroundings."""
    from clusterplug.visualization import birds_eye

    center, radius = scan['center'][row], max(float(scan['size'][row].max()), 1.0)
    near = (np.abs(scan['points'][:, :2] - center[:2]) < radius).all(1)
    points, own = scan['points'][near] - center, scan['unit'][near] == row
    colors = np.where(own[:, None], [255, 200, 60], [90, 90, 90]).astype(np.uint8)
    return birds_eye(points, colors, size=160, radius=radius)
