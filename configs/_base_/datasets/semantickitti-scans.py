# Five real scans in $CLUSTERPLUG_DATA/semantickitti: four for training, 08/000000 held out. Write the info files with
#   python tools/prepare_semantickitti.py $CLUSTERPLUG_DATA/semantickitti \
#       --train 01/000000-000002 04/000700 --val 08/000000 --out data/semantickitti-scans
# The training scans have no remission (all zeros), so only x, y, z are used.
_base_ = './semantickitti_layout.py'

scans = dict(
    pts='{{$CLUSTERPLUG_DATA:data}}/semantickitti', pts_semantic_mask='{{$CLUSTERPLUG_DATA:data}}/semantickitti'
)
infos = 'data/semantickitti-scans/semantickitti_infos_'
load_points = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=3)
train_pipeline = [load_points, *_base_.train_pipeline[1:]]
test_pipeline = [load_points, *_base_.test_pipeline[1:]]
tta_pipeline = [load_points, *_base_.tta_pipeline[1:]]

held_out = dict(data_root=None, data_prefix=scans, ann_file=f'{infos}val.pkl', pipeline=test_pipeline)
train_dataloader = dict(
    dataset=dict(data_root=None, data_prefix=scans, ann_file=f'{infos}train.pkl', pipeline=train_pipeline)
)
val_dataloader = dict(dataset=held_out)
test_dataloader = dict(dataset=held_out)
