# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
_base_ = 'mmdet3d::cylinder3d/cylinder3d_4xb4-3x_semantickitti.py'
