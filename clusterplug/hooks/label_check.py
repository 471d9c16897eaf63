# SPDX-License-Identifier: Apache-2.0
"""Data set, head and loss must count the same classes and ignore the same label."""

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug.registry import HOOKS

_HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'pts_bbox_head')


def label_faults(model: torch.nn.Module, dataset) -> list[str]:
    """What does not agree between a data set, the heads of a model and its clustering loss, a sentence each.

    Args:
        model: the model; parts that do not say how many classes they have are passed over.
        dataset: its ``metainfo['classes']``, ``ignore_index`` and ``seg_label_mapping`` are read where it has them.

    Example:
        >>> head = torch.nn.Module()
        >>> head.num_classes, head.ignore_index = 19, 19
        >>> model = torch.nn.Module()
        >>> model.decode_head = head
        >>> from types import SimpleNamespace
        >>> label_faults(model, SimpleNamespace(metainfo=dict(classes=('a', 'b')), ignore_index=19))
        ['the data set SimpleNamespace has 2 classes (a, b), and model.decode_head has num_classes=19']
    """
    name, classes = type(dataset).__name__, (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if not classes:
        return []
    count, faults = len(classes), []
    ignored = getattr(dataset, 'ignore_index', None)
    held = f'the data set {name} has {count} class{"es" * (count > 1)} ({", ".join(map(str, classes[:4]))}'
    held += f'{", ..." if count > 4 else ""})'
    for path, head in _heads(model):
        wanted, theirs = getattr(head, 'num_classes', None), getattr(head, 'ignore_index', None)
        # an output for ignored points besides (Cylinder3D) is no class
        if _is_number(wanted) and wanted != count and not (wanted == count + 1 and theirs == count):
            faults.append(f'{held}, and {path} has num_classes={wanted}')
        if _is_number(theirs) and _is_number(ignored) and theirs != ignored:
            faults.append(f'the data set {name} has ignore_index={ignored}, and {path} has ignore_index={theirs}')
        weights = getattr(getattr(head, 'loss_decode', None), 'class_weight', None)
        if isinstance(weights, list | tuple) and len(weights) != wanted:
            faults.append(
                f'{path} has num_classes={wanted}, and its loss_decode {len(weights)} numbers in class_weight'
            )
    loss = getattr(getattr(model, 'clustering', None), 'loss', None)
    if loss is not None and hasattr(model, 'decode_head'):
        if getattr(loss, 'num_classes', count) != count:
            faults.append(f'{held}, and the clustering loss has num_classes={loss.num_classes}')
        theirs = getattr(loss, 'ignore_index', None)
        if _is_number(theirs) and _is_number(ignored) and theirs != ignored:
            faults.append(f'the data set {name} has ignore_index={ignored}, and the clustering loss has {theirs}')
    return faults + _mapping_faults(getattr(dataset, 'seg_label_mapping', None), count, ignored, name)


def _heads(model):
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.ModuleList):
            yield from ((f'model.{name}[{number}]', each) for number, each in enumerate(head))
        elif head is not None:
            yield f'model.{name}', head


def _mapping_faults(mapping, count: int, ignored, name: str) -> list[str]:
    if mapping is None:
        return []
    values = np.unique(list(mapping.values()) if isinstance(mapping, dict) else np.asarray(mapping))
    unknown = [int(value) for value in values if not 0 <= value < count and value != ignored]
    if not unknown:
        return []
    return [
        f'seg_label_mapping of {name} maps to {unknown}, which are neither classes (0 to {count - 1}) nor its '
        f'ignore_index ({ignored})'
    ]


def _is_number(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Refuse a training or test whose data set, heads and clustering loss do not agree on classes and ignored label.

    ``tools/train.py`` and ``tools/test.py`` have it by themselves. A training without a validation split is said in
    the log.

    Raises:
        ValueError: with each number that differs from the data set's.

    Example:
        ``custom_hooks = [dict(type='clusterplug.LabelCheckHook')]``
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        """Check the training set, and the validation set if there is one."""
        _refuse(runner, 'train', runner.train_loop.dataloader.dataset)
        if getattr(runner, 'val_loop', None) is None:
            runner.logger.warning('there is no validation split (val_dataloader), so nothing is measured in training')
        elif getattr(runner.val_loop, 'dataloader', None) is not None:
            _refuse(runner, 'val', runner.val_loop.dataloader.dataset)

    def before_test(self, runner) -> None:
        """Check the test set."""
        if getattr(runner.test_loop, 'dataloader', None) is not None:
            _refuse(runner, 'test', runner.test_loop.dataloader.dataset)


def _refuse(runner, split: str, dataset) -> None:
    model = runner.model
    while is_model_wrapper(model) or (not hasattr(model, 'clustering') and hasattr(model, 'module')):
        model = model.module
    faults = label_faults(model, dataset)
    if faults:
        raise ValueError(
            f'{split}_dataloader and model do not agree: {"; ".join(faults)}. Set num_classes and ignore_index of the '
            f'head to those of the data set'
        )
