# mmdet3d's own recipe, which it ships for TorchSparse, with spconv.
_base_ = 'mmdet3d::spvcnn/spvcnn_w32_8xb2-amp-15e_semantickitti.py'

model = dict(data_preprocessor=dict(batch_first=True), backbone=dict(sparseconv_backend='spconv'))
