# SPDX-License-Identifier: Apache-2.0
"""A missing file is reported with the info file that names it: mmdet3d names the missing file alone."""

from clusterplug.compat.workaround import Workaround

_ADVICE = 'write info files for the scans that exist with tools/prepare_semantickitti.py'


def patch(module):
    """Wrap the two methods of ``Seg3DDataset`` that open files."""
    dataset = module.Seg3DDataset
    host_prepare = dataset.prepare_data
    host_load = dataset.load_data_list

    def prepare_data(self, idx):
        try:
            return host_prepare(self, idx)
        except FileNotFoundError as error:
            if error.filename is None:  # said in full already, by this package
                raise
            raise FileNotFoundError(
                f'{error.filename} does not exist, but scan {idx} of the info file {self.ann_file} needs it; '
                f'correct data_root={self.data_root!r}, or {_ADVICE}'
            ) from error

    def load_data_list(self):
        try:
            return host_load(self)
        except FileNotFoundError as error:
            if error.filename is None:
                raise
            raise FileNotFoundError(
                f'the info file {self.ann_file} does not exist (ann_file below data_root={self.data_root!r}); {_ADVICE}'
            ) from error

    return [(dataset, 'prepare_data', prepare_data), (dataset, 'load_data_list', load_data_list)]


WORKAROUND = Workaround(
    name='missing_files',
    host='mmdet3d.datasets.seg3d_dataset',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d names the info file',
)
