# SPDX-License-Identifier: Apache-2.0
"""A backbone, a head and a loss over several views of the same images, scans, regions or points."""

import copy
import inspect
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from clusterplug.core.checks import check_choice
from clusterplug.core.distributed import rank, world_size
from clusterplug.pretraining.features import image_features, scan_features, segment_means
from clusterplug.registry import MODELS

_EMBED = ('global', 'regions', 'points')


@MODELS.register_module()
class MultiViewModel(BaseModel):
    """Train a backbone without labels: embed views of each sample, let a loss compare them.

    All images of one size are one call of the backbone, all scans of all views another; the features of all views are
    one call of the head. The backbone is ``self.backbone``, so that its weights load into any model of mm packages
    that has the same backbone: ``load_from='pretrained.pth'``, or ``backbone=dict(init_cfg=dict(type='Pretrained',
    checkpoint='pretrained.pth', prefix='backbone.'))``.

    Args:
        backbone: config or module. Images: anything that gives (N, C) or maps (N, C, H, W), also in a sequence (mm
            backbones, ``clusterplug.TimmBackbone``, ``clusterplug.TorchvisionBackbone``). Scans: ``MinkUNetBackbone``
            and ``SPVCNNBackbone`` of mmdet3d (voxels), or its backbones of points (PointNet++, DGCNN).
        head: config or module: :class:`~clusterplug.heads.PrototypeHead` (embeddings and scores), any module from
            (N, C) to (N, D) (embeddings), or None (the features are the embeddings).
        loss: config or module. Its ``forward`` gets what it names: ``scores``, ``embeddings``, ``features`` (lists of V
            tensors (N, ...)), ``queue_scores`` and ``queue_mask`` (A, L, ...), ``queues`` (A ``QueueContents``),
            ``teacher_scores``, ``teacher_embeddings`` (lists, one a view of the size of view 0), ``labels``,
            ``sample_idx`` (B,), ``data_samples``. With several sets of prototypes it is called once a set and averaged,
            unless it has an attribute ``all_sets = True``: then each of the scores is a list over the sets. Its
            ``assign_views`` (default 0 and 1) are the views that enter the queue.
        embed: ``'global'``: one embedding an image or scan; ``'regions'``: one for each region of a scan that all
            views see, the mean over its points; ``'points'``: one for each of the points that the views have in common
            (see :class:`~clusterplug.datasets.transforms.PointViews`).
        teacher: config of an averaged copy of backbone and head, ``dict(type='ExponentialMovingAverage',
            momentum=0.004)`` (the share of the new weights); it takes in the weights at the start of every training
            step.
        queue: config of a :class:`~clusterplug.memory.FeatureQueue`; there is one for each assigned view. It is used
            once it is full. ``queue_enabled = False`` (:class:`~clusterplug.hooks.QueueStartHook`) leaves it alone.
        data_preprocessor: default :class:`MultiViewPreprocessor`.
        init_cfg: as in mmengine.

    In training the prototypes are scaled to length 1 before every step. The numbers of ``loss.log_values()`` join the
    log.

    Raises:
        ValueError: an unknown ``embed``; a loss that asks for what is not there; fewer than two views in training;
            assigned views that are not full crops.

    Source: the training loop of facebookresearch/swav (see :class:`~clusterplug.losses.SwAVLoss`). **Differs from the
    authors' code**: crops of one size need not be neighbors in the list; a queue is shared by all ranks.

    Example:
        >>> model = MultiViewModel(  # doctest: +SKIP
        ...     backbone=dict(type='clusterplug.TimmBackbone', name='resnet18'),
        ...     head=dict(type='clusterplug.PrototypeHead', in_channels=512, num_prototypes=100),
        ...     loss=dict(type='clusterplug.SwAVLoss'),
        ... )
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module | None,
        loss: dict | nn.Module,
        embed: str = 'global',
        teacher: dict | None = None,
        queue: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor or dict(type='clusterplug.MultiViewPreprocessor'), init_cfg)
        self.embed = check_choice(embed, 'embed', _EMBED)
        self.backbone = _build(backbone)
        self.head = None if head is None else _build(head)
        self.loss_function = _build(loss)
        self.assign_views = tuple(getattr(self.loss_function, 'assign_views', (0, 1)))
        self._wanted = _wanted(self.loss_function, self)
        self.teacher = None
        if teacher is not None:
            self.teacher = MODELS.build(teacher, default_args=dict(model=self._online()))
        self.queues = None
        if queue is not None:
            self.queues = nn.ModuleList(_build(copy.deepcopy(queue)) for _ in self.assign_views)
        self.queue_enabled = True

    def forward(self, inputs: dict, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """As in mmengine: ``'loss'`` gives a dict, ``'predict'`` samples, ``'tensor'`` the features of each view."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        check_choice(mode, 'mode', ('loss', 'predict', 'tensor'))
        return self.extract_features(inputs)

    def extract_features(self, inputs: dict, backbone: nn.Module | None = None) -> list[Tensor]:
        """One tensor (N, C) a view; row n of every view is the same image, scan, region or point."""
        backbone = self.backbone if backbone is None else backbone
        if 'scans' not in inputs:
            if self.embed != 'global':
                raise ValueError(f"embed must be 'global' for images, got {self.embed!r}")
            return image_features(backbone, inputs['views'])
        features, scan_of, rows = scan_features(backbone, inputs)
        num_views, scans = inputs['num_views'], inputs['scans']
        if self.embed == 'global':
            means, _ = segment_means(features, scan_of, len(scans))
            return list(means.chunk(num_views))
        if self.embed == 'points':
            return self._points(features, rows, inputs)
        return self._regions(features, rows, inputs)

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """Losses and numbers for the log."""
        if self.training:
            if self.teacher is not None:
                self.teacher.update_parameters(self._online())
            if hasattr(self.head, 'normalize_'):
                self.head.normalize_()
        self._check_views(inputs)
        features = self.extract_features(inputs)
        embeddings, scores = self._head_outputs(self.head, features)
        given = {'features': features, 'embeddings': embeddings, 'scores': scores, 'data_samples': data_samples}
        given |= {'labels': _of_samples(data_samples, 'gt_label', features[0].device)}
        given |= {'sample_idx': _of_samples(data_samples, 'sample_idx', features[0].device)}
        given |= self._of_queue()
        if self.teacher is not None:
            given |= self._of_teacher(inputs)
        result = self._call_loss(given)
        if self.training and self.queues is not None and self.queue_enabled:
            for view, queue in zip(self.assign_views, self.queues, strict=True):
                queue.push(embeddings[view].detach().float())
        return result

    @torch.no_grad()
    def predict(self, inputs: dict, data_samples: list | None = None) -> list[BaseDataElement]:
        """Samples with ``features`` of the backbone and ``embeddings`` of the head, of view 0.

        Each (1, C) for images and whole scans, (M, C) for the matched points of scans, which then also have the
        ``labels`` of these points where the data set has some. With prototypes (of several sets the first) also
        ``prototype``, the best one of each row, and ``prototype_score``.
        """
        views = self._one_view(inputs)
        number = len(views['views'][0]) if 'scans' not in views else len(views['scans'])
        data_samples = [BaseDataElement() for _ in range(number)] if data_samples is None else data_samples
        if 'scans' in views and 'matches' in inputs:
            features, _, rows = scan_features(self.backbone, views)
            (features,) = self._points(features, rows, views)
            sizes = [len(match) for match in views['matches']]
        else:
            (features,) = self.extract_features(views) if 'scans' not in views else self._whole_scans(views)
            sizes = [1] * number
        embeddings, scores = self._head_outputs(self.head, [features])
        parts = [features.split(sizes), embeddings[0].split(sizes)]
        best = None if scores is None else scores[0]
        best = best[0] if isinstance(best, list) else best
        best = None if best is None else best.max(1)
        for n, sample in enumerate(data_samples):
            sample.set_data(dict(features=parts[0][n], embeddings=parts[1][n]))
            if best is not None:
                sample.set_data(dict(prototype=best[1].split(sizes)[n], prototype_score=best[0].split(sizes)[n]))
            if inputs.get('point_labels') is not None:
                sample.set_data(dict(labels=inputs['point_labels'][n]))
        return data_samples

    @torch.no_grad()
    def embed_samples(self, inputs: dict, data_samples: list | None = None) -> Tensor:
        """Embeddings (B, D) of whole samples, of view 0; for ``ClusterRefreshHook(features=...)``."""
        if 'scans' in inputs:
            features = self._whole_scans(inputs)[0].chunk(inputs['num_views'])[0]
        else:
            (features,) = self.extract_features({'views': inputs['views'][:1]})
        return self._head_outputs(self.head, [features])[0][0]

    def _whole_scans(self, inputs: dict) -> list[Tensor]:
        features, scan_of, _ = scan_features(self.backbone, inputs)
        return [segment_means(features, scan_of, len(inputs['scans']))[0]]

    def _one_view(self, inputs: dict) -> dict:
        """The inputs without the views behind the first one."""
        if 'scans' not in inputs:
            return {'views': inputs['views'][:1]}
        if inputs['num_views'] > 1:
            raise ValueError(
                f'prediction takes one view a scan, got {inputs["num_views"]}; use PointViews(num_views=1) in the '
                f'pipeline of validation'
            )
        return inputs

    def _head_outputs(self, head, features: list[Tensor]) -> tuple[list[Tensor], list | None]:
        """Embeddings of each view, and scores of each view (each a list with several sets), from one call."""
        sizes = [len(each) for each in features]
        x = torch.cat(features)
        if head is None:
            return features, None
        if not hasattr(head, 'score'):
            return list(head(x).split(sizes)), None
        z = head.embed(x)
        scores = head.score(z)
        if isinstance(scores, list):
            scores = [list(view) for view in zip(*(each.split(sizes) for each in scores), strict=True)]
        else:
            scores = list(scores.split(sizes))
        return list(z.split(sizes)), scores

    def _points(self, features: Tensor, rows: Tensor, inputs: dict) -> list[Tensor]:
        """Features of the matched points, (sum of M, C) a view."""
        if inputs.get('matches') is None:
            raise ValueError("embed='points' needs matched points; set num_matches of PointViews")
        num_scans = len(inputs['matches'])
        starts = _starts([len(scan) for scan in inputs['scans']])
        result = []
        for view in range(inputs['num_views']):
            chosen = [match[:, view] + starts[view * num_scans + n] for n, match in enumerate(inputs['matches'])]
            result.append(features[rows[torch.cat(chosen)]])
        return result

    def _regions(self, features: Tensor, rows: Tensor, inputs: dict) -> list[Tensor]:
        """Mean features of the regions, (sum of R, C) a view."""
        if inputs.get('regions') is None:
            raise ValueError("embed='regions' needs regions; set regions='cells' or 'segments' of PointViews")
        numbers = [int(number) for number in inputs['num_regions']]
        starts, total, ids = _starts(numbers), sum(numbers), []
        for view, regions in enumerate(inputs['regions']):
            first = view * total
            ids += [torch.where(each < 0, -1, each + start + first) for each, start in zip(regions, starts)]
        means, _ = segment_means(features[rows], torch.cat(ids), total * inputs['num_views'])
        return list(means.split(total))

    def _online(self) -> nn.ModuleDict:
        """Backbone and head as one module; no part of this one, as it would be saved twice."""
        parts = {'backbone': self.backbone, 'head': self.head}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    @torch.no_grad()
    def _of_teacher(self, inputs: dict) -> dict:
        """What the averaged weights make of the full views."""
        module = self.teacher.module
        if 'scans' not in inputs:
            size = inputs['views'][0].shape[-2:]
            inputs = {**inputs, 'views': [view for view in inputs['views'] if view.shape[-2:] == size]}
        features = self.extract_features(inputs, module['backbone'])
        embeddings, scores = self._head_outputs(getattr(module, 'head', None), features)
        return {'teacher_embeddings': embeddings, 'teacher_scores': scores}

    @torch.no_grad()
    def _of_queue(self) -> dict:
        """Scores of this rank's share of the queue, with the current prototypes."""
        if self.queues is None or not self.queue_enabled or not all(queue.full for queue in self.queues):
            return {}
        contents = [queue.read() for queue in self.queues]
        result = {'queues': [type(each)(each.rows.clone(), each.valid.clone(), each.extra) for each in contents]}
        if hasattr(self.head, 'score'):
            rows = torch.stack([each.rows[rank() :: world_size()] for each in contents])
            scores = self.head.score(rows.flatten(0, 1))
            shape = rows.shape[:2]
            several = isinstance(scores, list)
            result['queue_scores'] = [each.view(*shape, -1) for each in scores] if several else scores.view(*shape, -1)
            result['queue_mask'] = torch.stack([each.valid[rank() :: world_size()] for each in contents])
        return result

    def _call_loss(self, given: dict) -> dict[str, Tensor]:
        """Call the loss with what it names, once for each set of prototypes."""
        loss = self.loss_function
        values = {name: given[name] for name in self._wanted if given.get(name) is not None}
        missing = [name for name, needed in self._wanted.items() if needed and name not in values]
        if missing:
            raise ValueError(
                f'{type(loss).__name__} needs {", ".join(missing)}, which are not there: labels and sample_idx come '
                f'from the data set, scores from a PrototypeHead, teacher_* from teacher=, queue_* from queue='
            )
        scores = given['scores']
        if scores is None or not isinstance(scores[0], list) or getattr(loss, 'all_sets', False):
            found = [loss(**values)]
        else:
            found = []
            for n in range(len(scores[0])):
                of_set = {name: [view[n] for view in values[name]]
                          for name in ('scores', 'teacher_scores') if name in values}  # fmt: skip
                if 'queue_scores' in values:
                    of_set['queue_scores'] = values['queue_scores'][n]
                found.append(loss(**{**values, **of_set}))
        if isinstance(found[0], dict):
            result = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
        else:
            name = type(loss).__name__.removesuffix('Loss').lower()
            result = {f'loss_{name}': sum(found) / len(found)}
        if hasattr(loss, 'log_values'):
            result |= loss.log_values()
        return result

    def _check_views(self, inputs: dict) -> None:
        images = 'scans' not in inputs
        number = len(inputs['views']) if images else inputs['num_views']
        if self.training and number < 2:
            raise ValueError(f'training needs at least 2 views of each sample, got {number}')
        if images and self.training:
            sizes = [tuple(view.shape[-2:]) for view in inputs['views']]
            largest = max(sizes)
            bad = [view for view in self.assign_views if view < number and sizes[view] != largest]
            if bad:
                raise ValueError(
                    f'assign_views must be full crops, of the largest size {largest}, got views {bad} of '
                    f'{[sizes[view] for view in bad]}; put the full crops first in MultiCrop'
                )


