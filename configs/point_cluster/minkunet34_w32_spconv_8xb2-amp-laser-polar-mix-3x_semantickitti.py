# mmdet3d's own recipe as it is; here so that the variants with clustering have a base beside them.
_base_ = 'mmdet3d::minkunet/minkunet34_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti.py'
