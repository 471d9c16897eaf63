# SemanticKITTI, several scans at once: like semantickitti_layout.py, with
#   <data_root>/sequences/<sequence>/{poses.txt, calib.txt}
# and 25 classes; 25 is ignored. Points are x, y, z, remission, age in seconds.
_base_ = './semantickitti_layout.py'

num_scans = 3
class_names = [
    *_base_.class_names, 'moving-car', 'moving-bicyclist', 'moving-person', 'moving-motorcyclist',
    'moving-other-vehicle', 'moving-truck',
]  # fmt: skip
labels_map = {
    0: 25, 1: 25, 10: 0, 11: 1, 13: 4, 15: 2, 16: 4, 18: 3, 20: 4, 30: 5, 31: 6, 32: 7, 40: 8, 44: 9, 48: 10, 49: 11,
    50: 12, 51: 13, 52: 25, 60: 8, 70: 14, 71: 15, 72: 16, 80: 17, 81: 18, 99: 25, 252: 19, 253: 20, 254: 21, 255: 22,
    256: 23, 257: 23, 258: 24, 259: 23,
}  # fmt: skip
metainfo = dict(_delete_=True, classes=class_names, seg_label_mapping=labels_map, max_label=259)

add_scans = dict(type='clusterplug.AddPreviousScans', num_scans=num_scans)
current_only = dict(type='clusterplug.AddPreviousScans', num_scans=num_scans, label_previous=False)
train_pipeline = [*_base_.train_pipeline[:2], add_scans, *_base_.train_pipeline[2:]]
test_pipeline = [*_base_.test_pipeline[:2], current_only, *_base_.test_pipeline[2:]]

scans = dict(type='clusterplug.SemanticKittiMultiScanDataset', metainfo=metainfo, ignore_index=25)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **scans))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **scans))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, **scans))
