# Weights of the training frames from
#   python tools/dataset_equity.py configs/point_cluster/pointpillars_hv_secfpn_1xb2-150e_kitti-frames.py \
#       --embedder resnet18 --pretrained --cluster knn --n-neighbors 3 --out work_dirs/equity_kitti-frames
_base_ = '../point_cluster/pointpillars_hv_secfpn_1xb2-150e_kitti-frames.py'

likelihood = 'work_dirs/equity_kitti-frames/likelihood.json'
model = dict(_delete_=True, type='clusterplug.WithSampleWeights', model=_base_.model, likelihood=likelihood)
