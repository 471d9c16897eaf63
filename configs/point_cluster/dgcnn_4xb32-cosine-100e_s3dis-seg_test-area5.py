# mmdet3d's own recipe as it is; here so that the variant with clustering has a base beside it.
_base_ = 'mmdet3d::dgcnn/dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5.py'
