# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
_base_ = 'mmdet3d::paconv/paconv_ssg_8xb8-cosine-150e_s3dis-seg.py'
