# The slices are the frames of generated videos: python tools/prepare_moving_sprites.py --out data/moving_sprites.
# No labels, so no probes: tools/analysis_tools/probe.py takes a config with a validation of its own.
_base_ = './intra-inter_second-small_1xb32-20e_adrenal-slices.py'

views = dict(type='clusterplug.SliceViews', size=32, num_slices=12)
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='clusterplug.ImageFolder', data_root='data/moving_sprites/videos', suffixes=['.mp4'],
        pipeline=[dict(type='clusterplug.LoadSlices'), views, _base_.pack_views],
    )
)  # fmt: skip
val_dataloader = None
val_evaluator = None
val_cfg = None
