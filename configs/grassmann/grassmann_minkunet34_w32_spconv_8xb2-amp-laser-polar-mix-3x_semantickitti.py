# The composite of the paper with AdamW: bases at 0.1 radians for a unit gradient, 12.5 times mmdet3d's rate.
_base_ = '../point_cluster/minkunet34_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti.py'

head = dict(type='clusterplug.GrassmannHead', subspace_dim=8)
model = dict(_delete_=True, type='clusterplug.SwapClassifier', model=_base_.model, head=head)
rsgd = dict(_delete_=True, type='clusterplug.RiemannianSGD', base='adamw', lr=0.008, momentum=0.9, weight_decay=0.01)
optim_wrapper = dict(constructor='clusterplug.GrassmannOptimWrapperConstructor', optimizer=rsgd)
optim_wrapper['paramwise_cfg'] = dict(grassmann_lr_mult=12.5)
