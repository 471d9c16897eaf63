# SPDX-License-Identifier: Apache-2.0
"""A scan of which the pipeline leaves nothing is named; mmdet3d goes on to an IndexError or a batch-norm error."""

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Count the points where ``Pack3DDetInputs`` packs them, and keep which points of the file they are."""
    host = module.Pack3DDetInputs.pack_single_results

    def pack_single_results(self, results):
        if 'points' in self.keys and 'points' in results and len(results['points']) < 2:
            path = results.get('lidar_path') or results.get('lidar_points', {}).get('lidar_path', 'a scan')
            count = len(results['points'])
            raise ValueError(
                f'{path} has {count} point{"s" * (count != 1)} after the pipeline, and a model needs at least 2: the '
                'file is (nearly) empty, or all its points lie outside of point_cloud_range; take it out of the info '
                'file or correct the range'
            )
        packed = host(self, results)
        kept = {key: results[key] for key in ('finite_points', 'current_points') if key in results}
        if kept:
            packed['data_samples'].set_metainfo(kept)
        return packed

    return [(module.Pack3DDetInputs, 'pack_single_results', pack_single_results)]


WORKAROUND = Workaround(
    name='empty_scans',
    host='mmdet3d.datasets.transforms.formating',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d checks what its pipelines leave',
)
