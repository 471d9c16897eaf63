# A subspace of 4 dimensions for each class in the 24 of the decoder. The bases take AdamW's rate times ten, 0.1 radians
# for a unit gradient.
_base_ = '../point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'

head = dict(type='clusterplug.GrassmannHead', subspace_dim=4)
model = dict(_delete_=True, type='clusterplug.SwapClassifier', model=_base_.model, head=head)
rsgd = dict(_delete_=True, type='clusterplug.RiemannianSGD', base='adamw', lr=0.01, momentum=0.9, weight_decay=0.01)
optim_wrapper = dict(constructor='clusterplug.GrassmannOptimWrapperConstructor', optimizer=rsgd)
optim_wrapper['paramwise_cfg'] = dict(grassmann_lr_mult=10)
