#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Merge models that were fine-tuned from one start: merge_models.py BASE A B ... --out MERGED --method ties.

The methods average, task-arithmetic and ties need the checkpoints alone. adamerging and concrete train on inputs
without labels: name a config for each fine-tuned model, whose test data are read.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool

METHODS = ('average', 'task-arithmetic', 'ties', 'adamerging', 'concrete')


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('base', type=Path, help='checkpoint of the common start')
    parser.add_argument('tuned', type=Path, nargs='+', help='checkpoints fine-tuned from it')
    parser.add_argument('--out', type=Path, required=True, help='file to write (required)')
    parser.add_argument(
        '--method', choices=METHODS, default='task-arithmetic', help='how to merge (default: %(default)s)'
    )
    parser.add_argument('--scale', type=float, default=0.3, help='factor of the task vectors (default: %(default)s)')
    parser.add_argument(
        '--keep-ratio', type=float, default=0.2, help='fraction of the entries that ties keeps (default: %(default)s)'
    )
    parser.add_argument(
        '--reduction',
        choices=('mean', 'sum', 'max'),
        default='mean',
        help='how ties combines the entries that agree (default: %(default)s)',
    )
    parser.add_argument(
        '--ignore',
        nargs='*',
        default=[],
        metavar='PREFIX',
        help='beginnings of names that stay those of BASE, such as heads of another size (default: none)',
    )
    parser.add_argument(
        '--configs',
        nargs='*',
        default=[],
        metavar='CONFIG',
        help='for adamerging and concrete: a config for each fine-tuned model, for its test data (default: none)',
    )
    parser.add_argument(
        '--level',
        choices=('none', 'task', 'layer'),
        default='layer',
        help='coefficients per task, per tensor, or none to train (concrete alone) (default: %(default)s)',
    )
    parser.add_argument('--steps', type=int, default=200, help='steps of each phase of training (default: %(default)s)')
    parser.add_argument('--lr', type=float, default=1e-3, help='learning rate of Adam (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    return parser.parse_args(arguments)


def weights_of(path: Path) -> tuple[dict, dict]:
    """State dict and meta of a checkpoint."""
    from clusterplug.checkpoints import read_checkpoint

    content = read_checkpoint(path)
    return content.get('state_dict', content), content.get('meta', {})


def merge(args: argparse.Namespace, base: dict, vectors: list) -> tuple[dict, list]:
    """State dict of the merged model, and the history of what was trained."""
    from clusterplug.fusion import AdaMerging, ConcreteMerging, task_arithmetic, ties_merging

    if args.method == 'average':
        return task_arithmetic(base, vectors, 1 / len(vectors)), []
    if args.method == 'task-arithmetic':
        return task_arithmetic(base, vectors, args.scale), []
    if args.method == 'ties':
        return ties_merging(base, vectors, args.scale, args.keep_ratio, args.reduction), []
    if len(args.configs) != len(vectors):
        raise ValueError(
            f'--configs must name one config per fine-tuned model, got {len(args.configs)} of {len(vectors)}'
        )
    model, loaders = hosts(args.configs)
    model.load_state_dict(base, strict=False)
    options = {'init': args.scale, 'level': args.level}
    if args.method == 'concrete':
        merging, more = ConcreteMerging(base, vectors, seed=args.seed, **options), {'meta_steps': args.steps}
    else:
        merging, more = AdaMerging(base, vectors, **options), {}

    def predict(task, call, batch):
        return call(**model.data_preprocessor(batch, False), mode='tensor')

    def report(step):
        if step.held_out == step.held_out:  # NaN between two looks
            print(f'{step.phase} {step.step + 1}: loss {step.loss:.4g}, held out {step.held_out:.4g}', flush=True)

    every = min(20, args.steps)
    more.update(check_every=max(1, every), on_step=report)
    history = merging.fit(model, loaders, steps=args.steps, lr=args.lr, predict=predict, **more)
    if args.method == 'concrete':
        for name, mean in sorted(merging.mask_statistics().items(), key=lambda pair: pair[1]):
            print(f'{mean:.3f}  {name}')
    return merging.merged_state(), history


def hosts(configs: list[str]):
    """The model of the first config, and the test data of each."""
    from mmengine.runner import Runner

    from clusterplug.cli import load_config
    from clusterplug.registry import MODELS

    loaded = [load_config(each) for each in configs]
    from mmengine.registry import init_default_scope

    init_default_scope(loaded[0].get('default_scope', 'mmdet3d'))
    return MODELS.build(loaded[0].model), [Runner.build_dataloader(each.test_dataloader, seed=0) for each in loaded]


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    import torch

    from clusterplug.core.files import whole_file
    from clusterplug.fusion import TaskVector

    try:
        history_file = args.out.with_suffix('.csv')
        for path in (args.out, history_file):
            check_output_file(path, [args.base, *args.tuned, *args.configs])
        base, meta = weights_of(args.base)
        vectors = []
        for path in args.tuned:
            vector = TaskVector(base, weights_of(path)[0], args.ignore)
            length = sum(float(each.double().square().sum()) for each in vector.values()) ** 0.5
            print(f'{path}: {len(vector)} tensors, moved by {length:.4g}')
            vectors.append(vector)
        state, history = merge(args, base, vectors)
        with whole_file(args.out, 'wb') as file:
            torch.save(dict(meta=meta, state_dict=state), file)
        if history:
            with whole_file(history_file, 'w') as file:
                csv.writer(file).writerows([('phase', 'step', 'loss', 'held_out'), *history])
            print(f'{history_file}: {len(history)} steps, loss {history[0].loss:.4g} to {history[-1].loss:.4g}')
    except (OSError, ValueError) as error:
        sys.exit(f'merge_models: {error}')
    print(f'{args.out}: {args.method} of {len(vectors)} models')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'merge_models'))
