# SPDX-License-Identifier: Apache-2.0
"""FEC against its dense form, and next to timm models of about equal FLOPs.

    OMP_NUM_THREADS=1 python benchmarks/fec.py dense [--arch small] [--batch 1 8]
    OMP_NUM_THREADS=1 python benchmarks/fec.py memory
    OMP_NUM_THREADS=1 python benchmarks/fec.py models

The dense form (``clusterplug.testing.plain_fec``) is the authors' as their code is described: sigmoids of all
similarities, a 0/1 tensor, a tensor of centers x points x channels. Weights are the same, outputs are compared in
float64 and float32 before anything is timed. Process time of one CPU thread, entries interleaved, medians. Memory is
the growth of the peak of a fresh process over that before the first step.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from _timing import Row, header, interleaved, optional, published, rows, table

from clusterplug.backbones import FEC, load_fec, resolve_arch
from clusterplug.testing import peak_of_process
from clusterplug.testing.plain_fec import PlainFEC

# timm models by the multiply-adds that FEC-small, -base and -large have at 224 pixels (1.3, 3.3 and 6.4 G with the
# similarities), and what is equal
PEERS = {
    'small': ('deit_tiny_patch16_224', 'pvt_v2_b0', 'resnet18'),
    'base': ('poolformer_s24', 'resnet50', 'deit_small_patch16_224'),
    'large': ('poolformer_m36', 'swin_tiny_patch4_window7_224', 'resnet101'),
}


def pair(arch: str, task: str = 'classification', num_classes: int = 1000):
    """Ours and the dense form with the same weights, branches as strong as after training."""
    torch.manual_seed(0)
    plain = PlainFEC(resolve_arch(arch, task), num_classes)
    for name, parameter in plain.named_parameters():
        if 'layer_scale' in name:
            parameter.data.uniform_(0.3, 1)
    ours = FEC(arch, num_classes=num_classes, task=task)
    load_fec(ours, plain.state_dict())
    return ours, plain


def largest_difference(ours, plain, x) -> tuple[float, float]:
    """Of outputs in fp64 and, over the largest output, in fp32, where a pixel may fall to an equally near center."""
    with torch.no_grad():
        single = float((ours(x) - plain(x)).abs().max() / plain(x).abs().max())
        wide = float((ours.double()(x.double()) - plain.double()(x.double())).abs().max())
        ours.float(), plain.float()
    if wide > 1e-5:
        raise SystemExit(f'outputs differ by {wide} in float64')
    return wide, single


def train_step(model, x):
    model.zero_grad(set_to_none=True)
    model(x).logsumexp(1).sum().backward()


def dense(arch: str, batch: int, repeats: int) -> list[Row]:
    ours, plain = pair(arch)
    x = torch.randn(batch, 3, 224, 224)
    error = largest_difference(ours.eval(), plain.eval(), x)
    with torch.no_grad():
        times = interleaved({'ours': lambda: ours(x), 'dense': lambda: plain(x)}, repeats)
    remark = {'dense': 'largest difference {:.0e} in fp64, {:.0e} in fp32'.format(*error)}
    lines = rows(f'FEC-{arch} forward, {batch} x 224', times, 'ours', {'dense': 1.5}, remark)
    step = {'ours': lambda: train_step(ours, x), 'dense': lambda: train_step(plain, x)}
    return lines + rows(f'FEC-{arch} step, {batch} x 224', interleaved(step, repeats), 'ours', {'dense': 1.5})


def memory(arch: str, batch: int) -> None:
    """Peak memory, each form in a process of its own."""
    lines = []
    for kind in ('forward', 'step'):
        peaks = {}
        for form in ('ours', 'dense'):
            command = [sys.executable, __file__, 'peak', '--arch', arch, '--batch-size', str(batch), '--form', form]
            result = subprocess.run([*command, '--kind', kind], capture_output=True, text=True, check=True)
            peaks[form] = float(result.stdout.split()[-1])
        lines.append(Row(f'FEC-{arch} {kind}, {batch} x 224', 'dense', peaks['ours'], peaks['dense'], 1.0, '', 'MB'))
    print('\n'.join(table(lines)))


def peak(arch: str, batch: int, form: str, kind: str) -> None:
    model = dict(zip(('ours', 'dense'), pair(arch)))[form]
    x = torch.randn(batch, 3, 224, 224)
    # a first small step brings what a process needs only once
    train_step(model, x[:1, :, :32, :32])
    model.zero_grad(set_to_none=True)
    before = peak_of_process()
    if kind == 'step':
        train_step(model, x)
    else:
        with torch.no_grad():
            model.eval()(x)
    print((peak_of_process() - before) / 2**20)


def models(batch: int, repeats: int, archs: list[str]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    timm = optional('timm')
    if timm is None:
        return
    print('| model | parameters | G multiply-adds | images/s |')
    print('|---|---|---|---|')
    for arch in archs:
        candidates = {f'FEC-{arch}': FEC(arch, num_classes=1000)}
        candidates.update({name: timm.create_model(name) for name in PEERS[arch]})
        x, work = torch.randn(batch, 3, 224, 224), {}
        run = {name: lambda model=model, x=x: model(x) for name, model in candidates.items()}
        with torch.no_grad():
            for name, model in candidates.items():
                with FlopCounterMode(display=False) as counter:
                    model.eval()(x[:1])
                work[name] = counter.get_total_flops() / 2e9
            times = interleaved(run, repeats)
        medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
        for name, model in candidates.items():
            number = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            speed = 1e3 * batch / medians[name]
            print(f'| {name} | {number:.1f} M | {work[name]:.2f} | {speed:.1f} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['dense', 'memory', 'models', 'peak'])
    parser.add_argument('--arch', nargs='+', default=['small'])
    parser.add_argument('--batch-size', dest='batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--page', help='page whose part "fec-WHAT" is replaced')
    parser.add_argument('--form', default='ours', help=argparse.SUPPRESS)
    parser.add_argument('--kind', default='step', help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == 'peak':
        return peak(args.arch[0], args.batch[0], args.form, args.kind)
    with published(args.page, f'fec-{args.what}'):
        header(('timm',))
        for arch in args.arch if args.what != 'models' else args.arch[:1]:
            if args.what == 'dense':
                print('\n'.join(table([row for batch in args.batch for row in dense(arch, batch, args.repeats)])))
            elif args.what == 'memory':
                memory(arch, args.batch[-1])
            else:
                models(args.batch[-1], args.repeats, args.arch)
    return None


if __name__ == '__main__':
    main()
