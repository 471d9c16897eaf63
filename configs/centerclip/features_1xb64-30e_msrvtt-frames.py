# Frozen features of real encoders, and a projection trained on them: 476 videos of MSR-VTT 1k-A whose frames are in one
# zip, DINOv2-S features of the frames, MiniLM features of the captions; 380 videos to train, 96 to test.
#   CLUSTERPLUG_DATA/video/{MSRVTT_JSFUSION_test.csv, msrvtt_1kA_frame_pairs.zip, msrvtt_1kA_*.npz}
_base_ = ['../_base_/schedules/centerclip-5e.py', '../_base_/retrieval_runtime.py']

data_root = '{{$CLUSTERPLUG_DATA:data}}/video/'
model = dict(
    type='clusterplug.CenterCLIP',
    encoders=dict(
        type='clusterplug.FeatureEncoders', video_channels=768, text_channels=384, embed_dims=256, dropout=0.4
    ),
)
pipeline = [
    dict(
        type='clusterplug.LoadFeatures',
        video_file=data_root + 'msrvtt_1kA_dinov2s_features.npz',
        text_file=data_root + 'msrvtt_1kA_minilm_text.npz',
        num_frames=6,
    ),
    dict(type='clusterplug.PackVideoText'),
]
# The zip tells which of the 1,000 annotated videos are there.
dataset = dict(
    type='clusterplug.MSRVTTDataset',
    data_root=data_root,
    ann_file='MSRVTT_JSFUSION_test.csv',
    split='test-1k',
    videos='msrvtt_1kA_frame_pairs.zip',
    side_by_side=2,
    pipeline=pipeline,
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(indices=list(range(380)), **dataset),
)
val_dataloader = dict(
    batch_size=96,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(indices=list(range(380, 476)), test_mode=True, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='clusterplug.RetrievalMetric')
test_evaluator = val_evaluator

max_epochs = 30
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3, weight_decay=0.2))
param_scheduler = [
    dict(type='CosineAnnealingLR', begin=0, end=max_epochs, by_epoch=True, eta_min=0, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
