# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
_base_ = 'mmdet3d::point_rcnn/point-rcnn_8xb2_kitti-3d-3class.py'