def _build(part: dict | nn.Module) -> nn.Module:
    return part if isinstance(part, nn.Module) else MODELS.build(part)


def _wanted(loss: nn.Module, model: nn.Module) -> dict[str, bool]:
    """Names of the arguments of the loss, and whether each is needed."""
    known = {'scores', 'embeddings', 'features', 'queue_scores', 'queue_mask', 'queues', 'teacher_scores',
             'teacher_embeddings', 'labels', 'sample_idx', 'data_samples'}  # fmt: skip
    parameters = inspect.signature(loss.forward).parameters.values()
    wanted = {each.name: each.default is inspect.Parameter.empty for each in parameters}
    unknown = [name for name, needed in wanted.items() if needed and name not in known]
    if unknown:
        raise ValueError(
            f'{type(loss).__name__}.forward asks for {", ".join(unknown)}; a {type(model).__name__} can give '
            f'{", ".join(sorted(known))}'
        )
    return {name: needed for name, needed in wanted.items() if name in known}


def _starts(sizes: list[int]) -> list[int]:
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return starts


def _of_samples(data_samples: list | None, name: str, device: torch.device) -> Tensor | None:
    """(B,) int64 of a field that every sample has, or None."""
    if not data_samples or any(name not in sample for sample in data_samples):
        return None
    values = [sample.get(name) for sample in data_samples]
    if isinstance(values[0], Tensor):
        return torch.stack([value.reshape(()) for value in values]).long().to(device)
    return torch.tensor([int(value) for value in values], device=device)
