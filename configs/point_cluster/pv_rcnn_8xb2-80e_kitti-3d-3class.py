# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
# Its ObjectSample wants training/planes; without them: use_ground_plane=False.
_base_ = 'mmdet3d::pv_rcnn/pv_rcnn_8xb2-80e_kitti-3d-3class.py'
