# ActivityNet Captions, whole video to paragraph.
#   <data_root>/videos: a folder of videos, .zip or LMDB; prepared by tools/prepare_videos.py for speed
#   <data_root>/{train.json, val_1.json}
# Another folder: --cfg-options train_dataloader.dataset.data_root=X val_dataloader.dataset.data_root=X
#   test_dataloader.dataset.data_root=X
data_root = 'data/activitynet/'
pipeline = [
    dict(type='clusterplug.LoadVideoFrames', num_frames=60),
    dict(type='clusterplug.ResizeAndCrop', size=224),
    dict(type='clusterplug.TokenizeCaptions', tokenizer=dict(type='CLIPTokenizer'), max_words=77),
    dict(type='clusterplug.PackVideoText'),
]
dataset = dict(type='clusterplug.ActivityNetDataset', data_root=data_root, videos='videos', pipeline=pipeline)
loader = dict(num_workers=8, persistent_workers=True, pin_memory=True)
train_dataloader = dict(
    batch_size=64,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='train.json', split='train', **dataset),
    **loader,
)
val_dataloader = dict(
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='val_1.json', split='val', test_mode=True, **dataset),
    **loader,
)
test_dataloader = dict(
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='val_1.json', split='val', test_mode=True, **dataset),
    **loader,
)
val_evaluator = dict(type='clusterplug.RetrievalMetric')
test_evaluator = val_evaluator
