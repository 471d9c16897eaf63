# mmdet3d's own recipe, which it ships for TorchSparse, with spconv.
_base_ = 'mmdet3d::minkunet/minkunet34v2_w32_torchsparse_8xb2-amp-laser-polar-mix-3x_semantickitti.py'

model = dict(data_preprocessor=dict(batch_first=True), backbone=dict(sparseconv_backend='spconv'))
