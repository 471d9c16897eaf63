# Generated videos of moving sprites: python tools/prepare_moving_sprites.py --out data/moving_sprites
data_root = 'data/moving_sprites/'
pipeline = [
    # 1,008 videos of 80 kB each once decoded stay in memory; decord2 3.4 cannot read 48 pixels
    dict(type='clusterplug.LoadVideoFrames', num_frames=4, backend='pyav', cache_bytes=500_000_000),
    dict(type='clusterplug.ResizeAndCrop', size=48),
    dict(
        type='clusterplug.TokenizeCaptions',
        tokenizer=dict(type='WordTokenizer', vocabulary=data_root + 'vocabulary.txt'),
        max_words=12,
    ),
    dict(type='clusterplug.PackVideoText'),
]
dataset = dict(type='clusterplug.VideoTextDataset', data_root=data_root, videos='videos', pipeline=pipeline)
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=64,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='train.csv', **dataset),
    **loader,
)
val_dataloader = dict(
    batch_size=48,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.csv', test_mode=True, **dataset),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='clusterplug.RetrievalMetric')
test_evaluator = val_evaluator
