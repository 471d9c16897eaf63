# mmdet3d's own W16 recipe, which it ships for TorchSparse, with spconv.
_base_ = 'mmdet3d::minkunet/minkunet18_w16_torchsparse_8xb2-amp-15e_semantickitti.py'

model = dict(data_preprocessor=dict(batch_first=True), backbone=dict(sparseconv_backend='spconv'))
