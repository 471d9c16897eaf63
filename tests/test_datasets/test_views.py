# SPDX-License-Identifier: Apache-2.0
"""MultiCrop and PointViews: sizes, correspondence, regions, seeds, what is refused; data sets of images."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip('mmcv')

from clusterplug.datasets.images import ImageArrays, ImageFolder
from clusterplug.datasets.transforms import MultiCrop, PackViews, PointViews
from clusterplug.datasets.transforms.color_jitter import FastColorJitter
from clusterplug.datasets.transforms.scan_regions import cell_regions, segment_regions


def image(height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scan(number=2000, seed=0):
    """A floor and three boxes on it, x, y, z and one more column."""
    g = torch.Generator().manual_seed(seed)
    floor = torch.rand(number // 2, 3, generator=g) * torch.tensor([20.0, 20.0, 0.05])
    boxes = [torch.rand(number // 6, 3, generator=g) + torch.tensor([4.0 * n + 3, 9.0, 0.6]) for n in range(3)]
    xyz = torch.cat([floor, *boxes])
    return torch.cat([xyz, torch.arange(len(xyz), dtype=torch.float32)[:, None]], 1)


def test_crops_have_their_sizes_and_repeat_with_the_seed():
    crops = MultiCrop((2, 3), (24, 12), ((0.3, 1), (0.1, 0.3)))
    torch.manual_seed(0)
    views = crops(dict(img=image()))['views']
    assert [tuple(view.shape) for view in views] == [(3, 24, 24)] * 2 + [(3, 12, 12)] * 3
    assert views[0].dtype == torch.uint8
    assert not torch.equal(views[0], views[1])
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(views, crops(dict(img=image()))['views']))


@pytest.mark.parametrize('strengths', [(0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2), (0, 0, 0, 0.5), (0.5, 0, 0, 0)])
def test_colors_are_those_of_torchvision_for_the_same_seed(strengths):
    from torchvision.transforms import v2

    apart = []
    for seed in range(40):
        x = torch.randint(0, 256, (3, 9, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        found = []
        for jitter in (v2.ColorJitter(*strengths), FastColorJitter(strengths)):
            torch.manual_seed(seed)
            found.append((jitter(x), torch.rand(1)))
        assert found[0][1] == found[1][1]  # as many random numbers were drawn
        assert found[1][0].dtype == torch.uint8
        apart.append((found[0][0].int() - found[1][0].int()).abs())
    assert torch.stack(apart).max() <= 6
    assert torch.stack(apart).float().mean() < 1.5
    torch.manual_seed(0)
    expected = v2.ColorJitter(*strengths)(x / 255)
    torch.manual_seed(0)
    torch.testing.assert_close(FastColorJitter(strengths)(x / 255), expected)


def test_channels_come_out_as_rgb():
    plain = dict(flip=0, jitter_prob=0, gray_prob=0, blur_prob=0)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 200  # BGR
    view = MultiCrop((1,), (16,), ((1, 1),), **plain)(dict(img=red))['views'][0]
    assert view.flatten(1).amax(1).tolist() == [200, 0, 0]
    rgb = MultiCrop((1,), (16,), ((1, 1),), channel_order='rgb', **plain)(dict(img=red))['views'][0]
    assert rgb.flatten(1).amax(1).tolist() == [0, 0, 200]
    gray = MultiCrop((1,), (16,), ((1, 1),), **plain)(dict(img=red[..., 2]))['views'][0]
    assert (gray == 200).all()


def test_small_images_are_enlarged_with_a_warning():
    with pytest.warns(UserWarning, match=r'enlarges images of \(10, 10\)'):
        view = MultiCrop((2,), (24,), ((0.5, 1),))(dict(img=image(10, 10)))['views'][0]
    assert view.shape == (3, 24, 24)


def test_matched_points_are_the_same_points():
    points = scan()
    views = PointViews(num_views=3, num_matches=200, scale_range=(1, 1), jitter=0)(dict(points=points))
    assert views['matches'].shape == (200, 3)
    assert len({int(view[i, 3]) for view, i in zip(views['views'][:1], views['matches'][:, 0])}) == 1
    ids = [view[match, 3] for view, match in zip(views['views'], views['matches'].T)]
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])
    assert len(ids[0].unique()) == 200
    for view, origin in zip(views['views'], views['origins']):
        assert torch.equal(view[:, 3], points[origin, 3])
        # turns and flips keep heights and distances from the axis
        torch.testing.assert_close(view[:, 2], points[origin, 2])
        torch.testing.assert_close(view[:, :2].norm(dim=1), points[origin, :2].norm(dim=1))


def test_regions_are_those_of_the_scan_and_seen_by_every_view():
    points = scan()
    options = dict(regions='cells', region_size=4.0, region_points=3)
    views = PointViews(num_regions=10, **options)(dict(points=points))
    cells = cell_regions(points[:, :3], 4.0)
    assert 0 < views['num_regions'] <= 10
    of_region = [{}, {}]
    for n, (origin, regions) in enumerate(zip(views['origins'], views['regions'])):
        assert len(origin) == len(regions)
        for region in range(views['num_regions']):
            members = regions == region
            assert members.sum() >= 3
            assert len(cells[origin[members]].unique()) == 1
            of_region[n][region] = int(cells[origin[members]][0])
    assert of_region[0] == of_region[1]
    assert len(set(of_region[0].values())) == views['num_regions']


def test_segments_are_the_boxes():
    points = scan()
    regions = segment_regions(points[:, :3])
    assert (regions[:1000] == -1).all()
    boxes = [regions[1000 + 333 * n : 1333 + 333 * n] for n in range(3)]
    assert all((box == box[0]).all() and box[0] >= 0 for box in boxes)
    assert len({int(box[0]) for box in boxes}) == 3
    views = PointViews(regions='segments', crop=(1, 1))(dict(points=points))
    assert views['num_regions'] == 3
    flat = PointViews(regions='segments')(dict(points=points[:1000]))
    assert flat['num_regions'] == 0
    assert (flat['regions'][0] == -1).all()


def test_cells_equal_a_loop():
    xyz = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 5 - 2
    ids, found = cell_regions(xyz, 1.5), {}
    for point, region in zip(((xyz - xyz.amin(0)) / 1.5).floor().tolist(), ids.tolist()):
        assert found.setdefault(tuple(point), region) == region
    assert len(set(found.values())) == len(found) == int(ids.max()) + 1


def test_labels_follow_the_matched_points_and_bad_points_are_dropped():
    points = scan(600)
    points[7] = math.nan
    labels = np.arange(600)
    views = PointViews(num_matches=50)(dict(points=points, pts_semantic_mask=labels))
    assert torch.equal(views['point_labels'], views['views'][0][views['matches'][:, 0], 3].long())
    assert all(torch.isfinite(view).all() for view in views['views'])
    packed = PackViews()({**views, 'sample_idx': 3})
    assert set(packed['inputs']) == {'views', 'matches', 'point_labels'}
    assert packed['data_samples'].sample_idx == 3


def test_numbers_of_points():
    points = scan(600)
    views = PointViews(num_points=1000)(dict(points=points))
    assert [len(view) for view in views['views']] == [1000, 1000]
    views = PointViews(max_points=100)(dict(points=points))
    assert [len(view) for view in views['views']] == [100, 100]
    one = PointViews(num_views=1, num_matches=10)(dict(points=points[:1]))
    assert one['matches'].tolist() == [[0]]
    lone = PointViews(max_points=1)(dict(points=points))  # two draws of one point hardly meet
    assert len(lone['matches']) == 1
    assert torch.equal(lone['origins'][0], lone['origins'][1])


def test_bad_input():
    with pytest.raises(ValueError, match='one entry a size'):
        MultiCrop((2,), (24, 12))
    with pytest.raises(ValueError, match='scales must be pairs'):
        MultiCrop((2,), (24,), ((0, 1),))
    with pytest.raises(ValueError, match='flip'):
        MultiCrop((2,), (24,), ((0.1, 1),), flip=2)
    for wrong in ((0.1, 0.1), (0.1, 0.1, -0.1, 0), (0, 0, 0, 0.6)):
        with pytest.raises(ValueError, match='color_jitter'):
            MultiCrop((2,), (24,), ((0.1, 1),), color_jitter=wrong)
    with pytest.raises(ValueError, match='got shape'):
        MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=np.zeros((5, 5, 4), np.uint8)))
    for pixels in (image(30, 30).astype(np.float32), image(30, 30) / 255 - 0.5):
        with pytest.raises(ValueError, match=r'floats within 0 \.\. 1, got floats from'):
            MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=pixels))
    with pytest.raises(TypeError, match=r'got torch\.int64'):
        MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=image(30, 30).astype(np.int64)))
    with pytest.raises(TypeError, match='NumPy array'):
        MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=torch.zeros(30, 30, 3)))
    MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=1.05 * image(30, 30) / np.float32(255)))  # bicubic resizing does so
    views = MultiCrop((2,), (24,), ((0.1, 1),))(dict(img=image(30, 30) / np.float32(255)))['views']
    assert all(0 <= float(view.min()) <= float(view.max()) <= 1 for view in views)
    with pytest.raises(ValueError, match=r'x, y, z first, got shape \(5, 2\)'):
        PointViews()(dict(points=torch.zeros(5, 2)))
    with pytest.raises(ValueError, match='at least one finite point'):
        PointViews()(dict(points=torch.full((3, 4), math.nan)))
    for options in (dict(crop=(0, 1)), dict(drop=(0, 1)), dict(num_views=0), dict(regions='cars'), dict(jitter=-1),
                    dict(rot_range=(1, 0)), dict(scale_range=0.5)):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options))):
            PointViews(**options)
    with pytest.raises(ValueError, match='no views to pack'):
        PackViews()(dict())


def test_arrays_and_folders(tmp_path):
    np.savez(tmp_path / 'a.npz', X=np.stack([image(8, 8, n) for n in range(5)]), y=np.arange(5))
    np.save(tmp_path / 'few.npy', np.array([4, 1]))
    data = ImageArrays(str(tmp_path / 'a.npz'), 'X', 'y', subset=str(tmp_path / 'few.npy'), split='train')
    assert [data[n]['gt_label'] for n in range(2)] == [4, 1]
    np.testing.assert_array_equal(data[1]['img'], image(8, 8, 1))
    assert data[1]['split'] == 'train'
    assert data[1]['sample_idx'] == 1
    with pytest.raises(ValueError, match='has the arrays X, y, not Z'):
        ImageArrays(str(tmp_path / 'a.npz'), 'Z')
    for name in ('cat/1.PNG', 'dog/2.jpg', 'dog/notes.txt'):
        (tmp_path / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'pictures' / name).touch()
    folder = ImageFolder(str(tmp_path / 'pictures'), labels=True)
    assert [folder[n]['gt_label'] for n in range(len(folder))] == [0, 1]
    assert folder.metainfo['classes'] == ('cat', 'dog')
    with pytest.raises(FileNotFoundError, match='holds no image'):
        ImageFolder(str(tmp_path / 'pictures'), suffixes=['.bmp'])
