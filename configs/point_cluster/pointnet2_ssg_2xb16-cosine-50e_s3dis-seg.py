# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
_base_ = 'mmdet3d::pointnet2/pointnet2_ssg_2xb16-cosine-50e_s3dis-seg.py'
