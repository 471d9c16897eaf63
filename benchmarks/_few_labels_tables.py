# SPDX-License-Identifier: Apache-2.0
"""Tables of the benchmark of few labels in the city."""

import statistics

from _gain_ledger import interval
from _seed_ledger import sources, spread
from _unseen_objects import FEW_SHOT, NOVEL


def rare_mean(found: dict, what: str) -> float:
    """Mean over the rare classes, in percent; a class without labels counts 0."""
    return 100 * statistics.mean((each or {}).get(what) or 0.0 for each in found['rare'].values())


def mean_iou(values: list, classes: list[int] | None = None) -> float:
    """In percent, over the classes that the test scans have."""
    chosen = range(len(values)) if classes is None else classes
    return 100 * statistics.mean(values[k] for k in chosen if values[k] is not None)


def compared(entries: dict[str, dict[int, dict]], method: str, base: str, value) -> str:
    """Mean and spread of a method, and the paired difference to another with its interval."""
    found = entries[method]
    text = spread((value(entry['found']) for entry in found.values()), 1)
    shared = sorted(set(found) & set(entries[base]))
    if method == base or len(shared) < 2:
        return text
    differences = [value(found[seed]['found']) - value(entries[base][seed]['found']) for seed in shared]
    low, high = interval(differences)
    return f'{text}; {statistics.mean(differences):+.1f} ({low:+.1f} to {high:+.1f})'


def lines_of(part: str, entries: dict[str, dict[int, dict]], title: str, base: str) -> list[str]:
    """The table of a part; ``base`` is what others are compared with."""
    seeds = {method: len(found) for method, found in entries.items()}
    if not any(seeds.values()):
        return [f'{title}: nothing measured yet.']
    rows = [method for method in entries if seeds[method]]
    if part == 'labels':
        lines = [
            f'| {title}: labels by | seeds | points labeled, % | of them right, % | 8 rarest classes: precision, % '
            '| recall, % |',
            '|---|---|---|---|---|---|',
        ]
        for method in rows:
            cells = [
                spread((100 * entry['found'][k] for entry in entries[method].values()), 1) for k in ('share', 'right')
            ]
            cells += [
                compared(entries, method, base, lambda each, k=k: rare_mean(each, k)) for k in ('precision', 'recall')
            ]
            lines.append(f'| {method} | {seeds[method]} | {" | ".join(cells)} |')
        remark = f'After a semicolon: difference to "{base}", paired over seeds, with its 95 % interval.'
    elif part == 'pseudo':
        lines = [
            f'| {title}: labels of the other 95 scans by | seeds | points labeled, % | of them right, % | mIoU '
            '| mean IoU of the 8 rarest classes |',
            '|---|---|---|---|---|---|',
        ]
        for method in rows:
            found = entries[method]
            checks = [entry['found'] for entry in found.values() if 'share' in entry['found']]
            share = spread((100 * each['share'] for each in checks), 1)
            right = spread((100 * each['right'] for each in checks), 1)
            cells = (
                compared(entries, method, base, lambda each: mean_iou(each['iou'])),
                compared(entries, method, base, lambda each: mean_iou(each['iou'], each['rarest'])),
            )
            lines.append(f'| {method} | {seeds[method]} | {share} | {right} | {" | ".join(cells)} |')
        remark = f'After a semicolon: difference to "{base}", paired over seeds, with its 95 % interval.'
    elif part == 'rain':
        lines = [
            f'| {title} | seeds | rain found, AUC | weight of rain / dry | mIoU dry | mIoU in rain |',
            '|---|---|---|---|---|---|',
        ]
        for method in rows:
            found = [entry['found'] for entry in entries[method].values()]
            about = (spread((each.get(name) for each in found), 2) for name in ('auc', 'ratio'))
            cells = (compared(entries, method, base, lambda each, k=k: mean_iou(each[k])) for k in ('dry', 'wet'))
            lines.append(f'| {method} | {seeds[method]} | {" | ".join((*about, *cells))} |')
        remark = 'After a semicolon: difference to no weights, paired over seeds, with its 95 % interval.'
    elif part == 'unseen':
        found = [entry['found'] for entry in entries['objects'].values()]
        lines = [
            f'| {title}: objects of {found[0]["ways"]} classes | 1 shot | 5 shots | discovery |',
            '|---|---|---|---|',
        ]
        for name in dict.fromkeys((*FEW_SHOT, *NOVEL)):
            keys = (f'{name}, 1', f'{name}, 5', f'novel, {name}')
            lines.append(f'| {name} | {" | ".join(spread((each.get(key) for each in found), 3) for key in keys)} |')
        counts = ', '.join(f'{number} {name}' for name, number in found[0]['counts'].items())
        remark = (
            f'{len(found)} networks. Objects of classes that they have not seen: {counts}; known: {found[0]["known"]}.'
        )
    else:
        lines = [
            f'| {title}: learners | seeds | NMI best | NMI last | recall at 1 | splits |',
            '|---|---|---|---|---|---|',
        ]
        for method in rows:
            found = [entry['found'] for entry in entries[method].values()]
            cells = (spread((each[name] for each in found), 3) for name in ('best', 'last', 'recall'))
            splits = ', '.join(str(len(each['splits'])) for each in found)
            lines.append(f'| {method} | {seeds[method]} | {" | ".join(cells)} | {splits} |')
        about = entries[rows[0]][min(entries[rows[0]])]['found']
        remark = f'{about["objects"]} objects of {about["classes"]} classes.'
    every = [entry for found in entries.values() for entry in found.values()]
    return [*lines, '', remark, '', *sources(every)]
